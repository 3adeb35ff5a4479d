//! Session keys are dropped before the host is suspended: its memory may be written to a disk, or be read while it sleeps.

use std::time::Duration;

use super::Peer;
use crate::time::{BootTime, Now};

/// The host sleeps within this time. If it does not, the tunnel makes a new session then, whose keys are in the host's memory
/// when it sleeps after all.
const SLEEPS_WITHIN: Duration = Duration::from_secs(15);

impl Peer {
    /// Drops all session keys, and makes no session until the host has been suspended ([`Peer::resumed`]), or for
    /// 15 seconds. The peer is told nothing.
    pub fn forget(&mut self, now: Now) {
        self.sleeps_until = now.boot + SLEEPS_WITHIN;
        self.drop_sessions();
        self.handle_wake(now);
    }

    /// Whether no session may be made.
    pub(super) fn sleeps(&self, now: Now) -> bool {
        now.boot < self.sleeps_until
    }

    /// The suspend is over.
    pub(super) const fn wake_up(&mut self) {
        self.sleeps_until = BootTime::from_nanos(0);
    }
}
