//! Opens the device and agrees with the kernel on what crosses it.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use thiserror::Error;

use crate::adopt::{self, Adopt, First, alone, attach};
use crate::flow::{ETHER_IPV4, ETHER_IPV6};
use crate::layout::Transport;
use crate::make::any_socket;
use crate::persist::Owner;
use crate::{ioctl, probe};

/// Opens the device that `options` describe, creating it if it is not there. It stays down.
///
/// # Errors
///
/// When the driver, the privilege or the name is missing, or the device is taken.
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

/// Which device to open.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its name; `%d` in it stands for the first free number, and absent it is `tun%d` or `tap%d`.
    pub name: Option<String>,
    /// What crosses it.
    pub mode: Mode,
    /// Whether to exchange super-packets and unfinished checksums with the kernel.
    pub offload: bool,
    /// How many queues to read; more than one makes a `multi_queue` device.
    pub queues: u16,
    /// Whether one that is there is taken.
    pub adopt: Adopt,
    /// Who may attach to one that is made, or that was anybody's, without a capability; root alone where both
    /// are absent.
    pub owner: Owner,
}

/// What crosses the device.
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

    /// The name of a device that is given none.
    pub(crate) const fn pattern(self) -> &'static str {
        match self {
            Self::Tun => "tun%d",
            Self::Tap => "tap%d",
        }
    }

    /// Bytes in front of the IP header where nothing special stands there.
    pub const fn prefix(self) -> usize {
        match self {
            Self::Tun => 0,
            Self::Tap => ETHERNET_HEADER,
        }
    }

    /// The longest that crosses a device of this MTU.
    pub const fn largest_packet(self, mtu: u16) -> u16 {
        match self {
            Self::Tun => mtu,
            Self::Tap => mtu.saturating_add(MAX_TAGGED),
        }
    }

    /// Its name, as `ip tuntap` has it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Tun => "tun",
            Self::Tap => "tap",
        }
    }

    /// Where the IP header of this packet begins: behind the tags of virtual LANs, if there are any.
    /// `None` if it carries something else.
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

/// Two addresses and a type.
const ETHERNET_HEADER: usize = 14;
const VLAN_TAG: usize = 4;
/// Behind two tags.
const MAX_TAGGED: u16 = 22;

const _: () = assert!(MAX_TAGGED as usize == ETHERNET_HEADER + 2 * VLAN_TAG);
const ETHER_VLAN: u16 = 0x8100;
const ETHER_SERVICE_VLAN: u16 = 0x88a8;

/// An open device. It goes when the last queue is dropped, unless it is persistent.
#[derive(Debug)]
pub struct Device {
    /// Its name as the kernel has it.
    pub name: String,
    /// Its queues to read, at least one. The kernel keeps a flow on one of them.
    pub queues: Vec<Queue>,
    /// Where to write to, whatever the flow.
    pub writer: Queue,
    /// Whether it was there before, made by others.
    pub adopted: bool,
    /// Whom it was given to, if it was anybody's before.
    pub claimed: Option<Owner>,
}

/// What the kernel agreed to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// Reads may return packets whose checksum is left to us.
    pub checksum: bool,
    /// Reads may return TCP super-packets.
    pub read_tcp: bool,
    /// Reads may return UDP super-packets.
    pub read_udp: bool,
    /// Writes of TCP super-packets are taken.
    pub write_tcp: bool,
    /// Writes of UDP super-packets are taken.
    pub write_udp: bool,
}

/// One queue of a device, non-blocking; closed when its last clone is dropped.
#[derive(Clone, Debug)]
pub struct Queue {
    file: Arc<File>,
    offload: Offload,
}

