//! Our side of a handshake that we initiate: one attempt, its tries, and the response.

use std::net::{IpAddr, SocketAddr};

use zerocopy::IntoBytes;

use super::doubt::Doubt;
use super::race::APART;
use super::session::Names;
use super::upgrade::Asking;
use super::{Change, Command, Diagnosis, Peer, Transmit};
use crate::drop_reason::DropReason;
use crate::handshake::{Answer, Initiator, SessionKeys};
use crate::keyring::Session;
use crate::message::{Index, RESPONSE_LEN, Response};
use crate::session::{Origin, Pair, Role};
use crate::table::Arrival;
use crate::terms::Terms;
use crate::time::{BootTime, Now};
use crate::timers::{MAX_TRIES, REKEY_TIMEOUT};
use crate::timestamp::Timestamp;

/// How long an initiation waits for its timestamp to be stored.
const FLOOR_WITHIN: std::time::Duration = std::time::Duration::from_millis(500);
/// The number of unanswered tries before another pair of keys is tried.
const TRIES_UNDER_THE_NEXT: u32 = 3;
/// While datagrams of the peer arrive, fewer unanswered tries than this may have been lost by chance, and the
/// next one is sent to the same address.
const TRIES_LOST_BY_CHANCE: u32 = 3;
/// After a crossing both ends are initiators; the one with the smaller public key rekeys this
/// much later, so that they do not cross again.
const CROSSING_YIELDS: std::time::Duration = std::time::Duration::from_secs(10);

/// A handshake that we initiate, up to the session on which data may flow.
pub(super) struct Attempt {
    step: Step,
    called: Called,
    tries: u32,
    retry_at: BootTime,
}

/// One of the tries of an attempt.
pub(super) struct Try {
    pub(super) begun: BootTime,
    /// From 1.
    pub(super) number: u32,
}

/// The destination, start and keys of an attempt.
#[derive(Clone, Copy)]
pub(super) struct Called {
    to: SocketAddr,
    begun: BootTime,
    pair: Pair,
    /// It only tests whether the peer answers at this address, and does not move the path.
    is_test: bool,
}

/// The progress of an attempt.
enum Step {
    /// Message 1 waits for message 2.
    Calling { initiator: Initiator, call: Call },
    /// Message 2 has arrived; the session waits for its upgrade.
    Upgrading(Box<Asking>),
    /// The upgrade failed; the next try is due.
    Lapsed,
}

/// An initiation. It is kept until it is answered: if our own host refuses to send it, it may be sent to
/// another address.
pub(super) struct Call {
    stamp: Timestamp,
    /// It is sent once its timestamp is stored, or at this time at the latest.
    held_until: Option<BootTime>,
    datagram: Vec<u8>,
    /// Our own host refused to send it.
    pub(super) refused: bool,
    /// When it was last sent, even if the host refused it.
    pub(super) at: BootTime,
    /// The addresses that it was sent to.
    pub(super) asked: Vec<SocketAddr>,
    /// When it is sent to the next address as well.
    pub(super) spreads_at: Option<BootTime>,
}

impl Attempt {
    /// Our index of the handshake or session.
    pub(super) fn index(&self) -> Option<Index> {
        match &self.step {
            Step::Calling { initiator, .. } => Some(initiator.index()),
            Step::Upgrading(asking) => Some(asking.opening().index()),
            Step::Lapsed => None,
        }
    }

    /// The upgrade that the attempt waits for.
    pub(super) fn asking(&self) -> Option<&Asking> {
        match &self.step {
            Step::Calling { .. } | Step::Lapsed => None,
            Step::Upgrading(asking) => Some(asking),
        }
    }

    pub(super) fn asking_mut(&mut self) -> Option<&mut Asking> {
        match &mut self.step {
            Step::Calling { .. } | Step::Lapsed => None,
            Step::Upgrading(asking) => Some(asking),
        }
    }

    /// Whether its upgrade took too long.
    pub(super) fn is_late(&self, now: BootTime) -> bool {
        self.asking().is_some_and(|asking| now >= asking.given_up_at())
    }

    /// Ends the wait for an upgrade, whether it succeeded or not.
    pub(super) fn lapse(&mut self) -> Option<Box<Asking>> {
        match std::mem::replace(&mut self.step, Step::Lapsed) {
            Step::Upgrading(asking) => Some(asking),
            Step::Calling { .. } | Step::Lapsed => None,
        }
    }

    pub(super) const fn called(&self) -> Called {
        self.called
    }

    pub(super) fn call(&self) -> Option<&Call> {
        match &self.step {
            Step::Calling { call, .. } => Some(call),
            Step::Upgrading(_) | Step::Lapsed => None,
        }
    }

