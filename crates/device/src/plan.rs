//! What is to be there as long as we run: addresses, rules and routes, as the messages that add them. What
//! was there before us is not among it, and none of our business.

use ipnet::IpNet;
use rtnetlink::Handle;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::packet_route::rule::RuleMessage;

use crate::controller::{self, Kind};
use crate::error::{Error, Step, errno};
use crate::link::Device;
use crate::route::Added;
use crate::undo::{Change, Undo};
use crate::{Link, Own, Route, WhenDown, address, route, rule, table};

/// A device, and what belongs to it.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) device: String,
    pub(crate) index: u32,
    /// What it was set to.
    pub(crate) mtu: Option<u32>,
    /// What it is a port of.
    pub(crate) port_of: Option<(String, Kind)>,
    pub(crate) addresses: Vec<AddressMessage>,
    pub(crate) rules: Vec<RuleMessage>,
    /// The families whose rules belong to a kill switch.
    pub(crate) guarded: Vec<AddressFamily>,
    pub(crate) routes: Vec<Held>,
}

/// A route, and when it is there.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) route: RouteMessage,
    /// Only while the peer is alive.
    pub(crate) by_peer: bool,
}

impl Plan {
    pub(crate) fn new(device: Device<'_>, link: &Link) -> Self {
        Self {
            device: device.name.to_owned(),
            index: device.index,
            mtu: link.mtu,
            port_of: controller::wanted(link),
            addresses: Vec::new(),
            rules: Vec::new(),
            guarded: guarded(link),
            routes: Vec::new(),
        }
    }

    /// Adds one address. One that is there already stays, and is not ours to remove.
    pub(crate) async fn address(
        &mut self,
        handle: &Handle,
        message: AddressMessage,
        undo: &mut Undo,
    ) -> Result<bool, rtnetlink::Error> {
        let ours = intend(undo, Change::Address(message.clone()));
        let added = address::add(handle, &message).await;
        let is_ours = settle(undo, ours, &added);
        if is_ours {
            self.addresses.push(message);
        }
        added.map(|_| is_ours)
    }

    /// Adds the routes, to the table of `vrf` if it is one's port: what drops first, so that there is no moment without.
    pub(crate) async fn route_all(
        &mut self,
        handle: &Handle,
        link: &Link,
        vrf: Option<u32>,
        connected: &[IpNet],
        undo: &mut Undo,
    ) -> Result<(), Error> {
        let tables = self.tables(handle, link, vrf, &families(link), undo).await?;
        for one in link.routes.iter().filter(|route| route.when_down == WhenDown::Blackhole) {
            let held = Held { route: route::blackhole(one, tables.of(one)), by_peer: false };
            self.route(handle, one, held, undo).await?;
        }
        self.last_resorts(handle, link, &tables, connected, undo).await;
        for one in &link.routes {
            let message = route::unicast(self.index, one, tables.of(one));
            let held = Held { route: message, by_peer: one.when_down != WhenDown::Keep };
            self.route(handle, one, held, undo).await?;
        }
        Ok(())
    }

    /// What drops, and the rules that lead there, for want of all else. What is in the way is left to
    /// [`route_all`](Self::route_all).
    pub(crate) async fn guard_all(
        &mut self,
        handle: &Handle,
        link: &Link,
        vrf: Option<u32>,
        undo: &mut Undo,
    ) -> Result<(), Error> {
        let families = self.guarded.clone();
        let tables = self.tables(handle, link, vrf, &families, undo).await?;
        for one in link.routes.iter().filter(|route| route.when_down == WhenDown::Blackhole) {
            let held = Held { route: route::blackhole(one, tables.of(one)), by_peer: false };
            match self.route(handle, one, held, undo).await {
                Err(error) if !error.is_in_the_way() => return Err(error),
                _ => {}
            }
        }
        self.last_resorts(handle, link, &tables, &[], undo).await;
        Ok(())
    }

    /// What drops behind everything else: for a kill switch without rules, and for what leads into a device whose
    /// routes the kernel passes over. Another tunnel's does as well.
    async fn last_resorts(
        &mut self,
        handle: &Handle,
        link: &Link,
        tables: &Tables,
        connected: &[IpNet],
        undo: &mut Undo,
    ) {
        let routed = link.routes.iter().filter(|one| match one.when_down {
            WhenDown::Blackhole => !table::is_own(tables.of(one)),
            WhenDown::Keep => link.passed_over.has(one.to),
            WhenDown::Remove => false,
        });
        let routed = routed.map(|one| (one.to, tables.of(one)));
        let connected = connected.iter().filter(|net| link.passed_over.has(**net));
        let wanted: Vec<_> = routed.chain(connected.map(|net| (*net, tables.main))).collect();
        for (to, table) in wanted {
            let route = route::last_resort(to, table);
            let ours = intend(undo, Change::Route(route.clone()));
            let added = route::add(handle, &route).await.map(|added| added == Added::New);
            if settle(undo, ours, &added) {
                self.routes.push(Held { route, by_peer: false });
            } else if let Err(error) = added {
                tracing::debug!(%error, "{} of metric {} cannot be had", route::text(&route), u32::MAX);
            }
        }
    }

    async fn tables(
        &mut self,
        handle: &Handle,
        link: &Link,
        vrf: Option<u32>,
        families: &[AddressFamily],
        undo: &mut Undo,
    ) -> Result<Tables, Error> {
        let own = match vrf {
            Some(table) => table,
            None => self.own_table(handle, link, families, undo).await?,
        };
        Ok(Tables { own, main: vrf.unwrap_or(table::MAIN) })
    }

