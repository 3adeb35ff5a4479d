//! The handshake: authenticates the ends and agrees on keys. Pure functions of messages and keys. Each
//! verified step of a message is a type of its own, and nothing is stored before the last.
//!
//! As initiator: [`Initiator::initiate`], then [`Initiator::open_response`].
//! As responder: [`read_initiation`], [`Unproven::prove`], [`Claim::respond`].
//! Both return [`Agreed`], from which only the keys that the session needs are taken.

mod noise;
mod symmetric;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod vectors;

use rand_core::CryptoRng;
use thiserror::Error;
use vpnd_crypto::key::{NonContributory, PresharedKey, PublicKey, SecretKey};
use vpnd_crypto::memory::Secret;

use self::symmetric::ChaChaPoly;
use crate::message::{Index, Initiation, Response, Sealed};
use crate::session::Role;
use crate::timestamp::Timestamp;

/// The constant that `WireGuard` mixes in first.
const PROLOGUE: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";

type State = symmetric::Symmetric<ChaChaPoly>;

/// Our static key pair.
pub struct Identity {
    secret: SecretKey,
    public: PublicKey,
}

impl Identity {
    /// The pair with this secret key.
    pub fn new(secret: SecretKey) -> Self {
        let public = secret.public();
        Self { secret, public }
    }

    /// The public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    pub(crate) fn secret(&self) -> &SecretKey {
        &self.secret
    }
}

/// An initiator that waits for the response.
pub struct Initiator {
    index: Index,
    ephemeral: SecretKey,
    state: State,
}

impl Initiator {
    /// Writes message 1, its MACs still zero.
    ///
    /// # Errors
    /// `remote` is a low-order point, which is nobody's public key.
    pub fn initiate(
        identity: &Identity,
        remote: &PublicKey,
        index: Index,
        timestamp: Timestamp,
        rng: &mut impl CryptoRng,
    ) -> Result<(Self, Initiation), NonContributory> {
        let ephemeral = SecretKey::generate(rng);
        let (state, encrypted_static, encrypted_timestamp) =
            noise::write_first(PROLOGUE, identity, remote, &ephemeral, timestamp.as_bytes())?;
        let public = *ephemeral.public().as_bytes();
        let initiation = Initiation::new(index, public, encrypted_static, encrypted_timestamp);
        Ok((Self { index, ephemeral, state }, initiation))
    }

    /// Our index for the future session.
    pub fn index(&self) -> Index {
        self.index
    }

    pub(crate) fn ephemeral(&self) -> &SecretKey {
        &self.ephemeral
    }

    /// Reads message 2 under the first of the preshared keys that decrypts it. After a failure we continue to
    /// wait, because the real response may come later.
    ///
    /// # Errors
    /// The reason why this is not the response.
    pub fn open_response<'a>(
        &self,
        identity: &Identity,
        candidates: impl IntoIterator<Item = &'a PresharedKey>,
        response: &Response,
    ) -> Result<Answer, HandshakeError> {
        if response.receiver != self.index {
            return Err(HandshakeError::OtherReceiver);
        }
        let remote = PublicKey::from_bytes(response.ephemeral);
        let state =
            noise::read_second_keys(self.state.clone(), identity, &self.ephemeral, &remote)?;
        let opened = candidates.into_iter().enumerate().find_map(|(candidate, psk)| {
            let nothing = &response.encrypted_nothing;
            let (state, []) = noise::read_second_payload(state.clone(), psk, nothing).ok()?;
            Some((candidate, state))
        });
        let (candidate, state) = opened.ok_or(HandshakeError::AnswerDoesNotOpen)?;
        let agreed = Agreed { state, role: Role::Initiator };
        Ok(Answer { agreed, remote_index: response.sender, candidate })
    }
}

/// The result of a valid message 2.
pub struct Answer {
    /// The secrets from which the new session's keys are made.
    pub agreed: Agreed,
    /// The responder's index of the session.
    pub remote_index: Index,
    /// Which of the preshared keys decrypted it.
    pub candidate: usize,
}

/// Reads message 1 up to its sender's public key.
///
/// # Errors
///
/// The reason why the sender's key cannot be read.
pub fn read_initiation(
    identity: &Identity,
    initiation: &Initiation,
) -> Result<Unproven, HandshakeError> {
    let ephemeral = PublicKey::from_bytes(initiation.ephemeral);
    let (state, fixed) =
        noise::read_first_static(PROLOGUE, identity, &ephemeral, &initiation.encrypted_static)?;
    Ok(Unproven {
        state,
        remote: noise::Remote { ephemeral, fixed },
        remote_index: initiation.sender,
        encrypted_timestamp: initiation.encrypted_timestamp,
    })
}

/// A message 1 that contains its sender's public key. Anybody who knows our public key can have written it.
pub struct Unproven {
    state: State,
    remote: noise::Remote,
    remote_index: Index,
    encrypted_timestamp: Sealed<12>,
}

