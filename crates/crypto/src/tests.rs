//! Properties of every secret, and helpers that the modules' tests share.

use std::fmt::{Debug, Display};

use crate::{AeadKey, PresharedKey, SecretKey, SharedSecret, kem};

/// Fails to compile if the type has the trait: the method would then be ambiguous.
macro_rules! assert_lacks {
    ($type:ty: $($trait:path),+) => { $(const _: fn() = || {
        trait Ambiguous<A> {
            fn it() {}
        }
        impl<T> Ambiguous<()> for T {}
        struct Has;
        impl<T: $trait> Ambiguous<Has> for T {}
        let _ = <$type as Ambiguous<_>>::it;
    };)+ };
}

assert_lacks!(SecretKey: Debug, Display, Clone);
assert_lacks!(PresharedKey: Debug, Display, Clone);
assert_lacks!(SharedSecret: Debug, Display, Clone);
assert_lacks!(AeadKey: Debug, Display, Clone);
assert_lacks!(kem::DecapsulationKey: Debug, Display, Clone);
assert_lacks!(kem::SharedSecret: Debug, Display, Clone, PartialEq);

/// Reads the hexadecimal digits of a published vector, ignoring any other characters.
pub(crate) fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|pair| u8::try_from(pair[0] << 4 | pair[1]).unwrap()).collect()
}

/// [`unhex`] for a known length.
pub(crate) fn array<const N: usize>(text: &str) -> [u8; N] {
    unhex(text).try_into().unwrap()
}
