//! The tunnel's state, for `status`.

use std::net::SocketAddr;
use std::time::Duration;

use vpnd_crypto::key::PublicKey;

use super::{Attempt, BothDirections, Greeting, PathSize, Peer, Quality, Recent};
use crate::activity::Traffic;
use crate::session::Role;
use crate::terms::Protocol;
use crate::time::{BootTime, Now};
use crate::timers::{ANSWER_EXPECTED_WITHIN, Timer};

/// A snapshot of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Whether the peer is alive, and how long that has been so.
    pub alive: (bool, Duration),
    /// The peer's address, or the one that a handshake is sent to.
    pub endpoint: Option<SocketAddr>,
    /// Who initiated the current session, and its age.
    pub session: Option<(Role, Duration)>,
    /// The protocol of the current session.
    pub protocol: Option<Protocol>,
    /// The public keys that our handshakes use: ours, then the peer's.
    pub keys: [PublicKey; 2],
    /// Handshakes completed since the start, in either role.
    pub handshakes: u64,
    /// Time since the last handshake.
    pub last_handshake: Option<Duration>,
    /// Time since the last authentic datagram.
    pub last_received: Option<Duration>,
    /// The handshake attempt in progress.
    pub attempt: Option<u32>,
    /// Consecutive responses of ours that the peer did not confirm.
    pub unconfirmed_answers: u32,
    /// What the peer announced about itself.
    pub greeting: Option<Greeting>,
    /// Round trip and loss of the current session.
    pub quality: Option<Quality>,
    /// Round trip and loss of the last minutes.
    pub recent: Recent,
    /// The size of datagrams on the path.
    pub path_size: Option<PathSize>,
    /// The traffic so far.
    pub traffic: Traffic,
    /// The next deadline and its reason.
    pub next: Option<(Duration, Timer)>,
}

/// The part of a tunnel's state that only [`Peer`] knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Whether the peer is alive.
    pub alive: bool,
    /// Whether a session is established.
    pub in_session: bool,
    /// Whether a session is established, but data that we sent, or initiations of the next session,
    /// are unanswered.
    pub is_unanswered: bool,
    /// The tries of the handshake attempt in progress.
    pub tries: Option<u32>,
    /// The peer's address, or the one that a handshake is sent to.
    pub endpoint: Option<SocketAddr>,
    /// The largest datagram that the path carries, if that is known.
    pub largest: Option<u16>,
    /// The path leads to a configured address, and the preferred one is of the other family.
    pub is_other_family: bool,
    /// Runs of datagrams arrive less well on this path, so each leaves singly.
    pub sends_singly: bool,
    /// The loss of the last minute.
    pub loss: BothDirections,
    /// When the newest loss measurement is older than a minute.
    pub loss_until: BootTime,
}

impl Peer {
    /// The part of the tunnel's state that only [`Peer`] knows.
    pub fn standing(&mut self, now: Now) -> Standing {
        let timestamps = self.activity.timestamps();
        self.timers.observe(timestamps);
        self.life.observe(timestamps);
        let called = self.attempt.as_ref().map(Attempt::to);
        let in_session = self.is_in_session(now);
        Standing {
            alive: self.life.state().0,
            in_session,
            is_unanswered: in_session && self.is_unanswered(now),
            tries: self.attempt.as_ref().map(Attempt::tries),
            endpoint: self.endpoint().or(called),
            largest: self.path_payload(),
            is_other_family: self.paths.is_other_family(),
            sends_singly: self.paths.segmentation.is_off(),
            loss: self.window.minute(now.boot),
            loss_until: self.window.minute_ends(),
        }
    }

    /// The tunnel's state.
    pub fn status(&mut self, now: Now) -> PeerStatus {
        let Standing { tries, endpoint, .. } = self.standing(now);
        let timestamps = self.activity.timestamps();
        let ago = |at: BootTime| now.boot.saturating_since(at);
        let (alive, since) = self.life.state();
        let (current, pair) = (self.keyring.current(), self.identities.calling());
        PeerStatus {
            alive: (alive, ago(since)),
            endpoint,
            session: current.map(|session| (session.role, ago(session.birth))),
            protocol: current.map(|session| session.protocol),
            keys: [*self.identities.identity(pair).public(), *self.identities.remote(pair)],
            handshakes: self.handshakes,
            last_handshake: self.established.map(ago),
            last_received: timestamps.received.max(timestamps.called).map(ago),
            attempt: tries,
            unconfirmed_answers: self.unconfirmed_answers,
            greeting: self.greeting.clone(),
            quality: self.paths.gauge.quality,
            recent: self.window.recent(now.boot),
            path_size: self.path_size(now.boot),
            traffic: self.activity.traffic(),
            next: self.poll_timeout().map(|(at, why)| (at.saturating_since(now.boot), why)),
        }
    }

    fn is_in_session(&self, now: Now) -> bool {
        self.keyring.current().is_some_and(|session| now.boot < session.opening.dead_from())
    }

    fn is_unanswered(&self, now: Now) -> bool {
        let late = |since: BootTime| now.boot.saturating_since(since) >= ANSWER_EXPECTED_WITHIN;
        // A rekey's first try may have been lost by chance. If the second is unanswered too, the
        // peer is silent.
        let calling_again = self.attempt.as_ref().is_some_and(|attempt| {
            attempt.tries() > 2 && self.established < Some(attempt.this_try().begun)
        });
        self.life.unanswered_since().is_some_and(late) || calling_again
    }
}
