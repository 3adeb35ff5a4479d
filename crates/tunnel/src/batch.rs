//! The datagrams of one send: back to back in one buffer, in GSO runs. A run has one datagram size and one ECN
//! mark. Packets are written, sealed and sent in the same place, without a copy.

use std::num::NonZeroU16;

use vpnd_protocol::activity::Tally;
use vpnd_protocol::fragment::{Plan, plan};
use vpnd_protocol::frame::{self, Frame};
use vpnd_protocol::message::DATA_HEADER_LEN;
use vpnd_protocol::session::{Counters, OVERHEAD, SealingKey, padded_len};
use vpnd_protocol::table::Path;
use vpnd_tun::Mode;

use crate::outer::Outer;
use crate::udp::{MAX_BATCH, MAX_RUNS, Transmit};
use crate::view::View;

/// A batch under construction. The buffer is allocated once.
pub(crate) struct Batch {
    buffer: Box<[u8]>,
    used: usize,
    runs: Vec<Run>,
    /// The content of each datagram.
    contents: Vec<Content>,
    max_datagrams: usize,
    framing: Framing,
    /// The size of the largest datagram, if larger packets may be fragmented.
    largest: Option<usize>,
}

/// How the plaintext of an unfragmented packet is laid out.
#[derive(Clone, Copy, Debug)]
enum Framing {
    /// IP packets without an envelope, padded as far as their device's MTU allows.
    Bare { mtu: usize },
    /// Ethernet frames behind their envelope.
    Ethernet,
}

impl Framing {
    fn of(mode: Mode, mtu: u16) -> Self {
        match mode {
            Mode::Tun => Self::Bare { mtu: mtu.into() },
            Mode::Tap => Self::Ethernet,
        }
    }

    /// The size of the datagram for a packet of `len` bytes.
    const fn size(self, len: usize) -> usize {
        OVERHEAD
            + match self {
                Self::Bare { mtu } => padded_len(len, mtu),
                Self::Ethernet => frame::plaintext_len(len),
            }
    }

    const fn header_len(self) -> usize {
        match self {
            Self::Bare { .. } => 0,
            Self::Ethernet => frame::HEADER_LEN,
        }
    }

    /// Writes the envelope of a packet of `len` bytes, if it has an envelope, and returns the envelope's
    /// length.
    fn begin(self, len: usize, plaintext: &mut [u8]) -> usize {
        if let Self::Ethernet = self {
            plaintext[..frame::HEADER_LEN].copy_from_slice(&frame::ethernet_header(len));
        }
        self.header_len()
    }
}

/// The content of a datagram.
#[derive(Clone, Copy, Debug)]
enum Content {
    /// A packet of this many bytes, without padding.
    Packet(usize),
    /// A fragment: the frame's length, and whether it is the packet's first fragment.
    Fragment { len: usize, first: bool },
}

/// How a packet is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    /// The packet is sent in one datagram.
    Whole,
    /// The packet is sent in fragments.
    Fragments(Plan),
    /// The packet cannot be sent.
    Never,
}

/// Datagrams of equal size back to back; the last one may be shorter.
#[derive(Clone, Copy, Debug)]
struct Run {
    start: usize,
    end: usize,
    /// The size of every datagram except the last.
    segment: usize,
    outer: Outer,
    /// The last datagram is shorter than the others, so none may be appended.
    closed: bool,
}

impl Batch {
    /// An empty batch of at most `max_datagrams` datagrams.
    fn new(max_datagrams: usize, framing: Framing) -> Self {
        Self {
            buffer: vec![0; MAX_BATCH].into_boxed_slice(),
            used: 0,
            runs: Vec::with_capacity(MAX_RUNS),
            contents: Vec::with_capacity(max_datagrams),
            max_datagrams,
            framing,
            largest: None,
        }
    }

    /// An empty batch with the settings of `view`.
    pub(crate) fn of(max_datagrams: usize, mode: Mode, view: &View) -> Self {
        let mut batch = Self::new(max_datagrams, Framing::of(mode, view.policy.mtu()));
        batch.follow(mode, view);
        batch
    }

