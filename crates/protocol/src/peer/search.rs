//! The search for the largest datagram that one path carries, without I/O (RFC 8899).
//!
//! Probes are datagrams of a certain size that the peer answers. Data may be as large as the largest answered
//! probe. The first probe is of the largest size that the first link carries, and on most paths it is the only
//! one. If it is lost, up to [`SIZES`] sizes are probed at a time: first all common ones, so that mostly one more round
//! is enough, then evenly spaced ones, until no byte is left between what arrives and what does not.
//!
//! While data flows, the size in use is probed every [`CONFIRM_EVERY`], and in each round of a search. A round is
//! [`TRIES`] tries, a wait for an answer apart. If none is answered, the path is a black hole for that size: data returns
//! to [`LEAST_DATAGRAM`] at once, and the smaller sizes are probed. From the second try on a probe of the least size goes
//! along: if it is not answered either, the peer is not reached at all, and nothing is concluded. On a path that loses
//! many datagrams the tries of the size in use consist of several copies after the first: more tries would take longer,
//! and data that is too large is lost all that time. If a new size is lost by chance, the next smaller one is used.

mod history;

use std::mem;
use std::time::Duration;

use crate::limits::LEAST_DATAGRAM;
use crate::time::BootTime;

use history::History;

pub use history::Probed;

/// How often a size is tried before it counts as too large.
const TRIES: u32 = 3;
/// The most probes of one size in all tries, on a path that loses many datagrams.
const MOST_PROBES: i32 = 7;
/// How many new sizes are probed at the same time: as many as there are common ones below Ethernet's.
const SIZES: usize = 17;
/// The least time to wait for an answer.
const LEAST_WAIT: Duration = Duration::from_millis(200);
/// The most: one late answer must not delay the next probes for long.
const MOST_WAIT: Duration = Duration::from_secs(3);
/// If the peer answers none of the probes, the round is repeated after this time, and then after twice the time, ...
const REPEAT_AFTER: Duration = Duration::from_secs(2);
/// ... at most this number of times.
const REPEAT_DOUBLED: u32 = 4;
/// How often the size in use is probed while much data flows, and while little does.
const CONFIRM_EVERY: Duration = Duration::from_millis(500);
const CONFIRM_SELDOM: Duration = Duration::from_secs(5);
/// If fewer bytes than this are sent between two probes, little data flows. Otherwise the probes would be the
/// greater part of the traffic.
const LITTLE: u64 = 32 * 1024;
/// MTUs of common links and tunnels: Ethernet, `PPPoE`, `DS-Lite`, GRE, IPsec, `WireGuard`, mobile networks, and the least
/// of IPv6.
const COMMON_MTUS: [u16; 20] = [
    1280, 1300, 1320, 1340, 1350, 1360, 1380, 1400, 1412, 1420, 1430, 1440, 1452, 1460, 1472, 1480,
    1492, 1500, 4470, 9000,
];

/// A datagram to send as a probe: its number, and the size of its UDP payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Probe {
    pub(super) number: u32,
    pub(super) size: u16,
}

/// The data sent so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sent {
    /// When data was last sent.
    pub(super) at: Option<BootTime>,
    /// The total number of bytes; only differences are used.
    pub(super) bytes: u64,
}

/// How probes are sent on a path.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// How long to wait for an answer.
    pub(super) wait: Duration,
    /// How many copies of a probe of the size in use are sent at once, from the second try on. Mostly the first one is
    /// answered.
    pub(super) copies: u32,
    /// The time until a larger size is probed again, on a path that carries less than its first link.
    pub(super) raise_after: Duration,
}

impl Pace {
    /// The pace on a path with this round trip, where this share of probes or their answers is lost.
    pub(super) fn on(round_trip: Duration, loss: f64, raise_after: Duration) -> Self {
        // At most one wrong result in a thousand.
        let enough = (1..MOST_PROBES).find(|n| loss.powi(*n) <= 0.001).unwrap_or(MOST_PROBES);
        Self {
            wait: (round_trip * 2).clamp(LEAST_WAIT, MOST_WAIT),
            copies: (enough.cast_unsigned() - 1).div_ceil(TRIES - 1).max(1),
            raise_after,
        }
    }
}

