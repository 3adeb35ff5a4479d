//! The headers of a datagram. The socket has only its payload and its addresses, so the headers are made anew.

use std::net::{IpAddr, SocketAddr};

use vpnd_tun::{Sum, pseudo_header};
use vpnd_tunnel::tap::Datagram;

const UDP: u8 = 17;
const UDP_HEADER: usize = 8;
const V4_HEADER: usize = 20;
/// What the kernel uses for a datagram without a wish.
const USUAL_HOPS: u8 = 64;

/// IP and UDP headers of a datagram with `len` bytes, of which `kept` were captured. Its checksum is right if all of them
/// were, and otherwise absent.
pub(super) fn headers(datagram: &Datagram, len: usize, kept: &[u8]) -> Vec<u8> {
    let Datagram { from, to, tos, hops } = *datagram;
    let (hops, udp_len) = (if hops == 0 { USUAL_HOPS } else { hops }, low16(UDP_HEADER + len));
    let addresses = [octets(from.ip()), octets(to.ip())].concat();
    let mut udp = udp_header(from, to, udp_len);
    if kept.len() == len {
        let sum = pseudo_header(&addresses, UDP, udp_len) + Sum::of(&udp) + Sum::of(kept);
        // A checksum of zero would mean that there is none.
        let checksum = Some(sum.checksum()).filter(|sum| *sum != 0).unwrap_or(u16::MAX);
        udp[6..].copy_from_slice(&checksum.to_be_bytes());
    }
    let mut headers = match to.ip() {
        IpAddr::V4(_) => v4(tos, hops, low16(V4_HEADER + UDP_HEADER + len), &addresses),
        IpAddr::V6(_) => v6(tos, hops, udp_len, &addresses),
    };
    headers.extend_from_slice(&udp);
    headers
}

fn v4(tos: u8, hops: u8, len: u16, addresses: &[u8]) -> Vec<u8> {
    let [high, low] = len.to_be_bytes();
    let mut header = vec![0x45, tos, high, low, 0, 0, 0, 0, hops, UDP, 0, 0];
    header.extend_from_slice(addresses);
    let checksum = Sum::of(&header).checksum();
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    header
}

fn v6(tos: u8, hops: u8, len: u16, addresses: &[u8]) -> Vec<u8> {
    let [high, low] = len.to_be_bytes();
    let mut header = vec![0x60 | tos >> 4, tos << 4, 0, 0, high, low, UDP, hops];
    header.extend_from_slice(addresses);
    header
}

fn udp_header(from: SocketAddr, to: SocketAddr, len: u16) -> [u8; UDP_HEADER] {
    let mut header = [0; UDP_HEADER];
    for (place, word) in header.chunks_exact_mut(2).zip([from.port(), to.port(), len]) {
        place.copy_from_slice(&word.to_be_bytes());
    }
    header
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// No datagram is longer.
fn low16(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(from: &str, to: &str) -> Datagram {
        Datagram { from: from.parse().unwrap(), to: to.parse().unwrap(), tos: 0xb9, hops: 0 }
    }

    #[test]
    fn the_headers_are_intact() {
        let at = datagram("192.0.2.1:51820", "192.0.2.2:7");
        let packet = [headers(&at, 5, b"hello"), b"hello".to_vec()].concat();
        assert_eq!(packet[..4], [0x45, 0xb9, 0, 33]);
        assert!(Sum::of(&packet[..20]).is_intact());
        assert!((pseudo_header(&packet[12..20], UDP, 13) + Sum::of(&packet[20..])).is_intact());
        assert_eq!(packet[20..26], [0xca, 0x6c, 0, 7, 0, 13]);

        let at = datagram("[2001:db8::1]:51820", "[2001:db8::2]:7");
        let packet = [headers(&at, 5, b"hello"), b"hello".to_vec()].concat();
        assert_eq!(packet[..8], [0x6b, 0x90, 0, 0, 0, 13, UDP, 64]);
        assert!((pseudo_header(&packet[8..40], UDP, 13) + Sum::of(&packet[40..])).is_intact());
    }

    #[test]
    fn a_cut_datagram_has_its_length_and_no_checksum() {
        let headers = headers(&datagram("192.0.2.1:1", "192.0.2.2:7"), 1000, b"he");
        assert_eq!((&headers[2..4], &headers[26..28]), (&[4, 4][..], &[0, 0][..]));
    }
}
