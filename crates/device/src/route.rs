//! Routes through the device, and blackhole routes for packets that must not take another route.

use std::net::IpAddr;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::Handle;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

use crate::address::{self, family};
use crate::error::errno;
use crate::undo::is_gone;
use crate::{GUARD_PROTOCOL, PROTOCOL, Route};

/// The metric that the kernel gives to an IPv6 route without a metric.
const METRIC_V6: u32 = 1024;

/// The metric of the routes that the kernel adds for IPv6 addresses.
const CONNECTED_V6: u32 = 256;

/// The result of adding a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Added {
    /// It was added.
    New,
    /// It already existed.
    Same,
}

/// Adds one route, unless it exists.
///
/// # Errors
///
/// The kernel's error; EEXIST if there is a different route to the same network with the same metric.
pub(crate) async fn add(handle: &Handle, route: &RouteMessage) -> Result<Added, rtnetlink::Error> {
    match handle.route().add(route.clone()).execute().await {
        Ok(()) => Ok(Added::New),
        // An unprivileged process cannot add the route, but it may already exist.
        Err(error)
            if matches!(errno(&error), libc::EEXIST | libc::EPERM)
                && exists(handle, route).await =>
        {
            Ok(Added::Same)
        }
        Err(error) => Err(error),
    }
}

/// Adds a route that may exist; returns whether it was new. Unlike [`add`], it does not ask the kernel whether
/// an existing route is the same, because the answer would be the whole table.
pub(crate) async fn add_again(handle: &Handle, route: &RouteMessage) -> bool {
    handle.route().add(route.clone()).execute().await.is_ok()
}

