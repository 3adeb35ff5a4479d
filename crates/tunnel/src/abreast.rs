//! Keeps the outbound lines abreast.
//!
//! They take counters of one key, each for its batch. One that is held up between that and the send, for
//! want of a processor or of room in the socket, would find itself behind the peer's replay window if the
//! others went on: so they wait for it. A line alone never waits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use vpnd_protocol::replay::WINDOW;

/// How far a line gets ahead of another's batch. The rest of the window is for what overtakes on the
/// way, and for peers whose window is smaller.
const MOST_AHEAD: u64 = WINDOW / 8;
/// Long enough for the line that is waited for to get the processor.
const A_MOMENT: Duration = Duration::from_micros(50);
/// A line that has nothing under way.
const NOTHING: u64 = u64::MAX;

/// Where each line is: no counter that it has under way is lower.
pub(crate) struct Abreast(Box<[AtomicU64]>);

/// A line has counters under way for as long as it holds this.
pub(crate) struct UnderWay<'a>(&'a AtomicU64);

impl Abreast {
    pub(crate) fn new(lines: usize) -> Self {
        Self((0..lines).map(|_| AtomicU64::new(NOTHING)).collect())
    }

    /// Waits until `line` may take counters from `next` on, which is asked each time: the key may be
    /// replaced in the meantime.
    pub(crate) fn wait(&self, line: usize, next: impl Fn() -> u64) {
        while self.last_of_others(line).is_some_and(|last| next().saturating_sub(last) > MOST_AHEAD)
        {
            thread::sleep(A_MOMENT);
        }
    }

    /// Notes that `line` takes counters, none lower than `from`: before it does.
    pub(crate) fn under_way(&self, line: usize, from: u64) -> UnderWay<'_> {
        self.0[line].store(from, Ordering::SeqCst);
        UnderWay(&self.0[line])
    }

    fn last_of_others(&self, line: usize) -> Option<u64> {
        let others = self.0.iter().enumerate().filter(|(other, _)| *other != line);
        let under_way = others.map(|(_, from)| from.load(Ordering::SeqCst));
        under_way.filter(|from| *from != NOTHING).min()
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.store(NOTHING, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// How often `line` asks for the next counter, which is `next` but for the last time.
    fn asks(abreast: &Abreast, line: usize, next: u64) -> u32 {
        let asked = Cell::new(0);
        abreast.wait(line, || {
            asked.set(asked.get() + 1);
            if asked.get() < 5 { next } else { 0 }
        });
        asked.get()
    }

    #[test]
    fn nobody_gets_far_ahead_of_a_line_that_has_counters_under_way() {
        let abreast = Abreast::new(3);
        assert_eq!(asks(&abreast, 0, u64::MAX - 1), 0, "nothing is under way");
        let first = abreast.under_way(1, 100);
        let second = abreast.under_way(2, 5000);
        assert_eq!(asks(&abreast, 0, 100 + MOST_AHEAD), 1);
        assert_eq!(asks(&abreast, 0, 100 + MOST_AHEAD + 1), 5);
        // Not of itself; and a new key begins at nought again.
        assert_eq!(asks(&abreast, 1, 5000 + MOST_AHEAD), 1);
        assert_eq!(asks(&abreast, 0, 3), 1);
        drop(first);
        assert_eq!(asks(&abreast, 0, 100 + MOST_AHEAD + 1), 1);
        drop(second);
        assert_eq!(asks(&abreast, 0, u64::MAX - 1), 0);
    }

    #[test]
    fn a_line_alone_never_waits() {
        let abreast = Abreast::new(1);
        let _under_way = abreast.under_way(0, 0);
        assert_eq!(asks(&abreast, 0, u64::MAX - 1), 0);
    }
}
