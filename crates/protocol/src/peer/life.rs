//! What the peer's life and death bring about: events, questions, and calls to one that is missed.

use super::{Change, Peer};
use crate::liveness::{Question, Turn};
use crate::time::{BootTime, Now};

impl Peer {
    /// Tells when the peer has come to life or has died, and asks it when it is silent.
    pub(super) fn follow_life(&mut self, now: Now) {
        self.life.observe(self.activity.moments());
        match self.life.turn(now.boot, self.keyring.current().is_some()) {
            Some(Turn::Alive) => self.events.push_back(Change::Alive.into()),
            Some(Turn::Dead) => {
                self.events.push_back(Change::Dead.into());
                self.call_others(now);
            }
            None => {}
        }
        if let Some(question) = self.life.question(now.boot) {
            self.ask_for_life(now, question);
        }
    }

    /// The peer says that it is gone.
    pub(super) fn bury(&mut self, now: Now) {
        self.life.observe(self.activity.moments());
        if self.life.end(now.boot) {
            self.events.push_back(Change::Dead.into());
        }
    }

    /// Nobody answered the attempt that began then.
    pub(super) fn despair(&mut self, now: Now, begun: BootTime) {
        self.life.observe(self.activity.moments());
        if self.life.give_up(now.boot, begun) {
            self.events.push_back(Change::Dead.into());
        }
    }

    /// A PING is answered by who knows the session, an initiation by everybody.
    fn ask_for_life(&mut self, now: Now, question: Question) {
        self.probe_others(now);
        let since = self.life.asked_since().filter(|_| question == Question::Urgent);
        if since.is_some_and(|since| self.fail_over(now, since)) {
            return;
        }
        let asked = self.frames_flow() && self.speak(now);
        if !asked || question == Question::Urgent {
            self.wanted |= self.attempt.is_none();
        }
    }
}
