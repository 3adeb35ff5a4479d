//! Standard input, when it is a terminal: Ctrl-C ends it, and what is typed need not be shown.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

use crate::interrupt::{Interrupt, Woken};

/// Reads a terminal. After Ctrl-C it is at its end, so that whoever asks can leave everything as it was.
pub(super) struct Keyboard {
    interrupt: Interrupt,
}

impl Keyboard {
    /// From here on, Ctrl-C does not end the process.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { interrupt: Interrupt::new()? })
    }
}

impl Read for Keyboard {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let stdin = io::stdin();
        loop {
            match self.interrupt.readable(stdin.as_fd(), Instant::now() + LONG)? {
                Woken::Readable => return Ok(nix::unistd::read(&stdin, buffer)?),
                Woken::Ended => return Ok(0),
                Woken::Due | Woken::Resized => {}
            }
        }
    }
}

/// Nobody waits as long for an answer; then the wait begins again.
const LONG: Duration = Duration::from_secs(3600);

/// While this value lives, the terminal does not show what is typed.
pub(super) struct Unseen {
    before: Termios,
}

impl Unseen {
    /// Stops the echo of standard input; `None` if it is no terminal.
    pub(super) fn begin() -> Option<Self> {
        let before = tcgetattr(io::stdin()).ok()?;
        let mut silent = before.clone();
        silent.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &silent).ok()?;
        Some(Self { before })
    }
}

impl Drop for Unseen {
    fn drop(&mut self) {
        // This fails if the terminal is gone.
        let _shown = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.before);
    }
}
