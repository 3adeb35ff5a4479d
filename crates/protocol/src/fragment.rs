//! Fragmentation of packets that are too large for one datagram: planning, cutting and reassembly.
//!
//! | offset in the plaintext | bytes | is |
//! |---|---|---|
//! | 0 | 1 | 3, the kind of [`frame`] it is |
//! | 1 | 1 | `pad_len` |
//! | 2 | 1 | index: which fragment, from 0 |
//! | 3 | 1 | count: the number of fragments, 2 to 8 |
//! | 4 | | the fragment: 1 byte or more |
//! | end − `pad_len` | `pad_len` | zeros |
//!
//! The input is what the device returned: an IP packet, or an Ethernet frame without an envelope. All
//! fragments except the last have equal length, and padding makes all plaintexts equally long, because a GSO
//! send ends with the first shorter datagram. Fragments are sealed with consecutive counters of one session:
//! *counter − index* is the same number for all of them and belongs to no other packet, so no identifier is
//! sent and none can wrap.
//!
//! A receiver holds at most 64 incomplete packets, each for two seconds after its first fragment arrived.

#[cfg(test)]
mod tests;

use std::mem;
use std::ops::Range;
use std::time::Duration;

use crate::drop_reason::DropReason;
use crate::frame::{self, BLOCK, FRAGMENT};
use crate::session::{Generation, OVERHEAD};
use crate::time::BootTime;

/// The largest number of fragments of a packet.
pub const MAX_FRAGMENTS: u8 = 8;
/// The number of packets that wait for fragments; a further one replaces the oldest.
pub const WAITING_PACKETS: usize = 64;
/// How long a packet waits for all its fragments.
pub const FRAGMENTS_WITHIN: Duration = Duration::from_secs(2);

/// Plans the fragments of a packet of `len` bytes: as few as possible but at least two, so that no datagram
/// exceeds `max_datagram` bytes. `None` if they would be more than [`MAX_FRAGMENTS`], or if the packet has fewer
/// than two bytes.
pub fn plan(len: usize, max_datagram: usize) -> Option<Plan> {
    let plaintext = max_datagram.checked_sub(OVERHEAD)?;
    let room = (plaintext - plaintext % BLOCK).checked_sub(HEADER_LEN)?;
    let count = u8::try_from(len.div_ceil(room)).ok()?.max(2);
    if len < 2 || count > MAX_FRAGMENTS {
        return None;
    }
    // Equal fragments that fill their last block: only the last one has padding.
    let plaintext_len = frame::plaintext_len(PIECE_HEADER_LEN + len.div_ceil(count.into()));
    Some(Plan { len, each: (plaintext_len - HEADER_LEN).min(len - 1), count, plaintext_len })
}

/// How a packet is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    len: usize,
    /// Bytes in each fragment but the last, which has the remaining bytes: at least one.
    each: usize,
    count: u8,
    plaintext_len: usize,
}

impl Plan {
    /// The number of fragments, which is the number of consecutive counters to reserve.
    pub const fn count(self) -> usize {
        self.count as usize
    }

    /// The fragments in their order.
    pub fn cuts(self) -> impl ExactSizeIterator<Item = Cut> {
        (0..self.count).map(move |index| {
            let start = usize::from(index) * self.each;
            let end = self.len.min(start + self.each);
            let Self { count, plaintext_len, .. } = self;
            Cut { index, count, bytes: start..end, plaintext_len }
        })
    }

    /// The length of each fragment's plaintext.
    pub const fn plaintext_len(self) -> usize {
        self.plaintext_len
    }
}

/// A fragment of a packet that is about to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    index: u8,
    count: u8,
    bytes: Range<usize>,
    plaintext_len: usize,
}

impl Cut {
    /// The range of the packet's bytes in it.
    pub const fn bytes(&self) -> &Range<usize> {
        &self.bytes
    }

    /// The length of its plaintext.
    pub const fn plaintext_len(&self) -> usize {
        self.plaintext_len
    }

    /// Writes it to `plaintext`: header, fragment and padding.
    ///
    /// # Panics
    /// If `packet` does not have the planned length, or `plaintext` not that of [`Cut::plaintext_len`]: bugs
    /// of the caller.
    pub fn write(&self, packet: &[u8], plaintext: &mut [u8]) {
        let (header, rest) = plaintext.split_at_mut(HEADER_LEN);
        let (fragment, padding) = rest.split_at_mut(self.bytes.len());
        // Each other fragment takes less than a block from the last: seven of them.
        let pad_len = u8::try_from(padding.len()).unwrap_or(u8::MAX);
        header.copy_from_slice(&[FRAGMENT, pad_len, self.index, self.count]);
        fragment.copy_from_slice(&packet[self.bytes.clone()]);
        padding.fill(0);
    }
}

