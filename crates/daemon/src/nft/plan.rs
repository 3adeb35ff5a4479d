//! Tables as transactions: sets, chains and rules.

use std::io;

use super::message::{Encoded, NESTED, attribute, changing, joined, zero_ended};
use super::{
    Connection, DELETE_TABLE, EXPRESSIONS, HOOK, HOOK_NUMBER, HOOK_PRIORITY, Hook, NAME, NEW_CHAIN,
    NEW_ELEMENTS, NEW_RULE, NEW_SET, NEW_TABLE, RULE_CHAIN, RULE_TABLE, TABLE, TABLE_FLAGS,
    TABLE_NAME, TYPE, Table, expression,
};

/// `NLM_F_CREATE`.
const CREATE: u16 = 0x400;
/// The maximum number of ranges in one message: 36 KB of the 64 KB that an attribute can have.
const RANGES_AT_ONCE: usize = 500;

/// A set of address ranges of one IP version, as numbers. The ranges are sorted and not adjacent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) name: &'static str,
    /// The length of an address: 4 or 16.
    pub(crate) bytes: usize,
    /// The first and the last address of each range.
    pub(crate) ranges: Vec<(u128, u128)>,
}

impl Set {
    /// The messages that add the ranges. Many ranges need several messages, because an attribute's length has
    /// only 16 bits.
    pub(super) fn additions(&self, table: &str) -> io::Result<Vec<Vec<u8>>> {
        let named = elements_of(table, self.name)?;
        let addition = |ranges: &[(u128, u128)]| {
            changing(NEW_ELEMENTS, CREATE, &[&named[..], &self.elements(ranges)?].concat())
        };
        self.ranges.chunks(RANGES_AT_ONCE).map(addition).collect()
    }

    /// The ranges in the kernel's form: one element at the beginning of a range, and one after its end.
    fn elements(&self, ranges: &[(u128, u128)]) -> Encoded {
        const END: u32 = 1;
        let element = |key: u128, flags: u32| {
            let key = &key.to_be_bytes()[size_of::<u128>() - self.bytes..];
            let key = attribute(1 | NESTED, &attribute(expression::VALUE, key)?);
            attribute(1 | NESTED, &joined([key, attribute(3, &flags.to_be_bytes())])?)
        };
        let largest = u128::MAX >> (8 * (size_of::<u128>() - self.bytes));
        let both = |(first, last): &(u128, u128)| {
            let end = (*last < largest).then(|| element(*last + 1, END));
            [Some(element(*first, 0)), end].into_iter().flatten()
        };
        attribute(3 | NESTED, &joined(ranges.iter().flat_map(both))?)
    }
}

/// A table with its chains and rules, which is made in one transaction.
pub(crate) struct Plan {
    pub(super) table: String,
    /// The number of sets so far.
    sets: u32,
    pub(super) messages: Vec<Vec<u8>>,
}

impl Plan {
    /// A new table of this name for both IP versions. The kernel removes it when the process ends in any way.
    /// Until then no other program can change it, not even `nft flush ruleset` (`NFT_TABLE_F_OWNER`).
    ///
    /// # Errors
    ///
    /// If a part does not fit into a message; this also applies to all other parts of a plan.
    pub(crate) fn owned(table: &str) -> io::Result<Self> {
        const OWNER: u32 = 2;
        const ALONE: u16 = 0x200;
        let named = attribute(TABLE_NAME, &zero_ended(table));
        let mut plan = Self { table: table.to_owned(), sets: 0, messages: Vec::new() };
        let flags = attribute(TABLE_FLAGS, &OWNER.to_be_bytes());
        plan.push(NEW_TABLE, CREATE | ALONE, [named, flags])?;
        Ok(plan)
    }

    /// Like [`Self::owned`], but the table exists until it is deleted. It replaces a table of the same name in
    /// one transaction, so no packet passes in between.
    pub(crate) fn lasting(table: &str) -> io::Result<Self> {
        let mut plan = Self { table: table.to_owned(), sets: 0, messages: Vec::new() };
        // The table is created first, because only an existing table can be deleted.
        for (kind, flags) in [(NEW_TABLE, CREATE), (DELETE_TABLE, 0), (NEW_TABLE, CREATE)] {
            plan.push(kind, flags, [attribute(TABLE_NAME, &zero_ended(table))])?;
        }
        Ok(plan)
    }

    /// Adds a chain at this hook; chains with a lower priority number come first.
    pub(crate) fn chain(&mut self, name: &str, hook: Hook, priority: i32) -> io::Result<()> {
        let hook = joined([
            attribute(HOOK_NUMBER, &(hook as u32).to_be_bytes()),
            attribute(HOOK_PRIORITY, &priority.to_be_bytes()),
        ])?;
        let attributes = [
            attribute(TABLE, &zero_ended(&self.table)),
            attribute(NAME, &zero_ended(name)),
            attribute(HOOK | NESTED, &hook),
            attribute(TYPE, b"filter\0"),
        ];
        self.push(NEW_CHAIN, CREATE, attributes)
    }

