//! The local address of a datagram: the address that it was sent to, which is the source of the answer.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Received;
use super::cmsg::{Encoder, Kind, Message, PKTINFO_V4, PKTINFO_V6};
use super::sys::IntOption;

pub(super) const OPTION_V4: IntOption =
    IntOption { level: libc::SOL_IP, name: libc::IP_PKTINFO, label: "IP_PKTINFO" };
pub(super) const OPTION_V6: IntOption =
    IntOption { level: libc::SOL_IPV6, name: libc::IPV6_RECVPKTINFO, label: "IPV6_RECVPKTINFO" };

const V4: Kind = Kind { level: libc::SOL_IP, name: libc::IP_PKTINFO };
const V6: Kind = Kind { level: libc::SOL_IPV6, name: libc::IPV6_PKTINFO };

/// Asks the kernel to send from `source`; the route determines the interface.
pub(super) fn encode(control: &mut Encoder, source: IpAddr) {
    match source {
        IpAddr::V4(v4) => {
            let mut info = [0; PKTINFO_V4];
            info[4..8].copy_from_slice(&v4.octets());
            control.push(V4, &info);
        }
        IpAddr::V6(v6) => {
            let mut info = [0; PKTINFO_V6];
            info[..16].copy_from_slice(&v6.octets());
            control.push(V6, &info);
        }
    }
}

/// Reads the local address. An IPv4 datagram on a dual-stack socket has a message of each family. The IPv4
/// message comes last and is better: for a broadcast it contains the address to answer from.
pub(super) fn decode(message: &Message<'_>, received: &mut Received) {
    let local = match message.kind {
        V4 => message.value.get(4..8).and_then(|v| v.first_chunk::<4>()).map(local_v4),
        V6 => message.value.first_chunk::<16>().map(local_v6),
        _ => return,
    };
    received.local = local.filter(|address| !address.is_multicast() && !address.is_unspecified());
}

/// Whether this error may mean that the source address is gone: the kernel returns `EINVAL` over IPv6 and
/// `ENETUNREACH` over IPv4; the other errors are returned if a route is gone together with the address.
pub(super) fn source_may_be_lost(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EADDRNOTAVAIL | libc::ENETUNREACH | libc::EHOSTUNREACH)
    )
}

fn local_v4(octets: &[u8; 4]) -> IpAddr {
    Ipv4Addr::from(*octets).into()
}

fn local_v6(octets: &[u8; 16]) -> IpAddr {
    IpAddr::from(Ipv6Addr::from(*octets)).to_canonical()
}
