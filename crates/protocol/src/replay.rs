//! The replay window: remembers which of the last 8128 counters of a session were seen (whitepaper §5.4.6,
//! RFC 6479).

use crate::drop_reason::DropReason;

/// The length of the bitmap in words.
pub(crate) const WORDS: usize = 128;
const WORD_BITS: u64 = u64::BITS as u64;
const BITS: u64 = WORDS as u64 * WORD_BITS;

/// The number of counters below the newest that the window distinguishes. One word of the bitmap is always
/// being cleared, so it does not count.
pub const WINDOW: u64 = BITS - WORD_BITS;

/// How an accepted counter relates to those seen before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Higher than every counter before it.
    Newest,
    /// New, but overtaken on the path.
    Late,
}

/// A sliding bitmap over the counters of one session. It changes only after the datagram has been
/// authenticated, so a forger cannot move it.
pub struct Window {
    /// The highest counter seen; meaningless until `any` is set.
    newest: u64,
    any: bool,
    seen: [u64; WORDS],
}

impl Default for Window {
    fn default() -> Self {
        Self { newest: 0, any: false, seen: [0; WORDS] }
    }
}

impl Window {
    /// The window with this highest counter, if any was seen, and this bitmap.
    pub(crate) fn of_parts(newest: Option<u64>, seen: [u64; WORDS]) -> Self {
        Self { newest: newest.unwrap_or_default(), any: newest.is_some(), seen }
    }

    /// The highest counter that was seen, and the bitmap.
    pub(crate) fn parts(&self) -> (Option<u64>, [u64; WORDS]) {
        (self.any.then_some(self.newest), self.seen)
    }

    /// Marks `counter` as seen.
    ///
    /// # Errors
    /// [`DropReason::Replayed`] if it was seen before or is below the window.
    pub(crate) fn accept(&mut self, counter: u64) -> Result<Freshness, DropReason> {
        let freshness = self.place(counter)?;
        if freshness == Freshness::Newest {
            self.advance(counter);
        }
        let (word, bit) = position(counter);
        if self.seen[word] & bit != 0 {
            return Err(DropReason::Replayed);
        }
        self.seen[word] |= bit;
        Ok(freshness)
    }

    fn place(&self, counter: u64) -> Result<Freshness, DropReason> {
        if !self.any || counter > self.newest {
            return Ok(Freshness::Newest);
        }
        if self.newest - counter >= WINDOW {
            Err(DropReason::Replayed)
        } else {
            Ok(Freshness::Late)
        }
    }

    /// Clears the words between the old newest counter and the new one.
    fn advance(&mut self, counter: u64) {
        let old = if self.any { self.newest / WORD_BITS } else { 0 };
        let steps = (counter / WORD_BITS - old).min(WORDS as u64);
        for step in 1..=steps {
            self.seen[slot(old + step)] = 0;
        }
        self.newest = counter;
        self.any = true;
    }
}

fn position(counter: u64) -> (usize, u64) {
    (slot(counter / WORD_BITS), 1 << (counter % WORD_BITS))
}

#[expect(clippy::cast_possible_truncation, reason = "the remainder is below 128")]
const fn slot(word: u64) -> usize {
    (word % WORDS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    /// One row of the test table: a counter and whether the window accepts it.
    fn check(rows: &[(u64, bool)]) {
        let mut window = Window::default();
        for (row, &(counter, fresh)) in rows.iter().enumerate() {
            assert_eq!(window.accept(counter).is_ok(), fresh, "row {row}: counter {counter}");
        }
    }

    #[test]
    fn edges_of_the_window() {
        const W: u64 = WINDOW;
        check(&[
            (0, true),
            (1, true),
            (1, false),
            (9, true),
            (8, true),
            (7, true),
            (7, false),
            (W, true),
            (W - 1, true),
            (W - 1, false),
            (W - 2, true),
            (2, true),
            (2, false),
            (W + 16, true),
            (3, false),
            (W + 16, false),
            (W * 4, true),
            (W * 4 - (W - 1), true),
            (10, false),
            (W * 4 - W, false),
            (W * 4 - (W + 1), false),
            (W * 4 - (W - 2), true),
            (W * 4 + 1 - W, false),
            (0, false),
            (u64::MAX - 8193, true),
            (u64::MAX - 8193, false),
            (u64::MAX - 8194, true),
        ]);
    }

    #[test]
    fn the_first_counter_may_be_any() {
        check(&[(5_000_000, true), (5_000_000 - WINDOW + 1, true), (5_000_000 - WINDOW, false)]);
    }

    #[test]
    fn a_full_window_backwards_and_once_more() {
        let mut window = Window::default();
        for counter in (1..=WINDOW).rev() {
            assert!(window.accept(counter).is_ok(), "{counter}");
        }
        for counter in 0..=WINDOW {
            assert!(window.accept(counter).is_err(), "{counter}");
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_set(steps in prop::collection::vec(-9000i64..9000, 1..2000)) {
            let mut window = Window::default();
            let mut seen = HashSet::new();
            let mut newest: Option<u64> = None;
            for step in steps {
                let counter = newest.unwrap_or(20_000).saturating_add_signed(step);
                let in_window = newest.is_none_or(|n| counter > n || n - counter < WINDOW);
                let expected = in_window && seen.insert(counter);
                prop_assert_eq!(window.accept(counter).is_ok(), expected);
                newest = newest.max(Some(counter));
            }
        }
    }
}