/// A received fragment: one of two to eight, and not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment<'a> {
    index: u8,
    count: u8,
    bytes: &'a [u8],
}

impl<'a> Fragment<'a> {
    /// Reads the body of a frame.
    pub(crate) fn read(body: &'a [u8]) -> Option<Self> {
        let (&[index, count], bytes) = body.split_first_chunk()?;
        let sound = (2..=MAX_FRAGMENTS).contains(&count) && index < count && !bytes.is_empty();
        sound.then_some(Self { index, count, bytes })
    }

    /// The packet's bytes in it.
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Whether it is the packet's first fragment.
    pub const fn is_first(&self) -> bool {
        self.index == 0
    }

    /// Whether it is the packet's last fragment.
    pub const fn is_last(&self) -> bool {
        self.index + 1 == self.count
    }

    /// The least length of a packet with this fragment: any other fragment may have a single byte.
    fn least_packet(&self) -> usize {
        let others = usize::from(self.count) - 1;
        if self.is_last() { others + self.bytes.len() } else { others * self.bytes.len() + 1 }
    }
}

/// Reassembles fragments, in receive order.
///
/// It holds [`WAITING_PACKETS`] times the largest packet, allocated once: 97 KiB for Ethernet frames of 1514
/// bytes, 4 MiB for packets of 65 535. The kernel provides this memory zeroed and on demand, so only slots
/// that were once used take memory. The slot used last is reused first, so without loss and reordering that
/// is one packet.
pub struct Reassembly {
    /// A slot of `largest` bytes for each packet.
    arena: Box<[u8]>,
    largest: usize,
    /// First the numbers of the unused slots, then the `waiting` incomplete packets, oldest first.
    packets: Box<[Partial]>,
    waiting: usize,
    /// Packets lost since the last [`Reassembly::purge`].
    died: usize,
}

impl Reassembly {
    /// Creates it for packets of at most `largest` bytes.
    pub fn new(largest: usize) -> Self {
        Self {
            arena: vec![0; WAITING_PACKETS * largest].into_boxed_slice(),
            largest,
            packets: (0..WAITING_PACKETS).map(Partial::unused).collect(),
            waiting: 0,
            died: 0,
        }
    }

    /// Changes the limit to `largest` bytes. Incomplete packets that may still fit continue to wait.
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

    /// Adds a fragment that came with `counter` on the session `generation` and passed the replay window; the
    /// flag is set if it met congestion. Returns the complete packet if this was the last missing fragment,
    /// and whether any of its fragments met congestion (RFC 3168 §5.3).
    ///
    /// # Errors
    /// [`DropReason::FragmentMalformed`] if no packet can have such a fragment, [`DropReason::LargerThanMtu`]
    /// if only a packet larger than the limit can; [`DropReason::FragmentConflicts`] if it contradicts the
    /// packet's other fragments. Those are kept.
    pub fn insert_marked(
        &mut self,
        generation: Generation,
        counter: u64,
        (fragment, congested): (Fragment<'_>, bool),
        now: BootTime,
    ) -> Result<Option<(&mut [u8], bool)>, DropReason> {
        self.expire(now);
        let first =
            counter.checked_sub(fragment.index.into()).ok_or(DropReason::FragmentMalformed)?;
        if fragment.least_packet() > self.largest {
            return Err(DropReason::LargerThanMtu);
        }
        let id = Id { generation, first };
        let at = self.find(id).unwrap_or_else(|| self.admit(id, fragment.count, now));
        let packet = &mut self.packets[at];
        packet.note(&fragment, self.largest)?;
        let start = packet.slot * self.largest;
        let slot = &mut self.arena[start..start + self.largest];
        packet.place(&fragment, slot);
        packet.congested |= congested;
        let congested = packet.congested;
        let Some(len) = packet.finish(slot) else { return Ok(None) };
        self.release(at);
        Ok(Some((&mut self.arena[start..start + len], congested)))
    }

    /// Forgets the packets whose fragments did not all arrive in time. Returns how many were lost for that or
    /// for want of room since the last call: each is one [`DropReason::Unassembled`].
    #[must_use]
    pub fn purge(&mut self, now: BootTime) -> usize {
        self.expire(now);
        mem::take(&mut self.died)
    }

    fn expire(&mut self, now: BootTime) {
        while let Some(oldest) = self.packets[self.unused()..].first()
            && now.saturating_since(oldest.since) >= FRAGMENTS_WITHIN
        {
            self.waiting -= 1;
            self.died += 1;
        }
    }

    /// Finds the incomplete packet. The newest is checked first: it nearly always is the right one.
    fn find(&self, id: Id) -> Option<usize> {
        let unused = self.unused();
        self.packets[unused..].iter().rposition(|packet| packet.id == id).map(|at| unused + at)
    }

    /// Makes room for a new packet and returns its place: an unused slot, or that of the oldest packet.
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

    /// Moves a packet to the unused slots; the others keep their order.
    fn release(&mut self, at: usize) {
        let unused = self.unused();
        self.packets[unused..=at].rotate_right(1);
        self.waiting -= 1;
    }

    const fn unused(&self) -> usize {
        WAITING_PACKETS - self.waiting
    }

    /// The range of a slot in the arena.
    const fn bytes_of(&self, slot: usize) -> Range<usize> {
        slot * self.largest..(slot + 1) * self.largest
    }
}

/// The identity shared by all fragments of one packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Id {
    generation: Generation,
    /// The counter of its first fragment.
    first: u64,
}

