//! What the way out carries whole, as far as the routing table says.

use std::io;
use std::net::{SocketAddr, UdpSocket};

use super::sys::{self, IntOption};

const MTU_V4: IntOption = IntOption { level: libc::SOL_IP, name: libc::IP_MTU, label: "IP_MTU" };
const MTU_V6: IntOption =
    IntOption { level: libc::SOL_IPV6, name: libc::IPV6_MTU, label: "IPV6_MTU" };
/// Bytes in front of a UDP payload.
const HEADERS_V4: u16 = 28;
const HEADERS_V6: u16 = 48;

/// Every link of IPv6 carries this, and nearly every other. The kernel may say less where an ICMP message
/// said so, which anybody can write.
const LEAST_MTU: u16 = 1280;

/// The largest UDP payload that leaves for `to` in one packet. It is asked anew when the peer moves;
/// what lies beyond the first link nobody here knows.
///
/// # Errors
/// When there is no way to `to`.
pub fn largest_payload(to: SocketAddr) -> io::Result<u16> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    // A connected socket has looked its route up; nothing is sent.
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    let mtu = sys::get(&socket, if to.is_ipv4() { MTU_V4 } else { MTU_V6 })?;
    Ok(payload_within(u16::try_from(mtu).unwrap_or(u16::MAX).max(LEAST_MTU), to))
}

/// The largest UDP payload in an IP packet of `mtu` bytes to `to`.
pub fn payload_within(mtu: u16, to: SocketAddr) -> u16 {
    mtu.saturating_sub(if to.is_ipv4() { HEADERS_V4 } else { HEADERS_V6 })
}
