//! The control plane's publication to the data threads: one immutable table, replaced as a whole. A message
//! that lets the peer use a key is sent only after the table with that key was published.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::cookie::Mac1Key;
use crate::drop_reason::DropReason;
use crate::endpoint::Roam;
use crate::message::{self, INITIATION_LEN, Index, Message, Named};
use crate::session::{OpeningKey, SealingKey};
use crate::time::BootTime;

/// The number of sessions that open datagrams and may carry data.
pub const OPENING_SLOTS: usize = 6;
/// The number of sessions that wait for their upgrade: one in each role.
pub const BOOTSTRAP_SLOTS: usize = 2;

/// The number of keys an end may have: the current one and the next.
pub const IDENTITIES: usize = 2;

/// The path to the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The peer's address.
    pub to: SocketAddr,
    /// Our address that the peer last sent to, or the configured one; `None` lets the kernel choose.
    pub from: Option<IpAddr>,
    /// Whether datagrams have to leave from there. Otherwise that is the kernel's own choice, so it is left to the kernel:
    /// when the route moves, the very next datagram leaves from the right address.
    pub pinned: bool,
    /// The largest UDP payload to send.
    pub max_datagram: u16,
    /// The differentiated services code point of sent datagrams.
    pub dscp: u8,
    /// Each datagram is sent by itself, because runs arrive less well.
    pub singly: bool,
}

impl Path {
    /// The source address that the kernel is told; `None` lets it choose.
    pub fn source(&self) -> Option<IpAddr> {
        self.from.filter(|_| self.pinned)
    }
}

/// The data threads' settings.
pub struct Table {
    /// The key to seal with and the path; without both nothing is sent.
    pub send: Option<(Arc<SealingKey>, Path)>,
    /// The path, even if there is no key that seals.
    pub path: Option<Path>,
    /// The keys to open with.
    pub open: [Option<Arc<OpeningKey>>; OPENING_SLOTS + BOOTSTRAP_SLOTS],
    /// The checkers of handshake messages made for us.
    pub mac1: [Option<Mac1Key>; IDENTITIES],
    /// Our pending handshakes that a cookie reply may answer.
    pub awaiting_cookie: [Option<Index>; 2],
    /// The new addresses to which the peer is followed.
    pub roam: Roam,
    /// The peer's address before its last move.
    pub left: Option<SocketAddr>,
    /// Nothing is read from the device: a session is about to be established, and packets can wait there better than in
    /// the data threads.
    pub holds: bool,
    /// The data threads stop.
    pub stop: bool,
}

impl Table {
    /// Whether the data threads stop without finishing what they have read.
    pub const fn stops_at_once(&self) -> bool {
        self.stop && self.send.is_none()
    }

    /// The key with our index `index`.
    pub fn opening(&self, index: Index) -> Option<&Arc<OpeningKey>> {
        self.open.iter().flatten().find(|key| key.index() == index)
    }

    /// Whether there is a key that still seals and a path, so that staged packets can be sent.
    pub fn sends_at(&self, now: BootTime) -> bool {
        self.send.as_ref().is_some_and(|(key, _)| key.seals_at(now))
    }

    /// The largest datagram to make, if the peer reassembles fragments; if it does not, `None`: no limit
    /// applies here.
    pub fn largest_datagram(&self) -> Option<usize> {
        let (key, path) = self.send.as_ref()?;
        key.carries_frames().then(|| path.max_datagram.into())
    }

    /// Whether a UDP datagram from the device is one that this tunnel has sent, given its addresses and at
    /// least its first bytes: it contains an index of a session or handshake of ours, or goes from our
    /// address and port to the peer's. Another tunnel's datagrams never match, not even with the same peer.
    pub fn sent(&self, local_port: u16, from: SocketAddr, to: SocketAddr, payload: &[u8]) -> bool {
        let by_name = match message::named(payload) {
            Some(Named::Sender(index)) => {
                self.awaiting_cookie.contains(&Some(index)) || self.opening(index).is_some()
            }
            Some(Named::Receiver(index)) => {
                self.send.as_ref().is_some_and(|(key, _)| key.receiver() == index)
            }
            None => false,
        };
        by_name || self.is_from_here(local_port, from, to)
    }

