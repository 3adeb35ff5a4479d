//! Puts a kill switch back, at once and always: what drops, and the rules that lead there.
//!
//! There are two of everything, neither of which stands behind the other's door. A default route drops by a
//! route in its own table, and by a rule below the one that leads to that table; any other one by the route one metric
//! behind it, and by a last resort of the highest metric. The second of each bears a protocol number of its own. So a
//! flush of routes, of rules, of a table or of a protocol leaves one that drops, for the few milliseconds until the
//! other is back.

use std::time::Duration;

use rtnetlink::Handle;
use rtnetlink::packet_route::RouteNetlinkMessage;
use tokio::time::{Instant, sleep_until};

use crate::plan::Plan;
use crate::{route, rule};

/// From the first sign: a flush removes one thing after the other.
const SOON: Duration = Duration::from_millis(5);
/// From one time to the next, where they come in a row: some twenty a second are the most.
const APART: Duration = Duration::from_millis(50);
/// Times that need no wait before them.
const AT_ONCE: u32 = 4;
/// From one line of the log to the next.
const QUIET: Duration = Duration::from_secs(10);

/// When to put back what.
#[derive(Default)]
pub(crate) struct Guards {
    due: Option<Instant>,
    /// When the next time would be, if there were never two without a wait.
    paced: Option<Instant>,
    said: Option<Instant>,
}

impl Guards {
    /// Something may have been removed that this message is about.
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

    /// Anything may have been removed.
    pub(crate) fn look(&mut self) {
        if self.due.is_some() {
            return;
        }
        let now = Instant::now();
        let paced = self.paced.map_or(now, |paced| paced.max(now));
        let due = (now + SOON).max(paced.checked_sub(APART * AT_ONCE).unwrap_or(now));
        (self.due, self.paced) = (Some(due), Some(paced + APART));
    }

    /// Waits until it is time to put back; for ever if nothing was removed.
    pub(crate) async fn due(&self) {
        match self.due {
            Some(due) => sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    /// Adds all of it once more, what passes before what drops; what is there refuses.
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
            "restored {what} of {device}, which had been removed: the kill switch is restored every time"
        );
    }
}
