//! The contents of transport data whose first nibble is neither 4 nor 6. Only the profile `vpnd` sends them;
//! any other `WireGuard` drops them after authentication.
//!
//! Every frame has the same envelope, which makes its plaintext a multiple of 16 bytes and its
//! length explicit:
//!
//! | offset | bytes | is |
//! |---|---|---|
//! | 0 | 1 | kind |
//! | 1 | 1 | `pad_len`, how many bytes at the end are padding |
//! | 2 | | body |
//! | end − `pad_len` | `pad_len` | zeros |
//!
//! | kind | body |
//! |---|---|
//! | 1 | control: [`Records`], back to back |
//! | 2 | an Ethernet frame of 14 bytes or more, without its check sequence |
//! | 3 | a [`Fragment`] of a packet too large for one datagram |
//!
//! With two bytes of envelope and 14 of Ethernet header, the IP packet inside starts at a multiple of 16. Kinds
//! whose first nibble is 4 or 6 can never be assigned, because they are IP packets.
//!
//! How a receiver treats contents that no sender of this release sends:
//!
//! - An unknown kind is [`DropReason::UnknownFrame`], whatever follows it: a later release may use any layout.
//! - A `pad_len` up to 255 is accepted if the plaintext is long enough, and the plaintext need not be a
//!   multiple of 16: a later release may pad more, or less. The contents of padding are not checked. They are
//!   as authentic as the rest, and padding behind an IP packet is not checked either.
//! - A `pad_len` that leaves less than the two bytes of envelope is [`DropReason::FrameMalformed`].

mod pq;
mod record;
#[cfg(test)]
mod tests;

use zerocopy::IntoBytes;

use crate::drop_reason::DropReason;
use crate::fragment::Fragment;

pub use self::pq::{PqInit, PqInitAssembly, PqInitChunk, PqInitError, PqResp};
pub use self::record::{ANSWERS_PROBES, Hello, Ping, Pong, ProbeToken, Record, Records, Release};

/// Bytes of the envelope in front of a body.
pub const HEADER_LEN: usize = 2;

