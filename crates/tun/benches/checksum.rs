//! Measures the time of a checksum, alone and in the same pass as a copy.

use std::time::Duration;

use criterion::{Criterion, Throughput};
use vpnd_tun::Sum;

/// Sizes from a bare acknowledgment to a whole super-packet.
const SIZES: [usize; 6] = [64, 256, 576, 1420, 9000, 65_535];

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    for size in SIZES {
        let bytes = vec![0x5a; size];
        let mut copy = vec![0; size];
        let mut group = criterion.benchmark_group("checksum");
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(format!("of/{size}"), |bencher| bencher.iter(|| Sum::of(&bytes)));
        group.bench_function(format!("copy/{size}"), |bencher| {
            bencher.iter(|| Sum::copy(&bytes, &mut copy));
        });
    }
    criterion.final_summary();
}
