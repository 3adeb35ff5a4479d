//! Follows the peer's address, and chooses the source address of datagrams.
//!
//! An authentic datagram with the newest counter proves who made it, but not where it was sent from: anybody on
//! the path can send a copy from any source address, and the copy may arrive first. So a new address is not
//! used until it has been validated, in one of two ways:
//!
//! - by a handshake: an initiation that we sent there was answered, or a response that we sent there was
//!   confirmed from there. A confirmation from another address is not enough, because anybody who sees the
//!   response can forward it to the peer;
//! - by a PING that was sent only there, and a PONG that came from there. Until then nothing but that PING is
//!   sent to the new address, at most once for each datagram from it. The PING carries random bits. Otherwise
//!   the peer itself could answer it without having received it, and direct our data to somebody else. The PING
//!   is no longer than three of the shortest datagrams.
//!
//! The same holds for our own addresses: somebody who redirects a datagram of the peer to another address of
//! this host must not decide on our source address.
//!
//! An attacker can pass the PING test from an address of its own if it sends copies of the peer's datagrams
//! ahead and carries our datagrams to the peer. The module `contest` describes how that is detected.
//!
//! A `WireGuard` peer answers no PING, and expects to be followed at once. If an initiation to such an
//! address is unanswered, the path returns to the last validated address.
//!
//! The peer's address changes at most every [`MOVES_APART`], ours every [`SOURCES_APART`], and [`Pace`] slows
//! down alternating ones.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::Peer;
use super::frames::Challenge;
use super::pace::Pace;
use crate::activity::Source;
use crate::frame::{ControlFrame, Pong};
use crate::receive_order::Framed;
use crate::session::Generation;
use crate::table::{Arrival, Path};
use crate::time::{BootTime, Now};

/// The least time between changes of the peer's address; only the newest address counts. A peer that
/// alternates between a few addresses is followed less and less often.
const MOVES_APART: Duration = Duration::from_millis(250);
/// The same for our source address. It is longer, because the peer searches as well: if both ends have
/// several working addresses, they must not change at the same times.
const SOURCES_APART: Duration = Duration::from_millis(500);
/// If datagrams arrive only from other addresses than the path's for this long, the path is probably wrong.
/// Then a move is no longer delayed because the address alternated or was rejected. This does not apply to our
/// own addresses: if both ends search for each other, one of them should wait.
pub(super) const MISSING_AFTER: Duration = Duration::from_secs(1);
/// A PING to a new address counts as unanswered after this time.
const PROBE_WITHIN: Duration = Duration::from_secs(5);
/// The number of new addresses with a pending PING.
const PROBES: usize = 4;

/// The state of new addresses.
#[derive(Debug)]
pub(super) struct Roaming {
    /// Before this time no new address is considered.
    next_at: BootTime,
    /// The changes of the peer's address.
    moves: Pace<SocketAddr>,
    /// The changes of our source address.
    sources: Pace<IpAddr>,
    probes: VecDeque<Probe>,
    /// The last validated address, if the path leads to one that is not validated.
    left: Option<Arrival>,
}

/// A PING to a new address. Retransmissions keep its number, so that any answer counts.
#[derive(Clone, Copy, Debug)]
struct Probe {
    to: SocketAddr,
    /// Its source address, if the kernel reported it.
    from: Option<IpAddr>,
    challenge: Challenge,
    until: BootTime,
}

impl Default for Roaming {
    fn default() -> Self {
        Self {
            next_at: BootTime::default(),
            moves: Pace::new(MOVES_APART),
            sources: Pace::new(SOURCES_APART),
            probes: VecDeque::new(),
            left: None,
        }
    }
}

impl Roaming {
    /// When `source` may be considered, given the path and since when nothing arrives from its destination.
    fn due(&self, path: Option<Path>, source: &Source, unheard: Option<BootTime>) -> BootTime {
        let held_until = match path {
            Some(path) if path.to != source.from => {
                let paced = self.moves.next_at();
                // The silence may have begun before the last move.
                let unheard = unheard.map(|since| since.max(self.moves.changed_at()));
                unheard.map_or(paced, |since| paced.min(since + MISSING_AFTER))
            }
            // If the kernel chooses the source, we follow at once.
            Some(path) if path.from.is_some() => self.sources.next_at(),
            Some(_) | None => self.next_at,
        };
        held_until.max(self.next_at)
    }

