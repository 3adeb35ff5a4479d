//! The other configured addresses of the peer: which of them to use when the path is dead, and when to return
//! to an earlier one.
//!
//! A PROBE with random bytes is sent to one such address, and the answer returns to the PROBE's source address.
//! PROBEs and their answers do not move the path of either end, and do not count as traffic, as a sign of life
//! or as loss. An answer proves that the path works in both directions.
//!
//! - *The path is silent*: with each PING that checks whether the peer is alive, the other addresses are
//!   probed. If the silence lasts three quarters of `dead_after`, the current session moves to the first
//!   address that has answered since. So one dead path does not make the peer count as dead.
//! - *The path uses a later address*: the earlier ones are probed, [`SAMPLES`] times in `return_after` while
//!   they answer, otherwise less and less often. The path returns to the first one that was good for all of
//!   `return_after`. An address is good while it loses at most one probe in [`ONE_LOST_IN`]. The limit meant is
//!   five per cent, but with so few samples the estimate has to be stricter.
//!
//! A `WireGuard` peer answers no PROBE. If its path is dead, handshakes find another one (see the module
//! `race`). To test an earlier address, a *test handshake* is sent there [`CALLS`] times in `return_after`, and
//! each has to be answered. It makes a session but does not move our path. The peer's path moves, until it
//! receives the first datagram of that session from the path in use.
//!
//! After the path has moved, the peer sends from its former address until it has learned of the move. So the
//! peer is not followed back to that address for [`NOT_FOLLOWED_FOR`].

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::doubt::Doubt;
use super::initiator::{Attempt, Try};
use super::{Change, Peer, Transmit};
use crate::drop_reason::DropReason;
use crate::frame::{ControlFrame, ProbeToken};
use crate::message::DATA_HEADER_LEN;
use crate::receive_order::Framed;
use crate::session::OVERHEAD;
use crate::time::{BootTime, Now};

/// The number of probes in `return_after` that decide whether an address is good.
const SAMPLES: u32 = 120;
/// One in this number of probes may be lost.
const ONE_LOST_IN: u32 = 30;
/// The least time between two probes to one address, however short `return_after` is.
const PROBES_APART: Duration = Duration::from_millis(250);
/// The longest time between two probes to an address that does not answer: this time, or this multiple of the
/// time for one that answers, whichever is longer.
const PROBES_APART_AT_MOST: Duration = Duration::from_secs(10);
const MORE_SELDOM: u32 = 8;
/// A probe that is not answered within this time is lost.
const ANSWERED_WITHIN: Duration = Duration::from_secs(3);
/// The number of test handshakes in `return_after`, with a peer that answers no PROBE.
const CALLS: u32 = 6;
/// The least time between two test handshakes, so that one is over before the next.
const CALLS_APART: Duration = Duration::from_secs(6);
/// The number of pending probes to one address. A further one makes the oldest count as lost.
const PENDING: usize = 16;
/// The peer is not followed to the address that the path has left for this long, unless the peer is missing at
/// the new one.
const NOT_FOLLOWED_FOR: Duration = Duration::from_secs(10);
/// An unwatched tunnel without data for this long is idle, and nothing is probed.
const AT_REST_AFTER: Duration = Duration::from_secs(60);
/// If an address fails within this many times `return_after` after the path has returned to it, it has to be
/// good for twice as long the next time …
const DIES_SOON: u32 = 10;
/// … but the time is doubled at most this often.
const DOUBLINGS: u32 = 4;

/// The state of the configured addresses that are not in use.
#[derive(Debug)]
pub(super) struct Alternatives {
    return_after: Duration,
    /// The peer answers PROBEs.
    pub(super) answers: bool,
    known: Vec<Alternative>,
    /// Before this time no test handshake is sent to a peer that answers no PROBE.
    calls_from: BootTime,
    /// The address that the path has left, or that a test handshake was sent to, and until when the peer is not
    /// followed there.
    left: Option<(SocketAddr, BootTime)>,
    /// When the path last moved from one configured address to another.
    moved_at: Option<BootTime>,
    /// When the path last returned to an earlier address.
    returned_at: Option<BootTime>,
    /// How often in a row an address failed soon after such a return.
    relapses: u32,
}

/// One address.
#[derive(Debug)]
struct Alternative {
    to: SocketAddr,
    pending: VecDeque<(ProbeToken, BootTime)>,
    next_at: BootTime,
    pause: Duration,
    answered_at: Option<BootTime>,
    samples: Samples,
}

