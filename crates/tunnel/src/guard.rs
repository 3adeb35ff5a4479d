//! Drops messages of routers and of DHCP servers on the peer's side, which would configure hosts on this side.
//!
//! The check skips IPv6 extension headers. If the first fragment of a packet does not contain the upper-layer
//! header, or there are too many extension headers, the packet is dropped: hosts would drop it anyway
//! (RFC 7112 §5). A packet is also dropped if its version differs from its EtherType, or if its IPv4 header is
//! too short. A kernel would drop such a packet, but a DHCP client that reads raw frames may check only the
//! EtherType and the port.

use vpnd_tun::wire::{
    ETHER_IPV4, ETHER_IPV6, ETHER_SERVICE_VLAN, ETHER_VLAN, ETHERNET_HEADER, IPV6_HEADER, TCP, UDP,
    VLAN_TAG,
};

use crate::headers::{ICMP, ICMPV6, Upper, upper};

/// The kinds of messages from the peer's side that are dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    /// Router advertisements and redirects, of IPv6 (ICMPv6 134 and 137) and IPv4 (ICMP 9 and 5).
    pub advertisements: bool,
    /// Messages that request advertisements: ICMPv6 133, ICMP 10.
    pub solicitations: bool,
    /// Messages that DHCP servers and relays send to clients.
    pub dhcp: bool,
}

impl Guard {
    /// Nothing is dropped.
    pub(crate) const NONE: Self = Self { advertisements: false, solicitations: false, dhcp: false };

    /// Whether the IP packet at the beginning of `packet` is to be dropped. Padding may follow it.
    pub(crate) fn stops(self, packet: &[u8]) -> bool {
        if self == Self::default() || !self.concerns(packet) {
            return false;
        }
        let packet = trimmed(packet);
        match upper(packet) {
            Upper::At { protocol, start } => {
                self.stops_upper(protocol, packet.get(start..).unwrap_or_default())
            }
            Upper::Hidden | Upper::Unknown => true,
            Upper::LaterFragment => false,
        }
    }

    /// Whether the IP packet in an Ethernet frame is to be dropped, behind any number of VLAN tags.
    pub(crate) fn stops_frame(self, frame: &[u8]) -> bool {
        if self == Self::default() {
            return false;
        }
        let mut at = ETHERNET_HEADER;
        for _ in 0..=MAX_TAGS {
            let Some(ether_type) = frame.get(at - 2..).and_then(|rest| rest.first_chunk()) else {
                return false;
            };
            match u16::from_be_bytes(*ether_type) {
                ETHER_IPV4 => return !is_ipv4(&frame[at..]) || self.stops(&frame[at..]),
                ETHER_IPV6 => return !is_ipv6(&frame[at..]) || self.stops(&frame[at..]),
                ETHER_VLAN | ETHER_SERVICE_VLAN | ETHER_OLD_SERVICE_VLAN => at += VLAN_TAG,
                // A length: some hosts and radio bridges accept the payload behind a SNAP header as if an
                // EtherType preceded it.
                len if len <= MAX_LENGTH && is_snap(&frame[at..]) => at += SNAP.len() + 2,
                _ => return false,
            }
        }
        // The kernel removes any number of tags of VLAN 0, but no sender needs this many.
        true
    }

    /// A cheap first check, which is false for nearly all packets.
    fn concerns(self, packet: &[u8]) -> bool {
        let at = if packet.first().is_some_and(|first| first >> 4 == 6) { 6 } else { 9 };
        match packet.get(at) {
            Some(&TCP) | None => false,
            Some(&UDP) => self.dhcp,
            Some(_) => true,
        }
    }

    fn stops_upper(self, protocol: u8, header: &[u8]) -> bool {
        match (protocol, header) {
            (ICMPV6 | ICMP, []) => self.advertisements || self.solicitations,
            (ICMPV6, [134 | 137, ..]) | (ICMP, [5 | 9, ..]) => self.advertisements,
            (ICMPV6, [133, ..]) | (ICMP, [10, ..]) => self.solicitations,
            (UDP, [_, _, high, low, ..]) => {
                self.dhcp && DHCP_CLIENTS.contains(&u16::from_be_bytes([*high, *low]))
            }
            (UDP, _) => self.dhcp,
            _ => false,
        }
    }
}

fn is_ipv4(packet: &[u8]) -> bool {
    packet.first().is_some_and(|first| first >> 4 == 4 && first & 0xf >= IPV4_MIN_IHL)
}

fn is_ipv6(packet: &[u8]) -> bool {
    packet.first().is_some_and(|first| first >> 4 == 6)
}

