//! Finds the upper-layer header of an IP packet, behind the options of IPv4 or the extension headers of IPv6
//! (RFC 8200 §4).

use vpnd_tun::wire::{IPV4_HEADER, IPV6_HEADER};

/// What follows the IP headers of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Upper {
    /// The header of this protocol begins at this byte. In a first fragment it may be incomplete.
    At { protocol: u8, start: usize },
    /// Data: the header is in an earlier fragment.
    LaterFragment,
    /// The IPv6 extension headers continue beyond this first fragment, or there are more of them than any
    /// sender needs. Hosts drop such packets (RFC 7112 §5).
    Hidden,
    /// Neither IPv4 nor IPv6.
    Unknown,
}

/// Finds the upper-layer header. Reads at most [`MAX_EXTENSIONS`] extension headers.
pub(crate) fn upper(packet: &[u8]) -> Upper {
    match packet.first().map(|first| first >> 4) {
        Some(4) => ipv4(packet).unwrap_or(Upper::Unknown),
        Some(6) => ipv6(packet),
        _ => Upper::Unknown,
    }
}

fn ipv4(packet: &[u8]) -> Option<Upper> {
    let header: &[u8; IPV4_HEADER] = packet.first_chunk()?;
    let start = usize::from(header[0] & 0xf) * 4;
    if start < IPV4_HEADER {
        return None;
    }
    let later = u16::from_be_bytes([header[6], header[7]]) & FRAGMENT_OFFSET != 0;
    Some(if later { Upper::LaterFragment } else { Upper::At { protocol: header[9], start } })
}

fn ipv6(packet: &[u8]) -> Upper {
    let Some(header) = packet.first_chunk::<IPV6_HEADER>() else { return Upper::Unknown };
    let (mut protocol, mut start) = (header[6], IPV6_HEADER);
    for _ in 0..=MAX_EXTENSIONS {
        let Some(form) = Extension::of(protocol) else { return Upper::At { protocol, start } };
        let Some(extension) = packet.get(start..).and_then(|rest| rest.first_chunk::<8>()) else {
            return Upper::Hidden;
        };
        if form.is_later_fragment(extension) {
            return Upper::LaterFragment;
        }
        (protocol, start) = (extension[0], start + form.len(extension));
    }
    Upper::Hidden
}

/// How an extension header encodes its length.
#[derive(Clone, Copy)]
enum Extension {
    /// In units of eight bytes, not counting the first unit.
    Eights,
    /// Always eight bytes.
    Fragment,
    /// In units of four bytes, minus two (RFC 4302 §2.2).
    Authentication,
}

impl Extension {
    /// `None` if this is not an extension header, or if it encrypts the following headers (ESP).
    const fn of(protocol: u8) -> Option<Self> {
        match protocol {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | MOBILITY | HIP | SHIM6 => {
                Some(Self::Eights)
            }
            FRAGMENT => Some(Self::Fragment),
            AUTHENTICATION => Some(Self::Authentication),
            _ => None,
        }
    }

    const fn len(self, header: &[u8; 8]) -> usize {
        match self {
            Self::Eights => (header[1] as usize + 1) * 8,
            Self::Fragment => 8,
            Self::Authentication => (header[1] as usize + 2) * 4,
        }
    }

    /// Whether this is a fragment at an offset other than zero. A fragment at offset zero is the first one, or
    /// an atomic fragment, which is a whole packet (RFC 6946).
    const fn is_later_fragment(self, header: &[u8; 8]) -> bool {
        matches!(self, Self::Fragment) && u16::from_be_bytes([header[2], header[3]]) & 0xfff8 != 0
    }
}

/// RFC 8200 §4.1 recommends at most seven: each kind once, and destination options twice.
const MAX_EXTENSIONS: usize = 8;
const FRAGMENT_OFFSET: u16 = 0x1fff;
pub(crate) const HOP_BY_HOP: u8 = 0;
pub(crate) const ROUTING: u8 = 43;
pub(crate) const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
pub(crate) const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HIP: u8 = 139;
const SHIM6: u8 = 140;

pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMPV6: u8 = 58;

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use vpnd_tun::wire::{TCP, UDP};

    use super::*;

    /// An extension header and its number. It has eight bytes, and `eights` units of eight more bytes.
    pub(crate) fn extension(protocol: u8, eights: u8) -> (u8, Vec<u8>) {
        let len = match protocol {
            FRAGMENT => 8,
            AUTHENTICATION => (usize::from(eights) + 2) * 4,
            _ => (usize::from(eights) + 1) * 8,
        };
        let mut header = vec![0; len];
        header[1] = if protocol == FRAGMENT { 0 } else { eights };
        (protocol, header)
    }

    /// Each extension header of IPv6, short and long.
    pub(crate) fn extensions() -> Vec<(u8, Vec<u8>)> {
        let protocols =
            [HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION_OPTIONS, MOBILITY, SHIM6];
        protocols.iter().flat_map(|&p| [extension(p, 0), extension(p, 2)]).collect()
    }

    /// An IPv6 packet whose upper-layer header is behind `extensions`.
    pub(crate) fn behind(extensions: &[(u8, Vec<u8>)], protocol: u8, upper: &[u8]) -> Vec<u8> {
        let mut next = extensions.iter().map(|(number, _)| *number).chain([protocol]);
        let len: usize = extensions.iter().map(|(_, header)| header.len()).sum();
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend(u16::try_from(len + upper.len()).unwrap().to_be_bytes());
        packet.extend([next.next().unwrap(), 64]);
        packet.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1].repeat(2));
        for (_, header) in extensions {
            let at = packet.len();
            packet.extend(header);
            packet[at] = next.next().unwrap();
        }
        packet.extend(upper);
        packet
    }

    #[test]
    fn any_headers_are_walked() {
        for one in extensions() {
            for other in extensions() {
                let packet = behind(&[one.clone(), other.clone()], TCP, &[1, 2, 3]);
                let start = packet.len() - 3;
                assert_eq!(upper(&packet), Upper::At { protocol: TCP, start });
                for len in 40..start {
                    assert!(matches!(upper(&packet[..len]), Upper::Hidden | Upper::At { .. }));
                }
            }
        }
    }

    #[test]
    fn fragments_are_told_apart() {
        let mut fragment = extension(FRAGMENT, 0);
        fragment.1[3] = 1;
        let packet = behind(&[fragment.clone()], UDP, &[]);
        assert_eq!(upper(&packet), Upper::At { protocol: UDP, start: 48 }, "the first of several");
        assert_eq!(upper(&packet[..47]), Upper::Hidden);
        fragment.1[3] = 9;
        assert_eq!(upper(&behind(&[fragment], UDP, &[])), Upper::LaterFragment);
    }

    #[test]
    fn the_walk_ends() {
        let many = vec![extension(DESTINATION_OPTIONS, 0); MAX_EXTENSIONS + 1];
        assert_eq!(upper(&behind(&many, TCP, &[0; 20])), Upper::Hidden);
        let packet = behind(&many[1..], TCP, &[0; 20]);
        assert_eq!(upper(&packet), Upper::At { protocol: TCP, start: packet.len() - 20 });
    }

    #[test]
    fn options_of_ipv4_are_passed_over() {
        let mut packet = vec![0x46; 24];
        (packet[6], packet[7], packet[9]) = (0x40, 0, UDP);
        assert_eq!(upper(&packet), Upper::At { protocol: UDP, start: 24 });
        packet[7] = 1;
        assert_eq!(upper(&packet), Upper::LaterFragment);
        packet[0] = 0x44;
        assert_eq!(upper(&packet), Upper::Unknown);
        assert_eq!((upper(&[]), upper(&[0x45; 19])), (Upper::Unknown, Upper::Unknown));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_no_harm(
            mut bytes in prop::collection::vec(any::<u8>(), 0..200),
            version in prop_oneof![Just(0x45u8), Just(0x60), any::<u8>()],
        ) {
            if let Some(first) = bytes.first_mut() {
                *first = version;
            }
            let _any = upper(&bytes);
        }
    }
}