/// Which of the last probes to one address were answered.
#[derive(Debug, Default)]
struct Samples {
    /// One bit for each probe, the last one lowest; set if the probe was answered.
    answered: u128,
    count: u32,
    /// When the address began to be good.
    good_since: Option<BootTime>,
}

impl Samples {
    /// Adds the result of one probe. At most the last `most` results count.
    fn add(&mut self, now: BootTime, answered: bool, most: u32) {
        if answered && self.good_since.is_none() {
            *self = Self { good_since: Some(now), ..Self::default() };
        }
        self.answered = self.answered << 1 | u128::from(answered);
        self.count = (self.count + 1).min(most);
        let last = u128::MAX >> (u128::BITS - self.count);
        let lost = self.count - (self.answered & last).count_ones();
        if lost > most / ONE_LOST_IN {
            *self = Self::default();
        }
    }

    /// Whether the address was good for all of `time`, with at least three quarters of the probes for that
    /// time.
    fn are_good_for(&self, now: BootTime, time: Duration, most: u32) -> bool {
        let long = self.good_since.is_some_and(|since| now >= since + time);
        long && self.count >= most - most / 4
    }
}

impl Alternative {
    fn new(to: SocketAddr, now: BootTime, pause: Duration) -> Self {
        Self {
            to,
            pending: VecDeque::new(),
            next_at: now,
            pause,
            answered_at: None,
            samples: Samples::default(),
        }
    }

    /// Probes that went unanswered for too long are lost.
    fn expire(&mut self, now: BootTime, most: u32) {
        while self.pending.len() > PENDING
            || self.pending.front().is_some_and(|(_, at)| now >= *at + ANSWERED_WITHIN)
        {
            self.pending.pop_front();
            self.samples.add(now, false, most);
        }
    }

    /// A probe or a test handshake was sent. The pause until the next one grows while none is answered.
    fn asked(&mut self, now: BootTime, pause: Duration) {
        let is_good = self.samples.good_since.is_some();
        let longest = PROBES_APART_AT_MOST.max(pause * MORE_SELDOM);
        self.pause = if is_good { pause } else { (self.pause * 2).min(longest) };
        self.next_at = now + self.pause.max(pause);
    }

    /// Takes an answer; returns whether its probe was pending.
    fn answer(&mut self, now: BootTime, token: &ProbeToken, pause: Duration, most: u32) -> bool {
        let place = self.pending.iter().position(|(pending, _)| pending == token);
        let Some((_, asked_at)) = place.and_then(|place| self.pending.remove(place)) else {
            return false;
        };
        self.answered_at = Some(now);
        self.samples.add(now, true, most);
        (self.pause, self.next_at) = (pause, self.next_at.min(asked_at + pause).max(now));
        true
    }
}

impl Alternatives {
    pub(super) const fn new(return_after: Duration) -> Self {
        Self {
            return_after,
            answers: false,
            known: Vec::new(),
            calls_from: BootTime::from_nanos(0),
            left: None,
            moved_at: None,
            returned_at: None,
            relapses: 0,
        }
    }

    /// Addresses have to answer for another time. What is known of them was measured at another rate, so it is forgotten.
    pub(super) fn retune(&mut self, return_after: Duration) {
        if self.return_after != return_after {
            self.return_after = return_after;
            self.known.clear();
        }
    }

    /// The time between two probes of an address that answers.
    fn pause(&self) -> Duration {
        match self.answers {
            true => (self.return_after / SAMPLES).max(PROBES_APART),
            false => (self.return_after / CALLS).max(CALLS_APART),
        }
    }

    /// The number of probes that decide whether an address is good.
    fn samples(&self) -> u32 {
        let fit = self.return_after.as_millis() / self.pause().as_millis();
        u32::try_from(fit).map_or(SAMPLES, |fit| fit.clamp(1, SAMPLES))
    }

    /// How long an address has to be good before the path returns to it.
    fn patience(&self) -> Duration {
        self.return_after * 2_u32.pow(self.relapses)
    }

    /// Whether the path has just left this address, so that the peer is not followed there yet.
    pub(super) fn has_left(&self, now: BootTime, address: SocketAddr) -> bool {
        self.left.is_some_and(|(left, until)| left == address && now < until)
    }