/// The state of the search on one path.
#[derive(Debug)]
pub(super) struct Search {
    /// The largest payload that the first link carries.
    link: u16,
    /// The bytes of a packet on the path that are not payload.
    headers: u16,
    /// The largest payload that arrived.
    confirmed: u16,
    /// The smallest payload that did not arrive.
    lost: Option<u16>,
    /// The size that a router reported, until probes confirm or refute it.
    hint: Option<u16>,
    /// A report was wrong: from now on data follows a report only after probes have confirmed it.
    distrusts: bool,
    /// The size that the last completed search found.
    found: Option<u16>,
    round: Option<Round>,
    /// Larger sizes are probed again after this round.
    again: bool,
    /// When the probes of the round are sent next.
    next: BootTime,
    /// When the size in use was last confirmed, and how many bytes had been sent by then.
    confirmed_at: BootTime,
    confirmed_bytes: u64,
    /// When to probe for larger sizes.
    raise_at: BootTime,
    /// The number of the last probe.
    numbers: u32,
    /// Consecutive rounds of which no probe was answered, and when the last one ended.
    unanswered: u32,
    unanswered_at: BootTime,
    history: History,
}

/// Probes that are sent together: of the least size, of the size in use, and of new sizes.
#[derive(Debug)]
struct Round {
    /// In ascending order.
    asked: Vec<Asked>,
    tries: u32,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    probe: Probe,
    answered: bool,
}

impl Search {
    /// A search on a path whose first link carries payloads of `link` bytes, with `headers` bytes before them.
    ///
    /// `numbers` is the number of the last probe of an earlier search: its late answers are not taken for answers to
    /// probes of this one.
    pub(super) fn new(link: u16, headers: u16, numbers: u32, now: BootTime) -> Self {
        let mut search = Self {
            link,
            headers,
            confirmed: LEAST_DATAGRAM.min(link),
            lost: None,
            hint: None,
            distrusts: false,
            found: None,
            round: None,
            again: false,
            next: now,
            confirmed_at: now,
            confirmed_bytes: 0,
            raise_at: now,
            numbers,
            unanswered: 0,
            unanswered_at: now,
            history: History::default(),
        };
        search.look_for_more(now);
        search
    }

    /// The largest payload that data may have.
    pub(super) fn size(&self) -> u16 {
        let followed = self.hint.filter(|_| !self.distrusts);
        followed.map_or(self.confirmed, |hint| self.confirmed.min(hint))
    }

    /// The size that the last completed search found.
    pub(super) const fn found(&self) -> Option<u16> {
        self.found
    }

    /// The number of the last probe.
    pub(super) const fn numbers(&self) -> u32 {
        self.numbers
    }

    /// The smallest payload that did not arrive.
    pub(super) const fn too_large(&self) -> Option<u16> {
        self.lost
    }

    /// When a larger size is probed, if the path carries less than its first link and no search is under way.
    pub(super) fn raise_at(&self) -> Option<BootTime> {
        (self.confirmed < self.link && !self.looks_for_more()).then_some(self.raise_at)
    }

    /// Whether a larger size is being probed.
    pub(super) fn looks_for_more(&self) -> bool {
        self.round.as_ref().is_some_and(|round| round.largest() > Some(self.confirmed))
    }

    /// The last probes, the newest first.
    pub(super) fn last_probes(&self) -> impl Iterator<Item = Probed> {
        self.history.newest()
    }

    /// When [`Search::probes`] has something to send. If the peer is not reached, that is only while data is sent.
    pub(super) fn deadline(&self, sent: Sent) -> Option<BootTime> {
        if let Some(round) = &self.round {
            let waits = self.unanswered > 0 && round.tries == 0;
            return (!waits || sent.at > Some(self.unanswered_at)).then_some(self.next);
        }
        let raise = (self.confirmed < self.link).then_some(self.raise_at);
        raise.into_iter().chain(self.confirm_at(sent)).min()
    }

