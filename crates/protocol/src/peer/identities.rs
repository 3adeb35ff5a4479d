//! Who we are and who the peer is. Each may be known by two keys while one is replaced by the next;
//! either of the peer's is accepted, and who addresses one of ours is answered by it. Handshakes that
//! we begin go from and to the pair that a session was last confirmed under.

use vpnd_crypto::key::PublicKey;

use crate::cookie::{Checker, Jar, Mac1Key};
use crate::handshake::Identity;
use crate::high_water::HighWater;
use crate::session::Pair;
use crate::table::IDENTITIES;

/// A key of ours, and what recognises messages made for it.
struct Own {
    identity: Identity,
    mac1: Mac1Key,
    checker: Checker,
}

/// A key of the peer, what signs messages to it, and the stamps of those from it that were answered.
struct Remote {
    key: PublicKey,
    jar: Jar,
    stamps: HighWater,
}

/// The keys of both; the current ones first, then the next.
pub(super) struct Identities {
    own: Vec<Own>,
    remotes: Vec<Remote>,
    confirmed: Pair,
    calling: Pair,
}

impl Identities {
    /// The keys there are: one or two of ours, one or two of the peer's.
    pub(super) fn new(own: Vec<Identity>, remotes: Vec<PublicKey>) -> Self {
        Self {
            own: own.into_iter().take(IDENTITIES).map(Own::new).collect(),
            remotes: remotes.into_iter().take(IDENTITIES).map(Remote::new).collect(),
            confirmed: Pair::default(),
            calling: Pair::default(),
        }
    }

    /// Other keys in the place of these. A key that was confirmed and is still there stays so, and so
    /// does what was seen of a key that is still there.
    pub(super) fn replaced(&self, own: Vec<Identity>, remotes: Vec<PublicKey>) -> Self {
        let mut new = Self::new(own, remotes);
        for remote in &mut new.remotes {
            let before = self.remotes.iter().find(|before| before.key == remote.key);
            remote.stamps = before.map_or(remote.stamps, |before| before.stamps);
        }
        let public = *self.identity(self.confirmed).public();
        let own = new.own.iter().position(|own| *own.identity.public() == public);
        let remote = new.known(self.remote(self.confirmed));
        // A rotation that is under way goes on.
        let rotating = self.calling.own > self.confirmed.own && new.own.len() > 1;
        new.confirm(Pair { own: own.unwrap_or(0), remote: remote.unwrap_or(0) });
        new.calling.own = if rotating { 1 } else { new.calling.own };
        new
    }

    /// The pair that handshakes of ours are made with.
    pub(super) const fn calling(&self) -> Pair {
        self.calling
    }

    /// The latest pair that a session stood under.
    pub(super) const fn confirmed(&self) -> Pair {
        self.confirmed
    }

    pub(super) fn identity(&self, pair: Pair) -> &Identity {
        &self.own[pair.own].identity
    }

    pub(super) fn remote(&self, pair: Pair) -> &PublicKey {
        &self.remotes[pair.remote].key
    }

    /// The stamps answered under one of the peer's keys.
    pub(super) fn stamps(&mut self, pair: Pair) -> &mut HighWater {
        &mut self.remotes[pair.remote].stamps
    }

    pub(super) fn jar(&mut self, pair: Pair) -> &mut Jar {
        &mut self.remotes[pair.remote].jar
    }

    /// What keeps cookies of all of the peer's keys.
    pub(super) fn jars(&mut self) -> impl Iterator<Item = &mut Jar> {
        self.remotes.iter_mut().map(|remote| &mut remote.jar)
    }

    /// Which of our keys a message 1 or 2 was made for.
    pub(super) fn addressed(&self, datagram: &[u8]) -> Option<usize> {
        self.own.iter().position(|own| own.mac1.verify(datagram))
    }

    pub(super) fn identity_at(&self, own: usize) -> &Identity {
        &self.own[own].identity
    }

    pub(super) fn checker(&mut self, own: usize) -> &mut Checker {
        &mut self.own[own].checker
    }

    /// Which of the peer's keys this is.
    pub(super) fn known(&self, key: &PublicKey) -> Option<usize> {
        self.remotes.iter().position(|remote| remote.key == *key)
    }

    /// What messages for us are recognised by.
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

    /// A session stands under this pair. Whoever has moved to the next key has moved for good: where
    /// both move at once, either session shows one half of it.
    pub(super) fn confirm(&mut self, pair: Pair) {
        self.confirmed = self.confirmed.later(pair);
        self.calling = self.calling.later(self.confirmed);
    }

    /// Handshakes of ours are made with our next key; says whether there is one.
    pub(super) fn rotate(&mut self) -> bool {
        let next = self.own.len() > 1;
        self.calling.own = if next { 1 } else { self.calling.own };
        next
    }

    /// Nobody answers that pair: back to the one that worked; says whether that is another.
    pub(super) fn fall_back(&mut self) -> bool {
        let other = self.calling != self.confirmed;
        self.calling = self.confirmed;
        other
    }

    /// Nobody answers the pair that worked either: the peer may have forgotten one of the keys. The next
    /// of all there are.
    pub(super) fn try_another(&mut self) {
        let (own, remotes) = (self.own.len(), self.remotes.len());
        let next = (self.calling.own * remotes + self.calling.remote + 1) % (own * remotes);
        self.calling = Pair { own: next / remotes, remote: next % remotes };
    }

    /// Forgets the old key of whoever has moved to the next; says whether anybody has.
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
