//! Keeps what is to be there: puts back what somebody removes, and lets routes come and go with the peer.
//!
//! The kernel tells of each change. Then everything is added once more, a moment later: what is there refuses.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::error::{Error, errno};
use crate::plan::{Held, Plan, is_down};
use crate::route::Added;
use crate::undo::Undo;
use crate::{Netlink, Setup, address, route, rule};

/// From the first sign to the look: changes come in crowds.
const MOMENT: Duration = Duration::from_millis(200);
/// Whoever removes what we put back so often …
const OFTEN: usize = 5;
/// … within this time means it, …
const WITHIN: Duration = Duration::from_secs(10);
/// … and has his way for so long.
const PAUSE: Duration = Duration::from_secs(60);

const GROUPS: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

/// What the kernel tells of devices, addresses, routes and rules.
pub struct News(BoxStream<'static, Event>);

type Event = NetlinkPayload<RouteNetlinkMessage>;

impl News {
    /// Listens from now on. Belongs inside a tokio runtime, as [`Netlink::connect`] does.
    ///
    /// # Errors
    ///
    /// If the kernel gives no netlink socket.
    pub fn listen() -> Result<Self, Error> {
        let (connection, _, messages) =
            rtnetlink::new_multicast_connection(&GROUPS).map_err(Error::Connect)?;
        tokio::spawn(connection);
        Ok(Self(messages.map(|(message, _from)| message.payload).boxed()))
    }
}

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
    pub fn spawn(netlink: &Netlink, news: News, setup: Setup) -> Self {
        let (peer, alive) = watch::channel(false);
        let (stop, stopped) = oneshot::channel();
        let (Setup { plan, undo }, handle) = (setup, netlink.handle.clone());
        let keeping = Keeping { handle, plan, alive, removals: Removals::default(), due: None };
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
    removals: Removals,
    /// When to look.
    due: Option<Instant>,
}

impl Keeping {
    async fn run(
        mut self,
        mut news: News,
        mut stopped: oneshot::Receiver<()>,
        undo: Undo,
    ) -> Setup {
        loop {
            let due = self.due;
            tokio::select! {
                _ = &mut stopped => break,
                Ok(()) = self.alive.changed() => self.follow_peer().await,
                Some(event) = news.0.next() => self.hear(&event),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.due = None;
                    self.look().await;
                }
            }
        }
        Setup { plan: self.plan, undo }
    }

    /// A look is due soon after what may have taken something of ours.
    fn hear(&mut self, event: &Event) {
        if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) = event {
            self.hear_mtu(link);
        }
        if self.concerns(event) && self.due.is_none() {
            self.due = Some(Instant::now() + MOMENT);
        }
    }

    fn concerns(&self, event: &Event) -> bool {
        let Plan { index, routes, rules, .. } = &self.plan;
        match event {
            NetlinkPayload::InnerMessage(message) => match message {
                RouteNetlinkMessage::NewLink(link) => {
                    link.header.index == *index && link.header.flags.contains(LinkFlags::Up)
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
        let missing = self.put_back().await;
        if missing.is_empty() {
            return;
        }
        let (device, missing) = (&self.plan.device, missing.join(", "));
        tracing::warn!("{missing} of {device} had been removed, and is there again");
        if self.removals.are_meant(Instant::now()) {
            let seconds = PAUSE.as_secs();
            tracing::warn!(
                "somebody removes what belongs to {device} again and again; it is left alone for {seconds} s"
            );
            self.due = Some(Instant::now() + PAUSE);
        }
    }

    /// Adds everything once more; says what was not there.
    async fn put_back(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for one in &self.plan.addresses {
            if self.was_missing("an address", address::add(&self.handle, one).await) {
                missing.push(address::text(one));
            }
        }
        for one in &self.plan.rules {
            if self.was_missing("a rule", rule::add(&self.handle, one).await) {
                missing.push(format!("rule {}", rule::priority(one)));
            }
        }
        for one in self.plan.routes.iter().filter(|one| self.is_wanted(one)) {
            let added = route::add(&self.handle, &one.route).await;
            if self.was_missing("a route", added.map(|added| added == Added::New)) {
                missing.push(route::text(&one.route));
            }
        }
        missing
    }

    fn is_wanted(&self, held: &Held) -> bool {
        !held.by_peer || *self.alive.borrow()
    }

    fn was_missing(&self, what: &str, added: Result<bool, rtnetlink::Error>) -> bool {
        let device = &self.plan.device;
        match added {
            Ok(was_missing) => was_missing,
            Err(error) if is_down(&error) => false,
            Err(error) if errno(&error) == libc::EEXIST => {
                tracing::debug!("{what} of {device} has given way to another");
                false
            }
            Err(error) => {
                tracing::warn!(%error, "{what} of {device} is missing, and cannot be put back");
                false
            }
        }
    }

    /// Adds or removes the routes that depend on the peer.
    async fn follow_peer(&mut self) {
        let alive = *self.alive.borrow_and_update();
        for one in self.plan.routes.iter().filter(|one| one.by_peer) {
            let name = route::text(&one.route);
            if !alive {
                // It may have gone with the device's going down.
                let _not_there = self.handle.route().del(one.route.clone()).execute().await;
                tracing::info!("{name} is taken away while the peer is silent");
            } else if self
                .was_missing(&name, route::add(&self.handle, &one.route).await.map(|_| true))
            {
                tracing::info!("{name} is there, for the peer is");
            }
        }
    }
}

/// When something of ours was missing.
#[derive(Default)]
struct Removals(VecDeque<Instant>);

impl Removals {
    /// Counts one more; says whether they come too often for an accident.
    fn are_meant(&mut self, now: Instant) -> bool {
        self.0.push_back(now);
        while self.0.front().is_some_and(|first| now.duration_since(*first) > WITHIN) {
            self.0.pop_front();
        }
        if self.0.len() < OFTEN {
            return false;
        }
        self.0.clear();
        true
    }
}