    /// When the size in use is to be probed. The least size needs no probe, because every path carries it.
    fn confirm_at(&self, sent: Sent) -> Option<BootTime> {
        let is_used = sent.at > Some(self.confirmed_at) && self.confirmed > LEAST_DATAGRAM;
        let bytes = sent.bytes.saturating_sub(self.confirmed_bytes);
        let wait = if bytes < LITTLE { CONFIRM_SELDOM } else { CONFIRM_EVERY };
        is_used.then(|| self.confirmed_at + wait)
    }

    /// The probes to send now.
    pub(super) fn probes(&mut self, now: BootTime, sent: Sent, pace: Pace) -> Vec<Probe> {
        if self.deadline(sent).is_none_or(|at| now < at) {
            return Vec::new();
        }
        if self.round.as_ref().is_some_and(|round| round.tries >= TRIES) {
            self.conclude(now, pace.raise_after);
            if self.deadline(sent).is_none_or(|at| now < at) {
                return Vec::new();
            }
        }
        if self.round.is_none() && self.confirmed < self.link && now >= self.raise_at {
            self.look_for_more(now);
        }
        if self.round.is_none() && self.confirm_at(sent).is_some_and(|at| now >= at) {
            self.confirmed_bytes = sent.bytes;
            self.begin(now, &[]);
        }
        let Some(round) = &mut self.round else { return Vec::new() };
        self.next = now + pace.wait;
        let due = round.try_again(self.confirmed, pace.copies);
        due.iter().for_each(|probe| self.history.sent(now, *probe));
        due
    }

    /// A probe was answered: `is_it` recognizes its number. Returns whether it was pending.
    pub(super) fn answered(
        &mut self,
        now: BootTime,
        is_it: impl Fn(u32) -> bool,
        raise_after: Duration,
    ) -> bool {
        let Some(round) = &mut self.round else { return false };
        let Some(place) = round.asked.iter().position(|asked| is_it(asked.probe.number)) else {
            return false;
        };
        round.asked[place].answered = true;
        self.history.answered(round.asked[place].probe.number);
        self.confirmed = self.confirmed.max(round.asked[place].probe.size);
        if place + 1 == round.asked.len() {
            self.conclude(now, raise_after);
        }
        true
    }

    /// A router reports that the path carries no more than `size`. Anybody can forge such a report: data
    /// follows it at once, but only until a probe shows that a larger size still arrives. One report is checked
    /// at a time.
    pub(super) fn hint(&mut self, now: BootTime, size: u16) {
        let size = size.max(LEAST_DATAGRAM);
        let searched = self.round.as_ref().and_then(Round::largest).unwrap_or(self.confirmed);
        if self.hint.is_some() || size == self.confirmed || size >= searched {
            return;
        }
        if self.distrusts && self.is_confirming() {
            return;
        }
        self.hint = Some(size);
        // If the report is right, the next larger size does not arrive, and the search is complete.
        self.begin(now, &[size, size + 1, searched]);
    }

    /// The path may no longer carry the size in use.
    pub(super) fn doubt(&mut self, now: BootTime) {
        if self.confirmed > LEAST_DATAGRAM && self.round.is_none() {
            self.begin(now, &[]);
        }
    }

    /// The largest payload of the first link has changed.
    pub(super) fn set_link(&mut self, now: BootTime, link: u16) {
        if link == self.link {
            return;
        }
        let grows = link > self.link;
        self.link = link;
        if grows || self.confirmed > link {
            self.confirmed = self.confirmed.min(link);
            self.hint = None;
            self.look_for_more(now);
        }
    }

