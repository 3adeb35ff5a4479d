//! Follows the peer's address, and chooses the address of ours that datagrams leave from.
//!
//! An authentic datagram with the newest counter shows who made it, not where it was sent from: whoever sees it on the path
//! can send it again from any source address, and faster. So a new address is not used before it has been validated, in
//! one of two ways:
//!
//! - by a handshake: an initiation that we sent there was answered, or a response that we sent there was used from there.
//!   That the response was used is not enough, because whoever sees it can bring it to the peer;
//! - by a PING that was sent only there, and a PONG that came from there. Until then nothing but that PING is sent to the
//!   new address, once for each time that something came from it. It is no longer than three of the shortest datagrams.
//!
//! The same holds for the address of ours that the peer writes to: whoever delivers a datagram of the peer to another
//! address of this host must not decide where we send from.
//!
//! An attacker can pass the PING test from an address of its own if it sends copies of the peer's datagrams ahead and
//! carries what we send to the peer. How that is found is described in the module `contest`.
//!
//! A `WireGuard` peer answers no PING, and expects to be followed at once. Where an initiation to such an address goes
//! unanswered, the path leads back to the last address that was validated.
//!
//! New addresses are attended to at [`MOVES_APART`] or [`SOURCES_APART`], and what alternates is slowed down by [`Pace`].

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::Peer;
use super::pace::Pace;
use crate::activity::Source;
use crate::frame::{ControlFrame, Ping, Pong};
use crate::session::Generation;
use crate::table::{Arrival, Path};
use crate::time::{BootTime, Now};
use crate::turn::Framed;

/// New addresses are attended to this far apart, and only the newest counts. A peer that alternates between a few of them
/// is followed less and less often.
const MOVES_APART: Duration = Duration::from_millis(250);
/// The same of addresses of ours. It is more, because the peer looks for us as we look for it: where both have several
/// addresses that work, the ends must not change at the same moments.
const SOURCES_APART: Duration = Duration::from_millis(500);
/// A peer that alternates, and is then heard at one other address alone for this long, is followed at once: the path may
/// not work any more. This is not done for addresses of ours, so that one of two ends that look for each other waits.
const ALONE_FOR: Duration = Duration::from_secs(1);
/// A PING to a new address is answered within this, or was not.
const PROBE_WITHIN: Duration = Duration::from_secs(5);
/// Addresses that have a PING to answer.
const PROBES: usize = 4;

/// What becomes of new addresses.
#[derive(Debug)]
pub(super) struct Roaming {
    /// The next new address is attended to from then on.
    next_at: BootTime,
    /// The peer's address, as it changes.
    moves: Pace<SocketAddr>,
    /// The address of ours that we send from, as it changes.
    sources: Pace<IpAddr>,
    /// Which change of the newest source was seen first when: it has been the only address since, if it is still that.
    alone: Option<(u64, BootTime)>,
    probes: VecDeque<Probe>,
    /// The last address that has proved itself, where the path leads to one that has not.
    left: Option<Arrival>,
}

/// A PING to a new address. It keeps its number when it is sent again: any answer is good.
#[derive(Clone, Copy, Debug)]
struct Probe {
    to: SocketAddr,
    /// The address of ours that it leaves from, if the kernel said it.
    from: Option<IpAddr>,
    sequence: u32,
    until: BootTime,
}

impl Default for Roaming {
    fn default() -> Self {
        Self {
            next_at: BootTime::default(),
            moves: Pace::new(MOVES_APART),
            sources: Pace::new(SOURCES_APART),
            alone: None,
            probes: VecDeque::new(),
            left: None,
        }
    }
}

impl Roaming {
    /// When `source` may be attended to, given the path and how often the newest source has changed.
    fn due(&self, path: Option<Path>, source: &Source, changes: u64) -> BootTime {
        let held_until = match path {
            Some(path) if path.to != source.from => {
                let alone = self.alone.filter(|(since_change, _)| *since_change == changes);
                let paced = self.moves.next_at();
                alone.map_or(paced, |(_, since)| paced.min(since + ALONE_FOR))
            }
            // Where the kernel chooses, we follow at once.
            Some(path) if path.from.is_some() => self.sources.next_at(),
            Some(_) | None => self.next_at,
        };
        held_until.max(self.next_at)
    }

    /// Notes since when the newest source is the only one.
    fn watch(&mut self, now: BootTime, changes: u64) {
        if self.alone.is_none_or(|(change, _)| change != changes) {
            self.alone = Some((changes, now));
        }
    }

    /// The number of the PING to `to`, sent from `from`.
    fn probe(&mut self, now: BootTime, to: SocketAddr, from: Option<IpAddr>, unused: u32) -> u32 {
        self.probes.retain(|probe| now < probe.until);
        let known = self.probes.iter().find(|probe| (probe.to, probe.from) == (to, from));
        if let Some(probe) = known {
            return probe.sequence;
        }
        if self.probes.len() == PROBES {
            self.probes.pop_front();
        }
        self.probes.push_back(Probe { to, from, sequence: unused, until: now + PROBE_WITHIN });
        unused
    }

    /// Forgets the PINGs to `to`; returns whether there was one.
    pub(super) fn give_up_probe(&mut self, to: SocketAddr) -> bool {
        let before = self.probes.len();
        self.probes.retain(|probe| probe.to != to);
        self.probes.len() < before
    }

    /// Attends to no new address until then, and forgets those that have a PING to answer.
    pub(super) fn wait(&mut self, until: BootTime) {
        self.probes.clear();
        self.next_at = self.next_at.max(until);
    }

