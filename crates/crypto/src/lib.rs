//! The tunnel's cryptography: keys, authenticated encryption, hashes, key derivation and key encapsulation.
//! It does no input or output, and has neither a clock nor a source of randomness.
//!
//! Secrets lie in memory of their own ([`memory`]), are wiped when they are dropped, are never cloned and have no `Debug`.
//! Functions that compute with secrets wipe the stack that they have used ([`stack`]); sealing and opening with an [`AeadKey`]
//! do not, because that is done for each packet.

#![deny(unsafe_code)]

pub mod aead;
pub mod hash;
pub mod kem;
pub mod key;
#[allow(unsafe_code, reason = "mapping memory, and values in it")]
pub mod memory;
mod ring_key;
#[allow(unsafe_code, reason = "assembly that makes the compiler wipe")]
pub mod stack;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "calling code compiled for AVX-512")]
mod wide;

pub use aead::{
    AeadKey, Algorithm, Backend, Forged, Message, TAG_LEN, open_once, seal_once, xopen, xseal,
};
pub use hash::{Digest, hash, hmac, kdf, mac, verify};
pub use key::{KeyError, NonContributory, PresharedKey, PublicKey, SecretKey, SharedSecret};
pub use memory::Secret;

#[cfg(test)]
mod tests;
