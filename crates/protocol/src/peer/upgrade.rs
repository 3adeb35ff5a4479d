//! The post-quantum upgrade. With it, a handshake makes only a *bootstrap* session, on which the initiator
//! sends an ML-KEM key and the responder a ciphertext. Data flows on the upgraded session, whose keys both
//! ends derive from the handshake and the ciphertext together. Nothing else is ever sent or accepted on a
//! bootstrap session, and its sealing key is never published.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use vpnd_crypto::kem::{DecapsulationKey, EncapsulationKey};

use super::initiator::Attempt;
use super::session::Names;
use super::{Diagnosis, Peer, Transmit};
use crate::drop_reason::DropReason;
use crate::frame::{ControlFrame, PqInit, PqInitAssembly, PqInitChunk, PqResp};
use crate::handshake::{Agreed, Exporter};
use crate::keyring::Session;
use crate::message::Index;
use crate::profile::Profile;
use crate::receive_order::Framed;
use crate::session::{Contents, Generation, OpeningKey, Origin, Role};
use crate::table::Arrival;
use crate::terms::Protocol;
use crate::time::{BootTime, Now};
use crate::upgrade::Transcript;

/// A bootstrap session that was not upgraded within this time is given up.
pub(super) const UPGRADE_WITHIN: Duration = Duration::from_secs(15);
/// The age of the bootstrap session at which the key is sent again. The age doubles for each further time.
const RESEND_AFTER: Duration = Duration::from_secs(1);

/// The results of the handshake for the upgrade, to be used once.
struct Bootstrap {
    profile: Profile,
    exporter: Exporter,
    handshake_hash: [u8; 32],
}

/// The initiator's side: waits for the ciphertext.
pub(super) struct Asking {
    session: Session,
    bootstrap: Bootstrap,
    private: DecapsulationKey,
    init: Box<PqInit>,
    /// Our address at which message 2 arrived.
    local: Option<IpAddr>,
    resend_at: BootTime,
    pause: Duration,
}

/// The responder's side: waits for the key, then for the upgraded session to be used.
pub(super) struct Answering {
    session: Session,
    bootstrap: Option<Bootstrap>,
    key: PqInitAssembly,
    /// The answer to the key, which is repeated whenever the key is, and the session that it made.
    answer: Option<(Vec<u8>, Generation)>,
    /// Which chunks of the key have arrived since the answer was last sent.
    asked: [bool; 2],
}

impl Asking {
    pub(super) fn opening(&self) -> &Arc<OpeningKey> {
        &self.session.opening
    }

    pub(super) fn given_up_at(&self) -> BootTime {
        self.session.birth + UPGRADE_WITHIN
    }

    /// Our index of the upgraded session.
    pub(super) fn promised(&self) -> Index {
        self.init.index
    }
}

impl Answering {
    pub(super) fn opening(&self) -> &Arc<OpeningKey> {
        &self.session.opening
    }

    pub(super) fn session_mut(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Whether this is the upgraded session.
    pub(super) fn made(&self, generation: Generation) -> bool {
        self.answer.as_ref().is_some_and(|(_, made)| *made == generation)
    }

    fn given_up_at(&self) -> BootTime {
        self.session.birth + UPGRADE_WITHIN
    }
}

/// The initiator.
impl Peer {
    /// Message 2 has arrived: creates the bootstrap session and sends the key at once.
    pub(super) fn ask(
        &mut self,
        now: Now,
        attempt: Attempt,
        profile: Profile,
        (agreed, names, local): (Agreed, Names, Option<IpAddr>),
    ) {
        let (session, bootstrap) = self.bootstrap(now, Role::Initiator, profile, agreed, names);
        let private = DecapsulationKey::generate(&mut self.rng);
        let index = self.unused_index_but(names.local);
        let init = Box::new(PqInit::new(index, private.encapsulation_key()));
        let (resend_at, pause) = (now.boot, RESEND_AFTER);
        let asking = Asking { session, bootstrap, private, init, local, resend_at, pause };
        self.attempt = Some(attempt.upgrading(asking, now.boot + UPGRADE_WITHIN));
    }

    /// Sends the key again if the answer takes too long, and drops upgrades that were given up.
    pub(super) fn pursue_upgrade(&mut self, now: Now) {
        if self.resend_deadline().is_some_and(|at| now.boot >= at) {
            self.send_key(now);
        }
        let late = |answering: &mut Answering| now.boot >= answering.given_up_at();
        self.answering.take_if(late);
        if let Some(attempt) = self.attempt.as_mut().filter(|attempt| attempt.is_late(now.boot)) {
            attempt.lapse();
        }
    }

