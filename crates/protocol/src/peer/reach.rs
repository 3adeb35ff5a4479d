//! Whether our datagrams leave this host and reach the peer: what is done when the host refuses to send
//! them, when routes change, and when nothing comes back.

use std::net::SocketAddr;
use std::time::Duration;

use super::initiator::Attempt;
use super::{Command, Peer, Transmit};
use crate::endpoint::renumbered;
use crate::time::{BootTime, Now};

/// An initiation that has left is not repeated sooner, whatever becomes of routes.
const REPEAT_AFTER: Duration = Duration::from_secs(1);
/// Nothing is heard for this long, and another port may help: what translates addresses forgets an
/// unanswered flow after 30 s, but only if nothing more is sent.
const OTHER_PORT_AFTER: Duration = Duration::from_secs(30);
/// The same where the port is fixed, and only silence helps.
const SILENT_AFTER: Duration = Duration::from_secs(15);
/// After this much silence the flow is forgotten.
const SILENT_FOR: Duration = Duration::from_secs(31);
/// A peer that starts meanwhile, and does not know where we are, waits for us: so it is done only this often.
const SILENCES_APART: Duration = Duration::from_secs(600);

/// The port that we send from.
#[derive(Debug)]
pub(super) struct Port {
    /// Since when it was good, or is tried.
    since: BootTime,
    /// How long nothing may be heard until another one, or silence, may help.
    patience: Duration,
}

impl Port {
    pub(super) fn new(is_fixed: bool, dead_after: Duration, now: BootTime) -> Self {
        let patience = if is_fixed { SILENT_AFTER } else { dead_after.min(OTHER_PORT_AFTER) };
        Self { since: now, patience }
    }

    /// It is good, or tried anew, from `since` on.
    pub(super) const fn renew(&mut self, since: BootTime) {
        self.since = since;
    }
}

impl Peer {
    /// Our own host refused to send a datagram to `to`. An initiation goes to the next address at once,
    /// to each at most once before the next try is due. Returns whether the tunnel is impaired: it is not
    /// where only a test of another address was refused, or an answer to a stranger, nor where the path to a new
    /// address has not proved itself and leads back to the last that has.
    pub fn send_refused(&mut self, now: Now, to: SocketAddr) -> bool {
        let called = self.attempt.as_ref().is_some_and(|attempt| attempt.to() == to);
        if self.endpoint() != Some(to) && self.refused_aside(now, to, called) {
            return false;
        }
        let turned_back = self.paths.turn_back(to);
        // An answer that never left says nothing about the peer.
        self.unconfirmed_answers = 0;
        if called {
            self.call_elsewhere(now);
        } else if self.attempt.is_none()
            && self.endpoint() == Some(to)
            && self.paths.addresses() > 1
        {
            self.paths.candidates.advance();
            self.wanted = true;
            self.handle_wake(now);
        }
        !turned_back
    }

    /// Whether what was refused at an address other than the path's did not serve to reach the peer: it tested that address,
    /// or answered what came from there, which anybody can send. Without a path and a call of ours such an answer is all there is.
    fn refused_aside(&mut self, now: Now, to: SocketAddr, called: bool) -> bool {
        if called {
            return self.call_refused(now);
        }
        let is_tested = self.paths.alternatives.refused(to) || self.paths.roaming.give_up_probe(to);
        let is_asked = self.attempt.as_ref().is_some_and(|attempt| attempt.asked().contains(&to));
        let is_called = self.attempt.is_some() || self.endpoint().is_some();
        is_tested || is_called && !is_asked
    }

    /// The initiation was refused: it goes to the next address that it has not been sent to.
    fn call_elsewhere(&mut self, now: Now) {
        let call = self.attempt.as_mut().and_then(Attempt::unanswered_call);
        let Some(call) = call else { return };
        call.refused = true;
        self.call_next(now);
    }

    /// Something about this host's routes, addresses or links has changed: what it refused before may
    /// leave now.
    pub fn retry_refused(&mut self, now: Now) {
        let call = self.attempt.as_mut().and_then(Attempt::unanswered_call);
        if let Some(call) = call.filter(|call| call.refused) {
            call.asked.clear();
            self.paths.candidates.settle();
            self.call_next(now);
        }
    }

    /// The route to where the peer is called has changed. Goes on from whichever address of ours the
    /// kernel chooses now, and lets the peer know.
    pub fn route_changed(&mut self, now: Now) {
        self.paths.forget_source(now.boot);
        let call = self.attempt.as_mut().and_then(Attempt::unanswered_call);
        let stale = call.is_some_and(|call| !call.refused && now.boot >= call.at + REPEAT_AFTER);
        if let Some(attempt) = self.attempt.take_if(|_| stale) {
            let (to, pair) = (attempt.to(), self.identities.calling());
            self.initiate(now, Some(to), pair, attempt.this_try());
        }
        self.speak(now);
        self.handle_wake(now);
    }

    /// Sends something harmless on the session, if there is one: whether it leaves is what matters.
    pub fn try_sending(&mut self, now: Now) {
        self.speak(now);
        self.handle_wake(now);
    }

    /// The interface of link-local addresses has another number.
    pub fn renumber(&mut self, now: Now, old: u32, new: u32) {
        let renumbered = |address| renumbered(address, old, new);
        self.paths.candidates.change(renumbered);
        if let Some(to) = self.endpoint().filter(|to| renumbered(*to) != *to) {
            self.paths.set(renumbered(to), None);
        }
        if self.attempt.as_ref().is_some_and(|attempt| renumbered(attempt.to()) != attempt.to()) {
            self.redirect();
        }
        self.handle_wake(now);
    }

    /// Where the peer is, and what is sent there from; or where it is called.
    pub fn heading(&self) -> Option<Transmit> {
        let path = self.paths.current.map(|path| Transmit { to: path.to, from: path.from });
        path.or_else(|| Some(Transmit { to: self.attempt.as_ref()?.to(), from: None }))
    }

    /// The peer calls again, and has not used our answer: it does not hear us. Whatever we send from, or
    /// to, may be why.
    pub(super) fn doubt_path(&mut self, now: Now) {
        let answered = self.answered.as_ref().map(|answered| answered.at());
        // A PING that was answered since: the answer has just been lost.
        let works = self.endpoint().is_some() && self.paths.answered_at > answered;
        if self.unconfirmed_answers > 0 && self.attempt.is_none() && !works {
            self.paths.forget_source(now.boot);
            self.paths.candidates.advance();
            self.wanted = true;
        }
    }

    /// Our tries have gone unheard for so long that another port may help, or silence where the port is fixed.
    pub(super) fn want_other_port(&mut self, now: Now, unanswered: &Attempt) {
        // What still comes on a session does not say that we are heard; an answer would.
        let since = self.port.since.max(unanswered.this_try().begun);
        if !unanswered.was_refused() && now.boot >= since + self.port.patience {
            self.port.renew(now.boot);
            self.events.push_back(Command::ChangePort.into());
        }
    }

    /// Sends no initiation for a while, after [`Command::ChangePort`] where the port is fixed; says whether it does. With a
    /// session data goes on to be sent, and waiting would be in vain.
    pub fn fall_silent(&mut self, now: Now) -> bool {
        let Some(attempt) = self.attempt.as_mut().filter(|_| self.keyring.current().is_none())
        else {
            return false;
        };
        attempt.wait(now.boot + SILENT_FOR);
        self.port.renew(now.boot + SILENCES_APART);
        true
    }
}
