//! Authenticated encryption: ChaCha20-Poly1305 and AES-256-GCM for tunnel packets, and XChaCha20-Poly1305 for
//! cookies.

use std::fmt;
use std::sync::OnceLock;

use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{KeyInit, XChaCha20Poly1305};
use ring::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, Nonce as RingNonce};

use crate::memory::Secret;
use crate::ring_key::{RingKey, ring_key};
use crate::stack::wiped;
#[cfg(target_arch = "x86_64")]
use crate::wide::WideKey;

mod check;
mod each;
#[cfg(test)]
mod reference;

pub(crate) use each::GROUP;
pub use each::Message;

/// The length of the tag behind every ciphertext.
pub const TAG_LEN: usize = 16;

/// The cipher that a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// RFC 8439, the cipher of the WireGuard protocol.
    ChaCha20Poly1305,
    /// NIST SP 800-38D: about three times as fast on processors with AES instructions.
    Aes256Gcm,
}

impl Algorithm {
    /// Its name in configurations and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
            Self::Aes256Gcm => "aes-256-gcm",
        }
    }

    /// Encodes a counter as Noise does for this cipher: four zero bytes, then 64 bits.
    fn nonce(self, counter: u64) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&match self {
            Self::ChaCha20Poly1305 => counter.to_le_bytes(),
            Self::Aes256Gcm => counter.to_be_bytes(),
        });
        nonce
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The implementation. All implementations produce the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Our own ChaCha20-Poly1305 for AVX-512, twice as fast as ring's. AES always uses ring, and so does
    /// every processor without AVX-512.
    Wide,
    /// ring: assembly, at packet sizes several times as fast as portable code.
    Ring,
}

impl Backend {
    /// The fastest back end of this processor. [`Backend::Wide`] is used only if its results here equal ring's.
    pub fn fastest() -> Self {
        static FASTEST: OnceLock<Backend> = OnceLock::new();
        *FASTEST.get_or_init(|| if check::agrees_with_ring() { Self::Wide } else { Self::Ring })
    }
}

/// The ciphertext was not sealed with this key, this counter and this associated data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ciphertext does not open: it was altered, or sealed with another key or counter")]
pub struct Forged;

/// One AEAD key, ready to use: made once per session, wiped when dropped.
pub struct AeadKey {
    algorithm: Algorithm,
    cipher: Cipher,
}

/// Every key is in the memory for keys, where it does not move.
enum Cipher {
    /// The `RingKey` seals messages with associated data (handshakes), and single short messages.
    #[cfg(target_arch = "x86_64")]
    Wide(WideKey, RingKey),
    Ring(RingKey),
}

impl AeadKey {
    /// Makes a key of the fastest back end.
    pub fn new(algorithm: Algorithm, key: &[u8; 32]) -> Self {
        Self::with_backend(Backend::fastest(), algorithm, key)
    }

    /// Makes a key of the given back end.
    pub fn with_backend(backend: Backend, algorithm: Algorithm, key: &[u8; 32]) -> Self {
        wiped(|| Self { algorithm, cipher: Cipher::new(backend, algorithm, key) })
    }

    /// Encrypts `buffer` in place and returns its tag.
    ///
    /// Use a counter only once in the life of a key: two messages under one counter reveal both plaintexts.
    pub fn seal(&self, counter: u64, aad: &[u8], buffer: &mut [u8]) -> [u8; TAG_LEN] {
        self.cipher.seal(self.algorithm.nonce(counter), aad, buffer)
    }

    /// Decrypts `buffer`, a ciphertext and its tag, in place, and returns the plaintext.
    ///
    /// # Errors
    ///
    /// [`Forged`]; the contents of `buffer` must then not be used.
    pub fn open<'a>(
        &self,
        counter: u64,
        aad: &[u8],
        buffer: &'a mut [u8],
    ) -> Result<&'a mut [u8], Forged> {
        self.cipher.open(self.algorithm.nonce(counter), aad, buffer)
    }
}

/// Encrypts `buffer` in place with a key that is used for nothing else, and returns its tag.
pub fn seal_once(
    algorithm: Algorithm,
    key: &Secret,
    aad: &[u8],
    buffer: &mut [u8],
) -> [u8; TAG_LEN] {
    wiped(|| AeadKey::new(algorithm, key).seal(0, aad, buffer))
}

/// Decrypts `buffer`, what [`seal_once`] has encrypted and its tag, in place, and returns the plaintext.
///
/// # Errors
///
/// [`Forged`]; the contents of `buffer` must then not be used.
pub fn open_once<'a>(
    algorithm: Algorithm,
    key: &Secret,
    aad: &[u8],
    buffer: &'a mut [u8],
) -> Result<&'a mut [u8], Forged> {
    wiped(|| AeadKey::new(algorithm, key).open(0, aad, buffer))
}

