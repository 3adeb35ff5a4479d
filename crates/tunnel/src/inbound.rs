//! From the socket to the device:
//!
//! 1. *receive* batches: each is datagrams of one sender, back to back;
//! 2. *open* each where it lies; handshake messages go to the control plane;
//! 3. *accept*, in turn: replay window, the peer's address, the inner source;
//! 4. *coalesce* the packets of a flow, across batches too;
//! 5. *write* each super-packet to the device in one call.
//!
//! One thread does it all, with buffers of its own; nothing here allocates for a packet, and the only
//! lock is the window's, taken once per batch and never contended. While little comes out of the device,
//! the same thread takes that along (`watch`).

use std::io;
use std::mem;
use std::ops::Range;
use std::sync::Arc;

use arc_swap::Guard;
use tokio::sync::mpsc;
use vpnd_protocol::drop_reason::DropReason;
use vpnd_protocol::inner::Inner;
use vpnd_protocol::message::{DATA_HEADER_LEN, Index, Message};
use vpnd_protocol::session::Opened;
use vpnd_protocol::table::{Admitted, Arrival, Table};
use vpnd_protocol::time::BootTime;
use vpnd_protocol::turn::{Framed, Turn};

use crate::clock;
use crate::delivery::Delivery;
use crate::ecn::Ecn;
use crate::shared::Shared;
use crate::udp::{MAX_RECEIVED, RECEIVE_BUFFER, Received};
use crate::unpack::{Found, Place, Unpack};
use crate::view::View;
use crate::watch::Watch;

/// Bytes of all that one receive may bring.
const DATAGRAMS: usize = MAX_RECEIVED * RECEIVE_BUFFER;
/// More datagrams than one batch usually holds.
const SLOTS: usize = 1024;
/// After a batch longer than this they come one at a time: it is a train, and the next one finds this
/// one's place still in the processor's cache.
const TRAIN: usize = 16 * 1024;

pub(crate) struct Inbound {
    shared: Arc<Shared>,
    /// The way back, for what the kernel answers.
    watch: Arc<Watch>,
    control: Queues,
    /// A piece of [`RECEIVE_BUFFER`] bytes for each of `received`, and one for packets that came in pieces.
    buffer: Box<[u8]>,
    received: [Received; MAX_RECEIVED],
    /// How many the next receive may bring.
    most: usize,
    slots: Vec<Slot>,
    /// What came of each slot.
    opened: Vec<Result<Opened, DropReason>>,
    turn: Turn,
    unpack: Unpack,
    delivery: Delivery,
}

/// What goes to the control plane; a full queue drops.
pub(crate) struct Queues {
    pub(crate) handshakes: mpsc::Sender<Admitted>,
    pub(crate) frames: mpsc::Sender<Framed>,
}

impl Queues {
    /// Room first: who floods makes us copy nothing.
    fn hand_over<'a>(&self, frame: impl FnOnce() -> Framed) -> Result<Found<'a>, DropReason> {
        let room = self.frames.try_reserve().map_err(|_full| DropReason::FrameQueueFull)?;
        room.send(frame());
        Ok(Found::Nothing)
    }
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
    pub(crate) fn new(shared: Arc<Shared>, watch: Arc<Watch>, control: Queues) -> Self {
        Self {
            unpack: Unpack::new(Arc::clone(&shared)),
            delivery: Delivery::new(Arc::clone(&shared), DATAGRAMS),
            shared,
            watch,
            control,
            buffer: vec![0; DATAGRAMS + RECEIVE_BUFFER].into_boxed_slice(),
            received: [Received::NOTHING; MAX_RECEIVED],
            most: MAX_RECEIVED,
            slots: Vec::with_capacity(SLOTS),
            opened: Vec::with_capacity(SLOTS),
            turn: Turn::default(),
        }
    }

