//! Poly1305 (RFC 8439 §2.5) of a ciphertext without associated data, in the form that ChaCha20-Poly1305
//! gives it (§2.8): padded to a whole block, then a block of lengths.
//!
//! Numbers modulo 2¹³⁰ − 5 are three limbs of 44, 44 and 42 bits. Eight of them stand side by side: the
//! message's blocks are dealt to eight lanes, every lane is multiplied by r⁸ for each further block, and
//! at the end the lane whose last block is the k-th from the end by rᵏ. Blocks are counted from the end,
//! so what is missing to a multiple of eight is missing at the beginning, where zeroes do no harm.

use std::arch::x86_64::{
    __m512i, _mm512_add_epi64, _mm512_and_si512, _mm512_cmpge_epi64_mask, _mm512_madd52hi_epu64,
    _mm512_madd52lo_epu64, _mm512_mask_mov_epi64, _mm512_maskz_set1_epi64, _mm512_or_si512,
    _mm512_reduce_add_epi64, _mm512_set1_epi64, _mm512_setzero_si512, _mm512_slli_epi64,
    _mm512_srli_epi64, _mm512_unpackhi_epi64, _mm512_unpacklo_epi64,
};

use zerocopy::transmute;

use crate::aead::TAG_LEN;

/// Bytes of a block.
const BLOCK: usize = 16;
/// Blocks side by side.
const LANES: usize = 8;
/// Bytes of one block for each lane.
const GROUP: usize = BLOCK * LANES;

const BITS_44: u64 = (1 << 44) - 1;
const BITS_42: u64 = (1 << 42) - 1;
/// RFC 8439 §2.5.1.
pub(super) const CLAMP: u128 = 0x0fff_fffc_0fff_fffc_0fff_fffc_0fff_ffff;

/// The tag of `text` under a one-time key.
#[target_feature(enable = "avx512f,avx512ifma")]
pub(super) fn authenticate(key: [u8; 32], text: &[u8]) -> [u8; TAG_LEN] {
    let [r, s]: [[u8; 16]; 2] = transmute!(key);
    let powers = Powers::new(u128::from_le_bytes(r) & CLAMP);
    let sum = sum(text, &powers).times_plus(&powers.falling, Limbs::zero());
    sum.total().wrapping_add(u128::from_le_bytes(s)).to_le_bytes()
}

/// Adds up the blocks of each lane, short of the last multiplication: the first group, which may lack
/// blocks, then those that are all text, then the one that ends in the lengths.
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
        return Limbs::of(&bytes, lead / BLOCK);
    }
    let (whole, rest) = rest.as_chunks();
    let sum = sum_whole(Limbs::of(&bytes, lead / BLOCK), whole, powers);
    let mut bytes = [0; GROUP];
    bytes[..rest.len()].copy_from_slice(rest);
    put_lengths(&mut bytes, text.len());
    sum.times_plus(&powers.eighth, Limbs::of(&bytes, 0))
}

/// Two groups at a time, in two sums that do not wait for each other.
#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
fn sum_whole(first: Limbs, whole: &[[u8; GROUP]], powers: &Powers) -> Limbs {
    let (pairs, odd) = whole.as_chunks::<2>();
    let (mut sum, mut other) = (first, Limbs::zero());
    for [a, b] in pairs {
        other = other.times_plus(&powers.sixteenth, Limbs::of(a, 0));
        sum = sum.times_plus(&powers.sixteenth, Limbs::of(b, 0));
    }
    let sum = other.times_plus(&powers.eighth, sum);
    odd.iter().fold(sum, |sum, group| sum.times_plus(&powers.eighth, Limbs::of(group, 0)))
}

/// The last block of the message: no associated data, and so many bytes of text.
fn put_lengths(group: &mut [u8; GROUP], len: usize) {
    group[GROUP - 8..].copy_from_slice(&(len as u64).to_le_bytes());
}

/// Eight numbers. Limbs may exceed their width by a few bits until [`Limbs::total`].
#[derive(Clone, Copy)]
struct Limbs([__m512i; 3]);