    /// When the upgrade needs attention.
    pub(super) fn upgrade_deadline(&self) -> Option<BootTime> {
        let given_up = self.answering.as_ref().map(Answering::given_up_at);
        let late = self.attempt.as_ref().and_then(Attempt::asking).map(Asking::given_up_at);
        [self.resend_deadline(), given_up, late].into_iter().flatten().min()
    }

    fn resend_deadline(&self) -> Option<BootTime> {
        self.attempt.as_ref()?.asking().map(|asking| asking.resend_at)
    }

    fn send_key(&mut self, now: Now) {
        let Some(attempt) = &mut self.attempt else { return };
        let to = attempt.to();
        let Some(asking) = attempt.asking_mut() else { return };
        // Skip the times that passed while the host was suspended.
        while asking.session.birth + asking.pause <= now.boot {
            asking.pause *= 2;
        }
        asking.resend_at = asking.session.birth + asking.pause;
        let frames = asking.init.chunks().map(|chunk| ControlFrame::begin().pq_init(chunk).end());
        let (sealing, from) = (Arc::clone(&asking.session.sealing), asking.local);
        for frame in frames {
            self.send_sealed(now, &sealing, Transmit { to, from }, &frame);
        }
    }

    /// Takes the responder's answer, and establishes the upgraded session.
    pub(super) fn take_answer(
        &mut self,
        now: Now,
        framed: &Framed,
        answer: &PqResp,
    ) -> Result<(), DropReason> {
        let ours = |attempt: &Attempt| {
            attempt.asking().is_some_and(|a| a.opening().generation() == framed.generation)
        };
        let attempt = self.attempt.as_mut().filter(|attempt| ours(attempt));
        let attempt = attempt.ok_or(DropReason::NotUpgraded)?;
        let called = attempt.called();
        let asking = attempt.lapse().ok_or(DropReason::NotUpgraded)?;
        let Asking { session, bootstrap, private, init, local, .. } = *asking;
        let transcript = Transcript {
            handshake_hash: &bootstrap.handshake_hash,
            encapsulation_key: &init.encapsulation_key,
            ciphertext: &answer.ciphertext,
            initiator: init.index,
            responder: answer.index,
            profile: bootstrap.profile,
        };
        let upgraded =
            transcript.upgrade(bootstrap.exporter, private.decapsulate(&answer.ciphertext));
        let Ok(keys) = upgraded.confirm(&answer.mac) else {
            // The attempt continues with its next try.
            self.events.push_back(Diagnosis::UpgradeFailed.into());
            return Err(DropReason::UpgradeFailed);
        };
        self.attempt = None;
        let names = Names { local: init.index, remote: answer.index, pair: session.pair };
        let origin = self.upgraded(&session, Role::Initiator, names, bootstrap.profile);
        self.take_up(now, called, local, &origin, &keys);
        Ok(())
    }
}

/// The responder.
impl Peer {
    /// Message 2 is about to be sent: waits for the initiator's key.
    pub(super) fn listen(
        &mut self,
        now: Now,
        at: Arrival,
        profile: Profile,
        (agreed, names): (Agreed, Names),
    ) {
        let (session, bootstrap) = self.bootstrap(now, Role::Responder, profile, agreed, names);
        let session = session.answered_to(vec![at]);
        let (bootstrap, key) = (Some(bootstrap), PqInitAssembly::default());
        let asked = [false; 2];
        self.answering = Some(Answering { session, bootstrap, key, answer: None, asked });
    }

    /// Takes a chunk of the initiator's key, and answers once both have arrived.
    pub(super) fn take_key(
        &mut self,
        now: Now,
        framed: &Framed,
        chunk: PqInitChunk<'_>,
    ) -> Result<(), DropReason> {
        let ours = |a: &mut Answering| a.opening().generation() == framed.generation;
        let mut answering = self.answering.take_if(ours).ok_or(DropReason::NotUpgraded)?;
        let result = self.answer_key(&mut answering, chunk);
        if let (Ok(true), Some((frame, _))) = (result, &answering.answer) {
            for Arrival { from: to, local: from } in self.answer_to(&answering.session, framed.at) {
                self.send_sealed(now, &answering.session.sealing, Transmit { to, from }, frame);
            }
        }
        self.answering = Some(answering);
        result.map(drop)
    }

