//! Reads the two clocks for the code that does I/O; the protocol gets the time as an argument.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use vpnd_protocol::time::{BootTime, Now, WallTime};

/// Time since boot, including time in suspend.
pub fn boot() -> BootTime {
    let nanos = read(ClockId::CLOCK_BOOTTIME).as_nanos();
    BootTime::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// The time of both clocks.
pub fn now() -> Now {
    Now { boot: boot(), wall: WallTime::from_unix(read(ClockId::CLOCK_REALTIME)) }
}

/// Reads a clock. Linux has both clocks; a time before 1970 counts as 1970.
fn read(clock: ClockId) -> Duration {
    clock_gettime(clock).map_or(Duration::ZERO, |time| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        Duration::new(seconds, u32::try_from(time.tv_nsec()).unwrap_or(0))
    })
}
