//! Opens the socket: family, options of both levels, buffers, address.

use std::ffi::c_int;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use socket2::{Domain, SockAddr, Socket, Type};

use super::sys::{self, IntOption};
use super::{Egress, gro, pktinfo, tos};

/// Where to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// On every address of both families; port 0 is any free port.
    Port(u16),
    /// On one address.
    Address(SocketAddr),
}

impl Listen {
    /// Whether the port is configured, and not chosen by the kernel.
    pub const fn is_fixed(self) -> bool {
        match self {
            Self::Port(port) => port != 0,
            Self::Address(address) => address.port() != 0,
        }
    }
}

/// Whether several datagrams are sent and received in one call (GSO, GRO).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gso {
    /// If the kernel can; not for a batch that this kernel is known to segment wrongly.
    #[default]
    Auto,
    /// If the kernel can.
    On,
    /// Never: each datagram is sent and received by itself.
    Off,
}

/// The settings of a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Size of the receive buffer in bytes.
    pub receive_buffer: usize,
    /// Size of the send buffer in bytes.
    pub send_buffer: usize,
    /// Whether to send and receive whole batches if the kernel can.
    pub gso: Gso,
    /// The settings that affect routes.
    pub egress: Egress,
}

/// Why the socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The port is in use.
    #[error("UDP {at} is already in use: stop what listens there, or choose another `listen`")]
    InUse {
        /// The requested address.
        at: SocketAddr,
    },
    /// The address is not one of ours.
    #[error(
        "cannot listen on UDP {at}: no interface has this address; correct `listen` or give only a port"
    )]
    NotOurs {
        /// The requested address.
        at: SocketAddr,
    },
    /// The port is below 1024, and the privilege for it is missing.
    #[error(
        "cannot listen on UDP {at}: ports below 1024 need CAP_NET_BIND_SERVICE; grant it, or \
         choose another `listen`"
    )]
    Privilege {
        /// The requested address.
        at: SocketAddr,
    },
    /// The kernel refused the address for another reason.
    #[error("cannot listen on UDP {at}: {source}")]
    Bind {
        /// The requested address.
        at: SocketAddr,
        /// The kernel's error.
        source: io::Error,
    },
    /// The kernel refuses the mark.
    #[error(
        "cannot mark the UDP socket with {mark:#x} (SO_MARK): {source}; it takes CAP_NET_ADMIN: grant \
         it, or remove [socket] fwmark"
    )]
    Mark {
        /// The requested mark.
        mark: u32,
        /// The kernel's error.
        source: io::Error,
    },
    /// No interface has this name.
    #[error(
        "cannot bind the UDP socket to `{device}` (SO_BINDTODEVICE): there is no such interface; \
         create it first, or correct [socket] bind_device"
    )]
    NoDevice {
        /// The requested name.
        device: String,
    },
    /// The kernel refused the interface for another reason.
    #[error("cannot bind the UDP socket to `{device}` (SO_BINDTODEVICE): {source}")]
    Device {
        /// The requested name.
        device: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// The source address is not one of ours.
    #[error(
        "cannot send from {address}: no interface has this address; add it to one first, or correct \
         [socket] source"
    )]
    SourceNotOurs {
        /// The requested address.
        address: IpAddr,
    },
    /// The kernel refused the source address for another reason.
    #[error("cannot send from {address}: {source}; correct [socket] source, or remove it")]
    Source {
        /// The requested address.
        address: IpAddr,
        /// The kernel's error.
        source: io::Error,
    },
    /// The socket of an earlier process is bound to another address.
    #[error("the socket of the earlier process is bound to another address")]
    Another,
    /// The kernel refuses to open any socket.
    #[error("cannot open a UDP socket: {0}")]
    Open(#[source] io::Error),
    /// The kernel lacks an option that the data path needs.
    #[error("cannot set {label} on the UDP socket: {source}; Linux 5.12 or newer is needed")]
    Option {
        /// The option's name.
        label: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
}

pub(super) struct Bound {
    pub(super) socket: Socket,
    pub(super) dual_stack: bool,
    pub(super) local_port: u16,
    pub(super) at: SocketAddr,
}

const ONLY_V6: IntOption =
    IntOption { level: libc::SOL_IPV6, name: libc::IPV6_V6ONLY, label: "IPV6_V6ONLY" };
const DISCOVER_V4: IntOption =
    IntOption { level: libc::SOL_IP, name: libc::IP_MTU_DISCOVER, label: "IP_MTU_DISCOVER" };
const DISCOVER_V6: IntOption =
    IntOption { level: libc::SOL_IPV6, name: libc::IPV6_MTU_DISCOVER, label: "IPV6_MTU_DISCOVER" };
const FREE_V4: IntOption =
    IntOption { level: libc::SOL_IP, name: libc::IP_FREEBIND, label: "IP_FREEBIND" };
const FREE_V6: IntOption =
    IntOption { level: libc::SOL_IPV6, name: libc::IPV6_FREEBIND, label: "IPV6_FREEBIND" };
const RECEIVE_FORCE: IntOption =
    IntOption { level: libc::SOL_SOCKET, name: libc::SO_RCVBUFFORCE, label: "SO_RCVBUFFORCE" };
const SEND_FORCE: IntOption =
    IntOption { level: libc::SOL_SOCKET, name: libc::SO_SNDBUFFORCE, label: "SO_SNDBUFFORCE" };

/// Options for every socket; the IPv4 options also apply to the v4-mapped traffic of a dual-stack socket. With
/// `OMIT` the outer DF bit stays clear, as with WireGuard, and no send fails because of a path MTU that the
/// kernel learnt from ICMP, perhaps for another program. With `DONT`, the kernel would refuse batches for ten
/// minutes after an ICMP message. [`WHOLE`] replaces it once the path is probed.
const OPTIONS: [(IntOption, c_int); 3] =
    [(pktinfo::OPTION_V4, 1), (tos::OPTION_V4, 1), (DISCOVER_V4, libc::IP_PMTUDISC_OMIT)];
const OPTIONS_V6: [(IntOption, c_int); 3] =
    [(pktinfo::OPTION_V6, 1), (tos::OPTION_V6, 1), (DISCOVER_V6, libc::IPV6_PMTUDISC_PROBE)];

/// The DF bit is set, and like with `OMIT` only the first link's MTU makes a send fail (`ip_sk_use_pmtu`).
pub(super) const WHOLE: (IntOption, c_int) = (DISCOVER_V4, libc::IP_PMTUDISC_PROBE);
/// The DF bit is clear: routers on the path may fragment.
pub(super) const IN_PARTS: (IntOption, c_int) = (DISCOVER_V4, libc::IP_PMTUDISC_OMIT);

/// Over IPv6 only the sender fragments. `PROBE` ignores ICMPv6 when sending, as `OMIT` does, and stores what
/// ICMPv6 reported in the routing table, where it can be looked up. But it makes no fragments.
pub(super) const HEARING: (IntOption, c_int) = (DISCOVER_V6, libc::IPV6_PMTUDISC_PROBE);
/// The value that makes fragments.
pub(super) const FRAGMENTING: (IntOption, c_int) = (DISCOVER_V6, libc::IPV6_PMTUDISC_OMIT);
/// The largest IPv6 packet that is sent unfragmented; 0 means the MTU of the first link.
pub(super) const FRAGMENTS: IntOption =
    IntOption { level: libc::SOL_IPV6, name: libc::IPV6_MTU, label: "IPV6_MTU" };

pub(super) fn bind(listen: Listen, wanted: &Options) -> Result<Bound, BindError> {
    let (socket, at) = open(listen)?;
    if at.is_ipv6() {
        set(&socket, ONLY_V6, 0)?;
    }
    set_up(&socket, at, wanted)?;
    wanted.egress.set(&socket)?;
    socket.set_nonblocking(true).map_err(BindError::Open)?;
    bind_to(&socket, at)?;
    let local_port = socket.local_addr().map_err(BindError::Open)?.as_socket();
    let local_port = local_port.map_or(0, |local| local.port());
    Ok(Bound { socket, dual_stack: at.is_ipv6(), local_port, at })
}

/// Takes over the socket of an earlier process, if it is bound where `listen` says. What waits in its buffer stays.
///
/// # Errors
///
/// [`BindError::Another`] if it is bound to another address, or as [`bind`].
pub(super) fn inherit(
    socket: OwnedFd,
    listen: Listen,
    wanted: &Options,
) -> Result<Bound, BindError> {
    let socket = Socket::from(socket);
    let local = socket.local_addr().map_err(BindError::Open)?.as_socket();
    let local = local.ok_or(BindError::Another)?;
    let (at, is_there) = match listen {
        Listen::Address(at) => (at, at.ip() == local.ip()),
        Listen::Port(port) => {
            (SocketAddr::new(unspecified(local), port), local.ip().is_unspecified())
        }
    };
    if !is_there || (listen.is_fixed() && at.port() != local.port()) {
        return Err(BindError::Another);
    }
    set_up(&socket, at, wanted)?;
    wanted.egress.renew(&socket)?;
    Ok(Bound { socket, dual_stack: at.is_ipv6(), local_port: local.port(), at })
}

const fn unspecified(like: SocketAddr) -> IpAddr {
    match like {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

/// Sets the options and the buffer sizes.
fn set_up(socket: &Socket, at: SocketAddr, wanted: &Options) -> Result<(), BindError> {
    for (option, value) in OPTIONS.iter().chain(OPTIONS_V6.iter().filter(|_| at.is_ipv6())) {
        set(socket, *option, *value)?;
    }
    match (wanted.gso, set(socket, gro::OPTION, (wanted.gso != Gso::Off).into())) {
        // A kernel without it has nothing to switch off.
        (Gso::Off, _) => {}
        (_, result) => result?,
    }
    make_room(socket, (wanted.receive_buffer, wanted.send_buffer))
}

/// Binds the socket, even to an address that this host does not have yet; then nothing is received or sent
/// until the host has it. The option for that is switched off again, because datagrams could otherwise leave
/// from an address that is not ours.
fn bind_to(socket: &Socket, at: SocketAddr) -> Result<(), BindError> {
    let bind = || socket.bind(&SockAddr::from(at)).map_err(|source| BindError::at(at, source));
    match bind() {
        Err(error @ BindError::NotOurs { .. }) => {
            let free = if at.is_ipv4() { FREE_V4 } else { FREE_V6 };
            set(socket, free, 1)?;
            bind()?;
            set(socket, free, 0)?;
            tracing::warn!("{error}. Nothing arrives until an interface has it");
            Ok(())
        }
        bound => bound,
    }
}

/// The socket and the address to bind it to: IPv4 only if the kernel has no IPv6.
fn open(listen: Listen) -> Result<(Socket, SocketAddr), BindError> {
    let at = match listen {
        Listen::Address(at) => at,
        Listen::Port(port) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
    };
    match (Socket::new(Domain::for_address(at), Type::DGRAM, None), listen) {
        (Ok(socket), _) => Ok((socket, at)),
        (Err(error), Listen::Port(port)) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).map_err(BindError::Open)?;
            Ok((socket, SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))))
        }
        (Err(error), _) => Err(BindError::Open(error)),
    }
}

