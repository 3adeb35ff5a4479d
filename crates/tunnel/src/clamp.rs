//! Lowers the MSS that TCP connections agree on, so that their segments fit into the tunnel even if ICMP
//! messages about the packet size are lost.

use vpnd_tun::wire::{IPV4_HEADER, IPV6_HEADER, SYN, TCP, TCP_HEADER, low16, put16, word16};
use vpnd_tun::{Mode, Sum};

use crate::headers::{Upper, upper};

/// The limit for TCP's segment size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clamp {
    /// The largest segment that fits the device's MTU: smaller for IPv6, whose header is longer.
    Mtu,
    /// This number of bytes, for IPv4 and IPv6.
    Mss(u16),
}

impl Clamp {
    /// The limits for a device with this MTU.
    pub(crate) const fn segments(self, mtu: u16) -> Segments {
        match self {
            Self::Mtu => Segments {
                v4: mtu.saturating_sub(low16(IPV4_HEADER + TCP_HEADER)),
                v6: mtu.saturating_sub(low16(IPV6_HEADER + TCP_HEADER)),
            },
            Self::Mss(mss) => Segments { v4: mss, v6: mss },
        }
    }
}

/// The largest segment in each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    v4: u16,
    v6: u16,
}

impl Segments {
    /// Clamps the segment size in a packet or frame that crosses a device of this mode.
    pub fn clamp(self, mode: Mode, packet: &mut [u8]) {
        if let Some(ip) = mode.ip_start(packet) {
            clamp_mss(&mut packet[ip..], self);
        }
    }
}

/// Lowers the MSS option of a TCP SYN to the limit in `segments`; does not change other packets.
///
/// `packet` is one whole IP packet whose TCP checksum is complete. The checksum is adjusted and not recomputed,
/// so that the checksum of a damaged packet remains wrong.
fn clamp_mss(packet: &mut [u8], segments: Segments) {
    let limit = match packet.first().map(|first| first >> 4) {
        Some(4) => segments.v4,
        _ => segments.v6,
    };
    let Some(tcp) = tcp_of(packet) else { return };
    let Some(at) = mss_of_syn(tcp) else { return };
    let mss = word16(tcp, at);
    if mss > limit {
        put16(tcp, at, limit);
        adapt_checksum(tcp, at, mss, limit);
    }
}

/// The TCP segment of a packet.
fn tcp_of(packet: &mut [u8]) -> Option<&mut [u8]> {
    let Upper::At { protocol: TCP, start } = upper(packet) else { return None };
    packet.get_mut(start..)
}

/// The position of the MSS in a SYN.
fn mss_of_syn(tcp: &[u8]) -> Option<usize> {
    let header: &[u8; TCP_HEADER] = tcp.first_chunk()?;
    if header[13] & SYN == 0 {
        return None;
    }
    let options = tcp.get(header.len()..usize::from(header[12] >> 4) * 4)?;
    Some(header.len() + mss_of(options)?)
}

/// The position of the MSS among the options.
fn mss_of(options: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match options.get(at..)? {
            [NO_OPERATION, ..] => at += 1,
            [MSS, 4, _, _, ..] => return Some(at + 2),
            [END | MSS, ..] | [_, 0 | 1, ..] => return None,
            [_, len, ..] => at += usize::from(*len),
            _ => return None,
        }
    }
}

/// Adjusts the checksum. At an odd offset, the two bytes belong to two words of the sum, in swapped order.
fn adapt_checksum(tcp: &mut [u8], at: usize, old: u16, new: u16) {
    let swap = |word: u16| if at.is_multiple_of(2) { word } else { word.swap_bytes() };
    let checksum = Sum::updated(word16(tcp, 16), swap(old), swap(new));
    put16(tcp, 16, checksum);
}

