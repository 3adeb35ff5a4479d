//! The Internet checksum (RFC 1071), alone or in the same pass as a copy.

use std::ops::{Add, Sub};

/// A ones' complement sum of big-endian 16-bit words, always folded.
///
/// Sums of parts can be added if each part but the last has an even length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u16);

impl Sum {
    /// The sum of `bytes`; an odd last byte counts as if a zero byte followed.
    pub fn of(bytes: &[u8]) -> Self {
        Self::fold(pass::<false>(bytes, &mut []))
    }

    /// Copies `from` to `to` and sums it in the same pass.
    ///
    /// # Panics
    ///
    /// If `from` and `to` differ in length.
    pub fn copy(from: &[u8], to: &mut [u8]) -> Self {
        assert_eq!(from.len(), to.len(), "a checksummed copy needs equal lengths");
        Self::fold(pass::<true>(from, to))
    }

    /// The sum of one word, such as a field that already holds a partial sum.
    pub const fn word(word: u16) -> Self {
        Self(word)
    }

    /// The folded sum, as in the checksum field of a packet that the kernel is to complete.
    pub const fn partial(self) -> u16 {
        self.0
    }

    /// The finished checksum.
    pub const fn checksum(self) -> u16 {
        !self.0
    }

    /// The new value of a field with this `checksum` when one of the words that it covers changes from `old` to
    /// `new` (RFC 1624 §3).
    pub fn updated(checksum: u16, old: u16, new: u16) -> u16 {
        (Self(!checksum) - Self(old) + Self(new)).checksum()
    }

    /// Whether data that includes its own checksum is intact.
    pub const fn is_intact(self) -> bool {
        self.0 == 0xffff
    }

    /// Folds native-endian 32-bit words that were added up.
    const fn fold(words: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = words.to_ne_bytes();
        let sum = u16::from_be_bytes([a, b]) as u32
            + u16::from_be_bytes([c, d]) as u32
            + u16::from_be_bytes([e, f]) as u32
            + u16::from_be_bytes([g, h]) as u32;
        let [_, carry, high, low] = sum.to_be_bytes();
        let (sum, carried) = u16::from_be_bytes([high, low]).overflowing_add(carry as u16);
        Self(sum + carried as u16)
    }
}

impl Add for Sum {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let (sum, carried) = self.0.overflowing_add(other.0);
        Self(sum + u16::from(carried))
    }
}

impl Sub for Sum {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self + Self(!other.0)
    }
}

/// The sum of the pseudo header: both `addresses` as in the IP header, the protocol, and the length of the
/// transport header with its payload.
pub fn pseudo_header(addresses: &[u8], protocol: u8, len: u16) -> Sum {
    Sum::of(addresses) + Sum(u16::from(protocol)) + Sum(len)
}

/// Adds up 32-bit words with the widest instructions that the processor has, and copies them if `COPY`.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "calling code compiled for AVX2")]
fn pass<const COPY: bool>(from: &[u8], to: &mut [u8]) -> u64 {
    if from.len() < BLOCK || !is_x86_feature_detected!("avx2") {
        return add_up::<COPY>(from, to);
    }
    // SAFETY: AVX2 was detected on this processor a line above.
    unsafe { add_up_avx2::<COPY>(from, to) }
}

#[cfg(not(target_arch = "x86_64"))]
fn pass<const COPY: bool>(from: &[u8], to: &mut [u8]) -> u64 {
    add_up::<COPY>(from, to)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn add_up_avx2<const COPY: bool>(from: &[u8], to: &mut [u8]) -> u64 {
    add_up::<COPY>(from, to)
}

/// Adds up in sixteen independent 64-bit lanes; each takes one 32-bit word of a block. The compiler turns this
/// form into vector code. The additions are wrapping because overflow checks would prevent that; a lane never
/// actually wraps (it has room for 2³² words).
#[inline(always)]
fn add_up<const COPY: bool>(from: &[u8], to: &mut [u8]) -> u64 {
    let (blocks, rest) = from.as_chunks::<BLOCK>();
    let (out_blocks, out_rest) = to.as_chunks_mut::<BLOCK>();
    let mut lanes = [0u64; BLOCK / 4];
    for (at, block) in blocks.iter().enumerate() {
        if COPY {
            out_blocks[at] = *block;
        }
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<4>().0) {
            *lane = lane.wrapping_add(u64::from(u32::from_ne_bytes(*word)));
        }
    }
    if COPY {
        out_rest.copy_from_slice(rest);
    }
    lanes.iter().fold(add_up_short(rest), |sum, lane| sum.wrapping_add(*lane))
}

#[inline(always)]
fn add_up_short(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    let add = |sum: u64, word: &[u8; 4]| sum.wrapping_add(u64::from(u32::from_ne_bytes(*word)));
    add(words.iter().fold(0, add), &last)
}

const BLOCK: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071, word by word.
    fn reference(bytes: &[u8]) -> u16 {
        let words =
            bytes.chunks(2).map(|c| u64::from(c[0]) << 8 | u64::from(*c.get(1).unwrap_or(&0)));
        let mut sum: u64 = words.sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).unwrap()
    }

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let any_bytes = prop::collection::vec(any::<u8>(), 0..3000);
        let carries = (0usize..70_000).prop_map(|len| vec![0xff; len]);
        prop_oneof![any_bytes, carries, (0usize..200).prop_map(|len| vec![0; len])]
    }

    proptest! {
        #[test]
        fn every_way_to_sum_agrees(bytes in bytes(), skip in 0usize..70) {
            let bytes = bytes.get(skip..).unwrap_or_default();
            let mut copy = vec![0x55; bytes.len()];
            prop_assert_eq!(Sum::of(bytes).partial(), reference(bytes));
            prop_assert_eq!(Sum::copy(bytes, &mut copy).partial(), reference(bytes));
            prop_assert_eq!(&copy, bytes);
            prop_assert_eq!(Sum::fold(add_up::<false>(bytes, &mut [])).partial(), reference(bytes));
        }

        #[test]
        fn sums_of_parts_add_up(bytes in bytes(), at in 0usize..3000) {
            let (a, b) = bytes.split_at((at & !1).min(bytes.len() & !1));
            prop_assert_eq!(Sum::of(a) + Sum::of(b), Sum::of(&bytes));
        }

        #[test]
        fn a_checksum_is_updated_as_if_made_anew(mut words: Vec<[u8; 2]>, new: u16, at: prop::sample::Index) {
            words.push([0x45, 0]);
            let (at, checksum) = (at.index(words.len()), Sum::of(words.as_flattened()).checksum());
            let old = u16::from_be_bytes(std::mem::replace(&mut words[at], new.to_be_bytes()));
            let anew = Sum::of(words.as_flattened());
            // If all words are zero, there are two valid checksums.
            prop_assume!(anew.partial() != 0);
            prop_assert_eq!(Sum::updated(checksum, old, new), anew.checksum());
        }

        #[test]
        fn what_is_added_can_be_taken_away(a: u16, b in 1u16..) {
            let back = Sum::word(a) + Sum::word(b) - Sum::word(b);
            prop_assert_eq!(back.partial() % 0xffff, a % 0xffff);
        }
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let sum = Sum::of(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.partial(), 0xddf2);
        assert_eq!(sum.checksum(), 0x220d);
    }
}
