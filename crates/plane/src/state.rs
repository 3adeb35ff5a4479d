//! The state of the tunnel. [`Plane::state`] alone decides it; the log, `status`, the service manager, the hooks and
//! the carrier follow it.
//!
//! ```text
//!   idle ──> connecting ──> up <──> degraded      the peer is alive
//!                 │          └──> unresponsive    it still counts as alive
//!                 └──> down <──────────┘          it is not alive
//! ```
//!
//! The peer is alive in `up`, `degraded` and `unresponsive`, and it is not in `down`: the hooks, the carrier and the
//! routes change exactly when `down` begins, and when it ends. Without a session it may be either, since a tunnel
//! without traffic has none.

mod loss;
mod news;
mod reason;

use std::net::SocketAddr;

use vpnd_protocol::peer::{Change, Standing};
use vpnd_protocol::session::{OVERHEAD, padded_len};
use vpnd_protocol::time::{BootTime, Now};

use crate::diagnosis::TRIES_BEFORE_HINT;
use crate::effect::{Effect, Notice};
use crate::plane::Plane;

use loss::Lossy;
use news::News;

pub use reason::{Reason, Reasons};

/// What kind of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A session is established, the peer answers, and nothing is wrong that vpnd knows of.
    Up,
    /// The same, but the tunnel carries less than it should; there are reasons.
    Degraded,
    /// A session is established, but what is sent has been unanswered for a while. The peer is not dead yet.
    Unresponsive,
    /// No session. A handshake is in progress, or a name is being looked up.
    Connecting,
    /// The peer is dead, or nobody answers.
    Down,
    /// No session, and no reason to start one.
    Idle,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Up, Self::Degraded, Self::Unresponsive, Self::Connecting, Self::Down, Self::Idle];

    /// The name in the status and in the log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Degraded => "degraded",
            Self::Unresponsive => "unresponsive",
            Self::Connecting => "connecting",
            Self::Down => "down",
            Self::Idle => "idle",
        }
    }

    /// Whether packets get through.
    pub const fn works(self) -> bool {
        matches!(self, Self::Up | Self::Degraded)
    }
}

/// The state of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// What kind of state.
    pub kind: Kind,
    /// Why it is degraded; none in any other state.
    pub reasons: Reasons,
    /// When it became one of this kind.
    pub since: BootTime,
}

/// What the state derives from beside what the peer knows, and what it was last.
#[derive(Debug)]
pub(crate) struct States {
    current: State,
    /// The peer has been alive.
    lived: bool,
    /// Several calls were unanswered, and no session has been established since.
    calls_unanswered: bool,
    lossy: Lossy,
    /// What the data path has found.
    found: Found,
    in_session: bool,
    /// What the service manager was told last.
    told: Option<(Kind, Reasons, Option<SocketAddr>)>,
    news: News,
}

/// Faults of the path that the data path finds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) sends_singly: bool,
    pub(crate) marks_everything: bool,
}

impl Default for States {
    fn default() -> Self {
        let since = BootTime::default();
        Self {
            current: State { kind: Kind::Idle, reasons: Reasons::default(), since },
            lived: false,
            calls_unanswered: false,
            lossy: Lossy::default(),
            found: Found::default(),
            in_session: false,
            told: None,
            news: News::default(),
        }
    }
}

impl States {
    /// Takes note of a change of the peer's state.
    pub(crate) fn changed(&mut self, change: &Change) {
        match change {
            Change::Alive => self.lived = true,
            Change::Established(_) => self.calls_unanswered = false,
            Change::GaveUp => self.calls_unanswered = true,
            Change::Initiating { attempt, .. } => {
                self.calls_unanswered |= *attempt > TRIES_BEFORE_HINT;
            }
            Change::Dead | Change::Lost | Change::Closed => {}
            Change::Moved { .. } | Change::Switched { .. } => {}
            Change::PathCarries { .. } | Change::Segmentation { .. } => {}
        }
    }

    pub(crate) const fn found(&mut self, found: Found) {
        self.found = found;
    }