    async fn route(
        &mut self,
        handle: &Handle,
        wanted: &Route,
        held: Held,
        undo: &mut Undo,
    ) -> Result<(), Error> {
        let ours = intend(undo, Change::Route(held.route.clone()));
        let added = match held.by_peer {
            true => self.try_out(handle, wanted, &held.route).await,
            false => self.add_route(handle, wanted, &held.route).await,
        };
        if settle(undo, ours, &added) {
            self.routes.push(held);
        }
        added.map(drop)
    }

    async fn add_route(
        &self,
        handle: &Handle,
        wanted: &Route,
        route: &RouteMessage,
    ) -> Result<bool, Error> {
        let added = route::add(handle, route).await.map(|added| added == Added::New);
        added.map_err(|error| Error::refused(Step::Route(wanted.to), &self.device, &error))
    }

    /// Nobody has heard of the peer yet: the route is not to be there, not even if an earlier run left it on a
    /// device that stays. But that it can be is found out now, when somebody looks, and that we may.
    async fn try_out(
        &self,
        handle: &Handle,
        wanted: &Route,
        route: &RouteMessage,
    ) -> Result<bool, Error> {
        let refused = |error| Error::refused(Step::Follow(wanted.to), &self.device, &error);
        route::remove(handle, route).await.map_err(refused)?;
        self.add_route(handle, wanted, route).await?;
        route::remove(handle, route).await.map_err(refused)?;
        Ok(true)
    }

    /// The table of the default routes that name none, with its rules; `main` where there are none, or
    /// nothing tells the tunnel's own datagrams.
    async fn own_table(
        &mut self,
        handle: &Handle,
        link: &Link,
        families: &[AddressFamily],
        undo: &mut Undo,
    ) -> Result<u32, Error> {
        let Some(own) = link.own.filter(|_| !families.is_empty()) else { return Ok(table::MAIN) };
        // The one that an earlier run had, for what it left there holds until ours does.
        let mut left: Vec<_> = undo.changes().iter().filter_map(Change::table).collect();
        left.retain(|number| table::is_own(*number));
        left.sort_unstable();
        left.dedup();
        for table in left.into_iter().chain(table::free(handle).await) {
            if self.claim(handle, own, table, families, undo).await? {
                return Ok(table);
            }
        }
        Err(Error::NoTable)
    }

    /// Adds the rules of a table, unless another tunnel has.
    async fn claim(
        &mut self,
        handle: &Handle,
        own: Own,
        table: u32,
        families: &[AddressFamily],
        undo: &mut Undo,
    ) -> Result<bool, Error> {
        let before = undo.len();
        self.rules.clear();
        let guarded = self.guarded.clone();
        let all = |family| rule::all(own, table, family, guarded.contains(&family));
        for rule in families.iter().copied().flat_map(all) {
            let ours = intend(undo, Change::Rule(rule.clone()));
            let added = rule::add(handle, &rule).await;
            let is_ours = settle(undo, ours, &added);
            added.map_err(|error| rule::refused(&rule, &self.device, &error))?;
            if !is_ours {
                undo.back_to(before, handle).await;
                return Ok(false);
            }
            self.rules.push(rule);
        }
        Ok(true)
    }

    /// Whether what `change` takes back is to stay.
    pub(crate) fn wants(&self, change: &Change) -> bool {
        match change {
            Change::Address(address) => self.addresses.contains(address),
            Change::Rule(rule) => self.rules.contains(rule),
            Change::Route(route) => self.routes.iter().any(|held| held.route == *route),
            Change::Link(_) => change.device() == Some(self.index),
        }
    }
}

/// The tables that routes without one go to.
struct Tables {
    /// Default routes.
    own: u32,
    /// All others.
    main: u32,
}

impl Tables {
    fn of(&self, route: &Route) -> u32 {
        let without = if route.is_default() { self.own } else { self.main };
        route.table.unwrap_or(without)
    }
}

/// Writes down what is going to be done, unless an earlier run has; says whether it has.
fn intend(undo: &mut Undo, change: Change) -> bool {
    let known = undo.contains(&change);
    if !known {
        undo.intend(change);
    }
    known
}

/// Forgets it again if it was there before us or could not be done; says whether it is ours.
fn settle<E>(undo: &mut Undo, known: bool, added: &Result<bool, E>) -> bool {
    let is_ours = known || matches!(added, Ok(true));
    if !is_ours {
        undo.forget_last();
    }
    is_ours
}

/// The families whose default route leads into a table of its own.
fn families(link: &Link) -> Vec<AddressFamily> {
    families_where(link, |_any| true)
}

/// Those of them that have a kill switch.
fn guarded(link: &Link) -> Vec<AddressFamily> {
    families_where(link, |route| route.when_down == WhenDown::Blackhole)
}

fn families_where(link: &Link, of: impl Fn(&Route) -> bool) -> Vec<AddressFamily> {
    let defaults = link.routes.iter().filter(|one| one.is_default() && one.table.is_none());
    let mut families: Vec<_> =
        defaults.filter(|one| of(one)).map(|one| address::family(one.to)).collect();
    families.sort_by_key(|family| u8::from(*family));
    families.dedup();
    families
}

/// The device is down, which an administrator wants so: routes come back when it is up.
pub(crate) fn is_down(error: &rtnetlink::Error) -> bool {
    [libc::ENETDOWN, libc::ENODEV, libc::ENETUNREACH].contains(&errno(error))
}
