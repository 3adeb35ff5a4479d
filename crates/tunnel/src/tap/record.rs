//! One captured packet: a header of fixed size, little-endian, and the packet. The same bytes go from the data threads
//! to the program that asked for the capture.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// What comes before a captured packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// Which way it went.
    pub direction: Direction,
    /// When: nanoseconds since 1970.
    pub time: u64,
    /// The number of bytes that follow.
    pub kept: u32,
    /// The length of the packet.
    pub len: u32,
    /// For [`Kind::Outer`]: what the socket knows of the datagram.
    pub datagram: Datagram,
}

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A packet or frame of the device.
    Inner,
    /// The payload of a UDP datagram.
    Outer,
    /// Lines of a key log.
    Keys,
    /// [`Counts`].
    Counts,
}

/// The way of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the peer.
    Sent,
    /// From the peer.
    Received,
}

/// The headers of a datagram, as far as the socket knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Its source; the unspecified address if the kernel chooses it.
    pub from: SocketAddr,
    /// Its destination.
    pub to: SocketAddr,
    /// TOS byte or traffic class.
    pub tos: u8,
    /// TTL or hop limit; 0 if it is not known.
    pub hops: u8,
}

impl Default for Datagram {
    fn default() -> Self {
        let nowhere = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
        Self { from: nowhere, to: nowhere, tos: 0, hops: 0 }
    }
}

impl Header {
    /// The number of bytes of a header.
    pub const LEN: usize = 56;

    pub(super) fn new(kind: Kind, direction: Direction, time: u64) -> Self {
        Self { kind, direction, time, kept: 0, len: 0, datagram: Datagram::default() }
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let Self { kind, direction, time, kept, len, datagram } = *self;
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&time.to_le_bytes());
        bytes[8..12].copy_from_slice(&kept.to_le_bytes());
        bytes[12..16].copy_from_slice(&len.to_le_bytes());
        bytes[16..20].copy_from_slice(&[kind as u8, direction as u8, datagram.tos, datagram.hops]);
        bytes[20..38].copy_from_slice(&address(datagram.from));
        bytes[38..56].copy_from_slice(&address(datagram.to));
        bytes
    }

    /// The header in these bytes; `None` if this release does not know its kind.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let [kind, direction, tos, hops] = array(&bytes[16..]);
        let kinds = [Kind::Inner, Kind::Outer, Kind::Keys, Kind::Counts];
        let (from, to) = (socket_address(&bytes[20..]), socket_address(&bytes[38..]));
        Some(Self {
            kind: *kinds.get(usize::from(kind))?,
            direction: *[Direction::Sent, Direction::Received].get(usize::from(direction))?,
            time: u64::from_le_bytes(array(bytes)),
            kept: u32::from_le_bytes(array(&bytes[8..])),
            len: u32::from_le_bytes(array(&bytes[12..])),
            datagram: Datagram { from, to, tos, hops },
        })
    }
}

/// An IPv4 address in its mapped form, and the port.
fn address(at: SocketAddr) -> [u8; 18] {
    let ip = match at.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    let mut bytes = [0; 18];
    bytes[..16].copy_from_slice(&ip.octets());
    bytes[16..].copy_from_slice(&at.port().to_le_bytes());
    bytes
}

fn socket_address(bytes: &[u8]) -> SocketAddr {
    let ip = Ipv6Addr::from(array::<16>(bytes));
    SocketAddr::new(IpAddr::from(ip).to_canonical(), u16::from_le_bytes(array(&bytes[16..])))
}

/// The first bytes; zeros in place of those that are missing.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.first_chunk().copied().unwrap_or([0; N])
}

/// How many packets there were since the start of the capture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Of the device.
    pub inner: Lost,
    /// Of the socket.
    pub outer: Lost,
}

/// How many packets of one kind there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// All of them.
    pub seen: u64,
    /// Those that found no room, so that the capture lacks them.
    pub lost: u64,
}

impl Lost {
    fn count(&mut self, fits: bool) {
        self.seen += 1;
        self.lost += u64::from(!fits);
    }
}

impl Counts {
    /// The number of bytes of a record of this.
    pub const LEN: usize = Header::LEN + 32;

    pub(super) fn count(&mut self, kind: Kind, fits: bool) {
        match kind {
            Kind::Inner => self.inner.count(fits),
            Kind::Outer => self.outer.count(fits),
            Kind::Keys | Kind::Counts => {}
        }
    }

    /// The record of these counts.
    pub fn record(&self) -> [u8; Self::LEN] {
        let header = Header { kept: 32, len: 32, ..Header::new(Kind::Counts, Direction::Sent, 0) };
        let mut bytes = [0; Self::LEN];
        bytes[..Header::LEN].copy_from_slice(&header.encode());
        let Self { inner, outer } = self;
        let counts = [inner.seen, inner.lost, outer.seen, outer.lost];
        for (place, count) in bytes[Header::LEN..].chunks_exact_mut(8).zip(counts) {
            place.copy_from_slice(&count.to_le_bytes());
        }
        bytes
    }

    /// The counts in the part of their record that follows the header.
    pub fn decode(bytes: &[u8]) -> Self {
        let mut counts = bytes.chunks_exact(8).map(|count| u64::from_le_bytes(array(count)));
        let mut one = || counts.next().unwrap_or_default();
        let mut lost = || Lost { seen: one(), lost: one() };
        Self { inner: lost(), outer: lost() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_crosses() {
        for (from, to) in [("192.0.2.1:7", "192.0.2.2:65535"), ("[2001:db8::1]:1", "[::]:2")] {
            let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
            let header = Header {
                kept: 100,
                len: 1500,
                datagram: Datagram { from, to, tos: 3, hops: 64 },
                ..Header::new(Kind::Outer, Direction::Received, 1_700_000_000_123_456_789)
            };
            assert_eq!(Header::decode(&header.encode()), Some(header));
        }
        let mut unknown = Header::new(Kind::Inner, Direction::Sent, 0).encode();
        unknown[16] = 4;
        assert_eq!(Header::decode(&unknown), None);
    }

    #[test]
    fn counts_cross() {
        let counts = Counts { inner: Lost { seen: 1, lost: 2 }, outer: Lost { seen: 3, lost: 4 } };
        let record = counts.record();
        let header = Header::decode(record.first_chunk().unwrap()).unwrap();
        assert_eq!((header.kind, header.kept as usize), (Kind::Counts, Counts::LEN - Header::LEN));
        assert_eq!(Counts::decode(&record[Header::LEN..]), counts);
    }
}
