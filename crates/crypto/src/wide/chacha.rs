//! The key stream of ChaCha20 (RFC 8439 §2.3 and §2.4) for a group of messages. Each register holds one word of
//! the state for sixteen blocks.
//!
//! In this layout a quarter round needs no shuffle. Two passes of sixteen blocks are computed step by step at
//! the same time: they fill the 32 registers, and no step has to wait for the one before it.

use std::arch::x86_64::{
    __m512i, _mm_cvtsi32_si128, _mm512_add_epi32, _mm512_and_si512, _mm512_permutex2var_epi32,
    _mm512_rol_epi32, _mm512_set1_epi32, _mm512_slli_epi32, _mm512_srl_epi32,
    _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
    _mm512_xor_si512,
};

use zerocopy::transmute;

use super::transpose::transpose;
use crate::aead::GROUP;

/// The number of bytes of a block.
pub(super) const BLOCK: usize = 64;
/// The number of blocks in one register.
const LANES: usize = 16;

/// The words of sixteen states, as rows and columns.
type State = [[__m512i; 4]; 4];

/// The key stream of up to [`GROUP`] messages, which share the sixteen lanes: with four messages, a pass
/// computes four blocks of each.
pub(super) struct Stream {
    /// The state before the first round.
    state: State,
    /// The number of messages, rounded up to a power of two so that it divides the lanes.
    width: usize,
    /// The block of each message at which the next pass begins.
    block: usize,
}

/// Blocks of key stream, sorted by block number: block n of every message, then block n + 1 of every message.
pub(super) struct Pass {
    blocks: [[u8; BLOCK]; 2 * LANES],
    len: usize,
    width: usize,
    /// The number of the first block.
    block: usize,
}

impl Stream {
    #[target_feature(enable = "avx512f")]
    pub(super) fn new(key: &[u8; 32], nonces: &[[u8; 12]]) -> Self {
        let width = nonces.len().next_power_of_two();
        let key: [[i32; 4]; 2] = transmute!(*key);
        let [constants, low, high] =
            [transmute!(*b"expand 32-byte k"), key[0], key[1]].map(|words| broadcast(words));
        let shift = _mm_cvtsi32_si128(width.trailing_zeros().cast_signed());
        let [_, x, y, z] = nonce_words(nonces, width);
        let counters = _mm512_srl_epi32(transmute!(ORDER), shift);
        Self { state: [constants, low, high, [counters, x, y, z]], width, block: 0 }
    }

    /// The number of the next block of each message.
    pub(super) fn block(&self) -> usize {
        self.block
    }

    /// Computes as many of the next blocks as the registers hold. Computes half as many if they reach the block
    /// `end`.
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
        let mut first = [self.state; N];
        for state in &mut first {
            state[3][0] = self.state[3][0];
            self.advance();
        }
        let mut states = first;
        for _ in 0..10 {
            column_round(&mut states);
            diagonalise(&mut states);
            column_round(&mut states);
            undo_diagonalise(&mut states);
        }
        let out = pass.blocks.as_chunks_mut::<LANES>().0;
        for ((state, first), out) in states.iter().zip(&first).zip(out) {
            *out = transmute!(blocks_of(&sum(state, first)));
        }
    }

    /// Advances the block counters by one pass over the lanes.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn advance(&mut self) {
        let blocks = LANES / self.width;
        let counters = &mut self.state[3][0];
        *counters = _mm512_add_epi32(*counters, all(blocks));
        self.block += blocks;
    }
}

/// This number in every lane.
#[target_feature(enable = "avx512f")]
#[inline]
fn all(number: usize) -> __m512i {
    _mm512_set1_epi32(number.to_le_bytes()[0].into())
}

#[target_feature(enable = "avx512f")]
#[inline]
fn broadcast(words: [i32; 4]) -> [__m512i; 4] {
    words.map(|word| _mm512_set1_epi32(word))
}

/// The last row of the state without its first word: each lane contains the nonce of its message.
#[target_feature(enable = "avx512f")]
#[inline]
fn nonce_words(nonces: &[[u8; 12]], width: usize) -> [__m512i; 4] {
    let mut rows = [[0; 16]; GROUP];
    for (row, nonce) in rows.iter_mut().zip(nonces) {
        row[4..].copy_from_slice(nonce);
    }
    let [low, high]: [__m512i; 2] = transmute!(rows);
    let message = _mm512_and_si512(transmute!(ORDER), all(width - 1));
    let place = _mm512_slli_epi32::<2>(message);
    [0, 1, 2, 3].map(|word| {
        let place = _mm512_add_epi32(place, _mm512_set1_epi32(word));
        _mm512_permutex2var_epi32(low, place, high)
    })
}

