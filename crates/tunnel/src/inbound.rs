//! The inbound path, from the socket to the device:
//!
//! 1. *receive* batches: each consists of datagrams of one sender, back to back (`intake`);
//! 2. *open* each datagram in place, and pass handshake messages to the control plane (`intake`);
//! 3. *accept* datagrams in the order of arrival: replay window, the peer's address, inner source (`gate`);
//! 4. *coalesce* the packets of a flow, also across batches (`delivery`);
//! 5. *write* each super-packet to the device in one call (`delivery`).
//!
//! One thread does all of it, with its own buffers. It allocates no memory per packet. Its only lock is that of
//! the replay window, which it takes once per batch, and which no other thread holds. While the device delivers
//! few packets, the same thread also forwards these (`watch`).

use std::io;
use std::sync::Arc;

use tokio::sync::mpsc;
use vpnd_protocol::receive_order::Framed;
use vpnd_protocol::table::Admitted;

use crate::clock;
use crate::delivery::Delivery;
use crate::gate::Gate;
use crate::intake::{DATAGRAMS, Intake};
use crate::shared::Shared;
use crate::watch::Watch;

pub(crate) struct Inbound {
    shared: Arc<Shared>,
    /// The outbound path, for packets that the kernel sends in reply.
    watch: Arc<Watch>,
    pub(crate) intake: Intake,
    gate: Gate,
    delivery: Delivery,
}

/// The queues to the control plane; a message is dropped if its queue is full.
pub(crate) struct Queues {
    pub(crate) handshakes: mpsc::Sender<Admitted>,
    pub(crate) frames: mpsc::Sender<Framed>,
}

impl Inbound {
    pub(crate) fn new(shared: Arc<Shared>, watch: Arc<Watch>, control: Queues) -> Self {
        Self {
            intake: Intake::new(Arc::clone(&shared), control.handshakes),
            gate: Gate::new(Arc::clone(&shared), control.frames),
            delivery: Delivery::new(Arc::clone(&shared), DATAGRAMS),
            shared,
            watch,
        }
    }

    /// Moves packets until the table tells the threads to stop.
    ///
    /// # Errors
    /// If the device is gone.
    pub(crate) fn run(mut self) -> io::Result<()> {
        while !self.shared.view.load().table.stop {
            match self.intake.receive() {
                Ok(count) => {
                    self.deliver(count)?;
                    self.watch.answer()?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.watch.wait_inbound()?;
                }
                // The error is an ICMP error about an earlier datagram. It may be forged, so it is ignored.
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Moves the first `count` received batches from the buffer to the device.
    pub(crate) fn deliver(&mut self, count: usize) -> io::Result<()> {
        let (shared, now) = (Arc::clone(&self.shared), clock::boot());
        let tapped = shared.tap.wanted();
        if tapped.outer {
            shared.copy_received(&self.intake.buffer, &self.intake.received[..count]);
        }
        self.delivery.tap(tapped.inner);
        let mut view = shared.view.load();
        for batch in 0..count {
            view = self.intake.open(view, batch, now);
            self.gate.accept(&view, self.intake.opened(batch), &mut self.delivery, now)?;
        }
        drop(view);
        self.delivery.flush(&mut self.intake.buffer)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use vpnd_protocol::drop_reason::DropReason;

    use super::*;
    use crate::tests::{ends, inbound, lines, read_packet, send};
    use crate::udp::tests::in_namespace;

    /// Delivers the received datagrams with the mark `tos`, and then the same datagrams again without a mark.
    fn deliver_twice(inbound: &mut Inbound, tos: u8) {
        while let Ok(count) = inbound.intake.receive() {
            let (buffer, most) = (inbound.intake.buffer.clone(), inbound.intake.most);
            for mark in [tos, 0] {
                inbound.intake.buffer.copy_from_slice(&buffer);
                inbound.intake.received[..count].iter_mut().for_each(|batch| batch.tos = mark);
                inbound.deliver(count).unwrap();
            }
            inbound.intake.most = most;
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