    /// Uses the settings of `view` for packets that are written from now on.
    pub(crate) fn follow(&mut self, mode: Mode, view: &View) {
        self.framing = Framing::of(mode, view.policy.mtu());
        self.limit(view.table.largest_datagram());
    }

    /// Fragments packets, from now on, whose datagram would be larger than `largest` bytes.
    fn limit(&mut self, largest: Option<usize>) {
        self.largest = largest;
    }

    /// How a packet of `len` bytes is sent.
    pub(crate) fn fit(&self, len: usize) -> Fit {
        let size = self.framing.size(len);
        match self.largest.filter(|&largest| size > largest) {
            Some(largest) => match plan(len, largest) {
                Some(plan) if sealed_len(plan) <= MAX_BATCH => Fit::Fragments(plan),
                Some(_) | None => Fit::Never,
            },
            None if size <= MAX_BATCH => Fit::Whole,
            None => Fit::Never,
        }
    }

    /// Writes `packet` in fragments if there is room for all of them, because their counters must be
    /// consecutive.
    pub(crate) fn cut(&mut self, packet: &[u8], plan: Plan, outer: Outer) -> bool {
        if self.used + sealed_len(plan) > MAX_BATCH
            || self.contents.len() + plan.count() > self.max_datagrams
            || self.runs.len() + 1 > MAX_RUNS
        {
            return false;
        }
        for cut in plan.cuts() {
            let (size, start) = (cut.plaintext_len() + OVERHEAD, self.used + DATA_HEADER_LEN);
            if !self.extend(size, outer) {
                return false;
            }
            cut.write(packet, &mut self.buffer[start..start + cut.plaintext_len()]);
            let len = cut.plaintext_len();
            self.contents.push(Content::Fragment { len, first: cut.bytes().start == 0 });
        }
        true
    }

    /// Room for a packet of `len` bytes, whose padding is already zero; `None` if the batch has to be sent
    /// first.
    pub(crate) fn room(&mut self, len: usize, outer: Outer) -> Option<&mut [u8]> {
        let size = self.framing.size(len);
        let (start, end) = (self.used + DATA_HEADER_LEN, self.used + size);
        if !self.extend(size, outer) {
            return None;
        }
        self.contents.push(Content::Packet(len));
        let start = start + self.framing.begin(len, &mut self.buffer[start..]);
        self.buffer[start + len..end].fill(0);
        Some(&mut self.buffer[start..start + len])
    }

    /// Appends a complete packet, fragmented if necessary; returns whether there was room.
    pub(crate) fn take(&mut self, packet: &[u8], outer: Outer) -> bool {
        match self.fit(packet.len()) {
            Fit::Whole => {
                self.room(packet.len(), outer).map(|room| room.copy_from_slice(packet)).is_some()
            }
            Fit::Fragments(plan) => self.cut(packet, plan, outer),
            Fit::Never => false,
        }
    }

    /// Reserves room for a datagram; returns whether there was any.
    fn extend(&mut self, size: usize, outer: Outer) -> bool {
        let (start, end) = (self.used, self.used + size);
        if end > MAX_BATCH || self.contents.len() == self.max_datagrams {
            return false;
        }
        let full = self.runs.len() == MAX_RUNS;
        match self.runs.last_mut() {
            Some(run) if run.takes(size, outer) => run.extend(size),
            _ if full => return false,
            _ => self.runs.push(Run { start, end, segment: size, outer, closed: false }),
        }
        self.used = end;
        true
    }

    /// Seals every datagram, so that the batch can be sent.
    pub(crate) fn seal(&mut self, key: &SealingKey, mut counters: Counters) {
        for run in &self.runs {
            let datagrams = self.buffer[run.start..run.end].chunks_mut(run.segment);
            key.seal_each(&mut counters, datagrams);
        }
    }

