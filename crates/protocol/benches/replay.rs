//! What befalls an opened datagram in turn, of which the replay window is nearly all: keepalives
//! that come in order, out of order, and each a whole window ahead.
#![allow(clippy::unwrap_used, reason = "what is refused is a figure of nothing")]

#[path = "common/ends.rs"]
mod common;

use std::time::Duration;

use common::{NOW, Session, arrival};
use criterion::{BatchSize, Criterion, Throughput};
use vpnd_protocol::activity::Activity;
use vpnd_protocol::receive_order::ReceiveOrder;
use vpnd_protocol::replay::{WINDOW, Window};
use vpnd_protocol::session::{OVERHEAD, Opened};

const DATAGRAMS: u64 = 1024;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    accept(&mut criterion, "in order", 1, |_| {});
    accept(&mut criterion, "in reversed sixteens", 1, |run| {
        run.chunks_mut(16).for_each(<[Opened]>::reverse);
    });
    accept(&mut criterion, "each far ahead", 2 * WINDOW, |_| {});
    criterion.final_summary();
}

/// Passes datagrams whose counters lie `step` apart through a fresh window.
fn accept(criterion: &mut Criterion, name: &str, step: u64, reorder: fn(&mut [Opened])) {
    let session = Session::new();
    let first = session.sealing.used();
    let mut opened: Vec<_> = (0..DATAGRAMS).map(|n| session.keepalive(first + n * step)).collect();
    reorder(&mut opened);
    let (mut order, activity) = (ReceiveOrder::default(), Activity::default());
    let mut pass = |window: &mut Window| {
        let mut batch = order.begin(&session.table, &activity, arrival());
        for opened in &opened {
            batch.accept(&session.opening, window, opened, &[0; OVERHEAD]).unwrap();
        }
        batch.end(NOW)
    };
    let mut group = criterion.benchmark_group("replay");
    group.throughput(Throughput::Elements(DATAGRAMS));
    group.bench_function(name, |bencher| {
        bencher.iter_batched_ref(Window::default, &mut pass, BatchSize::SmallInput);
    });
}

impl Session {
    /// A keepalive, sealed and opened but not yet accepted.
    fn keepalive(&self, counter: u64) -> Opened {
        let mut datagram = [0; OVERHEAD];
        self.sealing.skip_to(counter);
        self.sealing.seal(self.sealing.reserve(1, NOW).unwrap().next().unwrap(), &mut datagram);
        self.opening.open(counter, &mut datagram, NOW).unwrap()
    }
}
