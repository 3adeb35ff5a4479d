//! A packet socket, which receives every frame of one device. A virtio header precedes each frame and shows
//! whether it is a super-packet.

#![expect(
    clippy::cast_possible_truncation,
    reason = "constants and structures of the kernel's headers are small"
)]

use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::time::Duration;

use libc::{c_int, socklen_t};
use nix::net::if_::if_nametoindex;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

/// Receives all frames of a device, in both directions.
#[derive(Debug)]
pub(super) struct PacketSocket(Socket);

impl PacketSocket {
    /// Opens a socket for a device in the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// If there is no such device, or CAP_NET_RAW is missing.
    pub(super) fn open(device: &str) -> io::Result<Self> {
        let device = c_int::try_from(if_nametoindex(device)?).map_err(io::Error::other)?;
        // Opened without a protocol, because it would otherwise receive frames of other devices before it is
        // bound.
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
        set_option(&socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
        // If the system's limit also applies to this process, use as much as it allows.
        set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER)
            .or_else(|_| set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, BUFFER))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        socket.bind(&every_frame_of(device)?)?;
        Ok(Self(socket))
    }

    /// Reads one header and frame, or returns `WouldBlock` after a short time.
    ///
    /// # Errors
    ///
    /// If no frame arrived, or the device is gone.
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(buffer)
    }

    /// The number of frames since the last call that did not fit into the buffer.
    ///
    /// # Errors
    ///
    /// If the kernel does not report the number.
    pub(super) fn missed(&self) -> io::Result<u32> {
        let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut len = size_of_val(&stats) as socklen_t;
        // SAFETY: both pointers are to live locals, and `len` is the size of the first.
        let done = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut stats).cast(),
                &raw mut len,
            )
        };
        if done == 0 { Ok(stats.tp_drops) } else { Err(io::Error::last_os_error()) }
    }
}

fn set_option(socket: &Socket, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    let len = size_of_val(&value) as socklen_t;
    // SAFETY: the pointer is to a live local of `len` bytes.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), len)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn every_frame_of(device: c_int) -> io::Result<SockAddr> {
    let fill = |storage: *mut SockAddrStorage, len: *mut socklen_t| {
        let address = storage.cast::<libc::sockaddr_ll>();
        // SAFETY: `storage` is zeroed, aligned and larger than a sockaddr_ll, whose size is stored in `len`;
        // both point to live memory of the caller.
        unsafe {
            (*address).sll_family = libc::AF_PACKET as u16;
            (*address).sll_protocol = (libc::ETH_P_ALL as u16).to_be();
            (*address).sll_ifindex = device;
            *len = size_of::<libc::sockaddr_ll>() as socklen_t;
        }
        Ok(())
    };
    // SAFETY: `fill` writes a whole, valid address and its length.
    unsafe { SockAddr::try_init(fill).map(|((), address)| address) }
}

/// The size of the kernel's buffer for frames that arrive while the reader is busy.
const BUFFER: c_int = 16 << 20;