const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const MSS: u8 = 2;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vpnd_tun::pseudo_header;

    use super::*;
    use crate::headers::tests::{behind, extension, extensions};

    const SYN_ACK: u8 = 0x12;
    const ACK: u8 = 0x10;

    /// A TCP packet with a valid checksum; `options` fill whole words.
    fn packet(v6: bool, flags: u8, options: &[u8]) -> Vec<u8> {
        let mut tcp = vec![0xc0, 0, 0, 80, 1, 2, 3, 4, 5, 6, 7, 8];
        tcp.extend([u8::try_from((20 + options.len()) / 4 * 16).unwrap(), flags]);
        tcp.extend([0xfa, 0xf0, 0, 0, 0, 0]);
        tcp.extend(options);
        let mut packet = ip_header(v6, tcp.len());
        let sum = sum(&packet, &tcp);
        tcp[16..18].copy_from_slice(&sum.checksum().to_be_bytes());
        packet.extend(tcp);
        packet
    }

    fn ip_header(v6: bool, len: usize) -> Vec<u8> {
        let len = u16::try_from(len).unwrap();
        if v6 {
            let [a, b] = len.to_be_bytes();
            let mut header = vec![0x60, 0, 0, 0, a, b, 6, 64];
            header.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1].repeat(2));
            return header;
        }
        let [a, b] = (len + 20).to_be_bytes();
        vec![0x45, 0, a, b, 0, 0, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]
    }

    fn sum(ip: &[u8], tcp: &[u8]) -> Sum {
        let addresses = if ip[0] >> 4 == 6 { &ip[8..40] } else { &ip[12..20] };
        pseudo_header(addresses, 6, u16::try_from(tcp.len()).unwrap()) + Sum::of(tcp)
    }

    fn is_intact(packet: &[u8]) -> bool {
        let (ip, tcp) = packet.split_at(if packet[0] >> 4 == 6 { 40 } else { 20 });
        sum(ip, tcp).is_intact()
    }

    fn clamped(mut packet: Vec<u8>, mtu: u16) -> Vec<u8> {
        clamp_mss(&mut packet, Clamp::Mtu.segments(mtu));
        packet
    }

    #[test]
    fn a_large_mss_is_lowered_to_what_fits() {
        for (v6, at, expected) in [(false, 42, 1380u16), (true, 62, 1360)] {
            for flags in [SYN, SYN_ACK] {
                let packet = clamped(packet(v6, flags, &[2, 4, 0x05, 0xb4]), 1420);
                assert_eq!(packet[at..at + 2], expected.to_be_bytes());
                assert!(is_intact(&packet));
            }
        }
    }

    #[test]
    fn an_mss_at_an_odd_offset_keeps_its_checksum() {
        let packet = clamped(packet(false, SYN, &[1, 2, 4, 0x05, 0xb4, 1, 1, 0]), 1420);
        assert_eq!(packet[43..45], 1380u16.to_be_bytes());
        assert!(is_intact(&packet));
    }

    #[test]
    fn a_syn_behind_extension_headers_is_found() {
        let whole = packet(true, SYN, &[2, 4, 0x05, 0xb4]);
        let expected = clamped(whole.clone(), 1420);
        assert_ne!(whole, expected);
        for headers in extensions().iter().flat_map(|e| [vec![e.clone()], vec![e.clone(); 2]]) {
            let found = clamped(behind(&headers, TCP, &whole[40..]), 1420);
            assert_eq!(found, behind(&headers, TCP, &expected[40..]));
        }
    }

    #[test]
    fn what_is_no_syn_behind_extension_headers_is_left_alone() {
        let whole = packet(true, SYN, &[2, 4, 0x05, 0xb4]);
        let mut later = extension(44, 0);
        later.1[3] = 8;
        let many = vec![extension(60, 0); 40];
        let other = behind(&[extension(60, 0)], 17, &whole[40..]);
        let mut cut = behind(&[extension(60, 0)], TCP, &whole[40..]);
        cut.pop();
        for packet in
            [behind(&[later], TCP, &whole[40..]), behind(&many, TCP, &whole[40..]), other, cut]
        {
            assert_eq!(clamped(packet.clone(), 1420), packet);
        }
    }

    #[test]
    fn an_mss_that_fits_is_left_alone() {
        let packet = packet(false, SYN, &[2, 4, 0x05, 0x64]);
        assert_eq!(clamped(packet.clone(), 1420), packet);
    }

    #[test]
    fn other_packets_are_left_alone() {
        let mss = [2, 4, 0x05, 0xb4];
        let not_syn = packet(false, ACK, &mss);
        let mut fragment = packet(false, SYN, &mss);
        fragment[7] = 3;
        let mut udp = packet(true, SYN, &mss);
        udp[6] = 17;
        let mut cut = packet(true, SYN, &mss);
        cut.pop();
        let after_end = packet(false, SYN, &[0, 0, 0, 0, 2, 4, 0x05, 0xb4]);
        let odd_length = packet(false, SYN, &[2, 3, 0x05, 0xb4]);
        let endless = packet(false, SYN, &[3, 0, 2, 4, 0x05, 0xb4, 0, 0]);
        for packet in [not_syn, fragment, udp, cut, after_end, odd_length, endless, vec![]] {
            assert_eq!(clamped(packet.clone(), 1420), packet);
        }
    }

    #[test]
    fn a_damaged_packet_stays_damaged() {
        let mut packet = packet(false, SYN, &[2, 4, 0x05, 0xb4]);
        packet[24] ^= 1;
        assert!(!is_intact(&clamped(packet, 1420)));
    }

    proptest! {
        #[test]
        fn any_options_keep_the_checksum(
            v6: bool,
            words in prop::collection::vec(prop_oneof![
                Just([1, 1, 1, 1]), Just([2, 4, 0x23, 0x00]), Just([1, 2, 4, 0xff]),
                Just([3, 3, 7, 2]), Just([4, 0xff, 0xff, 0]), any::<[u8; 4]>(),
            ], 0..=10),
            mtu: u16,
        ) {
            prop_assert!(is_intact(&clamped(packet(v6, SYN, words.as_flattened()), mtu)));
        }

        #[test]
        fn arbitrary_bytes_do_no_harm(
            mut bytes in prop::collection::vec(any::<u8>(), 0..120),
            version in prop_oneof![Just(0x45u8), Just(0x60), any::<u8>()],
            mtu: u16,
        ) {
            if let Some(first) = bytes.first_mut() {
                *first = version;
            }
            for at in [6, 9] {
                if let Some(protocol) = bytes.get_mut(at) {
                    *protocol = TCP;
                }
            }
            let len = bytes.len();
            clamp_mss(&mut bytes, Clamp::Mtu.segments(mtu));
            prop_assert_eq!(bytes.len(), len);
        }
    }
}
