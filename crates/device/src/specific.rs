//! The IPv4 networks that `main` has routes to other than by the tunnel's device: this host's own, and what else is more
//! specific than a default route. A kill switch leaves them alone.

use std::time::Duration;

use futures_util::TryStreamExt;
use ipnet::{IpNet, Ipv4Net};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteMessage, RouteType};
use tokio::time::sleep;

use crate::lookup::network;
use crate::{Heard, Netlink, bypass, table};

/// Changes come in groups.
const SETTLES_WITHIN: Duration = Duration::from_millis(50);
/// From one dump to the next, at least.
const APART: Duration = Duration::from_millis(250);
/// Networks, at most.
const MOST: usize = 1024;

/// Follows the more specific routes of `main`.
pub struct SpecificRoutes {
    netlink: Netlink,
    heard: Heard,
    /// The tunnel's device.
    index: u32,
    known: Vec<Ipv4Net>,
}

impl SpecificRoutes {
    /// Reads them, past the routes by the device with this number.
    pub async fn read(netlink: Netlink, heard: Heard, index: u32) -> Self {
        let known = networks(&netlink, index).await.unwrap_or_default();
        Self { netlink, heard, index, known }
    }

    /// The networks that were read last: none is part of another, and they are in order.
    pub fn networks(&self) -> &[Ipv4Net] {
        &self.known
    }

    /// Waits for a change.
    pub async fn changed(&mut self) {
        loop {
            self.heard.changed().await;
            sleep(SETTLES_WITHIN).await;
            self.heard.skip();
            if let Some(found) = networks(&self.netlink, self.index).await
                && found != self.known
            {
                self.known = found;
                return;
            }
            sleep(APART).await;
        }
    }
}

/// None if the kernel does not give them.
async fn networks(netlink: &Netlink, index: u32) -> Option<Vec<Ipv4Net>> {
    let mut dump = RouteMessage::default();
    dump.header.address_family = AddressFamily::Inet;
    let mut routes = Box::pin(netlink.handle.route().get(dump).execute());
    let mut found = Vec::new();
    while let Some(route) = routes.try_next().await.ok()? {
        if let Some(IpNet::V4(net)) = network(&route)
            && is_specific(&route, net, index)
        {
            found.push(net.trunc());
        }
    }
    let mut found = Ipv4Net::aggregate(&found);
    found.sort_unstable();
    found.truncate(MOST);
    Some(found)
}

/// Where a route drops or refuses, a program that names a device would still send.
fn is_specific(route: &RouteMessage, net: Ipv4Net, index: u32) -> bool {
    let elsewhere = bypass::hops(route).iter().any(|(_, by)| *by != index);
    let leads = route.header.kind == RouteType::Unicast && net.prefix_len() > 0;
    leads && elsewhere && table::number(route) == table::MAIN
}
