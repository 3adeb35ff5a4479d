//! Keeps what is to be there: puts back what somebody removes, and lets routes come and go with the peer.
//!
//! The kernel tells of each change. Then everything is added once more, a moment later: what is there refuses.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use rtnetlink::Handle;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::RouteMessage;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::controller::{self, Kind};
use crate::error::errno;
use crate::guard::Guards;
use crate::heard::{Heard, Told};
use crate::link::Device;
use crate::plan::{Plan, is_down};
use crate::port::KnownPort;
use crate::route::Added;
use crate::undo::Undo;
use crate::{Netlink, Setup, address, route, rule};

/// From the first sign to the look: changes come in crowds.
const MOMENT: Duration = Duration::from_millis(200);
/// From one change of what follows the peer to the next: the peer must not keep us busy.
const REST: Duration = Duration::from_secs(1);
/// So many of them …
const TOLD: usize = 10;
/// … are told of within this time.
const TOLD_WITHIN: Duration = Duration::from_secs(60);
/// Whoever removes what we put back so often …
const OFTEN: usize = 5;
/// … within this time means it, …
const WITHIN: Duration = Duration::from_secs(10);
/// … and has his way for so long.
const PAUSE: Duration = Duration::from_secs(60);

/// Keeps a device's addresses, rules and routes until it is told to stop.
#[derive(Debug)]
pub struct Keeper {
    peer: watch::Sender<bool>,
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

impl Keeper {
    /// Begins, in a task of its own. The peer is not alive yet.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn spawn(netlink: &Netlink, news: Heard, setup: Setup) -> Self {
        let (peer, alive) = watch::channel(false);
        let (stop, stopped) = oneshot::channel();
        let (Setup { plan, mut undo }, handle) = (setup, netlink.handle.clone());
        let keeping = Keeping {
            port: KnownPort::new(std::mem::take(&mut undo.port)),
            handle,
            plan,
            alive,
            following: Following::default(),
            guards: Guards::default(),
            troubles: BTreeSet::new(),
            removals: Recent::default(),
            due: None,
        };
        Self { peer, stop, task: tokio::spawn(keeping.run(news, stopped, undo)) }
    }

    /// Who tells it of the peer.
    pub fn peer(&self) -> PeerState {
        PeerState(self.peer.clone())
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
    alive: watch::Receiver<bool>,
    following: Following,
    /// How its bridge has it.
    port: KnownPort,
    guards: Guards,
    /// What is not as it should be, as far as it has been said.
    troubles: BTreeSet<String>,
    /// When something of ours was missing.
    removals: Recent,
    /// When to look.
    due: Option<Instant>,
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
    async fn run(
        mut self,
        mut news: Heard,
        mut stopped: oneshot::Receiver<()>,
        undo: Undo,
    ) -> Setup {
        loop {
            let (due, turn) = (self.due, self.following.due);
            tokio::select! {
                _ = &mut stopped => break,
                Ok(()) = self.alive.changed() => self.following.hear(),
                () = self.guards.due() => self.guards.put_back(&self.handle, &self.plan).await,
                () = sleep_until(turn.unwrap_or_else(Instant::now)), if turn.is_some() => {
                    self.following.due = None;
                    self.follow_peer().await;
                }
                Some(event) = news.next() => self.hear(&event),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.due = None;
                    self.look().await;
                }
            }
        }
        Setup { plan: self.plan, undo }
    }