    /// When the state changes by itself, or is to be reported.
    pub(crate) fn deadline(&self) -> Option<BootTime> {
        self.lossy.deadline().into_iter().chain(self.news.deadline()).min()
    }

    fn kind(&self, peer: &Standing, has_endpoint: bool) -> Kind {
        let Standing { alive, in_session, is_unanswered, .. } = *peer;
        let searches = peer.tries.is_some() || has_endpoint && peer.endpoint.is_none();
        match (alive, in_session) {
            (true, true) if is_unanswered => Kind::Unresponsive,
            (true, true) => Kind::Up,
            (false, _) if self.lived || self.calls_unanswered => Kind::Down,
            // The peer comes to life with the first datagram on the session.
            (false, true) => Kind::Connecting,
            (_, false) if searches => Kind::Connecting,
            (_, false) => Kind::Idle,
        }
    }

    /// The state is this one now.
    fn enter(&mut self, now: BootTime, kind: Kind, reasons: Reasons) -> State {
        if self.current.kind != kind {
            self.current.since = now;
        }
        (self.current.kind, self.current.reasons) = (kind, reasons);
        self.current
    }
}

impl Plane {
    /// The state of the tunnel.
    pub fn state(&mut self, now: Now) -> State {
        let peer = self.peer.standing(now);
        self.state_of(now, &peer)
    }

    /// Reports the state if it has changed: to the service manager, and in the log.
    pub(crate) fn tell_state(&mut self, now: Now) {
        let peer = self.peer.standing(now);
        let state = self.state_of(now, &peer);
        let shown = Some((state.kind, state.reasons, peer.endpoint));
        if self.states.told != shown {
            self.states.told = shown;
            self.push(Effect::Standing(state, peer.endpoint));
        }
        if self.states.news.is_due(now.boot, &state) {
            self.notify(Notice::State(state));
        }
    }

    /// Whether a session stands.
    pub const fn is_connected(&self) -> bool {
        self.states.in_session
    }

    fn state_of(&mut self, now: Now, peer: &Standing) -> State {
        self.states.in_session = peer.in_session;
        self.states.lossy.watch(now.boot, peer);
        let kind = self.states.kind(peer, !self.settings.endpoints.is_empty());
        let reasons = if kind == Kind::Up { self.reasons(peer) } else { Reasons::default() };
        let kind = if reasons.is_empty() { kind } else { Kind::Degraded };
        self.states.enter(now.boot, kind, reasons)
    }

    fn reasons(&self, peer: &Standing) -> Reasons {
        let found = self.states.found;
        let all = [
            (Reason::Loss, self.states.lossy.is_lossy()),
            (Reason::PathMtu, peer.largest.is_some_and(|largest| self.exceeds(largest))),
            (Reason::Segmentation, found.sends_singly || peer.sends_singly),
            (Reason::Endpoint, peer.endpoint.is_some_and(|at| self.is_second_choice(at))),
            (Reason::Ecn, found.marks_everything),
        ];
        all.into_iter().filter_map(|(reason, stands)| stands.then_some(reason)).collect()
    }

    /// Whether the device's MTU is pinned, and a packet of that size does not fit into one datagram. On a bridge that is by
    /// design: it keeps the MTU of its other links.
    fn exceeds(&self, largest: u16) -> bool {
        let policy = self.policy();
        let (mtu, is_bridge) = (policy.mtu().into(), policy.largest_packet() > policy.mtu());
        let whole = padded_len(mtu, mtu) + OVERHEAD;
        self.settings.mtu_follows.is_none() && !is_bridge && whole > usize::from(largest)
    }

    /// Whether the configuration names a better address. Only addresses tell: which name one was looked up from is
    /// not known here.
    fn is_second_choice(&self, endpoint: SocketAddr) -> bool {
        let mut all = self.settings.endpoints.iter();
        let first = all.next().copied().flatten();
        first.is_some_and(|first| first != endpoint) && all.any(|one| *one == Some(endpoint))
    }
}
