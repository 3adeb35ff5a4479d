//! Accepts opened datagrams in the order of arrival. All state that affects the next datagram changes here:
//! the replay window, the peer's address, incomplete packets, and the state of the filter in front of the
//! device.

use std::io;
use std::sync::Arc;

use tokio::sync::mpsc;
use vpnd_protocol::drop_reason::DropReason;
use vpnd_protocol::inner::Inner;
use vpnd_protocol::message::DATA_HEADER_LEN;
use vpnd_protocol::receive_order::{Framed, ReceiveOrder};
use vpnd_protocol::table::Arrival;
use vpnd_protocol::time::BootTime;

use crate::delivery::Delivery;
use crate::ecn::Ecn;
use crate::intake::{OpenedBatch, Slot};
use crate::shared::Shared;
use crate::unpack::{Found, Place, Unpack};
use crate::view::View;

/// The state needed to accept datagrams.
pub(crate) struct Gate {
    shared: Arc<Shared>,
    frames: Frames,
    order: ReceiveOrder,
    unpack: Unpack,
}

/// Sends control frames to the control plane; a frame is dropped if the queue is full.
struct Frames(mpsc::Sender<Framed>);

impl Frames {
    /// Checks for room first, so that frames that do not fit are not copied.
    fn hand_over<'a>(&self, frame: impl FnOnce() -> Framed) -> Result<Found<'a>, DropReason> {
        let room = self.0.try_reserve().map_err(|_full| DropReason::FrameQueueFull)?;
        room.send(frame());
        Ok(Found::Nothing)
    }
}

impl Gate {
    pub(crate) fn new(shared: Arc<Shared>, frames: mpsc::Sender<Framed>) -> Self {
        let unpack = Unpack::new(Arc::clone(&shared));
        Self { shared, frames: Frames(frames), order: ReceiveOrder::default(), unpack }
    }

    /// Accepts a batch that was opened with the same `view`, and delivers its packets.
    ///
    /// # Errors
    /// If the device is gone.
    pub(crate) fn accept(
        &mut self,
        view: &View,
        batch: OpenedBatch<'_>,
        delivery: &mut Delivery,
        now: BootTime,
    ) -> io::Result<()> {
        let View { table, policy } = view;
        let OpenedBatch { received, slots, mut opened, buffer } = batch;
        let (at, outer) =
            (Arrival { from: received.from, local: received.local }, Ecn::of_tos(received.tos));
        self.unpack.begin(policy, now);
        let mut accepting = self.order.begin(table, &self.shared.activity, at);
        for run in slots.chunk_by(Slot::same_session) {
            let key = table.opening(run[0].receiver);
            let mut window = key.map(|key| key.window());
            for (slot, opened) in run.iter().zip(&mut opened) {
                let datagram = &mut buffer[slot.datagram.clone()];
                let found = opened.and_then(|opened| {
                    // The table may have been replaced since the datagram was opened, and the new table may
                    // lack the key.
                    let (key, window) = key.zip(window.as_mut()).ok_or(DropReason::Expired)?;
                    let inner = accepting.accept(key, window, &opened, datagram)?;
                    if let Inner::Control { len, .. } = inner {
                        return self.frames.hand_over(|| accepting.frame(key, datagram, len));
                    }
                    let place = Place { policy, key, counter: slot.counter, outer, now };
                    self.unpack.packet(inner, place, &mut datagram[DATA_HEADER_LEN..])
                });
                match found {
                    Ok(found) => pass_on(found, slot.datagram.start, buffer, delivery)?,
                    Err(reason) => self.shared.counters.count(reason, 1),
                }
            }
        }
        drop(opened);
        // Replayed datagrams do not count: anybody on the path can send them, with any mark.
        self.unpack.note_mark(outer, accepting.datagrams(), now);
        self.shared.wake(accepting.end(now));
        self.shared.counters.count(DropReason::Unassembled, self.unpack.purge(now));
        Ok(())
    }
}

/// Delivers the packet that was found in the datagram that begins at `start`.
#[inline]
fn pass_on(
    found: Found<'_>,
    start: usize,
    buffer: &mut [u8],
    delivery: &mut Delivery,
) -> io::Result<()> {
    match found {
        Found::Nothing => Ok(()),
        Found::Packet(packet) => {
            let at = start + DATA_HEADER_LEN;
            delivery.push(buffer, at + packet.start..at + packet.end);
            Ok(())
        }
        Found::Whole(packet) => delivery.push_from_elsewhere(buffer, packet),
    }
}
