//! Errors of the kernel, with the step that failed, the device and advice.

use std::fmt;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;

use crate::controller::Kind;

/// Why a device could not be set up.
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
    /// A peer address without an address of ours of the same family.
    #[error("peer_address {peer} needs a local address of the same family")]
    LonelyPeer {
        /// The peer's address.
        peer: IpAddr,
    },
    /// The controller that the device is to become a port of does not exist.
    #[error(
        "there is no {kind} {name} in the device's network namespace; make it first, as \
         `ip link add {name} type {kind}` does"
    )]
    NoController {
        /// The controller's name.
        name: String,
        /// The required kind.
        kind: Kind,
    },
    /// The controller that the device is to become a port of is of another kind.
    #[error("{name} is no {kind}; [interface] {kind} names one that is there")]
    NotA {
        /// The controller's name.
        name: String,
        /// The required kind.
        kind: Kind,
    },
    /// Every number that vpnd uses for its own routing tables is in use.
    #[error(
        "no routing table from 51820 to 51904 is free for the default route: give it a `table` of \
         its own, and the rules that lead there"
    )]
    NoTable,
    /// The task that keeps the device in its configured state has ended.
    #[error("the device is not kept as it should be any more, which is a bug; start vpnd again")]
    NotKept,
    /// The kernel refused one step.
    #[error("{step} {device}: {error}{}", step.hint(device, .error))]
    Refused {
        /// The step.
        step: Step,
        /// The device.
        device: String,
        /// The kernel's error.
        error: io::Error,
    },
}

/// One step of setting up a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Asking for its properties.
    Find,
    /// Setting its hardware address.
    Mac([u8; 6]),
    /// Setting whether it accepts multicast.
    Multicast(bool),
    /// Setting its MTU.
    Mtu(u32),
    /// Setting the length of its queue.
    QueueLen(u32),
    /// Setting it up.
    Up,
    /// Making it a port of the bridge with this index; 0 is none.
    Bridge(u32),
    /// Making it a port of the VRF with this index.
    Vrf(u32),
    /// Setting its path cost in its bridge's spanning tree.
    Cost(u32),
    /// Adding an address, with its far end.
    Address(IpNet, Option<IpAddr>),
    /// Adding a route.
    Route(IpNet),
    /// Adding a route each time the peer becomes alive, and removing it when the peer is dead.
    Follow(IpNet),
    /// Adding the rule with this priority.
    Rule(u32),
}

impl Error {
    /// Whether a missing privilege is the reason.
    pub fn is_permission(&self) -> bool {
        matches!(self, Self::Refused { error, .. } if error.raw_os_error() == Some(libc::EPERM))
    }

    /// The key of the configuration that it is about.
    pub const fn key(&self) -> &'static str {
        match self {
            Self::LonelyPeer { .. } => "[interface] peer_address",
            Self::NoController { kind, .. } | Self::NotA { kind, .. } => kind.key(),
            Self::NoTable => "[[route]]",
            Self::Refused { step, .. } => step.key(),
            Self::Connect(_) | Self::NoDevice { .. } | Self::NotKept => "[interface]",
        }
    }

    /// Whether it fails because another object already has this place.
    pub(crate) fn is_in_the_way(&self) -> bool {
        matches!(self, Self::Refused { error, .. } if error.raw_os_error() == Some(libc::EEXIST))
    }

    pub(crate) fn refused(step: Step, device: &str, error: &rtnetlink::Error) -> Self {
        let error = match errno(error) {
            0 => io::Error::other(error.to_string()),
            code => io::Error::from_raw_os_error(code),
        };
        Self::Refused { step, device: device.to_owned(), error }
    }
}