    /// Our own host refused to send to this address. Returns whether a probe was pending there.
    pub(super) fn refused(&mut self, to: SocketAddr) -> bool {
        let known = self.known.iter_mut().find(|one| one.to == to && !one.pending.is_empty());
        known.is_some_and(|one| {
            one.pending.clear();
            one.samples = Samples::default();
            true
        })
    }

    /// The state of the address `to`.
    fn of(&mut self, now: BootTime, to: SocketAddr) -> &mut Alternative {
        let pause = self.pause();
        let place = self.known.iter().position(|one| one.to == to).unwrap_or_else(|| {
            self.known.push(Alternative::new(to, now, pause));
            self.known.len() - 1
        });
        &mut self.known[place]
    }

    /// Forgets all addresses but these.
    fn keep(&mut self, addresses: &[SocketAddr]) {
        self.known.retain(|one| addresses.contains(&one.to));
    }

    /// Probes that went unanswered for too long are lost.
    fn expire(&mut self, now: BootTime) {
        let most = self.samples();
        self.known.iter_mut().for_each(|one| one.expire(now, most));
    }

    /// The addresses among these that are due to be probed.
    fn due(&mut self, now: BootTime, among: &[SocketAddr]) -> Vec<SocketAddr> {
        among.iter().copied().filter(|to| now >= self.of(now, *to).next_at).collect()
    }

    /// When this one is due.
    fn next_at_of(&self, to: SocketAddr) -> BootTime {
        self.known.iter().find(|one| one.to == to).map(|one| one.next_at).unwrap_or_default()
    }

    /// When the next of these is due.
    fn next_at(&self, among: &[SocketAddr]) -> Option<BootTime> {
        let next = among.iter().map(|to| self.next_at_of(*to)).min()?;
        Some(if self.answers { next } else { next.max(self.calls_from) })
    }

    /// The one of these that has been due for longest, or the first of several.
    fn longest_due(&self, among: &[SocketAddr]) -> Option<SocketAddr> {
        among.iter().copied().min_by_key(|to| self.next_at_of(*to))
    }

    /// The first of these that has answered since then.
    pub(super) fn answering(&self, among: &[SocketAddr], since: BootTime) -> Option<SocketAddr> {
        let answers = |one: &Alternative| one.answered_at >= Some(since);
        let known = |to: &SocketAddr| self.known.iter().any(|one| one.to == *to && answers(one));
        among.iter().copied().find(known)
    }

    /// The first of these that was good for long enough.
    fn good(&self, now: BootTime, among: &[SocketAddr]) -> Option<SocketAddr> {
        let (time, most) = (self.patience(), self.samples());
        let is_good = |one: &&Alternative| one.samples.are_good_for(now, time, most);
        let known = |to: &SocketAddr| self.known.iter().filter(is_good).any(|one| one.to == *to);
        among.iter().copied().find(known)
    }

    /// The path moves away from the dead address `left`, or back to an earlier address.
    fn moved(&mut self, now: BootTime, left: Option<SocketAddr>, returns: bool) {
        self.left = left.map(|left| (left, now + NOT_FOLLOWED_FOR));
        self.moved_at = Some(now);
        if returns {
            self.returned_at = Some(now);
        } else if let Some(returned) = self.returned_at.take() {
            let soon = now < returned + self.return_after * DIES_SOON;
            self.relapses = if soon { (self.relapses + 1).min(DOUBLINGS) } else { 0 };
        }
        // The results were measured while another path was in use.
        self.known.clear();
    }
}

impl Peer {
    /// When an address is to be probed.
    pub(super) fn alternatives_deadline(&self) -> Option<BootTime> {
        // An unwatched tunnel probes only while data flows, and then polls anyway.
        let watched = self.life.is_watched();
        watched.then(|| self.paths.alternatives.next_at(&self.better())).flatten()
    }

    /// Probes earlier addresses, and returns to one that was good for long enough.
    pub(super) fn follow_alternatives(&mut self, now: Now) {
        let better = self.better();
        if better.is_empty() || self.is_at_rest(now.boot) {
            return;
        }
        self.forget_others();
        let alternatives = &mut self.paths.alternatives;
        alternatives.expire(now.boot);
        let due = alternatives.due(now.boot, &better);
        if self.paths.alternatives.answers {
            due.into_iter().for_each(|to| self.send_probe(now, to));
        } else {
            self.test_address(now, &due);
        }
        if let Some(to) = self.paths.alternatives.good(now.boot, &better) {
            self.move_to(now, to, true);
        }
    }

