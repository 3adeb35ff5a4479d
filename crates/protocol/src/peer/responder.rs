//! Our side of a handshake the peer begins, and what stands before any handshake is looked at.

use std::sync::Arc;
use std::time::Duration;

use zerocopy::IntoBytes;

use super::{Event, Load, Peer, Transmit};
use crate::drop_reason::DropReason;
use crate::handshake::{Claim, SessionKeys, read_initiation};
use crate::keyring::Session;
use crate::message::{self, INITIATION_LEN, Index, Initiation, Macs, Message};
use crate::session::{OpeningKey, Role, SealingKey};
use crate::table::{Admitted, Arrival};
use crate::time::{BootTime, Now};
use crate::timers::REKEY_TIMEOUT;
use crate::timestamp::Timestamp;

/// Two initiations of the peer stand at least this far apart.
const INITIATION_INTERVAL: Duration = Duration::from_millis(20);
/// So many answers in a row without a confirmation are worth a word.
const UNCONFIRMED_WORTH_TELLING: u32 = 3;

impl Peer {
    pub(super) fn dispatch(
        &mut self,
        now: Now,
        load: Load,
        admitted: &Admitted,
    ) -> Result<(), DropReason> {
        match message::parse(admitted.datagram()).map_err(|_| DropReason::Malformed)? {
            Message::CookieReply(reply) => {
                self.jar.receive(now.boot, reply).map_err(|_| DropReason::BadCookie)
            }
            Message::Initiation(initiation) => {
                self.gate(now, load, admitted, initiation.sender, &initiation.macs)?;
                self.answer(now, admitted.at(), initiation)
            }
            Message::Response(response) => {
                self.gate(now, load, admitted, response.sender, &response.macs)?;
                self.conclude(now, admitted.at(), response)
            }
            Message::Data { .. } => Err(DropReason::Malformed),
        }
    }

    /// Under load only those pass who have proved their address, and not too often.
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
        if !self.checker.verify_mac2(now.boot, from, datagram) {
            let reply = self.checker.reply(now.boot, from, sender, macs, &mut self.rng);
            let transmit = Transmit { to: from, from: local };
            self.transmits.push_back((transmit, reply.as_bytes().to_vec()));
            return Err(DropReason::CookieDemanded);
        }
        if self.limiter.allow(now.boot, from.ip()) { Ok(()) } else { Err(DropReason::RateLimited) }
    }

    /// Answers an initiation. Nothing changes before its timestamp is proved and newer.
    fn answer(&mut self, now: Now, at: Arrival, initiation: &Initiation) -> Result<(), DropReason> {
        let claim = self.verify(at, initiation)?;
        self.check_stamp(now.boot, claim.timestamp())?;
        let (stamp, remote_index, index) =
            (claim.timestamp(), claim.remote_index(), self.unused_index());
        let (mut response, agreed) = claim
            .respond(index, &self.config.preshared[0], &mut self.rng)
            .map_err(|_| DropReason::Forged)?;
        self.last_initiation = Some((stamp, now.boot));
        self.note_received(now, INITIATION_LEN);
        self.await_confirmation(now.boot, &agreed.keys(), remote_index, index);
        self.jar.seal_macs(now.boot, response.as_mut_bytes());
        let transmit = Transmit { to: at.from, from: at.local };
        self.transmit(now, transmit, response.as_bytes().to_vec());
        Ok(())
    }

    fn verify(&mut self, at: Arrival, initiation: &Initiation) -> Result<Claim, DropReason> {
        let identity = &self.config.identity;
        let unproven = read_initiation(identity, initiation).map_err(|_| DropReason::Forged)?;
        if *unproven.remote() != self.config.remote {
            let (key, from) = (*unproven.remote(), at.from);
            self.events.push_back(Event::UnknownPeer { key, from });
            return Err(DropReason::UnknownPeer);
        }
        unproven.prove(identity).map_err(|_| DropReason::Forged)
    }

    fn check_stamp(&mut self, now: BootTime, got: Timestamp) -> Result<(), DropReason> {
        let Some((last, at)) = self.last_initiation else { return Ok(()) };
        if got <= last {
            self.events.push_back(Event::StaleInitiation { got, last });
            return Err(DropReason::ReplayedInitiation);
        }
        if now.saturating_since(at) < INITIATION_INTERVAL {
            return Err(DropReason::RateLimited);
        }
        Ok(())
    }

    fn await_confirmation(
        &mut self,
        now: BootTime,
        keys: &SessionKeys,
        remote_index: Index,
        index: Index,
    ) {
        let generation = self.next_generation();
        let sealing = SealingKey::new(&keys.sealing, remote_index, now, Role::Responder, None);
        let opening = OpeningKey::new(&keys.opening, index, generation, now);
        self.keyring.answered(Session {
            role: Role::Responder,
            birth: now,
            sealing: Arc::new(sealing),
            opening: Arc::new(opening),
        });
        self.initiate_from = self.initiate_from.max(now + REKEY_TIMEOUT);
        self.publish = true;
        self.unconfirmed_answers += 1;
        if self.unconfirmed_answers >= UNCONFIRMED_WORTH_TELLING {
            self.events.push_back(Event::NeverConfirms(self.unconfirmed_answers));
        }
    }
}