    /// Adds a set of address ranges.
    pub(crate) fn set(&mut self, set: &Set) -> io::Result<()> {
        const INTERVALS: u32 = 4;
        // The type of the elements for `nft`: IPv4 or IPv6 addresses.
        let (kind, bytes): (u32, u32) = if set.bytes == 4 { (7, 4) } else { (8, 16) };
        self.sets += 1;
        let attributes = [
            attribute(1, &zero_ended(&self.table)),
            attribute(2, &zero_ended(set.name)),
            attribute(3, &INTERVALS.to_be_bytes()),
            attribute(4, &kind.to_be_bytes()),
            attribute(5, &bytes.to_be_bytes()),
            // The id by which messages of the same transaction refer to the set.
            attribute(10, &self.sets.to_be_bytes()),
        ];
        self.push(NEW_SET, CREATE, attributes)?;
        self.messages.extend(set.additions(&self.table)?);
        Ok(())
    }

    /// Adds a rule at the end of a chain.
    pub(crate) fn rule(
        &mut self,
        chain: &str,
        expressions: impl IntoIterator<Item = Encoded>,
    ) -> io::Result<()> {
        const LAST: u16 = 0x800;
        let attributes = [
            attribute(RULE_TABLE, &zero_ended(&self.table)),
            attribute(RULE_CHAIN, &zero_ended(chain)),
            attribute(EXPRESSIONS | NESTED, &joined(expressions)?),
        ];
        self.push(NEW_RULE, CREATE | LAST, attributes)
    }

    /// Makes the table with all its parts.
    ///
    /// # Errors
    ///
    /// The kernel's error; then nothing was made.
    pub(crate) fn make(&self) -> io::Result<Table> {
        Connection::open()?.make(self)
    }

    fn push(
        &mut self,
        kind: u16,
        flags: u16,
        attributes: impl IntoIterator<Item = Encoded>,
    ) -> io::Result<()> {
        self.messages.push(changing(kind, flags, &joined(attributes)?)?);
        Ok(())
    }
}

/// The attributes that identify a set (`nft_set_elem_list_attributes`).
pub(super) fn elements_of(table: &str, set: &str) -> Encoded {
    joined([attribute(1, &zero_ended(table)), attribute(2, &zero_ended(set))])
}

#[cfg(test)]
mod tests {
    use super::super::message::{Attributes, HEADER, number};
    use super::*;

    /// The keys of a message that adds elements, each with its flags.
    fn keys(message: &[u8]) -> Vec<(u128, u32)> {
        let len = u32::from_ne_bytes(*message.first_chunk().unwrap());
        assert_eq!(usize::try_from(len).unwrap(), message.len());
        let (_, elements) =
            Attributes(&message[HEADER + 4..]).find(|(kind, _)| *kind == 3).unwrap();
        let of = |element| {
            let mut parts = Attributes(element);
            let ((_, key), (_, flags)) = (parts.next().unwrap(), parts.next().unwrap());
            let (_, key) = Attributes(key).next().unwrap();
            (u128::from_be_bytes(key.try_into().unwrap()), number(flags).unwrap())
        };
        Attributes(elements).map(|(_, element)| of(element)).collect()
    }

    #[test]
    fn many_ranges_are_several_messages() {
        let base = 0x2001_0db8_u128 << 96;
        let range =
            |n: u128| (base + ((2 * n) << 64), base + ((2 * n) << 64) + u128::from(u64::MAX));
        let mut ranges: Vec<_> = (0..1023).map(range).collect();
        ranges.push((u128::MAX - 1, u128::MAX));
        let set = Set { name: "specific6", bytes: 16, ranges };
        let messages = set.additions("vpnd_killswitch-a").unwrap();
        assert_eq!(messages.len(), 3);
        assert!(messages.iter().all(|message| message.len() <= usize::from(u16::MAX)));
        let keys: Vec<_> = messages.iter().flat_map(|message| keys(message)).collect();
        let read = keys.iter().enumerate().filter(|(_, (_, flags))| *flags == 0);
        let end = |n: usize| keys.get(n + 1).map_or(u128::MAX, |(end, _)| end - 1);
        let read: Vec<_> = read.map(|(n, (first, _))| (*first, end(n))).collect();
        assert_eq!(read, set.ranges);
    }

    #[test]
    fn a_value_that_does_not_fit_is_an_error() {
        let most = usize::from(u16::MAX) - 4;
        assert_eq!(attribute(1, &vec![0; most]).unwrap().len(), 1 << 16);
        assert_eq!(
            attribute(1, &vec![0; most + 1]).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
        let many = Set { name: "specific6", bytes: 16, ranges: vec![(0, 0); 911] };
        assert!(many.elements(&many.ranges).is_err());
    }
}