    fn call_mut(&mut self) -> Option<&mut Call> {
        match &mut self.step {
            Step::Calling { call, .. } => Some(call),
            Step::Upgrading(_) | Step::Lapsed => None,
        }
    }

    /// The initiation that was sent and waits for its response.
    pub(super) fn unanswered_call(&mut self) -> Option<&mut Call> {
        self.call_mut().filter(|call| call.held_until.is_none())
    }

    /// The addresses that the try was sent to.
    pub(super) fn asked(&self) -> &[SocketAddr] {
        self.call().map_or_else(|| std::slice::from_ref(&self.called.to), |call| &call.asked)
    }

    /// Sets the next address of the try.
    pub(super) const fn go_to(&mut self, to: SocketAddr) {
        self.called.to = to;
    }

    /// Makes this a test handshake, which only tests whether the peer answers.
    pub(super) const fn make_test(&mut self) {
        self.called.is_test = true;
    }

    /// Whether this only tests whether the peer answers.
    pub(super) const fn is_test(&self) -> bool {
        self.called.is_test
    }

    /// Makes this a regular handshake, which moves the path, even if it began as a test.
    pub(super) const fn make_regular(&mut self) {
        self.called.is_test = false;
    }

    /// The response came from the address `from`. If the initiation was sent neither there nor to that host,
    /// the last address that it was sent to is the most likely one.
    fn answered_from(&mut self, from: SocketAddr) {
        let asked = self.asked();
        let same_host = |to: &&SocketAddr| to.ip() == from.ip();
        let known = asked.iter().find(|to| **to == from).or_else(|| asked.iter().find(same_host));
        self.called.to = known.copied().unwrap_or(self.called.to);
    }

    /// The number of this try, and when the first one began.
    pub(super) const fn this_try(&self) -> Try {
        Try { begun: self.called.begun, number: self.tries }
    }

    /// Whether our own host refused to send the initiation.
    pub(super) fn was_refused(&self) -> bool {
        self.call().is_some_and(|call| call.refused)
    }

    pub(super) const fn tries(&self) -> u32 {
        self.tries
    }

    /// Sets when the next try is due.
    pub(super) fn wait(&mut self, until: BootTime) {
        self.retry_at = until;
    }

    /// The next try is due now.
    pub(super) fn hurry(&mut self, now: BootTime) {
        self.retry_at = self.retry_at.min(now);
    }

    pub(super) const fn to(&self) -> SocketAddr {
        self.called.to
    }

    /// The same attempt, after message 2 has arrived.
    pub(super) fn upgrading(self, asking: Asking, retry_at: BootTime) -> Self {
        Self { step: Step::Upgrading(Box::new(asking)), retry_at, ..self }
    }

    /// Our index of a session that does not exist yet.
    pub(super) fn promised(&self) -> Option<Index> {
        match &self.step {
            Step::Calling { initiator, .. } => Some(initiator.index()),
            Step::Upgrading(asking) => Some(asking.promised()),
            Step::Lapsed => None,
        }
    }
}

impl Peer {
    /// The timestamp of [`Command::KeepFloor`] is stored, or cannot be: its initiation is sent.
    pub fn floor_kept(&mut self, now: Now, stamp: Timestamp) {
        if self.held().is_some_and(|call| call.stamp == stamp) {
            self.release(now);
            self.handle_wake(now);
        }
    }

    /// When the next initiation is due.
    pub(super) fn initiation_deadline(&self) -> Option<BootTime> {
        match &self.attempt {
            Some(attempt) => Some(attempt.retry_at.max(self.initiation_from())),
            None => {
                let wanted = self.wanted || self.life.is_missed();
                (wanted && self.paths.target().is_some()).then_some(self.initiation_from())
            }
        }
    }

    /// The earliest time of the next initiation.
    pub(super) fn initiation_from(&self) -> BootTime {
        self.initiate_from.max(self.yields_until).max(self.sleeps_until)
    }

    /// When an initiation is sent although its timestamp is not stored yet.
    pub(super) fn floor_deadline(&self) -> Option<BootTime> {
        self.held()?.held_until
    }

    /// Starts, repeats or ends an attempt, whichever is due.
    pub(super) fn pursue_handshake(&mut self, now: Now) {
        if self.floor_deadline().is_some_and(|until| now.boot >= until) {
            self.release(now);
        }
        self.spread(now);
        // This loops twice if an attempt that is no longer needed ends and another one is wanted.
        while self.initiation_deadline().is_some_and(|due| now.boot >= due) {
            match self.attempt.take() {
                None => {
                    let first = Try { begun: now.boot, number: 1 };
                    self.initiate(now, self.paths.target(), self.identities.calling(), first);
                }
                Some(attempt) => self.retry(now, &attempt),
            }
        }
    }

