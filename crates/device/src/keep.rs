//! Keeps what is to be there: puts back what somebody or the kernel removes, and lets routes come and go with the peer.
//!
//! The kernel tells of each change. Then everything is added once more, a moment later: what is there refuses.
//! What cannot be added is tried again, on a timer and whenever the kernel tells of something that may make it
//! possible.

mod mtu;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use rtnetlink::Handle;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::bypass::{Bypass, Bypasses};
use crate::guard::Guards;
use crate::heard::{Heard, Told};
use crate::missing::{Missing, why};
use crate::plan::{Held, Plan};
use crate::port::KnownPort;
use crate::recent::Recent;
use crate::removals::{OFTEN, PAUSE, Removals, WITHIN};
use crate::restore::{self, Attempt, Found};
use crate::route::Added;
use crate::undo::Undo;
use crate::{Netlink, Setup, link, route, rule};

pub use mtu::DeviceMtu;

use mtu::NewMtu;

/// From the first sign to the look: changes come in crowds.
const MOMENT: Duration = Duration::from_millis(200);
/// What is missing is tried again after these times, and from then on after the last of them.
const RETRIES: [Duration; 4] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
];
/// From one change of what follows the peer to the next: the peer must not keep us busy.
const REST: Duration = Duration::from_secs(1);
/// So many of them …
const TOLD: usize = 10;
/// … are told of within this time.
const TOLD_WITHIN: Duration = Duration::from_secs(60);

/// Keeps a device's addresses, rules and routes until it is told to stop.
#[derive(Debug)]
pub struct Keeper {
    peer: watch::Sender<bool>,
    missing: watch::Receiver<Vec<Missing>>,
    bypassed: watch::Receiver<Vec<Bypass>>,
    own: watch::Sender<OwnTraffic>,
    mtu: mpsc::Sender<NewMtu>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Setup>,
}

/// Tells a [`Keeper`] of the peer.
#[derive(Clone, Debug)]
pub struct PeerState(watch::Sender<bool>);

impl PeerState {
    /// The peer was heard, or is held for dead. Routes that depend on it come and go.
    pub fn set(&self, alive: bool) {
        self.0.send_if_modified(|was| std::mem::replace(was, alive) != alive);
    }
}

/// What the tunnel's own datagrams are told by, as far as it changes while the tunnel runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnTraffic {
    /// The UDP port they leave from.
    pub port: u16,
    /// Where the peer is, or may be.
    pub peers: Vec<IpAddr>,
}

/// Tells a [`Keeper`] of the tunnel's own datagrams.
#[derive(Clone, Debug)]
pub struct OwnState(watch::Sender<OwnTraffic>);

impl OwnState {
    /// The rules that keep them out of the tunnel follow.
    pub fn set(&self, traffic: OwnTraffic) {
        self.0.send_if_modified(|was| {
            let changed = *was != traffic;
            *was = traffic;
            changed
        });
    }
}

impl Keeper {
    /// Begins, in a task of its own. The peer is not alive yet.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn spawn(netlink: &Netlink, news: Heard, setup: Setup) -> Self {
        let (peer, alive) = watch::channel(false);
        let (report, missing) = watch::channel(Vec::new());
        let (own, traffic) = watch::channel(OwnTraffic::default());
        let (new_mtu, new_mtus) = mpsc::channel(1);
        let (stop, stopped) = oneshot::channel();
        let (Setup { mut plan, mut undo }, handle) = (setup, netlink.handle.clone());
        let found = Found { missing: std::mem::take(&mut plan.missing), ..Found::default() };
        let bypasses = Bypasses::spawn(&handle, &plan, own.subscribe());
        let bypassed = bypasses.found();
        let mut keeping = Keeping {
            bypasses,
            port: KnownPort::new(std::mem::take(&mut undo.port)),
            guards: Guards::default(),
            handle,
            plan,
            undo,
            alive,
            traffic,
            new_mtus,
            following: Following::default(),
            report,
            said: BTreeMap::new(),
            removals: Removals::default(),
            retries: 0,
            kernel: Kernel::default(),
            mtu: None,
            due: None,
        };
        keeping.conclude(found, true);
        let task = tokio::spawn(keeping.run(news, stopped));
        Self { peer, missing, bypassed, own, mtu: new_mtu, stop, task }
    }

    /// Who tells it of the peer.
    pub fn peer(&self) -> PeerState {
        PeerState(self.peer.clone())
    }

    /// What is not as it should be, now and whenever that changes.
    pub fn missing(&self) -> watch::Receiver<Vec<Missing>> {
        self.missing.clone()
    }

    /// The routes of others that take packets past a kill switch, now and whenever that changes.
    pub fn bypassed(&self) -> watch::Receiver<Vec<Bypass>> {
        self.bypassed.clone()
    }

    /// Who tells it of the tunnel's own datagrams.
    pub fn own(&self) -> OwnState {
        OwnState(self.own.clone())
    }

    /// Who sets the device's MTU.
    pub fn mtu(&self) -> DeviceMtu {
        DeviceMtu(self.mtu.clone())
    }

    /// Stops; none if it has panicked.
    pub async fn stop(self) -> Option<Setup> {
        // Only a panic has dropped the other end.
        let _gone = self.stop.send(());
        self.task.await.ok()
    }
}

