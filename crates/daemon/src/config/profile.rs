//! The settings that both ends have to agree on, and the differences that are accepted while the peer is being
//! changed.

use std::fmt;

use serde::{Serialize, Serializer};
use vpnd_crypto::Algorithm;

use super::problem::Problem;
use super::value::TextResult;
use super::word::{Word, name, word};

/// The protocol of both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// WireGuard without extensions.
    WireGuard,
    /// The same messages with extensions.
    Vpnd,
}

/// One difference from our own profile that is accepted in an answer of the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AlsoAccept {
    /// Another cipher.
    Cipher(Algorithm),
    /// With ML-KEM-768, or without.
    PostQuantum(bool),
    /// WireGuard without extensions.
    WireGuard,
}

impl Word for Protocol {
    const WORDS: &'static [(&'static str, Self)] =
        &[("wireguard", Self::WireGuard), ("vpnd", Self::Vpnd)];
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name(*self))
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
        Some(("cipher", name)) => word(name).map(AlsoAccept::Cipher),
        Some(("post_quantum", "true")) => Ok(AlsoAccept::PostQuantum(true)),
        Some(("post_quantum", "false")) => Ok(AlsoAccept::PostQuantum(false)),
        Some(("protocol", "wireguard")) => Ok(AlsoAccept::WireGuard),
        _ => Err(Problem::error(format!(
            "expected \"cipher=NAME\", \"post_quantum=true\", \"post_quantum=false\" or \
             \"protocol=wireguard\", found \"{text}\""
        ))),
    }
}