impl Limbs {
    /// Blocks as numbers, each with a bit above its 128 but for the first `missing`. The order is
    /// that of [`ORDER`].
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn of(bytes: &[u8; GROUP], missing: usize) -> Self {
        let [a, b]: [__m512i; 2] = transmute!(*bytes);
        let (low, high) = (_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
        let mask = _mm512_set1_epi64(BITS_44.cast_signed());
        let middle = _mm512_or_si512(_mm512_srli_epi64::<44>(low), _mm512_slli_epi64::<20>(high));
        let present = _mm512_cmpge_epi64_mask(transmute!(ORDER), _mm512_set1_epi64(missing as i64));
        let above = _mm512_maskz_set1_epi64(present, 1 << 40);
        Self([
            _mm512_and_si512(low, mask),
            _mm512_and_si512(middle, mask),
            _mm512_or_si512(_mm512_srli_epi64::<24>(high), above),
        ])
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn all(number: u128) -> Self {
        let [low, high]: [u64; 2] = transmute!(number);
        let limbs = [low & BITS_44, (low >> 44 | high << 20) & BITS_44, high >> 24];
        Self(limbs.map(|limb| _mm512_set1_epi64(limb.cast_signed())))
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn zero() -> Self {
        Self([_mm512_setzero_si512(); 3])
    }

    /// Lane by lane, a product and a sum. The products' upper parts start at bit 52, 8 bits above the
    /// next limb.
    #[target_feature(enable = "avx512f,avx512ifma")]
    #[inline]
    fn times_plus(self, by: &Factor, addend: Self) -> Self {
        let ([r0, r1, r2], [s1, s2]) = (by.limbs.0, by.wrapped);
        let low = [
            self.low([r0, s2, s1], addend.0[0]),
            self.low([r1, r0, s2], addend.0[1]),
            self.low([r2, r1, r0], addend.0[2]),
        ];
        let high = [self.high([r0, s2, s1]), self.high([r1, r0, s2]), self.high([r2, r1, r0])];
        Self([
            _mm512_add_epi64(low[0], twenty(_mm512_slli_epi64::<8>(high[2]))),
            _mm512_add_epi64(low[1], _mm512_slli_epi64::<8>(high[0])),
            _mm512_add_epi64(low[2], _mm512_slli_epi64::<8>(high[1])),
        ])
        .carry()
    }

    /// The lower 52 bits of three products, and `addend`.
    #[target_feature(enable = "avx512f,avx512ifma")]
    #[inline]
    fn low(self, [x, y, z]: [__m512i; 3], addend: __m512i) -> __m512i {
        let [a, b, c] = self.0;
        let sum = _mm512_madd52lo_epu64(_mm512_madd52lo_epu64(addend, b, y), c, z);
        _mm512_madd52lo_epu64(sum, a, x)
    }

    /// What lies above 52 bits of three products.
    #[target_feature(enable = "avx512f,avx512ifma")]
    #[inline]
    fn high(self, [x, y, z]: [__m512i; 3]) -> __m512i {
        let [a, b, c] = self.0;
        let zero = _mm512_setzero_si512();
        let sum = _mm512_madd52hi_epu64(_mm512_madd52hi_epu64(zero, b, y), c, z);
        _mm512_madd52hi_epu64(sum, a, x)
    }

    /// Moves what exceeds each limb to the next, all at once.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn carry(self) -> Self {
        let [a, b, c] = self.0;
        let (wide, narrow) = (_mm512_set1_epi64(BITS_44 as i64), _mm512_set1_epi64(BITS_42 as i64));
        let over = _mm512_srli_epi64::<42>(c);
        let five = _mm512_add_epi64(over, _mm512_slli_epi64::<2>(over));
        Self([
            _mm512_add_epi64(_mm512_and_si512(a, wide), five),
            _mm512_add_epi64(_mm512_and_si512(b, wide), _mm512_srli_epi64::<44>(a)),
            _mm512_add_epi64(_mm512_and_si512(c, narrow), _mm512_srli_epi64::<44>(b)),
        ])
    }

    /// The sum of all lanes modulo 2¹³⁰ − 5, and of that the lower 128 bits.
    #[target_feature(enable = "avx512f")]
    fn total(self) -> u128 {
        let [a, b, c] = self.0.map(|limb| _mm512_reduce_add_epi64(limb) as u64);
        let b = b + (a >> 44);
        let c = c + (b >> 44);
        let (a, b) = ((a & BITS_44) + 5 * (c >> 42), b & BITS_44);
        let b = b + (a >> 44);
        let c = (c & BITS_42) + (b >> 44);
        // Below 2¹³⁰ + 2¹²⁸ now, and below 2¹³⁰ − 5 after one more subtraction.
        let (a, b) = ((a & BITS_44) + 5 * (c >> 42), b & BITS_44);
        reduce(a, b, c & BITS_42)
    }
}

/// Subtracts 2¹³⁰ − 5 unless the number is smaller, without a branch, and joins the limbs.
fn reduce(a: u64, b: u64, c: u64) -> u128 {
    let less = {
        let b = b + ((a + 5) >> 44);
        c + (b >> 44)
    };
    // The number plus 5 reaches 2¹³⁰ just where it has to be replaced by that sum, less 2¹³⁰.
    let five = 5 * (less >> 42);
    u128::from(a)
        .wrapping_add(u128::from(five))
        .wrapping_add(u128::from(b) << 44)
        .wrapping_add(u128::from(c) << 88)
}

/// A number to multiply by, and its upper limbs times 20: what they contribute beyond 2¹³².
struct Factor {
    limbs: Limbs,
    wrapped: [__m512i; 2],
}

impl Factor {
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn new(limbs: Limbs) -> Self {
        Self { limbs, wrapped: [twenty(limbs.0[1]), twenty(limbs.0[2])] }
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn twenty(x: __m512i) -> __m512i {
    _mm512_add_epi64(_mm512_slli_epi64::<4>(x), _mm512_slli_epi64::<2>(x))
}

/// The number of the block that stands in each lane.
const ORDER: [u64; LANES] = [0, 4, 1, 5, 2, 6, 3, 7];

/// Powers of r.
struct Powers {
    /// r⁸ in every lane.
    eighth: Factor,
    /// r¹⁶ in every lane.
    sixteenth: Factor,
    /// r⁸ for the first block of a group, r for its last.
    falling: Factor,
}

impl Powers {
    #[target_feature(enable = "avx512f,avx512ifma")]
    #[inline]
    fn new(r: u128) -> Self {
        let mut power = Limbs::all(r);
        let mut falling = power;
        // The block with number 7 − k takes r to the power of 1 + k: bit by bit of k.
        for lanes in const { [lanes_without(1), lanes_without(2), lanes_without(4)] } {
            let factor = Factor::new(power);
            let product = falling.times_plus(&factor, Limbs::zero());
            for (limb, product) in falling.0.iter_mut().zip(product.0) {
                *limb = _mm512_mask_mov_epi64(*limb, lanes, product);
            }
            power = power.times_plus(&factor, Limbs::zero());
        }
        let eighth = Factor::new(power);
        let sixteenth = Factor::new(power.times_plus(&eighth, Limbs::zero()));
        Self { eighth, sixteenth, falling: Factor::new(falling) }
    }
}

/// The lanes whose block's number lacks this bit.
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
