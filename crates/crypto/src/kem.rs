//! ML-KEM-768 (FIPS 203): two ends agree on a secret with one message in each direction. A quantum computer
//! cannot derive the secret from a recording of both messages.
//!
//! One end makes a [`DecapsulationKey`] and sends its public half. The other end parses the public half as an
//! [`EncapsulationKey`], draws a secret, keeps it, and sends it back in encapsulated form.

use ml_kem::kem::{Decapsulate, Encapsulate, Generate, KeyExport};
use ml_kem::{DecapsulationKey768, EncapsulationKey768};
use rand_core::CryptoRng;
use zeroize::Zeroizing;

/// The length of an encapsulation key.
pub const ENCAPSULATION_KEY_LEN: usize = 1184;
/// The length of an encapsulated secret.
pub const CIPHERTEXT_LEN: usize = 1088;

/// These bytes cannot be the public half of any decapsulation key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an ML-KEM-768 key, its numbers are not below the modulus: its sender misbehaves")]
pub struct InvalidKey;

/// The secret half, for one exchange. Everything secret in it lies on the heap, where it does not move, and is
/// wiped before the memory is freed.
pub struct DecapsulationKey(DecapsulationKey768);

impl DecapsulationKey {
    /// Draws a new key.
    pub fn generate(rng: &mut (impl CryptoRng + ?Sized)) -> Self {
        Self(DecapsulationKey768::generate_from_rng(rng))
    }

    /// The public half, in the form that is sent to the other end.
    pub fn encapsulation_key(&self) -> [u8; ENCAPSULATION_KEY_LEN] {
        self.0.encapsulation_key().to_bytes().into()
    }

    /// Decapsulates the other end's secret, and consumes the key.
    ///
    /// There is no error: an altered ciphertext yields a secret that nobody else knows (FIPS 203, implicit
    /// rejection). Only the keys derived from it show whether both ends have the same secret.
    pub fn decapsulate(self, ciphertext: &[u8; CIPHERTEXT_LEN]) -> SharedSecret {
        SharedSecret(Zeroizing::new(self.0.decapsulate(ciphertext.into()).into()))
    }
}

/// The public half of the other end's key, after the checks.
pub struct EncapsulationKey(EncapsulationKey768);

impl EncapsulationKey {
    /// Parses a received key, and makes the checks of FIPS 203, section 7.2: the type guarantees the length,
    /// and every number has to be below the modulus.
    ///
    /// # Errors
    ///
    /// [`InvalidKey`]
    pub fn parse(bytes: &[u8; ENCAPSULATION_KEY_LEN]) -> Result<Self, InvalidKey> {
        EncapsulationKey768::new(bytes.into()).map(Self).map_err(|_| InvalidKey)
    }

    /// Draws a secret, and encapsulates it for the holder of the other half.
    pub fn encapsulate(
        &self,
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> ([u8; CIPHERTEXT_LEN], SharedSecret) {
        let (ciphertext, secret) = self.0.encapsulate_with_rng(rng);
        (ciphertext.into(), SharedSecret(Zeroizing::new(secret.into())))
    }
}

/// The secret that an exchange agreed on. It has no equality: only tests may compare two.
pub struct SharedSecret(Zeroizing<[u8; 32]>);

impl SharedSecret {
    /// The secret's bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

#[cfg(test)]
mod tests;
