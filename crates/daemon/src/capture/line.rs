//! One line about a packet, for a terminal.

use std::borrow::Cow;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, UNIX_EPOCH};

use vpnd_tun::Mode;
use vpnd_tun::wire::{ETHER_IPV4, ETHER_IPV6, word16};
use vpnd_tunnel::tap::{Direction, Header, Kind};

/// `18:05:06.123456 inner out IP 10.99.0.1.4242 > 10.99.0.2.22: TCP, length 60`. The time is UTC.
pub(super) fn line(header: &Header, kept: &[u8], mode: Mode) -> String {
    let (side, about) = match header.kind {
        Kind::Outer => ("outer", datagram(header, kept)),
        _ => ("inner", frame(kept, mode)),
    };
    let way = match header.direction {
        Direction::Sent => "out",
        Direction::Received => "in ",
    };
    format!("{} {side} {way} {about}, length {}", time(header.time), header.len)
}

fn time(nanoseconds: u64) -> String {
    let at = UNIX_EPOCH + Duration::from_nanos(nanoseconds);
    let text = humantime::format_rfc3339_micros(at).to_string();
    // Without the date.
    let begin = text.find('T').map_or(0, |at| at + 1);
    text[begin..].trim_end_matches('Z').to_owned()
}

/// The payload of a datagram, by the types of WireGuard's messages.
fn datagram(header: &Header, payload: &[u8]) -> String {
    let what = match payload.first_chunk() {
        Some([1, 0, 0, 0]) => "WireGuard initiation",
        Some([2, 0, 0, 0]) => "WireGuard response",
        Some([3, 0, 0, 0]) => "WireGuard cookie reply",
        Some([4, 0, 0, 0]) if header.len == KEEPALIVE => "WireGuard keepalive",
        Some([4, 0, 0, 0]) => "WireGuard data",
        _ => "UDP",
    };
    let (from, to) = (header.datagram.from, header.datagram.to);
    let name = if to.is_ipv4() { "IP" } else { "IP6" };
    format!("{name} {} > {}: {what}", end(from), end(to))
}

/// The length of transport data without contents.
const KEEPALIVE: u32 = 32;

fn end(at: SocketAddr) -> impl Display {
    format!("{}.{}", at.ip(), at.port())
}

fn frame(frame: &[u8], mode: Mode) -> String {
    match (mode, frame) {
        (Mode::Tun, packet) => packet_of(packet),
        (Mode::Tap, [_, _, _, _, _, _, _, _, _, _, _, _, rest @ ..]) if rest.len() >= 2 => {
            match word16(rest, 0) {
                ETHER_IPV4 | ETHER_IPV6 => packet_of(&rest[2..]),
                ETHER_ARP => format!("{}: ARP", stations(frame)),
                other => format!("{}: ethertype 0x{other:04x}", stations(frame)),
            }
        }
        (Mode::Tap, _) => "a frame that is cut short".to_owned(),
    }
}

/// The EtherType of ARP.
const ETHER_ARP: u16 = 0x0806;

fn stations(frame: &[u8]) -> String {
    let station = |bytes: &[u8]| {
        let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
        digits.collect::<Vec<_>>().join(":")
    };
    format!("{} > {}", station(&frame[6..12]), station(&frame[..6]))
}

fn packet_of(packet: &[u8]) -> String {
    let found = match packet.first().map(|first| first >> 4) {
        Some(4) => v4(packet),
        Some(6) => v6(packet),
        _ => None,
    };
    found.unwrap_or_else(|| "a packet that is cut short".to_owned())
}

fn v4(packet: &[u8]) -> Option<String> {
    let addresses = [address::<4>(packet, 12)?, address::<4>(packet, 16)?];
    let is_first = word16(packet, 6) & 0x1fff == 0;
    let rest = packet.get(usize::from(packet[0] & 0xf) * 4..).filter(|_| is_first);
    Some(format!("IP {}", ends(packet[9], addresses, rest.unwrap_or_default())))
}

fn v6(packet: &[u8]) -> Option<String> {
    let addresses = [address::<16>(packet, 8)?, address::<16>(packet, 24)?];
    Some(format!("IP6 {}", ends(packet[6], addresses, packet.get(40..)?)))
}

fn address<const N: usize>(packet: &[u8], at: usize) -> Option<IpAddr>
where
    IpAddr: From<[u8; N]>,
{
    packet.get(at..)?.first_chunk::<N>().map(|octets| IpAddr::from(*octets))
}

