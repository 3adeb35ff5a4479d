//! From the socket to the device:
//!
//! 1. *receive* batches: each is datagrams of one sender, back to back;
//! 2. *open* each where it lies; handshake messages go to the control plane;
//! 3. *accept*, in turn: replay window, the peer's address, the inner source;
//! 4. *coalesce* the packets of a flow, across batches too;
//! 5. *write* each super-packet to the device in one call.
//!
//! One thread does it all, with buffers of its own; nothing here allocates, and the only lock is
//! the window's, taken once per batch and never contended.

use std::io::{self, IoSlice};
use std::mem;
use std::ops::Range;
use std::sync::Arc;

use arc_swap::Guard;
use tokio::sync::mpsc;
use vpnd_protocol::drop_reason::DropReason;
use vpnd_protocol::inner::Inner;
use vpnd_protocol::message::{self, DATA_HEADER_LEN, Index, Message};
use vpnd_protocol::session::Opened;
use vpnd_protocol::table::{Admitted, Arrival, Table};
use vpnd_protocol::time::BootTime;
use vpnd_protocol::turn::Turn;
use vpnd_tun::{Coalescer, Limits, VnetHeader, unmerge};

use crate::clock;
use crate::ecn::{self, Ecn};
use crate::shared::{Shared, is_gone};
use crate::udp::{MAX_RECEIVED, RECEIVE_BUFFER, Received};
use crate::watch::Watch;

/// More datagrams than one batch usually holds.
const SLOTS: usize = 1024;
/// After a batch longer than this they come one at a time: it is a train, and the next one finds this
/// one's place still in the processor's cache.
const TRAIN: usize = 16 * 1024;

pub(crate) struct Inbound {
    shared: Arc<Shared>,
    /// The way back, for what the kernel answers.
    watch: Arc<Watch>,
    handshakes: mpsc::Sender<Admitted>,
    /// A piece of [`RECEIVE_BUFFER`] bytes for each of `received`.
    buffer: Box<[u8]>,
    received: [Received; MAX_RECEIVED],
    /// How many the next receive may bring.
    most: usize,
    slots: Vec<Slot>,
    /// What came of each slot.
    opened: Vec<Result<Opened, DropReason>>,
    turn: Turn,
    coalescer: Coalescer,
}

/// Transport data: where it lies, and what it says of itself.
struct Slot {
    datagram: Range<usize>,
    receiver: Index,
    counter: u64,
}

impl Slot {
    fn same_session(&self, other: &Self) -> bool {
        self.receiver == other.receiver
    }
}

impl Inbound {
    pub(crate) fn new(
        shared: Arc<Shared>,
        watch: Arc<Watch>,
        handshakes: mpsc::Sender<Admitted>,
    ) -> Self {
        let offload = shared.queue.offload();
        let limits = Limits { tcp: offload.write_tcp, udp: offload.write_udp, prefix: 0 };
        Self {
            shared,
            watch,
            handshakes,
            buffer: vec![0; MAX_RECEIVED * RECEIVE_BUFFER].into_boxed_slice(),
            received: [Received::NOTHING; MAX_RECEIVED],
            most: MAX_RECEIVED,
            slots: Vec::with_capacity(SLOTS),
            opened: Vec::with_capacity(SLOTS),
            turn: Turn::default(),
            coalescer: Coalescer::new(limits),
        }
    }

