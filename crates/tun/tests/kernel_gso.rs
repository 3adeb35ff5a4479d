//! Compares splitting with the kernel's own segmentation: random super-packets are written to a device, and the
//! kernel forwards them to another device. If that device has no offloads, the kernel splits them.
#![allow(clippy::unwrap_used, reason = "what does not unwrap fails its test")]

mod common;

use std::io::{ErrorKind, IoSlice};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::devices::router;
use common::namespace::in_namespace;
use common::seeds::{each_seed, sized};
use common::super_packet::{any_spec, header, segments, with_options};
use common::{CWR, Spec};
use proptest::prelude::*;
use vpnd_tun::{Device, Queue, READ_BUFFER, VnetHeader};

#[test]
fn the_kernel_splits_as_we_do() {
    in_namespace("the_kernel_splits_as_we_do", || {
        let segments = forward(false, !0, sized(50_000, 10_000_000));
        println!("beside the kernel's segmentation: {segments} segments, 0 differences");
    });
}

/// The device has offloads, so we split super-packets whose header the kernel wrote. CWR is not tested, because
/// the kernel splits such a super-packet itself for a device without `TUN_F_TSO_ECN`.
#[test]
fn what_the_kernel_leaves_whole_we_split_alike() {
    in_namespace("what_the_kernel_leaves_whole_we_split_alike", || {
        let segments = forward(true, !CWR, sized(50_000, 1_000_000));
        println!("behind the kernel's headers: {segments} segments, 0 differences");
    });
}

/// Forwards super-packets until there are `enough` segments, and compares the received packets with our own
/// splitting.
fn forward(offload: bool, flags: u8, enough: usize) -> usize {
    let (entry, exit) = router(offload);
    each_seed(&super_packet(flags), enough, |sent| {
        sent.write(&entry);
        let ours = sent.forwarded();
        let reads = receive(&exit.queues[0], ours.len());
        assert_eq!(reads.len(), if offload { 1 } else { ours.len() });
        compare(&ours, &reads.concat());
        ours.len()
    })
}

fn compare(ours: &[Vec<u8>], theirs: &[Vec<u8>]) {
    let lengths = |segments: &[Vec<u8>]| segments.iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(lengths(ours), lengths(theirs));
    for (nth, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        let bytes = (0..).zip(ours.iter().zip(theirs));
        let differing: Vec<(usize, _)> = bytes.filter(|(_, (a, b))| a != b).collect();
        assert!(differing.is_empty(), "segment {nth}, at (ours, theirs): {differing:?}");
    }
}

#[derive(Clone, Debug)]
struct SuperPacket {
    spec: Spec,
    /// The segment size. If the payload is shorter, this is a plain packet without its checksum.
    gso_size: usize,
    /// Whether the header announces CWR, if CWR is set.
    ecn: bool,
    /// Whether there are IPv4 options or an IPv6 extension header.
    options: bool,
}

/// TCP flags are chosen from `flags` only.
fn super_packet(flags: u8) -> impl Strategy<Value = SuperPacket> {
    let gso_size = prop_oneof![1usize..100, 500usize..1500, 1usize..65_535];
    let rare = prop::bool::weighted(0.1);
    (any_spec(), gso_size, 0u8..2, any::<u16>(), any::<bool>(), rare, rare).prop_map(
        move |(mut spec, gso_size, source, label, ecn, options, zero)| {
            spec.flow.0 = source;
            spec.label = label;
            spec.flags &= flags;
            spec.ttl = spec.ttl.max(2);
            let most = if spec.udp { MAX_UDP } else { MAX_TCP };
            let gso_size = gso_size.max(spec.payload.len().div_ceil(most));
            let ecn = ecn && flags & CWR != 0;
            let packet = SuperPacket { spec, gso_size, ecn, options };
            if zero { packet.with_zero_checksum() } else { packet }
        },
    )
}

impl SuperPacket {
    /// The same with a payload that makes the first segment's checksum zero.
    fn with_zero_checksum(mut self) -> Self {
        let (header, packet) = self.build(1);
        let at = usize::from(header.csum_start + header.csum_offset);
        let first = segments(header, &packet, 0).remove(0);
        let checksum = u16::from_be_bytes([first[at], first[at + 1]]);
        if let Some(word) = self.spec.payload.first_chunk_mut() {
            let (sum, carried) = u16::from_be_bytes(*word).overflowing_add(checksum);
            *word = (sum + u16::from(carried)).to_be_bytes();
        }
        self
    }

    fn write(&self, entry: &Device) {
        let (header, packet) = self.build(self.spec.ttl);
        let header = header.encode();
        let write = [IoSlice::new(&header), IoSlice::new(&packet)];
        assert_eq!(entry.writer.write(&write).unwrap(), header.len() + packet.len());
    }

    /// The packets that our own splitting returns, after one hop.
    fn forwarded(&self) -> Vec<Vec<u8>> {
        let (header, packet) = self.build(self.spec.ttl - 1);
        segments(header, &packet, 0)
    }

    fn build(&self, ttl: u8) -> (VnetHeader, Vec<u8>) {
        let spec = Spec { ttl, ..self.spec.clone() };
        let mut packet = spec.build_super();
        let mut header = header(&spec, self.gso_size);
        if self.options {
            let without = packet.len();
            packet = with_options(packet);
            header.csum_start += u16::try_from(packet.len() - without).unwrap();
        }
        if spec.payload.len() <= self.gso_size {
            (header.gso_type, header.gso_size) = (0, 0);
        } else if self.ecn && !spec.udp {
            header.gso_type |= 0x80;
        }
        let l4 = spec.header_len() - spec.ip_len();
        header.hdr_len = header.csum_start + u16::try_from(l4).unwrap();
        (header, packet)
    }
}

/// Splits each read, until `count` packets of TCP or UDP have arrived and no more arrive.
fn receive(exit: &Queue, count: usize) -> Vec<Vec<Vec<u8>>> {
    let deadline = Instant::now() + Duration::from_millis(500);
    let mut buffer = vec![0; READ_BUFFER];
    let (mut reads, mut received) = (Vec::new(), 0);
    loop {
        match exit.read(&mut buffer) {
            Ok(len) => {
                let (header, packet) = VnetHeader::decode(&buffer[..len]).unwrap();
                assert!(header == VnetHeader::PLAIN || exit.offload().checksum);
                if is_ours(packet) {
                    let segments = segments(header, packet, 0);
                    received += segments.len();
                    reads.push(segments);
                }
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock && received >= count => return reads,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                assert!(Instant::now() < deadline, "{received} of {count} segments");
                sleep(Duration::from_millis(1));
            }
            Err(e) => panic!("{e}"),
        }
    }
}

/// Whether it is TCP or UDP, perhaps after IPv6 extension headers. The kernel itself sends only ICMP.
fn is_ours(packet: &[u8]) -> bool {
    let protocol = if packet[0] >> 4 == 6 { packet[6] } else { packet[9] };
    matches!(protocol, 6 | 17 | 60)
}

/// The highest number of segments that an older kernel accepts.
const MAX_UDP: usize = 64;
/// Fewer packets than the queue of a device holds.
const MAX_TCP: usize = 400;
