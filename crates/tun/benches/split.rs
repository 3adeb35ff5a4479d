//! Measures the time to split a super-packet of nearly 64 KiB, including checksums.
#![allow(clippy::unwrap_used, reason = "what does not split is a figure of nothing")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::Duration;

use common::Spec;
use criterion::{Criterion, Throughput};
use vpnd_tun::{VnetHeader, split};

/// The segment size on a path of 1500 bytes, without the headers of the tunnel and of the packet.
const SEGMENT: u16 = 1388;
const SEGMENTS: u16 = 47;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    for (name, v6, udp) in [
        ("TCP over IPv4", false, false),
        ("TCP over IPv6", true, false),
        ("UDP over IPv4", false, true),
        ("UDP over IPv6", true, true),
    ] {
        take_apart(&mut criterion, name, v6, udp);
    }
    criterion.final_summary();
}

fn take_apart(criterion: &mut Criterion, name: &str, v6: bool, udp: bool) {
    let payload = vec![0x5a; usize::from(SEGMENT * SEGMENTS)];
    let packet = Spec { payload, ..Spec::new(v6, udp) };
    let (header, packet) = (header(&packet), packet.build_super());
    let mut batch = vec![0; 1 << 17];
    let mut group = criterion.benchmark_group("split");
    group.throughput(Throughput::Elements(SEGMENTS.into()));
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            let mut segments = split(header, &packet, 0).unwrap();
            let mut room = batch.as_mut_slice();
            while let Some(len) = segments.next_len() {
                let (segment, rest) = room.split_at_mut(len);
                segments.write_next(segment);
                room = rest;
            }
            room.len()
        });
    });
}

fn header(packet: &Spec) -> VnetHeader {
    let gso_type = match (packet.udp, packet.v6) {
        (true, _) => 5,
        (false, false) => 1,
        (false, true) => 4,
    };
    VnetHeader {
        flags: 1,
        gso_type,
        hdr_len: u16::try_from(packet.header_len()).unwrap(),
        gso_size: SEGMENT,
        csum_start: u16::try_from(packet.ip_len()).unwrap(),
        csum_offset: if packet.udp { 6 } else { 16 },
    }
}
