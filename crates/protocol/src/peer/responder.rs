//! Our side of a handshake that the peer initiates, and the checks before any handshake message is handled.

use std::net::SocketAddr;
use std::time::Duration;

use vpnd_crypto::key::SecretKey;
use zerocopy::IntoBytes;

use super::initiator::Try;
use super::session::Names;
use super::upgrade::Answering;
use super::{Diagnosis, Load, Peer, Transmit};
use crate::drop_reason::DropReason;
use crate::handshake::{Agreed, Claim, read_initiation};
use crate::high_water::{Verdict, is_ahead};
use crate::keyring::Session;
use crate::message::{self, INITIATION_LEN, Index, Initiation, MACS_LEN, Macs, Message};
use crate::session::{Pair, Role};
use crate::table::{Admitted, Arrival};
use crate::terms::Protocol;
use crate::time::{BootTime, Now};
use crate::timers::REKEY_TIMEOUT;
use crate::timestamp::Timestamp;

/// The mean interval at which initiations with newer timestamps are accepted.
const INITIATION_INTERVAL: Duration = Duration::from_millis(20);
/// The number accepted at once: an attacker who sends recorded initiations just ahead of the peer's new one
/// must not block that one.
const INITIATION_BURST: u32 = 32;
/// An initiation that may be a replay must not replace a response that the peer may still confirm. A peer waits
/// this long before it initiates again.
const DOUBTFUL_INTERVAL: Duration = REKEY_TIMEOUT;
/// The number of consecutive unconfirmed responses from which on they are reported.
const UNCONFIRMED_REPORTED_FROM: u32 = 3;

/// A copy of the last initiation is answered if it arrives within this time.
const COPIES_WITHIN: Duration = Duration::from_secs(1);
/// The number of unexpected source addresses at which copies of one initiation are answered.
const ANSWERED_AT: usize = 4;

/// The last initiation that was answered, and our response.
pub(super) struct Answered {
    initiation: Admitted,
    response: Vec<u8>,
    at: BootTime,
}

impl Answered {
    /// When the response was sent.
    pub(super) const fn at(&self) -> BootTime {
        self.at
    }

    /// Whether this is the same initiation again. Its mac2 may differ: without load it is not checked, so
    /// anybody can change it.
    fn is_copied_by(&self, now: BootTime, admitted: &Admitted) -> bool {
        let soon = now.saturating_since(self.at) < COPIES_WITHIN;
        soon && without_mac2(&self.initiation) == without_mac2(admitted)
    }
}

/// When initiations of the peer were accepted: a token bucket.
#[derive(Debug, Default)]
pub(super) struct Initiations {
    last: Option<BootTime>,
    /// When all tokens are back.
    full_at: BootTime,
}

impl Initiations {
    /// Whether no token is left.
    fn is_empty(&self, now: BootTime) -> bool {
        self.full_at.saturating_since(now) > INITIATION_INTERVAL * (INITIATION_BURST - 1)
    }

    fn accept(&mut self, now: BootTime) {
        self.last = Some(now);
        self.full_at = self.full_at.max(now) + INITIATION_INTERVAL;
    }
}

fn without_mac2(initiation: &Admitted) -> Option<&[u8]> {
    initiation.datagram().get(..INITIATION_LEN - MACS_LEN / 2)
}

impl Peer {
    pub(super) fn dispatch(
        &mut self,
        now: Now,
        load: Load,
        admitted: &Admitted,
    ) -> Result<(), DropReason> {
        if self.sleeps(now) {
            return Err(DropReason::Asleep);
        }
        match message::parse(admitted.datagram()).map_err(|_| DropReason::Malformed)? {
            Message::CookieReply(reply) => {
                let mut kept = self.identities.jars().map(|jar| jar.receive(now.boot, reply));
                kept.find(Result::is_ok).map(drop).ok_or(DropReason::BadCookie)
            }
            Message::Initiation(initiation) => {
                self.gate(now, load, admitted, initiation.sender, &initiation.macs)?;
                self.answer(now, admitted, initiation)
            }
            Message::Response(response) => {
                self.gate(now, load, admitted, response.sender, &response.macs)?;
                self.conclude(now, admitted.at(), response)
            }
            Message::Data { .. } => Err(DropReason::Malformed),
        }
    }