/// Whether IPv6 is switched off on the device, or missing in the kernel: the step may succeed later.
pub(crate) fn is_off(family: AddressFamily, error: &rtnetlink::Error) -> bool {
    family == AddressFamily::Inet6
        && [libc::EACCES, libc::EOPNOTSUPP, libc::EAFNOSUPPORT].contains(&errno(error))
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
            Self::Mac(mac) => write!(f, "setting address {} of", shown(*mac)),
            Self::Multicast(on) => write!(f, "setting multicast {} on", switch(*on)),
            Self::Mtu(mtu) => write!(f, "setting MTU {mtu} on"),
            Self::QueueLen(len) => write!(f, "setting txqueuelen {len} on"),
            Self::Up => write!(f, "setting up"),
            Self::Bridge(_) => write!(f, "making a port of its bridge of"),
            Self::Vrf(_) => write!(f, "making a port of its VRF of"),
            Self::Cost(cost) => write!(f, "setting spanning tree cost {cost} on"),
            Self::Address(address, _) => write!(f, "adding address {address} to"),
            Self::Route(to) => write!(f, "adding route {to} to"),
            Self::Follow(to) => write!(f, "letting the peer decide on route {to} of"),
            Self::Rule(priority) => write!(f, "adding the rule of priority {priority} for"),
        }
    }
}

impl Step {
    const fn key(self) -> &'static str {
        match self {
            Self::Find | Self::Up => "[interface]",
            Self::Mac(_) => "[interface] mac",
            Self::Multicast(_) => "[interface] multicast",
            Self::Mtu(_) => "[interface] mtu",
            Self::QueueLen(_) => "[interface] txqueuelen",
            Self::Bridge(_) => Kind::Bridge.key(),
            Self::Vrf(_) => Kind::Vrf.key(),
            Self::Cost(_) => "[interface] stp_cost",
            Self::Address(..) => "[interface] address",
            Self::Route(_) | Self::Follow(_) | Self::Rule(_) => "[[route]]",
        }
    }

    /// The usual cause, and advice.
    fn hint(self, device: &str, error: &io::Error) -> String {
        let code = error.raw_os_error().unwrap_or_default();
        match (self.as_root(device), code) {
            (Some(command), libc::EPERM) => {
                format!("; this needs CAP_NET_ADMIN, or to be done before, as root: `{command}`")
            }
            (None, libc::EPERM) if matches!(self, Self::Follow(_)) => {
                "; this needs CAP_NET_ADMIN, which `when_down = \"keep\"` does not".to_owned()
            }
            (None, libc::EPERM) => "; this needs CAP_NET_ADMIN".to_owned(),
            _ => self.other_hint(code).to_owned(),
        }
    }

    /// An equivalent `ip` command.
    fn as_root(self, device: &str) -> Option<String> {
        let set = |what: String| Some(format!("ip link set {device} {what}"));
        match self {
            Self::Find => None,
            Self::Mac(mac) => set(format!("address {}", shown(mac))),
            Self::Multicast(on) => set(format!("multicast {}", switch(on))),
            Self::Mtu(mtu) => set(format!("mtu {mtu}")),
            Self::QueueLen(len) => set(format!("txqueuelen {len}")),
            Self::Up => set("up".to_owned()),
            Self::Bridge(_) => set("master BRIDGE".to_owned()),
            Self::Vrf(_) => set("master VRF".to_owned()),
            Self::Cost(cost) => set(format!("type bridge_slave cost {cost}")),
            Self::Address(ours, None) => Some(format!("ip address add {ours} dev {device}")),
            Self::Address(ours, Some(peer)) => {
                let (own, len) = (ours.addr(), ours.prefix_len());
                Some(format!("ip address add {own} peer {peer}/{len} dev {device}"))
            }
            Self::Route(to) => Some(format!("ip route add {to} dev {device}")),
            // If an administrator added the route beforehand, it would exist even while the peer is dead.
            Self::Follow(_) | Self::Rule(_) => None,
        }
    }

    fn other_hint(self, code: i32) -> &'static str {
        match (self, code) {
            (Self::Route(_), libc::EEXIST) => {
                "; another route leads there: remove it, or give this one a `metric`"
            }
            (Self::Address(IpNet::V6(_), _), libc::EACCES) => {
                "; IPv6 is switched off (sysctl net.ipv6.conf.DEVICE.disable_ipv6)"
            }
            (Self::Mac(_), libc::EADDRNOTAVAIL) => "; no device can have this one",
            (Self::Address(IpNet::V6(_), _), libc::EINVAL) => {
                "; IPv6 needs an MTU of at least 1280"
            }
            (_, libc::EOPNOTSUPP | libc::EAFNOSUPPORT) => "; this kernel is built without it",
            _ => "",
        }
    }
}

fn shown(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

const fn switch(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}
