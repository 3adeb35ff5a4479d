//! What leaves in one call: datagrams back to back in one buffer, in runs of one size and one ECN mark,
//! for each run is one send. Packets are written where they are sealed and sealed where they are sent
//! from.

use std::num::NonZeroU16;

use vpnd_protocol::activity::Tally;
use vpnd_protocol::message::DATA_HEADER_LEN;
use vpnd_protocol::session::{Counters, OVERHEAD, SealingKey, padded_len};
use vpnd_protocol::table::Path;

use crate::ecn::Ecn;
use crate::udp::{MAX_BATCH, MAX_RUNS, Transmit};

/// Datagrams in the making. The buffer is allocated once.
pub(crate) struct Batch {
    buffer: Box<[u8]>,
    used: usize,
    runs: Vec<Run>,
    /// The packets' own lengths, without padding.
    packets: Vec<usize>,
    max_packets: usize,
    mtu: usize,
}

/// Datagrams of one size back to back, the last one possibly shorter.
#[derive(Clone, Copy, Debug)]
struct Run {
    start: usize,
    end: usize,
    /// The size of every datagram but the last.
    segment: usize,
    ecn: Ecn,
    /// The last datagram is shorter than the others, so none may follow.
    closed: bool,
}

impl Batch {
    /// An empty batch of at most `max_packets` datagrams for a device of this MTU.
    pub(crate) fn new(max_packets: usize, mtu: usize) -> Self {
        Self {
            buffer: vec![0; MAX_BATCH].into_boxed_slice(),
            used: 0,
            runs: Vec::with_capacity(MAX_RUNS),
            packets: Vec::with_capacity(max_packets),
            max_packets,
            mtu,
        }
    }

    /// Whether a packet of `len` bytes fits into a batch at all.
    pub(crate) fn can_ever_hold(&self, len: usize) -> bool {
        padded_len(len, self.mtu) + OVERHEAD <= MAX_BATCH
    }

    /// Room for a packet of `len` bytes, its padding already zero; `None` if the batch has to be
    /// sent first.
    pub(crate) fn room(&mut self, len: usize, ecn: Ecn) -> Option<&mut [u8]> {
        let size = padded_len(len, self.mtu) + OVERHEAD;
        let (start, end) = (self.used, self.used + size);
        if end > MAX_BATCH || self.packets.len() == self.max_packets {
            return None;
        }
        let full = self.runs.len() == MAX_RUNS;
        match self.runs.last_mut() {
            Some(run) if run.takes(size, ecn) => run.extend(size),
            _ if full => return None,
            _ => self.runs.push(Run { start, end, segment: size, ecn, closed: false }),
        }
        self.packets.push(len);
        self.used = end;
        let packet = start + DATA_HEADER_LEN;
        self.buffer[packet + len..end].fill(0);
        Some(&mut self.buffer[packet..packet + len])
    }

    /// Seals every datagram; the batch then stands as it goes out.
    pub(crate) fn seal(&mut self, key: &SealingKey, mut counters: Counters) {
        for run in &self.runs {
            let datagrams = self.buffer[run.start..run.end].chunks_mut(run.segment);
            key.seal_each(&mut counters, datagrams);
        }
    }

    /// The sealed batch, to be sent along `path`, from its byte `sent` on: a send for each run.
    pub(crate) fn transmits(&self, path: Path, sent: usize) -> impl Iterator<Item = Transmit<'_>> {
        let left = self.runs.iter().filter(move |run| run.end > sent);
        left.map(move |run| Transmit {
            destination: path.to,
            source: path.from,
            tos: path.dscp << 2 | run.ecn.bits(),
            contents: &self.buffer[run.start.max(sent)..run.end],
            segment_size: u16::try_from(run.segment).ok().and_then(NonZeroU16::new),
        })
    }

    /// The packets as they were written, before sealing, each with its mark.
    pub(crate) fn packets(&self) -> impl Iterator<Item = &[u8]> {
        let starts = self.runs.iter().flat_map(|run| (run.start..run.end).step_by(run.segment));
        let packets = starts.map(|start| start + DATA_HEADER_LEN).zip(&self.packets);
        packets.map(|(start, &len)| &self.buffer[start..start + len])
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
        self.runs.iter().map(|run| run.remaining(sent)).sum()
    }

    pub(crate) fn clear(&mut self) {
        self.used = 0;
        self.runs.clear();
        self.packets.clear();
    }
}

