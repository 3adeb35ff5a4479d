//! Waiting, in a command that runs until Ctrl-C: for a time, a descriptor, a signal, or until nobody reads the output.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// What a wait ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// The time is over.
    Due,
    /// The descriptor can be read.
    Readable,
    /// The terminal has another size.
    Resized,
    /// The command shall end: Ctrl-C, a closed terminal, or a closed pipe.
    Ended,
}

/// Takes the place of the signals' usual effects, for this thread.
pub(crate) struct Interrupt {
    signals: SignalFd,
}

impl Interrupt {
    /// From here on, Ctrl-C ends a wait, and not the process.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(crate) fn new() -> io::Result<Self> {
        let all = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];
        let mut set: SigSet = all.into_iter().collect();
        set.add(Signal::SIGWINCH);
        set.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self { signals: SignalFd::with_flags(&set, flags)? })
    }

    /// Waits until this instant, or for another event.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(crate) fn until(&self, at: Instant) -> io::Result<Woken> {
        self.wait(at, None)
    }

    /// Waits until this descriptor can be read, until this instant at the latest.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(crate) fn readable(&self, fd: BorrowedFd<'_>, at: Instant) -> io::Result<Woken> {
        self.wait(at, Some(fd))
    }

    fn wait(&self, at: Instant, fd: Option<BorrowedFd<'_>>) -> io::Result<Woken> {
        let stdout = io::stdout();
        loop {
            // Without events, poll(2) reports only errors and hang-ups. A file has neither.
            let mut fds = vec![
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(stdout.as_fd(), PollFlags::empty()),
            ];
            fds.extend(fd.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            match poll(&mut fds, timeout(at)) {
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
                Ok(0) => return Ok(Woken::Due),
                Ok(_) => {}
            }
            let has = |index: usize| fds.get(index).and_then(PollFd::any).unwrap_or(false);
            if let Some(woken) = self.signal()? {
                return Ok(woken);
            }
            if has(1) {
                return Ok(Woken::Ended);
            }
            if has(2) {
                return Ok(Woken::Readable);
            }
        }
    }

    /// The next signal, if one has come.
    fn signal(&self) -> io::Result<Option<Woken>> {
        let resized = Signal::SIGWINCH as u32;
        let signal = self.signals.read_signal()?.map(|info| info.ssi_signo);
        Ok(signal.map(|number| if number == resized { Woken::Resized } else { Woken::Ended }))
    }
}

/// At least one millisecond, so that no wait that is rounded down becomes a busy loop.
fn timeout(at: Instant) -> PollTimeout {
    let left = at.saturating_duration_since(Instant::now());
    let millis = left.as_millis() + u128::from(left > Duration::ZERO);
    PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
}

/// The size of the terminal on standard output, in columns and lines; `None` if it is none.
pub(crate) fn terminal_size() -> Option<(usize, usize)> {
    if !io::stdout().is_terminal() {
        return None;
    }
    // A terminal that does not know its size has 80 columns.
    let size = terminal_size::terminal_size_of(io::stdout());
    Some(size.map_or((80, 24), |(width, height)| (width.0.into(), height.0.into())))
}
