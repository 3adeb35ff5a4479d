//! Addresses of the peer whose routes lead into this very tunnel.

use std::net::SocketAddr;

use super::Peer;
use crate::table::Path;
use crate::time::Now;

/// Addresses where the peer is not followed, and its former address.
#[derive(Debug, Default)]
pub(super) struct Detours {
    avoided: Vec<SocketAddr>,
    before: Option<SocketAddr>,
}

impl Detours {
    /// Whether datagrams to this address would come back through the tunnel.
    pub(super) fn lead_to(&self, address: SocketAddr) -> bool {
        self.avoided.contains(&address)
    }

    /// Avoids these addresses; returns whether another one is no longer avoided.
    pub(super) fn avoid(&mut self, addresses: Vec<SocketAddr>) -> bool {
        let freed = self.avoided.iter().any(|old| !addresses.contains(old));
        self.avoided = addresses;
        freed
    }

    /// The peer's former address, or one of the `configured` ones that is not avoided.
    pub(super) fn elsewhere(
        &self,
        configured: impl Iterator<Item = SocketAddr>,
    ) -> Option<SocketAddr> {
        let mut known = self.before.into_iter().chain(configured);
        known.find(|address| !self.lead_to(*address))
    }

    /// The peer's address has changed.
    pub(super) fn left(&mut self, path: Option<Path>) {
        self.before = path.map(|path| path.to).or(self.before);
    }
}

impl Peer {
    /// The routes to these addresses lead into the tunnel, so the peer is not followed there. If its current
    /// address is one of them, its former address or a configured one is used instead. An address that is no
    /// longer among them is tried at once.
    pub fn avoid(&mut self, now: Now, addresses: Vec<SocketAddr>) {
        if self.paths.avoid(addresses) {
            self.call_soon(now);
        }
        self.handle_wake(now);
    }

    /// Datagrams sent until now did not arrive.
    fn call_soon(&mut self, now: Now) {
        if self.keyring.current().is_none() {
            self.wanted = true;
            self.initiate_from = now.boot;
        } else {
            self.send_keepalive(now);
        }
        if let Some(attempt) = &mut self.attempt {
            attempt.hurry(now.boot);
        }
    }
}
