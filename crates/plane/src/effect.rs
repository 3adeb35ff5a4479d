//! What the control plane wants done.

use std::net::SocketAddr;

use vpnd_device::Found;
use vpnd_protocol::peer::{Change, Diagnosis, Transmit};
use vpnd_protocol::table::Table;
use vpnd_protocol::timestamp::Timestamp;
use vpnd_tunnel::engine::RefusedPackets;
use vpnd_tunnel::view::Policy;

use crate::{InnerSource, Loop, Refused, State, Unresolved};

/// What is to be done next. The order is part of it: what the peer may use is published before the datagram leaves
/// that lets it, and what other programs are told is true by then.
pub enum Effect {
    /// Have the data threads work by this table.
    Publish(Box<Table>),
    /// Have the data threads go by this policy, the next batch first.
    PublishPolicy(Policy),
    /// Give the device this MTU. Answered by [`Plane::mtu_set`](crate::Plane::mtu_set).
    SetMtu(u16),
    /// Tell hooks and people that this is the MTU now.
    MtuIs(u16),
    /// Send the datagram. Answered by [`Plane::datagram_left`](crate::Plane::datagram_left), or by
    /// [`Plane::datagram_refused`](crate::Plane::datagram_refused).
    Transmit(Transmit),
    /// Write this timestamp where it survives. Answered by [`Plane::floor_kept`](crate::Plane::floor_kept).
    KeepFloor(Timestamp),
    /// Ask how large a datagram to this address may be. Answered by [`Plane::path_measured`](crate::Plane::path_measured).
    MeasurePath(SocketAddr),
    /// Have packets larger than this fragmented where they leave, or only those larger than the first link's if none.
    /// Answered by [`Plane::fragments_at`](crate::Plane::fragments_at), if it could be done.
    Fragment(Option<u16>),
    /// Set the DF bit of IPv4 datagrams, or clear it.
    DontFragment(bool),
    /// From now on listen for changes of the route of such a datagram; of none, if there is none.
    FollowRoute(Option<Transmit>),
    /// Ask for the routes to the peer's addresses. Answered by [`Plane::routes_seen`](crate::Plane::routes_seen).
    AskRoutes {
        /// Now; or as soon as it was not done a moment ago, since such changes come in crowds.
        at_once: bool,
    },
    /// Look the peer's names up again.
    LookUpNames,
    /// Send from another port. Answered by [`Plane::port_is`](crate::Plane::port_is).
    ChangePort,
    /// Ask whether the data threads' sends were refused since the last time. Answered by
    /// [`Plane::sending_checked`](crate::Plane::sending_checked).
    CheckSending,
    /// Forget a refusal of the data threads' sends: it was for an address that the path has just left.
    ForgetRefusal,
    /// Set the routes that depend on the peer.
    Routes {
        /// Whether the peer is alive.
        alive: bool,
    },
    /// Set the device's carrier, which follows the peer.
    Carrier {
        /// On or off.
        on: bool,
    },
    /// Run the hooks of a peer that has come to life or has died.
    Hooks {
        /// Whether it is alive.
        alive: bool,
        /// Where it is.
        endpoint: Option<SocketAddr>,
    },
    /// Tell the service manager the state of the tunnel, and where the peer is.
    Standing(State, Option<SocketAddr>),
    /// Tell people.
    Notify(Notice),
}

/// What people should know.
#[derive(Debug, PartialEq, Eq)]
pub enum Notice {
    /// The peer's state has changed otherwise than by coming to life or dying.
    Change(Change),
    /// The protocol has found a fault. Of one that is found over and over, only what is new.
    Diagnosis(Diagnosis),
    /// The protocol has found a fault once more that is known already.
    Again(Diagnosis),
    /// The peer has come to life, or has died.
    Alive(bool),
    /// Nobody has answered several tries.
    NoAnswer,
    /// Handshake messages arrive that were made for another key: so many so far.
    BadMac1(u64),
    /// This host refuses to send.
    Refused(Refused),
    /// It no longer does.
    Leaves,
    /// The routes to these addresses of the peer lead into the tunnel.
    Loops(Vec<Loop>),
    /// The routes to these addresses of the peer no longer lead into the tunnel.
    LoopsOver(Vec<SocketAddr>),
    /// Own datagrams come out of the device, though the route to the peer, if there is one, leads elsewhere.
    Back(Option<Found>),
    /// What is sent by the route to the peer comes back through other tunnels of this host.
    Nested(Option<Found>),
    /// What is sent to the peer is sent from an address of the tunnel.
    InnerSource(InnerSource),
    /// It no longer is.
    OuterSource,
    /// Names of the peer cannot be looked up, because a name server is reached through the tunnel.
    Unresolved(Unresolved),
    /// Packets of the peer come from where `allowed_ips` lets none come from.
    RefusedSource(RefusedPackets),
    /// The state of the tunnel is another one.
    State(State),
    /// Our port is fixed: nothing is sent for a while, so that a NAT on the path forgets the flow.
    FallsSilent,
    /// The route to the peer has changed.
    RouteChanged,
}
