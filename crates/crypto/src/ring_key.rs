//! ring does not wipe its AEAD keys, so this box wipes them.

use std::mem::{MaybeUninit, needs_drop};
use std::ops::Deref;

use ring::aead::{Algorithm, LessSafeKey, UnboundKey};
use zeroize::Zeroize;

/// A ring key at a fixed place on the heap, wiped before the memory is freed.
///
/// The key is in a `MaybeUninit`, because zeroes need not be a valid `LessSafeKey`: once they are written, no
/// reference to a `LessSafeKey` may exist.
pub(crate) struct RingKey(Box<MaybeUninit<LessSafeKey>>);

impl RingKey {
    pub(crate) fn new(algorithm: &'static Algorithm, key: &[u8; 32]) -> Self {
        const { assert!(!needs_drop::<LessSafeKey>(), "wiping would skip ring's own destructor") };
        let key = UnboundKey::new(algorithm, key).expect("only 32-byte ciphers are named here");
        Self(Box::new(MaybeUninit::new(LessSafeKey::new(key))))
    }
}

impl Deref for RingKey {
    type Target = LessSafeKey;

    fn deref(&self) -> &LessSafeKey {
        // SAFETY: `new` has written a whole key. Only `drop` writes anything else, and no `self` exists after
        // that to borrow from.
        unsafe { self.0.assume_init_ref() }
    }
}

impl Drop for RingKey {
    fn drop(&mut self) {
        (*self.0).zeroize();
    }
}
