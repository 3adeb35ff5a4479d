//! The device's end of the inbound line: packets of a flow are merged, and each super-packet is
//! written in one call.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;

use vpnd_protocol::drop_reason::DropReason;
use vpnd_tun::{Coalescer, Limits, VnetHeader, unmerge};

use crate::shared::{Shared, is_gone};

pub(crate) struct Delivery {
    shared: Arc<Shared>,
    coalescer: Coalescer,
}

impl Delivery {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let offload = shared.device.writer.offload();
        let prefix = shared.mode.prefix();
        let limits = Limits { tcp: offload.write_tcp, udp: offload.write_udp, prefix };
        Self { shared, coalescer: Coalescer::new(limits) }
    }

    /// Takes the packet that lies in `buffer` there.
    pub(crate) fn push(&mut self, buffer: &[u8], packet: Range<usize>) {
        self.coalescer.push(buffer, packet);
    }

    /// Writes what was pushed, and behind it a packet that lies elsewhere.
    ///
    /// # Errors
    /// When the device is gone.
    pub(crate) fn write(&mut self, buffer: &mut [u8], packet: &[u8]) -> io::Result<()> {
        self.flush(buffer)?;
        let mut outcome = Outcome::default();
        let header = VnetHeader::PLAIN.encode();
        let written =
            self.shared.device.writer.write(&[IoSlice::new(&header), IoSlice::new(packet)]);
        outcome.note(&self.shared, written, 1);
        outcome.gone.map_or(Ok(()), Err)
    }

    /// Writes what was pushed.
    ///
    /// # Errors
    /// When the device is gone.
    pub(crate) fn flush(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let (shared, mut outcome) = (&self.shared, Outcome::default());
        self.coalescer.flush(buffer, |slices, packets| match shared.device.writer.write(slices) {
            Err(error) if packets > 1 && error.raw_os_error() == Some(libc::EINVAL) => {
                outcome.refused = header(slices);
                write_singly(shared, slices, &mut outcome);
            }
            result => outcome.note(shared, result, packets),
        });
        if let Some(header) = outcome.refused {
            // The kernel took such super-packets when it was asked and takes them no more.
            self.coalescer.limits_mut().forbid(header);
            tracing::warn!(?header, "the device refuses super-packets; merging stops");
        }
        outcome.gone.map_or(Ok(()), Err)
    }
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
    let prefix = shared.mode.prefix();
    let undone = unmerge(slices, prefix, |single| {
        outcome.note(shared, shared.device.writer.write(single), 1)
    });
    debug_assert!(undone.is_ok(), "the coalescer's own write");
}

fn header(slices: &[IoSlice<'_>]) -> Option<VnetHeader> {
    VnetHeader::decode(slices.first()?).map(|(header, _)| header)
}
