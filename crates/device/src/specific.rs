//! The networks with routes in `main` through devices other than the tunnel's device: this host's own networks,
//! and others with routes more specific than a default route. A kill switch does not cover these networks,
//! except for those that are larger than a local network and were announced by the local network itself.
//!
//! If an IP version has more than [`MOST`] such networks, those with the highest addresses are left out: the
//! kill switch drops packets to them, and a warning is logged. So a neighbour cannot open the kill switch by
//! announcing many networks.

use std::time::Duration;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteMessage, RouteType};
use tokio::time::sleep;

use crate::lookup::network;
use crate::{Heard, Netlink, bypass, table};

/// Changes come in groups.
const SETTLES_WITHIN: Duration = Duration::from_millis(50);
/// The least time between two dumps.
const APART: Duration = Duration::from_millis(250);
/// The maximum number of networks of each IP version.
const MOST: usize = 1024;

/// Follows the more specific routes of `main`.
pub struct SpecificRoutes {
    netlink: Netlink,
    heard: Heard,
    /// The tunnel's device.
    index: u32,
    known: Vec<IpNet>,
    /// Whether the last result left out some networks.
    left_out: bool,
    /// Whether routes have changed since they were last read.
    is_stale: bool,
}

impl SpecificRoutes {
    /// Reads the networks, without the routes through the device with this index.
    pub async fn read(netlink: Netlink, heard: Heard, index: u32) -> Self {
        let found = networks(&netlink, index).await.unwrap_or_default();
        let mut this =
            Self { netlink, heard, index, known: Vec::new(), left_out: false, is_stale: false };
        this.take(found);
        this
    }

    /// Stores the networks, and returns whether they have changed. Warns when the first networks are left out.
    fn take(&mut self, Networks { all, left_out }: Networks) -> bool {
        if left_out > 0 && !self.left_out {
            tracing::warn!(
                "this host has routes to more than {MOST} networks: the kill switch drops packets to {left_out} of them"
            );
        }
        self.left_out = left_out > 0;
        let is_new = all != self.known;
        self.known = all;
        is_new
    }

    /// The networks as last read: none is part of another, and those of each IP version are sorted.
    pub fn networks(&self) -> &[IpNet] {
        &self.known
    }

    /// Waits for a change. If this future is dropped, the next call continues the wait.
    pub async fn changed(&mut self) {
        loop {
            if !self.is_stale {
                self.heard.changed().await;
                self.is_stale = true;
            }
            sleep(SETTLES_WITHIN).await;
            self.heard.skip();
            let found = networks(&self.netlink, self.index).await;
            self.is_stale = false;
            if found.is_some_and(|found| self.take(found)) {
                return;
            }
            sleep(APART).await;
        }
    }
}

/// The networks that a kill switch does not cover, and the number of further networks that it has to cover.
#[derive(Debug, Default, PartialEq, Eq)]
struct Networks {
    all: Vec<IpNet>,
    left_out: usize,
}

impl Networks {
    /// The first networks of `found`, merged so that none is part of another.
    fn first_of(found: &[IpNet]) -> Self {
        let mut all = IpNet::aggregate(&found.to_vec());
        all.sort_unstable();
        let left_out = all.len().saturating_sub(MOST);
        all.truncate(MOST);
        Self { all, left_out }
    }
}

/// `None` if the kernel does not return the routes.
async fn networks(netlink: &Netlink, index: u32) -> Option<Networks> {
    let Networks { mut all, left_out } = networks_of(AddressFamily::Inet, netlink, index).await?;
    // A kernel without IPv6 routes no IPv6 packets.
    let v6 = networks_of(AddressFamily::Inet6, netlink, index).await.unwrap_or_default();
    all.extend(v6.all);
    Some(Networks { all, left_out: left_out + v6.left_out })
}

async fn networks_of(family: AddressFamily, netlink: &Netlink, index: u32) -> Option<Networks> {
    let mut dump = RouteMessage::default();
    dump.header.address_family = family;
    let mut routes = Box::pin(netlink.handle.route().get(dump).execute());
    let mut found = Vec::new();
    while let Some(route) = routes.try_next().await.ok()? {
        if let Some(net) = network(&route)
            && is_specific(&route, net, index)
        {
            found.push(net.trunc());
        }
    }
    Some(Networks::first_of(&found))
}

/// Routes that drop or reject packets do not count: a program that binds its socket to a device avoids them.
fn is_specific(route: &RouteMessage, net: IpNet, index: u32) -> bool {
    let elsewhere = bypass::hops(route).iter().any(|(_, by)| *by != index);
    let leads = route.header.kind == RouteType::Unicast && net.prefix_len() > 0;
    let is_here = table::number(route) == table::MAIN;
    leads && elsewhere && is_here && !bypass::is_announced(route, net)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_networks_let_fewer_past() {
        let net = |n: usize| -> IpNet { format!("2001:db8:0:{n:x}::/64").parse().unwrap() };
        // No two networks are adjacent, so none are merged.
        let found: Vec<_> = (0..MOST + 3).rev().map(|n| net(2 * n)).collect();
        let Networks { all, left_out } = Networks::first_of(&found);
        assert_eq!((all.len(), left_out), (MOST, 3));
        assert!(all.iter().all(|net| found.contains(net)), "nothing else is let past");
        assert_eq!(all.last(), Some(&net(2 * (MOST - 1))));
        let few = Networks::first_of(&[net(0), net(1), net(0)]);
        assert_eq!(few, Networks { all: vec!["2001:db8::/63".parse().unwrap()], left_out: 0 });
    }
}
