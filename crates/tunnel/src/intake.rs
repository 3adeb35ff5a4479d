//! Receives batches, and opens the datagrams in place. This changes no state that affects the next datagram,
//! so the datagrams may be opened in any order.

use std::io;
use std::mem;
use std::ops::Range;
use std::sync::Arc;
use std::vec::Drain;

use arc_swap::Guard;
use tokio::sync::mpsc;
use vpnd_protocol::drop_reason::DropReason;
use vpnd_protocol::message::{Index, Message};
use vpnd_protocol::session::Opened;
use vpnd_protocol::table::{Admitted, Arrival, Table};
use vpnd_protocol::time::BootTime;

use crate::shared::Shared;
use crate::udp::{MAX_RECEIVED, RECEIVE_BUFFER, Received};
use crate::view::View;

/// The maximum number of bytes that one receive returns.
pub(crate) const DATAGRAMS: usize = MAX_RECEIVED * RECEIVE_BUFFER;
/// More datagrams than a batch usually contains.
const SLOTS: usize = 1024;
/// After a batch that is longer than this, which is a large GRO batch, one batch is received at a time. The
/// next batch then reuses memory that is still in the processor's cache.
const LARGE: usize = 16 * 1024;

/// Receives and opens datagrams in its own buffers.
pub(crate) struct Intake {
    shared: Arc<Shared>,
    /// The queue of handshake messages; a message is dropped if the queue is full.
    handshakes: mpsc::Sender<Admitted>,
    /// [`RECEIVE_BUFFER`] bytes for each of `received`, and the same number for reassembled packets.
    pub(crate) buffer: Box<[u8]>,
    pub(crate) received: [Received; MAX_RECEIVED],
    /// The maximum number of batches that the next receive returns.
    pub(crate) most: usize,
    slots: Vec<Slot>,
    /// The result of opening each slot.
    opened: Vec<Result<Opened, DropReason>>,
}

/// A datagram of transport data: its place in the buffer, and the fields of its header.
pub(crate) struct Slot {
    pub(crate) datagram: Range<usize>,
    pub(crate) receiver: Index,
    pub(crate) counter: u64,
}

impl Slot {
    pub(crate) fn same_session(&self, other: &Self) -> bool {
        self.receiver == other.receiver
    }
}

/// A batch of one sender, with all its transport data opened.
pub(crate) struct OpenedBatch<'a> {
    pub(crate) received: Received,
    pub(crate) slots: &'a [Slot],
    /// The result of opening each slot.
    pub(crate) opened: Drain<'a, Result<Opened, DropReason>>,
    /// The buffer that contains the datagrams of all slots.
    pub(crate) buffer: &'a mut [u8],
}

impl Intake {
    pub(crate) fn new(shared: Arc<Shared>, handshakes: mpsc::Sender<Admitted>) -> Self {
        Self {
            shared,
            handshakes,
            buffer: vec![0; DATAGRAMS + RECEIVE_BUFFER].into_boxed_slice(),
            received: [Received::NOTHING; MAX_RECEIVED],
            most: MAX_RECEIVED,
            slots: Vec::with_capacity(SLOTS),
            opened: Vec::with_capacity(SLOTS),
        }
    }

    /// Receives the batches that have arrived and returns their number.
    pub(crate) fn receive(&mut self) -> io::Result<usize> {
        let received = &mut self.received[..self.most];
        let count = self.shared.socket.receive(&mut self.buffer[..DATAGRAMS], received)?;
        let large = received[..count].iter().any(|batch| batch.len > LARGE);
        self.most = if large { 1 } else { MAX_RECEIVED };
        Ok(count)
    }

    /// Opens the transport data of a received batch, and passes handshake messages to the control plane.
    /// Returns the view whose keys were used.
    pub(crate) fn open(
        &mut self,
        mut view: Guard<Arc<View>>,
        batch: usize,
        now: BootTime,
    ) -> Guard<Arc<View>> {
        self.sort(&view.table, batch);
        for run in self.slots.chunk_by(Slot::same_session) {
            if view.table.opening(run[0].receiver).is_none() {
                // The key may have been published after the view was loaded.
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

    /// The batch that was opened last.
    pub(crate) fn opened(&mut self, batch: usize) -> OpenedBatch<'_> {
        OpenedBatch {
            received: self.received[batch],
            slots: &self.slots,
            opened: self.opened.drain(..),
            buffer: &mut self.buffer,
        }
    }

    /// Sorts the datagrams: transport data gets one slot per datagram, handshake messages and invalid datagrams
    /// get none.
    fn sort(&mut self, table: &Table, batch: usize) {
        let (start, received) = (batch * RECEIVE_BUFFER, self.received[batch]);
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
        self.handshakes.try_send(admitted).map_err(|_| DropReason::HandshakeQueueFull)
    }

    fn count(&self, result: Result<(), DropReason>) {
        if let Err(reason) = result {
            self.shared.counters.count(reason, 1);
        }
    }
}

/// The datagrams of the slots, which must be in ascending order without overlap.
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
