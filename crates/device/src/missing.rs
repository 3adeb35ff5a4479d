//! What a device lacks of what it should have, and why.

use std::io;

use crate::error::errno;

/// One thing that is not there, though it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// An address, a rule or a route, in words.
    pub what: String,
    /// What the kernel says to it, in words.
    pub why: String,
}

impl Missing {
    /// What is missing for want of the device, or of one that is up, is no news: that is told elsewhere. The kernel
    /// tells when there is one, too.
    pub(crate) fn is_waiting_for_device(&self) -> bool {
        self.why == DOWN || self.why == GONE
    }
}

/// Why the kernel refuses something of IPv6, or of IPv4. A missing one is tried again, so this says what to wait for.
pub(crate) fn why(error: &rtnetlink::Error, is_v6: bool) -> String {
    let code = errno(error);
    match (code, is_v6) {
        (0, _) => error.to_string(),
        (libc::ENETDOWN, _) => DOWN.to_owned(),
        (libc::EEXIST, _) => "another route of the same metric has its place".to_owned(),
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

/// What is no trouble of ours to tell: an administrator sets a device down, and up again.
pub(crate) const DOWN: &str = "the device is down";
/// Where there is no device, which others tell of.
pub(crate) const GONE: &str = "the device is gone, or in another network namespace";