impl Run {
    fn takes(&self, size: usize, ecn: Ecn) -> bool {
        !self.closed && size <= self.segment && ecn == self.ecn
    }

    const fn extend(&mut self, size: usize) {
        self.end += size;
        self.closed = size < self.segment;
    }

    fn remaining(&self, sent: usize) -> usize {
        self.end.saturating_sub(sent.max(self.start)).div_ceil(self.segment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> Batch {
        Batch::new(64, 1420)
    }

    fn fill(batch: &mut Batch, lens: &[usize]) {
        for len in lens {
            assert!(batch.room(*len, Ecn::NotEct).is_some());
        }
    }

    /// The datagrams' sizes, run by run.
    fn runs(batch: &Batch) -> Vec<Vec<usize>> {
        let sizes = |run: &Run| {
            batch.buffer[run.start..run.end].chunks(run.segment).map(<[u8]>::len).collect()
        };
        batch.runs.iter().map(sizes).collect()
    }

    #[test]
    fn equal_sizes_share_a_run_a_shorter_one_ends_it_a_longer_one_begins_the_next() {
        let mut batch = batch();
        fill(&mut batch, &[100, 97, 50, 50, 100]);
        assert_eq!(runs(&batch), [vec![144, 144, 96], vec![96], vec![144]]);
        assert_eq!(batch.tally(), Tally { datagrams: 5, packets: 5, bytes: 3 * 144 + 2 * 96 });
        let left: Vec<usize> = [0, 144, 384, 480, 624].map(|sent| batch.remaining(sent)).to_vec();
        assert_eq!(left, [5, 4, 2, 1, 0]);
        batch.clear();
        fill(&mut batch, &[50]);
        assert_eq!(runs(&batch), [vec![96]]);
    }

    #[test]
    fn a_run_bears_one_mark() {
        let mut batch = batch();
        for ecn in [Ecn::Ect0, Ecn::Ect0, Ecn::Ce, Ecn::Ect0] {
            assert!(batch.room(100, ecn).is_some());
        }
        assert_eq!(runs(&batch), [vec![144, 144], vec![144], vec![144]]);
        let path =
            Path { to: ([192, 0, 2, 1], 1).into(), from: None, max_datagram: 1500, dscp: 10 };
        let tos: Vec<u8> = batch.transmits(path, 0).map(|transmit| transmit.tos).collect();
        assert_eq!(tos, [42, 43, 42]);
    }

    #[test]
    fn sending_goes_on_in_the_middle_of_a_run() {
        let mut batch = batch();
        fill(&mut batch, &[100, 100, 200, 200]);
        let path = Path { to: ([192, 0, 2, 1], 1).into(), from: None, max_datagram: 1500, dscp: 0 };
        let left = |sent| batch.transmits(path, sent).map(|t| t.contents.len()).collect::<Vec<_>>();
        assert_eq!(left(0), [288, 480]);
        assert_eq!(left(144), [144, 480]);
        assert_eq!(left(288), [480]);
        assert!(left(768).is_empty());
    }

    #[test]
    fn a_batch_never_outgrows_one_send() {
        let mut batch = batch();
        while batch.room(1420, Ecn::NotEct).is_some() {}
        assert_eq!(batch.len(), 44);
        assert!(batch.bytes() <= MAX_BATCH);
        batch.clear();
        while batch.room(1, Ecn::NotEct).is_some() {}
        assert_eq!(batch.len(), 64);
        batch.clear();
        let mut lens = (1..).map(|n| n * 16);
        while batch.room(lens.next().unwrap(), Ecn::NotEct).is_some() {}
        assert_eq!(runs(&batch).len(), MAX_RUNS);
    }

    #[test]
    fn packets_come_back_as_they_were_written_and_padding_is_zero() {
        let mut batch = batch();
        for _ in 0..2 {
            batch.room(20, Ecn::NotEct).unwrap().fill(1);
            batch.room(18, Ecn::NotEct).unwrap().fill(2);
            batch.room(40, Ecn::NotEct).unwrap().fill(3);
            let packets: Vec<_> = batch.packets().map(<[u8]>::to_vec).collect();
            assert_eq!(packets, [vec![1; 20], vec![2; 18], vec![3; 40]]);
            assert_eq!(batch.buffer[64 + 16 + 18..64 + 64], [0; 30]);
            batch.buffer.fill(0xff);
            batch.clear();
        }
    }
}
