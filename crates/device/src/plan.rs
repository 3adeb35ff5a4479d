//! The objects that exist while vpnd runs: addresses, rules and routes, as the messages that add them. Objects
//! that existed before are not included, and vpnd does not change them.

use ipnet::IpNet;
use rtnetlink::Handle;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::packet_route::rule::RuleMessage;

use crate::controller::{self, Kind};
use crate::error::{Error, Step, is_off};
use crate::link::{self, Device, Property};
use crate::missing::{Missing, why};
use crate::route::Added;
use crate::undo::{Change, Undo};
use crate::{Link, Own, OwnTraffic, Route, WhenDown, address, route, rule, table};

/// A device, and the objects that belong to it.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) device: String,
    pub(crate) index: u32,
    /// Whether the kernel is prevented from sending IPv6 packets through the device by itself.
    pub(crate) silent: bool,
    /// Whether the peer is alive, so that routes that depend on it exist while the plan is made.
    pub(crate) alive: bool,
    /// Whether the device's hardware address is one that vpnd has set.
    pub(crate) has_own_mac: bool,
    /// The MTU that was set.
    pub(crate) mtu: Option<u32>,
    /// The table of the routes that the kernel adds for the device.
    pub(crate) table: u32,
    /// Its controller.
    pub(crate) port_of: Option<(String, Kind)>,
    pub(crate) addresses: Vec<AddressMessage>,
    pub(crate) rules: Vec<RuleMessage>,
    /// The families whose rules are part of a kill switch.
    pub(crate) guarded: Vec<AddressFamily>,
    /// How the rules recognise the tunnel's own datagrams.
    pub(crate) ruled: Option<Ruled>,
    pub(crate) routes: Vec<Held>,
    /// Objects that could not be added yet because IPv6 is missing.
    pub(crate) missing: Vec<Missing>,
}

/// How the tunnel's own datagrams are recognised, if there is a table that must not route them.
#[derive(Clone, Debug)]
pub(crate) struct Ruled {
    own: Own,
    table: u32,
    families: Vec<AddressFamily>,
    /// The families with a kill switch.
    guarded: Vec<AddressFamily>,
}

impl Ruled {
    fn rules(&self) -> Vec<RuleMessage> {
        let all = |family| rule::all(&self.own, self.table, family, self.guarded.contains(&family));
        self.families.iter().copied().flat_map(all).collect()
    }
}

/// A route, and the condition for it to exist.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) route: RouteMessage,
    /// Whether the route exists only while the peer is alive.
    pub(crate) by_peer: bool,
}

impl Plan {
    pub(crate) fn new(device: Device<'_>, link: &Link) -> Self {
        Self {
            device: device.name.to_owned(),
            index: device.index,
            silent: false,
            alive: link.alive,
            has_own_mac: link.mac.is_some()
                || (link.mac_as_port.is_some() && link.bridge.is_some()),
            mtu: link.mtu,
            table: table::MAIN,
            port_of: controller::wanted(link),
            addresses: Vec::new(),
            rules: Vec::new(),
            guarded: guarded(link),
            ruled: None,
            routes: Vec::new(),
            missing: Vec::new(),
        }
    }

    /// Adds one address. An address that already exists stays, and vpnd does not remove it.
    pub(crate) async fn address(
        &mut self,
        handle: &Handle,
        message: AddressMessage,
        undo: &mut Undo,
    ) -> Result<(), rtnetlink::Error> {
        make_way(handle, &message, undo).await;
        let ours = intend(undo, Change::Address(message.clone()));
        let added = address::add(handle, &message).await;
        let added = self.or_later(added, message.header.family, || address::text(&message));
        if settle(undo, ours, &added) {
            self.addresses.push(message);
        }
        added.map(drop)
    }

