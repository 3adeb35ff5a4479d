//! The tunnel's state, for `status`.

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
    /// No session, and no packet requires one.
    Idle,
    /// No session; a handshake is in progress.
    Connecting,
    /// A session is established, and sent data was answered.
    Up,
    /// A session is established, but sent data is unanswered.
    Unresponsive,
}

/// A snapshot of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Whether packets get through.
    pub liveness: Liveness,
    /// Whether the peer is alive, and how long that has been so.
    pub alive: (bool, Duration),
    /// The peer's address, or the one that a handshake is sent to.
    pub endpoint: Option<SocketAddr>,
    /// Who initiated the current session, and its age.
    pub session: Option<(Role, Duration)>,
    /// The protocol of the current session.
    pub protocol: Option<Protocol>,
    /// Our public key and the peer's that our handshakes use, if there are two of either.
    pub keys: [PublicKey; 2],
    /// Handshakes completed since the start, in either role.
    pub handshakes: u64,
    /// Time since the last handshake.
    pub last_handshake: Option<Duration>,
    /// Time since the last authentic datagram.
    pub last_received: Option<Duration>,
    /// The handshake attempt in progress.
    pub attempt: Option<u32>,
    /// Consecutive responses of ours that the peer never used.
    pub unconfirmed_answers: u32,
    /// The peer's own announcement.
    pub greeting: Option<Greeting>,
    /// Round trip and loss.
    pub quality: Option<Quality>,
    /// The traffic so far.
    pub traffic: Traffic,
    /// The next deadline and its reason.
    pub next: Option<(Duration, Timer)>,
}

/// A summary of the tunnel's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Whether packets get through.
    pub liveness: Liveness,
    /// The peer's address, or the one that a handshake is sent to.
    pub endpoint: Option<SocketAddr>,
    /// When the last authentic datagram came.
    pub last_received: Option<BootTime>,
}

impl Peer {
    /// A summary of the tunnel's state.
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

    /// The tunnel's state.
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
        // The first retry of a rekey may be chance; the second means silence.
        let calling_again = self.attempt.as_ref().is_some_and(|attempt| attempt.tries() > 2);
        if died_on_it || unanswered.is_some_and(late) || calling_again {
            Liveness::Unresponsive
        } else {
            Liveness::Up
        }
    }
}
