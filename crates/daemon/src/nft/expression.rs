//! The expressions of a rule. All of them use one register: they load a value into it, or compare its value.

use super::message::{Encoded, NESTED, attribute, joined, zero_ended};

/// `NFTA_DATA_VALUE`.
pub(super) const VALUE: u16 = 1;
const REGISTER: u32 = 1;

/// Metadata of a packet (`nft_meta_keys`).
#[derive(Clone, Copy)]
pub(crate) enum Meta {
    /// The packet's mark.
    Mark = 3,
    /// The number of the input device.
    Device = 4,
    /// The number of the output device.
    OutDevice = 5,
    /// The name of the input device.
    DeviceName = 6,
    /// The name of the output device.
    OutDeviceName = 7,
    /// The IP version, by its `NFPROTO` number.
    Family = 15,
    /// The transport protocol.
    Protocol = 16,
}

/// A header of the packet (`nft_payload_bases`).
#[derive(Clone, Copy)]
pub(crate) enum Header {
    /// The IP header.
    Network = 1,
    /// The transport header.
    Transport = 2,
}

/// The address whose type is looked up (`nft_fib_flags`).
#[derive(Clone, Copy)]
pub(crate) enum Address {
    /// The source address.
    Source = 1,
    /// The destination address.
    Destination = 2,
}

/// Loads metadata of the packet.
pub(crate) fn load(meta: Meta) -> Encoded {
    named("meta", [number(1, REGISTER), number(2, meta as u32)])
}

/// Sets the packet's mark to the loaded value.
pub(crate) fn set_mark() -> Encoded {
    named("meta", [number(2, Meta::Mark as u32), number(3, REGISTER)])
}

/// Loads bytes of the packet.
pub(crate) fn bytes(header: Header, offset: u32, len: u32) -> Encoded {
    let parts = [(1, REGISTER), (2, header as u32), (3, offset), (4, len)];
    named("payload", parts.map(|(kind, value)| number(kind, value)))
}

/// Loads the type of an address in the routing tables.
pub(crate) fn kind_of(address: Address) -> Encoded {
    const KIND: u32 = 3;
    named("fib", [number(1, REGISTER), number(2, KIND), number(3, address as u32)])
}

/// Continues if the loaded value equals this value.
pub(crate) fn is(value: &[u8]) -> Encoded {
    named("cmp", [number(1, REGISTER), number(2, 0), data(3, value)])
}

/// Continues if the loaded value differs from this value.
pub(crate) fn is_not(value: &[u8]) -> Encoded {
    named("cmp", [number(1, REGISTER), number(2, 1), data(3, value)])
}

/// Sets the bits of `mask` in the loaded value to those of `value`.
pub(crate) fn set_bits(value: u32, mask: u32) -> Encoded {
    bitwise(4, &(!mask).to_ne_bytes(), &value.to_ne_bytes())
}

/// Clears all bits of the loaded value except those of `mask`. The mask has four or sixteen bytes, in the order
/// in which they are compared.
pub(crate) fn masked(mask: &[u8]) -> Encoded {
    bitwise(if mask.len() == 4 { 4 } else { 16 }, mask, &vec![0; mask.len()])
}

fn bitwise(len: u32, and: &[u8], xor: &[u8]) -> Encoded {
    let parts = [(1, REGISTER), (2, REGISTER), (3, len)].map(|(kind, value)| number(kind, value));
    named("bitwise", parts.into_iter().chain([data(4, and), data(5, xor)]))
}

/// Continues if the loaded value is not in any range of this set.
pub(crate) fn is_in_none(set: &str) -> Encoded {
    const INVERTED: u32 = 1;
    named("lookup", [attribute(1, &zero_ended(set)), number(2, REGISTER), number(5, INVERTED)])
}

/// Counts the packets that reach this expression.
pub(crate) fn counter() -> Encoded {
    named("counter", [])
}

/// Drops the packet.
pub(crate) fn drop() -> Encoded {
    const VERDICT: u16 = 2;
    let verdict = attribute(VERDICT | NESTED, &number(1, super::DROP)?)?;
    named("immediate", [number(1, 0), attribute(2 | NESTED, &verdict)])
}

/// A device's name in the form for comparisons: padded with zeros to its maximum length.
pub(crate) fn device(name: &str) -> [u8; libc::IFNAMSIZ] {
    let mut padded = [0; libc::IFNAMSIZ];
    padded.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)).for_each(|(to, from)| *to = from);
    padded
}

fn named(name: &str, parts: impl IntoIterator<Item = Encoded>) -> Encoded {
    const ELEMENT: u16 = 1;
    let parts = [attribute(1, &zero_ended(name)), attribute(2 | NESTED, &joined(parts)?)];
    attribute(ELEMENT | NESTED, &joined(parts)?)
}

fn number(kind: u16, value: u32) -> Encoded {
    attribute(kind, &value.to_be_bytes())
}

fn data(kind: u16, value: &[u8]) -> Encoded {
    attribute(kind | NESTED, &attribute(VALUE, value)?)
}
