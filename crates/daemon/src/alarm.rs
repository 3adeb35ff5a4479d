//! A timer on boot time, which continues during suspend; tokio's own clock stops then.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::unix::AsyncFd;
use vpnd_protocol::time::BootTime;

use crate::watch::watch;

/// Expires once, at the deadline that was set last.
pub(crate) struct Alarm {
    timer: TimerFd,
    ready: AsyncFd<OwnedFd>,
    set_to: Option<BootTime>,
}

impl Alarm {
    /// An alarm that is not set.
    ///
    /// # Errors
    /// If the process has no descriptor left.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, flags)?;
        Ok(Self { ready: watch(timer.as_fd())?, timer, set_to: None })
    }

    /// Sets the alarm, or clears it. A deadline in the past expires at once.
    ///
    /// # Errors
    /// Like `timerfd_settime(2)`.
    pub(crate) fn set(&mut self, deadline: Option<BootTime>) -> io::Result<()> {
        if deadline == self.set_to {
            return Ok(());
        }
        self.set_to = deadline;
        match deadline {
            None => self.timer.unset()?,
            Some(at) => {
                // Zero would clear the timer.
                let at = TimeSpec::from_duration(Duration::from_nanos(at.as_nanos().max(1)));
                self.timer.set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
            }
        }
        Ok(())
    }

    /// Waits until the alarm expires.
    ///
    /// # Errors
    /// Like `read(2)` of a timerfd.
    pub(crate) async fn expired(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.ready.readable().await?;
            let read = ready.try_io(|_| match self.timer.wait() {
                Ok(()) => Ok(()),
                Err(Errno::EAGAIN) => Err(io::ErrorKind::WouldBlock.into()),
                Err(error) => Err(error.into()),
            });
            if let Ok(result) = read {
                self.set_to = None;
                return result;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vpnd_tunnel::clock::boot;

    #[tokio::test]
    async fn goes_off_at_its_deadline_and_once() {
        let mut alarm = Alarm::new().unwrap();
        let deadline = boot() + Duration::from_millis(20);
        alarm.set(Some(deadline)).unwrap();
        alarm.expired().await.unwrap();
        assert!(boot() >= deadline);
        let again = tokio::time::timeout(Duration::from_millis(50), alarm.expired()).await;
        assert!(again.is_err(), "an alarm goes off once");
    }

    #[tokio::test]
    async fn a_deadline_that_has_passed_goes_off_at_once() {
        let mut alarm = Alarm::new().unwrap();
        alarm.set(Some(BootTime::from_nanos(0))).unwrap();
        alarm.expired().await.unwrap();
    }
}
