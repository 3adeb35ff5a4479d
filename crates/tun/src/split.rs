//! Splits a super-packet exactly as the kernel's own segmentation would split it.

use thiserror::Error;

use crate::checksum::Sum;
use crate::layout::{Layout, Transport, Version};
use crate::vnet::{GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VnetHeader};
use crate::wire::{
    CWR, FIN, IPV4_HEADER, IPV6_HEADER, MAX_PACKET, PSH, TCP_HEADER, UDP_HEADER, low16, put16,
    word16, word32,
};

/// Prepares the single packets of `packet`, which was read behind `header`.
///
/// `prefix` bytes lie before the IP header: zero on a TUN device. A plain packet is one segment, which is
/// passed on unchanged except for a checksum that we have to complete.
///
/// # Errors
///
/// How the header and the packet contradict each other; the packet has to be dropped.
pub fn split(header: VnetHeader, packet: &[u8], prefix: usize) -> Result<Segments<'_>, SplitError> {
    if header.gso_type == GSO_NONE {
        return Segments::plain(header, packet);
    }
    Segments::of_super_packet(header, packet, prefix)
}

/// Why a packet was not split. Only a kernel that contradicts itself causes such an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SplitError {
    /// A type of super-packet that vpnd did not ask for.
    #[error("super-packet of a type that was not asked for")]
    UnknownType,
    /// The checksum is beyond the packet, or not where the protocol has it.
    #[error("checksum position does not fit the packet")]
    Checksum,
    /// A super-packet without a segment size.
    #[error("super-packet with segments of no length")]
    SegmentSize,
    /// The headers are incomplete, or do not match the super-packet's type.
    #[error("headers do not fit the super-packet's type")]
    Headers,
    /// The super-packet is longer than any IP packet.
    #[error("super-packet longer than 65535 bytes")]
    TooLong,
}

/// The remaining packets of one read.
#[derive(Clone, Debug)]
pub struct Segments<'a> {
    headers: &'a [u8],
    payload: &'a [u8],
    size: usize,
    left: usize,
    index: usize,
    completion: Completion,
}

/// What has to be completed in a segment after it is copied.
#[derive(Clone, Copy, Debug)]
enum Completion {
    Nothing,
    /// A plain packet whose checksum is not complete yet.
    Checksum(Field),
    /// One of several segments, whose headers are adapted, too. The sum is that of the pseudo header without
    /// the length.
    Headers(Layout, Sum),
}

/// Where the bytes begin that a checksum covers, and where it is stored.
#[derive(Clone, Copy, Debug)]
struct Field {
    start: usize,
    at: usize,
    /// Whether a checksum of zero is stored as all ones, which is the same number. UDP needs this, because zero
    /// would mean that there is no checksum; for a plain packet the kernel does it for every protocol.
    zero_as_ones: bool,
}

impl<'a> Segments<'a> {
    /// The number of remaining packets.
    pub const fn remaining(&self) -> usize {
        self.left
    }

    /// The length of the next packet; `None` after the last.
    pub fn next_len(&self) -> Option<usize> {
        (self.left > 0).then(|| self.headers.len() + self.payload.len().min(self.size))
    }

    /// Writes the next packet to `out`, which is the only copy of its payload. Writes nothing after the last
    /// packet.
    ///
    /// # Panics
    ///
    /// If `out` does not have [`next_len`](Self::next_len) bytes.
    pub fn write_next(&mut self, out: &mut [u8]) {
        let Some(len) = self.next_len() else { return };
        assert_eq!(out.len(), len, "room for exactly the next packet");
        let (payload, rest) = self.payload.split_at(len - self.headers.len());
        match self.completion {
            Completion::Nothing => out.copy_from_slice(payload),
            Completion::Checksum(field) => {
                out[..self.headers.len()].copy_from_slice(self.headers);
                self.write_payload(payload, out, field);
            }
            Completion::Headers(layout, pseudo) => {
                self.write_headers(out, &layout, pseudo);
                self.write_payload(payload, out, Field::of(&layout));
            }
        }
        self.payload = rest;
        self.left -= 1;
        self.index += 1;
    }

    /// Copies the payload behind the headers, which are already written, and completes the checksum.
    fn write_payload(&self, payload: &[u8], out: &mut [u8], field: Field) {
        let (headers, rest) = out.split_at_mut(self.headers.len());
        let sum = Sum::of(&headers[field.start..]) + Sum::copy(payload, rest);
        let checksum = match sum.checksum() {
            0 if field.zero_as_ones => 0xffff,
            checksum => checksum,
        };
        put16(headers, field.at, checksum);
    }

    fn write_headers(&self, out: &mut [u8], layout: &Layout, pseudo: Sum) {
        let len = out.len();
        let headers = &mut out[..self.headers.len()];
        headers.copy_from_slice(self.headers);
        if layout.version == Version::V4 {
            let id = word16(headers, layout.ip + 4).wrapping_add(low16(self.index));
            put16(headers, layout.ip + 4, id);
        }
        layout.set_lengths(headers, len);
        if layout.transport == Transport::Tcp {
            self.write_tcp(&mut headers[layout.l4..]);
        }
        let partial = pseudo + Sum::word(low16(len - layout.l4));
        put16(headers, layout.checksum_at(), partial.partial());
    }

