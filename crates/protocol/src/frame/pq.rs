//! The messages of a session's post-quantum upgrade: the initiator's fresh ML-KEM-768 key, in two chunks so
//! that each fits into the smallest datagram, and the responder's answer, in one.
//!
//! | bytes of PQ_INIT | are |
//! |---|---|
//! | 0 | suite, 1 |
//! | 1 to 4 | the upgraded session, as the initiator names it |
//! | 5 to 1188 | encapsulation key |
//!
//! Chunk 0 is the first 640 bytes, chunk 1 the other 549. Sealed they are datagrams of 688 and 592 bytes; the
//! answer is one of 1152.

use std::ops::Range;

use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::message::Index;

/// The initiator's half of the upgrade.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct PqInit {
    suite: u8,
    /// The upgraded session, as the initiator will name it.
    pub index: Index,
    /// The initiator's ephemeral ML-KEM-768 encapsulation key, not checked yet.
    pub encapsulation_key: [u8; 1184],
}

impl PqInit {
    /// The half of the initiator that will name the upgraded session `index`.
    pub const fn new(index: Index, encapsulation_key: [u8; 1184]) -> Self {
        Self { suite: ML_KEM_768, index, encapsulation_key }
    }

    /// The message in two chunks, each to be sent in a frame.
    pub fn chunks(&self) -> [PqInitChunk<'_>; 2] {
        Part::BOTH.map(|part| PqInitChunk { part, bytes: &self.as_bytes()[part.range()] })
    }
}

/// One chunk of a [`PqInit`], of the required length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PqInitChunk<'a> {
    part: Part,
    bytes: &'a [u8],
}

impl<'a> PqInitChunk<'a> {
    pub(super) fn read(value: &'a [u8]) -> Option<Self> {
        let (part, bytes) = value.split_first()?;
        let part = Part::BOTH.into_iter().find(|&known| known as u8 == *part)?;
        (bytes.len() == part.range().len()).then_some(Self { part, bytes })
    }

    pub(super) const fn part(self) -> u8 {
        self.part as u8
    }

    /// Which of the two chunks it is, from 0.
    pub const fn number(self) -> usize {
        self.part as usize
    }

    pub(super) const fn bytes(self) -> &'a [u8] {
        self.bytes
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    First = 0,
    Second = 1,
}

impl Part {
    const BOTH: [Self; 2] = [Self::First, Self::Second];

    const fn range(self) -> Range<usize> {
        match self {
            Self::First => 0..CHUNK,
            Self::Second => CHUNK..PQ_INIT_LEN,
        }
    }
}

/// Joins the two chunks of one [`PqInit`]. One session has one of these.
pub struct PqInitAssembly {
    bytes: [u8; PQ_INIT_LEN],
    have: [bool; 2],
}

impl Default for PqInitAssembly {
    fn default() -> Self {
        Self { bytes: [0; PQ_INIT_LEN], have: [false; 2] }
    }
}

impl PqInitAssembly {
    /// Takes a chunk. Returns the message once both have arrived, and again for each repeated chunk, which
    /// means that the answer was lost.
    ///
    /// # Errors
    /// [`PqInitError`], with nothing changed.
    pub fn insert(&mut self, chunk: PqInitChunk<'_>) -> Result<Option<&PqInit>, PqInitError> {
        let place = &mut self.bytes[chunk.part.range()];
        if self.have[chunk.part as usize] && *place != *chunk.bytes {
            return Err(PqInitError::Differs);
        }
        if chunk.part == Part::First && chunk.bytes[0] != ML_KEM_768 {
            return Err(PqInitError::UnknownSuite(chunk.bytes[0]));
        }
        place.copy_from_slice(chunk.bytes);
        self.have[chunk.part as usize] = true;
        let whole = self.have == [true; 2];
        Ok(PqInit::ref_from_bytes(&self.bytes).ok().filter(|_| whole))
    }
}

/// Why a chunk was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PqInitError {
    /// The same chunk arrived before with other contents.
    #[error("the peer sent a second, different post-quantum key on one session: it is ignored")]
    Differs,
    /// Not ML-KEM-768.
    #[error(
        "the peer requests post-quantum suite {0}, which this vpnd does not support: upgrade it"
    )]
    UnknownSuite(u8),
}

/// The responder's half of the upgrade.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct PqResp {
    /// The upgraded session, as the responder will name it.
    pub index: Index,
    /// The secret encapsulated to the initiator's key.
    pub ciphertext: [u8; 1088],
    /// Proves that both ends have the same secret; not checked yet.
    pub mac: [u8; 16],
}

/// The only suite.
const ML_KEM_768: u8 = 1;
const PQ_INIT_LEN: usize = size_of::<PqInit>();
const CHUNK: usize = 640;

const _: () = assert!(PQ_INIT_LEN == 1189 && size_of::<PqResp>() == 1108);