    /// Starts the search again, with the largest size. A round that may be about to find that the path carries less is not
    /// given up for that: its tries would be lost.
    pub(super) fn look_for_more(&mut self, now: BootTime) {
        if self.is_confirming() {
            self.again = true;
            return;
        }
        self.lost = None;
        if self.confirmed < self.link {
            self.begin(now, &[self.link]);
        } else {
            self.round = None;
            self.settle(now, Duration::ZERO);
        }
    }

    /// Whether the size in use has been tried and an answer is awaited.
    fn is_confirming(&self) -> bool {
        let awaits = |asked: &Asked| asked.probe.size == self.confirmed && !asked.answered;
        self.round.as_ref().is_some_and(|round| round.tries > 0 && round.asked.iter().any(awaits))
    }

    /// Starts a round that probes the least size, the size in use and `sizes`.
    fn begin(&mut self, now: BootTime, sizes: &[u16]) {
        let known = [LEAST_DATAGRAM, self.confirmed];
        let mut sizes: Vec<_> = known.into_iter().chain(sizes.iter().copied()).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let mut ask = |size| {
            self.numbers = self.numbers.wrapping_add(1);
            Asked { probe: Probe { number: self.numbers, size }, answered: false }
        };
        self.round = Some(Round { asked: sizes.into_iter().map(&mut ask).collect(), tries: 0 });
        self.next = now;
    }

    /// The round is over: the sizes that were not answered are too large.
    fn conclude(&mut self, now: BootTime, raise_after: Duration) {
        let looked_for_more = self.looks_for_more();
        let Some(mut round) = self.round.take() else { return };
        let Some(arrived) = round.arrived() else {
            round.tries = 0;
            self.round = Some(round);
            self.next = now + REPEAT_AFTER * (1 << self.unanswered.min(REPEAT_DOUBLED));
            (self.unanswered, self.unanswered_at) = (self.unanswered.saturating_add(1), now);
            return;
        };
        self.unanswered = 0;
        let hint = self.hint.take();
        // A larger size arrived than the router reported.
        self.distrusts |= hint.is_some_and(|size| size < arrived);
        self.confirmed = arrived;
        let sizes = round.asked.iter().map(|asked| asked.probe.size);
        self.lost = sizes.chain(self.lost).filter(|size| *size > arrived).min();
        if mem::take(&mut self.again) && arrived < self.link {
            self.lost = None;
            let mut sizes = self.between(arrived, self.link);
            sizes.push(self.link);
            return self.begin(now, &sizes);
        }
        match self.lost {
            Some(lost) if lost > arrived + 1 && self.is_searching(&round) => {
                if looked_for_more {
                    // What is larger by more than a few bytes does not arrive, whatever the next round finds.
                    self.found = self.found.map(|found| found.min(arrived));
                }
                self.begin(now, &self.between(arrived, lost));
            }
            None if arrived < self.link => self.begin(now, &[self.link]),
            Some(_) | None if self.is_searching(&round) => self.settle(now, raise_after),
            Some(_) | None => self.rest(now),
        }
    }

    /// Up to [`SIZES`] sizes to probe between one that arrives and one that does not, in ascending order.
    fn between(&self, arrives: u16, lost: u16) -> Vec<u16> {
        let fits = |size: &u16| arrives < *size && *size < lost;
        let common = COMMON_MTUS.into_iter().map(|mtu| mtu - self.headers);
        let mut sizes: Vec<_> = common.filter(fits).collect();
        if sizes.is_empty() {
            sizes = (arrives + 1..lost).collect();
        }
        spread(&sizes)
    }

    /// Whether the completed round was part of a search, and did not only confirm the size in use.
    fn is_searching(&self, round: &Round) -> bool {
        self.found != Some(self.confirmed) || round.largest() > Some(self.confirmed)
    }

    /// The search is complete.
    fn settle(&mut self, now: BootTime, raise_after: Duration) {
        self.raise_at = now + raise_after;
        self.rest(now);
    }

    fn rest(&mut self, now: BootTime) {
        self.found = Some(self.confirmed);
        self.confirmed_at = now;
    }
}