    /// The sealed batch from byte `sent` on, to be sent along `path`: one send per run.
    pub(crate) fn transmits(&self, path: Path, sent: usize) -> impl Iterator<Item = Transmit<'_>> {
        let left = self.runs.iter().filter(move |run| run.end > sent);
        left.map(move |run| Transmit {
            destination: path.to,
            source: path.source(),
            tos: path.dscp << 2 | run.outer.ecn.bits(),
            hops: run.outer.hops,
            contents: &self.buffer[run.start.max(sent)..run.end],
            segment_size: u16::try_from(run.segment).ok().and_then(NonZeroU16::new),
            singly: path.singly,
        })
    }

    /// Passes each packet to `take` as it was written, before sealing. A fragmented packet is passed as a
    /// whole.
    pub(crate) fn for_each_packet(&self, mut take: impl FnMut(&[u8])) {
        let starts = self.runs.iter().flat_map(|run| (run.start..run.end).step_by(run.segment));
        let mut whole = Vec::new();
        for (start, content) in starts.map(|start| start + DATA_HEADER_LEN).zip(&self.contents) {
            match *content {
                Content::Packet(len) => {
                    let start = start + self.framing.header_len();
                    take(&self.buffer[start..start + len]);
                }
                Content::Fragment { len, .. } => {
                    let Ok(Frame::Fragment(fragment)) =
                        frame::parse(&self.buffer[start..start + len])
                    else {
                        continue;
                    };
                    whole.extend_from_slice(fragment.bytes());
                    if fragment.is_last() {
                        take(&whole);
                        whole.clear();
                    }
                }
            }
        }
    }

    pub(crate) fn tally(&self) -> Tally {
        let begins =
            |content: &&Content| !matches!(content, Content::Fragment { first: false, .. });
        Tally {
            datagrams: self.contents.len() as u64,
            packets: self.contents.iter().filter(begins).count() as u64,
            bytes: self.used as u64,
        }
    }

    /// Whether the batch contains a fragmented packet.
    pub(crate) fn has_fragments(&self) -> bool {
        self.contents.iter().any(|content| matches!(content, Content::Fragment { .. }))
    }

    /// The number of datagrams.
    pub(crate) fn len(&self) -> usize {
        self.contents.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.used
    }

    /// The end of the run that contains the byte `sent`.
    pub(crate) fn run_end(&self, sent: usize) -> usize {
        self.runs.iter().map(|run| run.end).find(|&end| end > sent).unwrap_or(self.used)
    }

    /// The number of datagrams that are left after the first `sent` bytes.
    pub(crate) fn remaining(&self, sent: usize) -> usize {
        self.runs.iter().map(|run| run.remaining(sent)).sum()
    }

    pub(crate) fn clear(&mut self) {
        self.used = 0;
        self.runs.clear();
        self.contents.clear();
    }
}

/// The length of all fragments of a packet after sealing.
fn sealed_len(plan: Plan) -> usize {
    plan.count() * (plan.plaintext_len() + OVERHEAD)
}

