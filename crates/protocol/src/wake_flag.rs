//! Wake flags, for events that cannot wait for the control plane's next poll. One thread raises a flag and
//! another lowers it; only the first raise wakes the other thread.

use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the control plane must be woken. The caller that gets this must do so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "a wake that is not passed on leaves the control plane asleep"]
pub struct Wake(bool);

impl Wake {
    /// No wake is needed.
    pub const NO: Self = Self(false);

    /// Wakes if `due`.
    pub(crate) const fn if_due(due: bool) -> Self {
        Self(due)
    }

    /// Whether the control plane must be woken.
    pub const fn is_due(self) -> bool {
        self.0
    }
}

impl std::ops::BitOrAssign for Wake {
    fn bitor_assign(&mut self, rhs: Self) {
        self.0 |= rhs.0;
    }
}

/// A flag that one side raises and the other lowers; only its first raising wakes.
#[derive(Debug, Default)]
pub struct WakeFlag(AtomicBool);

impl WakeFlag {
    /// Raises the flag.
    pub fn raise(&self) -> Wake {
        // The load keeps the cache line shared while the flag stays up.
        Wake(!self.is_raised() && !self.0.swap(true, Ordering::AcqRel))
    }

    /// Whether the flag is up.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Lowers the flag and returns whether it was up.
    pub fn take(&self) -> bool {
        self.0.swap(false, Ordering::AcqRel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_raising_wakes() {
        let flag = WakeFlag::default();
        assert!(flag.raise().is_due());
        assert!(!flag.raise().is_due());
        assert!(flag.take());
        assert!(!flag.take());
        assert!(flag.raise().is_due());
    }
}
