//! The key stream of ChaCha20 (RFC 8439 §2.3 and §2.4) for a group of messages: each register holds one
//! word of the state, for sixteen blocks side by side.
//!
//! A quarter round then needs no shuffle, and two passes of sixteen blocks, step by step at the same
//! time, just fill the 32 registers and leave no step to wait for the one before it.

use std::arch::x86_64::{
    __m512i, _mm_cvtsi32_si128, _mm512_add_epi32, _mm512_and_si512, _mm512_permutex2var_epi32,
    _mm512_rol_epi32, _mm512_set1_epi32, _mm512_setzero_si512, _mm512_slli_epi32, _mm512_srl_epi32,
    _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
    _mm512_xor_si512,
};

use zerocopy::transmute;

use super::transpose::transpose;
use crate::aead::GROUP;

/// Bytes of a block.
pub(super) const BLOCK: usize = 64;
/// Blocks side by side.
const LANES: usize = 16;

/// The key stream of up to [`GROUP`] messages. The sixteen lanes are dealt to them in turn: with four
/// messages, a pass makes four blocks of each.
pub(super) struct Stream {
    /// Before the first round.
    state: [__m512i; 16],
    /// Messages rounded up to a power of two, so that they divide the lanes.
    width: usize,
    /// Blocks of each message that the next pass begins with.
    block: usize,
}

/// Blocks of key stream, those of one number for all messages together.
pub(super) struct Pass {
    blocks: [[u8; BLOCK]; 2 * LANES],
    len: usize,
    width: usize,
    /// The number of the first.
    block: usize,
}

impl Stream {
    #[target_feature(enable = "avx512f")]
    pub(super) fn new(key: &[u8; 32], nonces: &[[u8; 12]]) -> Self {
        let width = nonces.len().next_power_of_two();
        let mut rows = [[0; 16]; GROUP];
        for (row, nonce) in rows.iter_mut().zip(nonces) {
            row[4..].copy_from_slice(nonce);
        }
        let [low, high]: [__m512i; 2] = transmute!(rows);
        let lanes = transmute!(ORDER);
        let message = _mm512_and_si512(lanes, all(width - 1));
        let place = _mm512_slli_epi32::<2>(message);
        let word =
            |i| _mm512_permutex2var_epi32(low, _mm512_add_epi32(place, _mm512_set1_epi32(i)), high);
        let mut state = [_mm512_setzero_si512(); 16];
        let constants: [i32; 4] = transmute!(*b"expand 32-byte k");
        let key: [i32; 8] = transmute!(*key);
        for (row, word) in state.iter_mut().zip(constants.into_iter().chain(key)) {
            *row = _mm512_set1_epi32(word);
        }
        let shift = _mm_cvtsi32_si128(width.trailing_zeros().cast_signed());
        state[12] = _mm512_srl_epi32(lanes, shift);
        state[13] = word(1);
        state[14] = word(2);
        state[15] = word(3);
        Self { state, width, block: 0 }
    }

    /// The number of the next block of each message.
    pub(super) fn block(&self) -> usize {
        self.block
    }

    /// As many of the next blocks as the registers hold, or fewer if none has a number of `end` or
    /// above.
    #[target_feature(enable = "avx512f")]
    pub(super) fn next(&mut self, end: usize, pass: &mut Pass) {
        (pass.width, pass.block) = (self.width, self.block);
        if (end - self.block) * self.width <= LANES {
            pass.len = LANES;
            self.fill::<1>(pass);
        } else {
            pass.len = 2 * LANES;
            self.fill::<2>(pass);
        }
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn fill<const N: usize>(&mut self, pass: &mut Pass) {
        let blocks = LANES / self.width;
        let mut first = [self.state; N];
        for state in &mut first {
            state[12] = self.state[12];
            self.state[12] = _mm512_add_epi32(self.state[12], all(blocks));
            self.block += blocks;
        }
        let mut states = first;
        for _ in 0..10 {
            quarter_rounds(&mut states, COLUMNS);
            quarter_rounds(&mut states, DIAGONALS);
        }
        for ((state, first), out) in
            states.iter_mut().zip(&first).zip(pass.blocks.as_chunks_mut::<LANES>().0)
        {
            for (word, first) in state.iter_mut().zip(first) {
                *word = _mm512_add_epi32(*word, *first);
            }
            *out = transmute!(blocks_of(state));
        }
    }
}

impl Pass {
    pub(super) fn new() -> Self {
        Self { blocks: [[0; BLOCK]; 2 * LANES], len: 0, width: 1, block: 0 }
    }

