//! The parts of a table. A table is derived: the peer does not mark changes, but compares the table it would
//! publish with the published one, so that no change can be forgotten.

use std::net::SocketAddr;

use vpnd_crypto::key::PublicKey;

use super::Peer;
use crate::message::Index;
use crate::session::Generation;
use crate::table::{BOOTSTRAP_SLOTS, IDENTITIES, OPENING_SLOTS, Path};

/// Represents a [`Table`](crate::table::Table): equal if and only if the tables are. Sessions are compared by
/// generation, and constant settings are omitted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parts {
    sealing: Option<Generation>,
    path: Option<Path>,
    open: [Option<Generation>; OPENING_SLOTS + BOOTSTRAP_SLOTS],
    identities: [Option<PublicKey>; IDENTITIES],
    awaiting_cookie: [Option<Index>; 2],
    left: Option<SocketAddr>,
    holds: bool,
}

impl Parts {
    /// The parts of the table that `peer` would publish now.
    pub(super) fn of(peer: &Peer) -> Self {
        let sealing = peer.keyring.current().map(|session| session.opening.generation());
        let mut open = [None; OPENING_SLOTS + BOOTSTRAP_SLOTS];
        for (slot, key) in open.iter_mut().zip(peer.keyring.opening().chain(peer.bootstraps())) {
            *slot = Some(key.generation());
        }
        Self {
            sealing,
            path: peer.paths.current,
            open,
            identities: peer.identities.public_keys(),
            awaiting_cookie: peer.awaiting_cookie(),
            left: peer.paths.contests.before(),
            holds: peer.holds_until.is_some(),
        }
    }
}
