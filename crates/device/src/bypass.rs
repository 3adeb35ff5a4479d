//! Routes of other programs through which packets bypass a kill switch: routes to the same network with a lower
//! metric, and routes to a part of that network. vpnd cannot know who needs them, so it leaves them alone and
//! reports them. It also reports a network that both the tunnel and a LAN of this host have, because the kernel
//! sends packets for it to only one of the two.
//!
//! The kernel lists the routes of a family only as a whole. They are therefore read only after a message about
//! a route that may bypass the kill switch, and less often if reading them takes long.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use futures_util::TryStreamExt;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rtnetlink::Handle;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType, RouteVia,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

use crate::heard::Told;
use crate::lookup::network;
use crate::plan::Plan;
use crate::recent::Recent;
use crate::{OwnTraffic, PROTOCOL, is_our_protocol, link, route, table};

/// The delay between the first message and the check: changes come in groups.
const SETTLES_WITHIN: Duration = Duration::from_millis(200);
/// The least time between two checks, which is also at least this many times as long as the check took.
const APART: Duration = Duration::from_millis(500);
const SHARE: u32 = 20;
/// The maximum number of reported routes to a part of the network.
const MOST_PARTS: usize = 16;
/// The maximum number of changes that are logged within [`LOGGED_WITHIN`].
const LOGGED: usize = 20;
const LOGGED_WITHIN: Duration = Duration::from_secs(60);

/// A route of another program that catches packets of one of our routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bypass {
    /// The route that these packets should take, as text.
    pub what: String,
    /// The route that these packets take instead, as text.
    pub by: String,
    /// Whether the other route leads only to a part of our route's network, which may be intended.
    pub is_part: bool,
    /// Whether that part is larger than a local network.
    pub is_wide: bool,
    /// Whether our route catches packets of a LAN that this host is connected to, instead of the other way
    /// round.
    pub into_tunnel: bool,
}

/// Finds such routes while a tunnel runs.
#[derive(Debug)]
pub(crate) struct Bypasses {
    switches: Vec<KillSwitch>,
    inside: Vec<Inside>,
    check: mpsc::Sender<()>,
    report: watch::Sender<Vec<Bypass>>,
    found: watch::Receiver<Vec<Bypass>>,
}

/// The network and the table that a kill switch covers.
#[derive(Clone, Debug)]
struct KillSwitch {
    to: IpNet,
    table: u32,
    /// The metric of the blackhole route. The route into the tunnel has the metric below it.
    metric: u32,
}

impl KillSwitch {
    fn of(route: &RouteMessage) -> Option<Self> {
        let is_ours = route.header.protocol == RouteProtocol::Other(PROTOCOL);
        let to = network(route).filter(|_| is_ours && route::drops(route))?;
        Some(Self { to, table: table::number(route), metric: route::metric_of(route) })
    }

    /// Whether a route is in the same table and leads to this network or to a part of it. For a default route,
    /// only networks that are too large for a local network count, because every network is a part of it.
    fn covers(&self, route: &RouteMessage) -> bool {
        let is_here = self.table == table::number(route);
        let covers = |net: IpNet| match self.to.prefix_len() {
            0 => {
                let is_main = [self.table, table::MAIN].contains(&table::number(route));
                (is_here && net == self.to)
                    || (is_main && self.to.contains(&net) && is_wide(route, net))
            }
            _ => is_here && self.to.contains(&net),
        };
        network(route).is_some_and(covers)
    }
}

/// A network that is reached through the tunnel, by a route or by an address of the device.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Inside {
    to: IpNet,
    table: u32,
}

impl Inside {
    fn all(plan: &Plan) -> Vec<Self> {
        let routes = plan.routes.iter().map(|held| held.route.clone());
        let connected = |address| route::connected(address, plan.table);
        let connected = plan.addresses.iter().flat_map(connected);
        let unicast = routes.chain(connected).filter(|route| !route::drops(route));
        let mut all: Vec<Self> = unicast.filter_map(|route| Self::of(&route)).collect();
        let mut seen = Vec::new();
        all.retain(|one| {
            let is_new = !seen.contains(one);
            seen.push(one.clone());
            is_new
        });
        all
    }

    /// `None` for a default route, and for a link-local network, which every interface may have.
    fn of(route: &RouteMessage) -> Option<Self> {
        let to = network(route).filter(|to| to.prefix_len() > 0)?;
        let link_local = match to.addr() {
            IpAddr::V4(at) => at.is_link_local(),
            IpAddr::V6(at) => at.is_unicast_link_local(),
        };
        (!link_local).then(|| Self { to, table: table::number(route) })
    }

    fn is_of(&self, route: &RouteMessage) -> bool {
        self.table == table::number(route) && network(route) == Some(self.to)
    }
}