#[target_feature(enable = "avx512f")]
#[inline]
fn sum(state: &State, first: &State) -> State {
    let mut sum = *state;
    for (row, first) in sum.iter_mut().zip(first) {
        for (word, first) in row.iter_mut().zip(first) {
            *word = _mm512_add_epi32(*word, *first);
        }
    }
    sum
}

impl Pass {
    pub(super) fn new() -> Self {
        Self { blocks: [[0; BLOCK]; 2 * LANES], len: 0, width: 1, block: 0 }
    }

    /// Block 0 of each message: the one-time key of its authenticator (RFC 8439 §2.6).
    pub(super) fn keys(&self) -> &[[u8; BLOCK]; GROUP] {
        self.blocks.first_chunk().expect("a pass holds more than a group")
    }

    /// XORs the texts with their blocks.
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

const ORDER: [u32; LANES] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// Quarter rounds of all columns of all states (RFC 8439 §2.1), step by step.
#[target_feature(enable = "avx512f")]
#[inline]
fn column_round<const N: usize>(states: &mut [State; N]) {
    add_xor_rotate::<N, 0, 1, 3, 16>(states);
    add_xor_rotate::<N, 2, 3, 1, 12>(states);
    add_xor_rotate::<N, 0, 1, 3, 8>(states);
    add_xor_rotate::<N, 2, 3, 1, 7>(states);
}

/// `A += B; C ^= A; C <<<= BITS`, where A, B and C are rows.
#[target_feature(enable = "avx512f")]
#[inline]
#[expect(clippy::needless_range_loop, reason = "two rows of one state, one of them to write to")]
fn add_xor_rotate<
    const N: usize,
    const A: usize,
    const B: usize,
    const C: usize,
    const BITS: i32,
>(
    states: &mut [State; N],
) {
    for rows in &mut *states {
        for i in 0..4 {
            rows[A][i] = _mm512_add_epi32(rows[A][i], rows[B][i]);
        }
    }
    for rows in &mut *states {
        for i in 0..4 {
            rows[C][i] = _mm512_xor_si512(rows[C][i], rows[A][i]);
        }
    }
    for rows in &mut *states {
        for i in 0..4 {
            rows[C][i] = _mm512_rol_epi32::<BITS>(rows[C][i]);
        }
    }
}

/// Rotates the rows so that diagonals become columns. Only the names change: no value moves between registers.
fn diagonalise<const N: usize>(states: &mut [State; N]) {
    for [_, b, c, d] in states {
        *b = [b[1], b[2], b[3], b[0]];
        *c = [c[2], c[3], c[0], c[1]];
        *d = [d[3], d[0], d[1], d[2]];
    }
}

/// Rotates the rows back.
fn undo_diagonalise<const N: usize>(states: &mut [State; N]) {
    for [_, b, c, d] in states {
        *b = [b[3], b[0], b[1], b[2]];
        *c = [c[2], c[3], c[0], c[1]];
        *d = [d[1], d[2], d[3], d[0]];
    }
}

/// Transposes: from one word of sixteen blocks per register to one block per register.
#[target_feature(enable = "avx512f")]
#[inline]
fn blocks_of(state: &State) -> [__m512i; LANES] {
    let [a, b, c, d] = state.map(|row| fours(row));
    let mut blocks = [a[0]; LANES];
    for i in 0..4 {
        for (j, block) in transpose([a[i], b[i], c[i], d[i]]).into_iter().enumerate() {
            blocks[4 * j + i] = block;
        }
    }
    blocks
}

/// Transposes four words of each block: each result contains the words of four blocks.
#[target_feature(enable = "avx512f")]
#[inline]
fn fours([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
    let (ab2, cd2) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
    [
        _mm512_unpacklo_epi64(ab, cd),
        _mm512_unpackhi_epi64(ab, cd),
        _mm512_unpacklo_epi64(ab2, cd2),
        _mm512_unpackhi_epi64(ab2, cd2),
    ]
}