/// Sets the buffer sizes: without a limit if this process has the privilege, or up to the administrator's
/// limit.
pub(super) fn make_room(socket: &Socket, (receive, send): (usize, usize)) -> Result<(), BindError> {
    let bytes = receive;
    if sys::set(socket, RECEIVE_FORCE, whole(bytes)).is_err() {
        socket.set_recv_buffer_size(bytes).map_err(BindError::Open)?;
        tracing::info!(
            bytes,
            "the receive buffer is limited by net.core.rmem_max: a larger one needs CAP_NET_ADMIN"
        );
    }
    let bytes = send;
    if sys::set(socket, SEND_FORCE, whole(bytes)).is_err() {
        socket.set_send_buffer_size(bytes).map_err(BindError::Open)?;
    }
    Ok(())
}

fn whole(bytes: usize) -> c_int {
    c_int::try_from(bytes).unwrap_or(c_int::MAX)
}

pub(super) fn set(socket: &Socket, option: IntOption, value: c_int) -> Result<(), BindError> {
    sys::set(socket, option, value)
        .map_err(|source| BindError::Option { label: option.label, source })
}

impl BindError {
    fn at(at: SocketAddr, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::InUse { at },
            io::ErrorKind::AddrNotAvailable => Self::NotOurs { at },
            io::ErrorKind::PermissionDenied => Self::Privilege { at },
            _ => Self::Bind { at, source },
        }
    }

    pub(super) fn device(device: String, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::ENODEV) => Self::NoDevice { device },
            _ => Self::Device { device, source },
        }
    }

    pub(super) fn sending_from(address: IpAddr, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrNotAvailable => Self::SourceNotOurs { address },
            _ => Self::Source { address, source },
        }
    }
}
