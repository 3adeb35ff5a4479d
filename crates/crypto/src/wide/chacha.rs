//! The block function of ChaCha20 (RFC 8439 §2.3), four blocks to a group of four registers: each
//! register holds one row of the state, for four blocks side by side.

use std::arch::x86_64::{
    __m512i, _mm512_add_epi32, _mm512_broadcast_i32x4, _mm512_rol_epi32, _mm512_set_epi32,
    _mm512_setzero_si512, _mm512_shuffle_epi32, _mm512_shuffle_i32x4, _mm512_xor_si512,
};

use zerocopy::transmute;

/// Bytes of a block.
pub(super) const BLOCK: usize = 64;
/// Blocks of a pass: six groups fill 24 of the 32 registers.
pub(super) const BLOCKS: usize = 24;
/// The same, as a distance between counters.
pub(super) const PASS: u32 = 24;
/// Blocks of a group.
const GROUP: usize = 4;

/// Key stream: one block a register.
pub(super) struct Blocks([__m512i; BLOCKS]);

impl Default for Blocks {
    fn default() -> Self {
        Self([transmute!([0u8; BLOCK]); BLOCKS])
    }
}

impl Blocks {
    /// The first half of the first block: the one-time key of the authenticator.
    pub(super) fn half(&self) -> [u8; 32] {
        let [key, _]: [[u8; 32]; 2] = transmute!(self.0[0]);
        key
    }

    /// Adds the blocks from `first` on to `text`, which they must reach for.
    #[target_feature(enable = "avx512f")]
    pub(super) fn xor(&self, first: usize, text: &mut [u8]) {
        let (whole, rest) = text.as_chunks_mut::<BLOCK>();
        let (used, unused) = self.0[first..].split_at(whole.len());
        for (text, block) in whole.iter_mut().zip(used) {
            *text = transmute!(_mm512_xor_si512(transmute!(*text), *block));
        }
        if !rest.is_empty() {
            let last: [u8; BLOCK] = transmute!(unused[0]);
            rest.iter_mut().zip(last).for_each(|(text, key)| *text ^= key);
        }
    }
}

/// The rows before the first round, each four times side by side: constants, key, key, and counter
/// with nonce.
pub(super) struct State([__m512i; 4]);

impl State {
    #[target_feature(enable = "avx512f")]
    pub(super) fn new(key: &[u8; 32], nonce: &[u8; 12]) -> Self {
        let mut last = [0; 16];
        last[4..].copy_from_slice(nonce);
        let [low, high]: [[u8; 16]; 2] = transmute!(*key);
        let rows = [*b"expand 32-byte k", low, high, last];
        Self(rows.map(|row| _mm512_broadcast_i32x4(transmute!(row))))
    }

    /// Fills at least the first `count` of `blocks` from `counter` on, in as few rounds of as many
    /// groups as it takes.
    #[target_feature(enable = "avx512f")]
    pub(super) fn generate(&self, counter: u32, blocks: &mut Blocks, count: usize) {
        match count.div_ceil(GROUP) {
            0 => {}
            1 => self.groups::<1>(counter, blocks),
            2 => self.groups::<2>(counter, blocks),
            3 => self.groups::<3>(counter, blocks),
            4 => self.groups::<4>(counter, blocks),
            5 => self.groups::<5>(counter, blocks),
            _ => self.groups::<6>(counter, blocks),
        }
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn groups<const N: usize>(&self, counter: u32, blocks: &mut Blocks) {
        let mut counters = [_mm512_setzero_si512(); N];
        for (group, row) in (counter as i32..).step_by(GROUP).zip(&mut counters) {
            let (a, b, c, d) = (group, group + 1, group + 2, group + 3);
            *row = _mm512_set_epi32(0, 0, 0, d, 0, 0, 0, c, 0, 0, 0, b, 0, 0, 0, a);
        }
        let first = counters.map(|row| {
            let [a, b, c, d] = self.0;
            [a, b, c, _mm512_add_epi32(d, row)]
        });
        let mut groups = first;
        for _ in 0..10 {
            column_round(&mut groups);
            diagonalise(&mut groups);
            column_round(&mut groups);
            undo_diagonalise(&mut groups);
        }
        for ((group, first), out) in groups.iter().zip(first).zip(blocks.0.as_chunks_mut().0) {
            let sum = |row: usize| _mm512_add_epi32(group[row], first[row]);
            *out = transpose([sum(0), sum(1), sum(2), sum(3)]);
        }
    }
}

/// A quarter round of all columns of all groups (RFC 8439 §2.1), step by step over the groups, so
/// that no step waits for the one before it.
#[target_feature(enable = "avx512f")]
#[inline]
fn column_round<const N: usize>(groups: &mut [[__m512i; 4]; N]) {
    add_xor_rotate::<N, 0, 1, 3, 16>(groups);
    add_xor_rotate::<N, 2, 3, 1, 12>(groups);
    add_xor_rotate::<N, 0, 1, 3, 8>(groups);
    add_xor_rotate::<N, 2, 3, 1, 7>(groups);
}

/// `A += B; C ^= A; C <<<= BITS`.
#[target_feature(enable = "avx512f")]
#[inline]
fn add_xor_rotate<
    const N: usize,
    const A: usize,
    const B: usize,
    const C: usize,
    const BITS: i32,
>(
    groups: &mut [[__m512i; 4]; N],
) {
    for rows in &mut *groups {
        rows[A] = _mm512_add_epi32(rows[A], rows[B]);
    }
    for rows in &mut *groups {
        rows[C] = _mm512_xor_si512(rows[C], rows[A]);
    }
    for rows in &mut *groups {
        rows[C] = _mm512_rol_epi32::<BITS>(rows[C]);
    }
}

/// Turns the rows so that diagonals stand in columns. The second row is ready last, so it stays and the
/// others turn.
#[target_feature(enable = "avx512f")]
#[inline]
fn diagonalise<const N: usize>(groups: &mut [[__m512i; 4]; N]) {
    for rows in groups {
        rows[0] = _mm512_shuffle_epi32::<0b10_01_00_11>(rows[0]);
        rows[2] = _mm512_shuffle_epi32::<0b00_11_10_01>(rows[2]);
        rows[3] = _mm512_shuffle_epi32::<0b01_00_11_10>(rows[3]);
    }
}

/// Turns them back.
#[target_feature(enable = "avx512f")]
#[inline]
fn undo_diagonalise<const N: usize>(groups: &mut [[__m512i; 4]; N]) {
    for rows in groups {
        rows[0] = _mm512_shuffle_epi32::<0b00_11_10_01>(rows[0]);
        rows[2] = _mm512_shuffle_epi32::<0b10_01_00_11>(rows[2]);
        rows[3] = _mm512_shuffle_epi32::<0b01_00_11_10>(rows[3]);
    }
}

/// From a row of four blocks in each register to a block in each register.
#[target_feature(enable = "avx512f")]
#[inline]
fn transpose([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let ab = [_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xee>(a, b)];
    let cd = [_mm512_shuffle_i32x4::<0x44>(c, d), _mm512_shuffle_i32x4::<0xee>(c, d)];
    [
        _mm512_shuffle_i32x4::<0x88>(ab[0], cd[0]),
        _mm512_shuffle_i32x4::<0xdd>(ab[0], cd[0]),
        _mm512_shuffle_i32x4::<0x88>(ab[1], cd[1]),
        _mm512_shuffle_i32x4::<0xdd>(ab[1], cd[1]),
    ]
}
