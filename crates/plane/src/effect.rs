//! What the daemon has to do for the control plane.

use std::net::SocketAddr;

use vpnd_device::Found;
use vpnd_protocol::peer::{Change, Diagnosis, Echo, Transmit};
use vpnd_protocol::table::Table;
use vpnd_protocol::timestamp::Timestamp;
use vpnd_tunnel::engine::RefusedPackets;
use vpnd_tunnel::view::Policy;

use crate::{InnerSource, Loop, Refused, State, Unresolved};

/// The next action. The order matters: a key is published before the datagram is sent that lets the peer use
/// it, and other programs are informed of a state only after it was reached.
pub enum Effect {
    /// Publish this table to the data threads.
    Publish(Box<Table>),
    /// Publish this policy to the data threads, from the next batch on.
    PublishPolicy(Policy),
    /// Set the device's MTU. Answered by [`Plane::mtu_set`](crate::Plane::mtu_set).
    SetMtu(u16),
    /// Report the new MTU to hooks and in the log.
    MtuIs(u16),
    /// Send the datagram. Answered by [`Plane::datagram_left`](crate::Plane::datagram_left), or by
    /// [`Plane::datagram_refused`](crate::Plane::datagram_refused).
    Transmit(Transmit),
    /// Store this timestamp so that it survives a reboot. Answered by
    /// [`Plane::floor_kept`](crate::Plane::floor_kept).
    KeepFloor(Timestamp),
    /// Ask the kernel how large a datagram to this address may be. Answered by
    /// [`Plane::path_measured`](crate::Plane::path_measured).
    MeasurePath(SocketAddr),
    /// Have the kernel fragment packets that are larger than this, or if `None`, larger than the MTU of the
    /// first link. Answered by [`Plane::fragments_at`](crate::Plane::fragments_at), if it succeeded.
    Fragment(Option<u16>),
    /// Set the DF bit of IPv4 datagrams, or clear it.
    DontFragment(bool),
    /// Listen for changes of the route of this datagram, and no longer for others.
    FollowRoute(Option<Transmit>),
    /// Look up the routes to the peer's addresses. Answered by
    /// [`Plane::routes_seen`](crate::Plane::routes_seen).
    AskRoutes {
        /// Look them up now. Otherwise some time after the last lookup, because many changes may come at once.
        at_once: bool,
    },
    /// Look up the peer's names again.
    LookUpNames,
    /// Send from another port. Answered by [`Plane::port_is`](crate::Plane::port_is).
    ChangePort,
    /// Ask whether the data threads' sends were refused since the last time. Answered by
    /// [`Plane::sending_checked`](crate::Plane::sending_checked).
    CheckSending,
    /// Forget that a send of the data threads was refused: it was to an address that the path has just left.
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
    /// Run the hooks for a peer that became alive or dead.
    Hooks {
        /// Whether it is alive.
        alive: bool,
        /// Its address.
        endpoint: Option<SocketAddr>,
    },
    /// Report the state of the tunnel and the peer's address to the service manager.
    Standing(State, Option<SocketAddr>),
    /// Report the answer to a PING to whoever requested it with [`Plane::ping`](crate::Plane::ping).
    Echo(Echo),
    /// Log this.
    Notify(Notice),
}

/// An event for the log.
#[derive(Debug, PartialEq, Eq)]
pub enum Notice {
    /// The peer's state has changed, but not its liveness.
    Change(Change),
    /// The protocol has found a fault. If it was found before, this contains only what is new.
    Diagnosis(Diagnosis),
    /// The protocol has found a known fault again.
    Again(Diagnosis),
    /// The peer became alive, or dead.
    Alive(bool),
    /// Several tries of a handshake were unanswered.
    NoAnswer,
    /// The number of handshake messages so far that were made for another key.
    BadMac1(u64),
    /// This host refuses to send to the peer.
    Refused(Refused),
    /// This host no longer refuses to send to the peer.
    Leaves,
    /// The routes to these addresses of the peer lead into the tunnel.
    Loops(Vec<Loop>),
    /// The routes to these addresses of the peer no longer lead into the tunnel.
    LoopsOver(Vec<SocketAddr>),
    /// Datagrams of this tunnel come out of its own device, although the given route to the peer does not lead
    /// there.
    Back(Option<Found>),
    /// Datagrams sent by this route to the peer come back through other tunnels of this host.
    Nested(Option<Found>),
    /// The kernel sends datagrams to the peer from an address of the tunnel.
    InnerSource(InnerSource),
    /// The kernel no longer sends them from an address of the tunnel.
    OuterSource,
    /// Names of the peer cannot be looked up, because a name server is only reached through the tunnel.
    Unresolved(Unresolved),
    /// Packets of the peer have source addresses that are not in `allowed_ips`.
    RefusedSource(RefusedPackets),
    /// The state of the tunnel has changed.
    State(State),
    /// Our port is fixed: nothing is sent for a while, so that a NAT on the path forgets the flow.
    FallsSilent,
    /// The route to the peer has changed.
    RouteChanged,
}