    /// The challenge for a PING to `to` from `from`: that of the pending one, or `unused`.
    fn probe(
        &mut self,
        now: BootTime,
        to: SocketAddr,
        from: Option<IpAddr>,
        unused: Challenge,
    ) -> Challenge {
        self.probes.retain(|probe| now < probe.until);
        let known = self.probes.iter().find(|probe| (probe.to, probe.from) == (to, from));
        if let Some(probe) = known {
            return probe.challenge;
        }
        if self.probes.len() == PROBES {
            self.probes.pop_front();
        }
        self.probes.push_back(Probe { to, from, challenge: unused, until: now + PROBE_WITHIN });
        unused
    }

    /// Forgets the PINGs to `to`; returns whether there was one.
    pub(super) fn give_up_probe(&mut self, to: SocketAddr) -> bool {
        let before = self.probes.len();
        self.probes.retain(|probe| probe.to != to);
        self.probes.len() < before
    }

    /// Considers no new address until then, and forgets pending PINGs.
    pub(super) fn wait(&mut self, until: BootTime) {
        self.probes.clear();
        self.next_at = self.next_at.max(until);
    }

    /// Keeps `at` as the last validated address, unless an earlier one is kept.
    pub(super) fn leave(&mut self, at: Arrival) {
        self.left.get_or_insert(at);
    }

    /// The last validated address, if the path leads to one that is not validated.
    pub(super) const fn take_left(&mut self) -> Option<Arrival> {
        self.left.take()
    }

    /// The peer is at the path's address.
    pub(super) fn settle(&mut self) {
        self.left = None;
        self.probes.clear();
    }

    /// The peer's address changes.
    pub(super) fn moved(&mut self, now: BootTime, from: SocketAddr, to: SocketAddr) {
        self.moves.changed(now, from, to);
    }

    /// Our source address changes.
    pub(super) fn source_changed(&mut self, now: BootTime, from: IpAddr, to: IpAddr) {
        self.sources.changed(now, from, to);
    }

    /// Whether this PONG proves that the peer is at the PONG's source address, and receives what we send from
    /// the PONG's destination address.
    fn is_proof(&self, now: BootTime, at: Arrival, pong: &Pong) -> bool {
        let proves = |probe: &Probe| {
            (probe.to, probe.from) == (at.from, at.local) && probe.challenge.is_met_by(pong)
        };
        self.probes.iter().any(|probe| proves(probe) && now < probe.until)
    }
}

impl Peer {
    /// When a waiting new address is considered.
    pub(super) fn roaming_deadline(&self) -> Option<BootTime> {
        let source = self.source_deadline();
        let contest = self.activity.has_contest().then_some(self.paths.contests.next_at);
        source.into_iter().chain(contest).min()
    }

    fn source_deadline(&self) -> Option<BootTime> {
        let source = self.activity.newest_source()?;
        let unheard = self.activity.unheard_since();
        Some(self.paths.roaming.due(self.paths.current, &source, unheard))
    }

    /// The peer was heard from another address, on a session that is still ours. The newest address waits in
    /// `activity`, without waking anybody, until the last move is long enough ago.
    pub(super) fn follow_source(&mut self, now: Now) {
        // An outdated source is taken too, so that the next one wakes us; but at most once in each interval.
        if now.boot < self.source_deadline().unwrap_or(self.paths.roaming.next_at) {
            return;
        }
        let Some(source) = self.activity.take_source() else { return };
        if self.paths.was_abandoned(now.boot, &source) {
            // It is considered again later, and wakes nobody until then.
            let _later = self.activity.heard_from(source);
            self.paths.roaming.next_at = now.boot + MOVES_APART;
            return;
        }
        if !self.keyring.opening().any(|key| key.generation() == source.generation) {
            return;
        }
        let at = Arrival { from: source.from, local: source.local };
        if self.shuns(now.boot, at.from) {
            // It is kept: if nothing arrives from the path's destination, the peer is followed to this address
            // soon.
            if self.activity.absent_since().is_some() {
                let _later = self.activity.heard_from(source);
            }
            self.paths.roaming.next_at = now.boot + MOVES_APART;
            return;
        }
        // If the peer is still at the path's address, its next move is not delayed.
        if self.paths.current.is_none_or(|path| path.to != at.from || path.from != at.local) {
            self.paths.roaming.next_at = now.boot + MOVES_APART;
        }
        match self.paths.current {
            None if self.frames_flow() && self.paths.may_be_at(at.from) => self.probe(now, source),
            None => self.paths.begin_at(now.boot, at),
            Some(path) if path.to == at.from && self.is_source_settled(path, at) => {
                self.paths.roaming.next_at = now.boot + SOURCES_APART;
                self.probe(now, source);
            }
            Some(path) if path.to == at.from => {
                self.paths.note_change(now.boot, at.from, at.local);
                self.paths.set(at.from, at.local);
            }
            Some(_) if self.paths.may_be_at(at.from) => self.follow(now, source),
            Some(_) => {}
        }
    }

