//! The post-quantum upgrade of a session: derives keys from ML-KEM-768 and the handshake's exporter. They are
//! secure as long as one of the two is.
//!
//! The exchange itself runs inside the session that the handshake made. This module has no messages, only the
//! key derivation of both ends.

use thiserror::Error;
use vpnd_crypto::hash::{Digest, hash, kdf, mac, verify};
use vpnd_crypto::kem::{CIPHERTEXT_LEN, ENCAPSULATION_KEY_LEN, SharedSecret};
use vpnd_crypto::memory::Secret;
use vpnd_crypto::stack::wiped;
use zerocopy::IntoBytes;

use crate::handshake::{Exporter, SessionKeys};
use crate::message::Index;
use crate::profile::Profile;
use crate::session::Role;

/// The length of a confirmation.
pub const CONFIRMATION_LEN: usize = 16;

/// A label for domain separation of the keys.
const LABEL: &[u8] = b"vpnd pq v1";
/// The label of the responder's confirmation.
const CONFIRM: &[u8] = b"vpnd pq confirm";

/// Everything that both ends have seen and configured. All of it is mixed into the keys.
#[derive(Clone, Copy)]
pub struct Transcript<'a> {
    /// The handshake whose session is upgraded.
    pub handshake_hash: &'a Digest,
    /// The initiator's key.
    pub encapsulation_key: &'a [u8; ENCAPSULATION_KEY_LEN],
    /// The responder's answer to it.
    pub ciphertext: &'a [u8; CIPHERTEXT_LEN],
    /// The initiator's index of the upgraded session.
    pub initiator: Index,
    /// The responder's index of the upgraded session.
    pub responder: Index,
    /// The profile of both ends.
    pub profile: Profile,
}

impl Transcript<'_> {
    /// Derives the upgraded session's keys. It consumes both secrets.
    pub fn upgrade(&self, exporter: Exporter, secret: SharedSecret) -> UpgradedKeys {
        self.derive(exporter.as_bytes(), secret.as_bytes())
    }

    fn derive(&self, exporter: &[u8; 32], secret: &[u8; 32]) -> UpgradedKeys {
        let Self { handshake_hash, encapsulation_key, ciphertext, .. } = *self;
        let seen = hash(&[handshake_hash, encapsulation_key, ciphertext]);
        let [initiator, responder] = [self.initiator.as_bytes(), self.responder.as_bytes()];
        let codes = self.profile.codes();
        let input: [&[u8]; 6] = [LABEL, secret, &seen, initiator, responder, &codes];
        let [by_initiator, by_responder, confirming] = kdf(exporter, &input);
        let confirmation = wiped(|| mac(&*confirming, &[CONFIRM]));
        UpgradedKeys { keys: [by_initiator, by_responder], seen, confirmation }
    }
}

/// The upgraded session's keys, before a role is chosen. An initiator obtains them only after the responder
/// has proved that it has the same.
pub struct UpgradedKeys {
    keys: [Secret; 2],
    seen: Digest,
    confirmation: [u8; CONFIRMATION_LEN],
}

impl UpgradedKeys {
    /// As responder: the keys, and the confirmation for the initiator.
    pub fn answer(self) -> (SessionKeys, [u8; CONFIRMATION_LEN]) {
        (SessionKeys::of(Role::Responder, self.keys, self.seen), self.confirmation)
    }

    /// As initiator: the keys, if the confirmation is right. The comparison takes constant time.
    ///
    /// # Errors
    /// The responder has other keys.
    pub fn confirm(self, received: &[u8; CONFIRMATION_LEN]) -> Result<SessionKeys, Unconfirmed> {
        if verify(&self.confirmation, received) {
            Ok(SessionKeys::of(Role::Initiator, self.keys, self.seen))
        } else {
            Err(Unconfirmed)
        }
    }
}

/// The responder has other keys. Its answer was authenticated, so neither the path nor an attacker can be the
/// cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("post-quantum answer confirms other session keys than ours: the peer misbehaves")]
pub struct Unconfirmed;

#[cfg(test)]
mod tests;
