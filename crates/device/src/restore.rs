//! Adds all objects of a device again. Adding an existing object fails without harm, so no object is compared
//! with the kernel's state. The kernel itself removes some objects: everything of IPv6 when IPv6 is switched
//! off or the MTU falls below 1280; routes when the device goes down; and the route to the far end of an IPv6
//! address that was added before the device was up.

use rtnetlink::Handle;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::{In6AddrGenMode, LinkMessage};

use crate::controller::Kind;
use crate::link::{self, Device};
use crate::missing::{DOWN, GONE, Missing, why};
use crate::plan::{Held, Plan};
use crate::port::KnownPort;
use crate::removals::Removals;
use crate::route::Added;
use crate::{address, controller, route, rule, watch};

/// The result of one attempt.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The objects that were missing, and are restored.
    pub(crate) restored: Vec<String>,
    /// The objects that are missing, and could not be added.
    pub(crate) missing: Vec<Missing>,
}

/// One attempt.
pub(crate) struct Attempt<'a> {
    pub(crate) handle: &'a Handle,
    pub(crate) plan: &'a Plan,
    /// The device's properties; `None` if it was deleted or moved to another namespace.
    pub(crate) link: Option<&'a LinkMessage>,
    /// Its port settings in its bridge.
    pub(crate) port: &'a mut KnownPort,
    /// Whether the routes that follow the peer are to exist.
    pub(crate) alive: bool,
    /// Objects that others removed on purpose, and that are not restored.
    pub(crate) leave: &'a Removals,
    pub(crate) found: Found,
}

impl Attempt<'_> {
    /// Adds everything, or without the device only the objects that do not need it. The device joins the VRF
    /// first, because the kernel drops addresses then.
    pub(crate) async fn run(mut self) -> Found {
        match self.link {
            Some(link) => {
                self.rejoin().await;
                self.addresses(watch::is_up(link)).await;
            }
            None => {
                let gone = |one| Missing { what: address::text(one), why: GONE.to_owned() };
                self.found.missing.extend(self.plan.addresses.iter().map(gone));
            }
        }
        self.rules().await;
        self.routes().await;
        self.found
    }

    /// Makes the device a port again.
    async fn rejoin(&mut self) {
        let Plan { device, index, port_of, .. } = self.plan;
        let Some((name, kind)) = port_of else { return };
        let what = format!("its place in {kind} {name}");
        if self.leave.leave(&what) {
            return;
        }
        let device = Device { name: device, index: *index };
        match controller::rejoin(self.handle, device, name, *kind).await {
            Ok(was_none) => {
                if *kind == Kind::Bridge {
                    self.port.keep(self.handle, *index, (name, was_none)).await;
                }
                self.found.restored.extend(was_none.then_some(what));
            }
            Err(error) => {
                let why = format!("nothing passes there: {error}");
                self.found.missing.push(Missing { what, why });
            }
        }
    }

    async fn addresses(&mut self, is_up: bool) {
        for one in &self.plan.addresses {
            let what = address::text(one);
            if self.leave.leave(&what) {
                continue;
            }
            let is_v6 = one.header.family == AddressFamily::Inet6;
            // The kernel would accept the address, but would never add the route to its far end.
            if is_v6 && !is_up {
                self.found.missing.push(Missing { what, why: DOWN.to_owned() });
                continue;
            }
            let added = address::add(self.handle, one).await;
            let was_there = matches!(added, Ok(false));
            self.note(what, is_v6, added);
            if was_there && is_up {
                self.connected(one).await;
            }
        }
    }

    /// Restores the routes that the kernel adds together with an address, because the kernel does not restore
    /// them.
    async fn connected(&mut self, of: &AddressMessage) {
        for one in route::connected(of, self.plan.table) {
            // If another device has the route with the same metric, the kernel decides between them.
            if let Ok(Added::New) = route::add(self.handle, &one).await {
                self.found.restored.push(route::text(&one));
            }
        }
    }

    async fn rules(&mut self) {
        for one in self.plan.rules.iter().filter(|one| !self.leave.leave(&rule::text(one))) {
            let is_v6 = one.header.family == AddressFamily::Inet6;
            let added = rule::add(self.handle, one).await;
            self.note(rule::text(one), is_v6, added);
        }
    }

    async fn routes(&mut self) {
        let alive = self.alive;
        for Held { route, .. } in self.plan.routes.iter().filter(|held| alive || !held.by_peer) {
            let what = route::text(route);
            if self.leave.leave(&what) {
                continue;
            }
            if self.link.is_none() && !route::drops(route) {
                self.found.missing.push(Missing { what, why: GONE.to_owned() });
                continue;
            }
            let is_v6 = route.header.address_family == AddressFamily::Inet6;
            let added = route::add(self.handle, route).await.map(|added| added == Added::New);
            self.note(what, is_v6, added);
        }
    }

    fn note(&mut self, what: String, is_v6: bool, added: Result<bool, rtnetlink::Error>) {
        match added {
            Ok(true) => self.found.restored.push(what),
            Ok(false) => {}
            Err(error) => {
                self.found.missing.push(Missing { what, why: why(&error, is_v6) });
            }
        }
    }
}

/// Makes a device silent again on which the kernel has configured IPv6 anew with its defaults: no generated
/// addresses, no router solicitations. Returns whether IPv6 is configured.
pub(crate) async fn silence(handle: &Handle, index: u32, link: &LinkMessage) -> bool {
    let Some(mode) = link::address_generation(link) else { return false };
    if mode != In6AddrGenMode::None && link::silence(handle, index).await {
        address::remove_generated(handle, index).await;
    }
    true
}
