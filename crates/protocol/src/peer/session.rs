//! New sessions, and the control plane's own datagrams on them.

use std::time::Duration;

use super::{Pair, Peer, Transmit};
use crate::message::{DATA_HEADER_LEN, Index};
use crate::session::{Generation, OVERHEAD, Origin, REKEY_AFTER_TIME, Role, SealingKey};
use crate::terms::Protocol;
use crate::time::{BootTime, Now};

/// If several terms are acceptable, this end rekeys before the other end would, because only an initiator can
/// adapt.
const ADAPTING_REKEYS_AFTER: Duration = Duration::from_secs(110);

/// The index of a session at each end.
#[derive(Clone, Copy)]
pub(super) struct Names {
    pub(super) local: Index,
    pub(super) remote: Index,
    /// The keys it was made with.
    pub(super) pair: Pair,
}

impl Peer {
    /// A new session with these terms.
    pub(super) fn origin(
        &mut self,
        role: Role,
        birth: BootTime,
        names: Names,
        protocol: Protocol,
    ) -> Origin {
        let rekey_after = match role {
            _ if self.adapts() => Some(ADAPTING_REKEYS_AFTER),
            Role::Initiator => Some(REKEY_AFTER_TIME),
            Role::Responder => None,
        };
        Origin {
            role,
            birth,
            local: names.local,
            remote: names.remote,
            pair: names.pair,
            generation: self.next_generation(),
            protocol,
            contents: protocol.contents(),
            largest: self.device.largest_packet.into(),
            rekey_after,
        }
    }

    /// Whether there is more than one choice of terms.
    pub(super) fn adapts(&self) -> bool {
        self.terms.len() > 1
    }

    /// A random index that no other handshake or session of ours has.
    pub(super) fn unused_index(&mut self) -> Index {
        loop {
            let index = Index::new(self.rng.next_u32());
            let mut taken = self.keyring.opening().chain(self.bootstraps()).map(|key| key.index());
            let promised = self.attempt.as_ref().and_then(|attempt| attempt.promised());
            if !taken.any(|one| one == index) && promised != Some(index) {
                return index;
            }
        }
    }

    /// As above, but also different from `taken`, the index of a session that is not stored at the moment.
    pub(super) fn unused_index_but(&mut self, taken: Index) -> Index {
        loop {
            let index = self.unused_index();
            if index != taken {
                return index;
            }
        }
    }

    fn next_generation(&mut self) -> Generation {
        self.generation = self.generation.next();
        self.generation
    }

    /// Sends an empty datagram; returns whether there was a session to send it on.
    pub(super) fn send_keepalive(&mut self, now: Now) -> bool {
        self.send_on_current(now, &[])
    }

    /// Sends `plaintext` on the current session; returns whether there is one.
    pub(super) fn send_on_current(&mut self, now: Now, plaintext: &[u8]) -> bool {
        let (Some(session), Some(path)) = (self.keyring.current(), self.paths.current) else {
            return false;
        };
        let sealing = std::sync::Arc::clone(&session.sealing);
        self.send_sealed(now, &sealing, Transmit { to: path.to, from: path.from }, plaintext)
    }

    /// Seals `plaintext` and queues it; returns whether the key still seals.
    pub(super) fn send_sealed(
        &mut self,
        now: Now,
        key: &SealingKey,
        transmit: Transmit,
        plaintext: &[u8],
    ) -> bool {
        let Ok(mut counters) = key.reserve(1, now.boot) else { return false };
        let Some(counter) = counters.next() else { return false };
        let mut datagram = vec![0; plaintext.len() + OVERHEAD];
        datagram[DATA_HEADER_LEN..][..plaintext.len()].copy_from_slice(plaintext);
        key.seal(counter, &mut datagram);
        self.transmit(now, transmit, datagram);
        true
    }
}
