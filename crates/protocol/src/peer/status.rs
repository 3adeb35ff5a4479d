//! How the tunnel stands, said as it is.

use std::net::SocketAddr;
use std::time::Duration;

use vpnd_crypto::key::PublicKey;

use super::{Attempt, Greeting, Peer, Quality};
use crate::activity::Traffic;
use crate::session::Role;
use crate::terms::Protocol;
use crate::time::{BootTime, Now};
use crate::timers::{ANSWER_EXPECTED_WITHIN, Timer};

/// Whether packets get through, as far as this end can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// No session, and nothing asks for one.
    Idle,
    /// No session; the peer is being called.
    Connecting,
    /// A session stands and what was sent has been answered.
    Up,
    /// A session stands, but what was sent goes unanswered.
    Unresponsive,
}

/// A snapshot of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Whether packets get through.
    pub liveness: Liveness,
    /// Whether the peer is alive, and how long that has been so.
    pub alive: (bool, Duration),
    /// Where the peer is, or where it is being called.
    pub endpoint: Option<SocketAddr>,
    /// Who began the current session, and how old it is.
    pub session: Option<(Role, Duration)>,
    /// What is spoken on it.
    pub protocol: Option<Protocol>,
    /// Our public key and the peer's, of those there are, that handshakes of ours are made with.
    pub keys: [PublicKey; 2],
    /// Handshakes finished since the start, in either role.
    pub handshakes: u64,
    /// Time since the last handshake.
    pub last_handshake: Option<Duration>,
    /// Time since anything authentic came.
    pub last_received: Option<Duration>,
    /// The try that is under way.
    pub attempt: Option<u32>,
    /// Answers of ours in a row that the peer never used.
    pub unconfirmed_answers: u32,
    /// What the peer says of itself.
    pub greeting: Option<Greeting>,
    /// How the way fares.
    pub quality: Option<Quality>,
    /// What crossed so far.
    pub traffic: Traffic,
    /// The next deadline and its reason.
    pub next: Option<(Duration, Timer)>,
}

/// How the tunnel stands, in short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Whether packets get through.
    pub liveness: Liveness,
    /// Where the peer is, or where it is being called.
    pub endpoint: Option<SocketAddr>,
    /// When anything authentic last came.
    pub last_received: Option<BootTime>,
}

impl Peer {
    /// How the tunnel stands, in short.
    pub fn standing(&mut self, now: Now) -> Standing {
        let moments = self.activity.moments();
        self.timers.observe(moments);
        self.life.observe(moments);
        let called = self.attempt.as_ref().map(Attempt::to);
        Standing {
            liveness: self.liveness(now),
            endpoint: self.endpoint().or(called),
            last_received: moments.received.max(moments.called),
        }
    }

    /// How the tunnel stands.
    pub fn status(&mut self, now: Now) -> PeerStatus {
        let Standing { liveness, endpoint, last_received } = self.standing(now);
        let ago = |at: BootTime| now.boot.saturating_since(at);
        let (alive, since) = self.life.state();
        let (current, pair) = (self.keyring.current(), self.identities.calling());
        PeerStatus {
            liveness,
            alive: (alive, ago(since)),
            endpoint,
            session: current.map(|session| (session.role, ago(session.birth))),
            protocol: current.map(|session| session.protocol),
            keys: [*self.identities.identity(pair).public(), *self.identities.remote(pair)],
            handshakes: self.handshakes,
            last_handshake: self.established.map(ago),
            last_received: last_received.map(ago),
            attempt: self.attempt.as_ref().map(Attempt::tries),
            unconfirmed_answers: self.unconfirmed_answers,
            greeting: self.greeting.clone(),
            quality: self.paths.gauge.quality,
            traffic: self.activity.traffic(),
            next: self.poll_timeout().map(|(at, why)| (at.saturating_since(now.boot), why)),
        }
    }

    fn liveness(&self, now: Now) -> Liveness {
        let current = self.keyring.current().filter(|s| now.boot < s.opening.dead_from());
        let Some(session) = current else {
            return if self.attempt.is_some() { Liveness::Connecting } else { Liveness::Idle };
        };
        let (alive, since) = self.life.state();
        let died_on_it = !alive && session.birth <= since;
        let unanswered = self.life.unanswered_since();
        let late = |since: BootTime| now.boot.saturating_since(since) >= ANSWER_EXPECTED_WITHIN;
        // The first retry of a rekey may be chance; the second is silence.
        let calling_again = self.attempt.as_ref().is_some_and(|attempt| attempt.tries() > 2);
        if died_on_it || unanswered.is_some_and(late) || calling_again {
            Liveness::Unresponsive
        } else {
            Liveness::Up
        }
    }
}
