//! Whether a device still exists. One that was moved to another network namespace does, though its own
//! namespace is told the same as of one that was deleted.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vpnd_tun::Queue;

/// One device, wherever it is. It stays for as long as this does, unless somebody deletes it.
#[derive(Debug)]
pub(crate) struct Presence(OwnedFd);

impl Presence {
    /// The device that `queue` is of.
    ///
    /// # Errors
    ///
    /// When the process has no descriptor left.
    pub(crate) fn of(queue: &Queue) -> io::Result<Self> {
        queue.as_fd().try_clone_to_owned().map(Self)
    }

    /// Whether nobody has deleted it: the kernel reports an error on a descriptor that has lost its device.
    pub(crate) fn is_there(&self) -> bool {
        let mut polled = [PollFd::new(self.0.as_fd(), PollFlags::empty())];
        let answered = poll(&mut polled, PollTimeout::ZERO).is_ok();
        let failed = polled[0].revents().is_some_and(|found| found.contains(PollFlags::POLLERR));
        answered && !failed
    }
}
