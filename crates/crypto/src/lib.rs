//! The tunnel's cryptography: keys, authenticated encryption, hashes, key derivation and key encapsulation.
//! It does no input or output, and has neither a clock nor a source of randomness.
//!
//! Secrets are wiped when they are dropped, are never cloned and have no `Debug`.

#![deny(unsafe_code)]

pub mod aead;
pub mod hash;
pub mod kem;
pub mod key;
#[allow(unsafe_code, reason = "reads ring's key out of a MaybeUninit, so that it can be wiped")]
mod ring_key;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "calling code compiled for AVX-512")]
mod wide;

pub use aead::{AeadKey, Algorithm, Backend, Forged, Message, TAG_LEN, xopen, xseal};
pub use hash::{Digest, hash, hmac, kdf, mac, verify};
pub use key::{KeyError, NonContributory, PresharedKey, PublicKey, SecretKey, SharedSecret};

#[cfg(test)]
mod tests;