    /// Under load, admits only senders that have proved their address, and limits their rate.
    fn gate(
        &mut self,
        now: Now,
        load: Load,
        admitted: &Admitted,
        sender: Index,
        macs: &Macs,
    ) -> Result<(), DropReason> {
        if load == Load::Normal {
            return Ok(());
        }
        let (Arrival { from, local }, datagram) = (admitted.at(), admitted.datagram());
        let own = self.identities.addressed(datagram).ok_or(DropReason::BadMac1)?;
        let checker = self.identities.checker(own);
        if !checker.verify_mac2(now.boot, from, datagram) {
            let reply = checker.reply(now.boot, from, sender, macs, &mut self.rng);
            let transmit = Transmit { to: from, from: local };
            self.transmits.push_back((transmit, reply.as_bytes().to_vec()));
            return Err(DropReason::CookieDemanded);
        }
        let allowed = if self.is_expected_at(from) {
            self.limiter.allow_expected(now.boot, from)
        } else {
            self.limiter.allow(now.boot, from.ip())
        };
        if allowed { Ok(()) } else { Err(DropReason::RateLimited) }
    }

    /// Whether the peer is expected at this address: it is the path's destination or a configured one.
    pub(super) fn is_expected_at(&self, from: SocketAddr) -> bool {
        self.paths.current.is_some_and(|path| path.to == from) || self.paths.candidates.name(from)
    }

    /// Answers an initiation. Nothing changes before its timestamp is authenticated and found to be newer.
    fn answer(
        &mut self,
        now: Now,
        admitted: &Admitted,
        initiation: &Initiation,
    ) -> Result<(), DropReason> {
        if self.answer_copy(now, admitted) {
            return Ok(());
        }
        let at = admitted.at();
        let own = self.identities.addressed(admitted.datagram()).ok_or(DropReason::BadMac1)?;
        let (claim, pair) = self.verify(at, own, initiation)?;
        let stamp = claim.timestamp();
        self.check_stamp(now, pair, stamp)?;
        if self.should_initiate_back(now, at.from) {
            self.accept_stamp(now, pair, stamp);
            let first = Try { begun: now.boot, number: 1 };
            self.initiate(now, Some(at.from), pair, first);
            return Ok(());
        }
        let names = Names { local: self.unused_index(), remote: claim.remote_index(), pair };
        let ours = &self.terms[0];
        let ephemeral = SecretKey::generate(&mut self.rng);
        let keys = (self.identities.identity(pair), self.identities.remote(pair));
        self.key_log.note(keys, &ephemeral, [ours.psk()]);
        let (mut response, agreed) = claim
            .respond_under(&ephemeral, names.local, ours.psk())
            .map_err(|_| DropReason::Forged)?;
        let protocol = ours.protocol();
        self.accept_stamp(now, pair, stamp);
        let _awake = self.activity.called(now.boot, INITIATION_LEN);
        self.doubt_path(now);
        self.await_confirmation(now, at, protocol, (agreed, names));
        self.identities.jar(pair).seal_macs(now.boot, response.as_mut_bytes());
        let (initiation, response) = (admitted.clone(), response.as_bytes().to_vec());
        let transmit = Transmit { to: at.from, from: at.local };
        self.transmit(now, transmit, response.clone());
        self.answered = Some(Answered { initiation, response, at: now.boot });
        Ok(())
    }