/// A packet of which some fragments have arrived.
#[derive(Clone, Copy, Debug, Default)]
struct Partial {
    /// The slot of the arena that holds it.
    slot: usize,
    id: Id,
    since: BootTime,
    count: u8,
    /// A bit for each fragment that has arrived.
    have: u8,
    /// The length of every fragment but the last; 0 until one has arrived.
    each: usize,
    /// The length of the last fragment; 0 until it has arrived.
    last: usize,
    /// One of its fragments met congestion on the path.
    congested: bool,
}

impl Partial {
    fn unused(slot: usize) -> Self {
        Self { slot, ..Self::default() }
    }

    /// Records a fragment, unless it contradicts the others.
    fn note(&mut self, fragment: &Fragment<'_>, largest: usize) -> Result<(), DropReason> {
        let len = fragment.bytes.len();
        let (each, last) = if fragment.is_last() { (self.each, len) } else { (len, self.last) };
        let agrees = fragment.count == self.count
            && self.have & (1 << fragment.index) == 0
            && [0, each].contains(&self.each)
            && self.others() * each + last <= largest;
        if !agrees {
            return Err(DropReason::FragmentConflicts);
        }
        (self.each, self.last) = (each, last);
        self.have |= 1 << fragment.index;
        Ok(())
    }

    /// Copies a fragment to its place. The last one waits at the end of the slot, because the length of the
    /// others may not be known yet; they never reach it, since the packet is no larger than the slot.
    fn place(&self, fragment: &Fragment<'_>, slot: &mut [u8]) {
        let len = fragment.bytes.len();
        let start =
            if fragment.is_last() { slot.len() - len } else { usize::from(fragment.index) * len };
        slot[start..start + len].copy_from_slice(fragment.bytes);
    }

    /// Once all fragments have arrived: joins the last one to the others and returns the packet's length.
    fn finish(&self, slot: &mut [u8]) -> Option<usize> {
        if self.have.count_ones() < self.count.into() {
            return None;
        }
        let end = self.others() * self.each;
        slot.copy_within(slot.len() - self.last.., end);
        Some(end + self.last)
    }

    /// The length of the packet as far as it is known.
    fn known_len(&self) -> usize {
        self.others() * self.each + self.last
    }

    /// Copies the fragments to a slot of another size, to the places of [`Partial::place`].
    fn copy(&self, from: &[u8], slot: &mut [u8]) {
        let others = self.others() * self.each;
        slot[..others].copy_from_slice(&from[..others]);
        let (end, from_end) = (slot.len() - self.last, from.len() - self.last);
        slot[end..].copy_from_slice(&from[from_end..]);
    }

    /// The number of fragments besides the last.
    fn others(&self) -> usize {
        usize::from(self.count) - 1
    }
}

/// Bytes in front of a fragment.
const HEADER_LEN: usize = frame::HEADER_LEN + PIECE_HEADER_LEN;
const PIECE_HEADER_LEN: usize = 2;
