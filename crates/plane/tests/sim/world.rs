//! The ends, the network and the one clock, which jumps to whatever comes next.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::ops::{Index, IndexMut};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use vpnd_plane::Trouble;
use vpnd_protocol::peer::{Change, Command, Diagnosis, Event};
use vpnd_protocol::timestamp::Timestamp;

use crate::end::{End, Floor, Options, Side};
use crate::network::{Captured, Datagram, Kind, Network};
use crate::oracle::Oracle;

pub(crate) const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub(crate) const fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub(crate) struct World {
    pub(crate) now: Duration,
    pub(crate) network: Network,
    pub(crate) oracle: Oracle,
    /// How long the control plane may take to get up.
    pub(crate) drowsiness: Duration,
    /// Packets offered are as long as the device takes them.
    pub(crate) full_size: bool,
    ends: Vec<End>,
    traffic: [Option<Duration>; 3],
    queue: BinaryHeap<Due>,
    order: u64,
    rng: StdRng,
}

/// What comes, and when; what was scheduled first comes first.
struct Due {
    at: Duration,
    order: u64,
    what: What,
}

enum What {
    Arrive(Datagram),
    Control(Side),
    Written { side: Side, life: u32, stamp: Timestamp },
    Offer(Side),
}

impl World {
    /// Both ends know where the other is; nothing is lost and every way takes 10 ms.
    pub(crate) fn new(seed: u64) -> Self {
        Self::with(seed, |_, _| ())
    }