    /// The destinations of the answer to the key. First, the address that message 2 was sent to, because an
    /// initiator that sends a key has received message 2 there. If message 2 was sent to several addresses,
    /// all but one are forged, so only those of them count at which the peer is expected. If the key came
    /// from another address, the initiator may have moved, or an attacker has sent a copy ahead: the answer
    /// goes there as well, if the peer may be there. The answer is less than twice as long as the shorter
    /// chunk.
    fn answer_to(&self, session: &Session, at: Arrival) -> Vec<Arrival> {
        let came_from = session.reached_at(at.from) || self.paths.may_be_at(at.from);
        let alone = session.reached.len() == 1;
        let reached = session.reached.iter().copied().filter(|reached| {
            reached.from != at.from && (alone || self.is_expected_at(reached.from))
        });
        reached.chain(Some(at).filter(|_| came_from)).collect()
    }

    /// Returns whether the whole key has arrived and can be answered.
    fn answer_key(
        &mut self,
        answering: &mut Answering,
        chunk: PqInitChunk<'_>,
    ) -> Result<bool, DropReason> {
        let inserted = answering.key.insert(chunk).map_err(|_| DropReason::UpgradeFailed)?;
        answering.asked[chunk.number()] = true;
        let Some(init) = inserted.copied() else { return Ok(false) };
        // Only one key is answered, and only once. The answer is repeated for each further copy of the
        // whole key, so that nobody gets more bytes than it sent.
        if let Some(bootstrap) = answering.bootstrap.take() {
            answering.answer = Some(self.upgrade(&answering.session, bootstrap, &init)?);
        }
        let whole = answering.asked == [true; 2];
        answering.asked = if whole { [false; 2] } else { answering.asked };
        Ok(answering.answer.is_some() && whole)
    }

    fn upgrade(
        &mut self,
        session: &Session,
        bootstrap: Bootstrap,
        init: &PqInit,
    ) -> Result<(Vec<u8>, Generation), DropReason> {
        let Ok(key) = EncapsulationKey::parse(&init.encapsulation_key) else {
            self.events.push_back(Diagnosis::UpgradeFailed.into());
            return Err(DropReason::UpgradeFailed);
        };
        let (ciphertext, secret) = key.encapsulate(&mut self.rng);
        let index = self.unused_index_but(session.opening.index());
        let transcript = Transcript {
            handshake_hash: &bootstrap.handshake_hash,
            encapsulation_key: &init.encapsulation_key,
            ciphertext: &ciphertext,
            initiator: init.index,
            responder: index,
            profile: bootstrap.profile,
        };
        let (keys, mac) = transcript.upgrade(bootstrap.exporter, secret).answer();
        let names = Names { local: index, remote: init.index, pair: session.pair };
        let origin = self.upgraded(session, Role::Responder, names, bootstrap.profile);
        // A peer that uses this session has received message 2, because otherwise it would not have sent a
        // key.
        self.keyring.answered(Session::new(&origin, &keys).answered_to(session.reached.clone()));
        let answer = PqResp { index, ciphertext, mac };
        Ok((ControlFrame::begin().pq_resp(&answer).end(), origin.generation))
    }
}

/// Both roles.
impl Peer {
    fn bootstrap(
        &mut self,
        now: Now,
        role: Role,
        profile: Profile,
        agreed: Agreed,
        names: Names,
    ) -> (Session, Bootstrap) {
        let mut origin = self.origin(role, now.boot, names, Protocol::Vpnd(profile));
        origin.contents = Contents::Bootstrap;
        let (keys, exporter) = agreed.keys_and_exporter();
        let handshake_hash = keys.handshake_hash;
        (Session::new(&origin, &keys), Bootstrap { profile, exporter, handshake_hash })
    }

    /// The upgraded session, which counts as old as its bootstrap session.
    fn upgraded(&mut self, from: &Session, role: Role, names: Names, profile: Profile) -> Origin {
        self.origin(role, from.birth, names, Protocol::Vpnd(profile))
    }

    /// The bootstrap sessions, which wait for their upgrade.
    pub(super) fn bootstraps(&self) -> impl Iterator<Item = &Arc<OpeningKey>> {
        let asking = self.attempt.as_ref().and_then(Attempt::asking).map(Asking::opening);
        asking.into_iter().chain(self.answering.as_ref().map(Answering::opening))
    }
}
