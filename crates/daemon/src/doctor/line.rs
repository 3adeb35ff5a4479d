//! A socket to one address of the peer, as the tunnel's own: its port, mark and interface. It is connected, so that
//! the kernel reports ICMP errors about its datagrams.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};
use vpnd_tunnel::udp::Egress;

use super::place::Target;

/// What came back.
#[derive(Debug)]
pub(super) enum Heard {
    /// This many bytes.
    Datagram(usize),
    /// Nothing, within the time.
    Nothing,
    /// An ICMP error, or another one.
    Error(io::Error),
}

pub(super) struct Line(UdpSocket);

impl Line {
    /// Opens the socket in the network namespace of this thread. Port 0 is any.
    pub(super) fn open(target: &Target, port: u16, egress: &Egress) -> io::Result<Self> {
        let any: IpAddr = if target.to.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let at = SocketAddr::new(target.source.unwrap_or(any), port);
        let socket = Socket::new(Domain::for_address(at), Type::DGRAM, None)?;
        if at.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        if egress.mark != 0 {
            socket.set_mark(egress.mark)?;
        }
        if let Some(device) = &egress.device {
            socket.bind_device(Some(device.as_bytes()))?;
        }
        socket.bind(&SockAddr::from(at))?;
        socket.connect(&SockAddr::from(target.to))?;
        Ok(Self(socket.into()))
    }

    /// Sends a datagram. An error that an earlier one has caused is not one of this.
    pub(super) fn send(&self, datagram: &[u8]) -> io::Result<()> {
        match self.0.send(datagram) {
            Err(error) if is_icmp(&error) => self.0.send(datagram).map(drop),
            sent => sent.map(drop),
        }
    }

    /// Waits for a datagram or an error.
    pub(super) fn hear(&self, until: Instant, buffer: &mut [u8]) -> Heard {
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        if let Err(error) = self.0.set_read_timeout(Some(left)) {
            return Heard::Error(error);
        }
        match self.0.recv(buffer) {
            Ok(len) => Heard::Datagram(len),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock
                | io::ErrorKind::TimedOut
                | io::ErrorKind::Interrupted => Heard::Nothing,
                _ => Heard::Error(error),
            },
        }
    }

    /// From now on datagrams are not fragmented, and routers report those that are too long.
    pub(super) fn forbid_fragments(&self, is_v4: bool) -> io::Result<()> {
        let (level, name, value) = if is_v4 {
            (libc::SOL_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)
        } else {
            (libc::SOL_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO)
        };
        let len = u32::try_from(size_of_val(&value)).unwrap_or_default();
        // SAFETY: the option is an int, which lives until the call returns.
        let result = unsafe {
            libc::setsockopt(self.0.as_raw_fd(), level, name, (&raw const value).cast(), len)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Whether a router or the peer has caused the error, and not this host.
fn is_icmp(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ECONNREFUSED)
}
