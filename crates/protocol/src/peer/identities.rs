//! The keys of both ends. Each end may have two while one is replaced by the next. Both keys of the peer are
//! accepted, and a message to either of ours is answered with that key. Handshakes that we initiate use the
//! pair of keys that a session was last confirmed under.

use vpnd_crypto::key::PublicKey;

use crate::cookie::{Checker, Jar, Mac1Key};
use crate::handshake::Identity;
use crate::high_water::HighWater;
use crate::session::Pair;
use crate::table::IDENTITIES;

/// A key of ours, and the checker of messages made for it.
struct Own {
    identity: Identity,
    mac1: Mac1Key,
    checker: Checker,
}

/// A key of the peer, the cookies for messages to it, and the timestamps accepted under it.
struct Remote {
    key: PublicKey,
    jar: Jar,
    stamps: HighWater,
}

/// The keys of both ends; the current ones first, then the next.
pub(super) struct Identities {
    own: Vec<Own>,
    remotes: Vec<Remote>,
    confirmed: Pair,
    calling: Pair,
}

impl Identities {
    /// The keys in use: one or two of ours, one or two of the peer's.
    pub(super) fn new(own: Vec<Identity>, remotes: Vec<PublicKey>) -> Self {
        Self {
            own: own.into_iter().take(IDENTITIES).map(Own::new).collect(),
            remotes: remotes.into_iter().take(IDENTITIES).map(Remote::new).collect(),
            confirmed: Pair::default(),
            calling: Pair::default(),
        }
    }

    /// Replaces the keys. A confirmed key that remains stays confirmed, and keeps its recorded timestamps and
    /// cookies.
    pub(super) fn replaced(&self, own: Vec<Identity>, remotes: Vec<PublicKey>) -> Self {
        let mut new = Self::new(own, remotes);
        for remote in &mut new.remotes {
            let before = self.remotes.iter().find(|before| before.key == remote.key);
            remote.stamps = before.map_or(remote.stamps, |before| before.stamps);
        }
        let public = *self.identity(self.confirmed).public();
        let own = new.own.iter().position(|own| *own.identity.public() == public);
        let remote = new.known(self.remote(self.confirmed));
        // A rotation in progress continues.
        let rotating = self.calling.own > self.confirmed.own && new.own.len() > 1;
        new.confirm(Pair { own: own.unwrap_or(0), remote: remote.unwrap_or(0) });
        new.calling.own = if rotating { 1 } else { new.calling.own };
        new
    }

    /// The pair of keys for handshakes that we initiate.
    pub(super) const fn calling(&self) -> Pair {
        self.calling
    }

    /// The latest pair that a session was established under.
    pub(super) const fn confirmed(&self) -> Pair {
        self.confirmed
    }

