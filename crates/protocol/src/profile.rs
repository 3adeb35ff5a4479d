//! The profile: the settings that decide how packets are protected and parsed, and so have to be the same at
//! both ends. It is mixed into the preshared key, so that ends with different profiles complete no handshake.
//! Nothing is negotiated, nothing can be downgraded, and no key is used with two ciphers.

use std::fmt;

use vpnd_crypto::aead::Algorithm;
use vpnd_crypto::hash::hmac;
use vpnd_crypto::key::PresharedKey;

/// A label for domain separation.
const LABEL: &[u8] = b"vpnd profile v1";

/// What the tunnel carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// IP packets.
    Tun = 0,
    /// Ethernet frames.
    Tap = 1,
}

/// The key exchange that is used in addition to Diffie-Hellman.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kem {
    /// Nothing.
    None = 0,
    /// A secret encapsulated to a fresh ML-KEM-768 key.
    MlKem768 = 1,
}

/// The settings that must be equal at both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// What the tunnel carries.
    pub mode: Mode,
    /// The cipher of data. The handshake has its own cipher, always the same.
    pub cipher: Algorithm,
    /// The additional key exchange.
    pub kem: Kem,
}

impl Profile {
    /// The profile as the three bytes that are mixed in. They are never extended: settings that do not change
    /// how packets are protected or parsed are announced inside the session.
    pub const fn codes(self) -> [u8; 3] {
        [self.mode as u8, cipher_code(self.cipher), self.kem as u8]
    }

    /// The preshared key for the handshake: `psk`, or the default one, bound to this profile.
    pub fn bind(self, psk: Option<&PresharedKey>) -> PresharedKey {
        let none = PresharedKey::default();
        let key = psk.unwrap_or(&none).as_bytes();
        hmac(key, &[LABEL, &self.codes()]).into()
    }
}

/// In the configuration's terms, so that a log line of one end can be compared with the other end's file.
impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = match self.mode {
            Mode::Tun => "tun",
            Mode::Tap => "tap",
        };
        let kem = match self.kem {
            Kem::None => "not post-quantum",
            Kem::MlKem768 => "post-quantum",
        };
        write!(f, "{mode}, {}, {kem}", self.cipher)
    }
}

const fn cipher_code(cipher: Algorithm) -> u8 {
    match cipher {
        Algorithm::ChaCha20Poly1305 => 0,
        Algorithm::Aes256Gcm => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vectors::vectors;

    /// Every profile, in the order of its codes.
    fn all() -> Vec<Profile> {
        let mut all = Vec::new();
        for mode in [Mode::Tun, Mode::Tap] {
            for cipher in [Algorithm::ChaCha20Poly1305, Algorithm::Aes256Gcm] {
                all.extend([Kem::None, Kem::MlKem768].map(|kem| Profile { mode, cipher, kem }));
            }
        }
        all
    }

    /// Each of the eight profiles without a preshared key, then with one.
    #[test]
    fn the_preshared_key_is_the_reference_s() {
        let vectors = vectors("profiles");
        assert_eq!(vectors.len(), 16);
        for (profile, vector) in all().into_iter().cycle().zip(&vectors) {
            assert_eq!(profile.codes(), vector.array("codes"));
            let psk = vector.has("psk").then(|| PresharedKey::from_bytes(vector.array("psk")));
            assert_eq!(profile.bind(psk.as_ref()).as_bytes(), &vector.array("bound"));
        }
        assert_eq!(vectors.iter().filter(|vector| vector.has("psk")).count(), 8);
    }

    #[test]
    fn no_preshared_key_is_the_one_of_zeros() {
        for profile in all() {
            let [bound, zeros] =
                [None, Some(&PresharedKey::default())].map(|psk| profile.bind(psk));
            assert_eq!(bound.as_bytes(), zeros.as_bytes());
        }
    }

    #[test]
    fn a_profile_reads_as_the_configuration_does() {
        let shown: Vec<_> = all().iter().map(Profile::to_string).collect();
        assert_eq!(shown[0], "tun, chacha20-poly1305, not post-quantum");
        assert_eq!(shown[7], "tap, aes-256-gcm, post-quantum");
    }
}