    /// If this is a copy of the last answered initiation, sends the same response to its source. An attacker
    /// beside the path can have a copy from a forged source arrive before the original, so that only the forged
    /// address got the response. Nothing is sent if the address has had the response already, or if the session
    /// is in use. Only the address is stored, and the response is shorter than the copy. Returns whether the
    /// response was sent.
    fn answer_copy(&mut self, now: Now, admitted: &Admitted) -> bool {
        let at = admitted.at();
        let expected = self.is_expected_at(at.from);
        let last = self.answered.as_ref().filter(|last| last.is_copied_by(now.boot, admitted));
        let Some(last) = last else { return false };
        let bootstrap = self.answering.as_mut().map(Answering::session_mut);
        let waiting = bootstrap.into_iter().chain(self.keyring.next_mut());
        let mut is_new = false;
        for session in waiting.filter(|session| session.birth == last.at) {
            let room = expected || session.reached.len() < ANSWERED_AT;
            if room && !session.reached_at(at.from) {
                session.reached.push(at);
                is_new = true;
            }
        }
        if is_new {
            let response = last.response.clone();
            self.transmit(now, Transmit { to: at.from, from: at.local }, response);
        }
        is_new
    }

    fn verify(
        &mut self,
        at: Arrival,
        own: usize,
        initiation: &Initiation,
    ) -> Result<(Claim, Pair), DropReason> {
        let identity = self.identities.identity_at(own);
        let unproven = read_initiation(identity, initiation).map_err(|_| DropReason::Forged)?;
        let Some(remote) = self.identities.known(unproven.remote()) else {
            let (key, from) = (*unproven.remote(), at.from);
            self.events.push_back(Diagnosis::UnknownPeer { key, from }.into());
            return Err(DropReason::UnknownPeer);
        };
        let claim = unproven.prove(identity).map_err(|_| DropReason::Forged)?;
        Ok((claim, Pair { own, remote }))
    }

    fn check_stamp(&mut self, now: Now, pair: Pair, got: Timestamp) -> Result<(), DropReason> {
        let too_soon = match self.identities.stamps(pair).judge(now.wall, got) {
            Verdict::Newer => self.initiations.is_empty(now.boot),
            Verdict::Doubtful => self
                .initiations
                .last
                .is_some_and(|at| now.boot.saturating_since(at) < DOUBTFUL_INTERVAL),
            Verdict::Stale(last) => {
                self.events.push_back(Diagnosis::StaleInitiation { got, last }.into());
                return Err(DropReason::ReplayedInitiation);
            }
        };
        if too_soon { Err(DropReason::RateLimited) } else { Ok(()) }
    }

    fn accept_stamp(&mut self, now: Now, pair: Pair, stamp: Timestamp) {
        self.identities.stamps(pair).remember(now.wall, stamp);
        self.initiations.accept(now.boot);
        if is_ahead(now.wall, stamp) {
            self.events.push_back(Diagnosis::StampAhead { got: stamp }.into());
        }
    }

    fn await_confirmation(
        &mut self,
        now: Now,
        at: Arrival,
        protocol: Protocol,
        (agreed, names): (Agreed, Names),
    ) {
        match protocol.upgrade() {
            Some(profile) => self.listen(now, at, profile, (agreed, names)),
            None => {
                let origin = self.origin(Role::Responder, now.boot, names, protocol);
                let session = Session::new(&origin, &agreed.keys()).answered_to(vec![at]);
                self.keyring.answered(session);
            }
        }
        // Give the peer time to confirm before we initiate, but only for the first response in a row: recorded
        // initiations must not keep us from initiating.
        let hold_back = if self.unconfirmed_answers == 0 { REKEY_TIMEOUT } else { Duration::ZERO };
        self.yields_until = now.boot + hold_back;
        self.unconfirmed_answers += 1;
        if self.unconfirmed_answers >= UNCONFIRMED_REPORTED_FROM {
            self.events.push_back(Diagnosis::NeverConfirms(self.unconfirmed_answers).into());
        }
    }
}
