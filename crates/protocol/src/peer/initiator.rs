//! Our side of a handshake we begin: one attempt, its tries, and the answer.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use zerocopy::IntoBytes;

use super::{Config, Event, Peer, Transmit};
use crate::drop_reason::DropReason;
use crate::handshake::{Answer, Initiator};
use crate::keyring::Session;
use crate::message::{Index, RESPONSE_LEN, Response};
use crate::session::{OpeningKey, REKEY_AFTER_TIME, Role, SealingKey};
use crate::table::Arrival;
use crate::time::{BootTime, Now};
use crate::timers::{MAX_TRIES, REKEY_TIMEOUT};
use crate::timestamp::Timestamp;

/// How long an initiation waits for its timestamp to be written down.
const FLOOR_WITHIN: std::time::Duration = std::time::Duration::from_millis(500);
/// After a crossing both ends are initiators; the one with the smaller public key rekeys this
/// much later, so that they do not cross again.
const CROSSING_YIELDS: std::time::Duration = std::time::Duration::from_secs(10);

/// A handshake of ours that waits for its answer.
pub(super) struct Attempt {
    initiator: Initiator,
    to: SocketAddr,
    tries: u32,
    begun: BootTime,
    retry_at: BootTime,
    held: Option<Held>,
}

/// An initiation that leaves once its timestamp is written, or has taken too long to be.
struct Held {
    stamp: Timestamp,
    until: BootTime,
    from: Option<IpAddr>,
    datagram: Vec<u8>,
}

impl Attempt {
    pub(super) fn index(&self) -> Index {
        self.initiator.index()
    }

    pub(super) const fn tries(&self) -> u32 {
        self.tries
    }

    pub(super) const fn to(&self) -> SocketAddr {
        self.to
    }
}

impl Peer {
    /// The timestamp of [`Event::KeepFloor`] is written, or never will be; its initiation leaves.
    pub fn floor_kept(&mut self, now: Now, stamp: Timestamp) {
        if self.held().is_some_and(|held| held.stamp == stamp) {
            self.release(now);
            self.handle_wake(now);
        }
    }

    /// When the next initiation is due.
    pub(super) fn initiation_deadline(&self) -> Option<BootTime> {
        match &self.attempt {
            Some(attempt) => Some(attempt.retry_at.max(self.initiate_from)),
            None => (self.wanted && self.target().is_some()).then_some(self.initiate_from),
        }
    }

    /// When an initiation leaves without its timestamp being written.
    pub(super) fn floor_deadline(&self) -> Option<BootTime> {
        self.held().map(|held| held.until)
    }

    /// Begins, repeats or ends an attempt, whichever is due.
    pub(super) fn pursue_handshake(&mut self, now: Now) {
        if self.floor_deadline().is_some_and(|until| now.boot >= until) {
            self.release(now);
        }
        // Twice, where an attempt that has become needless ends and another is wanted.
        while self.initiation_deadline().is_some_and(|due| now.boot >= due) {
            match self.attempt.take() {
                None => self.initiate(now, now.boot, 1),
                Some(attempt) => self.retry(now, &attempt),
            }
        }
    }

    fn retry(&mut self, now: Now, unanswered: &Attempt) {
        // awaiting_cookie names the attempt that is gone now.
        self.publish = true;
        if self.established >= Some(unanswered.begun) {
            return;
        }
        if unanswered.tries == MAX_TRIES {
            self.wanted = false;
            self.activity.want_handshake.take();
            self.events.push_back(Event::GaveUp);
            return;
        }
        self.candidates.advance();
        self.forget_source();
        self.initiate(now, unanswered.begun, unanswered.tries + 1);
    }

    fn initiate(&mut self, now: Now, begun: BootTime, tries: u32) {
        self.wanted = false;
        let Some(to) = self.target() else { return };
        let index = self.unused_index();
        let stamp = self.stamper.next(now.wall);
        let Config { identity, remote, .. } = &self.config;
        let begun_handshake = Initiator::initiate(identity, remote, index, stamp, &mut self.rng);
        // A key without a contribution is refused by the configuration already.
        let Ok((initiator, mut initiation)) = begun_handshake else { return };
        self.jar.seal_macs(now.boot, initiation.as_mut_bytes());
        let from = self.path.filter(|path| path.to == to).and_then(|path| path.from);
        let held = Held {
            stamp,
            until: now.boot + FLOOR_WITHIN,
            from,
            datagram: initiation.as_bytes().to_vec(),
        };
        let retry_at = now.boot + (REKEY_TIMEOUT + self.jitter());
        self.initiate_from = now.boot + REKEY_TIMEOUT;
        self.attempt = Some(Attempt { initiator, to, tries, begun, retry_at, held: Some(held) });
        self.publish = true;
        self.events.push_back(Event::KeepFloor(stamp));
    }

    fn release(&mut self, now: Now) {
        let Some(attempt) = &mut self.attempt else { return };
        let (to, attempt_number) = (attempt.to, attempt.tries);
        let Some(held) = attempt.held.take() else { return };
        self.transmit(now, Transmit { to, from: held.from }, held.datagram);
        self.events.push_back(Event::Initiating { to, attempt: attempt_number });
    }

    fn held(&self) -> Option<&Held> {
        self.attempt.as_ref()?.held.as_ref()
    }

    pub(super) fn target(&self) -> Option<SocketAddr> {
        self.candidates.target(self.path.map(|path| path.to))
    }

    /// Takes the answer to our initiation.
    pub(super) fn conclude(
        &mut self,
        now: Now,
        at: Arrival,
        response: &Response,
    ) -> Result<(), DropReason> {
        let attempt = self
            .attempt
            .take_if(|attempt| attempt.index() == response.receiver)
            .ok_or(DropReason::UnexpectedResponse)?;
        let opened = attempt.initiator.open_response(
            &self.config.identity,
            &self.config.preshared,
            response,
        );
        let Ok(answer) = opened else {
            // It proves nothing: the real answer may still come.
            self.attempt = Some(attempt);
            self.events.push_back(Event::AnswerDoesNotOpen);
            return Err(DropReason::ResponseDoesNotOpen);
        };
        self.note_received(now, RESPONSE_LEN);
        self.begin_session(now, answer, &attempt);
        // The endpoint moves on transport data only; until then it is where we asked.
        self.set_path(attempt.to, at.local);
        self.establish(now, Role::Initiator);
        // Confirms the session to the peer, which may not send before.
        self.send_keepalive(now);
        Ok(())
    }

    fn begin_session(&mut self, now: Now, answer: Answer, attempt: &Attempt) {
        let Answer { agreed, remote_index, .. } = answer;
        let keys = agreed.keys();
        let generation = self.next_generation();
        // The peer's own session may be confirmed already, if it overtook this answer.
        let crossed = self.keyring.next().is_some() || self.established >= Some(attempt.begun);
        let yields = crossed && self.config.identity.public() < &self.config.remote;
        let rekey_after =
            if yields { REKEY_AFTER_TIME + CROSSING_YIELDS } else { REKEY_AFTER_TIME };
        let sealing = SealingKey::new(
            &keys.sealing,
            remote_index,
            now.boot,
            Role::Initiator,
            Some(rekey_after),
        );
        let opening = OpeningKey::new(&keys.opening, attempt.index(), generation, now.boot);
        self.keyring.initiated(Session {
            role: Role::Initiator,
            birth: now.boot,
            sealing: Arc::new(sealing),
            opening: Arc::new(opening),
        });
    }
}
