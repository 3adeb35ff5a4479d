//! The device's carrier, which is on if a cable seems to be plugged in. A link without carrier is `NO-CARRIER`:
//! the kernel sends nothing into it, and routing daemons consider it down.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::ioctl;
use crate::open::Queue;

/// The carrier of one device. The device exists at least as long as this value.
#[derive(Debug)]
pub struct Carrier(OwnedFd);

impl Carrier {
    /// The carrier of the device of `queue`. The kernel turns it on when the first queue is attached, and off
    /// when the last one is gone.
    ///
    /// # Errors
    ///
    /// If the process has no descriptor left.
    pub fn of(queue: &Queue) -> io::Result<Self> {
        queue.as_fd().try_clone_to_owned().map(Self)
    }

    /// Turns the carrier on or off, which needs no privilege. Packets that are written into a device without
    /// carrier still arrive; packets that the kernel sends into it are lost.
    ///
    /// # Errors
    ///
    /// EINVAL before Linux 5.0, EBADFD once the device was deleted.
    pub fn set(&self, on: bool) -> io::Result<()> {
        ioctl::set_carrier(self.0.as_fd(), on)
    }
}