    /// Each of our keys with each of the peer's.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&Identity, &PublicKey)> {
        let with = |own| self.remotes.iter().map(move |remote: &Remote| (own, &remote.key));
        self.own.iter().map(|own| &own.identity).flat_map(with)
    }

    pub(super) fn identity(&self, pair: Pair) -> &Identity {
        &self.own[pair.own].identity
    }

    pub(super) fn remote(&self, pair: Pair) -> &PublicKey {
        &self.remotes[pair.remote].key
    }

    /// The timestamps accepted under one of the peer's keys.
    pub(super) fn stamps(&mut self, pair: Pair) -> &mut HighWater {
        &mut self.remotes[pair.remote].stamps
    }

    /// The timestamps accepted under each of the peer's keys.
    pub(super) fn all_stamps(&self) -> Vec<(PublicKey, HighWater)> {
        self.remotes.iter().map(|remote| (remote.key, remote.stamps)).collect()
    }

    /// Continues with the timestamps that an earlier process has accepted.
    pub(super) fn inherit_stamps(&mut self, accepted: &[(PublicKey, HighWater)]) {
        for remote in &mut self.remotes {
            let known = accepted.iter().find(|(key, _)| *key == remote.key);
            remote.stamps = known.map_or(remote.stamps, |(_, stamps)| *stamps);
        }
    }

    pub(super) fn jar(&mut self, pair: Pair) -> &mut Jar {
        &mut self.remotes[pair.remote].jar
    }

    /// The cookies for all of the peer's keys.
    pub(super) fn jars(&mut self) -> impl Iterator<Item = &mut Jar> {
        self.remotes.iter_mut().map(|remote| &mut remote.jar)
    }

    /// The index of our key that a message 1 or 2 was made for.
    pub(super) fn addressed(&self, datagram: &[u8]) -> Option<usize> {
        self.own.iter().position(|own| own.mac1.verify(datagram))
    }

    pub(super) fn identity_at(&self, own: usize) -> &Identity {
        &self.own[own].identity
    }

    pub(super) fn checker(&mut self, own: usize) -> &mut Checker {
        &mut self.own[own].checker
    }

    /// The index of this key among the peer's.
    pub(super) fn known(&self, key: &PublicKey) -> Option<usize> {
        self.remotes.iter().position(|remote| remote.key == *key)
    }

    /// The checkers of messages for us.
    pub(super) fn mac1_keys(&self) -> [Option<Mac1Key>; IDENTITIES] {
        let mut keys = [const { None }; IDENTITIES];
        for (key, own) in keys.iter_mut().zip(&self.own) {
            *key = Some(own.mac1.clone());
        }
        keys
    }

    /// Our public keys.
    pub(super) fn public_keys(&self) -> [Option<PublicKey>; IDENTITIES] {
        let mut keys = [None; IDENTITIES];
        for (key, own) in keys.iter_mut().zip(&self.own) {
            *key = Some(*own.identity.public());
        }
        keys
    }

    /// A session was established under this pair. An end that has moved to its next key never returns to the
    /// previous one: if both ends move at once, each of two sessions shows one half of the move.
    pub(super) fn confirm(&mut self, pair: Pair) {
        self.confirmed = self.confirmed.later(pair);
        self.calling = self.calling.later(self.confirmed);
    }

    /// Uses our next key for handshakes that we initiate; returns whether there is one.
    pub(super) fn rotate(&mut self) -> bool {
        let next = self.own.len() > 1;
        self.calling.own = if next { 1 } else { self.calling.own };
        next
    }

    /// Handshakes with the current pair are unanswered: returns to the confirmed pair; returns whether that
    /// is a different one.
    pub(super) fn fall_back(&mut self) -> bool {
        let other = self.calling != self.confirmed;
        self.calling = self.confirmed;
        other
    }

    /// Handshakes with the confirmed pair are unanswered too: the peer may have removed one of the keys.
    /// Tries the next of all pairs.
    pub(super) fn try_another(&mut self) {
        let (own, remotes) = (self.own.len(), self.remotes.len());
        let next = (self.calling.own * remotes + self.calling.remote + 1) % (own * remotes);
        self.calling = Pair { own: next / remotes, remote: next % remotes };
    }

    /// Removes the previous key of each end that has moved to the next one; returns whether any was removed.
    pub(super) fn finish(&mut self) -> bool {
        let moved = self.confirmed != Pair::default();
        if self.confirmed.own > 0 {
            self.own.remove(0);
        }
        if self.confirmed.remote > 0 {
            self.remotes.remove(0);
        }
        if moved {
            (self.confirmed, self.calling) = (Pair::default(), Pair::default());
        }
        moved
    }
}

impl Own {
    fn new(identity: Identity) -> Self {
        let public = *identity.public();
        Self { identity, mac1: Mac1Key::new(&public), checker: Checker::new(&public) }
    }
}

impl Remote {
    fn new(key: PublicKey) -> Self {
        Self { key, jar: Jar::new(&key), stamps: HighWater::default() }
    }
}
