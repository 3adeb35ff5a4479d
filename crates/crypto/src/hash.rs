//! BLAKE2s as a hash, as a MAC and in HMAC, and the key derivation that uses it.

use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, KeyInit, Mac, Update};
use blake2::{Blake2s256, Blake2sMac};
use hmac::SimpleHmac;
use subtle::ConstantTimeEq;

use crate::memory::Secret;
use crate::stack::wiped;

/// A BLAKE2s-256 hash.
pub type Digest = [u8; 32];

/// Hashes the parts, one after the other: the whitepaper's HASH.
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
pub fn hmac(key: &[u8], parts: &[&[u8]]) -> Secret {
    wiped(|| authenticate(key, parts))
}

/// The same; the caller wipes the stack.
fn authenticate(key: &[u8], parts: &[&[u8]]) -> Secret {
    let mut hmac = SimpleHmac::<Blake2s256>::new_from_slice(key).expect("HMAC takes any key");
    parts.iter().for_each(|part| Mac::update(&mut hmac, part));
    let mut tag = Secret::default();
    hmac.finalize_into((&mut *tag).into());
    tag
}

/// Derives `N` keys, one to three, from a chaining key and the parts of an input: the whitepaper's KDFn.
pub fn kdf<const N: usize>(chaining_key: &[u8; 32], input: &[&[u8]]) -> [Secret; N] {
    const { assert!(1 <= N && N <= 3, "the protocol derives one, two or three keys") };
    wiped(|| {
        let secret = authenticate(chaining_key, input);
        let mut previous: &[u8] = &[];
        let mut keys = std::array::from_fn(|_| Secret::default());
        for (key, number) in keys.iter_mut().zip(1u8..) {
            *key = authenticate(&*secret, &[previous, &[number]]);
            previous = &**key;
        }
        keys
    })
}

/// Compares two byte strings in a time that does not depend on their contents.
pub fn verify(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::array;

    /// Bytes that count up from zero.
    fn bytes(len: u8) -> Vec<u8> {
        (0..len).collect()
    }

    #[test]
    fn rfc_7693_appendix_b() {
        let abc = array("508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982");
        assert_eq!(hash(&[b"abc"]), abc);
        assert_eq!(hash(&[b"a", b"", b"bc"]), abc);
    }

    #[test]
    fn the_initial_chaining_key_is_wireguards() {
        let construction =
            array("60e26daef327efc02ec335e2a025d2d016eb4206f87277f52d38d1988b78cd36");
        assert_eq!(hash(&[b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"]), construction);
    }

    /// Expected values from Python's hashlib, whose BLAKE2 is the reference implementation.
    #[test]
    fn keyed_hashes_agree_with_the_reference() {
        let key = bytes(32);
        for (key, input, tag) in [
            (&key[..], &b"abc"[..], "61ba5f165c194692e09d12520cc4c74a"),
            (&key, b"", "9536f9b267655743dee97b8a670f9f53"),
            (&key, &bytes(200), "42a6f8ff590af21b512e9e088257aa34"),
            (&key[..16], b"abc", "75296c2d2c0f51210b383f386bc8b1ff"),
            (&key[..16], b"", "af4e5d3bb230e9ff9096ca6f7c501f76"),
            (&key[..16], &bytes(200), "b8d300fa7937e4d1e67c8468df4c9a43"),
        ] {
            assert_eq!(mac(key, &[input]), array(tag));
        }
    }

    /// Expected values from Python's hmac and hashlib; the second key is longer than a block.
    #[test]
    fn hmac_agrees_with_the_reference() {
        for (key_len, tag) in [
            (32, "82623be5bc0a391b24dce53e67d028eff92d586de0485ac37822e597d049c74f"),
            (100, "c1b751501db12b753069a918627b623179be55c8cc7ca5c4e14bdf32274ac656"),
        ] {
            assert_eq!(*hmac(&bytes(key_len), &[b"ab", b"c"]), array(tag));
        }
    }

    /// RFC 5869 over HMAC-BLAKE2s, no info; expected values computed in Python.
    #[test]
    fn derived_keys_agree_with_the_reference() {
        let expected = [
            "87b7f70b24183c6db5dc4f6d9f4c47cdb203321aa2a0bef714896adb3107a040",
            "538a02e1eb2e31b7e4d4b82476d1fe2acf50085d3fb584537279195f5d1f5824",
            "9ad858025593be88de0f9442a589cfe84a88dc19e4753d93684d1c5efc4837f9",
        ];
        let chaining_key = bytes(32).try_into().unwrap();
        let expected = expected.map(array::<32>);
        let bytes = |keys: &[Secret]| keys.iter().map(|key| **key).collect::<Vec<_>>();
        assert_eq!(bytes(&kdf::<3>(&chaining_key, &[b"input"])), expected);
        assert_eq!(bytes(&kdf::<2>(&chaining_key, &[b"in", b"put"])), expected[..2]);
        assert_eq!(bytes(&kdf::<1>(&chaining_key, &[b"input"])), expected[..1]);
    }

    #[test]
    fn verify_compares_whole_strings() {
        assert!(verify(b"abc", b"abc"));
        assert!(!verify(b"abc", b"abd"));
        assert!(!verify(b"abc", b"ab"));
    }
}
