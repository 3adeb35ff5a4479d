//! Opens the device and negotiates its offloads with the kernel.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use thiserror::Error;

use crate::adopt::{self, Adopt, First, alone, attach};
use crate::layout::Transport;
use crate::make::any_socket;
use crate::persist::Owner;
use crate::wire::{
    ETHER_IPV4, ETHER_IPV6, ETHER_SERVICE_VLAN, ETHER_VLAN, ETHERNET_HEADER, VLAN_TAG,
};
use crate::{ioctl, probe};

/// Opens the device that `options` describes, and makes it if necessary. The device stays down.
///
/// # Errors
///
/// If the driver or a privilege is missing, the name is invalid, or the device is in use.
pub fn open(options: &Options) -> Result<Device, OpenError> {
    let name = options.name.as_deref().unwrap_or_else(|| options.mode.pattern());
    check_name(name)?;
    let First { file, name, adopted, claimed } = adopt::first(name, options)?;
    let files = attach_more(file, &name, options)?;
    alone(&name, files.len())?;
    let failed = |source| OpenError::Io { name: name.clone(), source };
    let offload = agree(&files, &name, options.offload).map_err(failed)?;
    let queue = |file| Queue { file: Arc::new(file), offload };
    let mut queues = files.into_iter().map(queue).collect();
    let writer = writer(&mut queues).map_err(failed)?;
    Ok(Device { name, queues, writer, adopted, claimed })
}

/// Which device to open, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The device's name; the kernel replaces `%d` in it with the first free number. `None` means `tun%d` or
    /// `tap%d`.
    pub name: Option<String>,
    /// Whether it carries packets or frames.
    pub mode: Mode,
    /// Whether to exchange super-packets and unfinished checksums with the kernel.
    pub offload: bool,
    /// The number of queues; more than one makes a `multi_queue` device.
    pub queues: u16,
    /// Whether an existing device may be opened.
    pub adopt: Adopt,
    /// Who may attach without a capability to a new device, or to an existing device that had no owner. If this
    /// names neither a user nor a group, only root.
    pub owner: Owner,
}

/// The kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// IP packets.
    Tun,
    /// Ethernet frames, without their check sequence.
    Tap,
}

impl Mode {
    pub(crate) const fn flag(self) -> i32 {
        match self {
            Self::Tun => libc::IFF_TUN,
            Self::Tap => libc::IFF_TAP,
        }
    }

    /// The name of a device for which the options specify none.
    pub(crate) const fn pattern(self) -> &'static str {
        match self {
            Self::Tun => "tun%d",
            Self::Tap => "tap%d",
        }
    }

    /// The number of bytes before the IP header of a packet without special headers.
    pub const fn prefix(self) -> usize {
        match self {
            Self::Tun => 0,
            Self::Tap => ETHERNET_HEADER,
        }
    }

    /// The length of the longest packet of a device with this MTU.
    pub const fn largest_packet(self, mtu: u16) -> u16 {
        match self {
            Self::Tun => mtu,
            Self::Tap => mtu.saturating_add(MAX_TAGGED),
        }
    }

    /// The mode's name, as in `ip tuntap`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Tun => "tun",
            Self::Tap => "tap",
        }
    }

    /// The position of the IP header of this packet, after any VLAN tags. `None` if it is not an IP packet.
    pub fn ip_start(self, packet: &[u8]) -> Option<usize> {
        if self == Self::Tun {
            return Some(0);
        }
        let mut at = ETHERNET_HEADER;
        loop {
            match u16::from_be_bytes(*packet.get(at - 2..)?.first_chunk()?) {
                ETHER_IPV4 | ETHER_IPV6 => return Some(at),
                ETHER_VLAN | ETHER_SERVICE_VLAN if at < MAX_TAGGED.into() => at += VLAN_TAG,
                _ => return None,
            }
        }
    }
}

/// The position of the IP header behind two tags.
const MAX_TAGGED: u16 = 22;

const _: () = assert!(MAX_TAGGED as usize == ETHERNET_HEADER + 2 * VLAN_TAG);

/// An open device. Unless it is persistent, it is deleted when the last queue is dropped.
#[derive(Debug)]
pub struct Device {
    /// The device's name, as the kernel reports it.
    pub name: String,
    /// The queues to read, at least one. The kernel assigns each flow to one of them.
    pub queues: Vec<Queue>,
    /// The queue for writing packets of any flow.
    pub writer: Queue,
    /// Whether the device existed before this process opened it.
    pub adopted: bool,
    /// The owner that the device was given, if it had none before.
    pub claimed: Option<Owner>,
}

/// The descriptors of a device, for another process that continues with it.
#[derive(Debug)]
pub struct Descriptors<'a> {
    /// The queues to read.
    pub queues: Vec<BorrowedFd<'a>>,
    /// The detached queue for writing, if there are several queues.
    pub writer: Option<BorrowedFd<'a>>,
}

