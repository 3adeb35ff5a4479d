//! Looks through the kernel's routing tables for a diagnosis: which route refuses packets to an address, and
//! which devices a network is routed to.

use std::fmt;
use std::net::IpAddr;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::route::{RouteMessage, RouteType};

use crate::{Netlink, address, bypass, lookup, route, table};

/// A route that drops or rejects packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusing {
    kind: &'static str,
    to: IpNet,
    table: u32,
    metric: u32,
}

impl fmt::Display for Refusing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, to, table, metric } = self;
        write!(f, "{kind} {to}")?;
        if *table != table::MAIN {
            write!(f, " table {table}")?;
        }
        if *metric > 0 { write!(f, " metric {metric}") } else { Ok(()) }
    }
}

impl Refusing {
    /// The command that removes the route.
    pub fn removal(&self) -> String {
        let family = if self.to.addr().is_ipv4() { "" } else { "-6 " };
        format!("ip {family}route del {self}")
    }

    fn of(message: &RouteMessage) -> Option<Self> {
        let kind = match message.header.kind {
            RouteType::BlackHole => "blackhole",
            RouteType::Unreachable => "unreachable",
            RouteType::Prohibit => "prohibit",
            _ => return None,
        };
        let (to, table) = (lookup::network(message)?, table::number(message));
        Some(Self { kind, to, table, metric: route::metric_of(message) })
    }
}

impl Netlink {
    /// The most specific route that refuses packets to this address. Another route may take them all the same.
    pub async fn refusing(&self, to: IpAddr) -> Option<Refusing> {
        let routes = self.routes(to).await;
        let refusing = routes.iter().filter_map(Refusing::of);
        // The kernel's own ones, at the end of IPv6's main table, are for addresses that have no other route.
        let usual = |route: &Refusing| route.metric == u32::MAX && route.to.prefix_len() == 0;
        let matching = refusing.filter(|route| route.to.contains(&to) && !usual(route));
        matching.max_by_key(|route| route.to.prefix_len())
    }

    /// The indices of the devices by which the main table leads to exactly this network.
    pub async fn devices_to(&self, net: IpNet) -> Vec<u32> {
        let routes = self.routes(net.addr()).await;
        let same = routes.iter().filter(|route| {
            lookup::network(route) == Some(net.trunc()) && table::number(route) == table::MAIN
        });
        let hops = same.flat_map(bypass::hops);
        hops.map(|(_, index)| index).collect()
    }

    /// All routes of the address's family.
    async fn routes(&self, of: IpAddr) -> Vec<RouteMessage> {
        let mut dump = RouteMessage::default();
        dump.header.address_family = address::family_of(of);
        let routes = self.handle.route().get(dump).execute();
        routes.try_collect().await.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_names_what_makes_the_route_unique() {
        let of = |to: &str, table, metric| {
            Refusing { kind: "blackhole", to: to.parse().unwrap(), table, metric }.removal()
        };
        assert_eq!(of("192.0.2.2/32", table::MAIN, 0), "ip route del blackhole 192.0.2.2/32");
        let v6 = of("2001:db8::/32", 7, 1024);
        assert_eq!(v6, "ip -6 route del blackhole 2001:db8::/32 table 7 metric 1024");
    }
}
