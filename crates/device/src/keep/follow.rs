//! Routes that follow the peer: they are there while it is alive.

use std::time::Duration;

use rtnetlink::packet_route::route::RouteMessage;
use tokio::time::Instant;

use super::Keeping;
use crate::plan::{Held, Plan};
use crate::recent::Recent;
use crate::route::{self, Added};

/// The least time between changes of routes that follow the peer, so that the peer cannot keep vpnd busy.
const REST: Duration = Duration::from_secs(1);
/// At most this many of these changes …
const TOLD: usize = 10;
/// … are logged within this time.
const TOLD_WITHIN: Duration = Duration::from_secs(60);

/// The liveness state that the routes have, compared with the peer's.
#[derive(Default)]
pub(super) struct Following {
    /// The state that the routes have.
    pub(super) alive: bool,
    /// When the routes may change again; `None` if their state matches the peer's.
    pub(super) due: Option<Instant>,
    pub(super) changes: Recent,
}

impl Keeping {
    /// Adds or removes the routes that depend on the peer.
    pub(super) async fn follow_peer(&mut self) {
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
                "the peer of {device} often changes between alive and dead: further changes of its routes are not \
                 logged"
            );
        }
    }

    /// Adds a route because the peer is alive, and returns a text for the log; `None` if that failed.
    async fn come(&mut self, name: &str, route: &RouteMessage) -> Option<&'static str> {
        let added = route::add(&self.handle, route).await.map(|_: Added| ());
        self.is_there(name, route, added).then_some("added: the peer is alive")
    }

    /// Removes a route until the peer is alive again, and returns a text for the log about the packets of the
    /// route; `None` if that failed. The kernel may have removed the route when the device was set down.
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

/// What happens to the packets of a removed route.
fn meanwhile(plan: &Plan, gone: &RouteMessage) -> &'static str {
    let drops = |held: &Held| route::drops(&held.route) && route::same_place(gone, &held.route);
    match plan.routes.iter().any(drops) {
        true => "removed until the peer is alive: its packets are dropped (kill switch)",
        false => "removed until the peer is alive: its packets follow the next best route",
    }
}

impl Following {
    /// Schedules a change of the routes after the peer's liveness has changed; the first change after a quiet
    /// period is made at once.
    pub(super) fn hear(&mut self) {
        let now = Instant::now();
        let rested = self.changes.last().map_or(now, |last| last + REST);
        self.due = Some(rested.max(now));
    }
}
