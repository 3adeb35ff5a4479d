//! Sends one initiation to several addresses of the peer, one shortly after the other, and uses the first that
//! answers (RFC 8305, for UDP).
//!
//! All of these are the same message, so the attempt has one state and one index, and a response to any copy
//! completes it. A peer ignores further copies as replays, or, if it is vpnd, sends the same response to each
//! new source address. The order is that of [`Candidates`](crate::endpoint::Candidates): the peer's last
//! address, then the configured ones. If an address answers within [`APART`], no other is tried.
//!
//! While a session exists and its path may still work, the initiation is sent on that path alone. Otherwise a
//! single lost initiation would move the path.

use std::time::Duration;

use super::Peer;
use super::initiator::Attempt;
use crate::time::{BootTime, Now};

/// The delay between one address and the next.
pub(super) const APART: Duration = Duration::from_millis(250);

impl Peer {
    /// When the pending initiation is sent to the next address.
    pub(super) fn spread_deadline(&self) -> Option<BootTime> {
        let call = self.attempt.as_ref()?.call()?;
        call.spreads_at.filter(|_| self.paths.untried(&call.asked).is_some())
    }

    /// Sends the pending initiation to the next address too, if that is due.
    pub(super) fn spread(&mut self, now: Now) {
        if self.spread_deadline().is_some_and(|at| now.boot >= at) {
            self.call_next(now);
        }
    }

    /// Sends the pending initiation to the next address that it was not sent to yet, if there is one.
    pub(super) fn call_next(&mut self, now: Now) {
        let call = self.attempt.as_mut().and_then(Attempt::unanswered_call);
        let next = call.and_then(|call| self.paths.untried(&call.asked));
        if let (Some(attempt), Some(to)) = (&mut self.attempt, next) {
            attempt.go_to(to);
            self.send_call(now);
        }
    }

    /// Sends the pending initiation to the next address without further delay.
    pub(super) fn spread_now(&mut self, now: Now) {
        self.attempt.iter_mut().for_each(Attempt::make_regular);
        if let Some(call) = self.attempt.as_mut().and_then(Attempt::unanswered_call) {
            call.spreads_at = call.spreads_at.map_or(Some(now.boot), |at| Some(at.min(now.boot)));
        }
    }

    /// The peer does not answer at its current address: initiates at its other addresses at once.
    pub(super) fn try_other_addresses(&mut self, now: Now) {
        if self.paths.addresses() < 2 {
            return;
        }
        self.spread_now(now);
        if self.attempt.is_none() {
            self.wanted = true;
            self.initiate_from = self.initiate_from.min(now.boot);
        }
    }

    /// Whether a pending initiation is sent to further addresses. It is not while the path in use may work.
    pub(super) fn spreads(&self) -> bool {
        let in_use = self.keyring.current().is_some();
        !in_use || self.is_path_dead()
    }

    /// Whether the peer counts as dead, or a second try is unanswered and nothing was received since the first.
    fn is_path_dead(&self) -> bool {
        let (alive, _) = self.life.state();
        let unheard = self.attempt.as_ref().is_some_and(|attempt| {
            let heard = self.activity.timestamps().received;
            attempt.tries() > 1 && heard < Some(attempt.this_try().begun)
        });
        !alive || unheard
    }
}
