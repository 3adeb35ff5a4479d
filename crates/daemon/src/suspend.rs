//! Notices that the host was suspended.
//!
//! `CLOCK_BOOTTIME` continues in suspend and `CLOCK_MONOTONIC` does not, so their difference grows by the time that the host
//! has slept. A timer on the wall clock with `TFD_TIMER_CANCEL_ON_SET` reports the moment: the kernel cancels it at the end
//! of a suspend, and whenever the wall clock is set (`fs/timerfd.c`, `timerfd_resume`).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::{ClockId as Clock, clock_gettime};
use tokio::io::unix::AsyncFd;

use crate::watch::watch;

/// The clocks are not read at the same moment, so a smaller difference is not a suspend.
const LEAST: Duration = Duration::from_secs(1);
/// The timer never expires: it is only cancelled.
const NEVER: TimeSpec = TimeSpec::new(i64::MAX, 0);

/// Waits for the end of each suspend.
pub(crate) struct Suspend {
    timer: TimerFd,
    ready: AsyncFd<OwnedFd>,
    slept: Slept,
}

impl Suspend {
    /// # Errors
    /// If the process has no descriptor left.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_REALTIME, flags)?;
        let this = Self { ready: watch(timer.as_fd())?, timer, slept: Slept(asleep()) };
        this.arm()?;
        Ok(this)
    }

    fn arm(&self) -> io::Result<()> {
        let flags =
            TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
        match self.timer.set(Expiration::OneShot(NEVER), flags) {
            // The clock was set since the last read. The timer is armed all the same.
            Ok(()) | Err(Errno::ECANCELED) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until the host may have been suspended; returns for how long, if it was.
    ///
    /// # Errors
    /// Like `read(2)` and `timerfd_settime(2)` of a timerfd.
    pub(crate) async fn ended(&mut self) -> io::Result<Option<Duration>> {
        loop {
            let mut ready = self.ready.readable().await?;
            let read = ready.try_io(|_| match self.timer.wait() {
                Ok(()) | Err(Errno::ECANCELED) => Ok(()),
                Err(Errno::EAGAIN) => Err(io::ErrorKind::WouldBlock.into()),
                Err(error) => Err(error.into()),
            });
            if let Ok(result) = read {
                result?;
                self.arm()?;
                return Ok(self.slept.since_last(asleep()));
            }
        }
    }
}

/// The time that the host had slept in all when it was looked at last.
struct Slept(Duration);

impl Slept {
    /// How long the host has slept since then, if it did.
    fn since_last(&mut self, now: Duration) -> Option<Duration> {
        let slept = now.saturating_sub(std::mem::replace(&mut self.0, now));
        (slept >= LEAST).then_some(slept)
    }
}

/// The time that the host has slept since it was started.
fn asleep() -> Duration {
    let read = |clock| clock_gettime(clock).map_or(Duration::ZERO, Duration::from);
    let awake = read(Clock::CLOCK_MONOTONIC);
    read(Clock::CLOCK_BOOTTIME).saturating_sub(awake)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suspend_is_told_once_and_a_clock_that_was_set_is_none() {
        let mut slept = Slept(Duration::from_secs(100));
        let after = |slept: &mut Slept, millis| slept.since_last(Duration::from_millis(millis));
        assert_eq!(after(&mut slept, 100_001), None);
        assert_eq!(after(&mut slept, 130_001), Some(Duration::from_secs(30)));
        assert_eq!(after(&mut slept, 130_002), None);
        assert_eq!(after(&mut slept, 130_000), None);
    }

    #[tokio::test]
    async fn while_the_host_is_awake_nothing_is_reported() {
        let mut suspend = Suspend::new().unwrap();
        let waited = tokio::time::timeout(Duration::from_millis(50), suspend.ended()).await;
        assert!(waited.is_err());
    }
}
