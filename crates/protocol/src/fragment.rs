//! A packet too large for one datagram crosses in pieces: planned and cut here, put together there.
//!
//! | offset in the plaintext | bytes | is |
//! |---|---|---|
//! | 0 | 1 | 3, the kind of [`frame`] it is |
//! | 1 | 1 | `pad_len` |
//! | 2 | 1 | index: which piece, from 0 |
//! | 3 | 1 | count: how many there are, 2 to 8 |
//! | 4 | | the piece: 1 byte or more |
//! | end − `pad_len` | `pad_len` | zeros |
//!
//! What is cut is what the device gave, an IP packet or an Ethernet frame without an envelope. All
//! pieces but the last are equally long, and padding makes all plaintexts so: a send in segments
//! ends with the first one that is shorter. They are sealed with consecutive counters of one session:
//! *counter − index* is the same number for all of them and belongs to no other packet, so that no
//! identifier is on the wire and none can wrap.
//!
//! A receiver holds at most 64 packets in pieces, each for two seconds after the first piece came.

#[cfg(test)]
mod tests;

use std::mem;
use std::ops::Range;
use std::time::Duration;

use crate::drop_reason::DropReason;
use crate::frame::{self, BLOCK, FRAGMENT};
use crate::session::{Generation, OVERHEAD};
use crate::time::BootTime;

/// The most pieces that a packet is cut into.
pub const MAX_PIECES: u8 = 8;
/// How many packets wait for their pieces; the oldest makes room.
pub const WAITING_PACKETS: usize = 64;
/// How long a packet waits for all its pieces.
pub const PIECES_WITHIN: Duration = Duration::from_secs(2);

/// Plans the pieces of a packet of `len` bytes, as few as will do but two, so that none makes a
/// datagram of more than `max_datagram` bytes. `None` if they would be more than [`MAX_PIECES`], or
/// if there are no two bytes to part.
pub fn plan(len: usize, max_datagram: usize) -> Option<Plan> {
    let plaintext = max_datagram.checked_sub(OVERHEAD)?;
    let room = (plaintext - plaintext % BLOCK).checked_sub(HEADER_LEN)?;
    let count = u8::try_from(len.div_ceil(room)).ok()?.max(2);
    if len < 2 || count > MAX_PIECES {
        return None;
    }
    // Even pieces that fill their last block: only the last one has padding.
    let plaintext_len = frame::plaintext_len(PIECE_HEADER_LEN + len.div_ceil(count.into()));
    Some(Plan { len, each: (plaintext_len - HEADER_LEN).min(len - 1), count, plaintext_len })
}

/// How a packet is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    len: usize,
    /// Bytes in each piece but the last, which has what is left: at least one.
    each: usize,
    count: u8,
    plaintext_len: usize,
}

impl Plan {
    /// How many pieces there are, and so how many consecutive counters to reserve.
    pub const fn count(self) -> usize {
        self.count as usize
    }

    /// The pieces in their order.
    pub fn cuts(self) -> impl ExactSizeIterator<Item = Cut> {
        (0..self.count).map(move |index| {
            let start = usize::from(index) * self.each;
            let end = self.len.min(start + self.each);
            let Self { count, plaintext_len, .. } = self;
            Cut { index, count, bytes: start..end, plaintext_len }
        })
    }

    /// How long the plaintext of each piece is.
    pub const fn plaintext_len(self) -> usize {
        self.plaintext_len
    }
}

/// One piece of a packet that is about to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    index: u8,
    count: u8,
    bytes: Range<usize>,
    plaintext_len: usize,
}

impl Cut {
    /// Which bytes of the packet it is.
    pub const fn bytes(&self) -> &Range<usize> {
        &self.bytes
    }

    /// How long the plaintext is that holds it.
    pub const fn plaintext_len(&self) -> usize {
        self.plaintext_len
    }

    /// Writes it to `plaintext`: header, piece and padding.
    ///
    /// # Panics
    /// When `packet` is not as long as was planned, or `plaintext` not [`Cut::plaintext_len`]; the
    /// caller lays them out.
    pub fn write(&self, packet: &[u8], plaintext: &mut [u8]) {
        let (header, rest) = plaintext.split_at_mut(HEADER_LEN);
        let (piece, padding) = rest.split_at_mut(self.bytes.len());
        // Each other piece takes less than a block from the last: seven of them.
        let pad_len = u8::try_from(padding.len()).unwrap_or(u8::MAX);
        header.copy_from_slice(&[FRAGMENT, pad_len, self.index, self.count]);
        piece.copy_from_slice(&packet[self.bytes.clone()]);
        padding.fill(0);
    }
}

