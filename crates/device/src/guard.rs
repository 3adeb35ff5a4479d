//! Restores a kill switch's blackhole routes and rules immediately, no matter how often they are removed.
//!
//! Packets are blocked in two independent ways. For a default route these are a blackhole route in a separate
//! table, and a rule behind the rule that leads to that table. For any other route these are a blackhole route
//! with the next higher metric, and one with the highest metric. The second object of each pair has a different
//! protocol number. So after a flush of routes, of rules, of one table or of one protocol, one of the two
//! objects still blocks packets, for the few milliseconds until the other one is restored.

use std::time::Duration;

use rtnetlink::Handle;
use rtnetlink::packet_route::RouteNetlinkMessage;
use tokio::time::{Instant, sleep_until};

use crate::plan::Plan;
use crate::{route, rule};

/// The delay after the first message: a flush removes one object after the other.
const SOON: Duration = Duration::from_millis(5);
/// The least time between consecutive restorations: at most about twenty a second.
const APART: Duration = Duration::from_millis(50);
/// The number of restorations without a delay.
const AT_ONCE: u32 = 4;
/// The least time between two lines in the log.
const QUIET: Duration = Duration::from_secs(10);

/// When to restore the guards.
#[derive(Default)]
pub(crate) struct Guards {
    due: Option<Instant>,
    /// The time of the next restoration if all restorations were spaced out.
    paced: Option<Instant>,
    said: Option<Instant>,
}

impl Guards {
    /// Schedules a restoration if this message may mean that a guard was removed.
    pub(crate) fn hear(&mut self, plan: &Plan, message: &RouteNetlinkMessage) {
        let concerns = match message {
            RouteNetlinkMessage::DelRule(gone) => !plan.guarded.is_empty() && rule::is_ours(gone),
            RouteNetlinkMessage::DelRoute(gone) => {
                let mut drops = plan.routes.iter().filter(|held| route::drops(&held.route));
                route::drops(gone) && drops.any(|held| route::same_place(gone, &held.route))
            }
            _ => false,
        };
        if concerns {
            self.look();
        }
    }

    /// Schedules a restoration, because any guard may have been removed.
    pub(crate) fn look(&mut self) {
        if self.due.is_some() {
            return;
        }
        let now = Instant::now();
        let paced = self.paced.map_or(now, |paced| paced.max(now));
        let due = (now + SOON).max(paced.checked_sub(APART * AT_ONCE).unwrap_or(now));
        (self.due, self.paced) = (Some(due), Some(paced + APART));
    }

    /// Waits until it is time to restore; never returns if nothing was removed.
    pub(crate) async fn due(&self) {
        match self.due {
            Some(due) => sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    /// Adds all guards again, exceptions before blackholes. Adding an object that exists fails without harm.
    pub(crate) async fn put_back(&mut self, handle: &Handle, plan: &Plan) {
        self.due = None;
        let mut restored = Vec::new();
        let guarded = |family| plan.guarded.contains(&family);
        for one in plan.rules.iter().filter(|one| guarded(one.header.family)) {
            if let Ok(true) = rule::add(handle, one).await {
                restored.push(format!("rule {}", rule::priority(one)));
            }
        }
        for held in plan.routes.iter().filter(|held| route::drops(&held.route)) {
            if route::add_again(handle, &held.route).await {
                restored.push(route::text(&held.route));
            }
        }
        self.say(plan, &restored);
    }

    fn say(&mut self, plan: &Plan, restored: &[String]) {
        let now = Instant::now();
        let spoke_lately = self.said.is_some_and(|said| now < said + QUIET);
        if restored.is_empty() || spoke_lately {
            return;
        }
        self.said = Some(now);
        let (device, what) = (&plan.device, restored.join(", "));
        tracing::warn!(
            "restored {what} of {device}, which had been removed: vpnd always restores the kill switch"
        );
    }
}