/// Addresses and protocol, with the ports if there are any.
fn ends(protocol: u8, [from, to]: [IpAddr; 2], rest: &[u8]) -> String {
    let name: Cow<'_, str> = match protocol {
        1 => "ICMP".into(),
        6 => "TCP".into(),
        17 => "UDP".into(),
        58 => "ICMP6".into(),
        other => format!("protocol {other}").into(),
    };
    if matches!(protocol, 6 | 17) && rest.len() >= 4 {
        format!("{from}.{} > {to}.{}: {name}", word16(rest, 0), word16(rest, 2))
    } else {
        format!("{from} > {to}: {name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vpnd_tunnel::tap::Datagram;

    fn header(kind: Kind, direction: Direction, len: u32) -> Header {
        let datagram = Datagram {
            from: "192.0.2.1:51820".parse().unwrap(),
            to: "192.0.2.2:7".parse().unwrap(),
            tos: 0,
            hops: 0,
        };
        let time = 1_700_000_000_123_456_789;
        Header { kind, direction, time, kept: len, len, datagram }
    }

    fn inner(bytes: &[u8], mode: Mode) -> String {
        let line = line(&header(Kind::Inner, Direction::Received, 60), bytes, mode);
        line.strip_prefix("22:13:20.123456 inner in  ").unwrap().to_owned()
    }

    fn v4_packet(protocol: u8) -> Vec<u8> {
        let mut packet = vec![0; 24];
        (packet[0], packet[9]) = (0x45, protocol);
        packet[12..20].copy_from_slice(&[10, 99, 0, 1, 10, 99, 0, 2]);
        packet[20..24].copy_from_slice(&[0x10, 0x92, 0, 22]);
        packet
    }

    #[test]
    fn packets_of_a_tun_device() {
        let (tcp, icmp) = (v4_packet(6), v4_packet(1));
        assert_eq!(inner(&tcp, Mode::Tun), "IP 10.99.0.1.4242 > 10.99.0.2.22: TCP, length 60");
        assert_eq!(inner(&icmp, Mode::Tun), "IP 10.99.0.1 > 10.99.0.2: ICMP, length 60");
        let mut fragment = tcp.clone();
        fragment[7] = 1;
        assert_eq!(inner(&fragment, Mode::Tun), "IP 10.99.0.1 > 10.99.0.2: TCP, length 60");
        let mut six = vec![0; 44];
        (six[0], six[6], six[23], six[39]) = (0x60, 132, 1, 2);
        assert_eq!(inner(&six, Mode::Tun), "IP6 ::1 > ::2: protocol 132, length 60");
        for cut in [&[][..], &[0], &tcp[..19], &six[..39]] {
            assert_eq!(inner(cut, Mode::Tun), "a packet that is cut short, length 60");
        }
        assert_eq!(inner(&tcp[..21], Mode::Tun), "IP 10.99.0.1 > 10.99.0.2: TCP, length 60");
    }

    #[test]
    fn frames_of_a_tap_device() {
        let frame = |kind: u16| {
            [&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12][..], &kind.to_be_bytes()].concat()
        };
        let ip = [frame(ETHER_IPV4), v4_packet(1)].concat();
        assert_eq!(inner(&ip, Mode::Tap), "IP 10.99.0.1 > 10.99.0.2: ICMP, length 60");
        let way = "07:08:09:0a:0b:0c > 01:02:03:04:05:06";
        assert_eq!(inner(&frame(ETHER_ARP), Mode::Tap), format!("{way}: ARP, length 60"));
        let other = format!("{way}: ethertype 0x88cc, length 60");
        assert_eq!(inner(&frame(0x88cc), Mode::Tap), other);
        assert_eq!(inner(&ip[..13], Mode::Tap), "a frame that is cut short, length 60");
    }

    #[test]
    fn datagrams() {
        for (payload, len, what) in [
            (&[1, 0, 0, 0][..], 148, "WireGuard initiation"),
            (&[4, 0, 0, 0], 32, "WireGuard keepalive"),
            (&[4, 0, 0, 0], 128, "WireGuard data"),
            (&[4], 1, "UDP"),
        ] {
            let line = line(&header(Kind::Outer, Direction::Sent, len), payload, Mode::Tun);
            let expected = format!("IP 192.0.2.1.51820 > 192.0.2.2.7: {what}, length {len}");
            assert!(line.ends_with(&format!(" outer out {expected}")), "{line}");
        }
    }
}
