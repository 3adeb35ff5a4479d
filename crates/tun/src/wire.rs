//! Sizes and numbers of the headers at the beginning of a packet, and functions for the words in them.

/// TCP's protocol number in an IP header.
pub const TCP: u8 = 6;
/// UDP's protocol number.
pub const UDP: u8 = 17;

/// The length of an IPv4 header without options.
pub const IPV4_HEADER: usize = 20;
/// The length of an IPv6 header without extension headers.
pub const IPV6_HEADER: usize = 40;
/// The length of the longest packet whose header contains its length.
pub(crate) const MAX_PACKET: usize = 65_535;
/// The length of a TCP header without options.
pub const TCP_HEADER: usize = 20;
/// The length of a UDP header.
pub const UDP_HEADER: usize = 8;

pub(crate) const FIN: u8 = 0x01;
/// The flag of a TCP header that begins a connection.
pub const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const URG: u8 = 0x20;
pub(crate) const CWR: u8 = 0x80;

/// The length of an Ethernet header: two addresses and a type.
pub const ETHERNET_HEADER: usize = 14;
/// The length of the tag of a virtual LAN, before the type.
pub const VLAN_TAG: usize = 4;
/// The EtherType of IPv4.
pub const ETHER_IPV4: u16 = 0x0800;
/// The EtherType of IPv6.
pub const ETHER_IPV6: u16 = 0x86dd;
/// The EtherType of a tag of IEEE 802.1Q.
pub const ETHER_VLAN: u16 = 0x8100;
/// The EtherType of a service provider's tag (IEEE 802.1ad).
pub const ETHER_SERVICE_VLAN: u16 = 0x88a8;

/// The big-endian word at `at`.
///
/// # Panics
///
/// If the word is not within `bytes`.
#[inline]
pub fn word16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The big-endian double word at `at`.
#[inline]
pub(crate) fn word32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Writes a big-endian word at `at`.
///
/// # Panics
///
/// If the word is not within `bytes`.
#[inline]
pub fn put16(bytes: &mut [u8], at: usize, word: u16) {
    bytes[at..at + 2].copy_from_slice(&word.to_be_bytes());
}

/// The low 16 bits of a length that is known to fit into 16 bits.
#[inline]
pub const fn low16(len: usize) -> u16 {
    let [low, high, ..] = len.to_le_bytes();
    u16::from_le_bytes([low, high])
}
