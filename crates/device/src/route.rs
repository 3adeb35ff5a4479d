//! Routes through the device.

use futures_util::TryStreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

use crate::Route;
use crate::address::family;
use crate::error::{Error, Step, errno};
use crate::link::Device;
use crate::undo::{Change, Undo};

/// The metric that the kernel gives an IPv6 route without one.
const METRIC_V6: u32 = 1024;

/// Adds one route. One through this very device that is there already stays, and is not ours to remove.
pub(crate) async fn add(
    handle: &Handle,
    device: Device<'_>,
    route: &Route,
    table: u32,
    undo: &mut Undo,
) -> Result<(), Error> {
    let message = message(device.index, route, table);
    match handle.route().add(message.clone()).execute().await {
        Ok(()) => undo.extend([Change::Route(message)]),
        // Who may not add one may find it there too.
        Err(error)
            if matches!(errno(&error), libc::EEXIST | libc::EPERM)
                && exists(handle, &message).await => {}
        Err(error) => return Err(Error::refused(Step::Route(route.to), device.name, &error)),
    }
    Ok(())
}

fn message(index: u32, route: &Route, table: u32) -> RouteMessage {
    let to = route.to.trunc();
    let mut message = RouteMessage::default();
    message.header.address_family = family(to);
    message.header.destination_prefix_length = to.prefix_len();
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Link;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        RouteAttribute::Destination(to.addr().into()),
        RouteAttribute::Oif(index),
        RouteAttribute::Table(table),
    ];
    message.attributes.extend(route.metric.map(RouteAttribute::Priority));
    message
}

/// Whether the same route is there, through the same device.
async fn exists(handle: &Handle, wanted: &RouteMessage) -> bool {
    let mut dump = RouteMessage::default();
    dump.header.address_family = wanted.header.address_family;
    let mut routes = handle.route().get(dump).execute();
    while let Ok(Some(route)) = routes.try_next().await {
        if Key::of(&route) == Key::of(wanted) {
            return true;
        }
    }
    false
}

/// What tells two routes of a family apart.
#[derive(Default, PartialEq)]
struct Key<'a> {
    to: Option<&'a RouteAddress>,
    prefix_len: u8,
    device: u32,
    table: u32,
    metric: u32,
}

impl<'a> Key<'a> {
    fn of(route: &'a RouteMessage) -> Self {
        let v6 = route.header.address_family == AddressFamily::Inet6;
        let prefix_len = route.header.destination_prefix_length;
        let metric = if v6 { METRIC_V6 } else { 0 };
        let mut key = Self { prefix_len, metric, ..Self::default() };
        for attribute in &route.attributes {
            match attribute {
                // The kernel leaves it out where the prefix is empty.
                RouteAttribute::Destination(to) if prefix_len > 0 => key.to = Some(to),
                RouteAttribute::Oif(index) => key.device = *index,
                RouteAttribute::Table(table) => key.table = *table,
                RouteAttribute::Priority(metric) => key.metric = *metric,
                _ => {}
            }
        }
        key
    }
}
