//! What to do when this host refuses to send our datagrams, when routes change, and when the peer does not
//! answer.

use std::net::SocketAddr;
use std::time::Duration;

use super::initiator::Attempt;
use super::{Command, Peer, Transmit};
use crate::endpoint::renumbered;
use crate::time::{BootTime, Now};

/// An initiation that was sent is not repeated sooner than this, even if routes change.
const REPEAT_AFTER: Duration = Duration::from_secs(1);
/// If nothing is received for this long, another source port may help: a NAT forgets an unanswered flow after
/// 30 s, but only if nothing more is sent on it.
const OTHER_PORT_AFTER: Duration = Duration::from_secs(30);
/// The same if the port is fixed, so that only a pause in sending helps.
const SILENT_AFTER: Duration = Duration::from_secs(15);
/// After a pause of this length the NAT has forgotten the flow.
const SILENT_FOR: Duration = Duration::from_secs(31);
/// The least time between such pauses: a peer that starts during one, and does not know our address, has to
/// wait for us.
const SILENCES_APART: Duration = Duration::from_secs(600);

/// A session that ran out in a suspend is found so at its end, maybe before the suspend itself is.
const JUST_NOW: Duration = Duration::from_secs(1);

/// The source port of our datagrams.
#[derive(Debug)]
pub(super) struct Port {
    is_fixed: bool,
    /// When it last worked, or when it was first tried.
    since: BootTime,
    /// How long nothing is received until another port, or a pause, may help.
    patience: Duration,
}

impl Port {
    pub(super) fn new(is_fixed: bool, dead_after: Duration, now: BootTime) -> Self {
        Self { is_fixed, since: now, patience: Self::patience(is_fixed, dead_after) }
    }

    fn patience(is_fixed: bool, dead_after: Duration) -> Duration {
        if is_fixed { SILENT_AFTER } else { dead_after.min(OTHER_PORT_AFTER) }
    }

    /// The peer counts as dead after another time.
    pub(super) fn retune(&mut self, dead_after: Duration) {
        self.patience = Self::patience(self.is_fixed, dead_after);
    }

    /// The port works, or is tried anew, from `since` on.
    pub(super) const fn renew(&mut self, since: BootTime) {
        self.since = since;
    }
}

