//! The objects that a device lacks, and why.

use std::io;

use crate::error::errno;

/// One missing object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// An address, a rule or a route, as text.
    pub what: String,
    /// The kernel's error, as text.
    pub why: String,
}

impl Missing {
    /// Whether the object is missing only because the device is gone or down. The device's state is reported
    /// elsewhere, and the kernel sends a message when it changes.
    pub(crate) fn is_waiting_for_device(&self) -> bool {
        self.why == DOWN || self.why == GONE
    }
}

/// The reason why the kernel refuses an object. A missing object is tried again, so the text explains what has
/// to change first.
pub(crate) fn why(error: &rtnetlink::Error, is_v6: bool) -> String {
    let code = errno(error);
    match (code, is_v6) {
        (0, _) => error.to_string(),
        (libc::ENETDOWN, _) => DOWN.to_owned(),
        (libc::EEXIST, _) => "there is another route of the same metric".to_owned(),
        (libc::EACCES, true) => {
            "IPv6 is switched off on the device (sysctl net.ipv6.conf.DEVICE.disable_ipv6)"
                .to_owned()
        }
        (libc::EOPNOTSUPP | libc::EAFNOSUPPORT, true) => "the kernel has no IPv6".to_owned(),
        (libc::EINVAL | libc::ENODEV, true) => {
            "IPv6 is not there on the device: it needs an MTU of at least 1280".to_owned()
        }
        _ => io::Error::from_raw_os_error(code).to_string(),
    }
}

/// Not reported: an administrator has set the device down, and will set it up again.
pub(crate) const DOWN: &str = "the device is down";
/// The device does not exist, which is reported elsewhere.
pub(crate) const GONE: &str = "the device is gone, or in another network namespace";