impl Unproven {
    /// The public key that the sender claims.
    pub fn remote(&self) -> &PublicKey {
        &self.remote.fixed
    }

    /// Reads the rest, which only the claimed sender can have written, though perhaps long ago.
    ///
    /// # Errors
    /// The sender is someone else.
    pub fn prove(self, identity: &Identity) -> Result<Claim, HandshakeError> {
        let Self { state, remote, remote_index, encrypted_timestamp } = self;
        let (state, timestamp) =
            noise::read_first_payload(state, identity, &remote.fixed, &encrypted_timestamp)?;
        Ok(Claim { state, remote, remote_index, timestamp: Timestamp::from_bytes(timestamp) })
    }
}

/// A message 1 that its claimed sender wrote. It may be a replay until its timestamp is found newer than all
/// before.
pub struct Claim {
    state: State,
    remote: noise::Remote,
    remote_index: Index,
    timestamp: Timestamp,
}

impl Claim {
    /// When the sender claims to have written this.
    pub fn timestamp(&self) -> Timestamp {
        self.timestamp
    }

    /// The initiator's index of the session.
    pub fn remote_index(&self) -> Index {
        self.remote_index
    }

    /// Writes message 2, its MACs still zero.
    ///
    /// # Errors
    /// The initiator's ephemeral key is a low-order point.
    pub fn respond(
        self,
        index: Index,
        psk: &PresharedKey,
        rng: &mut impl CryptoRng,
    ) -> Result<(Response, Agreed), HandshakeError> {
        self.respond_under(&SecretKey::generate(rng), index, psk)
    }

    /// The same with an ephemeral key that is new, and used for nothing else.
    ///
    /// # Errors
    /// As [`Claim::respond`].
    pub(crate) fn respond_under(
        self,
        ephemeral: &SecretKey,
        index: Index,
        psk: &PresharedKey,
    ) -> Result<(Response, Agreed), HandshakeError> {
        let (state, nothing) = noise::write_second(self.state, ephemeral, &self.remote, psk, &[])?;
        let public = *ephemeral.public().as_bytes();
        let response = Response::new(index, self.remote_index, public, nothing);
        Ok((response, Agreed { state, role: Role::Responder }))
    }
}

/// The shared secrets after message 2, before any key is made from them.
pub struct Agreed {
    state: State,
    role: Role,
}

impl Agreed {
    /// The session's keys.
    pub fn keys(self) -> SessionKeys {
        let (keys, handshake_hash) = self.state.split();
        SessionKeys::of(self.role, keys, handshake_hash)
    }

    /// The same keys, and the secret for the session's upgrade.
    pub fn keys_and_exporter(self) -> (SessionKeys, Exporter) {
        let ([by_initiator, by_responder, exporter], handshake_hash) = self.state.split();
        let keys = [by_initiator, by_responder];
        (SessionKeys::of(self.role, keys, handshake_hash), Exporter(exporter))
    }
}

/// The keys of a session.
pub struct SessionKeys {
    /// Seals what we send.
    pub sealing: Secret,
    /// Opens what we receive.
    pub opening: Secret,
    /// Identifies this session; both ends have the same value.
    pub handshake_hash: [u8; 32],
}

impl SessionKeys {
    /// The initiator's sealing key and the responder's, as seen from one of the two ends.
    pub(crate) fn of(
        role: Role,
        [by_initiator, by_responder]: [Secret; 2],
        handshake_hash: [u8; 32],
    ) -> Self {
        let (sealing, opening) = match role {
            Role::Initiator => (by_initiator, by_responder),
            Role::Responder => (by_responder, by_initiator),
        };
        Self { sealing, opening, handshake_hash }
    }
}

/// A secret of both ends that cannot be derived from the session's own keys. It is for one use, by
/// [`crate::upgrade`].
pub struct Exporter(Secret);

impl Exporter {
    /// The secret's bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Why a handshake message was dropped, and who is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HandshakeError {
    /// A public key of the message is one that honest software never generates.
    #[error("low-order public key: the sender misbehaves")]
    NonContributory,
    /// The initiation's static key does not decrypt.
    #[error("initiation does not open: it was sealed for another public key than ours, or forged")]
    NotForUs,
    /// The initiation's timestamp does not decrypt.
    #[error("initiation's timestamp does not open: its sender lacks the secret key")]
    Impostor,
    /// The response is not to our latest initiation.
    #[error("response to another initiation: it came late, or its sender misbehaves")]
    OtherReceiver,
    /// The response decrypts under none of our preshared keys.
    #[error("response does not open: PSK differs, or it was forged")]
    AnswerDoesNotOpen,
    /// A cookie reply to no message of ours.
    #[error("unexpected cookie reply: it came twice, or its sender misbehaves")]
    UnexpectedCookie,
    /// A cookie that is not sealed for our last message.
    #[error("cookie reply does not open: it answers an older message, or was forged")]
    ForgedCookie,
}

impl From<NonContributory> for HandshakeError {
    fn from(NonContributory: NonContributory) -> Self {
        Self::NonContributory
    }
}
