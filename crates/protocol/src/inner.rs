//! The contents of an opened datagram: nothing (a keepalive), one IP packet and its padding, or, on sessions
//! that allow it, a frame.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::drop_reason::DropReason;
use crate::frame::{self, Frame, Record};
use crate::session::Contents;

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;

/// The contents of transport data, as ranges and addresses only; the bytes stay in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inner {
    /// No contents: a keepalive.
    Keepalive,
    /// An IP packet in the first `len` bytes; what follows is padding.
    Packet {
        /// The packet's own length.
        len: usize,
        /// Its source address.
        source: IpAddr,
    },
    /// An Ethernet frame.
    Ethernet {
        /// Where it begins in the plaintext.
        start: usize,
        /// Its length.
        len: usize,
    },
    /// A control frame, in the first `len` bytes.
    Control {
        /// The plaintext's length.
        len: usize,
        /// The peer announces that it is shutting down.
        closes: bool,
        /// It only tests a path that is not in use: it does not count as traffic, and its source is not the
        /// peer's current address.
        aside: bool,
    },
    /// A fragment, in the first `len` bytes.
    Fragment {
        /// The plaintext's length.
        len: usize,
        /// It is the packet's first fragment.
        first: bool,
    },
}

impl Inner {
    /// Reads the contents of `plaintext`, on a session that may carry `contents`.
    ///
    /// # Errors
    /// [`DropReason::NotUpgraded`] for contents that a bootstrap session may not carry; otherwise as
    /// [`Inner::packet`] and [`frame::parse`].
    pub fn read(contents: Contents, plaintext: &[u8]) -> Result<Self, DropReason> {
        let Some(first) = plaintext.first() else { return Ok(Self::Keepalive) };
        match (contents, first >> 4) {
            (Contents::Packets, _) | (Contents::Frames, 4 | 6) => Self::packet(plaintext),
            (Contents::Bootstrap, 4 | 6) => Err(DropReason::NotUpgraded),
            (Contents::Ethernet, 4 | 6) => Err(DropReason::InnerMalformed),
            (Contents::Frames | Contents::Ethernet | Contents::Bootstrap, _) => {
                Self::frame(contents, plaintext)
            }
        }
    }

    /// Reads the length and source of the packet in `plaintext`.
    ///
    /// # Errors
    /// [`DropReason::InnerMalformed`] if it is neither IPv4 nor IPv6, or the length in its header exceeds the
    /// plaintext or is shorter than the header.
    pub fn packet(plaintext: &[u8]) -> Result<Self, DropReason> {
        let Some(first) = plaintext.first() else { return Ok(Self::Keepalive) };
        match first >> 4 {
            4 => Self::read_v4(plaintext),
            6 => Self::read_v6(plaintext),
            _ => None,
        }
        .ok_or(DropReason::InnerMalformed)
    }

    /// Whether a packet begins in it. Only such contents count as data, for timers and counters.
    pub(crate) const fn is_data(&self) -> bool {
        matches!(
            self,
            Self::Packet { .. } | Self::Ethernet { .. } | Self::Fragment { first: true, .. }
        )
    }

    fn frame(contents: Contents, plaintext: &[u8]) -> Result<Self, DropReason> {
        let len = plaintext.len();
        match frame::parse(plaintext)? {
            Frame::Control(records) => {
                let closes = records.clone().any(|record| record == Record::Close);
                let first = records.clone().next();
                let aside = first.is_some_and(|record| record.is_aside())
                    && records.clone().all(|record| record.is_aside());
                Ok(Self::Control { len, closes, aside })
            }
            _ if contents == Contents::Bootstrap => Err(DropReason::NotUpgraded),
            Frame::Fragment(fragment) => Ok(Self::Fragment { len, first: fragment.is_first() }),
            Frame::Ethernet(frame) if contents == Contents::Ethernet => {
                Ok(Self::Ethernet { start: frame::HEADER_LEN, len: frame.len() })
            }
            Frame::Ethernet(_) => Err(DropReason::UnknownFrame),
        }
    }

    fn read_v4(plaintext: &[u8]) -> Option<Self> {
        let header = plaintext.first_chunk::<IPV4_HEADER>()?;
        let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let source = Ipv4Addr::new(header[12], header[13], header[14], header[15]).into();
        (IPV4_HEADER..=plaintext.len()).contains(&len).then_some(Self::Packet { len, source })
    }

    fn read_v6(plaintext: &[u8]) -> Option<Self> {
        let header = plaintext.first_chunk::<IPV6_HEADER>()?;
        let len = usize::from(u16::from_be_bytes([header[4], header[5]])) + IPV6_HEADER;
        let source = Ipv6Addr::from(*header[8..].first_chunk::<16>()?).into();
        (len <= plaintext.len()).then_some(Self::Packet { len, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v4(total: u16, padding: usize) -> Vec<u8> {
        let mut packet = vec![0; usize::from(total) + padding];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        packet[12..16].copy_from_slice(&[192, 0, 2, 1]);
        packet
    }

    #[test]
    fn padding_is_trimmed_by_the_packets_own_length() {
        let source = Ipv4Addr::new(192, 0, 2, 1).into();
        assert_eq!(Inner::packet(&v4(29, 3)), Ok(Inner::Packet { len: 29, source }));
        assert_eq!(Inner::packet(&[]), Ok(Inner::Keepalive));
    }

    #[test]
    fn a_packet_that_lies_about_its_length_is_refused() {
        let mut long = v4(40, 0);
        long[3] = 41;
        assert_eq!(Inner::packet(&long), Err(DropReason::InnerMalformed));
        let mut short = v4(40, 0);
        short[3] = 19;
        assert_eq!(Inner::packet(&short), Err(DropReason::InnerMalformed));
        assert_eq!(Inner::packet(&[0x60; 39]), Err(DropReason::InnerMalformed));
        assert_eq!(Inner::packet(&[0; 16]), Err(DropReason::InnerMalformed));
    }

    proptest! {
        #[test]
        fn never_reads_past_the_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Inner::Packet { len, .. }) = Inner::packet(&bytes) {
                prop_assert!(len <= bytes.len());
            }
        }
    }
}
