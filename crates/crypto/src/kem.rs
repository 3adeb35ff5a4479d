//! ML-KEM-768 (FIPS 203): two ends agree on a secret with one message in each direction. A quantum computer
//! cannot derive the secret from a recording of both messages.
//!
//! One end makes a [`DecapsulationKey`] and sends its public half. The other end parses the public half as an
//! [`EncapsulationKey`], draws a secret, keeps it, and sends it back in encapsulated form.

use ml_kem::kem::{Decapsulate, Encapsulate, KeyExport};
use ml_kem::{DecapsulationKey768, EncapsulationKey768};
use rand_core::CryptoRng;
use zeroize::Zeroizing;

use crate::memory::{Guarded, Secret};
use crate::stack::wiped_deep;

/// The length of an encapsulation key.
pub const ENCAPSULATION_KEY_LEN: usize = 1184;
/// The length of an encapsulated secret.
pub const CIPHERTEXT_LEN: usize = 1088;

/// These bytes cannot be the public half of any decapsulation key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an ML-KEM-768 key, its numbers are not below the modulus: its sender misbehaves")]
pub struct InvalidKey;

/// The secret half, for one exchange. Only its seed is kept, in the memory for keys. What is computed from the seed is on
/// the heap and on the stack for the time of the computation, and is wiped.
pub struct DecapsulationKey {
    /// *d*, then *z* (FIPS 203, algorithm 16).
    seed: Guarded<[u8; 64]>,
    public: Box<[u8; ENCAPSULATION_KEY_LEN]>,
}

impl DecapsulationKey {
    /// Draws a new key.
    pub fn generate(rng: &mut (impl CryptoRng + ?Sized)) -> Self {
        let mut seed = Guarded::<[u8; 64]>::default();
        let (d, z) = seed.split_at_mut(32);
        rng.fill_bytes(d);
        rng.fill_bytes(z);
        let public = wiped_deep(|| Box::new(expand(&seed).encapsulation_key().to_bytes().into()));
        Self { seed, public }
    }

    /// The public half, in the form that is sent to the other end.
    pub fn encapsulation_key(&self) -> [u8; ENCAPSULATION_KEY_LEN] {
        *self.public
    }

    /// Decapsulates the other end's secret, and consumes the key.
    ///
    /// There is no error: an altered ciphertext yields a secret that nobody else knows (FIPS 203, implicit
    /// rejection). Only the keys derived from it show whether both ends have the same secret.
    pub fn decapsulate(self, ciphertext: &[u8; CIPHERTEXT_LEN]) -> SharedSecret {
        wiped_deep(|| {
            let secret = Zeroizing::new(expand(&self.seed).decapsulate(ciphertext.into()));
            SharedSecret(keep(secret.as_slice()))
        })
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
        wiped_deep(|| {
            let (ciphertext, secret) = self.0.encapsulate_with_rng(rng);
            (ciphertext.into(), SharedSecret(keep(Zeroizing::new(secret).as_slice())))
        })
    }
}

/// The secret that an exchange agreed on. It has no equality: only tests may compare two.
pub struct SharedSecret(Secret);

impl SharedSecret {
    /// The secret's bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

fn expand(seed: &[u8; 64]) -> DecapsulationKey768 {
    DecapsulationKey768::from_seed((*seed).into())
}

fn keep(secret: &[u8]) -> Secret {
    let mut kept = Secret::default();
    kept.copy_from_slice(secret);
    kept
}

#[cfg(test)]
mod tests;
