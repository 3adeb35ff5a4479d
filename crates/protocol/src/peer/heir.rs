//! The sessions of a process that ends, for the next process of the same tunnel.

use std::time::Duration;

use super::Peer;
use crate::inheritance::{Inheritance, Lived, Reached};
use crate::time::Now;

/// How long packets wait in the device for the first session: a few tries of a handshake on a long path.
const HOLDS_FOR: Duration = Duration::from_secs(2);

impl Peer {
    /// Ends all sessions without a word to the peer, and returns what the next process needs to open what the peer still
    /// sends. Nothing is sealed any more by this process. The data threads have ended.
    pub fn hand_on(&mut self, now: Now) -> Inheritance {
        self.handle_wake(now);
        (self.attempt, self.answering, self.wanted) = (None, None, false);
        self.transmits.clear();
        Inheritance { keys: self.keyring.hand_on(), ..self.outlook() }
    }

    /// What [`hand_on`](Self::hand_on) would return, without the sessions, which stay here.
    pub fn outlook(&self) -> Inheritance {
        let (alive, since) = self.life.state();
        let heard = self.life.heard_alive().filter(|_| alive);
        Inheritance {
            keys: Vec::new(),
            path: self.paths.current.map(|path| Reached { to: path.to, from: path.from }),
            life: heard.map(|heard| Lived { since, heard }),
            stamp: self.stamper.last(),
            accepted: self.identities.all_stamps(),
        }
    }

    /// Continues where an earlier process of this tunnel has ended: opens what the peer still sends on its sessions, and
    /// initiates a handshake at once. Until it is complete, nothing else is sent.
    pub fn inherit(&mut self, now: Now, left: Inheritance) {
        self.generation = left.keys.iter().map(|key| key.generation()).max().unwrap_or_default();
        self.keyring.inherit(left.keys);
        self.keyring.expire(now.boot);
        self.identities.inherit_stamps(&left.accepted);
        if let Some(Lived { since, heard }) = left.life {
            self.life.inherit(since, heard);
        }
        if let Some(Reached { to, from }) = left.path {
            self.paths.set(to, from);
            // It has not moved.
            self.paths.moved = None;
            self.wanted = true;
        }
        self.holds_until = Some(now.boot + HOLDS_FOR);
        self.handle_wake(now);
    }

    /// There is a session, or none comes soon: packets are read from the device.
    pub(super) fn follow_hold(&mut self, now: Now) {
        let has_session = self.keyring.current().is_some();
        self.holds_until.take_if(|until| has_session || now.boot >= *until);
    }
}