/// Removes a route, if it exists.
///
/// # Errors
///
/// The kernel's error. A missing privilege is an error whether the route exists or not.
pub(crate) async fn remove(handle: &Handle, route: &RouteMessage) -> Result<(), rtnetlink::Error> {
    match handle.route().del(route.clone()).execute().await {
        Err(error) if !is_gone(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Whether a blackhole has exactly the place of a wanted route into the tunnel, so that the route cannot be
/// added.
pub(crate) fn takes_place(guard: &RouteMessage, wanted: &Route) -> bool {
    let way = unicast(0, wanted, 0);
    let (guard, way) = (Key::of(guard), Key::of(&way));
    (guard.to, guard.prefix_len, guard.metric) == (way.to, way.prefix_len, way.metric)
}

/// The route into the tunnel.
pub(crate) fn unicast(index: u32, route: &Route, table: u32) -> RouteMessage {
    let mut message = message(route.to, RouteType::Unicast, RouteScope::Link);
    message.attributes.push(RouteAttribute::Oif(index));
    message.attributes.push(RouteAttribute::Table(table));
    message.attributes.push(RouteAttribute::Priority(metric(route)));
    message
}

/// The blackhole route, which applies when the route into the tunnel is missing. It has the next higher metric,
/// so that no other route to the same network has a metric between the two.
pub(crate) fn blackhole(route: &Route, table: u32) -> RouteMessage {
    let mut message = message(route.to, RouteType::BlackHole, RouteScope::Universe);
    message.attributes.push(RouteAttribute::Table(table));
    message.attributes.push(RouteAttribute::Priority(metric(route).saturating_add(1)));
    message
}

/// The last blackhole, which applies when [`blackhole`]'s route is gone or was never wanted: after every other
/// route to the network, and before every less specific route. It has another protocol, so that a flush by
/// protocol never removes both blackholes.
pub(crate) fn last_resort(to: IpNet, table: u32) -> RouteMessage {
    let mut message = message(to, RouteType::BlackHole, RouteScope::Universe);
    message.header.protocol = RouteProtocol::Other(GUARD_PROTOCOL);
    message.attributes.push(RouteAttribute::Table(table));
    message.attributes.push(RouteAttribute::Priority(u32::MAX));
    message
}

/// The routes that the kernel adds together with an address: to its network and to its far end.
pub(crate) fn connected(address: &AddressMessage, table: u32) -> Vec<RouteMessage> {
    let Some((local, far)) = address::both_ends(address) else { return Vec::new() };
    let len = address.header.prefix_len;
    let host = |at: IpAddr| IpNet::from(at);
    let nets = match IpNet::new(far, len) {
        Err(_) => return Vec::new(),
        Ok(_) if far.is_ipv6() => {
            let ours = IpNet::new(local, len).unwrap_or_else(|_| host(local));
            if far == local { vec![ours] } else { vec![ours, host(far)] }
        }
        Ok(net) if net == host(local) => return Vec::new(),
        Ok(net) => vec![net],
    };
    nets.into_iter().map(|to| kernels(to, local, address.header.index, table)).collect()
}

/// The route with the kernel's own attributes.
fn kernels(to: IpNet, local: IpAddr, index: u32, table: u32) -> RouteMessage {
    let scope = if to.addr().is_ipv4() { RouteScope::Link } else { RouteScope::Universe };
    let mut message = message(to, RouteType::Unicast, scope);
    message.header.protocol = RouteProtocol::Kernel;
    message.attributes.push(RouteAttribute::Oif(index));
    message.attributes.push(RouteAttribute::Table(table));
    match local {
        IpAddr::V4(local) => message.attributes.push(RouteAttribute::PrefSource(local.into())),
        IpAddr::V6(_) => message.attributes.push(RouteAttribute::Priority(CONNECTED_V6)),
    }
    message
}

fn message(to: IpNet, kind: RouteType, scope: RouteScope) -> RouteMessage {
    let to = to.trunc();
    let mut message = RouteMessage::default();
    message.header.address_family = family(to);
    message.header.destination_prefix_length = to.prefix_len();
    message.header.protocol = RouteProtocol::Other(PROTOCOL);
    message.header.scope = scope;
    message.header.kind = kind;
    message.attributes = vec![RouteAttribute::Destination(to.addr().into())];
    message
}

fn metric(route: &Route) -> u32 {
    let default = if route.to.addr().is_ipv6() { METRIC_V6 } else { 0 };
    // The kernel does not accept the metric 0.
    route.metric.filter(|metric| *metric > 0).unwrap_or(default)
}

/// Whether the same route exists through the same device.
async fn exists(handle: &Handle, wanted: &RouteMessage) -> bool {
    let mut dump = RouteMessage::default();
    dump.header.address_family = wanted.header.address_family;
    let mut routes = Box::pin(handle.route().get(dump).execute());
    while let Ok(Some(route)) = routes.try_next().await {
        if Key::of(&route) == Key::of(wanted) {
            return true;
        }
    }
    false
}

/// Whether `gone` led to the same network in the same table, through any device. If so, `wanted` may be missing
/// now, or its place may be free again.
pub(crate) fn same_place(gone: &RouteMessage, wanted: &RouteMessage) -> bool {
    let (gone, wanted) = (Key::of(gone), Key::of(wanted));
    (gone.to, gone.prefix_len, gone.table) == (wanted.to, wanted.prefix_len, wanted.table)
}

/// Whether both are the same route by the attributes that the kernel compares.
pub(crate) fn is_same(one: &RouteMessage, other: &RouteMessage) -> bool {
    Key::of(one) == Key::of(other)
}

/// The table of a default route.
pub(crate) fn table_of_default(route: &RouteMessage) -> Option<u32> {
    let key = Key::of(route);
    (key.prefix_len == 0).then_some(key.table)
}

/// The metric that the kernel uses for a route.
pub(crate) fn metric_of(route: &RouteMessage) -> u32 {
    Key::of(route).metric
}

/// Whether it is a blackhole route, which needs no device.
pub(crate) fn drops(route: &RouteMessage) -> bool {
    route.header.kind == RouteType::BlackHole
}

/// The route as text for the log.
pub(crate) fn text(route: &RouteMessage) -> String {
    let key = Key::of(route);
    let to = match key.to {
        Some(RouteAddress::Inet(to)) => format!("{to}/{}", key.prefix_len),
        Some(RouteAddress::Inet6(to)) => format!("{to}/{}", key.prefix_len),
        _ if route.header.address_family == AddressFamily::Inet6 => "::/0".to_owned(),
        _ => "0.0.0.0/0".to_owned(),
    };
    match route.header.kind {
        RouteType::BlackHole => format!("blackhole route {to}"),
        _ => format!("route {to}"),
    }
}

/// The attributes that distinguish the routes of a family.
#[derive(Default, PartialEq)]
struct Key<'a> {
    to: Option<&'a RouteAddress>,
    prefix_len: u8,
    kind: RouteType,
    device: u32,
    table: u32,
    metric: u32,
}

impl<'a> Key<'a> {
    fn of(route: &'a RouteMessage) -> Self {
        let v6 = route.header.address_family == AddressFamily::Inet6;
        let prefix_len = route.header.destination_prefix_length;
        let (kind, metric) = (route.header.kind, if v6 { METRIC_V6 } else { 0 });
        let mut key = Self { prefix_len, kind, metric, ..Self::default() };
        for attribute in &route.attributes {
            match attribute {
                // The kernel omits the destination if the prefix is empty.
                RouteAttribute::Destination(to) if prefix_len > 0 => key.to = Some(to),
                // The kernel reports an IPv6 blackhole route with the device `lo`.
                RouteAttribute::Oif(index) if kind == RouteType::Unicast => key.device = *index,
                RouteAttribute::Table(table) => key.table = *table,
                RouteAttribute::Priority(metric) => key.metric = *metric,
                _ => {}
            }
        }
        key
    }
}
