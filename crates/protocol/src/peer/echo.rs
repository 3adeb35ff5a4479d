//! PINGs that a user requests, to see whether the peer's vpnd answers, and how fast.

use std::collections::VecDeque;
use std::time::Duration;

use super::Peer;
use super::frames::Challenge;
use crate::frame::{ControlFrame, Pong};
use crate::time::{BootTime, Now};

/// PINGs that may still be answered. With a further one, the oldest is given up.
const MAX_ASKED: usize = 64;

/// Why no PING was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAsked {
    /// There is no session. A handshake was requested.
    NoSession,
    /// The session is one of `WireGuard`, which has no PING.
    WireGuard,
}

/// The answer to a PING that was requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    /// The number that [`Peer::ping`] returned.
    pub sequence: u32,
    /// The time from the PING to its answer.
    pub round_trip: Duration,
}

/// The PINGs that were requested and not answered yet.
#[derive(Debug, Default)]
pub(super) struct Echoes(VecDeque<(Challenge, BootTime)>);

impl Echoes {
    fn asked(&mut self, challenge: Challenge, at: BootTime) {
        self.0.truncate(MAX_ASKED - 1);
        self.0.push_front((challenge, at));
    }

    /// Takes the answer to any PING.
    fn answered(&mut self, now: BootTime, pong: &Pong) -> Option<Echo> {
        let at = self.0.iter().position(|(challenge, _)| challenge.is_met_by(pong))?;
        let (_, asked) = self.0.remove(at)?;
        Some(Echo { sequence: pong.sequence.get(), round_trip: now.saturating_since(asked) })
    }
}

impl Peer {
    /// Sends a PING to the peer; [`Event::Echo`](super::Event::Echo) reports its answer, if one comes. Returns the
    /// number of the PING.
    ///
    /// # Errors
    /// If there is no session that carries a PING.
    pub fn ping(&mut self, now: Now) -> Result<u32, NotAsked> {
        self.follow_flags(now);
        let asked = self.send_echo(now);
        // Like a packet without a session.
        self.wanted |= asked == Err(NotAsked::NoSession);
        self.handle_wake(now);
        asked
    }

    fn send_echo(&mut self, now: Now) -> Result<u32, NotAsked> {
        let current = self.keyring.current().ok_or(NotAsked::NoSession)?;
        let sent = current.sealing.counted() + 1;
        if !self.frames_flow() {
            return Err(NotAsked::WireGuard);
        }
        let challenge = self.next_challenge();
        self.echoes.asked(challenge, now.boot);
        self.send_on_current(now, &ControlFrame::begin().ping(&challenge.ping(sent)).end());
        Ok(challenge.sequence())
    }

    /// Reports the answer to a PING that was requested.
    pub(super) fn take_echo(&mut self, now: Now, pong: &Pong) {
        self.events.extend(self.echoes.answered(now.boot, pong).map(super::Event::Echo));
    }
}