/// A piece that came: one of two to eight, and not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    index: u8,
    count: u8,
    bytes: &'a [u8],
}

impl<'a> Piece<'a> {
    /// Reads the body of a frame.
    pub(crate) fn read(body: &'a [u8]) -> Option<Self> {
        let (&[index, count], bytes) = body.split_first_chunk()?;
        let sound = (2..=MAX_PIECES).contains(&count) && index < count && !bytes.is_empty();
        sound.then_some(Self { index, count, bytes })
    }

    /// The bytes of the packet.
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Whether it is the packet's first.
    pub const fn is_first(&self) -> bool {
        self.index == 0
    }

    /// Whether it is the packet's last.
    pub const fn is_last(&self) -> bool {
        self.index + 1 == self.count
    }

    /// How long a packet with such a piece is at the least: any other may have one byte.
    fn least_packet(&self) -> usize {
        let others = usize::from(self.count) - 1;
        if self.is_last() { others + self.bytes.len() } else { others * self.bytes.len() + 1 }
    }
}

/// Puts pieces together again, in turn.
///
/// It holds [`WAITING_PACKETS`] times the largest packet, allocated once: 97 KiB for Ethernet frames
/// of 1514 bytes, 4 MiB for packets of 65 535. They come zeroed from the kernel, so only what was
/// ever written to is in memory; and what was used last is used first, so that without loss and
/// disorder this is one packet.
pub struct Reassembly {
    /// A slot of `largest` bytes for each packet.
    arena: Box<[u8]>,
    largest: usize,
    /// First those that stand for an unused slot, then the `waiting` that wait, oldest first.
    packets: Box<[Partial]>,
    waiting: usize,
    /// How many packets died since [`Reassembly::purge`] was asked.
    died: usize,
}

impl Reassembly {
    /// For packets of at most `largest` bytes.
    pub fn new(largest: usize) -> Self {
        Self {
            arena: vec![0; WAITING_PACKETS * largest].into_boxed_slice(),
            largest,
            packets: (0..WAITING_PACKETS).map(Partial::unused).collect(),
            waiting: 0,
            died: 0,
        }
    }

    /// Goes on for packets of at most `largest` bytes. Those that wait and may still be whole within that wait on.
    pub fn resize(&mut self, largest: usize) {
        if largest == self.largest {
            return;
        }
        let former = mem::replace(self, Self::new(largest));
        self.died = former.died;
        for packet in &former.packets[former.unused()..] {
            if packet.known_len() > largest {
                self.died += 1;
                continue;
            }
            let at = self.admit(packet.id, packet.count, packet.since);
            let slot = self.packets[at].slot;
            let (bytes, from) = (self.bytes_of(slot), former.bytes_of(packet.slot));
            packet.copy(&former.arena[from], &mut self.arena[bytes]);
            self.packets[at] = Partial { slot, ..*packet };
        }
    }

    /// Takes the piece that came with `counter` on the session `generation`, after the replay
    /// window, and whether it met congestion; the whole packet if this was the last that was missing,
    /// and whether any of its pieces met congestion (RFC 3168 §5.3).
    ///
    /// # Errors
    /// [`DropReason::FragmentMalformed`] when no packet has such a piece, [`DropReason::LargerThanMtu`] when
    /// only one larger than the largest has; [`DropReason::FragmentConflicts`] when its packet's other pieces contradict it.
    /// Those stay as they were.
    pub fn insert_marked(
        &mut self,
        generation: Generation,
        counter: u64,
        (piece, congested): (Piece<'_>, bool),
        now: BootTime,
    ) -> Result<Option<(&mut [u8], bool)>, DropReason> {
        self.expire(now);
        let first = counter.checked_sub(piece.index.into()).ok_or(DropReason::FragmentMalformed)?;
        if piece.least_packet() > self.largest {
            return Err(DropReason::LargerThanMtu);
        }
        let id = Id { generation, first };
        let at = self.find(id).unwrap_or_else(|| self.admit(id, piece.count, now));
        let packet = &mut self.packets[at];
        packet.note(&piece, self.largest)?;
        let start = packet.slot * self.largest;
        let slot = &mut self.arena[start..start + self.largest];
        packet.place(&piece, slot);
        packet.congested |= congested;
        let congested = packet.congested;
        let Some(len) = packet.finish(slot) else { return Ok(None) };
        self.release(at);
        Ok(Some((&mut self.arena[start..start + len], congested)))
    }

    /// Forgets the packets whose pieces did not all come in time. Says how many were lost so since it
    /// was asked last, and for want of room: each is one [`DropReason::Unassembled`].
    #[must_use]
    pub fn purge(&mut self, now: BootTime) -> usize {
        self.expire(now);
        mem::take(&mut self.died)
    }

    fn expire(&mut self, now: BootTime) {
        while let Some(oldest) = self.packets[self.unused()..].first()
            && now.saturating_since(oldest.since) >= PIECES_WITHIN
        {
            self.waiting -= 1;
            self.died += 1;
        }
    }

    /// Where the packet waits. The newest is looked at first: it nearly always is the one.
    fn find(&self, id: Id) -> Option<usize> {
        let unused = self.unused();
        self.packets[unused..].iter().rposition(|packet| packet.id == id).map(|at| unused + at)
    }

    /// Makes room for a new packet and says where: in an unused slot, or in the oldest's.
    fn admit(&mut self, id: Id, count: u8, since: BootTime) -> usize {
        if self.waiting == WAITING_PACKETS {
            self.died += 1;
        } else {
            self.waiting += 1;
        }
        let (unused, newest) = (self.unused(), WAITING_PACKETS - 1);
        self.packets[unused..].rotate_left(1);
        let slot = self.packets[newest].slot;
        self.packets[newest] = Partial { id, count, since, ..Partial::unused(slot) };
        newest
    }

    /// Puts a packet among the unused; the others keep their order.
    fn release(&mut self, at: usize) {
        let unused = self.unused();
        self.packets[unused..=at].rotate_right(1);
        self.waiting -= 1;
    }

    const fn unused(&self) -> usize {
        WAITING_PACKETS - self.waiting
    }

    /// Where a slot lies in the arena.
    const fn bytes_of(&self, slot: usize) -> Range<usize> {
        slot * self.largest..(slot + 1) * self.largest
    }
}

/// What the pieces of one packet have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Id {
    generation: Generation,
    /// The counter of its first piece.
    first: u64,
}

