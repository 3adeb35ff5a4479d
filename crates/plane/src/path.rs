//! The largest datagram on the path to the peer.

use std::net::SocketAddr;
use std::time::Duration;

use vpnd_protocol::limits::{LEAST_MTU_V6, MAX_DATAGRAM};
use vpnd_protocol::session::OVERHEAD;
use vpnd_protocol::time::{BootTime, Now};
use vpnd_tunnel::udp::{packet_around, payload_within};

use crate::effect::Effect;
use crate::plane::Plane;

/// The least time between two queries of the size.
const MEASURE_EVERY: Duration = Duration::from_millis(100);

/// The state of the size.
#[derive(Debug, Default)]
pub(crate) struct Size {
    measured: BootTime,
    /// The kernel fragments packets that are larger than this, if it is not the MTU of the first link.
    fragments: Option<u16>,
    /// IPv4 datagrams are sent with the DF bit.
    dont_fragment: bool,
}

impl Plane {
    pub(crate) fn measure_path(&mut self) {
        if let Some(to) = self.peer.endpoint() {
            self.push(Effect::MeasurePath(to));
        }
    }

    /// Queries the size again. Over IPv6, and if DF is set, routers report that a path carries less, and the
    /// kernel stores this with the route without a notification. So the size is polled while data flows.
    pub(crate) fn measure_path_again(&mut self, now: BootTime) {
        let due = now.saturating_since(self.size.measured) >= MEASURE_EVERY;
        let is_followed = self.peer.probes_path() || self.settings.mtu_follows.is_some();
        let is_reported = |to: SocketAddr| to.is_ipv6() || is_followed;
        if due && self.peer.endpoint().is_some_and(is_reported) {
            self.size.measured = now;
            self.measure_path();
        }
    }

    /// The answer to [`Effect::MeasurePath`]: the largest UDP payload that fits one packet on the route to
    /// `to`. `None` without a route; then nothing can be sent anyway.
    pub fn path_measured(&mut self, now: Now, to: SocketAddr, routed: Option<u16>) {
        let configured = self.settings.mtu_max.map(|mtu| payload_within(mtu, to));
        if let Some(largest) = routed.or(configured) {
            let permitted = configured.unwrap_or(MAX_DATAGRAM).min(MAX_DATAGRAM);
            self.peer.path_carries(now, largest, permitted);
        }
        let fragments = self.peer.fragments_of().map(|payload| packet_around(payload, to));
        if self.size.fragments != fragments {
            self.push(Effect::Fragment(fragments));
        }
    }

    /// The path carries datagrams with this payload: sets the device's MTU accordingly, if it follows the path.
    /// The MTU is at least 1280 bytes, which IPv6 requires of every link.
    pub(crate) fn follow_path(&mut self, payload: u16) {
        let Some(most) = self.settings.mtu_follows else { return };
        let fits = inner(payload).max(LEAST_MTU_V6).min(most);
        let policy = self.policies.wanted();
        if policy.mtu() != fits {
            self.set_policy(policy.clone().with_mtu(fits));
        }
    }

    /// Whether the device's MTU follows the path.
    pub const fn mtu_follows(&self) -> bool {
        self.settings.mtu_follows.is_some()
    }

    /// Makes the device's MTU follow the path, up to `most` bytes; with `None` it no longer follows.
    pub fn follow_path_mtu(&mut self, most: Option<u16>) {
        self.settings.mtu_follows = most;
        if let Some(payload) = self.peer.path_payload() {
            self.follow_path(payload);
        }
    }

    /// Sets or clears the DF bit, if that has to change. Probes need it: they measure nothing if routers
    /// fragment them.
    pub(crate) fn set_fragmentation(&mut self) -> Option<Effect> {
        let set = self.peer.probes_path();
        let changed = std::mem::replace(&mut self.size.dont_fragment, set) != set;
        changed.then_some(Effect::DontFragment(set))
    }

    /// [`Effect::Fragment`] was carried out.
    pub fn fragments_at(&mut self, size: Option<u16>) {
        self.size.fragments = size;
    }
}

/// The longest packet in a datagram with this UDP payload.
fn inner(payload: u16) -> u16 {
    u16::try_from(usize::from(payload).saturating_sub(OVERHEAD)).unwrap_or(u16::MAX)
}
