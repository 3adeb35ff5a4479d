//! Measures the time to merge the packets of one receive, including the verification of checksums.
#![allow(clippy::unwrap_used, reason = "what does not merge is a figure of nothing")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::hint::black_box;
use std::ops::Range;
use std::time::Duration;

use common::Spec;
use criterion::{Criterion, Throughput};
use vpnd_tun::{Coalescer, Limits};

/// The length of the longest headers before a payload.
const HEADERS: usize = 60;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    merge(&mut criterion, "46 segments of a TCP flow", 1, packets_of(1, 46, false));
    merge(&mut criterion, "46 datagrams of a UDP flow", 1, packets_of(1, 46, true));
    merge(&mut criterion, "64 small packets of 16 TCP flows", 16, packets_of(16, 64, false));
    merge(&mut criterion, "64 small packets of 64 UDP flows", 64, packets_of(64, 64, true));
    criterion.final_summary();
}

/// `packets` packets of `flows` flows in turn. The packets of a single flow are large.
fn packets_of(flows: u8, packets: u16, udp: bool) -> Vec<Spec> {
    let len = if flows == 1 { 1380 } else { 24 };
    let packet = |at: u16| {
        let (round, flow) = (at / u16::from(flows), at % u16::from(flows));
        Spec {
            flow: (1, u8::try_from(flow).unwrap()),
            id: round,
            sequence: u32::from(round) * len,
            payload: vec![0x5a; len as usize],
            ..Spec::new(false, udp)
        }
    };
    (0..packets).map(packet).collect()
}

fn merge(criterion: &mut Criterion, name: &str, writes: usize, packets: Vec<Spec>) {
    let (received, ranges) = lay_out(&packets);
    let mut buffer = received.clone();
    let mut coalescer = Coalescer::new(Limits { tcp: true, udp: true, prefix: 0 });
    let mut group = criterion.benchmark_group("coalesce");
    group.throughput(Throughput::Elements(ranges.len() as u64));
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            let mut written = 0;
            for range in &ranges {
                // Restores the first packet's headers, which those of the super-packet have overwritten.
                let headers = range.start..range.end.min(range.start + HEADERS);
                buffer[headers.clone()].copy_from_slice(&received[headers]);
                coalescer.push(&buffer, range.clone());
            }
            coalescer.flush(&mut buffer, |slices, _| {
                written += 1;
                black_box(slices);
            });
            assert_eq!(written, writes, "writes");
        });
    });
}

/// A buffer with the packets back to back, and the range of each packet.
fn lay_out(packets: &[Spec]) -> (Vec<u8>, Vec<Range<usize>>) {
    let mut buffer = Vec::new();
    let lay = |packet: &Spec| {
        let start = buffer.len();
        buffer.extend(packet.build());
        start..buffer.len()
    };
    let ranges = packets.iter().map(lay).collect();
    (buffer, ranges)
}