impl Bypasses {
    /// Starts the check in a task, which ends when the returned value is dropped.
    pub(crate) fn spawn(handle: &Handle, plan: &Plan, own: watch::Receiver<OwnTraffic>) -> Self {
        Self::spawn_reporting(handle, plan, own, watch::Sender::new(Vec::new()))
    }

    /// The same check for another plan.
    pub(crate) fn follow(
        &mut self,
        handle: &Handle,
        plan: &Plan,
        own: watch::Receiver<OwnTraffic>,
    ) {
        self.report.send_replace(Vec::new());
        *self = Self::spawn_reporting(handle, plan, own, self.report.clone());
    }

    fn spawn_reporting(
        handle: &Handle,
        plan: &Plan,
        own: watch::Receiver<OwnTraffic>,
        report: watch::Sender<Vec<Bypass>>,
    ) -> Self {
        let switches: Vec<_> =
            plan.routes.iter().filter_map(|held| KillSwitch::of(&held.route)).collect();
        let (check, checks) = mpsc::channel(1);
        let (inside, found) = (Inside::all(plan), report.subscribe());
        if !switches.is_empty() || !inside.is_empty() {
            let (handle, switches) = (handle.clone(), switches.clone());
            let (index, device) = (plan.index, plan.device.clone());
            let checking = Checking {
                handle,
                switches,
                inside: inside.clone(),
                index,
                device,
                own,
                report: report.clone(),
                logged: Recent::default(),
            };
            tokio::spawn(checking.run(checks));
        }
        Self { switches, inside, check, report, found }
    }

    /// The routes found by the last check.
    pub(crate) fn found(&self) -> watch::Receiver<Vec<Bypass>> {
        self.found.clone()
    }

    /// Schedules a check if this message may concern a route that bypasses the kill switch.
    pub(crate) fn hear(&self, told: &Told) {
        if self.concerns(told) {
            // If the queue is full, a check is already due.
            let _full = self.check.try_send(());
        }
    }

    fn concerns(&self, told: &Told) -> bool {
        let any_found = || !self.found.borrow().is_empty();
        match told {
            Told::Route(message) => match &**message {
                RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
                    !is_our_protocol(route.header.protocol)
                        && (self.switches.iter().any(|switch| switch.covers(route))
                            || self.inside.iter().any(|inside| inside.is_of(route)))
                }
                // When a device goes down, the kernel deletes its IPv4 routes without a message about each of
                // them.
                RouteNetlinkMessage::NewLink(_) | RouteNetlinkMessage::DelLink(_) => any_found(),
                _ => false,
            },
            // Nor does the kernel send messages about routes that use a nexthop object.
            Told::Nexthop => any_found(),
            Told::Lost => true,
            Told::Configured { .. } | Told::Unconfigured { .. } => false,
        }
    }
}

/// The state of the task.
struct Checking {
    handle: Handle,
    switches: Vec<KillSwitch>,
    inside: Vec<Inside>,
    /// The tunnel's device.
    index: u32,
    device: String,
    own: watch::Receiver<OwnTraffic>,
    report: watch::Sender<Vec<Bypass>>,
    logged: Recent,
}

