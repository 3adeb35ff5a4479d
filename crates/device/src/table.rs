//! Routing tables: `main`, and separate tables for default routes.

use futures_util::TryStreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};

use crate::rule;

/// The kernel's number of the table `main`.
pub(crate) const MAIN: u32 = 254;
/// The kernel's number of the table `local`: the addresses of this host.
pub(crate) const LOCAL: u32 = 255;
/// The number that is tried first for our routing table and for our mark; wg-quick uses the same number.
pub(crate) const FIRST: u32 = 51820;
/// The number of candidates for our routing table.
const MOST: u32 = 85;

/// Whether vpnd uses this number for its own tables.
pub(crate) fn is_own(table: u32) -> bool {
    (FIRST..FIRST + MOST).contains(&table)
}

/// The numbers of tables without rules and routes, in order. Two tunnels that start at the same time may find
/// the same table: the tunnel that adds its rules first gets it.
pub(crate) async fn free(handle: &Handle) -> Vec<u32> {
    let rules = rule::dump(handle).await;
    let taken: Vec<_> = rules.iter().map(rule::table).chain(with_routes(handle).await).collect();
    (FIRST..FIRST + MOST).filter(|table| !taken.contains(table)).collect()
}

async fn with_routes(handle: &Handle) -> Vec<u32> {
    let mut tables = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut dump = RouteMessage::default();
        dump.header.address_family = family;
        let mut routes = Box::pin(handle.route().get(dump).execute());
        while let Ok(Some(route)) = routes.try_next().await {
            let table = number(&route);
            if table >= FIRST && !tables.contains(&table) {
                tables.push(table);
            }
        }
    }
    tables
}

/// The table of a route.
pub(crate) fn number(route: &RouteMessage) -> u32 {
    let said = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    said.unwrap_or_else(|| route.header.table.into())
}
