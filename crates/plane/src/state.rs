//! The state of the tunnel. [`Plane::state`] alone determines it; the log, `status`, the service manager, the
//! hooks and the carrier follow it.
//!
//! ```text
//!   idle ──> connecting ──> up <──> degraded      the peer is alive
//!                 │          └──> unresponsive    it still counts as alive
//!                 └──> down <──────────┘          it is not alive
//! ```
//!
//! The peer is alive in `up`, `degraded` and `unresponsive`, and it is not in `down`. If it was alive before, the
//! hooks, the carrier and the routes change exactly when `down` begins, and when it ends. Without a session it may be either, since a tunnel
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

/// The kind of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A session is established, the peer answers, and vpnd knows of no fault.
    Up,
    /// The same, but the tunnel carries less than it should, for at least one [`Reason`].
    Degraded,
    /// A session is established, but data has been unanswered for a while. The peer does not count as dead yet.
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
    /// Its kind.
    pub kind: Kind,
    /// Why it is degraded; none in any other state.
    pub reasons: Reasons,
    /// Since when it is of this kind.
    pub since: BootTime,
}

/// The current state, and what it derives from besides the peer's [`Standing`].
#[derive(Debug)]
pub(crate) struct States {
    current: State,
    /// The peer has been alive before.
    lived: bool,
    /// Several initiations were unanswered, and no session has been established since.
    calls_unanswered: bool,
    lossy: Lossy,
    /// The faults that the data path has found.
    found: Found,
    in_session: bool,
    /// What was last reported to the service manager.
    told: Option<(Kind, Reasons, Option<SocketAddr>)>,
    news: News,
}

/// Faults of the path that the data path finds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) sends_singly: bool,
    pub(crate) marks_everything: bool,
}

impl States {
    /// The state of a tunnel that starts, whose peer an earlier process may have left `alive`.
    pub(crate) fn new(alive: bool) -> Self {
        let since = BootTime::default();
        Self {
            current: State { kind: Kind::Idle, reasons: Reasons::default(), since },
            lived: alive,
            calls_unanswered: false,
            lossy: Lossy::default(),
            found: Found::default(),
            in_session: false,
            told: None,
            news: News::default(),
        }
    }

    /// Records a change of the peer's state.
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

    /// When the state changes without an event, or is to be reported.
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
            // The peer becomes alive with the first datagram on the session.
            (false, true) => Kind::Connecting,
            (_, false) if searches => Kind::Connecting,
            (_, false) => Kind::Idle,
        }
    }

    /// Changes to this state.
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

    /// Whether a session is established.
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
            (Reason::Family, peer.is_other_family),
            (Reason::Ecn, found.marks_everything),
        ];
        all.into_iter().filter_map(|(reason, stands)| stands.then_some(reason)).collect()
    }

    /// Whether the device's MTU is pinned, and a packet of that size does not fit into one datagram. This is
    /// normal on a bridge, whose MTU is that of its other links.
    fn exceeds(&self, largest: u16) -> bool {
        let policy = self.policy();
        let (mtu, is_bridge) = (policy.mtu().into(), policy.largest_packet() > policy.mtu());
        let whole = padded_len(mtu, mtu) + OVERHEAD;
        self.settings.mtu_follows.is_none() && !is_bridge && whole > usize::from(largest)
    }

    /// Whether the configuration contains a better address. Only literal addresses are compared, because it is
    /// not known here which name an address was resolved from.
    fn is_second_choice(&self, endpoint: SocketAddr) -> bool {
        let mut all = self.settings.endpoints.iter();
        let first = all.next().copied().flatten();
        first.is_some_and(|first| first != endpoint) && all.any(|one| *one == Some(endpoint))
    }
}