impl Checking {
    async fn run(mut self, mut checks: mpsc::Receiver<()>) {
        loop {
            sleep(SETTLES_WITHIN).await;
            let began = Instant::now();
            if let Some(found) = self.check().await {
                self.conclude(found);
            }
            sleep(APART.max(began.elapsed() * SHARE)).await;
            tokio::select! {
                more = checks.recv() => if more.is_none() { return },
                changed = self.own.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Reads all routes and finds the bypassing ones; `None` if the kernel does not return the routes.
    async fn check(&mut self) -> Option<Vec<Bypass>> {
        let peers = self.own.borrow_and_update().peers.clone();
        let (mut all, mut parts, mut same) = (Vec::new(), Vec::new(), Vec::new());
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut dump = RouteMessage::default();
            dump.header.address_family = family;
            let mut routes = Box::pin(self.handle.route().get(dump).execute());
            while let Some(route) = routes.try_next().await.ok()? {
                if self.inside.iter().any(|inside| inside.is_of(&route)) {
                    same.push(route.clone());
                }
                match self.bypassed(&route, &peers) {
                    Some((switch, false)) => all.push((switch.clone(), route, false)),
                    Some((switch, true)) if parts.len() < MOST_PARTS => {
                        parts.push((switch.clone(), route, true));
                    }
                    _ => {}
                }
            }
        }
        let mut found = Vec::new();
        for (switch, route, is_part) in all.into_iter().chain(parts) {
            let by = self.describe(&route).await;
            let what = format!("route {}", switch.to);
            let is_wide = is_part && network(&route).is_some_and(|net| is_wide(&route, net));
            found.push(Bypass { what, by, is_part, is_wide, into_tunnel: false });
        }
        for inside in &self.inside {
            found.extend(self.shared(inside, &same).await);
        }
        Some(found)
    }

    /// A network that both the tunnel and a LAN of this host have, and the route of the two that the kernel
    /// uses.
    async fn shared(&self, inside: &Inside, routes: &[RouteMessage]) -> Option<Bypass> {
        let mut routes: Vec<_> = routes.iter().filter(|route| inside.is_of(route)).collect();
        // The kernel lists routes of equal metric in its order of preference.
        routes.sort_by_key(|route| route::metric_of(route));
        let is_inside = |route: &&&RouteMessage| device(route) == Some(self.index);
        let is_lan = |route: &&&RouteMessage| {
            route.header.protocol == RouteProtocol::Kernel && self.leads_elsewhere(route)
        };
        let ours = routes.iter().find(is_inside)?;
        let lan = routes.iter().find(is_lan)?;
        let (ours_text, lan_text) = (route::text(ours), self.describe(lan).await);
        if routes.first().is_some_and(|first| is_inside(&first)) {
            let by = format!("{ours_text} into the tunnel");
            let (is_part, is_wide) = (false, false);
            return Some(Bypass { what: lan_text, by, is_part, is_wide, into_tunnel: true });
        }
        // Routes that bypass a kill switch are reported by `bypassed`.
        (!self.is_guarded(&ours_text)).then_some(Bypass {
            what: ours_text,
            by: lan_text,
            is_part: false,
            is_wide: false,
            into_tunnel: false,
        })
    }

    fn is_guarded(&self, what: &str) -> bool {
        self.switches.iter().any(|switch| format!("route {}", switch.to) == what)
    }

    /// The kill switch that this route bypasses, and whether the route bypasses only a part of it.
    fn bypassed(&self, route: &RouteMessage, peers: &[IpAddr]) -> Option<(&KillSwitch, bool)> {
        // The kill switch of another tunnel was configured together with this one, and does not send packets
        // unencrypted.
        if is_our_protocol(route.header.protocol) || !self.leads_elsewhere(route) {
            return None;
        }
        let switch = self.switches.iter().find(|switch| switch.covers(route))?;
        let to = network(route)?;
        if to == switch.to {
            return (route::metric_of(route) < switch.metric).then_some((switch, false));
        }
        // A network of this host itself, or the route for the tunnel's own datagrams.
        let is_connected = route.header.protocol == RouteProtocol::Kernel;
        let is_needed = peers.is_empty() || peers.iter().any(|peer| to.contains(peer));
        let is_intended = is_connected || is_needed;
        (is_wide(route, to) || !is_intended).then_some((switch, true))
    }

    fn leads_elsewhere(&self, route: &RouteMessage) -> bool {
        let drops = matches!(
            route.header.kind,
            RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit
        );
        !drops && hops(route).iter().any(|(_, index)| *index != self.index)
    }

    /// The route as text for users, in the form of `ip route`.
    async fn describe(&self, route: &RouteMessage) -> String {
        let mut text = route::text(route);
        let mut hops = hops(route).into_iter();
        if let Some((gateway, index)) = hops.find(|(_, index)| *index != self.index) {
            text += &gateway.map_or_else(String::new, |gateway| format!(" via {gateway}"));
            let link = link::at(&self.handle, index).await;
            let name = link.as_ref().and_then(crate::watch::name);
            text += &name.map_or_else(String::new, |name| format!(" dev {name}"));
        }
        match route::metric_of(route) {
            0 => text,
            metric => format!("{text} metric {metric}"),
        }
    }

    /// Reports the routes found, and logs the new ones.
    fn conclude(&mut self, found: Vec<Bypass>) {
        let before = self.report.send_replace(found.clone());
        for one in found.iter().filter(|one| !before.contains(one)) {
            if self.logged.count(LOGGED_WITHIN) <= LOGGED {
                self.log(one);
            }
        }
        for Bypass { what, by, into_tunnel, .. } in before.iter().filter(|one| !found.contains(one))
        {
            if self.logged.count(LOGGED_WITHIN) > LOGGED {
                continue;
            }
            match into_tunnel {
                true => tracing::info!("{by} no longer catches packets of {what}"),
                false => tracing::info!("{by} no longer diverts packets from {}", self.device),
            }
        }
    }

    fn log(&self, Bypass { what, by, is_part, is_wide, into_tunnel }: &Bypass) {
        let device = &self.device;
        if *into_tunnel {
            tracing::warn!(
                "{by} catches the packets of {what}: this host is connected to that network, and cannot reach \
                 its hosts now; use another network on one side, or give our route a higher metric"
            );
        } else if !self.is_guarded(what) {
            tracing::warn!(
                "{by} diverts the packets of {what} from {device}: this host is connected to the same network, \
                 and sends them unencrypted; use another network on one side"
            );
        } else if *is_wide {
            tracing::warn!(
                "{by} diverts a large part of {what} from {device} and its kill switch: if nobody configured \
                 that route, a router advertisement or a DHCP server of the local network may have added it"
            );
        } else if *is_part {
            tracing::info!("{by} diverts a part of {what} from {device} and its kill switch");
        } else {
            tracing::warn!(
                "{by} diverts the packets of {what} from {device} and its kill switch: the kernel prefers that \
                 route; remove it, or give ours a lower metric"
            );
        }
    }
}

/// Whether the network is larger than a local network, so that a router advertisement or a DHCP server may have
/// diverted packets from the tunnel. An administrator's route to a private network is not counted.
fn is_wide(route: &RouteMessage, net: IpNet) -> bool {
    let is_local = matches!(route.header.protocol, RouteProtocol::Kernel | RouteProtocol::Ra);
    is_large(net) && (is_local || !is_private(net))
}

/// Whether the local network itself has announced a route to a network that is larger than a local network. An
/// attacker in the local network can do that.
pub(crate) fn is_announced(route: &RouteMessage, net: IpNet) -> bool {
    use RouteProtocol::{Dhcp, Kernel, Ra};
    let by_network = matches!(route.header.protocol, Kernel | Ra | Dhcp);
    by_network && is_large(net) && !is_private(net)
}

fn is_large(net: IpNet) -> bool {
    let smallest = if matches!(net, IpNet::V4(_)) { 16 } else { 32 };
    (1..smallest).contains(&net.prefix_len())
}

/// Whether it is part of the networks for private use or of multicast.
fn is_private(net: IpNet) -> bool {
    PRIVATE.iter().any(|private| private.contains(&net))
}

const PRIVATE: [IpNet; 6] = [
    v4([10, 0, 0, 0], 8),
    v4([100, 64, 0, 0], 10),
    v4([172, 16, 0, 0], 12),
    v4([224, 0, 0, 0], 4),
    v6(0xfc00, 7),
    v6(0xff00, 8),
];

const fn v4([a, b, c, d]: [u8; 4], len: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), len))
}