    /// Moves packets until the table says stop.
    ///
    /// # Errors
    /// When the device is gone.
    pub(crate) fn run(mut self) -> io::Result<()> {
        while !self.shared.table.load().stop {
            match self.receive() {
                Ok(count) => {
                    self.deliver(count)?;
                    self.watch.answer()?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.watch.wait_inbound()?;
                }
                // What ICMP has to say of an earlier datagram: nothing is trusted of it.
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Takes the batches that have arrived and returns how many there are.
    pub(crate) fn receive(&mut self) -> io::Result<usize> {
        let received = &mut self.received[..self.most];
        let count = self.shared.socket.receive(&mut self.buffer, received)?;
        let trains = received[..count].iter().any(|batch| batch.len > TRAIN);
        self.most = if trains { 1 } else { MAX_RECEIVED };
        Ok(count)
    }

    /// The first `count` batches received, from the buffer to the device.
    pub(crate) fn deliver(&mut self, count: usize) -> io::Result<()> {
        let (shared, now) = (Arc::clone(&self.shared), clock::boot());
        let mut table = shared.table.load();
        for batch in 0..count {
            let received = self.received[batch];
            table = self.open(table, batch * RECEIVE_BUFFER, &received, now);
            self.accept(&table, &received, now);
        }
        drop(table);
        self.write()
    }

    /// Opens what is for us; returns the table that it was opened by.
    fn open(
        &mut self,
        mut table: Guard<Arc<Table>>,
        start: usize,
        received: &Received,
        now: BootTime,
    ) -> Guard<Arc<Table>> {
        self.sort(&table, start, received);
        for run in self.slots.chunk_by(Slot::same_session) {
            if table.opening(run[0].receiver).is_none() {
                // The key may have been published since this batch began.
                table = self.shared.table.load();
            }
            let opened = &mut self.opened;
            match table.opening(run[0].receiver) {
                Some(key) => key.open_each(places(&mut self.buffer, run), now, |o| opened.push(o)),
                None => opened.extend(run.iter().map(|_| Err(DropReason::UnknownIndex))),
            }
        }
        table
    }

    /// Tells transport data, which gets a slot each, from handshake messages and garbage.
    fn sort(&mut self, table: &Table, start: usize, received: &Received) {
        self.slots.clear();
        if received.len == 0 {
            self.count(Err(DropReason::Malformed));
        }
        let at = Arrival { from: received.from, local: received.local };
        let end = start + received.len;
        for start in (start..end).step_by(received.stride) {
            let datagram = start..end.min(start + received.stride);
            let bytes = &self.buffer[datagram.clone()];
            match message::parse(bytes) {
                Ok(Message::Data { receiver, counter }) => {
                    self.slots.push(Slot { datagram, receiver, counter });
                }
                Ok(_) => self.count(table.admit(at, bytes).and_then(|one| self.hand_over(one))),
                Err(_) => self.count(Err(DropReason::Malformed)),
            }
        }
    }

    fn hand_over(&self, admitted: Admitted) -> Result<(), DropReason> {
        self.handshakes.try_send(admitted).map_err(|_| DropReason::HandshakeQueueFull)
    }

    /// The turn: what changes state, in the order of arrival.
    fn accept(&mut self, table: &Table, received: &Received, now: BootTime) {
        let (at, outer) =
            (Arrival { from: received.from, local: received.local }, Ecn::of_tos(received.tos));
        let mut accepting = self.turn.begin(table, &self.shared.activity, at);
        let mut opened = self.opened.drain(..);
        for run in self.slots.chunk_by(Slot::same_session) {
            let key = table.opening(run[0].receiver);
            let mut window = key.map(|key| key.window());
            for (slot, opened) in run.iter().zip(&mut opened) {
                let datagram = &mut self.buffer[slot.datagram.clone()];
                let packet = opened.and_then(|opened| {
                    // It may have retired between the table it was opened by and the one loaded since.
                    let (key, window) = key.zip(window.as_mut()).ok_or(DropReason::Expired)?;
                    let inner = accepting.accept(key, window, &opened, datagram)?;
                    admit_packet(&self.shared, inner, outer, datagram)
                });
                match packet {
                    Ok(None) => {}
                    Ok(Some(len)) => {
                        let start = slot.datagram.start + DATA_HEADER_LEN;
                        self.coalescer.push(&self.buffer, start..start + len);
                    }
                    Err(reason) => self.shared.counters.count(reason, 1),
                }
            }
        }
        drop(opened);
        self.shared.wake(accepting.end(now));
    }

    fn write(&mut self) -> io::Result<()> {
        let (shared, mut outcome) = (&self.shared, Outcome::default());
        self.coalescer.flush(&mut self.buffer, |slices, packets| {
            match shared.queue.write(slices) {
                Err(error) if packets > 1 && error.raw_os_error() == Some(libc::EINVAL) => {
                    outcome.refused = header(slices);
                    write_singly(shared, slices, &mut outcome);
                }
                result => outcome.note(shared, result, packets),
            }
        });
        if let Some(header) = outcome.refused {
            // The kernel took such super-packets when it was asked and takes them no more.
            self.coalescer.limits_mut().forbid(header);
            tracing::warn!(?header, "the device refuses super-packets; merging stops");
        }
        outcome.gone.map_or(Ok(()), Err)
    }

    fn count(&self, result: Result<(), DropReason>) {
        if let Err(reason) = result {
            self.shared.counters.count(reason, 1);
        }
    }
}

/// The slots' datagrams, which lie in their order and apart.
fn places<'a>(
    buffer: &'a mut [u8],
    slots: &'a [Slot],
) -> impl Iterator<Item = (u64, &'a mut [u8])> {
    let (mut rest, mut at) = (buffer, 0);
    slots.iter().map(move |slot| {
        let (_, behind) = mem::take(&mut rest).split_at_mut(slot.datagram.start - at);
        let (datagram, behind) = behind.split_at_mut(slot.datagram.len());
        (rest, at) = (behind, slot.datagram.end);
        (slot.counter, datagram)
    })
}

/// The length of the packet to deliver, if there is one and it may come from the peer.
fn admit_packet(
    shared: &Shared,
    inner: Inner,
    outer: Ecn,
    datagram: &mut [u8],
) -> Result<Option<usize>, DropReason> {
    let Inner::Packet { len, source } = inner else { return Ok(None) };
    if !shared.filter.allows(source) {
        return Err(DropReason::SourceNotAllowed);
    }
    let packet = &mut datagram[DATA_HEADER_LEN..DATA_HEADER_LEN + len];
    ecn::decapsulate(outer, packet)?;
    shared.clamp(packet);
    Ok(Some(len))
}

/// What became of the writes of one batch.
#[derive(Default)]
struct Outcome {
    gone: Option<io::Error>,
    refused: Option<VnetHeader>,
}

impl Outcome {
    fn note(&mut self, shared: &Shared, result: io::Result<usize>, packets: usize) {
        if let Err(error) = result {
            shared.counters.count(DropReason::DeviceFailed, packets);
            self.gone = self.gone.take().or_else(|| is_gone(&error).then_some(error));
        }
    }
}

fn write_singly(shared: &Shared, slices: &[IoSlice<'_>], outcome: &mut Outcome) {
    let undone = unmerge(slices, 0, |single| outcome.note(shared, shared.queue.write(single), 1));
    debug_assert!(undone.is_ok(), "the coalescer's own write");
}

fn header(slices: &[IoSlice<'_>]) -> Option<VnetHeader> {
    VnetHeader::decode(slices.first()?).map(|(header, _)| header)
}