    /// Treats an object that fails only because IPv6 is missing as a success: it is added when IPv6 is
    /// available, and IPv4 must not fail because of it.
    fn or_later(
        &mut self,
        added: Result<bool, rtnetlink::Error>,
        family: AddressFamily,
        what: impl FnOnce() -> String,
    ) -> Result<bool, rtnetlink::Error> {
        let Err(error) = &added else { return added };
        if !is_off(family, error) {
            return added;
        }
        self.missing.push(Missing { what: what(), why: why(error, true) });
        Ok(true)
    }

    /// Adds the routes, to the table of `vrf` if the device is a port of a VRF. Blackholes come first, so that
    /// a route never exists without its blackhole.
    pub(crate) async fn route_all(
        &mut self,
        handle: &Handle,
        link: &Link,
        vrf: Option<u32>,
        connected: &[IpNet],
        undo: &mut Undo,
    ) -> Result<(), Error> {
        self.table = vrf.unwrap_or(table::MAIN);
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

    /// Adds only the blackholes and the rules that lead to them. Objects that block their place are handled by
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

    /// Adds blackholes with the highest metric: for a kill switch without rules, and for a device whose routes
    /// the kernel may ignore. An equal blackhole of another tunnel works as well.
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
            let family = route.header.address_family;
            let added = self.or_later(added, family, || route::text(&route));
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
        let added = match held.by_peer && !self.alive {
            true => self.try_out(handle, wanted, &held.route, ours).await,
            false => self.add_route(handle, wanted, &held.route).await,
        };
        if settle(undo, ours, &added) {
            self.routes.push(held);
        }
        added.map(drop)
    }

    async fn add_route(
        &mut self,
        handle: &Handle,
        wanted: &Route,
        route: &RouteMessage,
    ) -> Result<bool, Error> {
        let added = route::add(handle, route).await.map(|added| added == Added::New);
        let family = route.header.address_family;
        let added = self.or_later(added, family, || route::text(route));
        added.map_err(|error| Error::refused(Step::Route(wanted.to), &self.device, &error))
    }

    /// Adds and removes the route once, to find out whether that is possible while somebody still watches the
    /// start. A route that is `known` was added before. The peer is not alive, so the route must not exist, even if an
    /// earlier run left it on a device that stays.
    async fn try_out(
        &mut self,
        handle: &Handle,
        wanted: &Route,
        route: &RouteMessage,
        known: bool,
    ) -> Result<bool, Error> {
        let refused =
            |plan: &Self, error| Error::refused(Step::Follow(wanted.to), &plan.device, &error);
        route::remove(handle, route).await.map_err(|error| refused(self, error))?;
        if !known {
            self.add_route(handle, wanted, route).await?;
            route::remove(handle, route).await.map_err(|error| refused(self, error))?;
        }
        Ok(true)
    }

    /// The separate table for default routes that have no configured table, with its rules; `main` if there are
    /// no such routes, or the tunnel's own datagrams cannot be recognised.
    async fn own_table(
        &mut self,
        handle: &Handle,
        link: &Link,
        families: &[AddressFamily],
        undo: &mut Undo,
    ) -> Result<u32, Error> {
        let Some(own) = link.own.as_ref().filter(|_| !families.is_empty()) else {
            return Ok(table::MAIN);
        };
        // The table of an earlier run is preferred, because the objects that are left in it apply until ours
        // exist.
        let mut left: Vec<_> = undo.changes().iter().filter_map(Change::table).collect();
        left.retain(|number| table::is_own(*number));
        left.sort_unstable();
        left.dedup();
        for table in left.into_iter().chain(table::free(handle).await) {
            let families = families.to_vec();
            let ruled = Ruled { own: own.clone(), table, families, guarded: self.guarded.clone() };
            if self.claim(handle, ruled, undo).await? {
                return Ok(table);
            }
        }
        Err(Error::NoTable)
    }