    /// Keeps `at` as the last address that has proved itself, unless there is an earlier one.
    pub(super) fn leave(&mut self, at: Arrival) {
        self.left.get_or_insert(at);
    }

    /// The last address that has proved itself, where the path leads to one that has not.
    pub(super) const fn take_left(&mut self) -> Option<Arrival> {
        self.left.take()
    }

    /// The peer is where the path leads.
    pub(super) fn settle(&mut self) {
        self.left = None;
        self.probes.clear();
    }

    /// The peer's address changes.
    pub(super) fn moved(&mut self, now: BootTime, from: SocketAddr, to: SocketAddr) {
        self.moves.changed(now, from, to);
    }

    /// The address of ours that we send from changes.
    pub(super) fn source_changed(&mut self, now: BootTime, from: IpAddr, to: IpAddr) {
        self.sources.changed(now, from, to);
    }

    /// Whether this proves that the peer is where it came from, and hears us from where it came to.
    fn is_proof(&self, now: BootTime, at: Arrival, pong: &Pong) -> bool {
        let proves = |probe: &Probe| {
            (probe.to, probe.from) == (at.from, at.local) && probe.sequence == pong.sequence.get()
        };
        self.probes.iter().any(|probe| proves(probe) && now < probe.until)
    }
}

impl Peer {
    /// When a new address that is waiting is attended to.
    pub(super) fn roaming_deadline(&self) -> Option<BootTime> {
        let source = self.source_deadline();
        let contest = self.activity.has_contest().then_some(self.paths.contests.next_at);
        source.into_iter().chain(contest).min()
    }

    fn source_deadline(&self) -> Option<BootTime> {
        let (source, changes) = self.activity.newest_source()?;
        Some(self.paths.roaming.due(self.paths.current, &source, changes))
    }

    /// The peer was heard from elsewhere, on a session that is still ours. The newest address waits in
    /// `activity`, where it disturbs nobody, until the last move is long enough ago.
    pub(super) fn follow_source(&mut self, now: Now) {
        if let Some((_, changes)) = self.activity.newest_source() {
            self.paths.roaming.watch(now.boot, changes);
        }
        // What is out of date is taken as well, so that the next one wakes us; but not each time.
        if now.boot < self.source_deadline().unwrap_or(self.paths.roaming.next_at) {
            return;
        }
        let Some(source) = self.activity.take_source() else { return };
        if self.paths.is_of_the_past(now.boot, &source) {
            // It is looked at again, and until then wakes nobody more.
            let _later = self.activity.heard_from(source);
            self.paths.roaming.next_at = now.boot + MOVES_APART;
            return;
        }
        if !self.keyring.opening().any(|key| key.generation() == source.generation) {
            return;
        }
        let at = Arrival { from: source.from, local: source.local };
        if self.paths.contests.is_rejected(now.boot, at.from) {
            self.paths.roaming.next_at = now.boot + MOVES_APART;
            return;
        }
        // To find the peer where it was is no move: it may move at once.
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

    /// Whether we send from an address that works, as far as is known, and not from the one that the peer
    /// has just written to. Where the kernel chooses, we follow at once.
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
        let sequence =
            self.paths.roaming.probe(now.boot, from, local, self.paths.gauge.next_sequence());
        let ping = Ping::new(sequence, now.boot.as_nanos(), sealing.used() + 1);
        let frame = ControlFrame::begin().ping(&ping).end();
        self.send_sealed(now, &sealing, super::Transmit { to: from, from: local }, &frame);
    }

    /// A PONG came: where from may be where the peer is.
    pub(super) fn follow_pong(&mut self, now: Now, framed: &Framed, pong: &Pong) {
        let at = framed.at;
        if self.paths.roaming.is_proof(now.boot, at, pong) && self.paths.may_be_at(at.from) {
            self.paths.settle_at(now.boot, at.from, at.local);
        }
    }

    /// The peer has used the session that our answer made. Where no other address is known to the data
    /// path, it did so from where it is.
    pub(super) fn follow_answer(&mut self, now: Now) {
        let Some(session) = self.keyring.current() else { return };
        let generation = session.opening.generation();
        let source = self.activity.newest_source().map(|(source, _)| source);
        let source = source.filter(|source| source.generation == generation);
        let used_from = source.map(|s| s.from).or_else(|| self.endpoint());
        match session.reached[..] {
            [Arrival { from: to, local }] if used_from == Some(to) && self.paths.may_be_at(to) => {
                self.paths.settle_at(now.boot, to, local);
            }
            [] | [_] => {}
            _ => self.choose_answered(now, generation, used_from),
        }
    }

    /// The answer went to several addresses, all but one of them forged: that the session was used from
    /// one of them proves nothing, unless it is where the peer is expected. Without a path each is asked.
    fn choose_answered(&mut self, now: Now, generation: Generation, used_from: Option<SocketAddr>) {
        let reached = self.keyring.current().map(|session| session.reached.clone());
        let reached: Vec<_> = reached.into_iter().flatten().collect();
        let likely = |at: &&Arrival| match self.paths.current {
            Some(path) => path.to == at.from && used_from == Some(at.from),
            None => self.paths.candidates.name(at.from),
        };
        if let Some(Arrival { from, local }) = reached.iter().find(likely) {
            self.paths.settle_at(now.boot, *from, *local);
        } else if self.paths.current.is_none() && self.frames_flow() {
            for Arrival { from, local } in reached {
                if self.paths.may_be_at(from) {
                    self.probe(now, Source { from, local, generation });
                }
            }
        }
    }
}