impl Device {
    /// The descriptors of the device.
    pub fn descriptors(&self) -> Descriptors<'_> {
        let queues: Vec<_> = self.queues.iter().map(Queue::as_fd).collect();
        let writer = (queues.len() > 1).then(|| self.writer.as_fd());
        Descriptors { queues, writer }
    }
}

/// The offloads that the kernel agreed to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// Reads may return packets whose checksum we have to complete.
    pub checksum: bool,
    /// Reads may return TCP super-packets.
    pub read_tcp: bool,
    /// Reads may return UDP super-packets.
    pub read_udp: bool,
    /// The kernel accepts TCP super-packets.
    pub write_tcp: bool,
    /// The kernel accepts UDP super-packets.
    pub write_udp: bool,
}

/// One queue of a device, non-blocking; closed when its last clone is dropped.
#[derive(Clone, Debug)]
pub struct Queue {
    pub(crate) file: Arc<File>,
    pub(crate) offload: Offload,
}

impl Queue {
    /// Reads one header and packet. `buffer` must have [`READ_BUFFER`](crate::READ_BUFFER) bytes, because the
    /// kernel truncates a longer packet without an error.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if there is no packet or the link is down; EBADFD once the device was deleted; EINVAL
    /// if the kernel lost a packet that it could not describe, which affects only that packet.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self.file).read(buffer)
    }

    /// Writes one packet; the first slice is its encoded [`VnetHeader`](crate::VnetHeader).
    ///
    /// # Errors
    ///
    /// EINVAL for a header or packet that the kernel rejects, EIO while the link is down.
    pub fn write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        (&*self.file).write_vectored(slices)
    }

    /// The offloads that the kernel agreed to for this device.
    pub const fn offload(&self) -> Offload {
        self.offload
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Why the device could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The driver, or its device file, is missing.
    #[error(
        "cannot open {DRIVER}: this kernel or container has no TUN driver; load it with \
         `modprobe tun`, or hand {DRIVER} to the container (docker: --device {DRIVER})"
    )]
    NoDevice,
    /// Access to the driver is denied, or the device belongs to another user.
    #[error(
        "cannot open device {name:?} through {DRIVER}: permission denied; run as root or with \
         CAP_NET_ADMIN and read and write access to {DRIVER}, or use a persistent device that \
         belongs to this user"
    )]
    Permission {
        /// The device.
        name: String,
    },
    /// There is no such device, and CAP_NET_ADMIN is missing, which is needed to make it.
    #[error(
        "cannot make device {name:?}: CAP_NET_ADMIN is missing; start vpnd as root or as \
         vpnd@.service does, or have root make the device for this user: `vpnd tuntap add dev {name} \
         mode {} user NAME`", mode.word()
    )]
    MayNotMake {
        /// The device.
        name: String,
        /// Its mode.
        mode: Mode,
    },
    /// There is no such device, and the options forbid making one.
    #[error(
        "there is no device {name:?} in this network namespace, and none is to be made \
         (adopt = \"require\"); make it first: `vpnd tuntap add dev {name} mode {}`", mode.word()
    )]
    Missing {
        /// The device.
        name: String,
        /// Its mode.
        mode: Mode,
    },
    /// The name is in use, and the options ask for a new device.
    #[error(
        "there is an interface {name:?} already, and it is not to be taken (adopt = \"never\"); \
         delete it or choose another name"
    )]
    Exists {
        /// The interface.
        name: String,
    },
    /// Another process is attached to the only queue.
    #[error("device {name:?} is in use by another process; stop that one or choose another name")]
    Busy {
        /// The device.
        name: String,
    },
    /// Another process is attached to one of several queues.
    #[error(
        "somebody else is attached to device {name:?} by {queues} {}, and would get a share of its \
         packets; stop that program first (systemd-networkd: KeepCarrier=no), or delete the device",
        if *queues == 1 { "descriptor" } else { "descriptors" }
    )]
    Shared {
        /// The device.
        name: String,
        /// The number of descriptors of other processes.
        queues: u32,
    },
    /// Another process attached to the device every time it was made.
    #[error(
        "whenever device {name:?} was made, another user attached to it before it had an owner; find \
         that program, or close {DRIVER} to other users (chmod 0660), or set queues = 1"
    )]
    Contested {
        /// The device.
        name: String,
    },
    /// The queue did not get the requested flags.
    #[error(
        "device {name:?} does not have the packet header that vpnd asks for, as another program holds \
         it with one of its own; stop that program first"
    )]
    Header {
        /// The device.
        name: String,
    },
    /// An interface cannot have this name.
    #[error("{name:?} cannot name a device: 1 to 15 bytes without '/', ':' or white space")]
    Name {
        /// The requested name.
        name: String,
    },
    /// An interface of that name exists, but it is of another kind.
    #[error(
        "{name:?} exists and is another kind of device: not one of the TUN driver, or of the other \
         mode; choose another name"
    )]
    Kind {
        /// The device.
        name: String,
    },
    /// The options ask for several queues, but the device was made with one.
    #[error(
        "device {name:?} was made with one queue and cannot have more; set queues = 1, or make it \
         anew with `vpnd tuntap add … multi_queue`"
    )]
    SingleQueue {
        /// The device.
        name: String,
    },
    /// Anything else.
    #[error("cannot set up device {name:?} through {DRIVER}")]
    Io {
        /// The device.
        name: String,
        /// The kernel's error.
        source: io::Error,
    },
}