    /// Block 0 of each message: the one-time key of its authenticator (RFC 8439 §2.6).
    pub(super) fn keys(&self) -> &[[u8; BLOCK]; GROUP] {
        self.blocks.first_chunk().expect("a pass holds more than a group")
    }

    /// Adds the blocks to the texts that they are for.
    #[target_feature(enable = "avx512f")]
    pub(super) fn xor(&self, texts: &mut [&mut [u8]]) {
        for (number, blocks) in (self.block..).zip(self.blocks[..self.len].chunks(self.width)) {
            let Some(start) = number.checked_sub(1) else { continue };
            for (text, block) in texts.iter_mut().zip(blocks) {
                if let Some(text) = text.get_mut(start * BLOCK..) {
                    xor_block(text, block);
                }
            }
        }
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn xor_block(text: &mut [u8], block: &[u8; BLOCK]) {
    if let Some(text) = text.first_chunk_mut::<BLOCK>() {
        *text = transmute!(_mm512_xor_si512(transmute!(*text), transmute!(*block)));
    } else {
        text.iter_mut().zip(block).for_each(|(text, key)| *text ^= key);
    }
}

/// A number of lanes, in each of them.
#[target_feature(enable = "avx512f")]
#[inline]
fn all(number: usize) -> __m512i {
    _mm512_set1_epi32(number.to_le_bytes()[0].into())
}

const ORDER: [u32; LANES] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

const COLUMNS: [[usize; 4]; 4] = [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]];
const DIAGONALS: [[usize; 4]; 4] = [[0, 5, 10, 15], [1, 6, 11, 12], [2, 7, 8, 13], [3, 4, 9, 14]];

/// Four quarter rounds of each state (RFC 8439 §2.1), step by step.
#[target_feature(enable = "avx512f")]
#[inline]
fn quarter_rounds<const N: usize>(states: &mut [[__m512i; 16]; N], rounds: [[usize; 4]; 4]) {
    let [abd, cdb] = [[0, 1, 3], [2, 3, 1]].map(|of| rounds.map(|round| of.map(|i| round[i])));
    add_xor_rotate::<N, 16>(states, abd);
    add_xor_rotate::<N, 12>(states, cdb);
    add_xor_rotate::<N, 8>(states, abd);
    add_xor_rotate::<N, 7>(states, cdb);
}

/// `a += b; c ^= a; c <<<= BITS`.
#[target_feature(enable = "avx512f")]
#[inline]
fn add_xor_rotate<const N: usize, const BITS: i32>(
    states: &mut [[__m512i; 16]; N],
    words: [[usize; 3]; 4],
) {
    for state in &mut *states {
        for [a, b, _] in words {
            state[a] = _mm512_add_epi32(state[a], state[b]);
        }
    }
    for state in &mut *states {
        for [a, _, c] in words {
            state[c] = _mm512_xor_si512(state[c], state[a]);
        }
    }
    for state in &mut *states {
        for [_, _, c] in words {
            state[c] = _mm512_rol_epi32::<BITS>(state[c]);
        }
    }
}

/// From a word of sixteen blocks in each register to a block in each register.
#[target_feature(enable = "avx512f")]
#[inline]
fn blocks_of(state: &[__m512i; 16]) -> [__m512i; LANES] {
    let [a, b, c, d] =
        [0, 4, 8, 12].map(|i| fours(state[i], state[i + 1], state[i + 2], state[i + 3]));
    let mut blocks = [_mm512_setzero_si512(); LANES];
    for i in 0..4 {
        let column = transpose([a[i], b[i], c[i], d[i]]);
        for (j, block) in column.into_iter().enumerate() {
            blocks[4 * j + i] = block;
        }
    }
    blocks
}

/// Of four words of each block, those of four blocks in each register.
#[target_feature(enable = "avx512f")]
#[inline]
fn fours(a: __m512i, b: __m512i, c: __m512i, d: __m512i) -> [__m512i; 4] {
    let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
    let (ab2, cd2) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
    [
        _mm512_unpacklo_epi64(ab, cd),
        _mm512_unpackhi_epi64(ab, cd),
        _mm512_unpacklo_epi64(ab2, cd2),
        _mm512_unpackhi_epi64(ab2, cd2),
    ]
}