    /// The path is silent: probes all other addresses.
    pub(super) fn probe_others(&mut self, now: Now) {
        if self.can_probe() {
            self.forget_others();
            self.others().into_iter().for_each(|to| self.send_probe(now, to));
        }
    }

    /// The path has been silent for long: moves the current session to the first other address that answered a
    /// probe since `since`, when the silence was first probed. Returns whether there is one.
    pub(super) fn fail_over(&mut self, now: Now, since: BootTime) -> bool {
        let moved_at = self.paths.alternatives.moved_at;
        let others = self.others();
        let answering = self.paths.alternatives.answering(&others, since);
        match answering.filter(|_| self.can_probe() && moved_at < Some(since)) {
            Some(to) => self.move_to(now, to, false),
            None => return false,
        }
        true
    }

    /// The peer tests a path: the answer goes to the PROBE's source address.
    pub(super) fn answer_probe(
        &mut self,
        now: Now,
        framed: &Framed,
        token: &ProbeToken,
    ) -> Result<(), DropReason> {
        if self.frames_flow() {
            let answer = ControlFrame::begin().probed(token).end();
            let back = Transmit { to: framed.at.from, from: framed.at.local };
            for transmit in [Some(back), self.overtaken(framed, &answer)].into_iter().flatten() {
                self.send_aside(now, transmit, &answer);
            }
        }
        Ok(())
    }

    /// Where the answer to a PROBE of the path's size is sent as well, if the PROBE came from another address than
    /// the path's: it may be a copy that somebody has sent ahead, and the PROBE itself is then taken for a replay.
    /// Both answers together are no longer than the PROBE.
    fn overtaken(&self, framed: &Framed, answer: &[u8]) -> Option<Transmit> {
        let is_long = framed.plaintext.len() + OVERHEAD >= 2 * (answer.len() + OVERHEAD);
        let path = self.paths.current.filter(|path| is_long && path.to != framed.at.from)?;
        Some(Transmit { to: path.to, from: path.from })
    }

    /// An answer proves a path if it comes from the address that the PROBE was sent to. It may also answer a
    /// probe of the path's MTU.
    pub(super) fn take_probed(
        &mut self,
        now: Now,
        framed: &Framed,
        token: &ProbeToken,
    ) -> Result<(), DropReason> {
        self.take_size_answer(now, token);
        let alternatives = &mut self.paths.alternatives;
        let (pause, most) = (alternatives.pause(), alternatives.samples());
        if let Some(one) = alternatives.known.iter_mut().find(|one| one.to == framed.at.from) {
            one.answer(now.boot, token, pause, most);
        }
        Ok(())
    }

    /// Sends a test handshake to one of these addresses, which are due and preferred to the one in use, because the
    /// peer answers no PROBE. If another handshake is under way, it is sent later.
    fn test_address(&mut self, now: Now, due: &[SocketAddr]) {
        let alternatives = &mut self.paths.alternatives;
        if due.is_empty() || now.boot < alternatives.calls_from {
            return;
        }
        alternatives.calls_from = now.boot + CALLS_APART;
        let (alive, _) = self.life.state();
        let is_busy = self.attempt.is_some() || self.wanted || self.answering.is_some();
        if !alive || is_busy || now.boot < self.initiation_from() {
            return;
        }
        let alternatives = &mut self.paths.alternatives;
        let Some(to) = alternatives.longest_due(due) else { return };
        let pause = alternatives.pause();
        alternatives.of(now.boot, to).asked(now.boot, pause);
        let first = Try { begun: now.boot, number: 1 };
        self.initiate(now, Some(to), self.identities.calling(), first);
        self.attempt.iter_mut().for_each(Attempt::make_test);
    }

    /// Our own host refuses to send an initiation; returns whether that was such a call, which then is over.
    pub(super) fn call_refused(&mut self, now: Now) -> bool {
        let call = self.attempt.take_if(|attempt| attempt.is_test());
        if let Some(call) = &call {
            self.note_test(now, call.to(), false);
        }
        call.is_some()
    }