    fn retry(&mut self, now: Now, unanswered: &Attempt) {
        if unanswered.called.is_test {
            return self.note_test(now, unanswered.to(), false);
        }
        if self.established >= Some(unanswered.called.begun) && self.renewing.is_none() {
            return;
        }
        if unanswered.tries == MAX_TRIES {
            (self.wanted, self.renewing) = (false, None);
            self.identities.fall_back();
            self.activity.want_handshake.take();
            self.events.push_back(Change::GaveUp.into());
            self.give_up_on_peer(now, unanswered.called.begun);
            return;
        }
        self.choose_keys(unanswered.tries);
        self.doubt_where_it_went(now, unanswered);
        let next = Try { begun: unanswered.called.begun, number: unanswered.tries + 1 };
        self.initiate(now, self.paths.target(), self.identities.calling(), next);
    }

    /// An unanswered initiation may have been lost by chance, or its source or destination address may not
    /// work: chooses others for the next try.
    fn doubt_where_it_went(&mut self, now: Now, unanswered: &Attempt) {
        let sent_at = unanswered.call().map(|call| call.at);
        let in_use = self.keyring.current().is_some() && self.endpoint() == Some(unanswered.to());
        if in_use && sent_at.is_some_and(|at| self.paths.answered_at >= Some(at)) {
            return;
        }
        self.want_other_port(now, unanswered);
        let turned_back = unanswered.asked().iter().any(|to| self.paths.turn_back(*to));
        let heard = sent_at.is_some_and(|at| self.activity.timestamps().received >= Some(at));
        let chance = in_use && heard && unanswered.tries < TRIES_LOST_BY_CHANCE;
        if !turned_back && !chance {
            self.paths.candidates.advance();
        }
        self.paths.forget_source(now.boot);
    }

    /// If the peer does not know our next key, returns to the previous one, so that the session is not lost. If
    /// the pair that worked is unanswered too, the peer may have removed one of the keys, so others are tried.
    fn choose_keys(&mut self, unanswered: u32) {
        if unanswered == TRIES_UNDER_THE_NEXT && self.identities.fall_back() {
            self.renewing = None;
            self.events.push_back(Diagnosis::RotationUnanswered.into());
        } else if unanswered > TRIES_UNDER_THE_NEXT {
            self.identities.try_another();
        }
    }

    /// Whether to answer an initiation with one of ours. If the peer initiates again, our response was not
    /// under the terms that it expects. Only the initiator can adapt to the other's terms, so we initiate,
    /// unless we do so already. Our initiation is as long as the peer's.
    pub(super) fn should_initiate_back(&self, now: Now, to: SocketAddr) -> bool {
        let may = self.attempt.is_none()
            && now.boot >= self.initiation_from()
            && self.paths.may_be_at(to);
        self.adapts() && self.unconfirmed_answers > 0 && may
    }

    pub(super) fn initiate(
        &mut self,
        now: Now,
        to: Option<SocketAddr>,
        pair: Pair,
        Try { begun, number: tries }: Try,
    ) {
        self.wanted = false;
        let Some(to) = to else { return };
        self.initiate_from = now.boot + REKEY_TIMEOUT;
        let index = self.unused_index();
        let stamp = self.stamper.next(now.wall);
        let (identity, remote) = (self.identities.identity(pair), self.identities.remote(pair));
        let begun_handshake = Initiator::initiate(identity, remote, index, stamp, &mut self.rng);
        // The configuration already rejects public keys for which this fails.
        let Ok((initiator, mut initiation)) = begun_handshake else { return };
        let preshared = self.terms.iter().map(Terms::psk);
        self.key_log.note((identity, remote), initiator.ephemeral(), preshared);
        self.identities.jar(pair).seal_macs(now.boot, initiation.as_mut_bytes());
        let call = Call {
            stamp,
            held_until: Some(now.boot + FLOOR_WITHIN),
            datagram: initiation.as_bytes().to_vec(),
            refused: false,
            at: now.boot,
            asked: Vec::new(),
            spreads_at: None,
        };
        let retry_at = now.boot + (REKEY_TIMEOUT + self.jitter());
        let step = Step::Calling { initiator, call };
        self.attempt = Some(Attempt {
            step,
            called: Called { to, begun, pair, is_test: false },
            tries,
            retry_at,
        });
        self.events.push_back(Command::KeepFloor(stamp).into());
    }

