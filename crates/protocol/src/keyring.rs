//! The sessions, and which of them seals. As in the reference implementation only *current* seals. Keys that
//! open are kept until they expire, so that crossed initiations never drop a key that the peer seals with.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::handshake::SessionKeys;
use crate::session::{Generation, OpeningKey, Origin, Pair, Role, SealingKey};
use crate::table::{Arrival, OPENING_SLOTS};
use crate::terms::Protocol;
use crate::time::BootTime;
use crate::timers::REKEY_TIMEOUT;

/// A session: the keys of both directions from one handshake.
pub(crate) struct Session {
    pub(crate) role: Role,
    pub(crate) birth: BootTime,
    pub(crate) pair: Pair,
    pub(crate) protocol: Protocol,
    /// The other session of a crossed handshake: the peer seals on that one and opens this one.
    crossed: Option<Generation>,
    /// The addresses that our response was sent to: a peer that uses the session was reached at one of them.
    pub(crate) reached: Vec<Arrival>,
    pub(crate) sealing: Arc<SealingKey>,
    pub(crate) opening: Arc<OpeningKey>,
}

impl Session {
    pub(crate) fn new(origin: &Origin, keys: &SessionKeys) -> Self {
        Self {
            role: origin.role,
            birth: origin.birth,
            pair: origin.pair,
            protocol: origin.protocol,
            crossed: None,
            reached: Vec::new(),
            sealing: Arc::new(SealingKey::new(&keys.sealing, origin)),
            opening: Arc::new(OpeningKey::new(&keys.opening, origin)),
        }
    }
}

impl Session {
    /// The same session, made by a response of ours to these addresses.
    pub(crate) fn answered_to(self, reached: Vec<Arrival>) -> Self {
        Self { reached, ..self }
    }

    /// Whether our response went to this address.
    pub(crate) fn reached_at(&self, address: SocketAddr) -> bool {
        self.reached.iter().any(|at| at.from == address)
    }

    /// The generation of the crossed session, if both ends initiated at about the same time.
    fn crosses(&self, other: &Option<Self>) -> Option<Generation> {
        let other = other.as_ref().filter(|other| other.role != self.role)?;
        let apart =
            self.birth.saturating_since(other.birth).max(other.birth.saturating_since(self.birth));
        (apart < REKEY_TIMEOUT).then(|| other.opening.generation())
    }
}

/// The number of keys that open datagrams.
pub(crate) const MAX_KEYS: usize = OPENING_SLOTS;

/// All sessions with the peer.
#[derive(Default)]
pub(crate) struct Keyring {
    /// Seals and opens.
    current: Option<Session>,
    /// We responded and the peer has not confirmed it yet: opens only.
    next: Option<Session>,
    /// Sessions that only open, newest first.
    retired: VecDeque<Arc<OpeningKey>>,
}

impl Keyring {
    /// The response to our initiation came: the session seals at once, and an unconfirmed *next* only opens
    /// from now on.
    pub(crate) fn initiated(&mut self, mut session: Session) {
        session.crossed = [&self.next, &self.current].into_iter().find_map(|o| session.crosses(o));
        let superseded = [self.current.replace(session), self.next.take()];
        superseded.into_iter().flatten().for_each(|s| self.retired.push_front(s.opening));
        self.retired.truncate(OPENING_SLOTS - 1);
    }

    /// We responded: the session waits for confirmation. An unconfirmed earlier one is dropped, because the
    /// peer gave it up when it initiated again.
    pub(crate) fn answered(&mut self, session: Session) {
        self.next = Some(session);
        self.retired.truncate(OPENING_SLOTS - 2);
    }

    /// *Next* only opens from now on.
    pub(crate) fn demote_next(&mut self) {
        self.next.take().into_iter().for_each(|s| self.retired.push_front(s.opening));
        self.retired.truncate(OPENING_SLOTS - 1);
    }

    /// Makes *next* current if the peer has used it; returns whether it did.
    pub(crate) fn confirm(&mut self) -> bool {
        let Some(mut session) = self.next.take_if(|next| next.opening.confirmed().is_raised())
        else {
            return false;
        };
        session.crossed = session.crosses(&self.current);
        if let Some(previous) = self.current.replace(session) {
            self.retired.push_front(previous.opening);
        }
        self.retired.truncate(OPENING_SLOTS - 1);
        true
    }

    /// The peer has ended a session: drops it, the one it crossed with, and every older one; returns whether
    /// one of them was current.
    pub(crate) fn close(&mut self, closed: Generation) -> bool {
        let is_over = |key: &OpeningKey| key.generation() <= closed;
        self.next.take_if(|s| is_over(&s.opening));
        self.retired.retain(|key| !is_over(key));
        let over = |s: &mut Session| is_over(&s.opening) || s.crossed == Some(closed);
        self.current.take_if(over).is_some()
    }

