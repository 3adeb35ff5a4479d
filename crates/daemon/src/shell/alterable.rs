//! What a reload changes the system with.

use std::cell::Cell;
use std::rc::Rc;

use vpnd_device::{DeviceHold, DeviceLink, Families, Link, Netlink};

use crate::config::Running;
use crate::fingerprint::Fingerprints;
use crate::firewall::Rules;

/// The handles with which a reload changes the system, and what it has to know of the start.
pub(crate) struct Alterable {
    pub(crate) link: DeviceLink,
    /// Makes the task pause that maintains the device.
    pub(crate) hold: DeviceHold,
    pub(crate) rules: Option<Rules>,
    /// Asks the kernel in the device's network namespace.
    pub(crate) netlink: Netlink,
    /// The wanted state of the device at the start.
    pub(crate) first: Link,
    /// The families whose routes the kernel ignores while the device has no carrier.
    pub(crate) passed_over: Families,
    /// The device and the socket are in one network namespace.
    pub(crate) one_place: bool,
    pub(crate) running: Running,
    pub(crate) keys: Fingerprints,
    /// Whether the end finds a kill switch.
    pub(crate) kill_switch: Rc<Cell<bool>>,
}