    /// Moves packets until the table says stop.
    ///
    /// # Errors
    /// When the device is gone.
    pub(crate) fn run(mut self) -> io::Result<()> {
        while !self.shared.view.load().table.stop {
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
        let count = self.shared.socket.receive(&mut self.buffer[..DATAGRAMS], received)?;
        let trains = received[..count].iter().any(|batch| batch.len > TRAIN);
        self.most = if trains { 1 } else { MAX_RECEIVED };
        Ok(count)
    }

    /// The first `count` batches received, from the buffer to the device.
    pub(crate) fn deliver(&mut self, count: usize) -> io::Result<()> {
        let (shared, now) = (Arc::clone(&self.shared), clock::boot());
        let mut view = shared.view.load();
        for batch in 0..count {
            let received = self.received[batch];
            view = self.open(view, batch * RECEIVE_BUFFER, &received, now);
            self.accept(&view, &received, now)?;
        }
        drop(view);
        self.delivery.flush(&mut self.buffer)
    }

    /// Opens what is for us; returns the view that it was opened by.
    fn open(
        &mut self,
        mut view: Guard<Arc<View>>,
        start: usize,
        received: &Received,
        now: BootTime,
    ) -> Guard<Arc<View>> {
        self.sort(&view.table, start, received);
        for run in self.slots.chunk_by(Slot::same_session) {
            if view.table.opening(run[0].receiver).is_none() {
                // The key may have been published since this batch began.
                view = self.shared.view.load();
            }
            let opened = &mut self.opened;
            match view.table.opening(run[0].receiver) {
                Some(key) => key.open_each(places(&mut self.buffer, run), now, |o| opened.push(o)),
                None => opened.extend(run.iter().map(|_| Err(DropReason::UnknownIndex))),
            }
        }
        view
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
            match at.parse(bytes) {
                Ok(Message::Data { receiver, counter }) => {
                    self.slots.push(Slot { datagram, receiver, counter });
                }
                Ok(_) => self.count(table.admit(at, bytes).and_then(|one| self.hand_over(one))),
                Err(reason) => self.count(Err(reason)),
            }
        }
    }

    fn hand_over(&self, admitted: Admitted) -> Result<(), DropReason> {
        self.control.handshakes.try_send(admitted).map_err(|_| DropReason::HandshakeQueueFull)
    }

    /// The turn: what changes state, in the order of arrival.
    ///
    /// # Errors
    /// When the device is gone.
    fn accept(&mut self, view: &View, received: &Received, now: BootTime) -> io::Result<()> {
        let View { table, policy } = view;
        let (at, outer) =
            (Arrival { from: received.from, local: received.local }, Ecn::of_tos(received.tos));
        self.unpack.begin(policy, now);
        let mut accepting = self.turn.begin(table, &self.shared.activity, at);
        let mut opened = self.opened.drain(..);
        for run in self.slots.chunk_by(Slot::same_session) {
            let key = table.opening(run[0].receiver);
            let mut window = key.map(|key| key.window());
            for (slot, opened) in run.iter().zip(&mut opened) {
                let datagram = &mut self.buffer[slot.datagram.clone()];
                let found = opened.and_then(|opened| {
                    // It may have retired between the table it was opened by and the one loaded since.
                    let (key, window) = key.zip(window.as_mut()).ok_or(DropReason::Expired)?;
                    let inner = accepting.accept(key, window, &opened, datagram)?;
                    if let Inner::Control { len, .. } = inner {
                        return self.control.hand_over(|| accepting.frame(key, datagram, len));
                    }
                    let place = Place { policy, key, counter: slot.counter, outer, now };
                    self.unpack.packet(inner, place, &mut datagram[DATA_HEADER_LEN..])
                });
                match found {
                    Ok(Found::Nothing) => {}
                    Ok(Found::Packet(Range { start, end })) => {
                        let at = slot.datagram.start + DATA_HEADER_LEN;
                        self.delivery.push(&self.buffer, at + start..at + end);
                    }
                    Ok(Found::Whole(packet)) => {
                        self.delivery.push_from_elsewhere(&mut self.buffer, packet)?;
                    }
                    Err(reason) => self.shared.counters.count(reason, 1),
                }
            }
        }
        drop(opened);
        // Copies of what was accepted before do not count: anybody on the path can send them, with any mark.
        self.unpack.note_mark(outer, accepting.datagrams(), now);
        self.shared.wake(accepting.end(now));
        self.shared.counters.count(DropReason::Unassembled, self.unpack.purge(now));
        Ok(())
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::tests::{ends, inbound, lines, read_packet, send};
    use crate::udp::tests::in_namespace;

    /// Delivers what has been received, with the mark `tos`, and then its copies without any.
    fn deliver_twice(inbound: &mut Inbound, tos: u8) {
        while let Ok(count) = inbound.receive() {
            let (buffer, most) = (inbound.buffer.clone(), inbound.most);
            for mark in [tos, 0] {
                inbound.buffer.copy_from_slice(&buffer);
                inbound.received[..count].iter_mut().for_each(|batch| batch.tos = mark);
                inbound.deliver(count).unwrap();
            }
            inbound.most = most;
        }
    }

    #[test]
    fn copies_of_accepted_datagrams_do_not_count_as_unmarked_ones() {
        in_namespace(|| {
            let (near, far) = ends(1);
            let (mut lines, mut inbound) = (lines(&near), inbound(&far));
            for _ in 0..10 {
                send(&mut lines[0], &read_packet(100), 10);
                deliver_twice(&mut inbound, 3);
            }
            assert_eq!(far.counters.dropped(DropReason::Replayed), 100);
            assert!(far.marks_everything.load(Ordering::Relaxed), "all that counts is marked");
        });
    }
}
