//! Netlink messages to nftables and from it.

use std::io;

/// The flag of an attribute that contains attributes.
pub(super) const NESTED: u16 = 0x8000;
/// `NFPROTO_INET`: both IP versions.
pub(crate) const INET: u8 = 1;
/// The length of a message's header.
pub(super) const HEADER: usize = 16;

/// An encoded part of a message, or an error if it does not fit.
pub(crate) type Encoded = io::Result<Vec<u8>>;

/// A message: a header (length, kind, flags, sequence, port), the four bytes that every netfilter message has,
/// and attributes.
pub(super) fn message(kind: u16, flags: u16, start: [u8; 4], attributes: &[u8]) -> Encoded {
    const REQUEST: u16 = 1;
    let len = u32::try_from(HEADER + start.len() + attributes.len()).map_err(|_| does_not_fit())?;
    let header = [&len.to_ne_bytes()[..], &kind.to_ne_bytes(), &(flags | REQUEST).to_ne_bytes()];
    Ok([&header.concat()[..], &[0; 8], &start, attributes].concat())
}

/// Encodes an attribute, padded to a multiple of four bytes. A value that is too long is an error: with a wrong
/// length, the kernel would parse the rest of the value as attributes.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Encoded {
    let len = u16::try_from(4 + value.len()).map_err(|_| does_not_fit())?;
    let mut bytes = [&len.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    Ok(bytes)
}

fn does_not_fit() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "it does not fit into a netlink message")
}

pub(super) fn joined(parts: impl IntoIterator<Item = Encoded>) -> Encoded {
    Ok(parts.into_iter().collect::<io::Result<Vec<_>>>()?.concat())
}

pub(super) fn zero_ended(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// A message that changes an object for both IP versions, and asks for an answer.
pub(super) fn changing(kind: u16, flags: u16, attributes: &[u8]) -> Encoded {
    const ACKNOWLEDGE: u16 = 4;
    message(kind, flags | ACKNOWLEDGE, [INET, 0, 0, 0], attributes)
}

/// An iterator over netlink messages: the kind of each message, and the bytes after its header.
pub(super) struct Messages<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let len = usize::try_from(u32::from_ne_bytes(*self.0.first_chunk()?)).ok()?;
        let kind = u16::from_ne_bytes(*self.0.get(4..)?.first_chunk()?);
        let message = self.0.get(HEADER..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, message))
    }
}

/// An iterator over netlink attributes: the kind of each attribute without its flags, and its value.
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        const FLAGS: u16 = 0xc000;
        let len = usize::from(u16::from_ne_bytes(*self.0.first_chunk()?));
        let kind = u16::from_ne_bytes(*self.0.get(2..)?.first_chunk()?) & !FLAGS;
        let value = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

pub(super) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

pub(super) fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}
