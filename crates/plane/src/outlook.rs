//! What is known of the routes to the peer's addresses.

use std::net::{IpAddr, SocketAddr};

use vpnd_device::Found;

/// An address of the peer whose route leads into the tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loop {
    /// The peer's address.
    pub to: SocketAddr,
    /// Its route.
    pub route: Found,
}

/// An address of the peer that the kernel would send to from an address of the tunnel itself, as it does where the
/// uplink has none: it takes one of any device. What is sent to that address enters the tunnel at the peer's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InnerSource {
    /// The peer's address.
    pub to: SocketAddr,
    /// The address of the tunnel.
    pub source: IpAddr,
    /// The device that has none.
    pub uplink: String,
}

impl std::fmt::Display for InnerSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { to, source, uplink } = self;
        let family = if source.is_ipv4() { "IPv4" } else { "IPv6" };
        write!(
            f,
            "the kernel would send to {to} from {source}, an address of the tunnel itself, where no answer \
             arrives: the uplink {uplink} has no global {family} address; give it one, or set [socket] source"
        )
    }
}

/// What is known of the routes to the peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outlook {
    /// Those that lead into the tunnel.
    pub loops: Vec<Loop>,
    /// One of them leads to a router.
    pub is_routed: bool,
    /// That of where the peer is.
    pub current: Option<Found>,
    /// The first address of the peer that would be sent to from an address of the tunnel.
    pub inner_source: Option<InnerSource>,
}

impl Outlook {
    /// Whether what is sent to this address comes back.
    pub fn leads_back(&self, to: SocketAddr) -> bool {
        self.loops.iter().any(|one| one.to == to)
    }
}
