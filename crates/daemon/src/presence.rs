//! Whether a device still exists. A device that was moved to another network namespace still exists, although
//! the kernel reports in the old namespace that it was deleted.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vpnd_tun::Queue;

/// A device in any namespace. The device exists at least as long as this value, unless somebody deletes it.
#[derive(Debug)]
pub(crate) struct Presence(OwnedFd);

impl Presence {
    /// The device of `queue`.
    ///
    /// # Errors
    ///
    /// If the process has no descriptor left.
    pub(crate) fn of(queue: &Queue) -> io::Result<Self> {
        queue.as_fd().try_clone_to_owned().map(Self)
    }

    /// Whether the device still exists: the kernel reports an error on a descriptor whose device was deleted.
    pub(crate) fn is_there(&self) -> bool {
        let mut polled = [PollFd::new(self.0.as_fd(), PollFlags::empty())];
        let answered = poll(&mut polled, PollTimeout::ZERO).is_ok();
        let failed = polled[0].revents().is_some_and(|found| found.contains(PollFlags::POLLERR));
        answered && !failed
    }
}
