//! Poly1305 (RFC 8439 §2.5, with the padding of §2.8) of several ciphertexts of one length: one ciphertext per
//! lane, each with its own r.
//!
//! Each step adds four blocks to the sum: (sum + b₀)·r⁴ + b₁·r³ + b₂·r² + b₃·r. Only the first product has to
//! wait for the previous sum, and the four products need only one carry.

use std::arch::x86_64::{
    __m512i, _mm512_and_si512, _mm512_set1_epi64, _mm512_setzero_si512, _mm512_unpackhi_epi64,
    _mm512_unpacklo_epi64,
};

use zerocopy::transmute;

use super::limbs::{CLAMP, Factor, LANES, Limbs, Products};
use super::transpose::transpose;
use crate::aead::TAG_LEN;

/// The number of bytes of a block.
const BLOCK: usize = 16;
/// The number of blocks that one step adds.
const STEP: usize = 4;

/// The tags of `texts`. The first half of each block of `keys` is the one-time key.
#[target_feature(enable = "avx512f,avx512ifma")]
pub(super) fn authenticate(
    keys: &[[u8; STEP * BLOCK]; LANES],
    texts: [&[u8]; LANES],
) -> [[u8; TAG_LEN]; LANES] {
    let [r, ..] = halves(keys.map(|key| transmute!(key)));
    let powers = powers(r);
    let totals = sum(texts, &powers).totals();
    std::array::from_fn(|i| {
        let [_, s, _, _]: [[u8; BLOCK]; STEP] = transmute!(keys[i]);
        totals[i].wrapping_add(u128::from_le_bytes(s)).to_le_bytes()
    })
}

/// The powers of r from r⁴ down to r.
#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn powers([low, high]: [__m512i; 2]) -> [Factor; STEP] {
    let clamp: [i64; 2] = transmute!(CLAMP);
    let r = Limbs::of([
        _mm512_and_si512(low, _mm512_set1_epi64(clamp[0])),
        _mm512_and_si512(high, _mm512_set1_epi64(clamp[1])),
    ]);
    let first = Factor::new(r);
    let square = r.times(&first);
    let second = Factor::new(square);
    let [third, fourth] = [r.times(&second), square.times(&second)].map(|power| Factor::new(power));
    [fourth, third, second, first]
}

#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn sum(texts: [&[u8]; LANES], powers: &[Factor; STEP]) -> Limbs {
    let len = texts[0].len();
    let chunks = texts.map(|text| text.as_chunks::<{ STEP * BLOCK }>());
    let mut sum = Limbs::zero();
    for i in 0..len / (STEP * BLOCK) {
        let blocks = halves(chunks.map(|(whole, _)| transmute!(whole[i])));
        sum = step(sum, &blocks, powers);
    }
    let count = chunks[0].1.len().div_ceil(BLOCK);
    if count > 0 {
        let blocks = halves(chunks.map(|(_, rest)| {
            let mut padded = [0; STEP * BLOCK];
            padded[..rest.len()].copy_from_slice(rest);
            transmute!(padded)
        }));
        sum = step(sum, &blocks[..count], &powers[STEP - count..]);
    }
    let lengths = [_mm512_setzero_si512(), _mm512_set1_epi64(len as i64)];
    step(sum, &[lengths], &powers[STEP - 1..])
}

/// Adds a block to the sum for each of the powers.
#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn step(sum: Limbs, blocks: &[[__m512i; 2]], powers: &[Factor]) -> Limbs {
    let mut products = Products::new(Limbs::zero());
    for (block, power) in blocks[1..].iter().zip(&powers[1..]) {
        products = products.plus(Limbs::of_blocks(*block), power);
    }
    products.plus(sum.plus(Limbs::of_blocks(blocks[0])), &powers[0]).carry()
}

/// Converts four blocks of each message to the lower and upper halves of each block, one message per lane.
#[target_feature(enable = "avx512f")]
#[inline]
fn halves(messages: [__m512i; LANES]) -> [[__m512i; 2]; STEP] {
    let [a, b, c, d, e, f, g, h] = messages;
    let pairs = [(a, b), (c, d), (e, f), (g, h)];
    let low = transpose(pairs.map(|(a, b)| _mm512_unpacklo_epi64(a, b)));
    let high = transpose(pairs.map(|(a, b)| _mm512_unpackhi_epi64(a, b)));
    std::array::from_fn(|i| [low[i], high[i]])
}
