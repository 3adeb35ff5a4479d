//! Control messages: the metadata of the datagrams in one `sendmsg` or `recvmsg`.
//!
//! Each message is the kernel's `cmsghdr` (length as a word, level, type) and then its value, padded to a word.

use std::ffi::c_int;
use std::mem::size_of;

const WORD: usize = size_of::<usize>();
const INT: usize = size_of::<c_int>();
const HEADER: usize = WORD + 2 * INT;

/// Room for one message of each kind that we send or ask for, and for the address messages of both families at
/// once: an IPv4 datagram on a dual-stack socket has `IP_PKTINFO` and `IPV6_PKTINFO`.
const ROOM: usize = space(PKTINFO_V4) + space(PKTINFO_V6) + 4 * space(INT);
/// `struct in_pktinfo`: interface, local address, address in the header.
pub(super) const PKTINFO_V4: usize = 12;
/// `struct in6_pktinfo`: address, interface.
pub(super) const PKTINFO_V6: usize = 20;

/// A kind of control message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) level: c_int,
    pub(super) name: c_int,
}

/// Control messages to send.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    buffer: Buffer,
    len: usize,
}

impl Encoder {
    /// Appends one message. It always fits, because [`ROOM`] is enough for one message of each kind.
    pub(super) fn push(&mut self, kind: Kind, value: &[u8]) {
        let out = &mut self.buffer.0[self.len..];
        out[..WORD].copy_from_slice(&(HEADER + value.len()).to_ne_bytes());
        out[WORD..WORD + INT].copy_from_slice(&kind.level.to_ne_bytes());
        out[WORD + INT..HEADER].copy_from_slice(&kind.name.to_ne_bytes());
        out[HEADER..HEADER + value.len()].copy_from_slice(value);
        self.len += space(value.len());
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer.0[..self.len]
    }
}

/// Room for the control messages of one call.
#[derive(Debug)]
pub(super) struct Buffer([u8; ROOM]);

impl Default for Buffer {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl Buffer {
    pub(super) const EMPTY: Self = Self([0; ROOM]);

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// The messages in the first `len` bytes.
    pub(super) fn messages(&self, len: usize) -> Messages<'_> {
        Messages { rest: &self.0[..len.min(ROOM)] }
    }
}

/// One message received.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    pub(super) kind: Kind,
    pub(super) value: &'a [u8],
}

impl Message<'_> {
    /// The value as an `int`, if it is long enough.
    pub(super) fn int(&self) -> Option<c_int> {
        self.value.first_chunk().copied().map(c_int::from_ne_bytes)
    }
}

/// Iterates over the received messages, and ends at the first incomplete one.
#[derive(Debug)]
pub(super) struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let (len, after) = self.rest.split_first_chunk()?;
        let (level, after) = after.split_first_chunk()?;
        let (name, _) = after.split_first_chunk()?;
        let len = usize::from_ne_bytes(*len);
        let value = self.rest.get(HEADER..len)?;
        self.rest = self.rest.get(space(value.len())..).unwrap_or_default();
        let kind = Kind { level: c_int::from_ne_bytes(*level), name: c_int::from_ne_bytes(*name) };
        Some(Message { kind, value })
    }
}

/// The number of bytes for a value of `len` bytes, including header and padding (`CMSG_SPACE`).
const fn space(len: usize) -> usize {
    HEADER + len.next_multiple_of(WORD)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Kind = Kind { level: 1, name: 2 };
    const TWO: Kind = Kind { level: 41, name: 50 };

    fn encoded(messages: &[(Kind, &[u8])]) -> (Buffer, usize) {
        let mut encoder = Encoder::default();
        for (kind, value) in messages {
            encoder.push(*kind, value);
        }
        (encoder.buffer, encoder.len)
    }

    #[test]
    fn what_is_encoded_decodes() {
        let (buffer, len) = encoded(&[(ONE, &[1, 2]), (TWO, &[7; PKTINFO_V6])]);
        let read: Vec<_> = buffer.messages(len).map(|m| (m.kind, m.value.to_vec())).collect();
        assert_eq!(read, [(ONE, vec![1, 2]), (TWO, vec![7; PKTINFO_V6])]);
    }

    #[test]
    fn layout_is_that_of_the_c_macros() {
        let (_, len) = encoded(&[(ONE, &[0; 2]), (TWO, &[0; PKTINFO_V4])]);
        // SAFETY: pure arithmetic.
        let expected = unsafe { libc::CMSG_SPACE(2) + libc::CMSG_SPACE(12) };
        assert_eq!(len, expected as usize);
    }

    #[test]
    fn truncated_or_lying_messages_end_the_list() {
        let (mut buffer, len) = encoded(&[(ONE, &[1, 2]), (TWO, &[3; 4])]);
        for cut in 0..len {
            assert!(buffer.messages(cut).count() <= 2);
        }
        for lie in [0, 1, HEADER - 1, usize::MAX, ROOM + 1] {
            buffer.0[..WORD].copy_from_slice(&lie.to_ne_bytes());
            assert_eq!(buffer.messages(len).count(), 0, "{lie}");
        }
    }
}
