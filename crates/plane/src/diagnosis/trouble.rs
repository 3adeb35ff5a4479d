//! The faults that may stand.

use std::net::SocketAddr;

use vpnd_crypto::PublicKey;
use vpnd_device::Found;
use vpnd_tunnel::engine::RefusedPackets;

use super::names::Unresolved;
use crate::outlook::{InnerSource, Loop};
use crate::reach::Refused;

/// What keeps a tunnel from coming up or from carrying all that it should, as far as one can know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The peer answers under another preshared key.
    AnswerDoesNotOpen,
    /// The peer initiates, and never uses our answers.
    NeverConfirms(u32),
    /// Somebody with this key initiates with us.
    UnknownPeer(PublicKey),
    /// The peer's clock is behind what it once said.
    StaleInitiation,
    /// The peer stopped, and said so.
    Closed,
    /// Nobody answers at all.
    NoAnswer,
    /// Handshake messages arrive that were made for another key: so many.
    BadMac1(u64),
    /// What is sent to the peer comes back out of the device.
    Loop(Loop),
    /// Own datagrams come out of the device, though the route to the peer, if there is one, leads elsewhere.
    Back(Option<Found>),
    /// What is sent to the peer goes through other tunnels of this host, and comes back.
    Nested(Option<Found>),
    /// Names of the peer cannot be looked up.
    Unresolved(Unresolved),
    /// What is sent to the peer is sent from an address of the tunnel.
    InnerSource(InnerSource),
    /// The peer's key is used at these two addresses in turn.
    DuplicateKey([SocketAddr; 2]),
    /// Both ends have this hardware address.
    SameMac([u8; 6]),
    /// Frames of one end are too long for the other: ours, theirs.
    MtuDiffers(u16, u16),
    /// Packets of the peer come from where `allowed_ips` lets none come from.
    RefusedSource(RefusedPackets),
    /// Our own host refuses to send. It hides what silence would seem to say of the peer.
    Refused(Refused),
}

impl Trouble {
    /// Whether it keeps a tunnel that is up from carrying all that it should.
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
