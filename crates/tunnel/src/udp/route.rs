//! The size of the largest datagram that the route carries unfragmented, according to the routing table.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::SockAddr;
use vpnd_protocol::limits::{HEADERS_V4, HEADERS_V6, LEAST_MTU_V6};

use super::Egress;
use super::sys::{self, IntOption};

const MTU_V4: IntOption = IntOption { level: libc::SOL_IP, name: libc::IP_MTU, label: "IP_MTU" };
const MTU_V6: IntOption =
    IntOption { level: libc::SOL_IPV6, name: libc::IPV6_MTU, label: "IPV6_MTU" };

/// The largest UDP payload that leaves for `to` in one packet, with these socket settings, and from `source` if
/// that address is ours. The caller repeats the query when the peer moves. Links beyond the first are unknown
/// here.
///
/// # Errors
///
/// If there is no route to `to`.
pub fn largest_payload(to: SocketAddr, source: Option<IpAddr>, egress: &Egress) -> io::Result<u16> {
    let any =
        if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = egress.throwaway(source.unwrap_or(any)).or_else(|_not_ours| egress.throwaway(any));
    let socket = socket.map_err(io::Error::other)?;
    // When a socket is connected, the kernel looks up its route, but sends nothing.
    socket.connect(&SockAddr::from(to))?;
    let mtu = sys::get(&socket, if to.is_ipv4() { MTU_V4 } else { MTU_V6 })?;
    // After an ICMP message, which anybody can forge, the kernel may report a smaller value.
    Ok(payload_within(u16::try_from(mtu).unwrap_or(u16::MAX).max(LEAST_MTU_V6), to))
}

/// The address of ours from which the kernel sends datagrams to `to`, with these socket settings.
///
/// # Errors
///
/// If there is no route to `to`.
pub fn source_towards(to: SocketAddr, egress: &Egress) -> io::Result<IpAddr> {
    let any =
        if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = egress.throwaway(any).map_err(io::Error::other)?;
    socket.connect(&SockAddr::from(to))?;
    let ours = socket.local_addr()?.as_socket();
    ours.map(|at| at.ip()).ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

/// The largest UDP payload in an IP packet of `mtu` bytes to `to`.
pub fn payload_within(mtu: u16, to: SocketAddr) -> u16 {
    mtu.saturating_sub(headers(to))
}

/// The size of a packet to `to` with a UDP payload of this size.
pub fn packet_around(payload: u16, to: SocketAddr) -> u16 {
    payload.saturating_add(headers(to))
}

fn headers(to: SocketAddr) -> u16 {
    if to.is_ipv4() { HEADERS_V4 } else { HEADERS_V6 }
}
