//! Copies packets for a capture. While nothing is captured, a data thread reads one flag for each batch.
//!
//! The copies go to a buffer of fixed size, which the control thread exchanges for an empty one twenty times a second.
//! Each time it allows some more bytes. A packet beyond those is only counted, so a capture takes a bounded part of the
//! data threads' time, however many packets cross the tunnel and however slowly the capture is read.

mod places;
mod record;

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use zeroize::Zeroize;

use crate::clock;

pub use record::{Counts, Datagram, Direction, Header, Kind, Lost};

/// The number of bytes that are captured at once: bursts are captured completely.
const ROOM: usize = 8 << 20;
/// The number of bytes that each call of [`Tap::drain`] allows: 40 MB/s.
const MORE: usize = 2 << 20;
/// Room for the key log beside it: for more than a hundred handshakes.
const KEYS_ROOM: usize = 64 << 10;

/// Which packets are captured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Packets of the device, as they are sealed and after they were opened.
    pub inner: bool,
    /// Datagrams of the socket.
    pub outer: bool,
}

impl Wanted {
    /// Whether anything is captured.
    pub const fn any(self) -> bool {
        self.inner || self.outer
    }

    fn bits(self) -> u8 {
        u8::from(self.inner) | u8::from(self.outer) << 1
    }

    const fn of_bits(bits: u8) -> Self {
        Self { inner: bits & 1 != 0, outer: bits & 2 != 0 }
    }
}

/// Where the packets of both sides are copied. All clones are one.
#[derive(Clone, Debug, Default)]
pub struct Tap(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// [`Wanted::bits`], which data threads read once for each batch.
    wanted: AtomicU8,
    captured: Mutex<Option<Captured>>,
}

/// What was captured since the last drain, and the number of packets since the start.
#[derive(Debug)]
struct Captured {
    records: Records,
    /// The number of bytes that may still be copied.
    room: usize,
    /// At most this much of a packet is copied.
    snap: usize,
    counts: Counts,
}

/// Records back to back. The memory never grows, and is wiped at the end, because records may contain keys.
#[derive(Debug)]
pub struct Records(Vec<u8>);

impl Records {
    /// No records, and room for as many as are captured at once.
    pub fn new() -> Self {
        Self(Vec::with_capacity(ROOM + KEYS_ROOM))
    }

    /// The records.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn push(&mut self, header: Header, kept: &[u8]) {
        let header = Header { kept: length(kept), ..header };
        self.0.extend_from_slice(&header.encode());
        self.0.extend_from_slice(kept);
    }
}

impl Default for Records {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Records {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl Tap {
    /// Captures from now on, at most `snap` bytes of each packet.
    pub fn start(&self, wanted: Wanted, snap: usize) {
        let (records, counts) = (Records::new(), Counts::default());
        *self.lock() = Some(Captured { records, room: ROOM, snap, counts });
        self.0.wanted.store(wanted.bits(), Relaxed);
    }

    /// Captures nothing from now on. What was not drained is lost.
    pub fn stop(&self) {
        self.0.wanted.store(0, Relaxed);
        *self.lock() = None;
    }

    /// What is captured at present.
    pub fn wanted(&self) -> Wanted {
        Wanted::of_bits(self.0.wanted.load(Relaxed))
    }

    /// Replaces `drained` by the records since the last call. Returns the number of packets since the start; `None` if
    /// nothing is captured.
    pub fn drain(&self, drained: &mut Records) -> Option<Counts> {
        drained.0.clear();
        let mut captured = self.lock();
        let captured = captured.as_mut()?;
        std::mem::swap(&mut captured.records, drained);
        captured.room = ROOM.min(captured.room + MORE);
        Some(captured.counts)
    }

    /// Adds lines of a key log, before the packets that they belong to. They have room of their own.
    pub fn keys(&self, lines: &str) {
        let header = Header::new(Kind::Keys, Direction::Sent, now());
        if let Some(captured) = &mut *self.lock() {
            captured.push_keys(header, lines.as_bytes());
        }
    }

    /// Captures packets of the device, all of them with the present time.
    pub(crate) fn inner(&self, direction: Direction) -> Batch<'_> {
        self.batch(Header::new(Kind::Inner, direction, now()))
    }

    /// Captures datagrams of the socket, all of them with the present time.
    pub(crate) fn outer(&self, direction: Direction, datagram: Datagram) -> Batch<'_> {
        self.batch(Header { datagram, ..Header::new(Kind::Outer, direction, now()) })
    }

    fn batch(&self, header: Header) -> Batch<'_> {
        Batch { captured: self.lock(), header }
    }

    /// Copying to memory that is there does not panic, so a lock that is poisoned guards whole records.
    fn lock(&self) -> MutexGuard<'_, Option<Captured>> {
        self.0.captured.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Packets that are captured together. The buffer is locked for as long.