impl Queue {
    /// Reads one header and packet. `buffer` must hold [`READ_BUFFER`](crate::READ_BUFFER) bytes,
    /// as a longer packet would be cut off without any sign.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when there is none or the link is down; EBADFD once the device was deleted;
    /// EINVAL when the kernel lost a packet it could not describe, which concerns only that one.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self.file).read(buffer)
    }

    /// Writes one packet; the first slice is its encoded [`VnetHeader`](crate::VnetHeader).
    ///
    /// # Errors
    ///
    /// EINVAL for a header or packet the kernel does not take, EIO while the link is down.
    pub fn write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        (&*self.file).write_vectored(slices)
    }

    /// What the kernel agreed to for this device.
    pub const fn offload(&self) -> Offload {
        self.offload
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Why there is no device.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The driver, or the way to it, is missing.
    #[error(
        "cannot open {DRIVER}: this kernel or container has no TUN driver; load it with \
         `modprobe tun`, or hand {DRIVER} to the container (docker: --device {DRIVER})"
    )]
    NoDevice,
    /// The way to the driver is closed, or the device belongs to another user.
    #[error(
        "cannot open device {name:?} through {DRIVER}: permission denied; run as root or with \
         CAP_NET_ADMIN and read and write access to {DRIVER}, or use a persistent device that \
         belongs to this user"
    )]
    Permission {
        /// The device.
        name: String,
    },
    /// There is no such device, and CAP_NET_ADMIN to make it is missing.
    #[error(
        "cannot make device {name:?}: CAP_NET_ADMIN is missing; start vpnd as root or as \
         vpnd@.service does, or have root make the device for this user: `vpnd tuntap add dev {name} \
         mode {} user NAME`", mode.word()
    )]
    MayNotMake {
        /// The device.
        name: String,
        /// What crosses it.
        mode: Mode,
    },
    /// There is no such device, and none is to be made.
    #[error(
        "there is no device {name:?} in this network namespace, and none is to be made \
         (adopt = \"require\"); make it first: `vpnd tuntap add dev {name} mode {}`", mode.word()
    )]
    Missing {
        /// The device.
        name: String,
        /// What crosses it.
        mode: Mode,
    },
    /// The name is taken, and the device is to be a new one.
    #[error(
        "there is an interface {name:?} already, and it is not to be taken (adopt = \"never\"); \
         delete it or choose another name"
    )]
    Exists {
        /// The interface.
        name: String,
    },
    /// Another process is attached.
    #[error("device {name:?} is in use by another process; stop that one or choose another name")]
    Busy {
        /// The device.
        name: String,
    },
    /// Somebody else is attached to one of several queues.
    #[error(
        "somebody else is attached to device {name:?} by {queues} {}, and would get a share of its \
         packets; stop that program first (systemd-networkd: KeepCarrier=no), or delete the device",
        if *queues == 1 { "descriptor" } else { "descriptors" }
    )]
    Shared {
        /// The device.
        name: String,
        /// How many descriptors are not ours.
        queues: u32,
    },
    /// Somebody else attached whenever it was made.
    #[error(
        "whenever device {name:?} was made, another user attached to it before it had an owner; find \
         that program, or close {DRIVER} to other users (chmod 0660), or set queues = 1"
    )]
    Contested {
        /// The device.
        name: String,
    },
    /// The kernel did not give the queue what it was asked for.
    #[error(
        "device {name:?} does not have the packet header that vpnd asks for, as another program holds \
         it with one of its own; stop that program first"
    )]
    Header {
        /// The device.
        name: String,
    },
    /// Not a name an interface can have.
    #[error("{name:?} cannot name a device: 1 to 15 bytes without '/', ':' or white space")]
    Name {
        /// What was asked for.
        name: String,
    },
    /// There is an interface of that name, but it is something else.
    #[error(
        "{name:?} exists and is another kind of device: not one of the TUN driver, or of the other \
         mode; choose another name"
    )]
    Kind {
        /// The device.
        name: String,
    },
    /// More queues were asked for than the one it was made with.
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
        /// What the kernel said.
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

/// Attaches the rest of several queues, and one more, to write to.
fn attach_more(first: File, name: &str, options: &Options) -> Result<Vec<File>, OpenError> {
    let (mut files, queues) = (vec![first], options.queues.into());
    while queues > 1 && files.len() <= queues {
        let file = open_driver(name)?;
        attach(&file, name, options.mode, true)?;
        files.push(file);
    }
    Ok(files)
}

/// Takes the second of several queues, to write to, and detaches it. A write to an attached one tells
/// the kernel that the flow belongs there (`tun_flow_update` of tun.c), which moves it while packets of
/// it still wait elsewhere; of one to a detached queue it learns nothing, and a flow stays where its
/// hash puts it.
fn writer(queues: &mut Vec<Queue>) -> io::Result<Queue> {
    if let [only] = queues.as_slice() {
        return Ok(only.clone());
    }
    // Not the last: its number goes with what is written, and must be that of a queue there is.
    let writer = queues.remove(1);
    ioctl::detach_queue(writer.as_fd())?;
    Ok(writer)
}

/// Sets the header up on every queue and finds out what may stand in it.
fn agree(files: &[File], name: &str, wanted: bool) -> io::Result<Offload> {
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

/// Asks for the most first: UDP super-packets came with Linux 6.2.
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

/// Which super-packets may be written. A device that is already up cannot be asked without
/// sending one; it is trusted, and a refusal shows at the first write.
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
