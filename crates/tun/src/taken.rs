//! Takes over a device from a descriptor that another program has opened. The flags of that descriptor, such as the
//! header of each packet, cannot be changed. So the device is kept, the descriptor is closed, and the device is opened
//! again with flags of our own.

use std::os::fd::{AsFd, OwnedFd};

use crate::ioctl;
use crate::open::{Device, OpenError};
use crate::persist::{self, PersistError, refused};

/// `IFF_PERSIST` of `if_tun.h`: the device outlives its last descriptor.
const PERSISTENT: i32 = 0x0800;

/// A device whose descriptor is closed, and which exists until it is opened again.
#[derive(Debug)]
pub struct Taken {
    name: String,
    was_persistent: bool,
}

impl Taken {
    /// Keeps the device of `held`, and closes the descriptor.
    ///
    /// # Errors
    ///
    /// If no device is attached to the descriptor, or the kernel refuses.
    pub fn from(held: OwnedFd) -> Result<Self, PersistError> {
        let found = ioctl::attached(held.as_fd()).map_err(refused("name", "of a descriptor"))?;
        let (name, flags) = found;
        persist::keep(&held, &name)?;
        Ok(Self { name, was_persistent: flags & PERSISTENT != 0 })
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Lets the device end with its last descriptor again, if it was so before. If it could not be opened, that is now.
    ///
    /// # Errors
    ///
    /// The error with which it could not be opened.
    pub fn opened(self, opened: Result<Device, OpenError>) -> Result<Device, OpenError> {
        if self.was_persistent {
            return opened;
        }
        let failed = |source| OpenError::Io { name: self.name.clone(), source };
        match opened {
            Ok(device) => {
                ioctl::set_persistent(device.queues[0].as_fd(), false).map_err(failed)?;
                Ok(Device { adopted: false, ..device })
            }
            Err(error) => {
                // It may be gone already.
                let _gone = persist::remove(&self.name, None);
                Err(error)
            }
        }
    }
}
