//! How the tunnel stands, for the service manager and the log. Only what the peer authenticated changes it, so that
//! strangers cannot make us speak.

use std::net::SocketAddr;

use vpnd_protocol::peer::{Liveness, Standing};
use vpnd_protocol::time::{BootTime, Now};

use crate::effect::{Effect, Notice};
use crate::plane::Plane;

/// What was told last.
#[derive(Debug)]
pub(crate) struct Told {
    liveness: Liveness,
    endpoint: Option<SocketAddr>,
    /// When the peer was last reported to be silent.
    silent_at: BootTime,
}

impl Default for Told {
    fn default() -> Self {
        Self { liveness: Liveness::Idle, endpoint: None, silent_at: BootTime::default() }
    }
}

impl Told {
    /// What people should know of this change.
    fn notice(&mut self, now: BootTime, standing: &Standing) -> Option<Notice> {
        match (self.liveness, standing.liveness) {
            (Liveness::Up, Liveness::Unresponsive) => {
                self.silent_at = now;
                Some(Notice::Silent)
            }
            // A state that changes for another reason is no answer.
            (Liveness::Unresponsive, Liveness::Up) => {
                let heard = standing.last_received.is_some_and(|at| at >= self.silent_at);
                heard.then_some(Notice::Answers)
            }
            _ => None,
        }
    }
}

impl Plane {
    /// Tells how the tunnel stands, if that has changed.
    pub(crate) fn tell_standing(&mut self, now: Now) -> Option<Effect> {
        let standing = self.peer.standing(now);
        let Standing { liveness, endpoint, last_received: _ } = standing;
        if (self.told.liveness, self.told.endpoint) == (liveness, endpoint) {
            return None;
        }
        if let Some(notice) = self.told.notice(now.boot, &standing) {
            self.notify(notice);
        }
        (self.told.liveness, self.told.endpoint) = (liveness, endpoint);
        Some(Effect::Standing(liveness, endpoint))
    }

    /// Whether a session stands.
    pub const fn is_connected(&self) -> bool {
        matches!(self.told.liveness, Liveness::Up | Liveness::Unresponsive)
    }
}
