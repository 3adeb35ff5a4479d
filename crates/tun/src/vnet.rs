//! The `virtio_net_hdr` in front of every packet that is read from or written to the device.

/// Bytes of an encoded [`VnetHeader`].
pub const VNET_LEN: usize = 10;

/// The size of a buffer for any packet: header, the longest packet, an Ethernet header with a VLAN tag. A
/// reader must not use a smaller buffer, because the kernel truncates packets without an error.
pub const READ_BUFFER: usize = VNET_LEN + 65_535 + 18;

/// Flag: the packet's checksum field contains only the folded pseudo-header sum.
pub(crate) const NEEDS_CSUM: u8 = 1;
pub(crate) const GSO_NONE: u8 = 0;
pub(crate) const GSO_TCPV4: u8 = 1;
pub(crate) const GSO_TCPV6: u8 = 4;
pub(crate) const GSO_UDP_L4: u8 = 5;
/// A flag bit in addition to the TCP types: CWR is set in the first segment.
pub(crate) const GSO_ECN: u8 = 0x80;

/// What the kernel reports about a packet: whether its checksum is complete, and whether it is a super-packet.
///
/// Its numbers are little-endian, which vpnd requests with `TUNSETVNETLE`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// Bit 0: the checksum must still be completed.
    pub flags: u8,
    /// The type of super-packet that follows; 0 for a plain packet.
    pub gso_type: u8,
    /// The length of all headers according to the kernel, which is not reliable.
    pub hdr_len: u16,
    /// The number of payload bytes of each segment.
    pub gso_size: u16,
    /// Where the bytes begin that the checksum covers.
    pub csum_start: u16,
    /// The position of the checksum, counted from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// The header of a packet that is complete.
    pub const PLAIN: Self =
        Self { flags: 0, gso_type: 0, hdr_len: 0, gso_size: 0, csum_start: 0, csum_offset: 0 };

    /// Removes the header from the bytes that a read returned; `None` if they are shorter than a header.
    pub fn decode(read: &[u8]) -> Option<(Self, &[u8])> {
        let (header, rest) = read.split_first_chunk::<VNET_LEN>()?;
        let [flags, gso_type, rem @ ..] = *header;
        let word = |at: usize| u16::from_le_bytes([rem[at], rem[at + 1]]);
        let header = Self {
            flags,
            gso_type,
            hdr_len: word(0),
            gso_size: word(2),
            csum_start: word(4),
            csum_offset: word(6),
        };
        Some((header, rest))
    }

    /// Encodes the header for a write.
    pub fn encode(&self) -> [u8; VNET_LEN] {
        let [h0, h1] = self.hdr_len.to_le_bytes();
        let [g0, g1] = self.gso_size.to_le_bytes();
        let [s0, s1] = self.csum_start.to_le_bytes();
        let [o0, o1] = self.csum_offset.to_le_bytes();
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_its_encoding() {
        let header = VnetHeader {
            flags: NEEDS_CSUM,
            gso_type: GSO_TCPV6 | GSO_ECN,
            hdr_len: 72,
            gso_size: 1388,
            csum_start: 40,
            csum_offset: 16,
        };
        let mut read = header.encode().to_vec();
        read.extend_from_slice(b"rest");
        assert_eq!(VnetHeader::decode(&read), Some((header, &b"rest"[..])));
    }

    #[test]
    fn the_plain_header_is_all_zero() {
        assert_eq!(VnetHeader::PLAIN.encode(), [0; VNET_LEN]);
    }

    #[test]
    fn a_short_read_has_no_header() {
        assert_eq!(VnetHeader::decode(&[0; VNET_LEN - 1]), None);
    }
}
