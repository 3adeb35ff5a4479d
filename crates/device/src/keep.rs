//! Keeps addresses, rules and routes in place: restores the objects that others or the kernel remove, and adds
//! and removes routes when the peer becomes alive or dead.
//!
//! The kernel reports each change. A short time later everything is added again; adding an existing object
//! fails without harm. Objects that cannot be added are tried again, on a timer and whenever the kernel reports
//! a change after which the attempt may succeed.

mod change;
mod follow;
mod hold;
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
use crate::plan::Plan;
use crate::port::KnownPort;
use crate::removals::{OFTEN, PAUSE, Removals, WITHIN};
use crate::restore::{self, Attempt, Found};
use crate::undo::Undo;
use crate::{Link, Netlink, Setup, link, route, rule};

pub use change::DeviceLink;
pub use hold::{DeviceHold, Held};
pub use mtu::DeviceMtu;

use change::NewLink;
use follow::Following;
use hold::{NewHold, Paused};
use mtu::NewMtu;

/// The delay between the first message and the check: changes come in groups.
const MOMENT: Duration = Duration::from_millis(200);
/// Missing objects are tried again after these times, and then each time after the last of these times.
const RETRIES: [Duration; 4] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
];
/// Keeps a device's addresses, rules and routes in place until it is stopped.
#[derive(Debug)]
pub struct Keeper {
    peer: watch::Sender<bool>,
    missing: watch::Receiver<Vec<Missing>>,
    bypassed: watch::Receiver<Vec<Bypass>>,
    own: watch::Sender<OwnTraffic>,
    mtu: mpsc::Sender<NewMtu>,
    link: mpsc::Sender<NewLink>,
    hold: mpsc::Sender<NewHold>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Setup>,
}

/// Informs a [`Keeper`] about the peer.
#[derive(Clone, Debug)]
pub struct PeerState(watch::Sender<bool>);

impl PeerState {
    /// The peer was heard, or counts as dead: adds or removes the routes that depend on the peer.
    pub fn set(&self, alive: bool) {
        self.0.send_if_modified(|was| std::mem::replace(was, alive) != alive);
    }
}

/// How the tunnel's own datagrams are recognised: only the parts that change at run time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnTraffic {
    /// Their source port.
    pub port: u16,
    /// The addresses that the peer has or may have.
    pub peers: Vec<IpAddr>,
}

/// Informs a [`Keeper`] about the tunnel's own datagrams.
#[derive(Clone, Debug)]
pub struct OwnState(watch::Sender<OwnTraffic>);

impl OwnState {
    /// Updates the rules that exclude these datagrams from the tunnel.
    pub fn set(&self, traffic: OwnTraffic) {
        self.0.send_if_modified(|was| {
            let changed = *was != traffic;
            *was = traffic;
            changed
        });
    }
}

impl Keeper {
    /// Starts the keeper as a task.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn spawn(netlink: &Netlink, news: Heard, setup: Setup) -> Self {
        let is_alive = setup.plan.alive;
        let (peer, alive) = watch::channel(is_alive);
        let (report, missing) = watch::channel(Vec::new());
        let (own, traffic) = watch::channel(OwnTraffic::default());
        let (new_mtu, new_mtus) = mpsc::channel(1);
        let (new_link, new_links) = mpsc::channel(1);
        let (new_hold, new_holds) = mpsc::channel(1);
        let (stop, stopped) = oneshot::channel();
        let (Setup { link, mut plan, mut undo }, handle) = (setup, netlink.handle.clone());
        let found = Found { missing: std::mem::take(&mut plan.missing), ..Found::default() };
        let bypasses = Bypasses::spawn(&handle, &plan, own.subscribe());
        let bypassed = bypasses.found();
        let mut keeping = Keeping {
            bypasses,
            port: KnownPort::new(std::mem::take(&mut undo.port)),
            guards: Guards::default(),
            handle,
            link,
            plan,
            undo,
            own: own.clone(),
            new_links,
            new_holds,
            alive,
            traffic,
            new_mtus,
            following: Following { alive: is_alive, ..Following::default() },
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
        let (mtu, link, hold) = (new_mtu, new_link, new_hold);
        Self { peer, missing, bypassed, own, mtu, link, hold, stop, task }
    }

    /// The handle that reports the peer's liveness.
    pub fn peer(&self) -> PeerState {
        PeerState(self.peer.clone())
    }

    /// The missing objects, now and whenever they change.
    pub fn missing(&self) -> watch::Receiver<Vec<Missing>> {
        self.missing.clone()
    }

    /// Other programs' routes through which packets bypass a kill switch, now and whenever they change.
    pub fn bypassed(&self) -> watch::Receiver<Vec<Bypass>> {
        self.bypassed.clone()
    }

    /// The handle that reports changes of the tunnel's own datagrams.
    pub fn own(&self) -> OwnState {
        OwnState(self.own.clone())
    }

