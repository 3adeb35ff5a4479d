//! Bounds how far the outbound workers drift apart.
//!
//! All outbound workers take counters from one key, a range for each batch. A worker may be delayed between
//! taking its counters and sending, because it lacks a processor or the socket is full. If the other workers
//! went on, its datagrams would fall behind the peer's replay window. So the other workers wait for it. A
//! single worker never waits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use vpnd_protocol::replay::WINDOW;

/// How far a worker's counters may be ahead of another worker's batch. The rest of the window is left for
/// reordering on the path, and for peers with a smaller window.
const MOST_AHEAD: u64 = WINDOW / 8;
/// The time between two checks, long enough for the slow worker to get a processor.
const CHECK_EVERY: Duration = Duration::from_micros(50);
/// Marks a worker that has no batch in flight.
const NOTHING: u64 = u64::MAX;

/// The lowest counter that each worker has in flight.
pub(crate) struct Pacing(Box<[AtomicU64]>);

/// A worker's counters are in flight until this value is dropped.
pub(crate) struct InFlight<'a>(&'a AtomicU64);

impl Pacing {
    pub(crate) fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| AtomicU64::new(NOTHING)).collect())
    }

    /// Waits until `worker` may take counters from `next` on. `next` is called for each check, because the key
    /// may be replaced in the meantime.
    pub(crate) fn wait(&self, worker: usize, next: impl Fn() -> u64) {
        while self
            .last_of_others(worker)
            .is_some_and(|last| next().saturating_sub(last) > MOST_AHEAD)
        {
            thread::sleep(CHECK_EVERY);
        }
    }

    /// Records, before `worker` takes counters, that none of its counters will be lower than `from`.
    pub(crate) fn in_flight(&self, worker: usize, from: u64) -> InFlight<'_> {
        self.0[worker].store(from, Ordering::SeqCst);
        InFlight(&self.0[worker])
    }

    fn last_of_others(&self, worker: usize) -> Option<u64> {
        let others = self.0.iter().enumerate().filter(|(other, _)| *other != worker);
        let in_flight = others.map(|(_, from)| from.load(Ordering::SeqCst));
        in_flight.filter(|from| *from != NOTHING).min()
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.store(NOTHING, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// The number of times that `worker` asks for the next counter. The answer is `next`, and 0 from the fifth
    /// time on.
    fn asks(pacing: &Pacing, worker: usize, next: u64) -> u32 {
        let asked = Cell::new(0);
        pacing.wait(worker, || {
            asked.set(asked.get() + 1);
            if asked.get() < 5 { next } else { 0 }
        });
        asked.get()
    }

    #[test]
    fn nobody_gets_far_ahead_of_a_line_that_has_counters_under_way() {
        let pacing = Pacing::new(3);
        assert_eq!(asks(&pacing, 0, u64::MAX - 1), 0, "nothing is under way");
        let first = pacing.in_flight(1, 100);
        let second = pacing.in_flight(2, 5000);
        assert_eq!(asks(&pacing, 0, 100 + MOST_AHEAD), 1);
        assert_eq!(asks(&pacing, 0, 100 + MOST_AHEAD + 1), 5);
        // A worker does not wait for itself, nor after a new key has started again at 0.
        assert_eq!(asks(&pacing, 1, 5000 + MOST_AHEAD), 1);
        assert_eq!(asks(&pacing, 0, 3), 1);
        drop(first);
        assert_eq!(asks(&pacing, 0, 100 + MOST_AHEAD + 1), 1);
        drop(second);
        assert_eq!(asks(&pacing, 0, u64::MAX - 1), 0);
    }

    #[test]
    fn a_line_alone_never_waits() {
        let pacing = Pacing::new(1);
        let _under_way = pacing.in_flight(0, 0);
        assert_eq!(asks(&pacing, 0, u64::MAX - 1), 0);
    }
}
