//! The two clocks: boot time drives timers, the wall clock is used only for the TAI64N timestamp. Neither is
//! read here; both are arguments, so that a simulator can provide them.

use std::ops::Add;
use std::time::Duration;

/// Nanoseconds of `CLOCK_BOOTTIME`, which runs through suspend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(u64);

impl BootTime {
    /// The time `nanos` nanoseconds after boot.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since boot.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time since `earlier`; zero when `earlier` is later.
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for BootTime {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// Time since the Unix epoch according to the wall clock; it may jump.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct WallTime(Duration);

impl WallTime {
    /// The time `since_epoch` after 1970-01-01T00:00:00Z.
    pub const fn from_unix(since_epoch: Duration) -> Self {
        Self(since_epoch)
    }

    /// Time since the Unix epoch.
    pub const fn since_unix(self) -> Duration {
        self.0
    }
}

/// Both clocks, read together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// Drives every timer.
    pub boot: BootTime,
    /// Used only for the timestamps of initiations.
    pub wall: WallTime,
}
