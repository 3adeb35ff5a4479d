//! Sizes that more than one crate depends on.

/// The least MTU of every IPv6 link (RFC 8200 §5), in bytes.
pub const LEAST_MTU_V6: u16 = 1280;

/// The MTU of Ethernet.
pub const ETHERNET_MTU: u16 = 1500;

/// The MTU of a TUN device over a path with the MTU of Ethernet, with IPv4 or IPv6. It is used until the path's
/// MTU is known.
pub const USUAL_MTU: u16 = 1420;

/// Bytes in front of a UDP payload over IPv4, without options.
pub const HEADERS_V4: u16 = 20 + 8;

/// Bytes in front of a UDP payload over IPv6, without extension headers.
pub const HEADERS_V6: u16 = 40 + 8;

/// The UDP payload that every path carries in one packet, in bytes. It is used until the path's MTU is known,
/// and after a report about the path that cannot be trusted.
pub const LEAST_DATAGRAM: u16 = LEAST_MTU_V6 - HEADERS_V6;

/// The largest UDP payload to send, in bytes. With headers it stays under the `gso_max_size` of 64 KiB, beyond which
/// the kernel splits a batch before the device.
pub const MAX_DATAGRAM: u16 = 65_000;
