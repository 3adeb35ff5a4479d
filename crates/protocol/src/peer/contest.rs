//! Detects copies: one datagram of the peer that arrives from two addresses.
//!
//! An attacker on the path can send copies of the peer's datagrams from an address of its own, ahead of the
//! originals. It can also carry our PING or handshake response to the peer, and send the peer's answer ahead.
//! So the attacker's address may pass the tests of a new address. But the originals still arrive, as copies
//! of the datagrams received first: they show that the peer may still be at its former address.
//!
//! Copies are no proof, because their source can be forged as well: after the peer has really moved, somebody
//! could send copies from the address that it has left. So the former address is *checked*: a PING is sent to
//! it alone. If the peer answers the PING, from any address, then datagrams to the former address reach the
//! peer. The path returns there if it had been changed, and the peer is not followed to the other address for a
//! while. If the peer does not answer, copies from the former address are ignored for a while. Until then data
//! keeps its current path.
//!
//! A `WireGuard` peer answers no PING, so it is assumed to be at the former address without a check.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use super::frames::Challenge;
use super::roaming::MISSING_AFTER;
use super::{Peer, Transmit};
use crate::activity::Contested;
use crate::frame::{ControlFrame, Pong};
use crate::table::{Arrival, Path};
use crate::time::{BootTime, Now};

/// A copy from the peer's former address counts within this time after the move. Real copies come
/// milliseconds later; a much later one shows only that somebody has stored it.
const BACK_WITHIN: Duration = Duration::from_secs(5);
/// The least time between contests that are acted on, unless the peer has moved in between.
const CONTESTS_APART: Duration = Duration::from_millis(250);
/// A check without an answer fails after this time. Until then no new address is considered, because an
/// attacker who sends copies may have many.
const CHECK_WITHIN: Duration = Duration::from_secs(2);
/// A former address whose check failed is not checked again for this long.
const UNPROVEN_FOR: Duration = Duration::from_secs(5);
/// The peer is not followed to a contested address for this long the first time, and for twice as long each
/// further time.
const REJECTED_FOR: Duration = Duration::from_secs(60);
const REJECTED_FOR_AT_MOST: Duration = Duration::from_secs(960);
/// The number of such addresses that are remembered; a newer one replaces the oldest.
const REJECTED: usize = 8;

/// The state of contests.
#[derive(Debug, Default)]
pub(super) struct Contests {
    /// When the next contest may be acted on.
    pub(super) next_at: BootTime,
    before: Option<Before>,
    check: Option<Check>,
    rejected: VecDeque<Rejected>,
}

/// The peer's address before its last move, and until when a copy from there counts.
#[derive(Clone, Copy, Debug)]
struct Before {
    at: Arrival,
    until: BootTime,
}

/// Two addresses, one of which is the peer's.
#[derive(Clone, Copy, Debug)]
struct Contest {
    /// The address where the peer was known to be first.
    former: Arrival,
    /// The address where the peer seems to be now.
    other: SocketAddr,
}

/// A PING to the former address. A retransmission has the same challenge.
#[derive(Clone, Copy, Debug)]
struct Check {
    contest: Contest,
    challenge: Challenge,
    until: BootTime,
}

/// An address where the peer was not, although its datagrams came from there.
#[derive(Clone, Copy, Debug)]
struct Rejected {
    address: SocketAddr,
    pause: Duration,
    until: BootTime,
}

impl Contests {
    /// The peer's address before its last move.
    pub(super) fn before(&self) -> Option<SocketAddr> {
        self.before.map(|before| before.at.from)
    }

    /// The peer moves away from `at`.
    pub(super) fn moved(&mut self, now: BootTime, at: Arrival) {
        self.before = Some(Before { at, until: now + BACK_WITHIN });
        self.next_at = now;
        self.check = None;
    }

    pub(super) fn is_rejected(&self, now: BootTime, address: SocketAddr) -> bool {
        self.rejected.iter().any(|one| one.address == address && now < one.until)
    }

    /// Does not follow the peer to `address` for a while.
    fn reject(&mut self, now: BootTime, address: SocketAddr) {
        let known = self.rejected.iter().position(|one| one.address == address);
        let pause = match known.and_then(|place| self.rejected.remove(place)) {
            Some(one) if now < one.until => one.pause,
            Some(one) => (one.pause * 2).min(REJECTED_FOR_AT_MOST),
            None => REJECTED_FOR,
        };
        if self.rejected.len() == REJECTED {
            self.rejected.pop_front();
        }
        self.rejected.push_back(Rejected { address, pause, until: now + pause });
    }

