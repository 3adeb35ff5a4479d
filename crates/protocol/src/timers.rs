//! The rules that act without a received datagram (whitepaper §6). They are derived from timestamps that the
//! data threads keep, so rules are polled, never armed:
//!
//! 1. data sent and nothing heard for 15 s: initiate;
//! 2. data received and nothing sent for 10 s: one keepalive;
//! 3. nothing sent or heard for the configured keepalive: one keepalive;
//! 4. a datagram received on a session older than 165 s that we initiated: initiate, once;
//! 5. an initiation unanswered for 5 s: again, 20 times in all.

use std::time::Duration;

use crate::activity::Timestamps;
use crate::time::BootTime;

/// Rule 1, before its jitter.
pub(crate) const ANSWER_EXPECTED_WITHIN: Duration = Duration::from_secs(15);
/// Rule 2.
pub(crate) const KEEPALIVE_OWED_AFTER: Duration = Duration::from_secs(10);
/// Rule 4.
pub(crate) const LAST_MINUTE: Duration = Duration::from_secs(165);
/// Rule 5, before its jitter; also the least time between two initiations.
pub(crate) const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// The number of initiations under rule 5.
pub(crate) const MAX_TRIES: u32 = 20;
/// Jitter is evenly distributed from zero to this.
pub(crate) const MAX_JITTER_MS: u32 = 333;
/// The poll interval while traffic flows.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Why the control plane has to be polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// An initiation is due, or due again.
    Initiate,
    /// The key message of an upgrade is due again, or the upgrade is given up.
    Upgrade,
    /// A new address of the peer waits to be considered.
    Roam,
    /// Writing the timestamp high-water mark takes too long.
    Floor,
    /// Data was sent and nothing was received since.
    NoAnswer,
    /// Data was received and nothing was sent since.
    KeepaliveOwed,
    /// The configured keepalive.
    PersistentKeepalive,
    /// The peer is silent: a probe is due, or it counts as dead.
    Silence,
    /// A preferred address of the peer is to be probed.
    Probe,
    /// A key has reached its age.
    KeyExpiry,
    /// A probe of the path's MTU is due.
    PathMtu,
    /// Traffic flows, so its timestamps have to be polled.
    Poll,
}

/// A wait that one kind of event starts and another ends.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wait {
    since: Option<BootTime>,
    /// Starts up to this time have been handled.
    settled: Option<BootTime>,
}

impl Wait {
    /// When the wait began that has not ended yet.
    pub(crate) const fn since(&self) -> Option<BootTime> {
        self.since
    }

    pub(crate) fn observe(&mut self, cause: Option<BootTime>, cure: Option<BootTime>) {
        let cure = cure.max(self.settled);
        if self.since.is_some() && cure >= self.since {
            self.since = None;
        }
        if self.since.is_none() && cause > cure {
            self.since = cause;
        }
    }

    fn settle(&mut self, cause: Option<BootTime>) {
        *self = Self { since: None, settled: cause };
    }
}

/// Rules 1 to 3.
#[derive(Debug)]
pub(crate) struct Timers {
    keepalive: Option<Duration>,
    seen: Timestamps,
    answer: Wait,
    owed: Wait,
    /// The configured keepalive counts from here if there was no traffic.
    quiet_since: BootTime,
    pub(crate) jitter: Duration,
}

impl Timers {
    /// Timers of a peer that is silent since `now`.
    pub(crate) fn new(keepalive: Option<Duration>, now: BootTime) -> Self {
        Self {
            keepalive,
            seen: Timestamps::default(),
            answer: Wait::default(),
            owed: Wait::default(),
            quiet_since: now,
            jitter: Duration::ZERO,
        }
    }

    /// Changes the configured keepalive.
    pub(crate) const fn set_keepalive(&mut self, keepalive: Option<Duration>) {
        self.keepalive = keepalive;
    }

    /// Records the traffic; returns whether there was any since the last call.
    pub(crate) fn observe(&mut self, timestamps: Timestamps) -> bool {
        let moved = self.seen != timestamps;
        self.seen = timestamps;
        self.answer.observe(timestamps.data_sent, timestamps.received);
        self.owed.observe(timestamps.data_received, timestamps.sent);
        moved
    }

