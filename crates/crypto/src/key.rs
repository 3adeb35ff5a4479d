//! The keys people exchange: X25519 key pairs and preshared keys, and their text form.

use std::fmt;

use base64ct::{Base64, Encoding};
use rand_core::CryptoRng;
use x25519_dalek as x25519;
use zeroize::Zeroizing;

/// Length of the base64 text of 32 bytes, padding included.
const TEXT_LEN: usize = 44;

/// Why a text is not a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text is too short or too long.
    #[error("a key is {TEXT_LEN} characters of base64, this has {0}: copy the whole line")]
    Length(usize),
    /// A character that is not base64, or bits behind the last byte that are not zero.
    #[error("not the base64 of 32 bytes: a character was mistyped, copy the key again")]
    Base64,
    /// A public key with which every secret is the same.
    #[error("a public key of low order, which protects nothing: ask the peer for its real one")]
    LowOrder,
}

/// A Diffie-Hellman result that does not depend on the secret key: the peer sent a low-order point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the peer's public key is of low order: the shared secret would be known to everyone")]
pub struct NonContributory;

/// An X25519 secret key.
pub struct SecretKey(x25519::StaticSecret);

impl SecretKey {
    /// Draws a new key, clamped as `wg genkey` does.
    pub fn generate(rng: &mut (impl CryptoRng + ?Sized)) -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut *bytes);
        bytes[0] &= 0b1111_1000;
        bytes[31] = bytes[31] & 0b0111_1111 | 0b0100_0000;
        Self::from_bytes(*bytes)
    }

    /// Takes any 32 bytes as a key; they are clamped when it is used.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes.into())
    }

    /// Reads a key's base64 text.
    ///
    /// # Errors
    ///
    /// [`KeyError::Length`] or [`KeyError::Base64`].
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        decode(text).map(|bytes| Self::from_bytes(*bytes))
    }

    /// The key as base64 text.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(Base64::encode_string(self.0.as_bytes()))
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(x25519::PublicKey::from(&self.0).to_bytes())
    }

    /// Agrees on a secret with the holder of `public`'s other half.
    ///
    /// # Errors
    ///
    /// [`NonContributory`] if `public` is of low order.
    pub fn diffie_hellman(&self, public: &PublicKey) -> Result<SharedSecret, NonContributory> {
        let shared = self.0.diffie_hellman(&public.0.into());
        if shared.was_contributory() { Ok(SharedSecret(shared)) } else { Err(NonContributory) }
    }
}

/// An X25519 public key: a peer's name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Takes 32 bytes off the wire as they are; [`SecretKey::diffie_hellman`] judges them.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes on the wire.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads a key's base64 text.
    ///
    /// # Errors
    ///
    /// [`KeyError`], also where the text is sound and the key is of low order.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        let key = Self(*decode(text)?);
        // Clamped scalars are multiples of the cofactor: any of them takes exactly the points of
        // low order to zero.
        SecretKey::from_bytes([1; 32]).diffie_hellman(&key).map_err(|_| KeyError::LowOrder)?;
        Ok(key)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&Base64::encode_string(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A secret both sides know beforehand, mixed into the handshake. The default, all zero, is none.
#[derive(Default)]
pub struct PresharedKey(Zeroizing<[u8; 32]>);

impl PresharedKey {
    /// Draws a new key.
    pub fn generate(rng: &mut (impl CryptoRng + ?Sized)) -> Self {
        let mut key = Self::default();
        rng.fill_bytes(&mut *key.0);
        key
    }

    /// Takes any 32 bytes as a key.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Reads a key's base64 text.
    ///
    /// # Errors
    ///
    /// [`KeyError::Length`] or [`KeyError::Base64`].
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        decode(text).map(Self)
    }

    /// The key as base64 text.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(Base64::encode_string(&*self.0))
    }

    /// The key's bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// What a Diffie-Hellman exchange agreed on.
pub struct SharedSecret(x25519::SharedSecret);

impl SharedSecret {
    /// The secret's bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
}

/// Reads 32 bytes from their one base64 text.
fn decode(text: &str) -> Result<Zeroizing<[u8; 32]>, KeyError> {
    if text.len() != TEXT_LEN {
        return Err(KeyError::Length(text.len()));
    }
    let mut bytes = Zeroizing::new([0; 32]);
    match Base64::decode(text, &mut *bytes) {
        Ok(decoded) if decoded.len() == 32 => Ok(bytes),
        _ => Err(KeyError::Base64),
    }
}