    /// Drops every expired key.
    pub(crate) fn expire(&mut self, now: BootTime) {
        let is_dead = |key: &OpeningKey| now >= key.dead_from();
        self.current.take_if(|s| is_dead(&s.opening));
        self.next.take_if(|s| is_dead(&s.opening));
        self.retired.retain(|key| !is_dead(key));
    }

    /// When the next key expires.
    pub(crate) fn next_expiry(&self) -> Option<BootTime> {
        self.opening().map(|key| key.dead_from()).min()
    }

    /// The keys have new positions: attributes the sessions to this pair.
    pub(crate) fn forget_pairs(&mut self, pair: Pair) {
        let sessions = self.current.iter_mut().chain(&mut self.next);
        sessions.for_each(|session| session.pair = pair);
    }

    /// Takes the keys of an earlier process: they only open.
    pub(crate) fn inherit(&mut self, keys: Vec<Arc<OpeningKey>>) {
        self.retired.extend(keys);
        self.retired.truncate(OPENING_SLOTS - 2);
    }

    /// Drops all sessions, and returns the keys that open what the peer still sends. No key that seals is left.
    pub(crate) fn hand_on(&mut self) -> Vec<Arc<OpeningKey>> {
        let Self { current, next, retired } = std::mem::take(self);
        let sessions = current.into_iter().chain(next).map(|session| session.opening);
        sessions.chain(retired).collect()
    }

    /// The session that seals.
    pub(crate) const fn current(&self) -> Option<&Session> {
        self.current.as_ref()
    }

    /// The session that waits for confirmation.
    pub(crate) const fn next(&self) -> Option<&Session> {
        self.next.as_ref()
    }

    /// As [`Keyring::next`], to record further addresses of its response.
    pub(crate) const fn next_mut(&mut self) -> Option<&mut Session> {
        self.next.as_mut()
    }

    /// All keys that open, at most [`OPENING_SLOTS`].
    pub(crate) fn opening(&self) -> impl Iterator<Item = &Arc<OpeningKey>> {
        let sessions = self.current.iter().chain(&self.next).map(|s| &s.opening);
        sessions.chain(&self.retired)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Index;
    use crate::session::{Contents, Generation};
    use std::time::Duration;

    fn session(n: u32, role: Role) -> Session {
        let origin = Origin {
            role,
            birth: BootTime::from_nanos(0) + Duration::from_secs(n.into()),
            local: Index::new(n),
            remote: Index::new(n),
            pair: Pair::default(),
            generation: Generation::default(),
            protocol: Protocol::WireGuard,
            contents: Contents::Packets,
            largest: 1420,
            rekey_after: None,
        };
        let keys = SessionKeys {
            sealing: Default::default(),
            opening: Default::default(),
            handshake_hash: [0; 32],
        };
        Session::new(&origin, &keys)
    }

    fn indices(ring: &Keyring) -> Vec<u32> {
        ring.opening().map(|key| key.index().get()).collect()
    }

    #[test]
    fn crossed_initiations_keep_every_key_the_peer_may_seal_with() {
        let mut ring = Keyring::default();
        ring.answered(session(1, Role::Responder));
        ring.initiated(session(2, Role::Initiator));
        assert_eq!(indices(&ring), [2, 1]);
        assert!(!ring.confirm(), "a superseded next never becomes current");
        assert_eq!(ring.current().map(|s| s.opening.index().get()), Some(2));
    }

    #[test]
    fn an_unconfirmed_next_makes_room_for_a_newer_one_at_once() {
        let mut ring = Keyring::default();
        ring.answered(session(1, Role::Responder));
        ring.answered(session(2, Role::Responder));
        assert_eq!(indices(&ring), [2]);
        let _ = ring.next().unwrap().opening.confirmed().raise();
        assert!(ring.confirm());
        assert!(ring.next().is_none());
    }

    #[test]
    fn never_more_than_six_the_oldest_go_first() {
        let mut ring = Keyring::default();
        for n in 1..=9 {
            ring.initiated(session(n, Role::Initiator));
        }
        assert_eq!(indices(&ring), [9, 8, 7, 6, 5, 4]);
        ring.answered(session(10, Role::Responder));
        assert_eq!(indices(&ring), [9, 10, 8, 7, 6, 5]);
    }

    #[test]
    fn keys_retire_by_age() {
        let mut ring = Keyring::default();
        ring.initiated(session(0, Role::Initiator));
        ring.initiated(session(60, Role::Initiator));
        let at = |s| BootTime::from_nanos(0) + Duration::from_secs(s);
        assert_eq!(ring.next_expiry(), Some(at(180)));
        for (second, left) in [(179, &[60, 0][..]), (180, &[60]), (240, &[])] {
            ring.expire(at(second));
            assert_eq!(indices(&ring), left);
        }
        assert!(ring.current().is_none());
    }
}
