//! Noise's symmetric state over BLAKE2s: a chaining key that all secrets are mixed into, and a hash of
//! everything that both ends have seen.

use std::marker::PhantomData;

use vpnd_crypto::aead::{Algorithm, Forged, open_once, seal_once};
use vpnd_crypto::hash::{Digest, hash, kdf};
use vpnd_crypto::key::{PresharedKey, PublicKey, SharedSecret};
use vpnd_crypto::memory::Secret;
use zerocopy::IntoBytes;

use crate::message::Sealed;

/// The cipher of the handshake itself. `WireGuard` uses [`ChaChaPoly`]; the pattern's published test vectors
/// use another one, which the tests implement.
pub(super) trait Cipher {
    /// Noise's name of the protocol with this cipher; longer than a hash.
    const PROTOCOL: &'static [u8];
    /// The cipher.
    const ALGORITHM: Algorithm;
}

/// ChaCha20-Poly1305.
pub(super) struct ChaChaPoly;

impl Cipher for ChaChaPoly {
    const PROTOCOL: &'static [u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
    const ALGORITHM: Algorithm = Algorithm::ChaCha20Poly1305;
}

/// A key for one message field: sealing or opening consumes it, so no nonce but 0 is needed.
pub(super) struct Key(Secret);

/// Chaining key and transcript hash.
pub(super) struct Symmetric<C> {
    chaining_key: Secret,
    hash: Digest,
    cipher: PhantomData<C>,
}

impl<C: Cipher> Symmetric<C> {
    /// The common state before the first message: both ends know the protocol, the prologue and the
    /// responder's static key.
    pub(super) fn start(prologue: &[u8], responder: &PublicKey) -> Self {
        let protocol = hash(&[C::PROTOCOL]);
        let chaining_key = Secret::copy_of(&protocol);
        let mut state = Self { chaining_key, hash: protocol, cipher: PhantomData };
        state.mix_hash(prologue);
        state.mix_hash(responder.as_bytes());
        state
    }

    /// Hashes data that both ends have seen.
    fn mix_hash(&mut self, seen: &[u8]) {
        self.hash = hash(&[&self.hash, seen]);
    }

    /// The token `e`: if the pattern has a preshared key, ephemeral keys are mixed into the chaining key too.
    pub(super) fn mix_ephemeral(&mut self, ephemeral: &PublicKey) {
        self.mix_hash(ephemeral.as_bytes());
        [self.chaining_key] = kdf(&self.chaining_key, &[ephemeral.as_bytes()]);
    }

    /// A Diffie-Hellman token that is not followed by a sealed field.
    pub(super) fn mix_secret(&mut self, secret: &SharedSecret) {
        [self.chaining_key] = kdf(&self.chaining_key, &[secret.as_bytes()]);
    }

    /// A Diffie-Hellman token that is followed by a sealed field.
    pub(super) fn mix_key(&mut self, secret: &SharedSecret) -> Key {
        let [chaining_key, key] = kdf(&self.chaining_key, &[secret.as_bytes()]);
        self.chaining_key = chaining_key;
        Key(key)
    }

    /// The token `psk`, which enters chain and hash.
    pub(super) fn mix_psk(&mut self, psk: &PresharedKey) -> Key {
        let [chaining_key, seen, key] = kdf(&self.chaining_key, &[psk.as_bytes()]);
        self.chaining_key = chaining_key;
        self.mix_hash(&*seen);
        Key(key)
    }

    /// Seals a field of the message, bound to all before it.
    pub(super) fn seal<const N: usize>(&mut self, key: Key, plaintext: &[u8; N]) -> Sealed<N> {
        let mut ciphertext = *plaintext;
        let tag = seal_once(C::ALGORITHM, &key.0, &self.hash, &mut ciphertext);
        let sealed = Sealed { ciphertext, tag };
        self.mix_hash(sealed.as_bytes());
        sealed
    }

    /// Opens a field of the message. After a failure the state must not be used.
    pub(super) fn open<const N: usize>(
        &mut self,
        key: Key,
        sealed: &Sealed<N>,
    ) -> Result<[u8; N], Forged> {
        let mut opened = *sealed;
        open_once(C::ALGORITHM, &key.0, &self.hash, opened.as_mut_bytes())?;
        self.mix_hash(sealed.as_bytes());
        Ok(opened.ciphertext)
    }

    /// The end of the handshake: the initiator's sealing key, the responder's, and the hash that identifies
    /// this session. Noise derives two keys; asking for three yields the same two and one more secret.
    pub(super) fn split<const N: usize>(self) -> ([Secret; N], Digest) {
        (kdf(&self.chaining_key, &[]), self.hash)
    }
}

/// By hand: a derived `Clone` would require it of the cipher, which is only a type name.
impl<C> Clone for Symmetric<C> {
    fn clone(&self) -> Self {
        let chaining_key = Secret::copy_of(&self.chaining_key);
        Self { chaining_key, hash: self.hash, cipher: PhantomData }
    }
}
