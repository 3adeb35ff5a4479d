//! Lets the event loop wait for a descriptor that other code reads.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Duplicates `fd`, for tokio to watch.
///
/// # Errors
///
/// If the process has no descriptor left.
pub(crate) fn watch(fd: BorrowedFd<'_>) -> io::Result<AsyncFd<OwnedFd>> {
    watch_for(fd, Interest::READABLE | Interest::WRITABLE)
}

/// Like [`watch`], for some events only.
///
/// # Errors
/// If the process has no descriptor left.
pub(crate) fn watch_for(fd: BorrowedFd<'_>, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    let fd = fd.try_clone_to_owned()?;
    // SAFETY: `OwnedFd` refers to one open file until `AsyncFd` drops it, and nothing else can close it.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}
