//! What the kernel refused, on what, and what to do about it.

use std::fmt;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;

/// Why a device is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection to the kernel.
    #[error("cannot open a netlink socket: {0}")]
    Connect(#[source] io::Error),
    /// There is no such device.
    #[error("there is no device {device}: it was removed, or is in another network namespace")]
    NoDevice {
        /// The device's name.
        device: String,
    },
    /// A peer address without an address of ours to go with it.
    #[error(
        "peer address {peer} has no address of ours beside it: each needs one of its own family"
    )]
    LonelyPeer {
        /// The peer's address.
        peer: IpAddr,
    },
    /// Every number that vpnd gives a routing table of its own is another's.
    #[error(
        "no routing table from 51820 to 51947 is free for the default route: give it a `table` of \
         its own, and the rules that lead there"
    )]
    NoTable,
    /// The kernel refused one step.
    #[error("{step} {device}: {source}{}", step.hint(.source))]
    Refused {
        /// What was tried.
        step: Step,
        /// On which device.
        device: String,
        /// What the kernel says.
        source: io::Error,
    },
}

/// One thing done to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Asking for its properties.
    Find,
    /// Setting its MTU.
    Mtu(u32),
    /// Setting the length of its queue.
    QueueLen(u32),
    /// Setting it up.
    Up,
    /// Making it a port of the bridge of this number; 0 is none.
    Bridge(u32),
    /// Adding an address.
    Address(IpNet),
    /// Adding a route.
    Route(IpNet),
    /// Adding the rule of this priority.
    Rule(u32),
}

impl Error {
    /// Whether a missing privilege is the reason.
    pub fn is_permission(&self) -> bool {
        matches!(self, Self::Refused { source, .. } if source.raw_os_error() == Some(libc::EPERM))
    }

    /// Whether something stands where this was to go.
    pub(crate) fn is_in_the_way(&self) -> bool {
        matches!(self, Self::Refused { source, .. } if source.raw_os_error() == Some(libc::EEXIST))
    }

    pub(crate) fn refused(step: Step, device: &str, error: &rtnetlink::Error) -> Self {
        let source = match errno(error) {
            0 => io::Error::other(error.to_string()),
            code => io::Error::from_raw_os_error(code),
        };
        Self::Refused { step, device: device.to_owned(), source }
    }
}

/// The kernel's error number, positive; 0 if there is none.
pub(crate) fn errno(error: &rtnetlink::Error) -> i32 {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.raw_code().saturating_abs(),
        _ => 0,
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Find => write!(f, "looking for"),
            Self::Mtu(mtu) => write!(f, "setting MTU {mtu} on"),
            Self::QueueLen(len) => write!(f, "setting txqueuelen {len} on"),
            Self::Up => write!(f, "setting up"),
            Self::Bridge(_) => write!(f, "making a port of its bridge of"),
            Self::Address(address) => write!(f, "adding address {address} to"),
            Self::Route(to) => write!(f, "adding route {to} to"),
            Self::Rule(priority) => write!(f, "adding the rule of priority {priority} for"),
        }
    }
}

impl Step {
    /// What usually is the matter.
    fn hint(self, error: &io::Error) -> &'static str {
        match (self, error.raw_os_error().unwrap_or_default()) {
            (_, libc::EPERM) => "; this needs CAP_NET_ADMIN",
            (Self::Route(_), libc::EEXIST) => {
                "; another route leads there: remove it, or give this one a `metric`"
            }
            (Self::Address(IpNet::V6(_)), libc::EACCES) => {
                "; IPv6 is switched off (sysctl net.ipv6.conf.DEVICE.disable_ipv6)"
            }
            (Self::Bridge(_), libc::EOPNOTSUPP) => "; what `bridge` names is no bridge",
            (Self::Address(IpNet::V6(_)), libc::EINVAL) => "; IPv6 needs an MTU of at least 1280",
            (_, libc::EOPNOTSUPP | libc::EAFNOSUPPORT) => "; this kernel is built without it",
            _ => "",
        }
    }
}
