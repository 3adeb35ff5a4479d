//! The records of a control frame. Each has its type and length, so that a receiver can skip unknown ones:
//!
//! | offset | bytes | is |
//! |---|---|---|
//! | 0 | 1 | type |
//! | 1 | 2 | length of the value |
//! | 3 | | value |
//!
//! | type | name | length | value, each field with its offset |
//! |---|---|---|---|
//! | 1 | HELLO | 7 + n or more | features 0 (4 bytes), device MTU 4 (2), n 6 (1), release 7 (n), hardware address 7 + n (6, mode TAP alone) |
//! | 2 | CLOSE | 0 | |
//! | 3 | PING | 28 or more | sequence 0 (4), timestamp 4 (8), sent 12 (8), zeros 20 (8) |
//! | 4 | PONG | 28 or more | sequence 0 (4), timestamp 4 (8), received 12 (8), sent 20 (8) |
//! | 5 | PQ_INIT | 641 or 550 | part, 0 or 1, 0 (1), that chunk of [`PqInit`](super::PqInit) 1 (640 or 549) |
//! | 6 | PQ_RESP | 1108 | index 0 (4), ciphertext 4 (1088), MAC 1092 (16) |
//! | 7 | PROBE | 16 or more | random bytes 0 (16) |
//! | 8 | PROBED | 16 or more | the bytes of the PROBE 0 (16) |
//!
//! Numbers are little-endian. A value may be as long as its frame allows. Senders of this release stay below
//! 1400 bytes, so that a record never needs a second datagram.
//!
//! - Bytes after the fields of a HELLO, PING, PONG, PROBE or PROBED are ignored: a later release may add fields.
//! - An unknown type is ignored, as long as its record ends within the frame.
//! - A value of a known type that is too short, or has a length its type cannot have, makes the
//!   whole frame [malformed](crate::drop_reason::DropReason::FrameMalformed).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::pq::{PqInitChunk, PqResp};

/// The records of one frame, in their order. All of them are valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Records<'a>(&'a [u8]);

impl<'a> Records<'a> {
    /// Reads a control frame's body if every record in it is valid.
    pub(super) fn read(body: &'a [u8]) -> Option<Self> {
        let mut rest = body;
        while !rest.is_empty() {
            (_, rest) = split_record(rest)?;
        }
        Some(Self(body))
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        let (record, rest) = split_record(self.0)?;
        self.0 = rest;
        Some(record)
    }
}

fn split_record(bytes: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let (head, rest) = Head::ref_from_prefix(bytes).ok()?;
    let (value, rest) = rest.split_at_checked(head.len.get().into())?;
    Some((Record::read(head.kind, value)?, rest))
}

/// One message from one end to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// The peer's properties.
    Hello(Hello<'a>),
    /// The peer ends the session.
    Close,
    /// The peer wants an answer.
    Ping(Ping),
    /// The answer to a PING of ours.
    Pong(Pong),
    /// One half of the initiator's post-quantum key.
    PqInit(PqInitChunk<'a>),
    /// The responder's answer to that key.
    PqResp(&'a PqResp),
    /// The peer tests a path, and wants an answer on that path.
    Probe(ProbeToken),
    /// The answer to a PROBE of ours.
    Probed(ProbeToken),
    /// A type of a later release.
    Unknown(u8),
}

/// What a PROBE contains and its answer repeats. It is random, so that nobody can answer a PROBE without receiving it.
pub type ProbeToken = [u8; 16];

impl<'a> Record<'a> {
    /// Whether it tests a path that is not in use, so that its source is not the peer's current address.
    pub(crate) const fn is_aside(&self) -> bool {
        matches!(self, Self::Probe(_) | Self::Probed(_))
    }

    fn read(kind: u8, value: &'a [u8]) -> Option<Self> {
        match kind {
            HELLO => Hello::read(value).map(Self::Hello),
            CLOSE => value.is_empty().then_some(Self::Close),
            PING => prefix(value).map(Self::Ping),
            PONG => prefix(value).map(Self::Pong),
            PQ_INIT => PqInitChunk::read(value).map(Self::PqInit),
            PROBE => prefix(value).map(Self::Probe),
            PROBED => prefix(value).map(Self::Probed),
            PQ_RESP => PqResp::ref_from_bytes(value).ok().map(Self::PqResp),
            _ => Some(Self::Unknown(kind)),
        }
    }
}

/// The fields known to this release; a later one may append others.
fn prefix<T: FromBytes>(value: &[u8]) -> Option<T> {
    T::read_from_prefix(value).ok().map(|(fields, _later)| fields)
}

/// The properties that a release announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello<'a> {
    /// Its name, for people.
    pub release: Release<'a>,
    /// Optional features, one bit each: see [`ANSWERS_PROBES`].
    pub features: u32,
    /// The MTU of its device, in bytes.
    pub mtu: u16,
    /// The hardware address of its device, if it has one and the release announces it.
    pub mac: Option<[u8; 6]>,
}

impl<'a> Hello<'a> {
    fn read(value: &'a [u8]) -> Option<Self> {
        let (fixed, rest) = HelloFields::ref_from_prefix(value).ok()?;
        let (release, later) = rest.split_at_checked(fixed.release_len.into())?;
        let release = Release::new(str::from_utf8(release).ok()?)?;
        let (features, mtu) = (fixed.features.get(), fixed.mtu.get());
        // Zeros mean that there is none, in case later fields follow.
        let mac = later.first_chunk().copied().filter(|mac| *mac != [0; 6]);
        Some(Self { release, features, mtu, mac })
    }

    pub(super) fn wire(&self) -> (HelloFields, &'a str, &[u8]) {
        let Release(release) = self.release;
        // A release has at most 32 bytes.
        let [release_len, ..] = release.len().to_le_bytes();
        let (features, mtu) = (U32::new(self.features), U16::new(self.mtu));
        let mac = self.mac.as_ref().map_or(&[][..], <[u8; 6]>::as_slice);
        (HelloFields { features, mtu, release_len }, release, mac)
    }
}

/// A release's name: at most 32 bytes of printable ASCII, which logs and terminals show correctly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release<'a>(&'a str);

impl<'a> Release<'a> {
    /// The release of this name; `None` if it is too long or not printable.
    pub fn new(name: &'a str) -> Option<Self> {
        let printable = name.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        (printable && name.len() <= RELEASE_MAX).then_some(Self(name))
    }

    /// The name.
    pub const fn as_str(self) -> &'a str {
        self.0
    }
}

