//! What a batch of datagrams costs at either end of a session: counters, headers, sealing, opening.
#![allow(clippy::unwrap_used, reason = "what does not open is a figure of nothing")]

#[path = "common/ends.rs"]
mod common;

use std::time::Duration;

use common::{NOW, Session};
use criterion::{BatchSize, Criterion, Throughput};
use vpnd_protocol::session::{OVERHEAD, SealingKey};

/// As many as one send holds.
const BATCH: usize = 44;
/// Packets of full size, padded as their device's MTU allows.
const PACKET: usize = 1420;
const DATAGRAM: usize = PACKET + OVERHEAD;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    let mut group = criterion.benchmark_group("session");
    group.throughput(Throughput::Elements(BATCH as u64));
    let Session { sealing, opening, .. } = Session::new();
    let mut batch = vec![0; BATCH * DATAGRAM];
    group.bench_function("seal", |bencher| bencher.iter(|| seal(&sealing, &mut batch)));

    let first = sealing.used();
    seal(&sealing, &mut batch);
    let open = |batch: &mut Vec<u8>| {
        let datagrams = (first..).zip(batch.chunks_exact_mut(DATAGRAM));
        opening.open_each(datagrams, NOW, |opened| {
            let _place = opened.unwrap();
        });
    };
    group.bench_function("open", |bencher| {
        bencher.iter_batched_ref(|| batch.clone(), open, BatchSize::PerIteration);
    });
    group.finish();
    criterion.final_summary();
}

fn seal(key: &SealingKey, batch: &mut [u8]) {
    let mut counters = key.reserve(BATCH, NOW).unwrap();
    key.seal_each(&mut counters, batch.chunks_exact_mut(DATAGRAM));
}
