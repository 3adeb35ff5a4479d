//! The last step of the inbound path: merges packets of a flow, and writes each super-packet in one call.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;

use vpnd_protocol::drop_reason::DropReason;
use vpnd_tun::{Coalescer, Limits, VnetHeader, unmerge};

use crate::shared::{Shared, is_gone};
use crate::tap::Direction;

pub(crate) struct Delivery {
    shared: Arc<Shared>,
    coalescer: Coalescer,
    /// From this offset on, the buffer is for reassembled packets …
    aside: usize,
    /// … and this number of bytes is in use by packets that were pushed.
    used: usize,
    /// Whether packets are captured.
    tapped: bool,
}

impl Delivery {
    /// For a buffer that has room for the largest packet from `aside` on.
    pub(crate) fn new(shared: Arc<Shared>, aside: usize) -> Self {
        let offload = shared.device.writer.offload();
        let prefix = shared.mode.prefix();
        let limits = Limits { tcp: offload.write_tcp, udp: offload.write_udp, prefix };
        Self { shared, coalescer: Coalescer::new(limits), aside, used: 0, tapped: false }
    }

    /// Captures the packets that are pushed from now on, or does so no longer.
    pub(crate) fn tap(&mut self, tapped: bool) {
        self.tapped = tapped;
    }

    /// Adds the packet at this place in `buffer`.
    pub(crate) fn push(&mut self, buffer: &[u8], packet: Range<usize>) {
        if self.tapped {
            self.shared.tap.inner(Direction::Received).push(&buffer[packet.clone()]);
        }
        self.coalescer.push(buffer, packet);
    }

    /// Adds a packet that is stored elsewhere. The packet is copied into the buffer, so that it can be merged
    /// with others in the same way.
    ///
    /// # Errors
    /// If the device is gone.
    pub(crate) fn push_from_elsewhere(
        &mut self,
        buffer: &mut [u8],
        packet: &[u8],
    ) -> io::Result<()> {
        if self.aside + self.used + packet.len() > buffer.len() {
            self.flush(buffer)?;
        }
        let start = self.aside + self.used;
        let place = start..start + packet.len();
        buffer[place.clone()].copy_from_slice(packet);
        self.used += packet.len();
        self.push(buffer, place);
        Ok(())
    }

    /// Writes the packets that were pushed.
    ///
    /// # Errors
    /// If the device is gone.
    pub(crate) fn flush(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let (shared, mut outcome) = (&self.shared, Outcome::default());
        self.used = 0;
        self.coalescer.flush(buffer, |slices, packets| match shared.device.writer.write(slices) {
            Err(error) if packets > 1 && error.raw_os_error() == Some(libc::EINVAL) => {
                outcome.refused = header(slices);
                write_singly(shared, slices, &mut outcome);
            }
            result => outcome.note(shared, result, packets),
        });
        if let Some(header) = outcome.refused {
            // The kernel accepted such super-packets when it was probed, but refuses them now.
            self.coalescer.limits_mut().forbid(header);
            tracing::warn!(
                ?header,
                "the device refuses super-packets: packets of this kind are no longer merged"
            );
        }
        outcome.gone.map_or(Ok(()), Err)
    }
}

/// The result of writing one batch.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::ip;
    use crate::tests::ends;
    use crate::udp::RECEIVE_BUFFER;
    use crate::udp::tests::in_namespace;

    /// 60 segments of one flow, as reassembly returns them.
    fn packets_of() -> Vec<Vec<u8>> {
        const PAYLOAD: u16 = 1000;
        let mut packet = vec![0; 40 + 60 * usize::from(PAYLOAD)];
        let len = u16::try_from(packet.len()).unwrap();
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        (packet[8], packet[9]) = (64, 6);
        packet[12..20].copy_from_slice(&[192, 0, 2, 1, 192, 0, 2, 2]);
        (packet[32], packet[33]) = (5 << 4, 0x10);
        let pseudo = vpnd_tun::pseudo_header(&packet[12..20], 6, len - 20);
        packet[36..38].copy_from_slice(&pseudo.partial().to_be_bytes());
        let header = VnetHeader {
            flags: 1,
            gso_type: 1,
            hdr_len: 40,
            gso_size: PAYLOAD,
            csum_start: 20,
            csum_offset: 16,
        };
        let mut segments = vpnd_tun::split(header, &packet, 0).unwrap();
        let mut train = Vec::new();
        while let Some(len) = segments.next_len() {
            let mut segment = vec![0; len];
            segments.write_next(&mut segment);
            train.push(segment);
        }
        train
    }

    /// The number of packets that a device received, according to the kernel. A super-packet counts as one.
    fn taken(device: &str) -> u64 {
        let shown = ip(&format!("-s link show dev {device}"));
        let mut lines = shown.lines().skip_while(|line| !line.trim().starts_with("RX:"));
        let counts = lines.nth(1).unwrap();
        counts.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn packets_that_came_in_fragments_are_merged_as_others_are() {
        in_namespace(|| {
            let (_near, far) = ends(1);
            let device = far.device.name.clone();
            let mut delivery = Delivery::new(Arc::clone(&far), 100);
            let mut buffer = vec![0; 100 + RECEIVE_BUFFER];
            for packet in packets_of() {
                delivery.push_from_elsewhere(&mut buffer, &packet).unwrap();
            }
            delivery.flush(&mut buffer).unwrap();
            assert_eq!(taken(&device), 1, "one super-packet");
            // More packets than the buffer has room for: none is lost.
            for packet in packets_of().iter().chain(&packets_of()) {
                delivery.push_from_elsewhere(&mut buffer, packet).unwrap();
            }
            delivery.flush(&mut buffer).unwrap();
            assert!((1 + 2..1 + 6).contains(&taken(&device)), "{}", taken(&device));
            assert_eq!(far.counters.dropped(DropReason::DeviceFailed), 0);
        });
    }
}