    /// A look is due soon after what may have taken something of ours.
    fn hear(&mut self, event: &Told) {
        if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) = event {
            self.hear_mtu(link);
        }
        match event {
            NetlinkPayload::InnerMessage(message) => self.guards.hear(&self.plan, message),
            NetlinkPayload::Overrun(_) => self.guards.look(),
            _ => {}
        }
        if self.concerns(event) && self.due.is_none() {
            self.due = Some(Instant::now() + MOMENT);
        }
    }

    fn concerns(&self, event: &Told) -> bool {
        let Plan { index, routes, rules, .. } = &self.plan;
        match event {
            NetlinkPayload::InnerMessage(message) => match message {
                RouteNetlinkMessage::NewLink(link) => {
                    let is_up = link.header.flags.contains(LinkFlags::Up);
                    link.header.index == *index && is_up || self.is_port_of(link)
                }
                RouteNetlinkMessage::DelAddress(address) => address.header.index == *index,
                RouteNetlinkMessage::DelRoute(gone) => {
                    routes.iter().any(|held| route::same_place(gone, &held.route))
                }
                RouteNetlinkMessage::DelRule(gone) => !rules.is_empty() && rule::is_ours(gone),
                _ => false,
            },
            // The kernel had more to say than we could hear.
            NetlinkPayload::Overrun(_) => true,
            _ => false,
        }
    }

    /// A bridge that is made anew knows its ports no more.
    fn is_port_of(&self, link: &LinkMessage) -> bool {
        let port_of = self.plan.port_of.as_ref().map(|(name, _)| name.as_str());
        port_of.is_some() && port_of == crate::watch::name(link)
    }

    /// Somebody who sets another MTU has a reason; it is said once and left.
    fn hear_mtu(&mut self, link: &LinkMessage) {
        let mtu = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        let Plan { device, index, mtu: set, .. } = &mut self.plan;
        if link.header.index == *index && mtu.is_some() && set.is_some() && mtu != *set {
            let (from, to) = (set.unwrap_or_default(), mtu.unwrap_or_default());
            tracing::warn!(
                "the MTU of {device} was {from} and somebody made it {to}; it stays so, and the \
                 tunnel goes by the configured one"
            );
            *set = mtu;
        }
    }

    /// Puts back whatever is missing.
    async fn look(&mut self) {
        let mut missing: Vec<_> = self.rejoin().await.into_iter().collect();
        missing.extend(self.put_back().await);
        if missing.is_empty() {
            return;
        }
        let (device, missing) = (&self.plan.device, missing.join(", "));
        tracing::warn!("{missing} of {device} had been removed, and is there again");
        if self.removals.count(WITHIN) >= OFTEN {
            self.removals = Recent::default();
            let seconds = PAUSE.as_secs();
            tracing::warn!(
                "somebody removes what belongs to {device} again and again; it is left alone for {seconds} s"
            );
            self.due = Some(Instant::now() + PAUSE);
        }
    }

    /// Makes the device a port again, before all else: a VRF drops addresses. Says if it was none.
    async fn rejoin(&mut self) -> Option<String> {
        let (device, index) = (&self.plan.device, self.plan.index);
        let (name, kind) = self.plan.port_of.as_ref()?;
        let what = format!("its place in {kind} {name}");
        match controller::rejoin(&self.handle, Device { name: device, index }, name, *kind).await {
            Ok(was_none) => {
                if *kind == Kind::Bridge {
                    self.port.keep(&self.handle, index, (name, was_none)).await;
                }
                self.troubles.remove(&what);
                was_none.then_some(what)
            }
            Err(error) => {
                if self.troubles.insert(what) {
                    tracing::warn!(
                        "{device} is no port of {kind} {name}, and nothing passes there: {error}"
                    );
                }
                None
            }
        }
    }

    /// Adds everything once more; says what was not there.
    async fn put_back(&mut self) -> Vec<String> {
        let (handle, plan, alive) = (&self.handle, &self.plan, self.following.alive);
        let mut all = Vec::new();
        for one in &plan.addresses {
            all.push((address::text(one), address::add(handle, one).await));
        }
        for one in &plan.rules {
            all.push((format!("rule {}", rule::priority(one)), rule::add(handle, one).await));
        }
        for one in plan.routes.iter().filter(|one| alive || !one.by_peer) {
            let added = route::add(handle, &one.route).await.map(|added| added == Added::New);
            all.push((route::text(&one.route), added));
        }
        let missing = all.into_iter().filter_map(|(what, added)| {
            self.is_there(&what, added).is_some_and(|is_new| is_new).then_some(what)
        });
        missing.collect()
    }

    /// Whether something was added, or had been there; none if it is not there. Why not is said once.
    fn is_there(&mut self, what: &str, added: Result<bool, rtnetlink::Error>) -> Option<bool> {
        let device = &self.plan.device;
        let error = match added {
            Ok(is_new) => {
                self.troubles.remove(what);
                return Some(is_new);
            }
            Err(error) if is_down(&error) => return None,
            Err(error) => error,
        };
        if self.troubles.insert(what.to_owned()) {
            match errno(&error) {
                libc::EEXIST => tracing::warn!(
                    "another route of the same metric has the place of {what} of {device}: packets go by that one"
                ),
                _ => {
                    tracing::warn!(%error, "{what} of {device} is missing, and cannot be put back")
                }
            }
        }
        None
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
                "the peer of {device} comes and goes often; its routes' part in it is told no more"
            );
        }
    }

    /// What became of a route that was to come, if it did.
    async fn come(&mut self, name: &str, route: &RouteMessage) -> Option<&'static str> {
        let added = route::add(&self.handle, route).await.map(|added| added == Added::New);
        self.is_there(name, added).map(|_| "is there, for the peer is")
    }

    /// What became of a route that was to go, if it did. It may have gone with the device's going down.
    async fn go(&mut self, name: &str, route: &RouteMessage) -> Option<&'static str> {
        let trouble = format!("{name} that is to go");
        let Err(error) = route::remove(&self.handle, route).await else {
            self.troubles.remove(&trouble);
            return Some("is taken away while the peer is silent");
        };
        if self.troubles.insert(trouble) {
            tracing::warn!(%error, "{name} cannot be taken away, and leads to a peer that is silent");
        }
        None
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

/// When something happened lately.
#[derive(Default)]
struct Recent(VecDeque<Instant>);

impl Recent {
    /// It happens once more; says how often it did `within` this time.
    fn count(&mut self, within: Duration) -> usize {
        let now = Instant::now();
        self.0.push_back(now);
        while self.0.front().is_some_and(|first| now.duration_since(*first) > within) {
            self.0.pop_front();
        }
        self.0.len()
    }

    fn last(&self) -> Option<Instant> {
        self.0.back().copied()
    }
}
