//! The fields of the outer IP header that depend on the packet inside.

use std::num::NonZeroU8;

use vpnd_tun::Mode;

use crate::ecn::Ecn;
use crate::nested::Nested;

/// The properties, apart from their size, that the datagrams of one run share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outer {
    pub(crate) ecn: Ecn,
    /// The hop limit of a datagram that carries another tunnel's datagram; `None` for the host's default.
    pub(crate) hops: Option<NonZeroU8>,
}

impl Outer {
    /// The outer fields for a packet that crosses the device, or for the packet in a frame.
    pub(crate) fn of(mode: Mode, packet: &[u8]) -> Self {
        let Some(ip) = mode.ip_start(packet).and_then(|start| packet.get(start..)) else {
            return Self::default();
        };
        let hops = Nested::read(ip).filter(Nested::is_head).and_then(|nested| nested.carried());
        Self { ecn: Ecn::of_packet(ip), hops }
    }
}

impl From<Ecn> for Outer {
    fn from(ecn: Ecn) -> Self {
        Self { ecn, hops: None }
    }
}
