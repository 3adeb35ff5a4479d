//! Whether the peer is alive. It takes one of two rules to know:
//!
//! - *watched*: silence tells. Who was silent for half of `dead_after` is asked for a sign of life,
//!   and who is silent for all of it is dead. It has to be asked, for a keepalive of ours obliges no
//!   peer to answer: one that lives and has nothing to say would count as dead;
//! - *unwatched*: an idle tunnel is silent by right, so only that tells which was sent and goes
//!   unanswered.
//!
//! A sign of life is what proves that the peer hears us too: what came on a session, or an answer to
//! an initiation of ours. An initiation of its own is none: it may be old, and its preshared key another.

use std::time::Duration;

use crate::activity::Moments;
use crate::time::BootTime;
use crate::timers::Wait;

/// Of `dead_after` so many parts lie between two questions.
const STEPS: u32 = 16;

/// What has become of the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Alive,
    Dead,
}

/// What to ask a silent peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    /// On the session there is, if the peer answers such a question.
    Gentle,
    /// By a handshake too: it may have forgotten the session.
    Urgent,
}

/// One peer's life.
#[derive(Debug)]
pub(crate) struct Life {
    dead_after: Duration,
    watched: bool,
    alive: bool,
    /// Since when it is, or is not.
    since: BootTime,
    heard: Option<BootTime>,
    asked: Option<Asked>,
    unanswered: Wait,
    /// Questions come so much earlier, so that two ends do not ask at the same moment.
    pub(crate) jitter: Duration,
}

/// Questions without an answer.
#[derive(Clone, Copy, Debug)]
struct Asked {
    first: BootTime,
    next: BootTime,
}

impl Life {
    /// Nothing has been heard yet.
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

    /// Takes note of the traffic.
    pub(crate) fn observe(&mut self, moments: Moments) {
        self.heard = self.heard.max(moments.received);
        self.unanswered.observe(moments.data_sent, self.heard);
        self.asked.take_if(|asked| self.heard > Some(asked.first));
    }

    /// A session stands: the peer has just been heard, whether the traffic shows it yet or not.
    pub(crate) fn hear(&mut self, now: BootTime) {
        self.heard = self.heard.max(Some(now));
        self.asked = None;
    }

    /// What has become of the peer since the last time. Without a session nothing gets through, and
    /// nobody comes to life.
    pub(crate) fn turn(&mut self, now: BootTime, in_session: bool) -> Option<Turn> {
        if self.alive {
            let dead = self.dead_from().is_some_and(|at| now >= at);
            return (dead && self.end(now)).then_some(Turn::Dead);
        }
        if !in_session || self.heard <= Some(self.since) {
            return None;
        }
        (self.alive, self.since) = (true, now);
        Some(Turn::Alive)
    }

    /// The peer is gone, whatever the traffic says; tells whether it was alive.
    pub(crate) fn end(&mut self, now: BootTime) -> bool {
        if !self.alive {
            return false;
        }
        (self.alive, self.since, self.asked) = (false, now, None);
        true
    }

    /// Nobody answered the handshakes of an attempt; tells whether the peer died of it.
    pub(crate) fn give_up(&mut self, now: BootTime, begun: BootTime) -> bool {
        !self.watched && self.heard < Some(begun) && self.end(now)
    }

    /// The question that is due, once.
    pub(crate) fn question(&mut self, now: BootTime) -> Option<Question> {
        self.question_due().filter(|at| now >= *at)?;
        let first = self.asked.map_or(now, |asked| asked.first);
        self.asked = Some(Asked { first, next: now + self.dead_after / STEPS });
        let urgent = now >= first + self.dead_after / 4;
        Some(if urgent { Question::Urgent } else { Question::Gentle })
    }

    /// When something is due.
    pub(crate) fn deadline(&self) -> Option<BootTime> {
        [self.question_due(), self.dead_from()].into_iter().flatten().min()
    }

    /// Whether the peer has to be called for as long as it takes.
    pub(crate) const fn is_missed(&self) -> bool {
        self.watched && !self.alive
    }

    /// Since when data has gone unanswered, whatever has been done about it meanwhile.
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

    /// Nobody dies unasked: who has slept through the time for it asks first.
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
        assert_eq!(life.turn(at(10), true), Some(Turn::Alive));
        life
    }

    #[test]
    fn who_is_silent_is_asked_and_then_dead() {
        let mut life = life(true);
        assert_eq!((life.deadline(), life.question(at(39))), (Some(at(40)), None));
        assert_eq!(life.question(at(40)), Some(Question::Gentle));
        assert_eq!(life.question(at(40)), None);
        assert_eq!(life.question(at(55)), Some(Question::Urgent));
        assert_eq!(life.turn(at(69), true), None);
        assert_eq!(life.turn(at(70), true), Some(Turn::Dead));
        assert_eq!(
            (life.deadline(), life.is_missed(), life.state()),
            (None, true, (false, at(70)))
        );
        assert_eq!(life.turn(at(71), true), None, "what was heard before is no new life");
    }

    #[test]
    fn an_answer_ends_the_questions() {
        let mut life = life(true);
        assert_eq!(life.question(at(41)), Some(Question::Gentle));
        life.observe(Moments { received: Some(at(42)), ..Moments::default() });
        assert_eq!(life.deadline(), Some(at(72)));
    }

    #[test]
    fn who_slept_through_the_time_asks_first() {
        let mut life = life(true);
        assert_eq!(life.turn(at(5000), true), None);
        assert_eq!(life.question(at(5000)), Some(Question::Gentle));
        assert_eq!(life.turn(at(5029), true), None);
        assert_eq!(life.turn(at(5030), true), Some(Turn::Dead));
    }

    #[test]
    fn unwatched_only_what_goes_unanswered_tells() {
        let mut life = life(false);
        assert_eq!((life.deadline(), life.question(at(5000))), (None, None));
        life.observe(Moments { data_sent: Some(at(5000)), ..Moments::default() });
        life.observe(Moments { data_sent: Some(at(5030)), ..Moments::default() });
        assert_eq!(life.deadline(), Some(at(5060)));
        assert_eq!(life.turn(at(5060), true), Some(Turn::Dead));
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
        life.observe(Moments { received: Some(at(21)), ..Moments::default() });
        assert_eq!(life.turn(at(21), false), None);
        assert_eq!(life.turn(at(22), true), Some(Turn::Alive));
    }
}