    fn write_tcp(&self, tcp: &mut [u8]) {
        let [a, b, c, d, ..] = (self.index * self.size).to_le_bytes();
        let sequence = word32(tcp, 4).wrapping_add(u32::from_le_bytes([a, b, c, d]));
        tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
        if self.index > 0 {
            tcp[13] &= !CWR;
        }
        if self.left > 1 {
            tcp[13] &= !(FIN | PSH);
        }
    }

    fn plain(header: VnetHeader, packet: &'a [u8]) -> Result<Self, SplitError> {
        let whole = Self {
            headers: &[],
            payload: packet,
            size: packet.len(),
            left: 1,
            index: 0,
            completion: Completion::Nothing,
        };
        if header.flags & NEEDS_CSUM == 0 {
            return Ok(whole);
        }
        let field = Field::of_header(header);
        // The payload's part of the sum has to start on a word boundary.
        let end = field.start + (field.at + 2 - field.start).next_multiple_of(2);
        if field.at + 2 > packet.len() {
            return Err(SplitError::Checksum);
        }
        let (headers, payload) = packet.split_at(end.min(packet.len()));
        Ok(Self { headers, payload, completion: Completion::Checksum(field), ..whole })
    }

    fn of_super_packet(
        header: VnetHeader,
        packet: &'a [u8],
        prefix: usize,
    ) -> Result<Self, SplitError> {
        if packet.len() > prefix + MAX_PACKET {
            return Err(SplitError::TooLong);
        }
        let layout = layout(header, packet, prefix)?;
        let (headers, payload) = packet.split_at(layout.payload);
        let size = usize::from(header.gso_size);
        // Derived from the checksum field rather than from the addresses: with a routing header, the sum uses
        // another destination.
        let pseudo = Sum::word(word16(headers, layout.checksum_at()))
            - Sum::word(low16(packet.len() - layout.l4));
        Ok(Self {
            headers,
            payload,
            size,
            left: payload.len().div_ceil(size).max(1),
            index: 0,
            completion: Completion::Headers(layout, pseudo),
        })
    }
}

impl Field {
    fn of_header(header: VnetHeader) -> Self {
        let start = usize::from(header.csum_start);
        let at = start + usize::from(header.csum_offset);
        Self { start, at, zero_as_ones: true }
    }

    const fn of(layout: &Layout) -> Self {
        let zero_as_ones = matches!(layout.transport, Transport::Udp);
        Self { start: layout.l4, at: layout.checksum_at(), zero_as_ones }
    }
}

/// Finds the headers of a super-packet. Ignores `hdr_len`, which is wrong in forwarded packets.
fn layout(header: VnetHeader, packet: &[u8], prefix: usize) -> Result<Layout, SplitError> {
    let transport = transport(header.gso_type)?;
    if header.gso_size == 0 {
        return Err(SplitError::SegmentSize);
    }
    if header.flags & NEEDS_CSUM == 0 || header.csum_offset != transport.checksum_offset() {
        return Err(SplitError::Checksum);
    }
    let l4 = usize::from(header.csum_start);
    let version = version(packet.get(prefix..).unwrap_or_default(), header.gso_type)?;
    check_network(version, packet, prefix, l4)?;
    let payload = l4 + transport_header(transport, &packet[l4..])?;
    Ok(Layout { version, transport, ip: prefix, l4, payload })
}

fn transport(gso_type: u8) -> Result<Transport, SplitError> {
    match gso_type & !GSO_ECN {
        GSO_TCPV4 | GSO_TCPV6 => Ok(Transport::Tcp),
        GSO_UDP_L4 => Ok(Transport::Udp),
        _ => Err(SplitError::UnknownType),
    }
}

fn version(ip: &[u8], gso_type: u8) -> Result<Version, SplitError> {
    let first = ip.first().ok_or(SplitError::Headers)?;
    match (first >> 4, gso_type & !GSO_ECN) {
        (4, GSO_TCPV4 | GSO_UDP_L4) => Ok(Version::V4),
        (6, GSO_TCPV6 | GSO_UDP_L4) => Ok(Version::V6),
        _ => Err(SplitError::Headers),
    }
}

/// Checks that the IP header, and any IPv6 extension headers, end where the kernel's header says that the
/// transport header begins.
fn check_network(version: Version, packet: &[u8], ip: usize, l4: usize) -> Result<(), SplitError> {
    let fits = match version {
        Version::V4 => {
            let len = usize::from(packet[ip] & 0xf) * 4;
            len >= IPV4_HEADER && l4 == ip + len
        }
        Version::V6 => l4 >= ip + IPV6_HEADER,
    };
    if fits && l4 <= packet.len() { Ok(()) } else { Err(SplitError::Headers) }
}

/// The length of the transport header, which is checked to be within `bytes`.
fn transport_header(transport: Transport, bytes: &[u8]) -> Result<usize, SplitError> {
    let len = match transport {
        Transport::Tcp => usize::from(bytes.get(12).ok_or(SplitError::Headers)? >> 4) * 4,
        Transport::Udp => UDP_HEADER,
    };
    let least = if transport == Transport::Tcp { TCP_HEADER } else { UDP_HEADER };
    if len < least || len > bytes.len() { Err(SplitError::Headers) } else { Ok(len) }
}