/// The contents of a frame, still in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Control records between the two ends.
    Control(Records<'a>),
    /// An Ethernet frame, from its destination address on.
    Ethernet(&'a [u8]),
    /// A fragment of a packet.
    Fragment(Fragment<'a>),
}

/// Reads the frame in `plaintext`, which is neither empty nor an IP packet.
///
/// # Errors
/// [`DropReason::UnknownFrame`] for a kind of a later release; [`DropReason::FrameMalformed`], or
/// [`DropReason::FragmentMalformed`] for a fragment, if it is invalid for its kind.
pub fn parse(plaintext: &[u8]) -> Result<Frame<'_>, DropReason> {
    let kind = plaintext.first().ok_or(DropReason::FrameMalformed)?;
    let body = body(plaintext).ok_or(DropReason::FrameMalformed);
    match *kind {
        CONTROL => Records::read(body?).map(Frame::Control).ok_or(DropReason::FrameMalformed),
        ETHERNET => ethernet(body?).map(Frame::Ethernet).ok_or(DropReason::FrameMalformed),
        FRAGMENT => Fragment::read(body?).map(Frame::Fragment).ok_or(DropReason::FragmentMalformed),
        _ => Err(DropReason::UnknownFrame),
    }
}

/// The bytes between envelope and padding.
fn body(plaintext: &[u8]) -> Option<&[u8]> {
    let padding = usize::from(*plaintext.get(1)?);
    plaintext.get(HEADER_LEN..plaintext.len().checked_sub(padding)?)
}

fn ethernet(body: &[u8]) -> Option<&[u8]> {
    (body.len() >= ETHERNET_HEADER).then_some(body)
}

/// The envelope in front of an Ethernet frame of `len` bytes; zeros follow the frame up to
/// [`plaintext_len`].
pub const fn ethernet_header(len: usize) -> [u8; HEADER_LEN] {
    envelope(ETHERNET, len)
}

/// The length of the plaintext of a frame with a body of `len` bytes.
pub const fn plaintext_len(len: usize) -> usize {
    (HEADER_LEN + len).next_multiple_of(BLOCK)
}

/// The two bytes in front of a body of `len` bytes.
#[expect(clippy::cast_possible_truncation, reason = "padding is shorter than a block")]
pub(crate) const fn envelope(kind: u8, len: usize) -> [u8; HEADER_LEN] {
    [kind, (plaintext_len(len) - HEADER_LEN - len) as u8]
}

/// A control frame under construction, record by record.
#[derive(Debug)]
#[must_use = "records have no effect unless they are sealed and sent"]
pub struct ControlFrame(Vec<u8>);

impl ControlFrame {
    /// A frame without records.
    pub fn begin() -> Self {
        Self(vec![0; HEADER_LEN])
    }

    /// Adds a HELLO, which announces this end's properties.
    pub fn hello(self, hello: &Hello<'_>) -> Self {
        let (fixed, release, mac) = hello.wire();
        self.record(record::HELLO, &[fixed.as_bytes(), release.as_bytes(), mac])
    }

    /// Adds a CLOSE, which ends the session.
    pub fn close(self) -> Self {
        self.record(record::CLOSE, &[])
    }

    /// Adds a PING.
    pub fn ping(self, ping: &Ping) -> Self {
        self.record(record::PING, &[ping.as_bytes()])
    }

    /// A frame with a PROBE, of exactly `len` bytes or the least possible length. It is filled with zeros after
    /// the token, which the answer does not repeat.
    pub fn probe_of(token: &ProbeToken, len: usize) -> Vec<u8> {
        let filling = len.saturating_sub(HEADER_LEN + record::HEAD_LEN + token.len());
        let Self(plaintext) =
            Self::begin().record(record::PROBE, &[token, &vec![0; filling.min(MAX_FILLING)]]);
        [&[CONTROL, 0], &plaintext[HEADER_LEN..]].concat()
    }

    /// Adds a PONG.
    pub fn pong(self, pong: &Pong) -> Self {
        self.record(record::PONG, &[pong.as_bytes()])
    }

    /// Adds a PROBE, which tests a path.
    pub fn probe(self, token: &ProbeToken) -> Self {
        self.record(record::PROBE, &[token])
    }

    /// Adds the answer to a PROBE.
    pub fn probed(self, token: &ProbeToken) -> Self {
        self.record(record::PROBED, &[token])
    }

    /// One half of the initiator's post-quantum key.
    pub fn pq_init(self, chunk: PqInitChunk<'_>) -> Self {
        self.record(record::PQ_INIT, &[&[chunk.part()], chunk.bytes()])
    }

    /// The responder's answer to that key.
    pub fn pq_resp(self, answer: &PqResp) -> Self {
        self.record(record::PQ_RESP, &[answer.as_bytes()])
    }

    /// The plaintext to seal, padded.
    pub fn end(self) -> Vec<u8> {
        let Self(mut plaintext) = self;
        let len = plaintext.len() - HEADER_LEN;
        plaintext[..HEADER_LEN].copy_from_slice(&envelope(CONTROL, len));
        plaintext.resize(plaintext_len(len), 0);
        plaintext
    }

    /// Every value is far shorter than 64 KiB.
    fn record(mut self, kind: u8, value: &[&[u8]]) -> Self {
        let [low, high, ..] = value.iter().map(|part| part.len()).sum::<usize>().to_le_bytes();
        self.0.extend([kind, low, high]);
        value.iter().for_each(|part| self.0.extend_from_slice(part));
        self
    }
}

const CONTROL: u8 = 1;
const ETHERNET: u8 = 2;
pub(crate) const FRAGMENT: u8 = 3;
/// Limits the length of a record, which is stored in two bytes.
const MAX_FILLING: usize = 0xff00;
/// Two addresses and a type.
const ETHERNET_HEADER: usize = 14;
/// The plaintext is padded to a multiple of this.
pub(crate) const BLOCK: usize = 16;