impl Peer {
    /// Our own host refused to send a datagram to `to`. A pending initiation is sent to the next address at
    /// once, to each address at most once until the next try is due. Returns whether the tunnel is impaired. It
    /// is not if only a test of another address or an answer to a stranger was refused, nor if the path returns
    /// from a new address that was not validated to the last validated one.
    pub fn send_refused(&mut self, now: Now, to: SocketAddr) -> bool {
        let called = self.attempt.as_ref().is_some_and(|attempt| attempt.to() == to);
        if self.endpoint() != Some(to) && self.refused_aside(now, to, called) {
            return false;
        }
        let turned_back = self.paths.turn_back(to);
        // Our response may not have been sent at all, so the peer is not to blame for not confirming it.
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

    /// Whether a datagram that was refused at another address than the path's did not serve to reach the peer: it tested
    /// that address, or answered a datagram from there, which anybody can send. Without a path and a handshake of ours,
    /// such an answer is the only sign of a fault.
    fn refused_aside(&mut self, now: Now, to: SocketAddr, called: bool) -> bool {
        if called {
            return self.call_refused(now);
        }
        let is_tested = self.paths.alternatives.refused(to) || self.paths.roaming.give_up_probe(to);
        let is_asked = self.attempt.as_ref().is_some_and(|attempt| attempt.asked().contains(&to));
        let is_called = self.attempt.is_some() || self.endpoint().is_some();
        is_tested || is_called && !is_asked
    }

    /// The initiation was refused: sends it to the next address that it was not sent to yet.
    fn call_elsewhere(&mut self, now: Now) {
        let call = self.attempt.as_mut().and_then(Attempt::unanswered_call);
        let Some(call) = call else { return };
        call.refused = true;
        self.call_next(now);
    }

    /// This host's routes, addresses or links have changed: a datagram that it refused to send may be accepted
    /// now.
    pub fn retry_refused(&mut self, now: Now) {
        let call = self.attempt.as_mut().and_then(Attempt::unanswered_call);
        if let Some(call) = call.filter(|call| call.refused) {
            call.asked.clear();
            self.paths.candidates.settle();
            self.call_next(now);
        }
    }

    /// The route to the peer has changed. Continues with the source address that the kernel chooses now, and
    /// sends a datagram so that the peer learns it.
    pub fn route_changed(&mut self, now: Now) {
        self.paths.forget_chosen();
        self.paths.forget_source(now.boot);
        let call = self.attempt.as_mut().and_then(Attempt::unanswered_call);
        let stale = call.is_some_and(|call| !call.refused && now.boot >= call.at + REPEAT_AFTER);
        if let Some(attempt) = self.attempt.take_if(|_| stale) {
            let (to, pair) = (attempt.to(), self.identities.calling());
            self.initiate(now, Some(to), pair, attempt.this_try());
        }
        self.send_sign_of_life(now);
        self.handle_wake(now);
    }

    /// Whether the kernel itself chooses this source for this destination.
    pub fn source_chosen(&mut self, way: Transmit, is_kernels: bool) {
        self.paths.note_chosen(way, is_kernels);
    }

    /// This host was suspended. The network may be another one, the peer may have given the session up, and a PING that
    /// was under way would measure the suspend: a handshake is started at once, and the path is measured anew.
    pub fn resumed(&mut self, now: Now) {
        self.wake_up();
        self.follow_flags(now);
        let ran_out_now = self.ran_out.is_some_and(|at| now.boot < at + JUST_NOW);
        self.wanted |= self.keyring.current().is_some() || ran_out_now;
        // What was answered a moment ago may have waited through the suspend, and the peer with it.
        self.yields_until = now.boot;
        self.paths.gauge.begin();
        self.window.forget_round_trip();
        self.path_changed(now);
        self.handle_wake(now);
    }

    /// This machine was copied, and the copy may use the same session keys with the same counters. All sessions are dropped,
    /// and a handshake is started at once.
    pub fn copied(&mut self, now: Now) {
        // First of all: what is sent from here on is not encrypted under a key that the copy has too.
        self.drop_sessions();
        self.handle_wake(now);
    }

    /// Drops all session keys, and what was to be sent with them. A new session is wanted if there was one, or a handshake.
    pub(super) fn drop_sessions(&mut self) {
        let keyring = std::mem::take(&mut self.keyring);
        self.transmits.clear();
        let was_wanted = self.attempt.is_some() || self.answering.is_some();
        self.wanted |= keyring.opening().next().is_some() || was_wanted;
        (self.attempt, self.answering, self.answered) = (None, None, None);
        self.forget_announcements();
    }

    /// Sends a sign of life, if there is a session, only to see whether this host can send.
    pub fn try_sending(&mut self, now: Now) {
        self.send_sign_of_life(now);
        self.handle_wake(now);
    }

    /// The interface of link-local addresses has changed its index from `old` to `new`.
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

    /// The path's destination and source, or else the destination of the pending handshake.
    pub fn heading(&self) -> Option<Transmit> {
        let path = self.paths.current.map(|path| Transmit { to: path.to, from: path.from });
        path.or_else(|| Some(Transmit { to: self.attempt.as_ref()?.to(), from: None }))
    }

    /// The peer initiates again without having used our response, so it does not receive our datagrams. The
    /// reason may be their source or destination address.
    pub(super) fn doubt_path(&mut self, now: Now) {
        let answered = self.answered.as_ref().map(|answered| answered.at());
        // If a PING was answered since, the path works and only the response was lost.
        let works = self.endpoint().is_some() && self.paths.answered_at > answered;
        if self.unconfirmed_answers > 0 && self.attempt.is_none() && !works {
            self.paths.forget_source(now.boot);
            self.paths.candidates.advance();
            self.wanted = true;
        }
    }

    /// If our tries have been unanswered for long, requests another source port, or a pause if the port is
    /// fixed.
    pub(super) fn want_other_port(&mut self, now: Now, unanswered: &Attempt) {
        // Datagrams on a session do not show that the peer receives ours. Only a response does.
        let since = self.port.since.max(unanswered.this_try().begun);
        if !unanswered.was_refused() && now.boot >= since + self.port.patience {
            self.change_port(now);
        }
    }

    /// The peer is dead and has not announced its end: a NAT may translate our flow to an address that leads nowhere, and
    /// our own datagrams keep that entry alive. The next tries come from another port, the first of them soon.
    pub(super) fn leave_port(&mut self, now: Now) {
        let is_refused = self.attempt.as_ref().is_some_and(Attempt::was_refused);
        let is_new = now.boot < self.port.since + self.port.patience;
        if !self.port.is_fixed && !is_refused && !is_new {
            self.change_port(now);
            self.initiate_soon(now);
        }
    }

    fn change_port(&mut self, now: Now) {
        self.port.renew(now.boot);
        self.events.push_back(Command::ChangePort.into());
    }

    /// The next try is due as soon as the last one may be repeated.
    fn initiate_soon(&mut self, now: Now) {
        let last = self.attempt.as_ref().and_then(Attempt::call).map(|call| call.at);
        let at = last.map_or(now.boot, |last| now.boot.max(last + REPEAT_AFTER));
        self.initiate_from = self.initiate_from.min(at);
        match &mut self.attempt {
            Some(attempt) => attempt.hurry(at),
            None => self.wanted = true,
        }
    }

    /// Sends no initiation for a while, as the answer to [`Command::ChangePort`] if the port is fixed. Returns
    /// whether it does: while there is a session, data is sent anyway, so a pause would be useless.
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