struct Keeping {
    handle: Handle,
    plan: Plan,
    undo: Undo,
    alive: watch::Receiver<bool>,
    traffic: watch::Receiver<OwnTraffic>,
    new_mtus: mpsc::Receiver<NewMtu>,
    following: Following,
    /// How its bridge has it.
    port: KnownPort,
    guards: Guards,
    bypasses: Bypasses,
    /// What is not as it should be, for whoever asks.
    report: watch::Sender<Vec<Missing>>,
    /// The same, as far as the log says it: what, and why.
    said: BTreeMap<String, String>,
    /// What others removed of ours.
    removals: Removals,
    /// How often what is missing has been tried again.
    retries: usize,
    kernel: Kernel,
    /// The device's MTU, as it was last seen.
    mtu: Option<u32>,
    /// When to look.
    due: Option<Instant>,
}

/// What the kernel did of its own accord since the last look.
#[derive(Default)]
struct Kernel {
    /// It dropped, or may have dropped, what was there.
    dropped: bool,
    /// It has forgotten how IPv6 was configured on the device, or may have.
    forgot: bool,
    /// The device was deleted or moved away: its number may be another's.
    lost: bool,
}

/// How far the routes have followed the peer.
#[derive(Default)]
struct Following {
    /// As the routes are.
    alive: bool,
    /// When they may change again; none if they are as the peer is.
    due: Option<Instant>,
    changes: Recent,
}

