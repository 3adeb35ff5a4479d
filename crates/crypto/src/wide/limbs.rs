//! Arithmetic modulo 2¹³⁰ − 5 for Poly1305 (RFC 8439 §2.5): eight numbers in parallel, each of three limbs of
//! 44, 44 and 42 bits.

use std::arch::x86_64::{
    __m512i, _mm512_add_epi64, _mm512_and_si512, _mm512_madd52hi_epu64, _mm512_madd52lo_epu64,
    _mm512_or_si512, _mm512_set1_epi64, _mm512_setzero_si512, _mm512_slli_epi64, _mm512_srli_epi64,
};

use zerocopy::transmute;

/// The number of numbers in parallel.
pub(super) const LANES: usize = 8;

const BITS_44: u64 = (1 << 44) - 1;
const BITS_42: u64 = (1 << 42) - 1;
/// The bits of r that clamping does not clear (RFC 8439 §2.5.1).
pub(super) const CLAMP: u128 = 0x0fff_fffc_0fff_fffc_0fff_fffc_0fff_ffff;

/// Eight numbers. Limbs may exceed their width by a few bits until [`Limbs::totals`].
#[derive(Clone, Copy)]
pub(super) struct Limbs(pub(super) [__m512i; 3]);

impl Limbs {
    /// Splits 128-bit numbers, given by their lower and upper halves, into limbs.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) fn of([low, high]: [__m512i; 2]) -> Self {
        let mask = _mm512_set1_epi64(BITS_44.cast_signed());
        let middle = _mm512_or_si512(_mm512_srli_epi64::<44>(low), _mm512_slli_epi64::<20>(high));
        Self([
            _mm512_and_si512(low, mask),
            _mm512_and_si512(middle, mask),
            _mm512_srli_epi64::<24>(high),
        ])
    }

    /// Like [`Limbs::of`], for blocks of a message: sets bit 128 (RFC 8439 §2.5.1).
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) fn of_blocks(halves: [__m512i; 2]) -> Self {
        Self::of(halves).with_bits(_mm512_set1_epi64(1 << 40))
    }

    /// Sets these bits in the last limb; they must be clear before.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) fn with_bits(self, bits: __m512i) -> Self {
        let [a, b, c] = self.0;
        Self([a, b, _mm512_or_si512(c, bits)])
    }

    /// One number in every lane.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) fn all(number: u128) -> Self {
        let halves: [i64; 2] = transmute!(number);
        Self::of(halves.map(|half| _mm512_set1_epi64(half)))
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) fn zero() -> Self {
        Self([_mm512_setzero_si512(); 3])
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) fn plus(self, other: Self) -> Self {
        let ([a, b, c], [x, y, z]) = (self.0, other.0);
        Self([_mm512_add_epi64(a, x), _mm512_add_epi64(b, y), _mm512_add_epi64(c, z)])
    }

    #[target_feature(enable = "avx512f,avx512ifma")]
    #[inline]
    pub(super) fn times(self, by: &Factor) -> Self {
        self.times_plus(by, Self::zero())
    }

    /// `self * by + addend` in each lane.
    #[target_feature(enable = "avx512f,avx512ifma")]
    #[inline]
    pub(super) fn times_plus(self, by: &Factor, addend: Self) -> Self {
        Products::new(addend).plus(self, by).carry()
    }

    /// Moves the bits that exceed each limb to the next one, in all lanes at once.
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

    /// Each lane's number modulo 2¹³⁰ − 5; returns its lower 128 bits.
    pub(super) fn totals(self) -> [u128; LANES] {
        let [a, b, c]: [[u64; LANES]; 3] = transmute!(self.0);
        std::array::from_fn(|i| total(a[i], b[i], c[i]))
    }
}

/// Reduces a number, whose limbs may be 60 bits wide, modulo 2¹³⁰ − 5; returns its lower 128 bits.
pub(super) fn total(a: u64, b: u64, c: u64) -> u128 {
    let b = b + (a >> 44);
    let c = c + (b >> 44);
    let (a, b) = ((a & BITS_44) + 5 * (c >> 42), b & BITS_44);
    let b = b + (a >> 44);
    let c = (c & BITS_42) + (b >> 44);
    // The number is below 2¹³⁰ + 2¹²⁸ now, and below 2¹³⁰ − 5 after one more subtraction.
    let (a, b) = ((a & BITS_44) + 5 * (c >> 42), b & BITS_44);
    reduce(a, b, c & BITS_42)
}

/// Subtracts 2¹³⁰ − 5 unless the number is smaller, without a branch, and joins the limbs.
fn reduce(a: u64, b: u64, c: u64) -> u128 {
    let less = {
        let b = b + ((a + 5) >> 44);
        c + (b >> 44)
    };
    // If the number plus 5 reaches 2¹³⁰, it has to be reduced; the result is then that sum minus 2¹³⁰.
    let five = 5 * (less >> 42);
    u128::from(a)
        .wrapping_add(u128::from(five))
        .wrapping_add(u128::from(b) << 44)
        .wrapping_add(u128::from(c) << 88)
}

/// A factor, and its upper limbs times 20, because 2¹³² is 20 modulo 2¹³⁰ − 5.
pub(super) struct Factor {
    limbs: Limbs,
    wrapped: [__m512i; 2],
}

impl Factor {
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) fn new(limbs: Limbs) -> Self {
        Self { limbs, wrapped: [twenty(limbs.0[1]), twenty(limbs.0[2])] }
    }
}

/// Sums of products whose carries are deferred: the lower 52 bits of each product, and the bits above. There
/// is room for a hundred products.
pub(super) struct Products {
    low: [__m512i; 3],
    high: [__m512i; 3],
}

impl Products {
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) fn new(addend: Limbs) -> Self {
        Self { low: addend.0, high: Limbs::zero().0 }
    }

    /// Adds one more product.
    #[target_feature(enable = "avx512f,avx512ifma")]
    #[inline]
    pub(super) fn plus(self, number: Limbs, by: &Factor) -> Self {
        let ([r0, r1, r2], [s1, s2]) = (by.limbs.0, by.wrapped);
        let rows = [[r0, s2, s1], [r1, r0, s2], [r2, r1, r0]];
        let [a, b, c] = number.0;
        let [mut low, mut high] = [self.low, self.high];
        // The first limb comes last, because it is the last to be ready after a carry.
        for (limb, column) in [(b, 1), (c, 2), (a, 0)] {
            for (i, row) in rows.iter().enumerate() {
                low[i] = _mm512_madd52lo_epu64(low[i], limb, row[column]);
                high[i] = _mm512_madd52hi_epu64(high[i], limb, row[column]);
            }
        }
        Self { low, high }
    }

    /// Carries, and returns the sum as one number. The upper parts start at bit 52, 8 bits above the next limb.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) fn carry(self) -> Limbs {
        let ([a, b, c], [x, y, z]) = (self.low, self.high);
        Limbs([
            _mm512_add_epi64(a, twenty(_mm512_slli_epi64::<8>(z))),
            _mm512_add_epi64(b, _mm512_slli_epi64::<8>(x)),
            _mm512_add_epi64(c, _mm512_slli_epi64::<8>(y)),
        ])
        .carry()
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn twenty(x: __m512i) -> __m512i {
    _mm512_add_epi64(_mm512_slli_epi64::<4>(x), _mm512_slli_epi64::<2>(x))
}
