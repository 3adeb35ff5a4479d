//! What is to be there as long as we run: addresses, rules and routes, as the messages that add them. What
//! was there before us is not among it, and none of our business.

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
use crate::{Link, Own, OwnTraffic, Route, WhenDown, address, route, rule, table};

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
    /// What the rules are made for.
    pub(crate) ruled: Option<Ruled>,
    pub(crate) routes: Vec<Held>,
}

/// What the tunnel's own datagrams are told by, where there is a table that they must not be led to.
#[derive(Clone, Debug)]
pub(crate) struct Ruled {
    own: Own,
    table: u32,
    families: Vec<AddressFamily>,
}

impl Ruled {
    fn rules(&self) -> Vec<RuleMessage> {
        self.families.iter().flat_map(|family| rule::all(&self.own, self.table, *family)).collect()
    }
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
            ruled: None,
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
        undo: &mut Undo,
    ) -> Result<(), Error> {
        let own_table = match vrf {
            Some(table) => table,
            None => self.own_table(handle, link, undo).await?,
        };
        let table = |route: &Route| match route.table {
            Some(table) => table,
            None if route.is_default() => own_table,
            None => vrf.unwrap_or(table::MAIN),
        };
        for one in link.routes.iter().filter(|route| route.when_down == WhenDown::Blackhole) {
            let held = Held { route: route::blackhole(one, table(one)), by_peer: false };
            self.route(handle, one, held, undo).await?;
        }
        for one in &link.routes {
            let message = route::unicast(self.index, one, table(one));
            let held = Held { route: message, by_peer: one.when_down != WhenDown::Keep };
            self.route(handle, one, held, undo).await?;
        }
        Ok(())
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
        undo: &mut Undo,
    ) -> Result<u32, Error> {
        let families = families(link);
        let Some(own) = link.own.as_ref().filter(|_| !families.is_empty()) else {
            return Ok(table::MAIN);
        };
        // The one that an earlier run had, for what it left there holds until ours does.
        let mut left: Vec<_> = undo.changes().iter().filter_map(Change::table).collect();
        left.retain(|number| table::is_own(*number));
        left.sort_unstable();
        left.dedup();
        for table in left.into_iter().chain(table::free(handle).await) {
            let ruled = Ruled { own: own.clone(), table, families: families.clone() };
            if self.claim(handle, ruled, undo).await? {
                return Ok(table);
            }
        }
        Err(Error::NoTable)
    }

    /// Adds the rules of a table, unless another tunnel has.
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

    /// The port or the peer's addresses are others by now: adds the rules that this takes, and removes those that it
    /// does not.
    ///
    /// # Errors
    ///
    /// What the kernel refused first; the rules are then those that it took.
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
    let defaults = link.routes.iter().filter(|one| one.is_default() && one.table.is_none());
    let mut families: Vec<_> = defaults.map(|one| address::family(one.to)).collect();
    families.sort_by_key(|family| u8::from(*family));
    families.dedup();
    families
}

/// The device is down, which an administrator wants so: routes come back when it is up.
pub(crate) fn is_down(error: &rtnetlink::Error) -> bool {
    [libc::ENETDOWN, libc::ENODEV, libc::ENETUNREACH].contains(&errno(error))
}