impl Keeping {
    async fn run(mut self, mut news: Heard, mut stopped: oneshot::Receiver<()>) -> Setup {
        loop {
            let (due, turn) = (self.due, self.following.due);
            tokio::select! {
                _ = &mut stopped => break,
                Ok(()) = self.alive.changed() => self.following.hear(),
                () = self.guards.due() => self.guards.put_back(&self.handle, &self.plan).await,
                Ok(()) = self.traffic.changed() => self.follow_own().await,
                Some(new) = self.new_mtus.recv() => self.set_mtu(new).await,
                () = sleep_until(turn.unwrap_or_else(Instant::now)), if turn.is_some() => {
                    self.following.due = None;
                    self.follow_peer().await;
                }
                Some(told) = news.next() => self.hear(&told),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.due = None;
                    self.look().await;
                }
            }
        }
        if self.kernel.lost {
            // What has its number now is another's.
            self.undo.forget_device(self.plan.index);
        }
        Setup { plan: self.plan, undo: self.undo }
    }

    async fn follow_own(&mut self) {
        let traffic = self.traffic.borrow_and_update().clone();
        let followed = self.plan.follow_own(&self.handle, &traffic, &mut self.undo).await;
        let trouble = "the rules for the peer's address";
        match followed {
            Ok(()) => drop(self.said.remove(trouble)),
            Err(error) => {
                let why = error.to_string();
                if self.said.insert(trouble.to_owned(), why.clone()).as_ref() != Some(&why) {
                    tracing::warn!("{error}");
                }
            }
        }
    }

    /// A look is due soon after what may have taken something of ours, or may make possible what was not.
    fn hear(&mut self, told: &Told) {
        self.bypasses.hear(told);
        match told {
            Told::Route(message) => self.guards.hear(&self.plan, message),
            Told::Lost => self.guards.look(),
            _ => {}
        }
        let is_ours = |index: i32| u32::try_from(index) == Ok(self.plan.index);
        let concerns = match told {
            Told::Route(message) => self.hear_route(message),
            Told::Configured { index } => is_ours(*index),
            Told::Unconfigured { index } if is_ours(*index) => {
                (self.kernel.dropped, self.kernel.forgot) = (true, true);
                true
            }
            // None of our routes uses one.
            Told::Unconfigured { .. } | Told::Nexthop => false,
            Told::Lost => {
                self.kernel.forgot = true;
                true
            }
        };
        if concerns {
            self.look_after(MOMENT);
        }
    }

    /// A look is due after this time, or earlier if one is.
    fn look_after(&mut self, time: Duration) {
        let then = Instant::now() + time;
        self.due = Some(self.due.map_or(then, |due| due.min(then)));
    }

    fn hear_route(&mut self, message: &RouteNetlinkMessage) -> bool {
        let Plan { index, routes, rules, addresses, table, .. } = &self.plan;
        let takes_place = |gone: &RouteMessage| {
            let connected = |of| route::connected(of, *table).into_iter();
            routes.iter().any(|held| route::same_place(gone, &held.route))
                || addresses.iter().flat_map(connected).any(|one| route::same_place(gone, &one))
        };
        match message {
            RouteNetlinkMessage::NewLink(link) => self.hear_link(link),
            // A bridge says so of each port that leaves it, in its own family.
            RouteNetlinkMessage::DelLink(link) => {
                let lost = link.header.index == *index
                    && link.header.interface_family == AddressFamily::Unspec;
                self.kernel.lost |= lost;
                lost
            }
            RouteNetlinkMessage::DelAddress(address) => address.header.index == *index,
            RouteNetlinkMessage::DelRoute(gone) => takes_place(gone),
            // One that is replaced is not deleted, as the kernel tells it.
            RouteNetlinkMessage::NewRoute(new) => {
                takes_place(new) && !routes.iter().any(|held| route::is_same(new, &held.route))
            }
            RouteNetlinkMessage::DelRule(gone) => !rules.is_empty() && rule::is_ours(gone),
            _ => false,
        }
    }

    /// The device, set up or down, or with IPv6 that is switched on again; or a bridge that is made anew and knows
    /// its ports no more.
    fn hear_link(&mut self, link: &LinkMessage) -> bool {
        if link.header.index == self.plan.index {
            let inet6 = link.header.interface_family == AddressFamily::Inet6;
            self.kernel.dropped |= inet6 || !crate::watch::is_up(link);
            return true;
        }
        let port_of = self.plan.port_of.as_ref().map(|(name, _)| name.as_str());
        port_of.is_some() && port_of == crate::watch::name(link)
    }

    /// Puts back whatever is missing.
    async fn look(&mut self) {
        let link = self.device().await;
        if let Some(link) = &link {
            if self.kernel.forgot && self.plan.silent {
                let silent = restore::silence(&self.handle, self.plan.index, link).await;
                self.kernel.forgot = !silent;
            }
            self.compare_mtu(link);
        }
        let (handle, plan, alive) = (&self.handle, &self.plan, self.following.alive);
        let (link, port, found) = (link.as_ref(), &mut self.port, Found::default());
        let leave = &self.removals;
        let attempt = Attempt { handle, plan, link, port, alive, leave, found };
        let found = attempt.run().await;
        let by_kernel = std::mem::take(&mut self.kernel.dropped);
        self.conclude(found, by_kernel);
    }

    /// The device, if it is there. One that was renamed is known by its new name from here on.
    async fn device(&mut self) -> Option<LinkMessage> {
        let link = link::at(&self.handle, self.plan.index).await?;
        let named = link::named(&link);
        if self.kernel.lost && !self.undo.knows(&named) {
            return None;
        }
        self.kernel.lost = false;
        if let Some(name) = crate::watch::name(&link).filter(|name| *name != self.plan.device) {
            name.clone_into(&mut self.plan.device);
            self.undo.name(named);
        }
        Some(link)
    }

    /// Says what was found, as far as that is new, and when to look again.
    fn conclude(&mut self, found: Found, by_kernel: bool) {
        let Found { restored, missing } = found;
        let waited = |what: &String| self.said.contains_key(what);
        let excused = by_kernel || restored.iter().all(waited);
        restored.iter().for_each(|what| drop(self.said.remove(what)));
        self.say_missing(&missing);
        self.try_again(&missing);
        self.report.send_if_modified(|was| {
            let is_new = *was != missing;
            *was = missing;
            is_new
        });
        if !restored.is_empty() {
            self.say_restored(&restored, excused);
        }
        if let Some(over) = self.removals.over() {
            self.look_after(over.saturating_duration_since(Instant::now()));
        }
    }

    /// What is missing for want of a device that is up needs no timer: the kernel tells when it is.
    fn try_again(&mut self, missing: &[Missing]) {
        if missing.iter().all(Missing::is_waiting_for_device) {
            self.retries = 0;
            return;
        }
        self.look_after(RETRIES[self.retries.min(RETRIES.len() - 1)]);
        self.retries += 1;
    }

    /// One line for all that is missing for the same reason, and not said yet.
    fn say_missing(&mut self, missing: &[Missing]) {
        let mut news: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for Missing { what, why } in missing.iter().filter(|one| !one.is_waiting_for_device()) {
            if self.said.insert(what.clone(), why.clone()).as_ref() != Some(why) {
                news.entry(why).or_default().push(what);
            }
        }
        let device = &self.plan.device;
        for (why, what) in news {
            let what = what.join(", ");
            tracing::warn!("cannot add {what} of {device}: {why}; vpnd keeps trying");
        }
    }

    fn say_restored(&mut self, restored: &[String], excused: bool) {
        let (device, what) = (&self.plan.device, restored.join(", "));
        if excused {
            tracing::info!("restored {what} of {device}");
            return;
        }
        tracing::warn!("restored {what} of {device}, which had been removed");
        let insisted = self.removals.count(restored);
        if !insisted.is_empty() {
            let (what, seconds) = (insisted.join(", "), PAUSE.as_secs());
            tracing::warn!(
                "{what} of {device} was removed {OFTEN} times within {} s; vpnd does not restore it for \
                 {seconds} s",
                WITHIN.as_secs()
            );
        }
    }

    /// Whether something was added, or had been there; none if it is not there. Why not is said once.
    fn is_there(
        &mut self,
        what: &str,
        route: &RouteMessage,
        added: Result<(), rtnetlink::Error>,
    ) -> bool {
        let is_v6 = route.header.address_family == AddressFamily::Inet6;
        let mut missing = self.report.borrow().clone();
        missing.retain(|one| one.what != what);
        if let Err(error) = &added {
            missing.push(Missing { what: what.to_owned(), why: why(error, is_v6) });
        } else {
            self.said.remove(what);
        }
        self.conclude(Found { missing, restored: Vec::new() }, true);
        added.is_ok()
    }

    /// Adds or removes the routes that depend on the peer.
    async fn follow_peer(&mut self) {
        let alive = *self.alive.borrow_and_update();
        if std::mem::replace(&mut self.following.alive, alive) == alive {
            return;
        }
        let followers = self.plan.routes.iter().filter(|one| one.by_peer);
        let routes: Vec<_> = followers.map(|one| one.route.clone()).collect();
        if routes.is_empty() {
            return;
        }
        let told = self.following.changes.count(TOLD_WITHIN);
        for route in &routes {
            let name = route::text(route);
            let done = match alive {
                true => self.come(&name, route).await,
                false => self.go(&name, route).await,
            };
            match done {
                Some(done) if told <= TOLD => tracing::info!("{name} {done}"),
                Some(done) => tracing::debug!("{name} {done}"),
                None => {}
            }
        }
        if told == TOLD {
            let device = &self.plan.device;
            tracing::info!(
                "the peer of {device} comes and goes often: further changes of its routes are not logged"
            );
        }
    }

    /// Adds a route now that the peer is alive, and says so for the log; none if that failed.
    async fn come(&mut self, name: &str, route: &RouteMessage) -> Option<&'static str> {
        let added = route::add(&self.handle, route).await.map(|_: Added| ());
        self.is_there(name, route, added).then_some("added: the peer is alive")
    }

    /// Removes a route until the peer is alive again, and says what its packets do meanwhile; none if that failed. It
    /// may have gone when the device was set down.
    async fn go(&mut self, name: &str, route: &RouteMessage) -> Option<&'static str> {
        let trouble = format!("{name} that is to go");
        let Err(error) = route::remove(&self.handle, route).await else {
            self.said.remove(&trouble);
            self.report.send_modify(|missing| missing.retain(|one| one.what != name));
            return Some(meanwhile(&self.plan, route));
        };
        if self.said.insert(trouble, error.to_string()).is_none() {
            tracing::warn!(%error, "cannot remove {name}, which leads to a peer that is not alive");
        }
        None
    }
}

/// What becomes of the packets of a route that was removed.
fn meanwhile(plan: &Plan, gone: &RouteMessage) -> &'static str {
    let drops = |held: &Held| route::drops(&held.route) && route::same_place(gone, &held.route);
    match plan.routes.iter().any(drops) {
        true => "removed until the peer is alive: its packets are dropped (kill switch)",
        false => "removed until the peer is alive: its packets follow the next best route",
    }
}

impl Following {
    /// The peer is not as it was. What comes after a rest is followed at once.
    fn hear(&mut self) {
        let now = Instant::now();
        let rested = self.changes.last().map_or(now, |last| last + REST);
        self.due = Some(rested.max(now));
    }
}