    /// Rule 1's deadline.
    pub(crate) fn answer_deadline(&self) -> Option<BootTime> {
        Some(self.answer.since? + (ANSWER_EXPECTED_WITHIN + self.jitter))
    }

    /// Rule 2's deadline.
    pub(crate) fn owed_deadline(&self) -> Option<BootTime> {
        Some(self.owed.since? + KEEPALIVE_OWED_AFTER)
    }

    /// Rule 3's deadline.
    pub(crate) fn persistent_deadline(&self) -> Option<BootTime> {
        let heard = self.seen.sent.max(self.seen.received).max(Some(self.quiet_since))?;
        Some(heard + self.keepalive?)
    }

    /// Rule 1 has acted.
    pub(crate) fn settle_answer(&mut self) {
        self.answer.settle(self.seen.data_sent);
    }

    /// Rule 2 has acted.
    pub(crate) fn settle_owed(&mut self) {
        self.owed.settle(self.seen.data_received);
    }

    /// Rule 3 has acted.
    pub(crate) fn settle_persistent(&mut self, now: BootTime) {
        self.quiet_since = now;
    }

    /// The timestamps last observed.
    pub(crate) const fn seen(&self) -> Timestamps {
        self.seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> BootTime {
        BootTime::from_nanos(0) + Duration::from_secs(seconds)
    }

    fn timers(keepalive: Option<u64>) -> Timers {
        Timers::new(keepalive.map(Duration::from_secs), at(0))
    }

    #[test]
    fn unanswered_since_the_first_data_after_the_last_sign_of_life() {
        let mut timers = timers(None);
        timers.observe(Timestamps { data_sent: Some(at(10)), ..Timestamps::default() });
        timers.observe(Timestamps { data_sent: Some(at(20)), ..Timestamps::default() });
        assert_eq!(timers.answer_deadline(), Some(at(25)));
        let both =
            Timestamps { data_sent: Some(at(22)), received: Some(at(21)), ..Timestamps::default() };
        timers.observe(both);
        assert_eq!(timers.answer_deadline(), Some(at(37)));
        timers.observe(Timestamps { received: Some(at(23)), ..both });
        assert_eq!(timers.answer_deadline(), None);
    }

    #[test]
    fn a_rule_that_acted_waits_for_a_new_cause() {
        let mut timers = timers(None);
        let sent = Timestamps { data_sent: Some(at(10)), ..Timestamps::default() };
        timers.observe(sent);
        timers.settle_answer();
        timers.observe(sent);
        assert_eq!(timers.answer_deadline(), None);
        timers.observe(Timestamps { data_sent: Some(at(30)), ..sent });
        assert_eq!(timers.answer_deadline(), Some(at(45)));
    }

    #[test]
    fn a_keepalive_is_owed_for_data_and_paid_by_anything_sent() {
        let mut timers = timers(None);
        let data = Timestamps {
            data_received: Some(at(5)),
            received: Some(at(5)),
            ..Timestamps::default()
        };
        timers.observe(data);
        assert_eq!(timers.owed_deadline(), Some(at(15)));
        timers.observe(Timestamps { sent: Some(at(6)), ..data });
        assert_eq!(timers.owed_deadline(), None);
        // A keepalive of the peer requires no answer.
        timers.observe(Timestamps { received: Some(at(9)), sent: Some(at(6)), ..data });
        assert_eq!(timers.owed_deadline(), None);
    }

    #[test]
    fn the_configured_keepalive_counts_from_traffic_either_way() {
        let mut timers = timers(Some(25));
        assert_eq!(timers.persistent_deadline(), Some(at(25)));
        timers.observe(Timestamps { received: Some(at(20)), ..Timestamps::default() });
        assert_eq!(timers.persistent_deadline(), Some(at(45)));
        timers.settle_persistent(at(45));
        assert_eq!(timers.persistent_deadline(), Some(at(70)));
        assert_eq!(Timers::new(None, at(0)).persistent_deadline(), None);
    }
}
