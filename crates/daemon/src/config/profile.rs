//! The settings that both ends have to agree on, and the differences that are accepted while the peer is being
//! changed.

use std::fmt;

use serde::{Serialize, Serializer};

use super::problem::Problem;
use super::value::{TextResult, choice};

/// The protocol of both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// WireGuard without extensions.
    WireGuard,
    /// The same messages with extensions.
    Vpnd,
}

/// The cipher that seals packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cipher {
    /// WireGuard's own.
    ChaCha20Poly1305,
    /// For processors with AES instructions.
    Aes256Gcm,
}

/// One difference from our own profile that is accepted in an answer of the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AlsoAccept {
    /// Another cipher.
    Cipher(Cipher),
    /// With ML-KEM-768, or without.
    PostQuantum(bool),
    /// WireGuard without extensions.
    WireGuard,
}

/// The names of the protocols.
pub(super) const PROTOCOLS: &[(&str, Protocol)] =
    &[("wireguard", Protocol::WireGuard), ("vpnd", Protocol::Vpnd)];

/// The names of the ciphers.
pub(super) const CIPHERS: &[(&str, Cipher)] =
    &[("chacha20-poly1305", Cipher::ChaCha20Poly1305), ("aes-256-gcm", Cipher::Aes256Gcm)];

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WireGuard => "wireguard",
            Self::Vpnd => "vpnd",
        })
    }
}

impl fmt::Display for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
            Self::Aes256Gcm => "aes-256-gcm",
        })
    }
}

impl fmt::Display for AlsoAccept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cipher(cipher) => write!(f, "cipher={cipher}"),
            Self::PostQuantum(on) => write!(f, "post_quantum={on}"),
            Self::WireGuard => f.write_str("protocol=wireguard"),
        }
    }
}

impl Serialize for AlsoAccept {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// An entry of `also_accept`.
pub(super) fn also_accept(text: &str) -> TextResult<AlsoAccept> {
    match text.split_once('=') {
        Some(("cipher", name)) => choice(CIPHERS)(name).map(AlsoAccept::Cipher),
        Some(("post_quantum", "true")) => Ok(AlsoAccept::PostQuantum(true)),
        Some(("post_quantum", "false")) => Ok(AlsoAccept::PostQuantum(false)),
        Some(("protocol", "wireguard")) => Ok(AlsoAccept::WireGuard),
        _ => Err(Problem::error(format!(
            "expected \"cipher=NAME\", \"post_quantum=true\", \"post_quantum=false\" or \
             \"protocol=wireguard\", found \"{text}\""
        ))),
    }
}
