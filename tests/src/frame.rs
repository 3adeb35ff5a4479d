//! Ethernet frames of a capture, and their contents.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The broadcast address.
pub const BROADCAST: [u8; 6] = [0xff; 6];
/// EtherType.
pub const ARP: u16 = 0x0806;
/// EtherType.
pub const IPV4: u16 = 0x0800;
/// EtherType.
pub const IPV6: u16 = 0x86dd;
/// EtherTypes of tags: 802.1Q's, and 802.1ad's around it.
const TAGS: [u16; 2] = [0x8100, 0x88a8];
/// The position of the EtherType, or of the first tag.
const TYPE: usize = 12;
/// IP protocol number.
const ICMP: u8 = 1;
/// IP protocol number.
const IGMP: u8 = 2;
/// IP protocol number.
const UDP: u8 = 17;
/// IP protocol number.
const ICMPV6: u8 = 58;
/// The extension header of all multicast listener reports.
const HOP_BY_HOP: u8 = 0;

/// A frame, from its destination to its last byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame(Vec<u8>);

/// An ARP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arp {
    /// Whether it is a request or a reply.
    pub asks: bool,
    /// The sender's address.
    pub sender: Ipv4Addr,
    /// The address that is requested, or replied to.
    pub target: Ipv4Addr,
}

/// An IP packet's own bytes.
#[derive(Debug, Clone, Copy)]
struct Packet<'a> {
    to: IpAddr,
    protocol: u8,
    payload: &'a [u8],
}

impl Frame {
    /// From bytes that contain at least the addresses and the type.
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The whole frame.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The destination address.
    pub fn is_to(&self, mac: [u8; 6]) -> bool {
        self.0.starts_with(&mac)
    }

    /// Its VLANs, outermost first.
    pub fn tags(&self) -> Vec<u16> {
        let at = (TYPE..self.behind_tags()).step_by(4);
        at.filter_map(|at| Some(self.word(at + 2)? & 0x0fff)).collect()
    }

    /// The EtherType after the tags.
    pub fn kind(&self) -> u16 {
        self.word(self.behind_tags()).unwrap_or_default()
    }

    /// Its contents, if it is ARP.
    pub fn arp(&self) -> Option<Arp> {
        let packet = self.payload().filter(|_| self.kind() == ARP)?;
        let address = |at: usize| Some(Ipv4Addr::from(*packet.get(at..)?.first_chunk::<4>()?));
        let asks = packet.get(6..8)? == [0, 1];
        Some(Arp { asks, sender: address(14)?, target: address(24)? })
    }

    /// The destination of its IP packet.
    pub fn destination(&self) -> Option<IpAddr> {
        self.packet().map(|packet| packet.to)
    }

    /// Whether it holds an IGMP message of this type.
    pub fn is_igmp(&self, kind: u8) -> bool {
        self.begins(IGMP) == Some(kind)
    }

    /// Whether it holds an ICMPv6 message of this type.
    pub fn is_icmpv6(&self, kind: u8) -> bool {
        self.begins(ICMPV6) == Some(kind)
    }

    /// The MTU that a router reports: "fragmentation needed", or "packet too big".
    pub fn next_mtu(&self) -> Option<u32> {
        let Packet { protocol, payload, .. } = self.packet()?;
        let told = u32::from_be_bytes(*payload.get(4..)?.first_chunk()?);
        match (protocol, payload[0], payload[1]) {
            (ICMP, 3, 4) => Some(told & 0xffff),
            (ICMPV6, 2, 0) => Some(told),
            _ => None,
        }
    }

    /// The ports and the payload, if it is UDP.
    pub fn udp(&self) -> Option<([u16; 2], &[u8])> {
        let segment = self.packet().filter(|packet| packet.protocol == UDP)?.payload;
        let ports = segment.first_chunk::<4>()?;
        let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
        Some(([port(0), port(2)], segment.get(8..)?))
    }

    fn begins(&self, protocol: u8) -> Option<u8> {
        let packet = self.packet().filter(|packet| packet.protocol == protocol)?;
        packet.payload.first().copied()
    }

    fn packet(&self) -> Option<Packet<'_>> {
        let packet = self.payload()?;
        match self.kind() {
            IPV4 => {
                let start = usize::from(packet.first()? & 15) * 4;
                let to = Ipv4Addr::from(*packet.get(16..)?.first_chunk::<4>()?);
                let payload = packet.get(start..)?;
                Some(Packet { to: to.into(), protocol: *packet.get(9)?, payload })
            }
            IPV6 => {
                let to = Ipv6Addr::from(*packet.get(24..)?.first_chunk::<16>()?);
                let (protocol, payload) = behind_options(*packet.get(6)?, packet.get(40..)?)?;
                Some(Packet { to: to.into(), protocol, payload })
            }
            _ => None,
        }
    }

    fn payload(&self) -> Option<&[u8]> {
        self.0.get(self.behind_tags() + 2..)
    }

    fn behind_tags(&self) -> usize {
        let is_tag = |at: &usize| self.word(*at).is_some_and(|kind| TAGS.contains(&kind));
        TYPE + 4 * (TYPE..).step_by(4).take_while(is_tag).count()
    }

    fn word(&self, at: usize) -> Option<u16> {
        self.0.get(at..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
    }
}

/// The part after the hop-by-hop options, if there are any.
fn behind_options(next: u8, payload: &[u8]) -> Option<(u8, &[u8])> {
    if next != HOP_BY_HOP {
        return Some((next, payload));
    }
    let len = 8 * (usize::from(*payload.get(1)?) + 1);
    Some((*payload.first()?, payload.get(len..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_behind_tags_is_found() {
        let tagged = [0x88, 0xa8, 0, 9, 0x81, 0, 0xe0, 7, 0x08, 0x06];
        let arp = [
            0, 1, 8, 0, 6, 4, 0, 2, 2, 0, 0, 0, 0, 1, 192, 0, 2, 1, 2, 0, 0, 0, 0, 2, 192, 0, 2, 2,
        ];
        let frame = Frame::new([&[0xff; 12][..], &tagged, &arp].concat());
        assert!(frame.is_to(BROADCAST));
        assert_eq!((frame.tags(), frame.kind()), (vec![9, 7], ARP));
        let [sender, target] = [1, 2].map(|last| Ipv4Addr::new(192, 0, 2, last));
        assert_eq!(frame.arp(), Some(Arp { asks: false, sender, target }));
        assert_eq!(Frame::new(vec![0; 13]).arp(), None);
    }

    #[test]
    fn what_is_behind_hop_by_hop_options_is_found() {
        let mut packet = [0; 40 + 8 + 4];
        packet[0] = 0x60;
        packet[40] = ICMPV6;
        packet[48] = 143;
        let frame = Frame::new([&[0x33; 12][..], &[0x86, 0xdd], &packet].concat());
        assert!(frame.is_icmpv6(143) && !frame.is_icmpv6(131) && frame.udp().is_none());
    }
}
