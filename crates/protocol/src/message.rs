//! The four messages on the wire, named as in the WireGuard whitepaper. At this stage nothing is secret or
//! authenticated: a parsed message is only well-formed.

use std::fmt;

use thiserror::Error;
use vpnd_crypto::aead::TAG_LEN;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of message 1.
pub const INITIATION_LEN: usize = size_of::<Initiation>();
/// Bytes of message 2.
pub const RESPONSE_LEN: usize = size_of::<Response>();
/// Bytes of message 3.
pub const COOKIE_REPLY_LEN: usize = size_of::<CookieReply>();
/// Bytes in front of the ciphertext of message 4.
pub const DATA_HEADER_LEN: usize = size_of::<DataHeader>();
/// The shortest message 4: a header and the tag of an empty packet.
pub const MIN_DATA_LEN: usize = DATA_HEADER_LEN + TAG_LEN;
/// Bytes of the MACs that end messages 1 and 2.
pub const MACS_LEN: usize = size_of::<Macs>();

const _: () = assert!(INITIATION_LEN == 148 && RESPONSE_LEN == 92);
const _: () = assert!(COOKIE_REPLY_LEN == 64 && DATA_HEADER_LEN == 16 && MIN_DATA_LEN == 32);

const INITIATION: u32 = 1;
const RESPONSE: u32 = 2;
const COOKIE_REPLY: u32 = 3;
const DATA: u32 = 4;

/// Checks a datagram's type (a 32-bit word, so the reserved bytes are zero) and its length.
///
/// # Errors
/// [`Malformed`] if it is none of the protocol's messages.
pub fn parse(datagram: &[u8]) -> Result<Message<'_>, Malformed> {
    let (kind, _) = U32::read_from_prefix(datagram).map_err(|_| Malformed::Length)?;
    match kind.get() {
        INITIATION => exact(datagram).map(Message::Initiation),
        RESPONSE => exact(datagram).map(Message::Response),
        COOKIE_REPLY => exact(datagram).map(Message::CookieReply),
        DATA if datagram.len() < MIN_DATA_LEN => Err(Malformed::Length),
        DATA => data_header(datagram),
        _ => Err(Malformed::Type),
    }
}

fn exact<T: FromBytes + KnownLayout + Immutable + Unaligned>(
    bytes: &[u8],
) -> Result<&T, Malformed> {
    T::ref_from_bytes(bytes).map_err(|_| Malformed::Length)
}

fn data_header(datagram: &[u8]) -> Result<Message<'_>, Malformed> {
    let (header, _) = DataHeader::ref_from_prefix(datagram).map_err(|_| Malformed::Length)?;
    Ok(Message::Data { receiver: header.receiver, counter: header.counter.get() })
}

/// The index at the beginning of a message. The message may be truncated after its first bytes.
pub(crate) fn named(datagram: &[u8]) -> Option<Named> {
    let (kind, rest) = U32::read_from_prefix(datagram).ok()?;
    let (index, _) = Index::read_from_prefix(rest).ok()?;
    match kind.get() {
        INITIATION | RESPONSE => Some(Named::Sender(index)),
        COOKIE_REPLY | DATA => Some(Named::Receiver(index)),
        _ => None,
    }
}

/// Whose index of a handshake or session this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    /// The index of the message's sender.
    Sender(Index),
    /// The index of its receiver.
    Receiver(Index),
}

/// A datagram of the right type and length.
#[derive(Clone, Copy, Debug)]
pub enum Message<'a> {
    /// Message 1.
    Initiation(&'a Initiation),
    /// Message 2.
    Response(&'a Response),
    /// Message 3.
    CookieReply(&'a CookieReply),
    /// Message 4; what follows its header is ciphertext.
    Data {
        /// The receiver's index of the session.
        receiver: Index,
        /// The datagram's number within the session.
        counter: u64,
    },
}

/// Why a datagram is none of the four messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    /// The type is unknown, or a reserved byte is set.
    #[error("datagram of unknown type: its sender does not use this protocol")]
    Type,
    /// Too short, or not of the length its type requires.
    #[error(
        "datagram of a length that its type cannot have: it was truncated on the path, or forged"
    )]
    Length,
}

/// Identifies a session at the end that chose it.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(transparent)]
pub struct Index(U32);

impl Index {
    /// The index with this number.
    pub const fn new(index: u32) -> Self {
        Self(U32::new(index))
    }

    /// The index as a number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.get())
    }
}

/// `N` bytes of ciphertext and their authentication tag.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Sealed<const N: usize> {
    /// The ciphertext, as long as the plaintext.
    pub ciphertext: [u8; N],
    /// The tag over ciphertext and associated data.
    pub tag: [u8; TAG_LEN],
}

/// The end of messages 1 and 2: each MAC covers all bytes before it.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(C)]
pub struct Macs {
    /// Proves that the sender knows the receiver's public key.
    pub mac1: [u8; 16],
    /// Proves that the sender receives at its address; zero without a cookie.
    pub mac2: [u8; 16],
}

