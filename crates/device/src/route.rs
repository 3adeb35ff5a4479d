//! Routes through the device, and those that drop what must not take another way.

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

/// The metric that the kernel gives an IPv6 route without one.
const METRIC_V6: u32 = 1024;

/// The metric that the kernel gives the route to an IPv6 address's network.
const CONNECTED_V6: u32 = 256;

/// What became of a route that was to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Added {
    /// It was not there, and is.
    New,
    /// It was there.
    Same,
}

/// Adds one route, or finds that it is there.
///
/// # Errors
///
/// What the kernel says; EEXIST if there is another to the same network, of the same metric.
pub(crate) async fn add(handle: &Handle, route: &RouteMessage) -> Result<Added, rtnetlink::Error> {
    match handle.route().add(route.clone()).execute().await {
        Ok(()) => Ok(Added::New),
        // Who may not add one may find it there too.
        Err(error)
            if matches!(errno(&error), libc::EEXIST | libc::EPERM)
                && exists(handle, route).await =>
        {
            Ok(Added::Same)
        }
        Err(error) => Err(error),
    }
}

/// Adds one that may be there; says whether it was not. Unlike [`add`], it never asks which one is there: the answer
/// is the whole table.
pub(crate) async fn add_again(handle: &Handle, route: &RouteMessage) -> bool {
    handle.route().add(route.clone()).execute().await.is_ok()
}

/// Takes one away, if it is there.
///
/// # Errors
///
/// What the kernel says; a missing privilege, whether it is there or not.
pub(crate) async fn remove(handle: &Handle, route: &RouteMessage) -> Result<(), rtnetlink::Error> {
    match handle.route().del(route.clone()).execute().await {
        Err(error) if !is_gone(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Whether what drops has the very place of a way into the tunnel that is wanted: no other can be added there.
pub(crate) fn takes_place(guard: &RouteMessage, wanted: &Route) -> bool {
    let way = unicast(0, wanted, 0);
    let (guard, way) = (Key::of(guard), Key::of(&way));
    (guard.to, guard.prefix_len, guard.metric) == (way.to, way.prefix_len, way.metric)
}

/// The way into the tunnel.
pub(crate) fn unicast(index: u32, route: &Route, table: u32) -> RouteMessage {
    let mut message = message(route.to, RouteType::Unicast, RouteScope::Link);
    message.attributes.push(RouteAttribute::Oif(index));
    message.attributes.push(RouteAttribute::Table(table));
    message.attributes.push(RouteAttribute::Priority(metric(route)));
    message
}

/// What drops packets when the way into the tunnel is not there: right behind it, so that no other route
/// to the same network comes between.
pub(crate) fn blackhole(route: &Route, table: u32) -> RouteMessage {
    let mut message = message(route.to, RouteType::BlackHole, RouteScope::Universe);
    message.attributes.push(RouteAttribute::Table(table));
    message.attributes.push(RouteAttribute::Priority(metric(route).saturating_add(1)));
    message
}

/// What drops when even that is gone, or was never wanted: behind every other route to the network and before every
/// less specific one. Another protocol, so that a flush by protocol never takes both.
pub(crate) fn last_resort(to: IpNet, table: u32) -> RouteMessage {
    let mut message = message(to, RouteType::BlackHole, RouteScope::Universe);
    message.header.protocol = RouteProtocol::Other(GUARD_PROTOCOL);
    message.attributes.push(RouteAttribute::Table(table));
    message.attributes.push(RouteAttribute::Priority(u32::MAX));
    message
}

/// The routes that the kernel adds with an address, to the network that it is in and to its far end.
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

/// As the kernel adds it.
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
    // The kernel takes 0 for no metric at all.
    route.metric.filter(|metric| *metric > 0).unwrap_or(default)
}

/// Whether the same route is there, through the same device.
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

/// Whether `gone` led to the same network in the same table, by whatever way: `wanted` may now be missing,
/// or have its place back.
pub(crate) fn same_place(gone: &RouteMessage, wanted: &RouteMessage) -> bool {
    let (gone, wanted) = (Key::of(gone), Key::of(wanted));
    (gone.to, gone.prefix_len, gone.table) == (wanted.to, wanted.prefix_len, wanted.table)
}

/// Whether both are the same route, as far as the kernel can tell two apart.
pub(crate) fn is_same(one: &RouteMessage, other: &RouteMessage) -> bool {
    Key::of(one) == Key::of(other)
}

/// The table of a route that leads everywhere.
pub(crate) fn table_of_default(route: &RouteMessage) -> Option<u32> {
    let key = Key::of(route);
    (key.prefix_len == 0).then_some(key.table)
}

/// The metric of a route, as the kernel goes by it.
pub(crate) fn metric_of(route: &RouteMessage) -> u32 {
    Key::of(route).metric
}

/// Whether it drops what it covers, and so needs no device.
pub(crate) fn drops(route: &RouteMessage) -> bool {
    route.header.kind == RouteType::BlackHole
}

/// For a line of the log.
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

/// What tells two routes of a family apart.
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
                // The kernel leaves it out where the prefix is empty.
                RouteAttribute::Destination(to) if prefix_len > 0 => key.to = Some(to),
                // An IPv6 route that drops is said to be of `lo`.
                RouteAttribute::Oif(index) if kind == RouteType::Unicast => key.device = *index,
                RouteAttribute::Table(table) => key.table = *table,
                RouteAttribute::Priority(metric) => key.metric = *metric,
                _ => {}
            }
        }
        key
    }
}
