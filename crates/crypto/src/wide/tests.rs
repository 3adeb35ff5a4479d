//! Compares every length with ring, and the authenticator with a textbook version for inputs whose limbs are
//! full.

use proptest::prelude::*;

use super::*;
use crate::aead::{AeadKey, Algorithm, Backend};

/// Longer than two passes, and longer than a jumbo frame.
const LONGEST: usize = 9100;

/// `None` if this processor cannot run the tests.
fn wide(key: &[u8; 32]) -> Option<WideKey> {
    let wide = WideKey::new(key);
    if wide.is_none() {
        println!("this processor lacks AVX-512 IFMA: nothing to compare");
    }
    wide
}

#[test]
fn every_length_seals_and_opens_as_with_ring() {
    let key = std::array::from_fn(|i| i.to_le_bytes()[0].wrapping_mul(37));
    let Some(wide) = wide(&key) else { return };
    let ring = AeadKey::with_backend(Backend::Ring, Algorithm::ChaCha20Poly1305, &key);
    let text: Vec<u8> = (0..LONGEST).map(|i| (i * i).to_le_bytes()[1]).collect();
    for len in (0..3100).chain((3100..LONGEST).step_by(61)) {
        let counter = (len as u64) << 20 | 7;
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&counter.to_le_bytes());
        let (mut ours, mut theirs) = (text[..len].to_vec(), text[..len].to_vec());
        let tag = wide.seal(&nonce, &mut ours);
        assert_eq!(tag, ring.seal(counter, &[], &mut theirs), "{len}");
        assert!(ours == theirs, "{len}");
        ours.extend(tag);
        assert_eq!(wide.open(&nonce, &mut ours), Ok(&mut text[..len].to_vec()[..]), "{len}");
    }
}

/// Poly1305 of RFC 8439 §2.5.1 with 26-bit limbs, of the message in the form of §2.8.
fn textbook(key: [u8; 32], text: &[u8]) -> [u8; TAG_LEN] {
    let (r, s) = key.split_at(16);
    let r = limbs_of(u128::from_le_bytes(r.try_into().unwrap()) & limbs::CLAMP, 0);
    let mut message = text.to_vec();
    message.resize(text.len().next_multiple_of(16), 0);
    message.extend([0; 8]);
    message.extend((text.len() as u64).to_le_bytes());
    let mut sum = [0; 5];
    for block in message.chunks(16) {
        let block = limbs_of(u128::from_le_bytes(block.try_into().unwrap()), 1);
        sum = times(std::array::from_fn(|i| sum[i] + block[i]), r);
    }
    finish(sum).wrapping_add(u128::from_le_bytes(s.try_into().unwrap())).to_le_bytes()
}

fn limbs_of(number: u128, above: u64) -> [u64; 5] {
    let limb = |i: usize| u64::try_from(number >> (26 * i) & 0x03ff_ffff).unwrap();
    [limb(0), limb(1), limb(2), limb(3), limb(4) + (above << 24)]
}

fn times(a: [u64; 5], b: [u64; 5]) -> [u64; 5] {
    let mut product = [0u64; 5];
    for (i, x) in a.iter().enumerate() {
        for (j, y) in b.iter().enumerate() {
            product[(i + j) % 5] += x * y * if i + j < 5 { 1 } else { 5 };
        }
    }
    carry(carry(product))
}

fn carry(mut limbs: [u64; 5]) -> [u64; 5] {
    for i in 0..5 {
        let over = limbs[i] >> 26;
        limbs[i] &= 0x03ff_ffff;
        limbs[(i + 1) % 5] += if i < 4 { over } else { 5 * over };
    }
    limbs
}

/// Subtracts 2¹³⁰ − 5 if needed, and returns the lower 128 bits.
fn finish(limbs: [u64; 5]) -> u128 {
    let mut limbs = carry(carry(limbs));
    let largest = limbs[1..].iter().all(|limb| *limb == 0x03ff_ffff);
    if largest && limbs[0] >= 0x03ff_fffb {
        limbs = [limbs[0] - 0x03ff_fffb, 0, 0, 0, 0];
    }
    limbs.iter().rev().fold(0, |sum, limb| (sum << 26) + u128::from(*limb))
}

fn authenticate(key: [u8; 32], text: &[u8]) -> [u8; TAG_LEN] {
    // SAFETY: the callers have a `WideKey`, so the processor has the instructions.
    unsafe { poly::authenticate(&block(key), text) }
}

/// Bytes with long runs of ones or zeroes.
fn extreme(len: usize) -> impl Strategy<Value = Vec<u8>> {
    let run = (prop_oneof![Just(0), Just(0xff), any::<u8>()], 1..40usize);
    prop::collection::vec(run, 1..40).prop_map(move |runs| {
        let bytes = runs.into_iter().flat_map(|(byte, count)| vec![byte; count]);
        bytes.chain(std::iter::repeat(0xff)).take(len).collect()
    })
}

/// Authenticates eight texts at once, one per lane.
fn authenticate_each(keys: &[[u8; 32]; GROUP], texts: [&[u8]; GROUP]) -> [[u8; TAG_LEN]; GROUP] {
    // SAFETY: as in `authenticate`.
    unsafe { each::authenticate(&keys.map(block), texts) }
}

/// A block that begins with the one-time key. The second half must not matter.
fn block(key: [u8; 32]) -> [u8; BLOCK] {
    let mut block = [0xa5; BLOCK];
    block[..32].copy_from_slice(&key);
    block
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_authenticator_agrees_with_the_textbook(
        key in extreme(32),
        text in (0..700usize).prop_flat_map(extreme),
    ) {
        if wide(&[0; 32]).is_some() {
            let key = key.try_into().unwrap();
            prop_assert_eq!(authenticate(key, &text), textbook(key, &text));
        }
    }

    #[test]
    fn each_lane_agrees_with_the_textbook(
        keys in prop::array::uniform8(extreme(32)),
        texts in (0..700usize).prop_flat_map(|len| prop::array::uniform8(extreme(len))),
    ) {
        if wide(&[0; 32]).is_some() {
            let keys = keys.map(|key| key.try_into().unwrap());
            let tags = authenticate_each(&keys, texts.each_ref().map(|text| &text[..]));
            for ((key, text), tag) in keys.into_iter().zip(&texts).zip(tags) {
                prop_assert_eq!(tag, textbook(key, text));
            }
        }
    }
}

/// Tests sums just below, at and above 2¹³⁰ − 5, for which the last subtraction is decided: with r = 1, the sum
/// is the sum of the blocks themselves.
#[test]
fn sums_around_the_modulus_are_reduced() {
    if wide(&[0; 32]).is_none() {
        return;
    }
    let mut key = [0; 32];
    key[0] = 1;
    for low in 0..=255 {
        for blocks in 1..20 {
            let mut text = vec![0xff; 16 * blocks];
            text[0] = low;
            let expected = textbook(key, &text);
            assert_eq!(authenticate(key, &text), expected, "{low} {blocks}");
            let each = authenticate_each(&[key; GROUP], [&text; GROUP]);
            assert_eq!(each, [expected; GROUP], "{low} {blocks}");
        }
    }
}
