//! Poly1305 (RFC 8439 §2.5) of a ciphertext without associated data, in the form that ChaCha20-Poly1305 uses
//! (§2.8): padded to a whole block, then a block of lengths.
//!
//! Numbers modulo 2¹³⁰ − 5 are three limbs of 44, 44 and 42 bits, in eight parallel lanes. The message's blocks
//! are distributed over the lanes in turn. A lane is multiplied by r⁸ before each further block. At the end,
//! the lane whose last block is the k-th from the end is multiplied by rᵏ. Blocks are counted from the end: if
//! their number is not a multiple of eight, some lanes start empty, and their zeroes do no harm.

use std::arch::x86_64::{
    __m512i, _mm512_cmpge_epi64_mask, _mm512_mask_mov_epi64, _mm512_maskz_set1_epi64,
    _mm512_reduce_add_epi64, _mm512_set1_epi64, _mm512_unpackhi_epi64, _mm512_unpacklo_epi64,
};

use zerocopy::transmute;

use super::limbs::{self, CLAMP, Factor, LANES, Limbs};
use crate::aead::TAG_LEN;

/// The number of bytes of a block.
const BLOCK: usize = 16;
/// The number of bytes of one block for each lane.
const GROUP: usize = BLOCK * LANES;

/// The tag of `text`. The first half of `key` is the one-time key.
#[target_feature(enable = "avx512f,avx512ifma")]
pub(super) fn authenticate(key: &[u8; 64], text: &[u8]) -> [u8; TAG_LEN] {
    let [r, s, ..]: [[u8; 16]; 4] = transmute!(*key);
    let powers = Powers::new(u128::from_le_bytes(r) & CLAMP);
    let sum = sum(text, &powers).times(&powers.falling);
    total(sum).wrapping_add(u128::from_le_bytes(s)).to_le_bytes()
}

/// Adds up the blocks of each lane, without the last multiplication: first the group in which blocks may be
/// missing, then the groups that contain only text, then the group that ends with the lengths.
#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn sum(text: &[u8], powers: &Powers) -> Limbs {
    let padded = text.len().next_multiple_of(BLOCK) + BLOCK;
    let lead = padded.next_multiple_of(GROUP) - padded;
    let (first, rest) = text.split_at(text.len().min(GROUP - lead));
    let mut bytes = [0; GROUP];
    bytes[lead..lead + first.len()].copy_from_slice(first);
    if padded + lead == GROUP {
        put_lengths(&mut bytes, text.len());
        return blocks(&bytes, lead / BLOCK);
    }
    let (whole, rest) = rest.as_chunks();
    let sum = sum_whole(blocks(&bytes, lead / BLOCK), whole, powers);
    let mut bytes = [0; GROUP];
    bytes[..rest.len()].copy_from_slice(rest);
    put_lengths(&mut bytes, text.len());
    sum.times_plus(&powers.eighth, blocks(&bytes, 0))
}

/// Adds two groups at a time, in two sums that can be computed in parallel.
#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn sum_whole(first: Limbs, whole: &[[u8; GROUP]], powers: &Powers) -> Limbs {
    let (pairs, odd) = whole.as_chunks::<2>();
    let (mut sum, mut other) = (first, Limbs::zero());
    for [a, b] in pairs {
        other = other.times_plus(&powers.sixteenth, blocks(a, 0));
        sum = sum.times_plus(&powers.sixteenth, blocks(b, 0));
    }
    let sum = other.times_plus(&powers.eighth, sum);
    odd.iter().fold(sum, |sum, group| sum.times_plus(&powers.eighth, blocks(group, 0)))
}

/// The last block of the message: zero bytes of associated data, `len` bytes of text.
fn put_lengths(group: &mut [u8; GROUP], len: usize) {
    group[GROUP - 8..].copy_from_slice(&(len as u64).to_le_bytes());
}

/// Converts blocks to numbers. The first `missing` blocks do not exist, so their bit 128 is not set. The order
/// of the lanes is [`ORDER`].
#[target_feature(enable = "avx512f")]
#[inline]
fn blocks(bytes: &[u8; GROUP], missing: usize) -> Limbs {
    let [a, b]: [__m512i; 2] = transmute!(*bytes);
    let present = _mm512_cmpge_epi64_mask(transmute!(ORDER), _mm512_set1_epi64(missing as i64));
    Limbs::of([_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b)])
        .with_bits(_mm512_maskz_set1_epi64(present, 1 << 40))
}

/// The sum of all lanes modulo 2¹³⁰ − 5; returns its lower 128 bits.
#[target_feature(enable = "avx512f")]
fn total(sum: Limbs) -> u128 {
    let [a, b, c] = sum.0.map(|limb| _mm512_reduce_add_epi64(limb).cast_unsigned());
    limbs::total(a, b, c)
}

/// The number of the block in each lane.
const ORDER: [u64; LANES] = [0, 4, 1, 5, 2, 6, 3, 7];

/// Powers of r.
struct Powers {
    /// r⁸ in every lane.
    eighth: Factor,
    /// r¹⁶ in every lane.
    sixteenth: Factor,
    /// r⁸ for the first block of a group, down to r for its last.
    falling: Factor,
}

impl Powers {
    #[target_feature(enable = "avx512f,avx512ifma")]
    #[inline]
    fn new(r: u128) -> Self {
        let mut power = Limbs::all(r);
        let mut falling = power;
        // The block with number 7 − k is multiplied by r to the power of 1 + k: one factor for each bit of k.
        for lanes in const { [lanes_without(1), lanes_without(2), lanes_without(4)] } {
            let factor = Factor::new(power);
            let product = falling.times(&factor);
            for (limb, product) in falling.0.iter_mut().zip(product.0) {
                *limb = _mm512_mask_mov_epi64(*limb, lanes, product);
            }
            power = power.times(&factor);
        }
        let eighth = Factor::new(power);
        let sixteenth = Factor::new(power.times_plus(&eighth, Limbs::zero()));
        Self { eighth, sixteenth, falling: Factor::new(falling) }
    }
}

/// The lanes in whose block number this bit is not set.
const fn lanes_without(bit: u64) -> u8 {
    let (mut lanes, mut lane) = (0, 0);
    while lane < LANES {
        if ORDER[lane] & bit == 0 {
            lanes |= 1 << lane;
        }
        lane += 1;
    }
    lanes
}