const fn v6(first: u16, len: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0), len))
}

/// The gateways of a route and the indices of their devices. A route that uses a nexthop object may have
/// neither.
pub(crate) fn hops(route: &RouteMessage) -> Vec<(Option<IpAddr>, u32)> {
    let paths = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::MultiPath(paths) => Some(paths),
        _ => None,
    });
    match paths {
        Some(paths) => {
            let hop = |(attributes, index): (&[_], u32)| (gateway(attributes), index);
            paths.iter().map(|path| hop((&path.attributes, path.interface_index))).collect()
        }
        None => vec![(gateway(&route.attributes), device(route).unwrap_or(0))],
    }
}

fn device(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(at)) => Some((*at).into()),
        RouteAttribute::Gateway(RouteAddress::Inet6(at)) => Some((*at).into()),
        RouteAttribute::Via(RouteVia::Inet(at)) => Some((*at).into()),
        RouteAttribute::Via(RouteVia::Inet6(at)) => Some((*at).into()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by(protocol: RouteProtocol) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.protocol = protocol;
        route
    }

    #[test]
    fn what_draws_packets_past_the_tunnel_is_larger_than_a_local_network() {
        let wide = |protocol, net: &str| {
            let (route, net) = (by(protocol), net.parse().unwrap());
            (is_wide(&route, net), is_announced(&route, net))
        };
        use RouteProtocol::{Boot, Dhcp, Kernel, Ra};
        for (protocol, net) in [(Kernel, "2000::/3"), (Ra, "2000::/3"), (Dhcp, "0.0.0.0/1")] {
            assert_eq!(wide(protocol, net), (true, true), "{net}");
        }
        // A route that an administrator added, or a DHCP client that does not set a protocol.
        assert_eq!(wide(Boot, "128.0.0.0/1"), (true, false));
        // The route of a company's LAN.
        assert_eq!(wide(Kernel, "10.0.0.0/8"), (true, false));
        let ordinary = [
            "0.0.0.0/0",
            "10.0.0.0/8",
            "198.18.0.0/16",
            "224.0.0.0/4",
            "2001:db8::/32",
            "fd00::/8",
        ];
        for net in ordinary {
            assert_eq!(wide(Dhcp, net), (false, false), "{net}");
        }
    }
}
