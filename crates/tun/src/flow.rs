//! Classifies packets: determines the flow of each packet, and whether the kernel's GRO could merge it.

use crate::layout::{Layout, Transport, Version};
use crate::wire::{
    CWR, ETHER_IPV4, ETHER_IPV6, FIN, IPV4_HEADER, IPV6_HEADER, PSH, RST, SYN, TCP, TCP_HEADER,
    UDP, UDP_HEADER, URG, word16, word32,
};

/// How a packet affects the flows around it.
pub(crate) enum Class {
    /// May be merged with its neighbours in the flow.
    Mergeable(Flow, Segment),
    /// Belongs to the flow, but must not be merged.
    Alone(Flow),
    /// Belongs to an unknown flow between these hosts: fragments, options, other protocols.
    Opaque(Hosts),
    /// Not an IP packet.
    Foreign,
}

/// Source and destination address, as in the header; with IPv4 the other bytes are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hosts([u8; 32], Version);

/// Identifies packets that must not be reordered among themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    // Compared first, because the ports of most flows differ.
    ports: [u8; 4],
    transport: Transport,
    pub(crate) hosts: Hosts,
}

/// A whole, unfragmented TCP or UDP packet with payload and nothing unusual in its headers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) layout: Layout,
    /// The number of bytes of payload.
    pub(crate) len: usize,
    /// The IPv4 identification; zero in IPv6.
    pub(crate) id: u16,
    /// The TCP sequence number; zero in UDP.
    pub(crate) sequence: u32,
    /// FIN and PSH: each of them ends a super-packet.
    pub(crate) ending: u8,
    pub(crate) constant: Constant,
}

impl Segment {
    /// Whether the next packet may have the same identification. When the kernel splits a super-packet, it
    /// increments the identification (`virtio_net_hdr` has no flag for a fixed one). That is harmless if the
    /// identification is not needed: with DF set (RFC 6864 §4.1), and in IPv6. With DF clear, fragments of two
    /// packets could get the same identification.
    ///
    /// This differs from GRO: kernels from 6.18 on merge packets with equal identifications even with DF clear,
    /// because their own super-packets record that the identification was fixed.
    pub(crate) fn may_repeat_id(&self) -> bool {
        self.layout.version == Version::V6
            || self.constant.network[1] & u32::from(DONT_FRAGMENT) != 0
    }
}

/// Header fields that must be equal in all packets of a super-packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Constant {
    /// TOS, DF and TTL, or class, flow label and hop limit.
    network: [u32; 2],
    acknowledgment: u32,
    /// Data offset, flags without FIN and PSH, window.
    control: u32,
    urgent: u16,
}

/// Classifies the packet behind `prefix` bytes of `frame`.
pub(crate) fn classify(frame: &[u8], prefix: usize) -> Class {
    let Some(network) = Network::parse(frame, prefix) else { return Class::Foreign };
    let Some((flow, transport)) = flow(frame, &network) else {
        return Class::Opaque(network.hosts);
    };
    let segment = match transport {
        Transport::Tcp => tcp(frame, &network),
        Transport::Udp => udp(frame, &network),
    };
    segment.map_or(Class::Alone(flow), |segment| Class::Mergeable(flow, segment))
}

struct Network {
    version: Version,
    hosts: Hosts,
    ip: usize,
    l4: usize,
    /// The protocol, if the packet is complete, is not a fragment and has no options.
    protocol: Option<u8>,
    id: u16,
    constant: [u32; 2],
}

impl Network {
    fn parse(frame: &[u8], prefix: usize) -> Option<Self> {
        let ip = frame.get(prefix..)?;
        match ip.first()? >> 4 {
            4 if is_ether_type(frame, prefix, ETHER_IPV4) => Self::v4(ip, prefix),
            6 if is_ether_type(frame, prefix, ETHER_IPV6) => Self::v6(ip, prefix),
            _ => None,
        }
    }