    fn release(&mut self, now: Now) {
        let Some(call) = self.attempt.as_mut().and_then(Attempt::call_mut) else { return };
        call.held_until = None;
        self.send_call(now);
    }

    /// Sends the pending initiation to the attempt's current address.
    pub(super) fn send_call(&mut self, now: Now) {
        let spreads_at = self.spreads().then_some(now.boot + APART);
        let Some(attempt) = &mut self.attempt else { return };
        let (to, number) = (attempt.to(), attempt.tries);
        let Some(call) = attempt.call_mut() else { return };
        (call.refused, call.at, call.spreads_at) = (false, now.boot, spreads_at);
        call.asked.push(to);
        let datagram = call.datagram.clone();
        let is_test = attempt.is_test();
        let from = self.paths.current.filter(|path| path.to == to).and_then(|path| path.from);
        if is_test {
            // The peer hears nothing of it on the path in use.
            self.transmit_aside(Transmit { to, from }, datagram);
        } else {
            self.transmit(now, Transmit { to, from }, datagram);
        }
        self.events.push_back(Change::Initiating { to, attempt: number }.into());
    }

    /// Directs the pending attempt to the address of the next try.
    pub(super) fn redirect(&mut self) {
        let target = self.paths.target();
        if let (Some(attempt), Some(to)) = (&mut self.attempt, target) {
            attempt.called.to = to;
        }
    }

    fn held(&self) -> Option<&Call> {
        self.attempt.as_ref()?.call().filter(|call| call.held_until.is_some())
    }

    /// Takes the response to our initiation.
    pub(super) fn conclude(
        &mut self,
        now: Now,
        at: Arrival,
        response: &Response,
    ) -> Result<(), DropReason> {
        let Answer { agreed, remote_index, candidate } = self.open_answer(response)?;
        let Some(mut attempt) = self.attempt.take() else {
            return Err(DropReason::UnexpectedResponse);
        };
        attempt.answered_from(at.from);
        if !attempt.is_test() {
            self.note_received(now, RESPONSE_LEN);
        }
        let pair = attempt.called.pair;
        self.identities.jar(pair).answered();
        let names = Names { local: response.receiver, remote: remote_index, pair };
        let protocol = self.terms[candidate].protocol();
        match protocol.upgrade() {
            Some(profile) => self.ask(now, attempt, profile, (agreed, names, at.local)),
            None => {
                self.paths.doubt = Doubt::of(now.boot, attempt.to(), attempt.asked());
                let origin = self.origin(Role::Initiator, now.boot, names, protocol);
                self.take_up(now, attempt.called, at.local, &origin, &agreed.keys());
            }
        }
        Ok(())
    }

    fn open_answer(&mut self, response: &Response) -> Result<Answer, DropReason> {
        let Some(Attempt { step: Step::Calling { initiator, .. }, called, .. }) =
            self.attempt.as_ref().filter(|attempt| attempt.index() == Some(response.receiver))
        else {
            return Err(DropReason::UnexpectedResponse);
        };
        let psks = self.terms.iter().map(Terms::psk);
        initiator.open_response(self.identities.identity(called.pair), psks, response).map_err(
            |_| {
                // It may be forged, and the real response may still arrive.
                self.events.push_back(Diagnosis::AnswerDoesNotOpen.into());
                DropReason::ResponseDoesNotOpen
            },
        )
    }

    /// The session that we initiated is established: it becomes current.
    pub(super) fn take_up(
        &mut self,
        now: Now,
        called: Called,
        local: Option<IpAddr>,
        origin: &Origin,
        keys: &SessionKeys,
    ) {
        // The peer's own session may be confirmed already, if its datagrams overtook this response.
        let crossed = self.keyring.next().is_some() || self.established >= Some(called.begun);
        let own = self.identities.identity(called.pair).public();
        let yields = crossed && own < self.identities.remote(called.pair);
        let mut origin = *origin;
        if let Some(after) = origin.rekey_after.as_mut().filter(|_| yields) {
            *after += CROSSING_YIELDS;
        }
        self.keyring.initiated(Session::new(&origin, keys));
        // Another handshake may be wanted because the path in use seems dead.
        let wanted = called.is_test && self.wanted;
        if called.is_test {
            self.note_test(now, called.to, true);
        } else {
            self.note_choice(now.boot, called.to);
            // The peer received our initiation at this address, no matter where its response came from.
            self.paths.settle_at(now.boot, called.to, local);
            self.reached(now);
            self.greet_others(now);
        }
        self.establish(now, Role::Initiator);
        self.wanted |= wanted;
        // Confirms the session to the peer, which must not send data before.
        self.greet(now);
    }
}
