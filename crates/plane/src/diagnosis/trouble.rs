//! The possible faults.

use std::net::SocketAddr;

use vpnd_crypto::PublicKey;
use vpnd_device::Found;
use vpnd_tunnel::engine::RefusedPackets;

use super::names::Unresolved;
use crate::outlook::{InnerSource, Loop};
use crate::reach::Refused;

/// A known fault that prevents a tunnel from coming up, or from carrying all that it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The peer's response was made with another preshared key.
    AnswerDoesNotOpen,
    /// The peer initiates this number of times, and never confirms our responses.
    NeverConfirms(u32),
    /// An initiation arrived under this unknown public key.
    UnknownPeer(PublicKey),
    /// The peer's timestamp is older than an earlier one: its clock was probably set back.
    StaleInitiation,
    /// The peer announced that it was shutting down.
    Closed,
    /// The peer does not answer at all.
    NoAnswer,
    /// The number of handshake messages that were made for another key.
    BadMac1(u64),
    /// The route to the peer leads into the tunnel.
    Loop(Loop),
    /// Datagrams of this tunnel come out of its own device, although the given route to the peer does not
    /// lead there.
    Back(Option<Found>),
    /// Datagrams to the peer pass through other tunnels of this host, and come back.
    Nested(Option<Found>),
    /// Endpoints of the peer cannot be resolved.
    Unresolved(Unresolved),
    /// The kernel sends datagrams to the peer from an address of the tunnel.
    InnerSource(InnerSource),
    /// The peer's key is used at these two addresses in turn.
    DuplicateKey([SocketAddr; 2]),
    /// Both ends have this hardware address.
    SameMac([u8; 6]),
    /// The MTUs of the two ends differ: ours, theirs.
    MtuDiffers(u16, u16),
    /// Packets of the peer have source addresses that are not in `allowed_ips`.
    RefusedSource(RefusedPackets),
    /// Our own host refuses to send. It hides the faults that silence would suggest.
    Refused(Refused),
}

impl Trouble {
    /// Whether the fault prevents a tunnel that is up from carrying all that it should.
    pub const fn outlasts_a_session(&self) -> bool {
        matches!(
            self,
            Self::Loop(_)
                | Self::Back(_)
                | Self::Nested(_)
                | Self::DuplicateKey(_)
                | Self::SameMac(_)
                | Self::MtuDiffers(..)
                | Self::Refused(_)
                | Self::RefusedSource(_)
        )
    }
}
