//! Sets the device's carrier by the peer's liveness, with a limited rate: routing daemons and hooks of other
//! programs act on each change, so an unstable peer would keep the host busy.

use std::time::Duration;

use vpnd_protocol::time::BootTime;

/// The least time between two changes.
const APART: Duration = Duration::from_secs(1);

/// A carrier that changes at most once in [`APART`], to the latest state of the peer.
#[derive(Debug)]
pub(crate) struct Carrier {
    follows: bool,
    is_on: bool,
    wanted: bool,
    changed: Option<BootTime>,
}

impl Carrier {
    /// A carrier that is on if the peer is `alive`. It never changes if it does not follow the peer.
    pub(crate) const fn new(follows: bool, alive: bool) -> Self {
        Self { follows, is_on: alive, wanted: alive, changed: None }
    }

    /// The carrier follows the peer from now on, or is left on. It is on while it does not follow.
    pub(crate) const fn set_follows(&mut self, follows: bool) {
        if self.follows != follows {
            (self.follows, self.is_on) = (follows, true);
        }
    }

    /// The peer is alive, or dead.
    pub(crate) const fn follow(&mut self, alive: bool) {
        self.wanted = alive;
    }

    /// The state to set, if a change is due. After a pause the first change is due at once.
    pub(crate) fn due(&mut self, now: BootTime) -> Option<bool> {
        if self.deadline().is_none_or(|at| now < at) {
            return None;
        }
        (self.is_on, self.changed) = (self.wanted, Some(now));
        Some(self.is_on)
    }

    /// When the next change is due, if one is wanted.
    pub(crate) fn deadline(&self) -> Option<BootTime> {
        let differs = self.follows && self.is_on != self.wanted;
        differs.then(|| self.changed.map_or_else(BootTime::default, |changed| changed + APART))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_comes_and_goes_changes_it_once_a_second() {
        let mut carrier = Carrier::new(true, false);
        let at = |ms: u64| BootTime::default() + Duration::from_millis(100_000 + ms);
        let mut changes = Vec::new();
        for step in 0..100_u64 {
            carrier.follow(step % 2 == 0);
            changes.extend(carrier.due(at(step)));
        }
        assert_eq!(changes, [true], "the first at once");
        assert_eq!(carrier.deadline(), Some(at(1000)));
        assert_eq!(carrier.due(at(999)), None);
        assert_eq!(carrier.due(at(1000)), Some(false), "the last counts");
        carrier.follow(true);
        carrier.follow(false);
        assert_eq!(carrier.deadline(), None, "as it was");
    }

    #[test]
    fn one_that_does_not_follow_stays() {
        let mut carrier = Carrier::new(false, false);
        carrier.follow(true);
        assert_eq!((carrier.due(BootTime::default()), carrier.deadline()), (None, None));
    }
}