/// Measures whether the peer receives our datagrams, how many of them, and the round trip time.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Ping {
    /// The number of this PING; the PONG repeats it.
    pub sequence: U32,
    /// A timestamp of the sender's own clock and unit; the PONG repeats it.
    pub timestamp: U64,
    /// Datagrams that the sender has sealed on this session, including this one.
    pub sent: U64,
    /// Makes room for a [`Pong`], which must not be longer than its PING.
    reserved: [u8; 8],
}

impl Ping {
    /// A question.
    pub fn new(sequence: u32, timestamp: u64, sent: u64) -> Self {
        let (sequence, timestamp, sent) = (U32::new(sequence), U64::new(timestamp), U64::new(sent));
        Self { sequence, timestamp, sent, reserved: [0; 8] }
    }

    /// The PONG that answers this PING, from an end that has accepted `received` datagrams of this session
    /// and has sent `sent` datagrams.
    pub fn answer(&self, received: u64, sent: u64) -> Pong {
        let Self { sequence, timestamp, .. } = *self;
        Pong { sequence, timestamp, received: U64::new(received), sent: U64::new(sent) }
    }
}

/// Answers a [`Ping`]. The PING's `sent` minus `received` is the loss in the direction of the PING; `sent`
/// minus the number of datagrams accepted is the loss in the direction of the PONG.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Pong {
    /// As in the PING.
    pub sequence: U32,
    /// As in the PING.
    pub timestamp: U64,
    /// Datagrams of this session that the sender has accepted, the PING's among them.
    pub received: U64,
    /// Datagrams that the sender has sealed on this session, including this one.
    pub sent: U64,
}

/// Precedes every value.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Head {
    kind: u8,
    len: U16,
}

/// A HELLO up to its release.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct HelloFields {
    features: U32,
    mtu: U16,
    release_len: u8,
}

/// The bit of [`Hello::features`] of an end that answers PROBE.
pub const ANSWERS_PROBES: u32 = 1;

/// In front of each value: type and length.
pub(super) const HEAD_LEN: usize = size_of::<Head>();
pub(super) const HELLO: u8 = 1;
pub(super) const CLOSE: u8 = 2;
pub(super) const PING: u8 = 3;
pub(super) const PONG: u8 = 4;
pub(super) const PQ_INIT: u8 = 5;
pub(super) const PQ_RESP: u8 = 6;
pub(super) const PROBE: u8 = 7;
pub(super) const PROBED: u8 = 8;
const RELEASE_MAX: usize = 32;

const _: () = assert!(size_of::<HelloFields>() == 7 && size_of::<Head>() == 3);
const _: () = assert!(size_of::<Ping>() == 28 && size_of::<Pong>() <= size_of::<Ping>());
