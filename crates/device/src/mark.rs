//! The mark of the tunnel's own datagrams (`fwmark`), and the search for a mark that no other program uses.

use rtnetlink::packet_route::rule::{RuleAttribute, RuleMessage};

use crate::table;

/// A value, and the mask of the bits in a packet's mark that are compared with the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The bits that are set.
    pub value: u32,
    /// The bits that are compared.
    pub mask: u32,
}

impl Mark {
    /// A mark that is compared as a whole: the user who configured it may use its bits for other purposes, too.
    pub const fn exact(value: u32) -> Self {
        Self { value, mask: u32::MAX }
    }

    /// A mark of which only the set bits are compared: other programs may set further bits.
    pub const fn bits(value: u32) -> Self {
        Self { value, mask: value }
    }

    /// The mark that a rule matches.
    pub(crate) fn of(rule: &RuleMessage) -> Option<Self> {
        let find = |pick: fn(&RuleAttribute) -> Option<u32>| rule.attributes.iter().find_map(pick);
        let value = find(|attribute| match attribute {
            RuleAttribute::FwMark(value) => Some(*value),
            _ => None,
        });
        let mask = find(|attribute| match attribute {
            RuleAttribute::FwMask(mask) => Some(*mask),
            _ => None,
        });
        // The kernel omits the value if it is 0, and the whole mark if value and mask are both 0.
        (value.is_some() || mask.is_some())
            .then(|| Self { value: value.unwrap_or_default(), mask: mask.unwrap_or(u32::MAX) })
    }

    pub(crate) fn attributes(self) -> Vec<RuleAttribute> {
        vec![RuleAttribute::FwMark(self.value), RuleAttribute::FwMask(self.mask)]
    }

    const fn matches(self, mark: u32) -> bool {
        (mark ^ self.value) & self.mask == 0
    }

    /// Whether the rule treats this mark like no mark, and the mark shares no bit with the rule's mask.
    const fn ignores(self, mark: u32) -> bool {
        let deals_in_bits = self.mask != u32::MAX;
        self.matches(mark) == self.matches(0) && !(deals_in_bits && mark & self.mask != 0)
    }
}

/// The least number of bits: fewer could too easily be set by other programs by chance.
const FEWEST_BITS: u32 = 4;
/// The number of candidates. Each number is tried unchanged, then without the bits in use, then spread over the
/// unused bits.
const TRIED: u32 = 4096;

/// The first mark that none of `others` matches; the search begins with 51820, the mark of wg-quick.
pub(crate) fn choose(others: impl Iterator<Item = Mark>) -> Mark {
    let others: Vec<_> = others.collect();
    let dealt_in = others.iter().filter(|other| other.mask != u32::MAX);
    let free = !dealt_in.fold(0, |bits, other| bits | other.mask);
    let numbers = || (0..TRIED).map(|more| table::FIRST + more);
    let without = numbers().map(|number| number & free);
    let spread = (0..TRIED).map(|number| deposit(number, free));
    let mut tried =
        numbers().chain(without).chain(spread).filter(|mark| mark.count_ones() >= FEWEST_BITS);
    let found = tried.find(|mark| others.iter().all(|other| other.ignores(*mark)));
    // If every bit is in use, all marks are equally bad.
    Mark::bits(found.unwrap_or(table::FIRST))
}

/// The bits of `number`, moved to the positions that are set in `free`. The highest positions are used first,
/// because people usually choose small numbers for their marks.
fn deposit(number: u32, free: u32) -> u32 {
    let places = (0..u32::BITS).rev().filter(|place| free & 1 << place != 0);
    places.enumerate().fold(0, |bits, (at, place)| bits | (number >> at & 1) << place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(others: &[(u32, u32)]) -> u32 {
        let others = others.iter().map(|&(value, mask)| Mark { value, mask });
        let Mark { value, mask } = choose(others);
        assert_eq!(value, mask);
        value
    }

    #[test]
    fn nobody_in_the_way_leaves_wg_quicks() {
        assert_eq!(chosen(&[]), 51820);
        assert_eq!(chosen(&[(1, u32::MAX), (51820, u32::MAX)]), 51821);
        assert_eq!(chosen(&[(0x4000, 0x4000)]), 0x8a6c);
    }

    #[test]
    fn bits_that_others_deal_in_are_left_to_them() {
        for masks in [
            &[0x4000][..],
            &[0x4000, 0x8000],
            &[0xffff_0000],
            &[0x3f00, 0xc000],
            &[0xff_0000, 0x4000, 0x3f00],
            &[0xffff_ff00],
        ] {
            let others: Vec<_> = masks.iter().flat_map(|&mask| [(mask, mask), (0, mask)]).collect();
            let mark = chosen(&others);
            assert!(masks.iter().all(|mask| mark & mask == 0), "{mark:#x} beside {masks:x?}");
            assert!(mark.count_ones() >= FEWEST_BITS);
        }
    }

    #[test]
    fn where_every_bit_is_somebodys_there_is_still_one() {
        assert_eq!(chosen(&[(0, u32::MAX - 1), (1, 1)]), 51820);
    }

    #[test]
    fn bits_are_spread_over_the_free_places() {
        assert_eq!(deposit(0b101, 0b1101_0000), 0b1001_0000);
        assert_eq!(deposit(0b1, 0b1101_0000), 0b1000_0000);
    }
}