impl Asked {
    /// Whether this is the probe of the least size, which only shows whether the peer is reached at all.
    const fn is_control(&self) -> bool {
        self.probe.size == LEAST_DATAGRAM
    }
}

impl Round {
    /// The probes of the next try: `copies` of each up to the size in use, and one of each new size.
    fn try_again(&mut self, in_use: u16, copies: u32) -> Vec<Probe> {
        self.tries += 1;
        let due = self.asked.iter().filter(|asked| !asked.answered);
        if self.tries == 1 {
            return due.filter(|asked| !asked.is_control()).map(|asked| asked.probe).collect();
        }
        // In turns, so that a short burst of losses does not take all copies of one. The least size has one more chance:
        // without its answer, the loss of the others proves nothing.
        let known = due.clone().filter(|asked| asked.probe.size <= in_use);
        let more = (1..copies).flat_map(|_| known.clone());
        due.clone()
            .chain(more)
            .chain(due.filter(|asked| asked.is_control()))
            .map(|asked| asked.probe)
            .collect()
    }

    /// The largest size that was probed.
    fn largest(&self) -> Option<u16> {
        self.asked.last().map(|asked| asked.probe.size)
    }

    /// The largest size that was answered.
    fn arrived(&self) -> Option<u16> {
        self.asked.iter().rev().find(|asked| asked.answered).map(|asked| asked.probe.size)
    }
}

