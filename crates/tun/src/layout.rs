//! The positions of the headers of a TCP or UDP packet, and the header fields that depend on its length.

use crate::checksum::{Sum, pseudo_header};
use crate::vnet::{GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4};
use crate::wire::{IPV4_HEADER, IPV6_HEADER, TCP, UDP, low16, put16};

/// The IP version of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    V4,
    V6,
}

/// The transport protocols for which there are super-packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    pub(crate) const fn protocol(self) -> u8 {
        match self {
            Self::Tcp => TCP,
            Self::Udp => UDP,
        }
    }

    /// The position of the checksum in the transport header.
    pub(crate) const fn checksum_offset(self) -> u16 {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }
}

/// Offsets from the start of a frame. They were checked: all headers are within the frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) version: Version,
    pub(crate) transport: Transport,
    /// The start of the IP header.
    pub(crate) ip: usize,
    /// The start of the transport header.
    pub(crate) l4: usize,
    /// The end of all headers.
    pub(crate) payload: usize,
}

impl Layout {
    pub(crate) const fn gso_type(&self) -> u8 {
        match (self.transport, self.version) {
            (Transport::Tcp, Version::V4) => GSO_TCPV4,
            (Transport::Tcp, Version::V6) => GSO_TCPV6,
            (Transport::Udp, _) => GSO_UDP_L4,
        }
    }

    pub(crate) const fn checksum_at(&self) -> usize {
        self.l4 + self.transport.checksum_offset() as usize
    }

    /// Writes every length field, and the IPv4 header checksum, for a frame of `len` bytes.
    pub(crate) fn set_lengths(&self, headers: &mut [u8], len: usize) {
        match self.version {
            Version::V4 => {
                put16(headers, self.ip + 2, low16(len - self.ip));
                put16(headers, self.ip + 10, 0);
                let sum = Sum::of(&headers[self.ip..self.l4]);
                put16(headers, self.ip + 10, sum.checksum());
            }
            Version::V6 => put16(headers, self.ip + 4, low16(len - self.ip - IPV6_HEADER)),
        }
        if self.transport == Transport::Udp {
            put16(headers, self.l4 + 4, low16(len - self.l4));
        }
    }

    /// The pseudo-header sum of a frame of `len` bytes.
    pub(crate) fn pseudo_header(&self, headers: &[u8], len: usize) -> Sum {
        let addresses = match self.version {
            Version::V4 => self.ip + 12..self.ip + IPV4_HEADER,
            Version::V6 => self.ip + 8..self.ip + IPV6_HEADER,
        };
        pseudo_header(&headers[addresses], self.transport.protocol(), low16(len - self.l4))
    }

    /// Whether the checksums of the IPv4 header and of the transport protocol of `frame` are right.
    pub(crate) fn is_intact(&self, frame: &[u8]) -> bool {
        let header_holds =
            self.version == Version::V6 || Sum::of(&frame[self.ip..self.l4]).is_intact();
        header_holds
            && (self.pseudo_header(frame, frame.len()) + Sum::of(&frame[self.l4..])).is_intact()
    }
}
