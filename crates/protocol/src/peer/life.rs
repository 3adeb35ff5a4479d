//! Acts on the peer's liveness: reports changes, probes a silent peer, and tries its other
//! addresses when it is dead.

use super::{Change, Peer};
use crate::liveness::{Question, Transition};
use crate::time::{BootTime, Now};

impl Peer {
    /// Reports when the peer becomes alive or dead, and probes it when it is silent.
    pub(super) fn follow_life(&mut self, now: Now) {
        self.life.observe(self.activity.timestamps());
        match self.life.transition(now.boot, self.keyring.current().is_some()) {
            Some(Transition::Alive) => self.events.push_back(Change::Alive.into()),
            Some(Transition::Dead) => {
                self.events.push_back(Change::Dead.into());
                self.leave_port(now);
                self.try_other_addresses(now);
            }
            None => {}
        }
        if let Some(question) = self.life.question(now.boot) {
            self.ask_for_life(now, question);
        }
    }

    /// The peer announced that it is shutting down.
    pub(super) fn declare_dead(&mut self, now: Now) {
        self.life.observe(self.activity.timestamps());
        if self.life.end(now.boot) {
            self.events.push_back(Change::Dead.into());
        }
    }

    /// All tries of the attempt that began at `begun` are unanswered.
    pub(super) fn give_up_on_peer(&mut self, now: Now, begun: BootTime) {
        self.life.observe(self.activity.timestamps());
        if self.life.give_up(now.boot, begun) {
            self.events.push_back(Change::Dead.into());
        }
    }

    /// Sends a PING. A restarted peer has lost the session and cannot answer that, so an urgent
    /// probe also initiates.
    fn ask_for_life(&mut self, now: Now, question: Question) {
        self.probe_others(now);
        let since = self.life.asked_since().filter(|_| question == Question::Urgent);
        if since.is_some_and(|since| self.fail_over(now, since)) {
            return;
        }
        let asked = self.frames_flow() && self.send_sign_of_life(now);
        if !asked || question == Question::Urgent {
            self.wanted |= self.attempt.is_none();
        }
    }
}
