//! The terms of a session: what both ends have to agree on although no message contains it. Terms are mixed
//! into the handshake's preshared key, so that ends with different terms never share a session. Nothing is
//! negotiated, so nothing can be downgraded.

use std::fmt;

use vpnd_crypto::aead::Algorithm;
use vpnd_crypto::key::PresharedKey;

use crate::profile::{Kem, Mode, Profile};
use crate::session::Contents;

/// The protocol of both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// `WireGuard`, with nothing added.
    WireGuard,
    /// The same messages, and frames inside the session: vpnd at both ends.
    Vpnd(Profile),
}

impl Protocol {
    /// The cipher of transport data.
    pub(crate) const fn cipher(self) -> Algorithm {
        match self {
            Self::WireGuard => Algorithm::ChaCha20Poly1305,
            Self::Vpnd(profile) => profile.cipher,
        }
    }

    /// The profile, if a handshake makes only a bootstrap session, which has to be upgraded before data
    /// flows.
    pub(crate) fn upgrade(self) -> Option<Profile> {
        match self {
            Self::Vpnd(profile) if profile.kem == Kem::MlKem768 => Some(profile),
            Self::Vpnd(_) | Self::WireGuard => None,
        }
    }

    /// What a session may carry once data flows.
    pub(crate) const fn contents(self) -> Contents {
        match self {
            Self::WireGuard => Contents::Packets,
            Self::Vpnd(Profile { mode: Mode::Tun, .. }) => Contents::Frames,
            Self::Vpnd(Profile { mode: Mode::Tap, .. }) => Contents::Ethernet,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WireGuard => f.write_str("wireguard"),
            Self::Vpnd(profile) => write!(f, "vpnd, {profile}"),
        }
    }
}

/// A protocol, and its preshared key.
pub struct Terms {
    protocol: Protocol,
    /// As mixed into the handshake: with the `vpnd` protocol the profile is bound to it.
    psk: PresharedKey,
}

impl Terms {
    /// The terms of `protocol` with a preshared key, or the default one if there is none.
    pub fn new(protocol: Protocol, preshared: &PresharedKey) -> Self {
        let psk = match protocol {
            Protocol::WireGuard => preshared.copy(),
            Protocol::Vpnd(profile) => profile.bind(Some(preshared)),
        };
        Self { protocol, psk }
    }

    /// The protocol of these terms.
    pub const fn protocol(&self) -> Protocol {
        self.protocol
    }

    pub(crate) const fn psk(&self) -> &PresharedKey {
        &self.psk
    }
}
