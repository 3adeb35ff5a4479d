//! The device's carrier: whether a cable seems to be plugged in. Links with none are `NO-CARRIER`, the
//! kernel sends nothing into them, and routing daemons take them for dead.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::ioctl;
use crate::open::Queue;

/// One device's carrier. The device stays for as long as this does.
#[derive(Debug)]
pub struct Carrier(OwnedFd);

impl Carrier {
    /// The carrier of the device that `queue` is of. The kernel has put it on when the queue was
    /// attached, and puts it off when nobody is attached any more.
    ///
    /// # Errors
    ///
    /// When the process has no descriptor left.
    pub fn of(queue: &Queue) -> io::Result<Self> {
        queue.as_fd().try_clone_to_owned().map(Self)
    }

    /// Puts it on or off, which takes no privilege. What is written into a device without carrier
    /// still arrives; what the kernel sends into it is lost.
    ///
    /// # Errors
    ///
    /// EINVAL before Linux 5.0, EBADFD once the device was deleted.
    pub fn set(&self, on: bool) -> io::Result<()> {
        ioctl::set_carrier(self.0.as_fd(), on)
    }
}