    /// As [`World::new`], with options of one's own.
    pub(crate) fn with(seed: u64, mut change: impl FnMut(Side, &mut Options)) -> Self {
        let ends = Side::BOTH.map(|side| {
            let mut options = Options::of(side);
            change(side, &mut options);
            End::new(side, options, seed)
        });
        Self {
            now: Duration::ZERO,
            network: Network::new(seed),
            oracle: Oracle::default(),
            drowsiness: Duration::ZERO,
            full_size: false,
            ends: ends.into(),
            traffic: [None; 3],
            queue: BinaryHeap::new(),
            order: 0,
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// Adds a second machine with the configuration of A, at an address of its own.
    pub(crate) fn copy_a(&mut self, seed: u64) {
        let options = self[Side::A].options.clone();
        self.ends.push(End::new(Side::C, options, seed));
    }

    fn sides(&self) -> impl Iterator<Item = Side> + use<> {
        [Side::A, Side::B, Side::C].into_iter().take(self.ends.len())
    }

    /// Both ends learn where the other is, if they are configured to: they initiate.
    pub(crate) fn resolve(&mut self, side: Side) {
        let now = self.now;
        self[side].resolve(now);
        self.settle(side);
    }

    /// `side` offers a packet.
    pub(crate) fn offer(&mut self, side: Side) {
        if self[side].asleep {
            return;
        }
        let now = self.now;
        let len = self.full_size.then_some(self[side].device_mtu);
        let packet = self.oracle.offer(side, now, len);
        self[side].offer(now, &[packet]);
        self.settle(side);
    }

    /// `side` offers a packet now and at every such interval from now on.
    pub(crate) fn offer_every(&mut self, side: Side, interval: Duration) {
        let idle = self.traffic[side as usize].replace(interval).is_none();
        if idle {
            self.schedule(Duration::ZERO, What::Offer(side));
        }
    }

    /// Nobody offers packets any more.
    pub(crate) fn stop_offers(&mut self) {
        self.traffic = [None; 3];
    }

    /// Does something with the end of `side`, now.
    pub(crate) fn at(&mut self, side: Side, act: impl FnOnce(&mut End, Duration)) {
        let now = self.now;
        act(&mut self[side], now);
        self.settle(side);
    }

    /// The fault that stands at `side`, by what was counted until now.
    pub(crate) fn trouble(&mut self, side: Side) -> Option<Trouble> {
        let now = self.now;
        let trouble = self[side].trouble(now);
        self.settle(side);
        trouble
    }

    pub(crate) fn restart(&mut self, side: Side, floor: Floor) {
        let now = self.now;
        self[side].restart(now, floor);
        self.settle(side);
    }

    /// `side` ends in order, and the next process of its tunnel continues.
    pub(crate) fn hand_on(&mut self, side: Side) {
        let now = self.now;
        self[side].hand_on(now);
        self.settle(side);
    }

    /// Nothing reaches `side` until it resumes.
    pub(crate) fn suspend(&mut self, side: Side) {
        self[side].asleep = true;
    }

    /// Its data lines run first; then its control plane.
    pub(crate) fn resume(&mut self, side: Side) {
        self[side].asleep = false;
        self.schedule(Duration::ZERO, What::Control(side));
    }

    /// Somebody's datagram arrives, now.
    pub(crate) fn inject(&mut self, datagram: Datagram) {
        self.arrive(datagram);
    }

    pub(crate) fn run_for(&mut self, time: Duration) {
        self.run_until(self.now + time);
    }

    pub(crate) fn run_until(&mut self, until: Duration) {
        while self.step(until) {}
    }

    /// Goes to what comes next; says whether that was before `until`.
    fn step(&mut self, until: Duration) -> bool {
        let due = self.queue.peek().map(|due| due.at);
        let alarm = self.sides().filter_map(|side| Some((self.timeout(side)?, side)));
        let alarm = alarm.min().filter(|(at, _)| due.is_none_or(|due| *at < due));
        let Some(next) = alarm.map(|(at, _)| at).or(due).filter(|&next| next <= until) else {
            self.now = self.now.max(until);
            return false;
        };
        self.now = self.now.max(next);
        match alarm {
            Some((_, side)) => self.ring(side),
            None => self.happen(),
        }
        true
    }

    fn timeout(&self, side: Side) -> Option<Duration> {
        self[side].timeout().filter(|_| !self[side].asleep)
    }

    fn ring(&mut self, side: Side) {
        let now = self.now;
        self[side].alarm(now);
        self.settle(side);
    }

    fn happen(&mut self) {
        let now = self.now;
        match self.queue.pop().map(|due| due.what) {
            Some(What::Arrive(datagram)) => self.arrive(datagram),
            Some(What::Control(side)) if !self[side].asleep => {
                self[side].control(now);
                self.settle(side);
            }
            Some(What::Written { side, life, stamp }) => self.written(side, life, stamp),
            Some(What::Offer(side)) => self.offer_again(side),
            Some(What::Control(_)) | None => {}
        }
    }

    /// Who has died since never hears of it, and who sleeps hears of it later.
    fn written(&mut self, side: Side, life: u32, stamp: Timestamp) {
        let now = self.now;
        if self[side].asleep {
            self.schedule(seconds(1), What::Written { side, life, stamp });
        } else if self[side].life == life {
            self[side].written(now, stamp);
            self.settle(side);
        }
    }

    fn offer_again(&mut self, side: Side) {
        let Some(interval) = self.traffic[side as usize] else { return };
        self.offer(side);
        self.schedule(interval, What::Offer(side));
    }

    /// What arrives at once from one sender is one batch.
    fn arrive(&mut self, Datagram { from, mut to, bytes }: Datagram) {
        if let Some((at, most, peer)) = self.network.carries
            && to == at
            && bytes.len() <= most
        {
            to = peer;
        }
        let mut batch = vec![bytes];
        while let Some(Due { what: What::Arrive(next), .. }) = self.queue.peek()
            && self.queue.peek().is_some_and(|due| due.at <= self.now)
            && (next.from, next.to) == (from, to)
        {
            let Some(Due { what: What::Arrive(next), .. }) = self.queue.pop() else { break };
            batch.push(next.bytes);
        }
        let now = self.now;
        let listens = |side: &Side| self[*side].listens(to);
        let Some(side) = self.sides().find(listens) else { return };
        self.oracle.came(from, batch.iter().map(Vec::len).sum());
        self[side].receive(now, from, to, batch);
        self.settle(side);
    }

    /// Carries on what `side` has just done.
    fn settle(&mut self, side: Side) {
        let now = self.now;
        let end = &mut self.ends[side as usize];
        self.oracle.published(side, end.data.table(), now);
        for receiver in std::mem::take(&mut end.data.sealed_for) {
            self.oracle.sealed(side, receiver);
        }
        for index in std::mem::take(&mut end.data.opened) {
            self.oracle.opened(side, index, now);
        }
        for packet in std::mem::take(&mut end.data.delivered) {
            self.oracle.delivered(side, &packet, now);
        }
        let (life, woken) = (end.life, std::mem::take(&mut end.data.woken));
        let (writes, outbox) = (std::mem::take(&mut end.writes), std::mem::take(&mut end.outbox));
        for (after, stamp) in writes {
            self.schedule(after, What::Written { side, life, stamp });
        }
        outbox.into_iter().for_each(|datagram| self.transmit(side, datagram));
        if woken {
            let after = self.rng.random_range(Duration::ZERO..=self.drowsiness);
            self.schedule(after, What::Control(side));
        }
    }

    fn transmit(&mut self, by: Side, datagram: Datagram) {
        let sent = Captured { at: self.now, by, datagram: datagram.clone() };
        self.oracle.sent(&sent);
        if let Some(from) = self.network.spoof(&sent) {
            let after = self.network.spoofed_after;
            self.schedule(after, What::Arrive(Datagram { from, ..datagram.clone() }));
        }
        if let (true, Some(most)) = (self.network.reports, self.network.is_too_large(&sent)) {
            self[by].hear_of_size(most);
        }
        for delay in self.network.carry(sent) {
            self.schedule(delay, What::Arrive(datagram.clone()));
        }
    }

    fn schedule(&mut self, after: Duration, what: What) {
        self.order += 1;
        self.queue.push(Due { at: self.now + after, order: self.order, what });
    }
}

/// What the scenarios ask.
impl World {
    /// Prints what both ends told, in order.
    pub(crate) fn narrate(&self) {
        let of = |side: Side| self[side].events.iter().map(move |(at, event)| (*at, side, event));
        let mut story: Vec<_> = self.sides().flat_map(of).collect();
        story.sort_by_key(|(at, ..)| *at);
        story.iter().for_each(|(at, side, event)| println!("{at:>14.3?} {side:?} {event:?}"));
    }

    /// When `side` sent messages of this kind.
    pub(crate) fn sent(&self, side: Side, kind: Kind) -> Vec<Duration> {
        self.captured(side, kind).map(|sent| sent.at).collect()
    }

    pub(crate) fn captured(&self, side: Side, kind: Kind) -> impl Iterator<Item = &Captured> {
        let mine = self.network.wire.iter().filter(move |sent| sent.by == side);
        mine.filter(move |sent| sent.datagram.kind() == kind)
    }

    /// When `side` told of something like this.
    pub(crate) fn told(&self, side: Side, like: impl Fn(&Event) -> bool) -> Vec<Duration> {
        let events = self[side].events.iter();
        events.filter(|(_, event)| like(event)).map(|(at, _)| *at).collect()
    }

    /// When the state of `side` changed like this.
    pub(crate) fn changed(&self, side: Side, like: impl Fn(&Change) -> bool) -> Vec<Duration> {
        self.told(side, |event| matches!(event, Event::Change(change) if like(change)))
    }

    /// When `side` found a fault like this.
    pub(crate) fn diagnosed(&self, side: Side, like: impl Fn(&Diagnosis) -> bool) -> Vec<Duration> {
        self.told(side, |event| matches!(event, Event::Diagnosis(found) if like(found)))
    }

    /// When `side` was to send from another port.
    pub(crate) fn port_changes(&self, side: Side) -> Vec<Duration> {
        self.told(side, |event| *event == Event::Command(Command::ChangePort))
    }

    /// Packets of `side` that never arrived.
    pub(crate) fn lost(&self, side: Side) -> usize {
        let (offered, arrived) = self.oracle.tally(side, Duration::ZERO, Duration::MAX);
        offered - arrived
    }
}

impl Index<Side> for World {
    type Output = End;

    fn index(&self, side: Side) -> &End {
        &self.ends[side as usize]
    }
}

impl IndexMut<Side> for World {
    fn index_mut(&mut self, side: Side) -> &mut End {
        &mut self.ends[side as usize]
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    /// The heap yields its greatest: the earliest.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}
