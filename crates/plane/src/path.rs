//! How large a datagram may be on the path to the peer.

use std::net::SocketAddr;
use std::time::Duration;

use vpnd_protocol::limits::MAX_DATAGRAM;
use vpnd_protocol::time::{BootTime, Now};
use vpnd_tunnel::udp::{packet_around, payload_within};

use crate::effect::Effect;
use crate::plane::Plane;

/// The size is asked for this often, at the most.
const MEASURE_EVERY: Duration = Duration::from_millis(100);

/// What is known of the size.
#[derive(Debug, Default)]
pub(crate) struct Size {
    measured: BootTime,
    /// The size that larger packets are fragmented at, where it is not the first link's.
    fragments: Option<u16>,
}

impl Plane {
    pub(crate) fn measure_path(&mut self) {
        if let Some(to) = self.peer.endpoint() {
            self.push(Effect::MeasurePath(to));
        }
    }

    /// Over IPv6 routers say how much a path carries, and the kernel keeps it with the route without a notification.
    /// While data flows it is asked for as often as everything else.
    pub(crate) fn measure_path_again(&mut self, now: BootTime) {
        let due = now.saturating_since(self.size.measured) >= MEASURE_EVERY;
        if due && self.peer.endpoint().is_some_and(|to| to.is_ipv6()) {
            self.size.measured = now;
            self.measure_path();
        }
    }

    /// The answer to [`Effect::MeasurePath`]: the largest UDP payload that the route to `to` takes in one packet.
    /// Without a route nothing is sent, whatever its size.
    pub fn path_measured(&mut self, now: Now, to: SocketAddr, routed: Option<u16>) {
        let configured = self.settings.mtu_max.map(|mtu| payload_within(mtu, to));
        if let Some(largest) = configured.into_iter().chain(routed).min() {
            self.peer.path_carries(now, largest.min(MAX_DATAGRAM));
        }
        let fragments = self.peer.fragments_of().map(|payload| packet_around(payload, to));
        if self.size.fragments != fragments {
            self.push(Effect::Fragment(fragments));
        }
    }

    /// [`Effect::Fragment`] was carried out.
    pub fn fragments_at(&mut self, size: Option<u16>) {
        self.size.fragments = size;
    }
}
