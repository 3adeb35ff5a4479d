//! The networks with routes in `main` through devices other than the tunnel's: those of this host, and other
//! routes more specific than a default route. A kill switch does not cover them, except for networks that are
//! larger than a local network and were announced by the local network itself.

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
/// From one dump to the next, at least.
const APART: Duration = Duration::from_millis(250);
/// The number of networks of each version of IP, at most.
const MOST: usize = 1024;

/// Follows the more specific routes of `main`.
pub struct SpecificRoutes {
    netlink: Netlink,
    heard: Heard,
    /// The tunnel's device.
    index: u32,
    known: Vec<IpNet>,
    /// Whether there was a change since they were read.
    is_stale: bool,
}

impl SpecificRoutes {
    /// Reads them, without the routes through the device with this index.
    pub async fn read(netlink: Netlink, heard: Heard, index: u32) -> Self {
        let known = networks(&netlink, index).await.unwrap_or_default();
        Self { netlink, heard, index, known, is_stale: false }
    }

    /// The networks that were read last: none is part of another, and those of each version of IP are in order.
    pub fn networks(&self) -> &[IpNet] {
        &self.known
    }

    /// Waits for a change. If the wait is given up, the next one continues it.
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
            if let Some(found) = found
                && found != self.known
            {
                self.known = found;
                return;
            }
            sleep(APART).await;
        }
    }
}

/// `None` if the kernel does not return them.
async fn networks(netlink: &Netlink, index: u32) -> Option<Vec<IpNet>> {
    let mut all = networks_of(AddressFamily::Inet, netlink, index).await?;
    // A kernel without IPv6 routes no IPv6 packets.
    all.extend(networks_of(AddressFamily::Inet6, netlink, index).await.unwrap_or_default());
    Some(all)
}

async fn networks_of(family: AddressFamily, netlink: &Netlink, index: u32) -> Option<Vec<IpNet>> {
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
    let mut found = IpNet::aggregate(&found);
    found.sort_unstable();
    found.truncate(MOST);
    Some(found)
}

/// A route that drops or refuses does not stop a program that binds to a device.
fn is_specific(route: &RouteMessage, net: IpNet, index: u32) -> bool {
    let elsewhere = bypass::hops(route).iter().any(|(_, by)| *by != index);
    let leads = route.header.kind == RouteType::Unicast && net.prefix_len() > 0;
    let is_here = table::number(route) == table::MAIN;
    leads && elsewhere && is_here && !bypass::is_announced(route, net)
}
