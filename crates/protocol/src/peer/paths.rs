//! Everything that is known about reaching the peer: the configured addresses, the current path and source
//! address, new and former addresses, the largest datagram, round trip and loss.
//!
//! [`Paths`] alone decides which path is used. The [`Peer`](super::Peer) asks for it, and sends PINGs and
//! PROBEs for it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::alternatives::Alternatives;
use super::contest::Contests;
use super::detours::Detours;
use super::doubt::Doubt;
use super::duplicate::Origins;
use super::frames::Gauge;
use super::roaming::Roaming;
use super::segmentation::Segmentation;
use super::size::Size;
use super::{Config, Transmit, Tuning};
use crate::activity::Source;
use crate::endpoint::{Candidates, Roam, Sources};
use crate::table::{Arrival, Path};
use crate::time::BootTime;

/// If the peer keeps sending to an abandoned source address for this long, we use that address again.
const TAKEN_BACK_AFTER: Duration = Duration::from_secs(10);

/// The addresses of both ends, and what is known of the path between them.
#[derive(Debug)]
pub(super) struct Paths {
    /// The new addresses to which the peer is followed.
    pub(super) roam: Roam,
    /// The source address until the peer has sent to another address of ours.
    pub(super) sources: Sources,
    dscp: u8,
    pub(super) current: Option<Path>,
    /// The destination to which the kernel itself sends from that source.
    chosen: Option<Transmit>,
    /// When a PING was last answered from the path's destination.
    pub(super) answered_at: Option<BootTime>,
    /// A change of the path that was not reported yet.
    pub(super) moved: Option<SocketAddr>,
    /// The source address abandoned last. It is not used again before the given time, even if the peer sends
    /// to it.
    pub(super) given_up: Option<(IpAddr, BootTime)>,
    pub(super) candidates: Candidates,
    pub(super) roaming: Roaming,
    pub(super) contests: Contests,
    pub(super) alternatives: Alternatives,
    /// The path was chosen among several addresses, and may be wrong.
    pub(super) doubt: Option<Doubt>,
    pub(super) detours: Detours,
    pub(super) origins: Origins,
    pub(super) size: Size,
    pub(super) segmentation: Segmentation,
    pub(super) gauge: Gauge,
}

