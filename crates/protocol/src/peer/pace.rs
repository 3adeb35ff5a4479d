//! Slows down changes of a value that alternates.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::BootTime;

/// If a value lasts this long after its pause, it does not alternate.
const STAYS: Duration = Duration::from_secs(2);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(60);
/// The number of recent values that count as former ones.
const FORMER: usize = 4;
/// The first pause doubles at most this often, which is more than needed to reach the longest.
const DOUBLINGS: u32 = 8;

/// Decides when a value may change again. The pause after a change doubles while the value keeps returning to
/// former values, each time soon after the last change. A new value, or one that has lasted a while, resets
/// the pause. The first return does not double it.
#[derive(Debug)]
pub(super) struct Pace<T> {
    first: Duration,
    former: VecDeque<T>,
    returns: u32,
    changed_at: BootTime,
}

impl<T: Copy + PartialEq> Pace<T> {
    /// Pauses for `first` after a change that does not alternate.
    pub(super) fn new(first: Duration) -> Self {
        Self { first, former: VecDeque::new(), returns: 0, changed_at: BootTime::default() }
    }

    /// Records a change.
    pub(super) fn changed(&mut self, now: BootTime, from: T, to: T) {
        let soon = now.saturating_since(self.changed_at) < self.pause() + STAYS;
        let is_return = self.former.contains(&to);
        self.returns = if is_return && soon { self.returns + 1 } else { is_return.into() };
        self.former.retain(|old| *old != from);
        if self.former.len() == FORMER {
            self.former.pop_front();
        }
        self.former.push_back(from);
        self.changed_at = now;
    }

    /// When it changed last.
    pub(super) const fn changed_at(&self) -> BootTime {
        self.changed_at
    }

    /// When the value may change next.
    pub(super) fn next_at(&self) -> BootTime {
        self.changed_at + self.pause()
    }

    fn pause(&self) -> Duration {
        let doublings = self.returns.saturating_sub(1).min(DOUBLINGS);
        (self.first * 2_u32.pow(doublings)).min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The times at which changes to these values happen, each as early as allowed, from 0 on.
    fn changes(values: &[u8]) -> Vec<u128> {
        let start = BootTime::from_nanos(1_000_000_000_000);
        let mut pace = Pace::new(Duration::from_millis(250));
        let (mut now, mut current) = (start, 0);
        let mut change = |to: &u8| {
            pace.changed(now, std::mem::replace(&mut current, *to), *to);
            let at = now.saturating_since(start).as_millis();
            now = pace.next_at();
            at
        };
        values.iter().map(&mut change).collect()
    }

    #[test]
    fn repeated_returns_double_the_pause() {
        assert_eq!(
            changes(&[1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1]),
            [0, 250, 500, 1000, 2000, 4000, 8000, 16000, 32000, 64000, 124_000, 184_000, 244_000]
        );
        assert_eq!(changes(&[1, 2, 0, 1, 2, 0, 1]), [0, 250, 500, 750, 1250, 2250, 4250]);
    }

    #[test]
    fn new_values_begin_anew() {
        assert_eq!(changes(&[1, 2, 3, 4, 5, 6, 7, 8]), [0, 250, 500, 750, 1000, 1250, 1500, 1750]);
        assert_eq!(changes(&[1, 0, 1, 0, 2, 0, 2]), [0, 250, 500, 1000, 2000, 2250, 2500]);
    }

    #[test]
    fn what_stays_for_a_while_begins_anew() {
        let mut pace = Pace::new(Duration::from_millis(250));
        let mut now = BootTime::from_nanos(1_000_000_000_000);
        for n in 0..20 {
            pace.changed(now, n % 2, (n + 1) % 2);
            assert_eq!(pace.next_at(), now + Duration::from_millis(250));
            now = now + Duration::from_millis(2500);
        }
    }
}