    /// Whether it goes from this tunnel's source address and port to the peer's.
    fn is_from_here(&self, local_port: u16, from: SocketAddr, to: SocketAddr) -> bool {
        let Some((_, path)) = &self.send else { return false };
        from.port() == local_port
            && path.from == Some(from.ip())
            && (to.ip(), to.port()) == (path.to.ip(), path.to.port())
    }

    /// Whether a datagram with these addresses, if it is authentic, changes the path.
    pub(crate) fn is_elsewhere(&self, at: Arrival) -> bool {
        let Some(path) = &self.path else { return true };
        let moved = at.from != path.to && self.roam.permits(path.to, at.from);
        moved || (at.from == path.to && at.local.is_some() && at.local != path.from)
    }

    /// Whether a datagram with these addresses confirms the current path.
    pub(crate) fn is_here(&self, at: Arrival) -> bool {
        self.path
            .is_some_and(|path| at.from == path.to && (at.local.is_none() || at.local == path.from))
    }

    /// Whether data goes to this address.
    pub(crate) fn leads_to(&self, address: SocketAddr) -> bool {
        self.path.is_some_and(|path| path.to == address)
    }

    /// Whether a copy matters, if a datagram came from `first` and its copy from `copy`: the copy came from the
    /// peer's current address, or one of the two came from its former address.
    pub(crate) fn is_contested(&self, first: SocketAddr, copy: SocketAddr) -> bool {
        let current = self.path.map(|path| path.to);
        current == Some(copy) || self.left.is_some_and(|left| left == first || left == copy)
    }

    /// Admits a handshake message to the control plane if it is plausible: a message 1 or 2 whose mac1 was made
    /// for us, or a cookie reply that we wait for.
    ///
    /// # Errors
    /// The reason to drop it; nothing has changed.
    pub fn admit(&self, at: Arrival, datagram: &[u8]) -> Result<Admitted, DropReason> {
        match at.parse(datagram)? {
            Message::Initiation(_) | Message::Response(_) => {
                if !self.mac1.iter().flatten().any(|key| key.verify(datagram)) {
                    return Err(DropReason::BadMac1);
                }
            }
            Message::CookieReply(reply) => {
                if !self.awaiting_cookie.contains(&Some(reply.receiver)) {
                    return Err(DropReason::UnknownIndex);
                }
            }
            Message::Data { .. } => return Err(DropReason::UnknownIndex),
        }
        Ok(Admitted::new(at, datagram))
    }
}

/// The source of a datagram, and the address of ours that it was sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The sender.
    pub from: SocketAddr,
    /// Our address, if the kernel reported it.
    pub local: Option<IpAddr>,
}

impl Arrival {
    /// Parses a datagram with these addresses. One from source port 0 cannot be answered, and is always
    /// forged.
    ///
    /// # Errors
    /// [`DropReason::Malformed`].
    pub fn parse(self, datagram: &[u8]) -> Result<Message<'_>, DropReason> {
        if self.from.port() == 0 {
            return Err(DropReason::Malformed);
        }
        message::parse(datagram).map_err(|_malformed| DropReason::Malformed)
    }
}

/// A handshake message that [`Table::admit`] let pass, of fixed size so that a queue of them is
/// bounded.
#[derive(Clone, Debug)]
pub struct Admitted {
    at: Arrival,
    len: usize,
    bytes: [u8; INITIATION_LEN],
}

impl Admitted {
    fn new(at: Arrival, datagram: &[u8]) -> Self {
        let mut bytes = [0; INITIATION_LEN];
        bytes[..datagram.len()].copy_from_slice(datagram);
        Self { at, len: datagram.len(), bytes }
    }

    /// Its source, and our address.
    pub const fn at(&self) -> Arrival {
        self.at
    }

    /// The message as received.
    pub fn datagram(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}