/// Message 1: the initiator proposes a session.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Initiation {
    kind: U32,
    /// The initiator's index of the session.
    pub sender: Index,
    /// The initiator's ephemeral public key.
    pub ephemeral: [u8; 32],
    /// The initiator's static public key.
    pub encrypted_static: Sealed<32>,
    /// The initiator's TAI64N timestamp.
    pub encrypted_timestamp: Sealed<12>,
    /// Zero until [`crate::cookie::Jar::seal_macs`].
    pub macs: Macs,
}

impl Initiation {
    /// A message 1 without its MACs.
    pub fn new(
        sender: Index,
        ephemeral: [u8; 32],
        encrypted_static: Sealed<32>,
        encrypted_timestamp: Sealed<12>,
    ) -> Self {
        let (kind, macs) = (U32::new(INITIATION), Macs::default());
        Self { kind, sender, ephemeral, encrypted_static, encrypted_timestamp, macs }
    }
}

/// Message 2: the responder accepts.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Response {
    kind: U32,
    /// The responder's index of the session.
    pub sender: Index,
    /// The initiator's index of the session.
    pub receiver: Index,
    /// The responder's ephemeral public key.
    pub ephemeral: [u8; 32],
    /// Proves that the responder has its secret key and the preshared key.
    pub encrypted_nothing: Sealed<0>,
    /// Zero until [`crate::cookie::Jar::seal_macs`].
    pub macs: Macs,
}

impl Response {
    /// A message 2 without its MACs.
    pub fn new(
        sender: Index,
        receiver: Index,
        ephemeral: [u8; 32],
        encrypted_nothing: Sealed<0>,
    ) -> Self {
        let (kind, macs) = (U32::new(RESPONSE), Macs::default());
        Self { kind, sender, receiver, ephemeral, encrypted_nothing, macs }
    }
}

/// Message 3: a responder under load asks for proof of address.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct CookieReply {
    kind: U32,
    /// The sender's index in the message that this answers.
    pub receiver: Index,
    /// The `XChaCha20` nonce.
    pub nonce: [u8; 24],
    /// The cookie, bound to the mac1 of the message that this answers.
    pub encrypted_cookie: Sealed<16>,
}

impl CookieReply {
    /// A message 3.
    pub fn new(receiver: Index, nonce: [u8; 24], encrypted_cookie: Sealed<16>) -> Self {
        Self { kind: U32::new(COOKIE_REPLY), receiver, nonce, encrypted_cookie }
    }
}

/// The head of message 4; ciphertext and tag follow.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct DataHeader {
    kind: U32,
    /// The receiver's index of the session.
    pub receiver: Index,
    /// The datagram's number within the session.
    pub counter: U64,
}

impl DataHeader {
    /// The header of datagram `counter`.
    pub fn new(receiver: Index, counter: u64) -> Self {
        Self { kind: U32::new(DATA), receiver, counter: U64::new(counter) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn datagram(kind: u32, len: usize) -> Vec<u8> {
        let mut bytes = vec![0xa5; len];
        let prefix = len.min(4);
        bytes[..prefix].copy_from_slice(&kind.to_le_bytes()[..prefix]);
        bytes
    }

    #[test]
    fn only_the_exact_length_of_a_type_parses() {
        let lengths = [(1, INITIATION_LEN), (2, RESPONSE_LEN), (3, COOKIE_REPLY_LEN)];
        for (kind, right) in lengths {
            for len in 0..300 {
                assert_eq!(parse(&datagram(kind, len)).is_ok(), len == right, "{kind} {len}");
            }
        }
        for len in 0..300 {
            assert_eq!(parse(&datagram(4, len)).is_ok(), len >= MIN_DATA_LEN, "{len}");
        }
    }

    #[test]
    fn reserved_bytes_are_part_of_the_type() {
        for kind in [0, 5, 255, 0x0000_0101, 0x0001_0004, 0x0100_0002, 0x0400_0000] {
            for len in [4, 32, 64, 92, 148, 1500] {
                assert_eq!(parse(&datagram(kind, len)).unwrap_err(), Malformed::Type);
            }
        }
    }

    #[test]
    fn numbers_are_little_endian() {
        let header = DataHeader::new(Index::new(0x0403_0201), 0x0c0b_0a09_0807_0605);
        let mut bytes = header.as_bytes().to_vec();
        assert_eq!(bytes, [4, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);

        bytes.extend([0; TAG_LEN]);
        let Ok(Message::Data { receiver, counter }) = parse(&bytes) else { panic!("not data") };
        assert_eq!((receiver.get(), counter), (0x0403_0201, 0x0c0b_0a09_0807_0605));
        assert_eq!(format!("{receiver:?}"), "0x04030201");
    }

    proptest! {
        #[test]
        fn no_datagram_panics_the_parser(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = parse(&bytes);
        }
    }
}
