//! Counts drops by reason. The data threads add to the counters, and `status` reads them.

use std::sync::atomic::{AtomicU64, Ordering};

use vpnd_protocol::drop_reason::DropReason;

/// One counter for each [`DropReason`].
#[derive(Debug)]
pub struct Counters([AtomicU64; DropReason::ALL.len()]);

impl Default for Counters {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; DropReason::ALL.len()])
    }
}

impl Counters {
    /// Adds `count` datagrams or packets that were dropped for `reason`.
    pub fn count(&self, reason: DropReason, count: usize) {
        if count > 0 {
            self.0[reason as usize].fetch_add(count as u64, Ordering::Relaxed);
        }
    }

    /// The number dropped for `reason`.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.0[reason as usize].load(Ordering::Relaxed)
    }

    /// Every reason with its count.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> {
        DropReason::ALL.iter().map(|&reason| (reason, self.dropped(reason)))
    }
}
