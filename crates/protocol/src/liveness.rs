//! Whether the peer is alive, by one of two rules:
//!
//! - *watched*: silence is evidence. If nothing was received for half of `dead_after`, the peer is probed, and
//!   after all of `dead_after` it is dead. Without the probe a live peer without traffic would count as dead,
//!   because our keepalives require no answer;
//! - *unwatched*: an idle tunnel may be silent, so only an unanswered packet is evidence.
//!
//! A sign of life also proves that the peer receives our datagrams: it is a datagram of a session, or a
//! response to an initiation of ours. An initiation of the peer is none: it may be old, or made with another
//! preshared key.

use std::time::Duration;

use crate::activity::Timestamps;
use crate::time::BootTime;
use crate::timers::Wait;

/// Probes are this fraction of `dead_after` apart.
const STEPS: u32 = 16;

/// A change of the peer's liveness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transition {
    Alive,
    Dead,
}

/// How to probe a silent peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    /// On the current session, if the peer answers such a probe.
    Gentle,
    /// By a handshake too: the peer may have forgotten the session.
    Urgent,
}

/// The liveness of one peer.
#[derive(Debug)]
pub(crate) struct Life {
    dead_after: Duration,
    watched: bool,
    alive: bool,
    /// When the peer became alive or dead.
    since: BootTime,
    heard: Option<BootTime>,
    asked: Option<Asked>,
    unanswered: Wait,
    /// Probes are sent earlier by this, so that the two ends do not probe at the same time.
    pub(crate) jitter: Duration,
}

/// Probes without an answer.
#[derive(Clone, Copy, Debug)]
struct Asked {
    first: BootTime,
    next: BootTime,
}

impl Life {
    /// A peer of which nothing was received yet.
    pub(crate) fn new(dead_after: Duration, watched: bool, now: BootTime) -> Self {
        Self {
            dead_after,
            watched,
            alive: false,
            since: now,
            heard: None,
            asked: None,
            unanswered: Wait::default(),
            jitter: Duration::ZERO,
        }
    }

    /// Other limits, for what was heard so far as well. Probes that were sent by the former limits are forgotten.
    pub(crate) fn retune(&mut self, dead_after: Duration, watched: bool) {
        if (self.dead_after, self.watched) != (dead_after, watched) {
            (self.dead_after, self.watched, self.asked) = (dead_after, watched, None);
        }
    }

    /// Changes the rule by which the peer counts as dead.
    pub(crate) const fn set_watched(&mut self, watched: bool) {
        self.watched = watched;
    }

    /// The peer was alive when an earlier process of this tunnel last heard it.
    pub(crate) fn inherit(&mut self, since: BootTime, heard: BootTime) {
        (self.alive, self.since, self.heard) = (true, since, self.heard.max(Some(heard)));
    }

    /// When the peer was last heard, if it is alive.
    pub(crate) fn heard_alive(&self) -> Option<BootTime> {
        self.heard.filter(|_| self.alive)
    }

    /// Records the traffic.
    pub(crate) fn observe(&mut self, timestamps: Timestamps) {
        self.heard = self.heard.max(timestamps.received);
        self.unanswered.observe(timestamps.data_sent, self.heard);
        self.asked.take_if(|asked| self.heard > Some(asked.first));
    }

    /// A session was established, which is a sign of life even if the traffic does not show it yet.
    pub(crate) fn hear(&mut self, now: BootTime) {
        self.heard = self.heard.max(Some(now));
        self.asked = None;
    }

    /// The change of liveness since the last call. A peer becomes alive only with a session, because data needs
    /// one.
    pub(crate) fn transition(&mut self, now: BootTime, in_session: bool) -> Option<Transition> {
        if self.alive {
            let dead = self.dead_from().is_some_and(|at| now >= at);
            return (dead && self.end(now)).then_some(Transition::Dead);
        }
        if !in_session || self.heard <= Some(self.since) {
            return None;
        }
        (self.alive, self.since) = (true, now);
        Some(Transition::Alive)
    }

    /// The peer is dead, regardless of the traffic; returns whether it was alive.
    pub(crate) fn end(&mut self, now: BootTime) -> bool {
        if !self.alive {
            return false;
        }
        (self.alive, self.since, self.asked) = (false, now, None);
        true
    }

    /// All tries of an attempt are unanswered; returns whether the peer became dead because of that.
    pub(crate) fn give_up(&mut self, now: BootTime, begun: BootTime) -> bool {
        !self.watched && self.heard < Some(begun) && self.end(now)
    }

    /// The probe that is due, once.
    pub(crate) fn question(&mut self, now: BootTime) -> Option<Question> {
        self.question_due().filter(|at| now >= *at)?;
        let first = self.asked.map_or(now, |asked| asked.first);
        self.asked = Some(Asked { first, next: now + self.dead_after / STEPS });
        let urgent = now >= first + self.dead_after / 4;
        Some(if urgent { Question::Urgent } else { Question::Gentle })
    }