    /// The handle that sets the device's MTU.
    pub fn mtu(&self) -> DeviceMtu {
        DeviceMtu(self.mtu.clone())
    }

    /// The handle that gives the device another wanted state.
    pub fn link(&self) -> DeviceLink {
        DeviceLink(self.link.clone())
    }

    /// The handle that makes the keeper pause.
    pub fn hold(&self) -> DeviceHold {
        DeviceHold(self.hold.clone())
    }

    /// Stops the keeper and returns the changes; `None` if it has panicked.
    pub async fn stop(self) -> Option<Setup> {
        // The task drops its end only if it panics.
        let _gone = self.stop.send(());
        self.task.await.ok()
    }
}

struct Keeping {
    handle: Handle,
    /// The wanted state that the plan was made for.
    link: Link,
    plan: Plan,
    undo: Undo,
    own: watch::Sender<OwnTraffic>,
    new_links: mpsc::Receiver<NewLink>,
    new_holds: mpsc::Receiver<NewHold>,
    alive: watch::Receiver<bool>,
    traffic: watch::Receiver<OwnTraffic>,
    new_mtus: mpsc::Receiver<NewMtu>,
    following: Following,
    /// The device's port settings in its bridge.
    port: KnownPort,
    guards: Guards,
    bypasses: Bypasses,
    /// The missing objects, for `status`.
    report: watch::Sender<Vec<Missing>>,
    /// The missing objects as last logged: object and reason.
    said: BTreeMap<String, String>,
    /// Our objects that others removed.
    removals: Removals,
    /// The number of retries for missing objects.
    retries: usize,
    kernel: Kernel,
    /// The device's MTU when it was last read.
    mtu: Option<u32>,
    /// When to check.
    due: Option<Instant>,
}

/// Changes that the kernel itself has made since the last check.
#[derive(Default)]
struct Kernel {
    /// The kernel dropped our objects, or may have.
    dropped: bool,
    /// The kernel reset the device's IPv6 settings, or may have.
    forgot: bool,
    /// The device was deleted or moved to another namespace: its index may belong to another device now.
    lost: bool,
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
                Some(new) = self.new_links.recv() => self.set_link(new).await,
                Some(new) = self.new_mtus.recv() => self.set_mtu(new).await,
                Some(new) = self.new_holds.recv() => {
                    if self.hold(new, &mut stopped).await == Paused::Stopped {
                        break;
                    }
                }
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
            // The index may belong to another device now.
            self.undo.forget_device(self.plan.index);
        }
        Setup { link: self.link, plan: self.plan, undo: self.undo }
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

    /// Schedules a check after a message that may mean a loss of our objects, or after which a missing object
    /// may be added.
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
            // None of our routes uses a nexthop object.
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

    /// Schedules a check after this time, unless an earlier one is due.
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
            // A bridge sends this message for each port that leaves it, with the family of bridges.
            RouteNetlinkMessage::DelLink(link) => {
                let lost = link.header.index == *index
                    && link.header.interface_family == AddressFamily::Unspec;
                self.kernel.lost |= lost;
                lost
            }
            RouteNetlinkMessage::DelAddress(address) => address.header.index == *index,
            RouteNetlinkMessage::DelRoute(gone) => takes_place(gone),
            // When one route replaces another, the kernel sends no message that the old route was deleted.
            RouteNetlinkMessage::NewRoute(new) => {
                takes_place(new) && !routes.iter().any(|held| route::is_same(new, &held.route))
            }
            RouteNetlinkMessage::DelRule(gone) => !rules.is_empty() && rule::is_ours(gone),
            _ => false,
        }
    }

    /// Whether the message reports that the device was set up or down, that IPv6 was switched on again, or that
    /// a bridge was created again without its ports.
    fn hear_link(&mut self, link: &LinkMessage) -> bool {
        if link.header.index == self.plan.index {
            let inet6 = link.header.interface_family == AddressFamily::Inet6;
            self.kernel.dropped |= inet6 || !crate::watch::is_up(link);
            return true;
        }
        let port_of = self.plan.port_of.as_ref().map(|(name, _)| name.as_str());
        port_of.is_some() && port_of == crate::watch::name(link)
    }

    /// Restores all missing objects.
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

    /// The device, if it exists. If it was renamed, the new name is used from here on.
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

    /// Logs and reports new results, and schedules the next check.
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

    /// Schedules a retry. Objects that are missing because the device is down or gone need no timer: the kernel
    /// reports when the device is up.
    fn try_again(&mut self, missing: &[Missing]) {
        if missing.iter().all(Missing::is_waiting_for_device) {
            self.retries = 0;
            return;
        }
        self.look_after(RETRIES[self.retries.min(RETRIES.len() - 1)]);
        self.retries += 1;
    }

    /// Logs one line for all objects that are missing for the same reason and were not logged yet.
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

    /// Whether an object was added or already existed, rather than being refused. The reason is logged once.
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
}