/// The packet without padding: its length is that in its header, or all available bytes.
fn trimmed(packet: &[u8]) -> &[u8] {
    let word = |at| packet.get(at..).and_then(|rest| rest.first_chunk()).copied();
    let len = match packet.first().map(|first| first >> 4) {
        Some(4) => word(2).map(|len| u16::from_be_bytes(len).into()),
        _ => word(4).map(|len| usize::from(u16::from_be_bytes(len)) + IPV6_HEADER),
    };
    len.and_then(|len| packet.get(..len)).unwrap_or(packet)
}

/// IEEE 802.3: up to this value, the field is the length of a frame and not an EtherType.
const MAX_LENGTH: u16 = 1500;
/// RFC 1042: this header precedes an EtherType. In IEEE 802.1H the last byte is 0xf8.
const SNAP: [u8; 6] = [0xaa, 0xaa, 0x03, 0, 0, 0];

fn is_snap(body: &[u8]) -> bool {
    body.starts_with(&SNAP) || body.starts_with(&[0xaa, 0xaa, 0x03, 0, 0, 0xf8])
}

/// The ports on which clients listen (RFC 2131, RFC 8415). A client does not check the source port of an
/// answer.
const DHCP_CLIENTS: [u16; 2] = [68, 546];
/// The shortest IPv4 header, in units of four bytes.
const IPV4_MIN_IHL: u8 = 5;
const MAX_TAGS: usize = 8;
const ETHER_OLD_SERVICE_VLAN: u16 = 0x9100;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::tests::{behind, extension, extensions};

    const TUN: Guard = Guard { advertisements: true, solicitations: true, dhcp: false };
    const TAP: Guard = Guard { advertisements: true, solicitations: false, dhcp: true };

    fn icmpv6(kind: u8) -> Vec<u8> {
        behind(&[], ICMPV6, &[kind, 0, 0, 0])
    }

    fn ipv4(protocol: u8, upper: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 20 + u8::try_from(upper.len()).unwrap(), 0, 0, 0, 0, 64];
        packet.extend([protocol, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
        packet.extend(upper);
        packet
    }

    fn udp(from: u16, to: u16) -> Vec<u8> {
        [from.to_be_bytes(), to.to_be_bytes(), [0, 8], [0, 0]].concat()
    }

    #[test]
    fn messages_of_routers_are_stopped_in_both_families() {
        for (kind, tun, tap) in [(133, true, false), (134, true, true), (137, true, true)] {
            assert_eq!((TUN.stops(&icmpv6(kind)), TAP.stops(&icmpv6(kind))), (tun, tap), "{kind}");
        }
        for (kind, tun, tap) in [(5, true, true), (9, true, true), (10, true, false)] {
            let packet = ipv4(ICMP, &[kind, 0, 0, 0]);
            assert_eq!((TUN.stops(&packet), TAP.stops(&packet)), (tun, tap), "{kind}");
        }
    }

    #[test]
    fn everything_else_passes() {
        // Packet too big, echo, MLD, neighbour discovery.
        for kind in [1, 2, 3, 4, 128, 129, 130, 131, 132, 135, 136, 143] {
            assert!(!TUN.stops(&icmpv6(kind)), "{kind}");
        }
        for kind in [0, 3, 8, 11, 12] {
            assert!(!TUN.stops(&ipv4(ICMP, &[kind, 0, 0, 0])), "{kind}");
        }
        for packet in [behind(&[], TCP, &[134; 20]), ipv4(TCP, &[9; 20]), ipv4(50, &[9]), vec![]] {
            assert!(!TUN.stops(&packet) && !TAP.stops(&packet));
        }
        assert!(!Guard::default().stops(&icmpv6(134)));
    }

    #[test]
    fn extension_headers_hide_nothing() {
        for one in extensions() {
            for other in extensions() {
                let headers = [one.clone(), other.clone()];
                assert!(TUN.stops(&behind(&headers, ICMPV6, &[134, 0, 0, 0])), "{headers:?}");
                assert!(!TUN.stops(&behind(&headers, ICMPV6, &[128, 0, 0, 0])));
                assert!(!TUN.stops(&behind(&headers, TCP, &[134; 20])));
                assert!(TAP.stops(&behind(&headers, UDP, &udp(547, 546))));
            }
        }
        assert!(TUN.stops(&behind(&vec![extension(60, 0); 20], ICMPV6, &[134, 0, 0, 0])));
    }

    #[test]
    fn a_first_fragment_that_does_not_say_what_it_is_is_stopped() {
        let mut first = extension(44, 0);
        first.1[3] = 1;
        assert!(TUN.stops(&behind(&[first.clone()], ICMPV6, &[134, 0, 0, 0])));
        assert!(TUN.stops(&behind(&[first.clone()], ICMPV6, &[])), "cut off before its type");
        let cut = behind(&[first.clone(), extension(60, 0)], ICMPV6, &[])[..48].to_vec();
        let mut cut: Vec<u8> = cut;
        cut[5] = 8;
        assert!(TUN.stops(&cut), "cut off before its headers end");
        let padded = [behind(&[first.clone()], ICMPV6, &[]), vec![128; 6]].concat();
        assert!(TUN.stops(&padded), "what follows a packet is no part of it");
        assert!(!TUN.stops(&behind(&[first.clone()], UDP, &udp(1, 2))));
        first.1[3] = 9;
        assert!(!TUN.stops(&behind(&[first], ICMPV6, &[134])), "a later one says nothing");
    }

    #[test]
    fn answers_of_dhcp_are_stopped_and_questions_are_not() {
        for (from, to, stopped) in [(67, 68, true), (4000, 68, true), (68, 67, false)] {
            assert_eq!(TAP.stops(&ipv4(UDP, &udp(from, to))), stopped, "{from} to {to}");
            assert!(!TUN.stops(&ipv4(UDP, &udp(from, to))));
        }
        for (from, to, stopped) in [(547, 546, true), (546, 547, false), (53, 5353, false)] {
            assert_eq!(TAP.stops(&behind(&[], UDP, &udp(from, to))), stopped, "{from} to {to}");
        }
    }

    /// A frame with this EtherType behind `head`.
    fn frame_of(head: &[u8], ether_type: u16, packet: &[u8]) -> Vec<u8> {
        [&[2; 12], head, &ether_type.to_be_bytes(), packet].concat()
    }

    #[test]
    fn a_packet_that_is_not_what_its_ethertype_says_is_stopped() {
        const HEADS: [&[u8]; 5] = [
            &[],
            &[0x81, 0, 0, 0],
            &[0x88, 0xa8, 0, 0, 0x81, 0, 0, 0],
            &[0, 100, 0xaa, 0xaa, 3, 0, 0, 0],
            &[0x81, 0, 0, 0, 0, 100, 0xaa, 0xaa, 3, 0, 0, 0xf8],
        ];
        let router_guard = Guard { advertisements: true, ..Guard::default() };
        let dhcp_guard = Guard { dhcp: true, ..Guard::default() };
        for head in HEADS {
            for first in 0..=u8::MAX {
                for (ether_type, mut packet, sound) in [
                    (ETHER_IPV4, ipv4(UDP, &udp(53, 5353)), first >> 4 == 4 && first & 0xf >= 5),
                    (ETHER_IPV6, behind(&[], UDP, &udp(53, 5353)), first >> 4 == 6),
                ] {
                    packet[0] = first;
                    // IPv4 options, up to the longest header; in this case the ports are zero.
                    packet.resize(80, 0);
                    if ether_type == ETHER_IPV4 {
                        packet[3] = 80;
                    }
                    let frame = frame_of(head, ether_type, &packet);
                    for guard in [router_guard, dhcp_guard] {
                        assert_eq!(guard.stops_frame(&frame), !sound, "{first:#x} {head:x?}");
                    }
                    assert!(!Guard::default().stops_frame(&frame));
                }
            }
            assert!(TAP.stops_frame(&frame_of(head, ETHER_IPV4, &[])));
        }
        let mut short = ipv4(UDP, &udp(53, 5353));
        short[0] = 0x44;
        assert!(dhcp_guard.stops(&short), "without a frame around it");
    }

    #[test]
    fn tags_of_virtual_lans_hide_nothing() {
        let frame = |tags: &[u16], packet: &[u8]| {
            let mut frame = vec![2; 12];
            tags.iter().for_each(|tag| frame.extend([tag.to_be_bytes(), [0, 0]].concat()));
            frame.extend(if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] });
            frame.extend(packet);
            frame
        };
        for tags in [&[][..], &[0x8100], &[0x88a8, 0x8100], &[0x9100, 0x8100], &[0x8100; 5]] {
            assert!(TAP.stops_frame(&frame(tags, &icmpv6(134))), "{tags:x?}");
            assert!(!TAP.stops_frame(&frame(tags, &icmpv6(135))), "{tags:x?}");
            assert!(TAP.stops_frame(&frame(tags, &ipv4(UDP, &udp(67, 68)))), "{tags:x?}");
        }
        assert!(TAP.stops_frame(&frame(&[0x8100; 30], &icmpv6(135))), "tags without end");
        // The message follows a length and a SNAP header.
        let plain = frame(&[], &icmpv6(134));
        let snap = [&plain[..12], &[0, 100, 0xaa, 0xaa, 3, 0, 0, 0], &plain[12..]].concat();
        assert!(TAP.stops_frame(&snap));
        assert!(!TAP.stops_frame(&snap[..20]));
        assert!(!Guard::default().stops_frame(&frame(&[], &icmpv6(134))));
        assert!(!TAP.stops_frame(&[2; 13]) && !TAP.stops_frame(&[2; 60]));
    }
}