    /// Whether our source address works, as far as is known, and differs from the one that the peer has just
    /// written to. If the kernel chooses it, we follow at once.
    fn is_source_settled(&self, path: Path, at: Arrival) -> bool {
        path.from.is_some() && path.from != at.local && self.frames_flow()
    }

    fn follow(&mut self, now: Now, source: Source) {
        if self.frames_flow() {
            self.probe(now, source);
        } else {
            self.paths.try_at(now.boot, source);
        }
    }

    fn probe(&mut self, now: Now, Source { from, local, .. }: Source) {
        let Some(current) = self.keyring.current() else { return };
        let sealing = std::sync::Arc::clone(&current.sealing);
        let unused = self.next_challenge();
        let challenge = self.paths.roaming.probe(now.boot, from, local, unused);
        let ping = challenge.ping(sealing.counted() + 1);
        let frame = ControlFrame::begin().ping(&ping).end();
        self.send_sealed(now, &sealing, super::Transmit { to: from, from: local }, &frame);
    }

    /// A PONG arrived: its source may be the peer's new address.
    pub(super) fn follow_pong(&mut self, now: Now, framed: &Framed, pong: &Pong) {
        let at = framed.at;
        if self.paths.roaming.is_proof(now.boot, at, pong) && self.paths.may_be_at(at.from) {
            self.paths.settle_at(now.boot, at.from, at.local);
        }
    }

    /// The peer has confirmed the session of our response. If the data path reported no other address, the
    /// confirmation came from the path's destination.
    pub(super) fn follow_answer(&mut self, now: Now) {
        let Some(session) = self.keyring.current() else { return };
        let generation = session.opening.generation();
        let source = self.activity.newest_source();
        let source = source.filter(|source| source.generation == generation);
        let used_from = source.map(|s| s.from).or_else(|| self.endpoint());
        match session.reached[..] {
            [Arrival { from: to, local }] if used_from == Some(to) && self.paths.may_be_at(to) => {
                // Without a report it came to the address of ours that we send from.
                let here = self.source().filter(|_| source.is_none());
                self.paths.settle_at(now.boot, to, here.or(local));
            }
            [] | [_] => {}
            _ => self.choose_answered(now, generation, used_from),
        }
    }

    /// The response went to several addresses, of which all but one are forged. That the session was used
    /// from one of them proves nothing, unless the peer is expected there. Without a path each address is
    /// sent a PING.
    fn choose_answered(&mut self, now: Now, generation: Generation, used_from: Option<SocketAddr>) {
        let reached = self.keyring.current().map(|session| session.reached.clone());
        let reached: Vec<_> = reached.into_iter().flatten().collect();
        let likely = |at: &&Arrival| match self.paths.current {
            Some(path) => path.to == at.from && used_from == Some(at.from),
            None => self.paths.candidates.name(at.from),
        };
        if let Some(Arrival { from, local }) = reached.iter().find(likely) {
            self.paths.settle_at(now.boot, *from, *local);
        } else if self.frames_flow() {
            for Arrival { from, local } in reached {
                if self.paths.may_be_at(from) && !self.shuns(now.boot, from) {
                    self.probe(now, Source { from, local, generation });
                }
            }
        }
    }
}
