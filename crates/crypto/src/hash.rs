//! BLAKE2s, as a hash, as a MAC, inside HMAC, and the key derivation built on it.

use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, KeyInit, Mac, Update};
use blake2::{Blake2s256, Blake2sMac};
use hmac::SimpleHmac;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// A BLAKE2s-256 hash.
pub type Digest = [u8; 32];

/// Hashes the parts, one behind the other: the whitepaper's HASH.
pub fn hash(parts: &[&[u8]]) -> Digest {
    let mut hasher = Blake2s256::default();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize_fixed().into()
}

/// Authenticates the parts with keyed BLAKE2s-128: the whitepaper's MAC.
///
/// # Panics
///
/// If the key is longer than 32 bytes.
pub fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 16] {
    let mut mac = Blake2sMac::<U16>::new_from_slice(key).expect("a MAC key of 32 bytes at most");
    parts.iter().for_each(|part| Update::update(&mut mac, part));
    mac.finalize_fixed().into()
}

/// Authenticates the parts with HMAC-BLAKE2s-256: the whitepaper's HMAC.
pub fn hmac(key: &[u8], parts: &[&[u8]]) -> Zeroizing<Digest> {
    let mut hmac = SimpleHmac::<Blake2s256>::new_from_slice(key).expect("HMAC takes any key");
    parts.iter().for_each(|part| Mac::update(&mut hmac, part));
    let mut tag = Zeroizing::new(Digest::default());
    hmac.finalize_into((&mut *tag).into());
    tag
}

/// Derives `N` keys, one to three, from a chaining key and an input: the whitepaper's KDFn.
pub fn kdf<const N: usize>(chaining_key: &[u8; 32], input: &[u8]) -> [Zeroizing<[u8; 32]>; N] {
    const { assert!(1 <= N && N <= 3, "the protocol derives one, two or three keys") };
    let secret = hmac(chaining_key, &[input]);
    let mut previous: &[u8] = &[];
    let mut keys = std::array::from_fn(|_| Zeroizing::default());
    for (key, number) in keys.iter_mut().zip(1u8..) {
        *key = hmac(&*secret, &[previous, &[number]]);
        previous = &**key;
    }
    keys
}

/// Compares two byte strings in a time that does not depend on what they contain.
pub fn verify(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}