/// A packet of which some pieces have come.
#[derive(Clone, Copy, Debug, Default)]
struct Partial {
    /// Which slot of the arena holds it.
    slot: usize,
    id: Id,
    since: BootTime,
    count: u8,
    /// A bit for each piece that has come.
    have: u8,
    /// The length of every piece but the last; 0 until one has come.
    each: usize,
    /// The length of the last piece; 0 until it has come.
    last: usize,
    /// A piece of it met congestion on the way.
    congested: bool,
}

impl Partial {
    fn unused(slot: usize) -> Self {
        Self { slot, ..Self::default() }
    }

    /// Notes that a piece has come, unless it contradicts the others.
    fn note(&mut self, piece: &Piece<'_>, largest: usize) -> Result<(), DropReason> {
        let len = piece.bytes.len();
        let (each, last) = if piece.is_last() { (self.each, len) } else { (len, self.last) };
        let agrees = piece.count == self.count
            && self.have & (1 << piece.index) == 0
            && [0, each].contains(&self.each)
            && self.others() * each + last <= largest;
        if !agrees {
            return Err(DropReason::FragmentConflicts);
        }
        (self.each, self.last) = (each, last);
        self.have |= 1 << piece.index;
        Ok(())
    }

    /// Copies a piece to where it belongs. The last one waits at the end of the slot, for the others'
    /// length may not be known yet; they never reach it, since the packet is no larger than the slot.
    fn place(&self, piece: &Piece<'_>, slot: &mut [u8]) {
        let len = piece.bytes.len();
        let start = if piece.is_last() { slot.len() - len } else { usize::from(piece.index) * len };
        slot[start..start + len].copy_from_slice(piece.bytes);
    }

    /// Once all pieces have come: joins the last one to the others and says how long the packet is.
    fn finish(&self, slot: &mut [u8]) -> Option<usize> {
        if self.have.count_ones() < self.count.into() {
            return None;
        }
        let end = self.others() * self.each;
        slot.copy_within(slot.len() - self.last.., end);
        Some(end + self.last)
    }

    /// How long the packet is as far as is known.
    fn known_len(&self) -> usize {
        self.others() * self.each + self.last
    }

    /// Copies the pieces that have come to a slot of another size: [`Partial::place`] says where they lie.
    fn copy(&self, from: &[u8], slot: &mut [u8]) {
        let others = self.others() * self.each;
        slot[..others].copy_from_slice(&from[..others]);
        let (end, from_end) = (slot.len() - self.last, from.len() - self.last);
        slot[end..].copy_from_slice(&from[from_end..]);
    }

    /// How many pieces there are besides the last.
    fn others(&self) -> usize {
        usize::from(self.count) - 1
    }
}

/// Bytes in front of a piece.
const HEADER_LEN: usize = frame::HEADER_LEN + PIECE_HEADER_LEN;
const PIECE_HEADER_LEN: usize = 2;