impl Run {
    fn takes(&self, size: usize, outer: Outer) -> bool {
        !self.closed && size <= self.segment && outer == self.outer
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
    use crate::ecn::Ecn;

    fn batch() -> Batch {
        Batch::new(64, Framing::Bare { mtu: 1420 })
    }

    fn fill(batch: &mut Batch, lens: &[usize]) {
        for len in lens {
            assert!(batch.room(*len, Outer::default()).is_some());
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
        assert_eq!(
            [0, 144, 384, 480, 624].map(|sent| batch.run_end(sent)),
            [384, 384, 480, 624, 624]
        );
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
            assert!(batch.room(100, ecn.into()).is_some());
        }
        assert_eq!(runs(&batch), [vec![144, 144], vec![144], vec![144]]);
        let path = Path {
            to: ([192, 0, 2, 1], 1).into(),
            from: None,
            pinned: false,
            max_datagram: 1500,
            dscp: 10,
            singly: false,
        };
        let tos: Vec<u8> = batch.transmits(path, 0).map(|transmit| transmit.tos).collect();
        assert_eq!(tos, [42, 43, 42]);
    }

    #[test]
    fn sending_goes_on_in_the_middle_of_a_run() {
        let mut batch = batch();
        fill(&mut batch, &[100, 100, 200, 200]);
        let path = Path {
            to: ([192, 0, 2, 1], 1).into(),
            from: None,
            pinned: false,
            max_datagram: 1500,
            dscp: 0,
            singly: false,
        };
        let left = |sent| batch.transmits(path, sent).map(|t| t.contents.len()).collect::<Vec<_>>();
        assert_eq!(left(0), [288, 480]);
        assert_eq!(left(144), [144, 480]);
        assert_eq!(left(288), [480]);
        assert!(left(768).is_empty());
    }

    #[test]
    fn a_batch_never_outgrows_one_send() {
        let mut batch = batch();
        while batch.room(1420, Outer::default()).is_some() {}
        assert_eq!(batch.len(), 44);
        assert!(batch.bytes() <= MAX_BATCH);
        batch.clear();
        while batch.room(1, Outer::default()).is_some() {}
        assert_eq!(batch.len(), 64);
        batch.clear();
        let mut lens = (1..).map(|n| n * 16);
        while batch.room(lens.next().unwrap(), Outer::default()).is_some() {}
        assert_eq!(runs(&batch).len(), MAX_RUNS);
    }

    fn packets(batch: &Batch) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        batch.for_each_packet(|packet| packets.push(packet.to_vec()));
        packets
    }

    #[test]
    fn an_ethernet_frame_stands_behind_its_envelope() {
        let mut batch = Batch::new(64, Framing::Ethernet);
        batch.room(60, Outer::default()).unwrap().fill(9);
        // Two bytes of envelope and two of padding make four blocks.
        assert_eq!(runs(&batch), [vec![64 + OVERHEAD]]);
        assert_eq!(batch.buffer[16..18], [2, 2]);
        assert_eq!(packets(&batch), [vec![9; 60]]);
    }

    #[test]
    fn a_packet_larger_than_a_datagram_goes_out_in_fragments_and_comes_back_whole() {
        let mut batch = Batch::new(64, Framing::Bare { mtu: 9000 });
        assert_eq!(batch.fit(9000), Fit::Whole);
        batch.limit(Some(1472));
        let packet: Vec<u8> = (0..9000).map(|n| (n % 251) as u8).collect();
        let Fit::Fragments(plan) = batch.fit(packet.len()) else { panic!("not in fragments") };
        batch.room(100, Outer::default()).unwrap().fill(7);
        assert!(batch.cut(&packet, plan, Outer::default()));
        assert!(batch.runs.iter().all(|run| run.segment <= 1472));
        assert_eq!(batch.len(), 1 + plan.count());
        assert_eq!(packets(&batch), [vec![7; 100], packet.clone()]);
        batch.clear();
        // A batch contains all fragments or none, because their counters are reserved together.
        while batch.cut(&packet, plan, Outer::default()) {}
        assert!(packets(&batch).iter().all(|whole| *whole == packet));
        assert_eq!(batch.len() % plan.count(), 0);
        batch.limit(Some(1100));
        assert_eq!(batch.fit(9000), Fit::Never);
        // The fragments are so large that they do not all fit into one batch.
        batch.limit(Some(8972));
        assert_eq!(batch.fit(65_535), Fit::Never);
    }

    #[test]
    fn packets_come_back_as_they_were_written_and_padding_is_zero() {
        let mut batch = batch();
        for _ in 0..2 {
            batch.room(20, Outer::default()).unwrap().fill(1);
            batch.room(18, Outer::default()).unwrap().fill(2);
            batch.room(40, Outer::default()).unwrap().fill(3);
            let packets = packets(&batch);
            assert_eq!(packets, [vec![1; 20], vec![2; 18], vec![3; 40]]);
            assert_eq!(batch.buffer[64 + 16 + 18..64 + 64], [0; 30]);
            batch.buffer.fill(0xff);
            batch.clear();
        }
    }
}
