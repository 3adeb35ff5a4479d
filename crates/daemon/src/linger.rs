//! What becomes of a kill switch when vpnd is asked to stop. A stop opens it, a restart does not, and both begin with
//! the same signal.
//!
//! systemd is asked which of the two it is. Nobody else can be: then a child without keys or sockets stays behind,
//! which opens it after a few seconds, unless a start has taken it over by then.

use std::fs::OpenOptions;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::unistd::{ForkResult, dup2_stderr, dup2_stdin, dup2_stdout, fork, getpid, setsid};
use vpnd_device::Leftover;

use crate::systemd::{self, Job};

/// A restart takes less.
pub(crate) const WAIT: Duration = Duration::from_secs(3);

/// What becomes of a kill switch after a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterStop {
    /// It is taken away.
    Open,
    /// It is taken away a little later, unless there is a start by then.
    OpenLater,
    /// It stays for the next start.
    Shut,
}

/// Asks whoever may know.
pub(crate) async fn after_stop() -> AfterStop {
    match systemd::job().await {
        Some(Job::Restart) => {
            tracing::info!("the kill switch stays shut for the start that systemd has planned");
            AfterStop::Shut
        }
        Some(Job::Other) => AfterStop::Open,
        // All processes of a container end with its first.
        None if getpid().as_raw() == 1 => AfterStop::Open,
        None => {
            let seconds = WAIT.as_secs();
            tracing::info!("the kill switch opens in {seconds} s, unless vpnd is started by then");
            AfterStop::OpenLater
        }
    }
}

/// Leaves a child behind. Where there can be none, it waits itself.
pub(crate) fn open_later(leftover: Leftover) {
    // SAFETY: other threads there may be are tokio's for blocking work, of which none holds anything that the child
    // uses: it sleeps, and then reads, locks and writes descriptors of its own. It never returns.
    match unsafe { fork() } {
        Ok(ForkResult::Parent { .. }) => {}
        Ok(ForkResult::Child) => {
            detach();
            leftover.open_after(WAIT);
            // SAFETY: ends the process without the handlers and destructors that are the parent's business.
            unsafe { libc::_exit(0) }
        }
        Err(_) => leftover.open_after(WAIT),
    }
}

/// Whoever waits for our output to end does not wait for the child, and no terminal's signal reaches it.
fn detach() {
    let _leads_already = setsid();
    if let Ok(null) = OpenOptions::new().read(true).write(true).open("/dev/null") {
        let null = null.as_fd();
        let _kept = (dup2_stdin(null), dup2_stdout(null), dup2_stderr(null));
    }
}