    /// A test handshake was answered, or was not.
    pub(super) fn note_test(&mut self, now: Now, to: SocketAddr, answered: bool) {
        let alternatives = &mut self.paths.alternatives;
        let (pause, most) = (alternatives.pause(), alternatives.samples());
        if let Some(one) = alternatives.known.iter_mut().find(|one| one.to == to) {
            one.samples.add(now.boot, answered, most);
            if answered {
                (one.pause, one.next_at) = (pause, now.boot + pause);
            }
        }
        if answered {
            // The peer sends to and from that address until it receives data of the new session on the path in
            // use.
            alternatives.left = Some((to, now.boot + NOT_FOLLOWED_FOR));
        }
    }

    pub(super) fn move_to(&mut self, now: Now, to: SocketAddr, returns: bool) {
        let left = self.endpoint();
        self.paths.alternatives.moved(now.boot, left, returns);
        self.paths.roaming.settle();
        self.paths.set(to, None);
        if let Some(left) = left {
            self.events.push_back(Change::Switched { from: left, to, returns }.into());
        }
        // From this datagram the peer learns the new path, and it answers.
        self.send_sign_of_life(now);
    }

    pub(super) fn send_probe(&mut self, now: Now, to: SocketAddr) {
        let mut token = ProbeToken::default();
        self.rng.fill_bytes(&mut token);
        let alternatives = &mut self.paths.alternatives;
        let (pause, most) = (alternatives.pause(), alternatives.samples());
        let one = alternatives.of(now.boot, to);
        one.pending.push_back((token, now.boot));
        one.asked(now.boot, pause);
        one.expire(now.boot, most);
        let transmit = Transmit { to, from: self.paths.sources.towards(to) };
        self.send_aside(now, transmit, &ControlFrame::begin().probe(&token).end());
    }

    /// Sends a frame that only tests a path: it is no sign of life, and its loss is not counted.
    pub(super) fn send_aside(&mut self, now: Now, transmit: Transmit, plaintext: &[u8]) {
        let Some(session) = self.keyring.current() else { return };
        let key = Arc::clone(&session.sealing);
        let Some(counter) = key.reserve(1, now.boot).ok().and_then(|mut one| one.next()) else {
            return;
        };
        key.set_aside();
        let mut datagram = vec![0; plaintext.len() + OVERHEAD];
        datagram[DATA_HEADER_LEN..][..plaintext.len()].copy_from_slice(plaintext);
        key.seal(counter, &mut datagram);
        self.transmits.push_back((transmit, datagram));
    }

    /// A handshake moves the path to `to`: records it, if both that and the address in use are configured ones.
    pub(super) fn note_choice(&mut self, now: BootTime, to: SocketAddr) {
        let candidates = &self.paths.candidates;
        let rank = |at: SocketAddr| candidates.rank(at);
        let ranks = self.endpoint().filter(|left| *left != to).and_then(rank).zip(rank(to));
        if let Some((left, to)) = ranks {
            self.paths.alternatives.moved(now, None, to < left);
        }
    }

    /// The configured addresses that are preferred to the one in use. None if the peer was followed to an
    /// address that is not configured.
    fn better(&self) -> Vec<SocketAddr> {
        let candidates = &self.paths.candidates;
        let rank = self.endpoint().and_then(|to| candidates.rank(to));
        let usable = self.keyring.current().is_some() && (self.can_probe() || !self.frames_flow());
        candidates.configured().take(rank.filter(|_| usable).unwrap_or(0)).collect()
    }

    /// The configured addresses other than the one in use.
    fn others(&self) -> Vec<SocketAddr> {
        let here = self.endpoint();
        self.paths.candidates.configured().filter(|to| Some(*to) != here).collect()
    }

    pub(super) fn can_probe(&self) -> bool {
        self.paths.alternatives.answers && self.frames_flow()
    }

    /// Forgets the addresses that came from names, because a name may have others by now. Those that are being checked
    /// because of a doubt stay.
    pub(super) fn forget_others(&mut self) {
        let doubted = self.paths.doubt.iter().flat_map(Doubt::asked);
        let kept: Vec<_> = self.paths.candidates.configured().chain(doubted).collect();
        self.paths.alternatives.keep(&kept);
    }