impl Paths {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            roam: config.roam,
            sources: config.sources,
            dscp: config.dscp,
            current: None,
            chosen: None,
            answered_at: None,
            moved: None,
            given_up: None,
            candidates: Candidates::default(),
            roaming: Roaming::default(),
            contests: Contests::default(),
            alternatives: Alternatives::new(config.return_after),
            doubt: None,
            detours: Detours::default(),
            origins: Origins::default(),
            size: Size::new(config.max_datagram, config.raise_after),
            segmentation: Segmentation::new(config.tests_segmentation),
            gauge: Gauge::default(),
        }
    }

    /// Uses other settings. A path that began at the former configured source changes to the new one.
    pub(super) fn retune(&mut self, tuning: &Tuning) {
        let former = std::mem::replace(&mut self.sources, tuning.sources);
        (self.roam, self.dscp) = (tuning.roam, tuning.dscp);
        self.alternatives.retune(tuning.return_after);
        self.size.raise_after = tuning.raise_after;
        self.segmentation.retune(tuning.tests_segmentation);
        let Some(path) = self.current else { return };
        let singly = self.segmentation.sends_singly(path.to.ip());
        self.current = Some(Path { dscp: self.dscp, singly, ..path });
        let [was, wanted] = [former, self.sources].map(|sources| sources.towards(path.to));
        if was != wanted && (wanted.is_some() || path.from == was) {
            self.change_source(wanted);
        }
    }

    /// The destination of packets for the peer.
    pub(super) fn endpoint(&self) -> Option<SocketAddr> {
        self.current.map(|path| path.to)
    }

    /// Whether the path leads to a configured address, and the preferred one is of the other family.
    pub(super) fn is_other_family(&self) -> bool {
        let Some(current) = self.endpoint() else { return false };
        let first = self.candidates.configured().next();
        self.candidates.configured().any(|one| one == current)
            && first.is_some_and(|first| first.is_ipv4() != current.is_ipv4())
    }

    /// Their source address, if it is known.
    pub(super) fn source(&self) -> Option<IpAddr> {
        self.current.and_then(|path| path.from)
    }

    /// The peer has answered a PING, from this address.
    pub(super) fn answered(&mut self, now: BootTime, from: SocketAddr) {
        if self.endpoint() == Some(from) {
            self.answered_at = Some(now);
        }
    }

    /// The destination of the next initiation.
    pub(super) fn target(&self) -> Option<SocketAddr> {
        self.candidates.target(self.endpoint())
    }

    /// The next address for an initiation that has been sent to these.
    pub(super) fn untried(&self, asked: &[SocketAddr]) -> Option<SocketAddr> {
        self.candidates.untried(self.endpoint(), asked)
    }

    /// The number of addresses at which the peer may be.
    pub(super) fn addresses(&self) -> usize {
        self.candidates.count(self.endpoint())
    }

    /// Whether the peer is followed to this address.
    pub(super) fn may_be_at(&self, address: SocketAddr) -> bool {
        match self.current {
            Some(path) if path.to == address => true,
            _ if self.detours.lead_to(address) => false,
            Some(path) => self.roam.permits(path.to, address),
            None => self.candidates.permit(self.roam, address),
        }
    }

    /// Sets the path to `to`, with the source `from` or else the configured one.
    pub(super) fn set(&mut self, to: SocketAddr, from: Option<IpAddr>) {
        let from = from.or_else(|| self.sources.towards(to));
        let path = Path {
            to,
            from,
            pinned: !self.is_chosen(Transmit { to, from }),
            max_datagram: self.size.towards(to.ip()),
            dscp: self.dscp,
            singly: self.segmentation.sends_singly(to.ip()),
        };
        if self.current.is_none_or(|old| old.to != to) {
            self.detours.left(self.current);
            self.moved = Some(to);
        }
        self.current = Some(path);
    }

    /// The peer has proved its address `to`.
    pub(super) fn settle_at(&mut self, now: BootTime, to: SocketAddr, from: Option<IpAddr>) {
        self.note_change(now, to, from);
        self.roaming.settle();
        self.set(to, from);
    }

    /// Sets the first path.
    pub(super) fn begin_at(&mut self, now: BootTime, at: Arrival) {
        if self.may_be_at(at.from) {
            self.settle_at(now, at.from, at.local);
        } else if let Some(configured) = self.target() {
            // The peer sent first, from an address to which it may not be followed.
            self.set(configured, None);
        }
    }

    /// Follows the peer to an address that is not validated yet.
    pub(super) fn try_at(&mut self, now: BootTime, Source { from, local, .. }: Source) {
        if let Some(Path { to, from, .. }) = self.current {
            self.roaming.leave(Arrival { from: to, local: from });
        }
        self.note_change(now, from, local);
        self.set(from, local);
    }

    /// The initiation to `called` was unanswered. If that is the path's destination, the path returns to the
    /// last validated address. Returns whether it does.
    pub(super) fn turn_back(&mut self, called: SocketAddr) -> bool {
        // Otherwise the peer was heard from another address since, to which nothing was sent yet.
        let Some(path) = self.current.filter(|path| path.to == called) else { return false };
        let Some(left) = self.roaming.take_left() else { return false };
        self.candidates.remember(path.to);
        self.set(left.from, left.local);
        true
    }

    /// The path is about to become `to` with the source `from`.
    pub(super) fn note_change(&mut self, now: BootTime, to: SocketAddr, from: Option<IpAddr>) {
        let Some(path) = self.current else { return };
        if path.to != to {
            self.contests.moved(now, Arrival { from: path.to, local: path.from });
            self.roaming.moved(now, path.to, to);
        } else if let (Some(old), Some(new)) = (path.from, from)
            && old != new
        {
            self.roaming.source_changed(now, old, new);
        }
    }

    /// Changes to another source address.
    pub(super) fn change_source(&mut self, from: Option<IpAddr>) {
        if let Some(path) = self.current {
            let pinned = !self.is_chosen(Transmit { from, to: path.to });
            self.current = Some(Path { from, pinned, ..path });
        }
    }

    /// The kernel itself sends this way, or no longer does so.
    pub(super) fn note_chosen(&mut self, way: Transmit, is_kernels: bool) {
        self.chosen = Some(way).filter(|_| is_kernels);
        self.change_source(self.source());
    }

    /// No source is known to be the kernel's own choice any more.
    pub(super) fn forget_chosen(&mut self) {
        self.chosen = None;
        self.change_source(self.source());
    }

    /// Whether the kernel itself would send this way. A configured source is always pinned.
    fn is_chosen(&self, way: Transmit) -> bool {
        self.chosen == Some(way) && self.sources.towards(way.to).is_none()
    }

    /// The same way, with a source only if it has to be pinned.
    pub(super) fn leaving(&self, way: Transmit) -> Transmit {
        Transmit { from: way.from.filter(|_| !self.is_chosen(way)), ..way }
    }

    /// The source address in use may not work any more: returns to the configured one, or lets the kernel
    /// choose.
    pub(super) fn forget_source(&mut self, now: BootTime) {
        let Some(path) = self.current else { return };
        let configured = self.sources.towards(path.to);
        let given_up = path.from.filter(|from| Some(*from) != configured);
        self.given_up = given_up.map(|from| (from, now + TAKEN_BACK_AFTER)).or(self.given_up);
        self.change_source(configured);
    }

    /// Whether the peer sent to a source address that was just abandoned, as it does until it has received a
    /// datagram from another one.
    pub(super) fn was_abandoned(&mut self, now: BootTime, source: &Source) -> bool {
        self.given_up.take_if(|(_, until)| now >= *until);
        let given_up = self.given_up.map(|(from, _)| from);
        given_up.is_some() && source.local == given_up && self.endpoint() == Some(source.from)
    }

    /// The routes to these addresses lead into the tunnel. If the peer's address is one of them, the path
    /// returns to a former or configured address. Returns whether an address is no longer among them.
    pub(super) fn avoid(&mut self, addresses: Vec<SocketAddr>) -> bool {
        let freed = self.detours.avoid(addresses);
        if self.endpoint().is_some_and(|to| self.detours.lead_to(to))
            && let Some(to) = self.detours.elsewhere(self.candidates.configured())
        {
            self.set(to, None);
        }
        freed
    }

    /// Applies the largest datagram size that the path is known to carry.
    pub(super) fn follow_size(&mut self) {
        if let Some(path) = &mut self.current {
            path.max_datagram = self.size.towards(path.to.ip());
        }
    }

    /// Sends runs of datagrams, or each datagram singly.
    pub(super) fn follow_segmentation(&mut self) {
        if let Some(path) = &mut self.current {
            path.singly = self.segmentation.sends_singly(path.to.ip());
        }
    }
}
