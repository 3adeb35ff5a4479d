//! Lets the event loop wait for a descriptor that somebody else reads.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor of our own for the same open file as `fd`, for tokio to watch.
///
/// # Errors
/// When there is no descriptor left.
pub(crate) fn watch(fd: BorrowedFd<'_>) -> io::Result<AsyncFd<OwnedFd>> {
    watch_for(fd, Interest::READABLE | Interest::WRITABLE)
}

/// As [`watch`], for some events only.
///
/// # Errors
/// When there is no descriptor left.
pub(crate) fn watch_for(fd: BorrowedFd<'_>, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    let fd = fd.try_clone_to_owned()?;
    // SAFETY: `OwnedFd` names one open file from here until `AsyncFd` drops it, and gives it to
    // nobody who could close it.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}