    /// When a probe is due, or the peer counts as dead.
    pub(crate) fn deadline(&self) -> Option<BootTime> {
        [self.question_due(), self.dead_from()].into_iter().flatten().min()
    }

    /// When the first unanswered probe was sent.
    pub(crate) fn asked_since(&self) -> Option<BootTime> {
        self.asked.map(|asked| asked.first)
    }

    /// Whether silence alone is evidence.
    pub(crate) const fn is_watched(&self) -> bool {
        self.watched
    }

    /// Whether to initiate handshakes without a limit.
    pub(crate) const fn is_missed(&self) -> bool {
        self.watched && !self.alive
    }

    /// Since when data has been unanswered, even if handshakes were tried meanwhile.
    pub(crate) const fn unanswered_since(&self) -> Option<BootTime> {
        self.unanswered.since()
    }

    /// Whether the peer is alive, and since when.
    pub(crate) const fn state(&self) -> (bool, BootTime) {
        (self.alive, self.since)
    }

    fn question_due(&self) -> Option<BootTime> {
        if !self.watched || !self.alive {
            return None;
        }
        let early = self.jitter.min(self.dead_after / STEPS);
        self.asked.map(|asked| asked.next).or(Some(self.heard? + (self.dead_after / 2 - early)))
    }

    /// The peer never counts as dead without a probe: an end that was suspended for all of `dead_after`
    /// probes first.
    fn dead_from(&self) -> Option<BootTime> {
        if !self.alive {
            return None;
        }
        if !self.watched {
            return Some(self.unanswered.since()? + self.dead_after);
        }
        let silent = self.heard? + self.dead_after;
        Some(silent.max(self.asked?.first + self.dead_after / 2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> BootTime {
        BootTime::from_nanos(0) + Duration::from_secs(seconds)
    }

    fn life(watched: bool) -> Life {
        let mut life = Life::new(Duration::from_secs(60), watched, at(1));
        life.hear(at(10));
        assert_eq!(life.transition(at(10), true), Some(Transition::Alive));
        life
    }

    #[test]
    fn who_is_silent_is_asked_and_then_dead() {
        let mut life = life(true);
        assert_eq!((life.deadline(), life.question(at(39))), (Some(at(40)), None));
        assert_eq!(life.question(at(40)), Some(Question::Gentle));
        assert_eq!(life.question(at(40)), None);
        assert_eq!(life.question(at(55)), Some(Question::Urgent));
        assert_eq!(life.transition(at(69), true), None);
        assert_eq!(life.transition(at(70), true), Some(Transition::Dead));
        assert_eq!(
            (life.deadline(), life.is_missed(), life.state()),
            (None, true, (false, at(70)))
        );
        assert_eq!(life.transition(at(71), true), None, "what was heard before is no new life");
    }

    #[test]
    fn an_answer_ends_the_questions() {
        let mut life = life(true);
        assert_eq!(life.question(at(41)), Some(Question::Gentle));
        life.observe(Timestamps { received: Some(at(42)), ..Timestamps::default() });
        assert_eq!(life.deadline(), Some(at(72)));
    }

    #[test]
    fn who_slept_through_the_time_asks_first() {
        let mut life = life(true);
        assert_eq!(life.transition(at(5000), true), None);
        assert_eq!(life.question(at(5000)), Some(Question::Gentle));
        assert_eq!(life.transition(at(5029), true), None);
        assert_eq!(life.transition(at(5030), true), Some(Transition::Dead));
    }

    #[test]
    fn unwatched_only_what_goes_unanswered_tells() {
        let mut life = life(false);
        assert_eq!((life.deadline(), life.question(at(5000))), (None, None));
        life.observe(Timestamps { data_sent: Some(at(5000)), ..Timestamps::default() });
        life.observe(Timestamps { data_sent: Some(at(5030)), ..Timestamps::default() });
        assert_eq!(life.deadline(), Some(at(5060)));
        assert_eq!(life.transition(at(5060), true), Some(Transition::Dead));
        assert!(!life.is_missed());
    }

    #[test]
    fn an_attempt_that_fails_is_the_end_of_who_was_silent_since_it_began() {
        assert!(!life(true).give_up(at(120), at(20)), "watched, silence alone tells");
        assert!(!life(false).give_up(at(120), at(9)));
        assert!(life(false).give_up(at(120), at(20)));
    }

    #[test]
    fn nobody_comes_to_life_without_a_session() {
        let mut life = life(true);
        assert!(life.end(at(20)) && !life.end(at(20)));
        life.observe(Timestamps { received: Some(at(21)), ..Timestamps::default() });
        assert_eq!(life.transition(at(21), false), None);
        assert_eq!(life.transition(at(22), true), Some(Transition::Alive));
    }
}