    /// Whether the tunnel is unwatched and carries no data, so that nothing should be sent.
    pub(super) fn is_at_rest(&self, now: BootTime) -> bool {
        let seen = self.timers.seen();
        let data = seen.data_sent.max(seen.data_received);
        !self.life.is_watched() && data.is_none_or(|at| now >= at + AT_REST_AFTER)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use vpnd_crypto::aead::Algorithm;
    use vpnd_crypto::{PresharedKey, Secret, SecretKey};

    use super::*;
    use crate::activity::Activity;
    use crate::handshake::{Identity, SessionKeys};
    use crate::keyring::Session;
    use crate::message::Index;
    use crate::peer::Config;
    use crate::peer::session::Names;
    use crate::profile::{Kem, Mode, Profile};
    use crate::session::{Pair, Role};
    use crate::terms::{Protocol, Terms};
    use crate::time::WallTime;

    const MOST: u32 = 120;

    fn at(millis: u64) -> BootTime {
        BootTime::from_nanos(1) + Duration::from_millis(millis)
    }

    /// A peer that answers PROBEs, with a session.
    fn connected(now: Now) -> Peer {
        let secret = |owner| SecretKey::from_bytes([owner; 32]);
        let (mode, cipher) = (Mode::Tun, Algorithm::ChaCha20Poly1305);
        let protocol = Protocol::Vpnd(Profile { mode, cipher, kem: Kem::None });
        let terms = vec![Terms::new(protocol, &PresharedKey::from_bytes([0; 32]))];
        let ends = (vec![Identity::new(secret(1))], vec![secret(2).public()]);
        let config = Config::new(ends.0, ends.1, terms, 1420);
        let rng = Box::new(StdRng::seed_from_u64(1));
        let mut peer = Peer::new(config, Arc::new(Activity::default()), rng, now);
        let (local, remote, pair) = (Index::new(1), Index::new(2), Pair::default());
        let names = Names { local, remote, pair };
        let origin = peer.origin(Role::Initiator, now.boot, names, protocol);
        let (sealing, opening) = (Secret::copy_of(&[1; 32]), Secret::copy_of(&[2; 32]));
        let keys = SessionKeys { sealing, opening, handshake_hash: [0; 32] };
        peer.keyring.initiated(Session::new(&origin, &keys));
        peer.paths.alternatives.answers = true;
        peer
    }

    /// When an address is good enough whose probes, two a second, are answered like this.
    fn good_at(is_answered: impl Fn(u64) -> bool) -> Option<u64> {
        let mut samples = Samples::default();
        (0..1200).find(|n| {
            samples.add(at(n * 500), is_answered(*n), MOST);
            samples.are_good_for(at(n * 500), Duration::from_secs(60), MOST)
        })
    }

    #[test]
    fn an_address_is_good_after_a_minute_without_much_loss() {
        assert_eq!(good_at(|_| true), Some(120));
        assert_eq!(good_at(|n| n >= 100), Some(220), "silent at first");
        assert_eq!(good_at(|n| n % 40 != 7), Some(120), "one in forty is lost");
        assert_eq!(good_at(|n| n % 20 != 7), None, "one in twenty is lost");
        assert_eq!(good_at(|n| n % 60 < 50), None, "it comes and goes");
    }

    #[test]
    fn an_address_that_dies_again_soon_has_to_be_good_for_longer() {
        let mut alternatives = Alternatives::new(Duration::from_secs(60));
        let mut now = at(0);
        let mut waits = Vec::new();
        for _ in 0..6 {
            alternatives.moved(now, None, true);
            now = now + Duration::from_secs(100);
            alternatives.moved(now, None, false);
            waits.push(alternatives.patience().as_secs() / 60);
        }
        assert_eq!(waits, [2, 4, 8, 16, 16, 16]);
        alternatives.moved(now, None, true);
        alternatives.moved(now + Duration::from_secs(3600), None, false);
        assert_eq!(alternatives.patience(), Duration::from_secs(60));
    }

    /// The path leads to the first address, and stays silent.
    #[test]
    fn a_name_with_ever_new_addresses_costs_no_more_memory_than_it_has_addresses() {
        let now = Now { boot: at(0), wall: WallTime::from_unix(Duration::ZERO) };
        let mut peer = connected(now);
        let first = SocketAddr::from(([192, 0, 2, 1], 1));
        for n in 0..1000 {
            let others = (0..7).map(|k| (Ipv4Addr::from_bits(n * 7 + k), 1).into());
            peer.handle_endpoints(now, [first].into_iter().chain(others).collect());
            peer.probe_others(now);
            let known = peer.paths.alternatives.known.len();
            assert!((7..=8).contains(&known), "{known} after {n}");
        }
        assert_eq!(peer.endpoint(), Some(first));
    }
}
