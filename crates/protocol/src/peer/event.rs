//! The reports of the peer's state machine: commands to the caller, changes of its state, diagnoses of a fault, and
//! answers that were requested.

use std::net::SocketAddr;

use vpnd_crypto::key::PublicKey;

use super::echo::Echo;
use crate::session::Role;
use crate::timestamp::Timestamp;

/// One report. All kinds come from one queue, in the order in which they occurred.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The caller must do this.
    Command(Command),
    /// The state has changed.
    Change(Change),
    /// Something is wrong, here or at the peer.
    Diagnosis(Diagnosis),
    /// A PING that was requested is answered.
    Echo(Echo),
}

/// What the caller must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Store this timestamp so that it survives a reboot, then call
    /// [`Peer::floor_kept`](super::Peer::floor_kept).
    KeepFloor(Timestamp),
    /// Nothing was received for long: a NAT may have a useless mapping for our flow, and every datagram from
    /// the same port keeps that mapping alive. Send from another port. If the port is fixed and a router is on
    /// the path, call [`Peer::fall_silent`](super::Peer::fall_silent) instead.
    ChangePort,
}

/// How the state of the peer has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An initiation is sent.
    Initiating {
        /// Its destination.
        to: SocketAddr,
        /// The number of the try in this attempt, from 1.
        attempt: u32,
    },
    /// A session is established; data may flow.
    Established(Role),
    /// All tries of an attempt are unanswered. The next packet or keepalive starts a new attempt.
    GaveUp,
    /// The session has expired and no other has replaced it.
    Lost,
    /// The peer announced that it is shutting down.
    Closed,
    /// The first sign of life since the start, or since [`Change::Dead`].
    Alive,
    /// No sign of life for [`Config::dead_after`](super::Config::dead_after), or the peer announced that it is
    /// shutting down. There is always a [`Change::Alive`] before it.
    Dead,
    /// The size that the path carries is now known, or has changed.
    PathCarries {
        /// The largest UDP payload.
        payload: u16,
    },
    /// Datagrams that leave in runs arrive as well as others on this path; or they do not, and leave singly.
    Segmentation {
        /// Whether they do.
        works: bool,
    },
    /// The path now leads to another configured address.
    Switched {
        /// The former address.
        from: SocketAddr,
        /// The new address.
        to: SocketAddr,
        /// The new address is an earlier configured one, which worked for long enough. Otherwise the path
        /// switched because it was dead.
        returns: bool,
    },
    /// The peer's address changed.
    Moved {
        /// Its new address.
        to: SocketAddr,
    },
}

/// A fault that the protocol can recognize.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Diagnosis {
    /// The response to our initiation does not decrypt: the preshared keys differ.
    AnswerDoesNotOpen,
    /// The peer has initiated this number of times in a row without confirming our response.
    NeverConfirms(u32),
    /// We received an initiation under a key that is not the peer's.
    UnknownPeer {
        /// The initiator's public key.
        key: PublicKey,
        /// The initiator's address.
        from: SocketAddr,
    },
    /// An authentic initiation whose timestamp is not newer than the last: a replay, or the peer's clock was
    /// set back.
    StaleInitiation {
        /// The timestamp it carries.
        got: Timestamp,
        /// The last one accepted.
        last: Timestamp,
    },
    /// An initiation was answered whose timestamp is more than a day ahead of our wall clock.
    StampAhead {
        /// The timestamp it carries.
        got: Timestamp,
    },
    /// Handshakes under our next key are unanswered, so we use the previous one again.
    RotationUnanswered,
    /// The peer's answer to the upgrade of a session is invalid: the peer misbehaves.
    UpgradeFailed,
    /// The peer initiates sessions from two addresses in turn, much more often than it rekeys: two machines use
    /// its key.
    DuplicateKey {
        /// The two addresses, the smaller one first.
        addresses: [SocketAddr; 2],
    },
    /// The comparison of the TAP devices of both ends. It is reported for every session, so that the caller
    /// also learns when a fault is gone.
    Devices {
        /// The hardware address, if both devices have the same.
        same_mac: Option<[u8; 6]>,
        /// The MTUs, ours first, if they differ: longer frames then arrive in one direction only.
        mtus: Option<(u16, u16)>,
    },
}

impl From<Command> for Event {
    fn from(command: Command) -> Self {
        Self::Command(command)
    }
}

impl From<Change> for Event {
    fn from(change: Change) -> Self {
        Self::Change(change)
    }
}

impl From<Diagnosis> for Event {
    fn from(diagnosis: Diagnosis) -> Self {
        Self::Diagnosis(diagnosis)
    }
}
