//! One initiation goes to several addresses of the peer, one shortly after the other, and the first answer wins
//! (RFC 8305, for UDP).
//!
//! It is the same message each time, so the attempt has one state and one index, and an answer to any copy completes it. A peer
//! that got one copy ignores the others as replays, or, if it is vpnd, sends the same answer to another source address. The
//! order is that of [`Candidates`](crate::endpoint::Candidates): the address where the peer was last, then the configured ones.
//! An address that answers within [`APART`] is never raced.
//!
//! An address in use is given time: as long as a session stands and the path may still be good, the initiation goes there
//! alone. Otherwise one lost initiation would move the path.

use std::time::Duration;

use super::Peer;
use super::initiator::Attempt;
use crate::time::{BootTime, Now};

/// From one address to the next.
pub(super) const APART: Duration = Duration::from_millis(250);

impl Peer {
    /// When the initiation under way goes to the next address.
    pub(super) fn spread_deadline(&self) -> Option<BootTime> {
        let call = self.attempt.as_ref()?.call()?;
        call.spreads_at.filter(|_| self.paths.untried(&call.asked).is_some())
    }

    /// Sends the initiation to the next address too, if that is due.
    pub(super) fn spread(&mut self, now: Now) {
        if self.spread_deadline().is_some_and(|at| now.boot >= at) {
            self.call_next(now);
        }
    }

    /// Sends the initiation under way to the next address that it has not been sent to, if there is one.
    pub(super) fn call_next(&mut self, now: Now) {
        let call = self.attempt.as_mut().and_then(Attempt::unanswered_call);
        let next = call.and_then(|call| self.paths.untried(&call.asked));
        if let (Some(attempt), Some(to)) = (&mut self.attempt, next) {
            attempt.go_to(to);
            self.send_call(now);
        }
    }

    /// Other addresses may answer where the one that was asked does not: the initiation under way goes there now.
    pub(super) fn spread_now(&mut self, now: Now) {
        self.attempt.iter_mut().for_each(Attempt::be_earnest);
        if let Some(call) = self.attempt.as_mut().and_then(Attempt::unanswered_call) {
            call.spreads_at = call.spreads_at.map_or(Some(now.boot), |at| Some(at.min(now.boot)));
        }
    }

    /// The peer has just been found dead where it was: it is called at its other addresses at once.
    pub(super) fn call_others(&mut self, now: Now) {
        if self.paths.addresses() < 2 {
            return;
        }
        self.spread_now(now);
        if self.attempt.is_none() {
            self.wanted = true;
            self.initiate_from = self.initiate_from.min(now.boot);
        }
    }

    /// Whether an initiation goes to other addresses before it is given up: not while the path in use may be good.
    pub(super) fn spreads(&self) -> bool {
        let in_use = self.keyring.current().is_some();
        !in_use || self.is_path_dead()
    }

    /// Whether nothing comes from the peer any more: it counts as dead, or a second try goes unanswered and nothing else was
    /// received since the first.
    fn is_path_dead(&self) -> bool {
        let (alive, _) = self.life.state();
        let unheard = self.attempt.as_ref().is_some_and(|attempt| {
            let heard = self.activity.moments().received;
            attempt.tries() > 1 && heard < Some(attempt.this_try().begun)
        });
        !alive || unheard
    }
}
