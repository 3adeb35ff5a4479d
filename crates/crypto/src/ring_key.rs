//! ring does not wipe its AEAD keys. These lie in the memory for keys, which does.

use ring::aead::{Algorithm, LessSafeKey, UnboundKey};

use crate::memory::Guarded;

/// A ring key. It leaves copies on the stack, which the caller wipes.
pub(crate) fn ring_key(algorithm: &'static Algorithm, key: &[u8; 32]) -> RingKey {
    let key = UnboundKey::new(algorithm, key).expect("only 32-byte ciphers are named here");
    Guarded::new(LessSafeKey::new(key))
}

/// A ring key at a fixed place in the memory for keys.
pub(crate) type RingKey = Guarded<LessSafeKey>;