impl OpenError {
    pub(crate) fn attaching(name: &str, source: io::Error) -> Self {
        let name = name.to_owned();
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::Permission { name },
            Some(libc::EBUSY) => Self::Busy { name },
            Some(libc::EINVAL) => Self::Kind { name },
            _ => Self::Io { name, source },
        }
    }
}

pub(crate) fn check_name(name: &str) -> Result<(), OpenError> {
    let allowed = |b: u8| !b.is_ascii_whitespace() && !matches!(b, b'/' | b':' | 0);
    if name.len() < libc::IFNAMSIZ && name != "." && name != ".." && name.bytes().all(allowed) {
        return Ok(());
    }
    Err(OpenError::Name { name: name.to_owned() })
}

pub(crate) fn open_driver(name: &str) -> Result<File, OpenError> {
    let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
    let driver = OpenOptions::new().read(true).write(true).custom_flags(flags).open(DRIVER);
    driver.map_err(|e| match e.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => OpenError::NoDevice,
        _ => OpenError::attaching(name, e),
    })
}

/// Attaches the remaining queues, and one more for writing.
fn attach_more(first: File, name: &str, options: &Options) -> Result<Vec<File>, OpenError> {
    let (mut files, queues) = (vec![first], options.queues.into());
    while queues > 1 && files.len() <= queues {
        let file = open_driver(name)?;
        attach(&file, name, options.mode, true)?;
        files.push(file);
    }
    Ok(files)
}

/// Removes the second queue from `queues`, detaches it, and returns it for writing. A write to an attached
/// queue makes the kernel move the flow to that queue (`tun_flow_update` of tun.c), while packets of the flow
/// may still wait in another queue. A write to a detached queue does not move the flow, so its hash selects its
/// queue.
fn writer(queues: &mut Vec<Queue>) -> io::Result<Queue> {
    if let [only] = queues.as_slice() {
        return Ok(only.clone());
    }
    // Not the last queue: packets carry the number of the queue they were written to, which must exist.
    let writer = queues.remove(1);
    ioctl::detach_queue(writer.as_fd())?;
    Ok(writer)
}

/// Sets the packet header up on every queue and negotiates the offloads.
pub(crate) fn agree(files: &[File], name: &str, wanted: bool) -> io::Result<Offload> {
    for file in files {
        ioctl::set_vnet_header(file.as_fd(), true)?;
    }
    let device = &files[0];
    if !wanted {
        ioctl::set_offload(device.as_fd(), 0)?;
        return Ok(Offload::default());
    }
    let read = offer(device)?;
    let (write_tcp, write_udp) = probe(device, name)?;
    Ok(Offload { write_tcp, write_udp, ..read })
}

/// Requests everything first, then less. UDP super-packets need Linux 6.2.
fn offer(device: &File) -> io::Result<Offload> {
    let mut refused = io::ErrorKind::Unsupported.into();
    for features in [CSUM | TSO | USO, CSUM | TSO, CSUM, 0] {
        match ioctl::set_offload(device.as_fd(), features) {
            Ok(()) => return Ok(agreed(features)),
            Err(e) => refused = e,
        }
    }
    Err(refused)
}

fn agreed(features: u32) -> Offload {
    Offload {
        checksum: features & CSUM != 0,
        read_tcp: features & TSO != 0,
        read_udp: features & USO != 0,
        ..Offload::default()
    }
}

/// Which super-packets may be written. A device that is already up cannot be probed without sending one, so
/// this assumes that it accepts both; if it does not, the first write fails.
fn probe(device: &File, name: &str) -> io::Result<(bool, bool)> {
    if ioctl::link_flags(any_socket()?, name)? & libc::IFF_UP != 0 {
        return Ok((true, true));
    }
    Ok((probe::accepts(device, Transport::Tcp)?, probe::accepts(device, Transport::Udp)?))
}

const DRIVER: &str = "/dev/net/tun";
const CSUM: u32 = libc::TUN_F_CSUM;
const TSO: u32 = libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
const USO: u32 = libc::TUN_F_USO4 | libc::TUN_F_USO6;