    fn v4(ip: &[u8], prefix: usize) -> Option<Self> {
        let header: &[u8; IPV4_HEADER] = ip.first_chunk()?;
        let fragment = word16(header, 6);
        let plain = header[0] == 0x45
            && usize::from(word16(header, 2)) == ip.len()
            && fragment & !DONT_FRAGMENT == 0;
        let mut hosts = [0; 32];
        hosts[..8].copy_from_slice(&header[12..]);
        Some(Self {
            version: Version::V4,
            hosts: Hosts(hosts, Version::V4),
            ip: prefix,
            l4: prefix + IPV4_HEADER,
            protocol: plain.then_some(header[9]),
            id: word16(header, 4),
            constant: [u32::from(header[1]) << 8 | u32::from(header[8]), u32::from(fragment)],
        })
    }

    fn v6(ip: &[u8], prefix: usize) -> Option<Self> {
        let header: &[u8; IPV6_HEADER] = ip.first_chunk()?;
        let whole = usize::from(word16(header, 4)) == ip.len() - IPV6_HEADER;
        let mut hosts = [0; 32];
        hosts.copy_from_slice(&header[8..]);
        Some(Self {
            version: Version::V6,
            hosts: Hosts(hosts, Version::V6),
            ip: prefix,
            l4: prefix + IPV6_HEADER,
            protocol: whole.then_some(header[6]),
            id: 0,
            constant: [word32(header, 0), u32::from(header[7])],
        })
    }

    /// A mergeable packet, if its headers end at `payload` and at least one byte follows.
    fn segment(&self, frame: &[u8], transport: Transport, payload: usize) -> Option<Segment> {
        let len = frame.len().checked_sub(payload).filter(|len| *len > 0)?;
        let Self { version, ip, l4, .. } = *self;
        Some(Segment {
            layout: Layout { version, transport, ip, l4, payload },
            len,
            id: self.id,
            sequence: 0,
            ending: 0,
            constant: Constant { network: self.constant, ..Constant::default() },
        })
    }
}

/// Whether the frame has this EtherType. Without an Ethernet header, only the first nibble shows the protocol.
fn is_ether_type(frame: &[u8], prefix: usize, ether_type: u16) -> bool {
    prefix < 2 || word16(frame, prefix - 2) == ether_type
}

fn flow(frame: &[u8], network: &Network) -> Option<(Flow, Transport)> {
    let transport = match network.protocol? {
        TCP => Transport::Tcp,
        UDP => Transport::Udp,
        _ => return None,
    };
    let ports = *frame[network.l4..].first_chunk()?;
    Some((Flow { ports, transport, hosts: network.hosts }, transport))
}

fn tcp(frame: &[u8], network: &Network) -> Option<Segment> {
    let tcp: &[u8; TCP_HEADER] = frame[network.l4..].first_chunk()?;
    let header = usize::from(tcp[12] >> 4) * 4;
    if header < TCP_HEADER || tcp[13] & (CWR | URG | RST | SYN) != 0 {
        return None;
    }
    let segment = network.segment(frame, Transport::Tcp, network.l4 + header)?;
    Some(Segment {
        sequence: word32(tcp, 4),
        ending: tcp[13] & ENDING,
        constant: Constant {
            acknowledgment: word32(tcp, 8),
            control: word32(tcp, 12) & !(u32::from(ENDING) << 16),
            urgent: word16(tcp, 18),
            ..segment.constant
        },
        ..segment
    })
}

fn udp(frame: &[u8], network: &Network) -> Option<Segment> {
    let udp: &[u8; UDP_HEADER] = frame[network.l4..].first_chunk()?;
    let whole = usize::from(word16(udp, 4)) == frame.len() - network.l4;
    let checksummed = word16(udp, 6) != 0;
    if !whole || !checksummed {
        return None;
    }
    network.segment(frame, Transport::Udp, network.l4 + UDP_HEADER)
}

const ENDING: u8 = FIN | PSH;
const DONT_FRAGMENT: u16 = 0x4000;