    /// Adds the rules of a table, unless another tunnel has already added them.
    async fn claim(
        &mut self,
        handle: &Handle,
        ruled: Ruled,
        undo: &mut Undo,
    ) -> Result<bool, Error> {
        let before = undo.len();
        self.rules.clear();
        for rule in ruled.rules() {
            let ours = intend(undo, Change::Rule(rule.clone()));
            let added = rule::add(handle, &rule).await;
            let added = self.or_later(added, rule.header.family, || rule::text(&rule));
            let is_ours = settle(undo, ours, &added);
            added.map_err(|error| rule::refused(&rule, &self.device, &error))?;
            if !is_ours {
                undo.back_to(before, handle).await;
                return Ok(false);
            }
            self.rules.push(rule);
        }
        self.ruled = Some(ruled);
        Ok(true)
    }

    /// Follows a change of the port or of the peer's addresses: adds the rules needed now, and removes the
    /// others.
    ///
    /// # Errors
    ///
    /// The kernel's first error; the rules that it accepted then apply.
    pub(crate) async fn follow_own(
        &mut self,
        handle: &Handle,
        traffic: &OwnTraffic,
        undo: &mut Undo,
    ) -> Result<(), Error> {
        let Some(ruled) = &mut self.ruled else { return Ok(()) };
        (ruled.own.port, ruled.own.peers) = (traffic.port, traffic.peers.clone());
        let wanted = ruled.rules();
        let mut refused = Ok(());
        for rule in wanted.iter().filter(|rule| !self.rules.contains(rule)) {
            let ours = intend(undo, Change::Rule(rule.clone()));
            let added = rule::add(handle, rule).await;
            settle(undo, ours, &added);
            if let (Ok(()), Err(error)) = (&refused, added) {
                refused = Err(rule::refused(rule, &self.device, &error));
            }
        }
        self.rules = wanted;
        undo.only(|change| !matches!(change, Change::Rule(_)) || self.wants(change), handle).await;
        refused
    }

    /// Whether `change` is an address that had to go before this plan's address could be added, so that to remove it
    /// would remove the new one.
    pub(crate) fn has_replaced(&self, change: &Change) -> bool {
        let Change::Address(former) = change else { return false };
        let excludes = |one: &AddressMessage| address::excludes(one, former);
        !self.addresses.contains(former) && self.addresses.iter().any(excludes)
    }

    /// Whether the plan contains the object that `change` would remove.
    pub(crate) fn wants(&self, change: &Change) -> bool {
        match change {
            Change::Address(address) => self.addresses.contains(address),
            Change::Rule(rule) => self.rules.contains(rule),
            Change::Route(route) => self.routes.iter().any(|held| held.route == *route),
            Change::Link(_) if change.device() != Some(self.index) => false,
            Change::Link(before) => match link::property(before) {
                Property::Controller => self.port_of.is_some(),
                Property::Mac => self.has_own_mac,
                Property::Other(_) => true,
            },
        }
    }
}

/// The tables for routes without a configured table.
struct Tables {
    /// The table for default routes.
    own: u32,
    /// The table for all other routes.
    main: u32,
}

impl Tables {
    fn of(&self, route: &Route) -> u32 {
        let without = if route.is_default() { self.own } else { self.main };
        route.table.unwrap_or(without)
    }
}

/// Removes an address of ours that the kernel cannot have together with this one. The record stays, in case the former
/// address has to be restored.
async fn make_way(handle: &Handle, message: &AddressMessage, undo: &Undo) {
    for change in undo.changes() {
        if let Change::Address(one) = change
            && address::excludes(one, message)
        {
            change.clone().take_back(handle).await;
        }
    }
}

/// Records a planned change, unless an earlier run has made it; returns whether an earlier run has.
fn intend(undo: &mut Undo, change: Change) -> bool {
    let known = undo.contains(&change);
    if !known {
        undo.intend(change);
    }
    known
}

/// Removes the record if the object existed before or could not be added. Returns whether the object is ours.
fn settle<E>(undo: &mut Undo, known: bool, added: &Result<bool, E>) -> bool {
    let is_ours = known || matches!(added, Ok(true));
    if !is_ours {
        undo.forget_last();
    }
    is_ours
}

/// The families whose default route is in a separate table.
fn families(link: &Link) -> Vec<AddressFamily> {
    families_where(link, |_any| true)
}

/// Those of these families that have a kill switch.
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
