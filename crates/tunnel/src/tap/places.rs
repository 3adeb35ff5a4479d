//! Where the data path copies packets for a capture: before it seals and after it has sealed, as it receives and before
//! it delivers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU8;

use vpnd_protocol::table::Path;

use super::{Datagram, Direction};
use crate::batch::Batch;
use crate::shared::Shared;
use crate::udp::{RECEIVE_BUFFER, Received};

impl Shared {
    /// Copies the packets of a batch that is about to be sealed.
    pub(crate) fn copy_packets(&self, batch: &Batch) {
        let mut copies = self.tap.inner(Direction::Sent);
        batch.for_each_packet(|packet| copies.push(packet));
    }

    /// Copies the datagrams of a batch that was sealed, and is about to be sent.
    pub(crate) fn copy_datagrams(&self, batch: &Batch, path: &Path) {
        for transmit in batch.transmits(*path, 0) {
            let datagram = Datagram {
                from: self.ours(transmit.source, transmit.destination),
                to: transmit.destination,
                tos: transmit.tos,
                hops: transmit.hops.map_or(0, NonZeroU8::get),
            };
            let size =
                transmit.segment_size.map_or(transmit.contents.len(), |size| size.get().into());
            self.tap.outer(Direction::Sent, datagram).push_each(transmit.contents, size);
        }
    }

    /// Copies a datagram of the control plane.
    pub(crate) fn copy_datagram(&self, to: SocketAddr, from: Option<IpAddr>, contents: &[u8]) {
        let datagram = Datagram { from: self.ours(from, to), to, tos: 0, hops: 0 };
        self.tap.outer(Direction::Sent, datagram).push(contents);
    }

    /// Copies the datagrams of received batches, each of which begins its own part of the buffer.
    pub(crate) fn copy_received(&self, buffer: &[u8], received: &[Received]) {
        for (batch, part) in received.iter().zip(buffer.chunks(RECEIVE_BUFFER)) {
            let to = self.ours(batch.local, batch.from);
            let datagram = Datagram { from: batch.from, to, tos: batch.tos, hops: 0 };
            let copies = &mut self.tap.outer(Direction::Received, datagram);
            copies.push_each(&part[..batch.len], batch.stride);
        }
    }

    /// Our end of a datagram; the unspecified address of the other end's family if only the kernel knows it.
    fn ours(&self, known: Option<IpAddr>, other: SocketAddr) -> SocketAddr {
        let unspecified = match other {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        SocketAddr::new(known.unwrap_or(unspecified), self.socket.local_port())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tap::tests::records;
    use crate::tap::{Kind, Records, Wanted};
    use crate::tests::{ends, inbound, lines, read_packet, receive, send};
    use crate::udp::tests::in_namespace;

    /// Kind, direction and number of the records, which are in this order.
    fn told(shared: &Shared) -> Vec<(Kind, Direction, usize)> {
        let mut drained = Records::new();
        shared.tap.drain(&mut drained).unwrap();
        let found: Vec<_> = records(&drained)
            .into_iter()
            .map(|(header, _)| (header.kind, header.direction))
            .collect();
        let runs = found.chunk_by(|one, other| one == other);
        runs.map(|run| (run[0].0, run[0].1, run.len())).collect()
    }

    #[test]
    fn each_packet_is_copied_at_both_sides_of_both_ends() {
        in_namespace(|| {
            let (near, far) = ends(1);
            let (mut lines, mut inbound) = (lines(&near), inbound(&far));
            let both = Wanted { inner: true, outer: true };
            [&near, &far].iter().for_each(|shared| shared.tap.start(both, 65_535));
            send(&mut lines[0], &read_packet(100), 10);
            receive(&mut inbound);
            assert_eq!(
                told(&near),
                [(Kind::Inner, Direction::Sent, 10), (Kind::Outer, Direction::Sent, 10)]
            );
            assert_eq!(
                told(&far),
                [(Kind::Outer, Direction::Received, 10), (Kind::Inner, Direction::Received, 10)]
            );
            near.tap.start(Wanted { inner: false, outer: true }, 32);
            send(&mut lines[0], &read_packet(100), 10);
            let mut drained = Records::new();
            near.tap.drain(&mut drained);
            for (header, kept) in records(&drained) {
                assert_eq!((header.kind, kept.len(), header.len), (Kind::Outer, 32, 144));
                assert_eq!(header.datagram.from.port(), near.socket.local_port());
                assert_eq!(header.datagram.to.port(), far.socket.local_port());
            }
        });
    }
}