pub(crate) struct Batch<'t> {
    captured: MutexGuard<'t, Option<Captured>>,
    header: Header,
}

impl Batch<'_> {
    /// Copies a packet, if there is room.
    pub(crate) fn push(&mut self, packet: &[u8]) {
        // The capture may have ended since the flag was read.
        if let Some(captured) = &mut *self.captured {
            captured.push(self.header, packet);
        }
    }

    /// Copies datagrams that are back to back, each of this size except the last.
    pub(crate) fn push_each(&mut self, datagrams: &[u8], size: usize) {
        datagrams.chunks(size.max(1)).for_each(|datagram| self.push(datagram));
    }
}

impl Captured {
    fn push(&mut self, header: Header, packet: &[u8]) {
        let kept = &packet[..packet.len().min(self.snap)];
        let room = self.room.checked_sub(Header::LEN + kept.len());
        self.counts.count(header.kind, room.is_some());
        if let Some(room) = room {
            self.room = room;
            self.records.push(Header { len: length(packet), ..header }, kept);
        }
    }

    /// What finds no room in a capture that nobody reads is left out, and so are its packets.
    fn push_keys(&mut self, header: Header, lines: &[u8]) {
        if self.records.0.len() + Header::LEN + lines.len() <= ROOM + KEYS_ROOM {
            self.records.push(Header { len: length(lines), ..header }, lines);
        }
    }
}

/// No packet is longer than 4 GiB.
fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

/// Nanoseconds since 1970.
fn now() -> u64 {
    u64::try_from(clock::now().wall.since_unix().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The records, each with what is kept of the packet.
    pub(crate) fn records(drained: &Records) -> Vec<(Header, Vec<u8>)> {
        let (mut rest, mut all) = (drained.bytes(), Vec::new());
        while let Some((header, behind)) = rest.split_first_chunk() {
            let header = Header::decode(header).unwrap();
            let (kept, behind) = behind.split_at(header.kept as usize);
            all.push((header, kept.to_vec()));
            rest = behind;
        }
        all
    }

    const BOTH: Wanted = Wanted { inner: true, outer: true };

    #[test]
    fn what_is_captured_is_drained_once_and_in_order() {
        let tap = Tap::default();
        assert_eq!(tap.wanted(), Wanted::default());
        tap.start(BOTH, 4);
        assert_eq!(tap.wanted(), BOTH);
        tap.keys("key");
        tap.outer(Direction::Sent, Datagram::default()).push_each(b"aabbc", 2);
        tap.inner(Direction::Received).push(b"longer");
        let mut drained = Records::new();
        let counts = tap.drain(&mut drained).unwrap();
        let found = records(&drained);
        let kept: Vec<_> = found.iter().map(|(_, kept)| kept.as_slice()).collect();
        assert_eq!(kept, [&b"key"[..], b"aa", b"bb", b"c", b"long"]);
        assert_eq!(found[4].0.len, 6);
        assert_eq!(
            (counts.outer, counts.inner),
            (Lost { seen: 3, lost: 0 }, Lost { seen: 1, lost: 0 })
        );
        tap.drain(&mut drained);
        assert!(drained.bytes().is_empty());
    }

    #[test]
    fn without_room_packets_are_counted_and_keys_are_kept() {
        let tap = Tap::default();
        tap.start(BOTH, 65_535);
        let packet = [0; 1000];
        let fits = ROOM / (1000 + Header::LEN);
        (0..fits + 7).for_each(|_| tap.inner(Direction::Sent).push(&packet));
        tap.keys("key");
        let mut drained = Records::new();
        let counts = tap.drain(&mut drained).unwrap();
        assert_eq!(counts.inner, Lost { seen: fits as u64 + 7, lost: 7 });
        assert_eq!(records(&drained).len(), fits + 1);
        assert_eq!(drained.0.capacity(), ROOM + KEYS_ROOM, "it has not grown");
        // From now on there is room for less.
        (0..fits).for_each(|_| tap.inner(Direction::Sent).push(&packet));
        tap.drain(&mut drained);
        let more = records(&drained).len();
        assert!(more == MORE / (1000 + Header::LEN) || more == MORE / (1000 + Header::LEN) + 1);
    }

    #[test]
    fn nothing_is_kept_of_a_capture_that_has_ended() {
        let tap = Tap::default();
        tap.start(BOTH, 100);
        tap.inner(Direction::Sent).push(b"one");
        tap.stop();
        // As of a thread that has read the flag before.
        tap.inner(Direction::Sent).push(b"two");
        tap.keys("key");
        assert!(tap.drain(&mut Records::new()).is_none() && !tap.wanted().any());
    }
}
