//! What the peer's state machine reports: commands, which must be obeyed, changes of its state, and what it has found
//! out about a fault.

use std::net::SocketAddr;

use vpnd_crypto::key::PublicKey;

use crate::session::Role;
use crate::timestamp::Timestamp;

/// One report. All three kinds come from one queue, in the order in which they arose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Must be obeyed.
    Command(Command),
    /// The state has changed.
    Change(Change),
    /// Something is wrong, here or at the peer.
    Diagnosis(Diagnosis),
}

/// What the caller must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Write this timestamp where it survives, then call [`Peer::floor_kept`](super::Peer::floor_kept).
    KeepFloor(Timestamp),
    /// Nothing has been heard for long: what we send may be caught in a translation of addresses that
    /// leads nowhere, and every datagram from the same port keeps it alive. Send from another port; or where
    /// that is fixed, and a router is on the path, call [`Peer::fall_silent`](super::Peer::fall_silent).
    ChangePort,
}

/// How the state of the peer has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An initiation leaves.
    Initiating {
        /// Where to.
        to: SocketAddr,
        /// Which try of this attempt, from 1.
        attempt: u32,
    },
    /// A session stands; data may flow.
    Established(Role),
    /// Nobody answered any of the tries; the next packet or keepalive begins anew.
    GaveUp,
    /// The session is too old and none has taken its place.
    Lost,
    /// The peer stops, and says so.
    Closed,
    /// The first sign of life since the start, or since [`Change::Dead`].
    Alive,
    /// No sign of life for [`Config::dead_after`](super::Config::dead_after), or the peer stops. Follows
    /// [`Change::Alive`] always.
    Dead,
    /// It is known how much the path carries, or has changed.
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
        /// Where it led.
        from: SocketAddr,
        /// Where it leads.
        to: SocketAddr,
        /// That is an earlier one, which was good for long enough; otherwise the path was dead.
        returns: bool,
    },
    /// The peer's address changed.
    Moved {
        /// Where it is now.
        to: SocketAddr,
    },
}

/// A fault that the protocol lets one recognize.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Diagnosis {
    /// The answer to our initiation does not open: the preshared keys differ.
    AnswerDoesNotOpen,
    /// The peer has initiated so many times in a row without ever using the answer.
    NeverConfirms(u32),
    /// Somebody else's key initiated with us.
    UnknownPeer {
        /// Its public key.
        key: PublicKey,
        /// Its address.
        from: SocketAddr,
    },
    /// An authentic initiation that is no newer than the last: a replay, or the peer's clock was
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
    /// Nobody answered handshakes under our next key: they go on under the old one.
    RotationUnanswered,
    /// The peer answered the upgrade of a session with what does not fit: it misbehaves.
    UpgradeFailed,
    /// The peer begins sessions at two addresses in turn, much more often than it rekeys: two machines use its key.
    DuplicateKey {
        /// The two addresses, the smaller one first.
        addresses: [SocketAddr; 2],
    },
    /// The peer has said how its device is, where frames cross it. Comes with every session, so that a fault that is
    /// gone is known to be.
    Devices {
        /// The hardware address, if both have the same.
        same_mac: Option<[u8; 6]>,
        /// The MTUs, ours first, if they differ: longer frames get through in one direction alone.
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