    /// The contest, if any, that a copy causes on the current path.
    fn weigh(
        &self,
        now: BootTime,
        path: Path,
        Contested { first, copy }: Contested,
    ) -> Option<Contest> {
        let before = self.before.filter(|before| now < before.until).map(|before| before.at);
        let before = before.filter(|at| at.from == first || at.from == copy);
        let here = Arrival { from: path.to, local: path.from };
        match before.filter(|at| at.from != path.to) {
            Some(former) => Some(Contest { former, other: path.to }),
            // The peer is not followed to a rejected address anyway, so there is no contest.
            None if path.to != copy || self.is_rejected(now, first) => None,
            None => Some(Contest { former: here, other: first }),
        }
    }

    /// The pending check of the former address, or a new one; none if that address has just failed a check.
    fn check(&mut self, now: BootTime, contest: Contest, unused: Challenge) -> Option<Check> {
        let same = |check: &Check| check.contest.former.from == contest.former.from;
        match self.check.filter(same) {
            Some(check) if now < check.until => Some(check),
            Some(check) if now < check.until + UNPROVEN_FOR => None,
            _ => {
                let check = Check { contest, challenge: unused, until: now + CHECK_WITHIN };
                self.check = Some(check);
                self.check
            }
        }
    }

    /// The contest that this answer settles.
    fn settle(&mut self, now: BootTime, pong: &Pong) -> Option<Contest> {
        let answers = |check: &mut Check| now < check.until && check.challenge.is_met_by(pong);
        self.check.take_if(answers).map(|check| check.contest)
    }
}

impl Peer {
    /// Whether the peer must not be followed to `address`: it was found not to be there, or the path has just
    /// left that address for a better one. This ends if nothing arrives from the peer's present address any
    /// more. Then the peer has moved: an attacker who sends copies ahead cannot stop the originals.
    pub(super) fn shuns(&self, now: BootTime, address: SocketAddr) -> bool {
        let absent = self.activity.absent_since();
        let is_missing = absent.is_some_and(|since| now >= since + MISSING_AFTER);
        let rejected = self.paths.contests.is_rejected(now, address);
        (rejected || self.paths.alternatives.has_left(now, address)) && !is_missing
    }

    /// The same datagram arrived twice, from two addresses.
    pub(super) fn follow_contest(&mut self, now: Now) {
        if now.boot < self.paths.contests.next_at {
            return;
        }
        let Some(contested) = self.activity.take_contest() else { return };
        self.paths.contests.next_at = now.boot + CONTESTS_APART;
        let Some(path) = self.paths.current else { return };
        let Some(contest) = self.paths.contests.weigh(now.boot, path, contested) else { return };
        if !self.paths.may_be_at(contest.former.from) {
            return;
        }
        if self.frames_flow() {
            self.check_former(now, contest);
        } else {
            self.return_to(now, contest);
        }
    }

    fn check_former(&mut self, now: Now, contest: Contest) {
        let unused = self.next_challenge();
        let Some(check) = self.paths.contests.check(now.boot, contest, unused) else { return };
        self.paths.roaming.wait(check.until);
        let Some(current) = self.keyring.current() else { return };
        let sealing = std::sync::Arc::clone(&current.sealing);
        let ping = check.challenge.ping(sealing.counted() + 1);
        let Arrival { from: to, local: from } = contest.former;
        let frame = ControlFrame::begin().ping(&ping).end();
        self.send_sealed(now, &sealing, Transmit { to, from }, &frame);
    }

    /// A PONG arrived. It only proves that the peer received the PING: anybody on the path can send a copy of
    /// the PONG ahead, from any address.
    pub(super) fn settle_contest(&mut self, now: Now, pong: &Pong) {
        if let Some(contest) = self.paths.contests.settle(now.boot, pong) {
            self.return_to(now, contest);
        }
    }

    /// The peer is at the former address, so it is not followed to the other one for a while.
    fn return_to(&mut self, now: Now, Contest { former, other }: Contest) {
        if self.endpoint() != Some(former.from) {
            self.paths.settle_at(now.boot, former.from, former.local);
            // The peer did not move: the path was wrong.
            self.paths.contests.before = None;
        }
        self.paths.contests.reject(now.boot, other);
        self.paths.roaming.wait(now.boot + CHECK_WITHIN);
    }
}
