//! What leaves in one send: datagrams of one size back to back in one buffer, the last one
//! possibly shorter. Packets are written where they are sealed and sealed where they are sent
//! from.

use std::num::NonZeroU16;

use vpnd_protocol::activity::Tally;
use vpnd_protocol::message::DATA_HEADER_LEN;
use vpnd_protocol::session::{Counters, OVERHEAD, SealingKey, padded_len};
use vpnd_protocol::table::Path;

use crate::udp::{MAX_BATCH, Transmit};

/// Datagrams in the making. The buffer is allocated once.
pub(crate) struct Batch {
    buffer: Box<[u8]>,
    used: usize,
    /// The size of every datagram but the last; zero while there is none.
    segment: usize,
    /// The packets' own lengths, without padding.
    packets: Vec<usize>,
    /// The last datagram is shorter than the others, so none may follow.
    closed: bool,
    max_segments: usize,
    mtu: usize,
}

impl Batch {
    /// An empty batch of at most `max_segments` datagrams for a device of this MTU.
    pub(crate) fn new(max_segments: usize, mtu: usize) -> Self {
        Self {
            buffer: vec![0; MAX_BATCH].into_boxed_slice(),
            used: 0,
            segment: 0,
            packets: Vec::with_capacity(max_segments),
            closed: false,
            max_segments,
            mtu,
        }
    }

    /// Whether a packet of `len` bytes fits into a batch at all.
    pub(crate) fn can_ever_hold(&self, len: usize) -> bool {
        padded_len(len, self.mtu) + OVERHEAD <= MAX_BATCH
    }

    /// Room for a packet of `len` bytes, its padding already zero; `None` if the batch has to be
    /// sent first.
    pub(crate) fn room(&mut self, len: usize) -> Option<&mut [u8]> {
        let size = padded_len(len, self.mtu) + OVERHEAD;
        let fits = self.used + size <= MAX_BATCH && self.packets.len() < self.max_segments;
        if self.closed || !fits || (self.segment != 0 && size > self.segment) {
            return None;
        }
        self.closed = self.segment != 0 && size < self.segment;
        self.segment = self.segment.max(size);
        self.packets.push(len);
        let start = self.used + DATA_HEADER_LEN;
        self.used += size;
        self.buffer[start + len..self.used].fill(0);
        Some(&mut self.buffer[start..start + len])
    }

    /// Seals every datagram; the batch then stands as it goes out.
    pub(crate) fn seal(&mut self, key: &SealingKey, counters: Counters) {
        let datagrams = self.buffer[..self.used].chunks_mut(self.segment.max(1));
        for (datagram, counter) in datagrams.zip(counters) {
            key.seal(counter, datagram);
        }
    }

    /// The sealed batch, to be sent along `path`, from its byte `sent` on.
    pub(crate) fn transmit(&self, path: &Path, sent: usize) -> Transmit<'_> {
        Transmit {
            destination: path.to,
            source: path.from,
            tos: path.dscp << 2,
            contents: &self.buffer[sent..self.used],
            segment_size: u16::try_from(self.segment).ok().and_then(NonZeroU16::new),
        }
    }

    /// The packets as they were written, before sealing.
    pub(crate) fn packets(&self) -> impl Iterator<Item = &[u8]> {
        let starts = (0..).map(|n| n * self.segment + DATA_HEADER_LEN);
        starts.zip(&self.packets).map(|(start, &len)| &self.buffer[start..start + len])
    }

    pub(crate) fn tally(&self) -> Tally {
        let packets = self.packets.len() as u64;
        Tally { datagrams: packets, packets, bytes: self.used as u64 }
    }

    pub(crate) fn len(&self) -> usize {
        self.packets.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.used
    }

    /// How many datagrams are left when the first `sent` bytes have gone.
    pub(crate) fn remaining(&self, sent: usize) -> usize {
        (self.used - sent).div_ceil(self.segment.max(1))
    }

    pub(crate) fn clear(&mut self) {
        (self.used, self.segment, self.closed) = (0, 0, false);
        self.packets.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> Batch {
        Batch::new(64, 1420)
    }

    #[test]
    fn equal_sizes_share_a_batch_and_a_shorter_one_closes_it() {
        let mut batch = batch();
        assert!(batch.room(100).is_some());
        assert!(batch.room(97).is_some(), "padded to the same size");
        assert!(batch.room(50).is_some());
        assert!(batch.room(50).is_none(), "closed");
        assert_eq!(batch.tally(), Tally { datagrams: 3, packets: 3, bytes: 144 + 144 + 96 });
        batch.clear();
        assert!(batch.room(50).is_some());
        assert!(batch.room(100).is_none(), "a longer one starts the next");
    }

    #[test]
    fn a_batch_never_outgrows_one_send() {
        let mut batch = batch();
        while batch.room(1420).is_some() {}
        assert_eq!(batch.len(), 44);
        assert!(batch.bytes() <= MAX_BATCH);
        batch.clear();
        while batch.room(1).is_some() {}
        assert_eq!(batch.len(), 64);
    }

    #[test]
    fn packets_come_back_as_they_were_written_and_padding_is_zero() {
        let mut batch = batch();
        for _ in 0..2 {
            batch.room(20).unwrap().fill(1);
            batch.room(18).unwrap().fill(2);
            let packets: Vec<_> = batch.packets().map(<[u8]>::to_vec).collect();
            assert_eq!(packets, [vec![1; 20], vec![2; 18]]);
            assert_eq!(batch.buffer[64 + 16 + 18..64 + 64], [0; 30]);
            batch.buffer.fill(0xff);
            batch.clear();
        }
    }
}
