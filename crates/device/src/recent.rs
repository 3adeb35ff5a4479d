//! Counts recent events.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// The times of recent events.
#[derive(Debug, Default)]
pub(crate) struct Recent(VecDeque<Instant>);

impl Recent {
    /// Records an event; returns the number of events `within` this time, including this one.
    pub(crate) fn count(&mut self, within: Duration) -> usize {
        let now = Instant::now();
        self.0.push_back(now);
        while self.0.front().is_some_and(|first| now.duration_since(*first) > within) {
            self.0.pop_front();
        }
        self.0.len()
    }

    pub(crate) fn last(&self) -> Option<Instant> {
        self.0.back().copied()
    }
}