/// Encrypts `buffer` in place with XChaCha20-Poly1305, whose nonce is long enough to be drawn at
/// random, and returns its tag.
pub fn xseal(key: &[u8; 32], nonce: &[u8; 24], aad: &[u8], buffer: &mut [u8]) -> [u8; TAG_LEN] {
    let key = XChaCha20Poly1305::new(key.into());
    key.encrypt_inout_detached(nonce.into(), aad, buffer.into()).expect(TOO_LONG).into()
}

/// Decrypts `buffer`, a ciphertext and its tag, in place with XChaCha20-Poly1305, and returns the plaintext.
///
/// # Errors
///
/// [`Forged`]; the contents of `buffer` must then not be used.
pub fn xopen<'a>(
    key: &[u8; 32],
    nonce: &[u8; 24],
    aad: &[u8],
    buffer: &'a mut [u8],
) -> Result<&'a mut [u8], Forged> {
    let key = XChaCha20Poly1305::new(key.into());
    let (text, tag) = buffer.split_last_chunk_mut::<TAG_LEN>().ok_or(Forged)?;
    let tag = (&*tag).into();
    key.decrypt_inout_detached(nonce.into(), aad, (&mut *text).into(), tag).map_err(|_| Forged)?;
    Ok(text)
}

impl Cipher {
    fn new(backend: Backend, algorithm: Algorithm, key: &[u8; 32]) -> Self {
        match (backend, algorithm) {
            (Backend::Wide, Algorithm::ChaCha20Poly1305) => Self::wide(key),
            (Backend::Ring, Algorithm::ChaCha20Poly1305) => {
                Self::Ring(ring_key(&CHACHA20_POLY1305, key))
            }
            (_, Algorithm::Aes256Gcm) => Self::Ring(ring_key(&AES_256_GCM, key)),
        }
    }

    /// Our own implementation if the processor has the instructions; ring's if not.
    fn wide(key: &[u8; 32]) -> Self {
        let ring = ring_key(&CHACHA20_POLY1305, key);
        #[cfg(target_arch = "x86_64")]
        if let Some(wide) = WideKey::new(key) {
            return Self::Wide(wide, ring);
        }
        Self::Ring(ring)
    }

    fn seal(&self, nonce: [u8; 12], aad: &[u8], buffer: &mut [u8]) -> [u8; TAG_LEN] {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Wide(key, _) if is_worth_it(aad, buffer) => key.seal(&nonce, buffer),
            #[cfg(target_arch = "x86_64")]
            Self::Wide(_, key) => ring_seal(key, nonce, aad, buffer),
            Self::Ring(key) => ring_seal(key, nonce, aad, buffer),
        }
    }

    fn open<'a>(
        &self,
        nonce: [u8; 12],
        aad: &[u8],
        buffer: &'a mut [u8],
    ) -> Result<&'a mut [u8], Forged> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Wide(key, _) if is_worth_it(aad, buffer) => key.open(&nonce, buffer),
            #[cfg(target_arch = "x86_64")]
            Self::Wide(_, key) => ring_open(key, nonce, aad, buffer),
            Self::Ring(key) => ring_open(key, nonce, aad, buffer),
        }
    }
}

/// Whether our own code is faster for a single message: it computes 16 blocks at once, and a short message
/// would use only a few of them. It does not support associated data.
#[cfg(target_arch = "x86_64")]
const fn is_worth_it(aad: &[u8], buffer: &[u8]) -> bool {
    const SHORT: usize = 320;
    aad.is_empty() && buffer.len() > SHORT
}

fn ring_seal(key: &RingKey, nonce: [u8; 12], aad: &[u8], buffer: &mut [u8]) -> [u8; TAG_LEN] {
    let sealed = key
        .seal_in_place_separate_tag(RingNonce::assume_unique_for_key(nonce), Aad::from(aad), buffer)
        .expect(TOO_LONG);
    let mut tag = [0; TAG_LEN];
    tag.copy_from_slice(sealed.as_ref());
    tag
}

fn ring_open<'a>(
    key: &RingKey,
    nonce: [u8; 12],
    aad: &[u8],
    buffer: &'a mut [u8],
) -> Result<&'a mut [u8], Forged> {
    let nonce = RingNonce::assume_unique_for_key(nonce);
    key.open_in_place(nonce, Aad::from(aad), buffer).map_err(|_| Forged)
}

/// The only reason why sealing can fail is an overflow of the block counter: with AES-256-GCM after 64 GiB.
const TOO_LONG: &str = "a sealed message fits a datagram";

#[cfg(test)]
mod tests;
