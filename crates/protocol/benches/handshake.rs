//! What a whole handshake costs both ends together, until the first datagram may be sealed: with
//! `WireGuard`'s protocol, and with the profile's post-quantum upgrade. Bytes on the wire are printed
//! once.
#![allow(clippy::unwrap_used, reason = "what does not connect is a figure of nothing")]
#![allow(clippy::print_stdout, reason = "bytes, beside the times")]

#[path = "common/ends.rs"]
mod common;

use std::time::Duration;

use common::{connect, post_quantum, wireguard};
use criterion::Criterion;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let mut group = criterion.benchmark_group("handshake, both ends");
    for (name, protocol) in [("wireguard", wireguard()), ("post-quantum", post_quantum())] {
        let (datagrams, bytes) = connect(protocol);
        println!("{name}: {datagrams} datagrams, {bytes} bytes of UDP payload");
        group.bench_function(name, |bencher| bencher.iter(|| connect(protocol)));
    }
    group.finish();
    criterion.final_summary();
}