/// At most [`SIZES`] of `sizes`, evenly spaced.
fn spread(sizes: &[u16]) -> Vec<u16> {
    if sizes.len() <= SIZES {
        return sizes.to_vec();
    }
    (1..=SIZES).map(|n| sizes[n * sizes.len() / (SIZES + 1)]).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limits::HEADERS_V4;

    const LINK: u16 = 1472;
    const RAISE: Duration = Duration::from_secs(600);

    /// A path, and the search on it while much data flows.
    struct Simulation {
        search: Search,
        now: BootTime,
        /// The largest payload that arrives.
        carries: u16,
        /// Numbers of the probes sent so far.
        sent: u32,
    }

    impl Simulation {
        fn new(carries: u16) -> Self {
            let now = BootTime::from_nanos(1_000_000_000);
            Self { search: Search::new(LINK, HEADERS_V4, 0, now), now, carries, sent: 0 }
        }

        /// Lets time pass; each probe arrives if it fits and `arrives` agrees.
        fn run(&mut self, time: Duration, mut arrives: impl FnMut() -> bool) {
            let end = self.now + time;
            let step = Duration::from_millis(50);
            loop {
                let pace = Pace::on(Duration::from_millis(20), 0.0, RAISE);
                let sent = self.flow();
                for Probe { number, size } in self.search.probes(self.now, sent, pace) {
                    self.sent += 1;
                    if size <= self.carries && arrives() {
                        self.search.answered(self.now, |asked| asked == number, RAISE);
                    }
                }
                if self.now + step > end {
                    break;
                }
                self.now = self.now + step;
            }
        }

        /// Ten megabytes a second.
        fn flow(&self) -> Sent {
            Sent { at: Some(self.now), bytes: self.now.as_nanos() / 100 }
        }

        fn settle(&mut self) {
            self.settle_within(Duration::from_secs(20));
        }

        fn settle_within(&mut self, time: Duration) {
            self.run(time, || true);
            assert_eq!(
                (self.search.size(), self.search.found()),
                (self.carries, Some(self.carries))
            );
        }
    }

    #[test]
    fn the_first_probe_finds_a_path_that_carries_all() {
        let mut path = Simulation::new(LINK);
        assert_eq!(path.search.size(), LEAST_DATAGRAM);
        path.run(Duration::ZERO, || true);
        assert_eq!((path.search.found(), path.sent), (Some(LINK), 1));
    }

    #[test]
    fn any_size_is_found_to_the_byte() {
        for carries in LEAST_DATAGRAM..=LINK {
            Simulation::new(carries).settle();
        }
    }

    #[test]
    fn a_black_hole_is_left_within_three_probes_and_growth_found_later() {
        let mut path = Simulation::new(LINK);
        path.settle();
        path.carries = 1240;
        path.run(CONFIRM_EVERY + 3 * LEAST_WAIT, || true);
        assert_eq!(path.search.size(), LEAST_DATAGRAM);
        path.settle();
        path.carries = 1252;
        path.search.look_for_more(path.now);
        path.settle();
        path.carries = 1400;
        path.run(RAISE - Duration::from_secs(30), || true);
        assert_eq!(path.search.size(), 1252, "it is not probed for more so often");
        path.run(Duration::from_secs(30), || true);
        path.settle();
    }

    /// The right size is known within one round after the black hole is noticed, for all MTUs that are common.
    #[test]
    fn a_common_size_is_found_in_one_round() {
        for mtu in COMMON_MTUS.into_iter().filter(|mtu| *mtu < 1500) {
            let mut path = Simulation::new(LINK);
            path.settle();
            path.carries = mtu - HEADERS_V4;
            path.run(CONFIRM_EVERY + 3 * LEAST_WAIT, || true);
            assert_eq!(path.search.size(), path.carries);
            path.run(3 * LEAST_WAIT, || true);
            assert_eq!(path.search.found(), Some(path.carries));
        }
    }

    #[test]
    fn a_report_is_followed_at_once_and_ends_the_search_if_it_is_right() {
        let mut path = Simulation::new(LINK);
        path.settle();
        path.carries = 1333;
        path.search.hint(path.now, 1333);
        assert_eq!(path.search.size(), 1333);
        let sent = path.sent;
        path.run(3 * LEAST_WAIT, || true);
        // 1333, twice 1232, and three times 1334 and 1472.
        assert_eq!((path.search.found(), path.sent), (Some(1333), sent + 9));
    }

    #[test]
    fn a_report_during_the_search_shortens_it() {
        let mut path = Simulation::new(1333);
        path.run(Duration::ZERO, || true);
        path.search.hint(path.now, 1333);
        path.run(3 * LEAST_WAIT, || true);
        assert_eq!(path.search.found(), Some(1333));
    }

    #[test]
    fn a_forged_report_costs_one_probe_and_the_next_none_of_the_size() {
        let mut path = Simulation::new(LINK);
        path.settle();
        for (size, until_checked) in [(68, LEAST_DATAGRAM), (1300, LINK)] {
            path.search.hint(path.now, size);
            assert_eq!(path.search.size(), until_checked);
            path.run(Duration::ZERO, || true);
            assert_eq!(path.search.size(), LINK);
        }
        for size in [LINK, 9000, u16::MAX] {
            path.search.hint(path.now, size);
            assert!(path.search.round.is_none());
        }
    }

    #[test]
    fn a_forged_report_does_not_end_a_search() {
        let mut path = Simulation::new(1372);
        path.run(Duration::ZERO, || true);
        for size in [1242, 1300, 1371] {
            path.search.hint(path.now, size);
        }
        path.settle();
    }

    #[test]
    fn a_peer_that_answers_nothing_is_probed_ever_more_seldom_and_not_without_data() {
        let mut path = Simulation::new(LINK);
        path.run(Duration::from_secs(60), || false);
        let sent = path.sent;
        path.run(Duration::from_secs(600), || false);
        // Three of the largest size in each round, and four of the least.
        assert!(path.sent - sent <= 20 * 7, "{}", path.sent - sent);
        assert_eq!(path.search.deadline(Sent::default()), None);
        path.settle_within(Duration::from_secs(40));
    }

    #[test]
    fn a_route_that_changes_does_not_put_the_end_of_a_black_hole_off() {
        let mut path = Simulation::new(LINK);
        path.settle();
        path.carries = 1240;
        path.run(CONFIRM_EVERY + LEAST_WAIT, || true);
        path.search.look_for_more(path.now);
        path.run(2 * LEAST_WAIT, || true);
        assert_eq!(path.search.size(), LEAST_DATAGRAM);
        path.settle();
    }

    /// A path that loses 36 of 100 probes or their answers: seven probes in three tries.
    #[test]
    fn a_black_hole_is_left_within_three_tries_on_a_path_that_loses_many_datagrams() {
        let pace = Pace::on(Duration::from_millis(20), 0.36, RAISE);
        let mut path = Simulation::new(LINK);
        path.settle();
        path.now = path.now + CONFIRM_EVERY;
        let sizes = |probes: Vec<Probe>| {
            let of = |size| probes.iter().filter(|probe| probe.size == size).count();
            [of(LINK), of(LEAST_DATAGRAM), probes.len()]
        };
        for expected in [[1, 0, 1], [3, 4, 7], [3, 4, 7]] {
            let sent = path.flow();
            assert_eq!(sizes(path.search.probes(path.now, sent, pace)), expected);
            path.now = path.now + LEAST_WAIT;
        }
        // One answer, to a small probe. The number of the large one is the last.
        let numbers = path.search.numbers();
        path.search.answered(path.now, |number| number + 1 == numbers, RAISE);
        let sent = path.flow();
        path.search.probes(path.now, sent, pace);
        assert_eq!(path.search.size(), LEAST_DATAGRAM);
    }

    #[test]
    fn a_late_answer_does_not_put_the_next_probes_off() {
        let pace = Pace::on(Duration::from_secs(170), 0.0, RAISE);
        assert_eq!(pace.wait, MOST_WAIT);
    }

    #[test]
    fn an_answer_to_a_probe_of_another_path_is_not_taken() {
        let now = BootTime::from_nanos(0);
        let mut here = Search::new(LINK, HEADERS_V4, 0, now);
        let pace = Pace::on(LEAST_WAIT, 0.0, RAISE);
        let probes = here.probes(now, Sent::default(), pace);
        let mut there = Search::new(LINK, HEADERS_V4, here.numbers(), now);
        there.probes(now, Sent::default(), pace);
        for Probe { number, .. } in probes {
            assert!(!there.answered(now, |asked| asked == number, RAISE));
        }
        assert_eq!(there.size(), LEAST_DATAGRAM);
    }

    #[test]
    fn another_first_link_is_searched_again() {
        let mut path = Simulation::new(LINK);
        path.settle();
        path.search.set_link(path.now, 1372);
        assert_eq!(path.search.size(), 1372);
        path.carries = 8972;
        path.search.set_link(path.now, 8972);
        assert_eq!(path.search.size(), 1372, "until a larger one is confirmed");
        path.settle();
    }

    #[test]
    fn an_outage_says_nothing_about_the_size() {
        let mut path = Simulation::new(LINK);
        path.settle();
        path.run(Duration::from_secs(60), || false);
        assert_eq!(path.search.size(), LINK);
        path.carries = 1400;
        path.settle();
    }

    #[test]
    fn an_idle_tunnel_is_left_alone() {
        let mut path = Simulation::new(1400);
        path.settle();
        assert_eq!(path.search.deadline(Sent::default()), Some(path.search.raise_at));
        let mut path = Simulation::new(LINK);
        path.settle();
        assert_eq!(path.search.deadline(Sent::default()), None);
    }

    proptest! {
        #[test]
        fn it_converges_whatever_is_lost_or_reported(
            steps in prop::collection::vec((LEAST_DATAGRAM..=LINK, prop::option::of(any::<u16>()), any::<u64>()), 1..8),
        ) {
            let mut path = Simulation::new(LINK);
            for (carries, report, mut pattern) in steps {
                path.carries = carries;
                if let Some(report) = report {
                    path.search.hint(path.now, report);
                }
                path.run(Duration::from_secs(3), || {
                    pattern = pattern.rotate_left(1);
                    pattern & 3 != 0
                });
                prop_assert!(path.search.size() >= LEAST_DATAGRAM);
            }
            path.run(RAISE + Duration::from_secs(30), || true);
            prop_assert_eq!(path.search.size(), path.carries);
        }
    }
}
