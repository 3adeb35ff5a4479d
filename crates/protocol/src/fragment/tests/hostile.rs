//! A peer that sends honest packets out of order and, between them, fragments that repeat, contradict, have a
//! wrong count or length, or are simply too many.

use std::ops::Range;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::{DATAGRAM, MAX_FRAGMENTS, after, packet, plan};
use crate::time::BootTime;

const SESSIONS: usize = 3;
/// Reordering of honest fragments.
const IN_FLIGHT: usize = 24;

/// One fragment; its contents are a range of the noise.
#[derive(Clone, Debug)]
pub(super) struct Shot {
    pub(super) session: usize,
    pub(super) counter: u64,
    pub(super) index: u8,
    pub(super) count: u8,
    pub(super) bytes: Range<usize>,
}

pub(super) struct Hostility {
    rng: StdRng,
    pub(super) largest: usize,
    /// The bytes that all packets are cut from.
    pub(super) noise: Vec<u8>,
    /// The next counter of each session.
    next: [u64; SESSIONS],
    in_flight: Vec<Shot>,
    /// Recently sent fragments, as the base for forged ones.
    sent: Vec<Shot>,
    now: BootTime,
}

impl Hostility {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let largest = [100, 1280, 1514, 9014, 65_535].choose(&mut rng).copied().unwrap();
        Self {
            largest,
            noise: packet(3 * largest, seed),
            next: [rng.random_range(0..20), rng.random(), 0].map(|next: u64| next >> 1),
            in_flight: Vec::new(),
            sent: Vec::new(),
            now: after(0),
            rng,
        }
    }

    pub(super) const fn now(&self) -> BootTime {
        self.now
    }

    /// The next fragment, and its arrival time.
    pub(super) fn shoot(&mut self) -> (Shot, BootTime) {
        self.wait();
        let shot = match self.rng.random_range(0..16) {
            0..8 => self.honest(),
            8 => self.repeated(),
            9 => self.resized(),
            10 | 11 => self.forged_sibling(),
            12 => self.recounted(),
            13 => self.made_up(),
            _ => self.never_completed(),
        };
        if self.sent.len() == 100 {
            self.sent.remove(0);
        }
        self.sent.push(shot.clone());
        (shot, self.now)
    }

    fn wait(&mut self) {
        let millis = match self.rng.random_range(0..400) {
            0 => self.rng.random_range(500..2500),
            1..40 => self.rng.random_range(0..40),
            _ => 0,
        };
        self.now = self.now + Duration::from_millis(millis);
    }

    fn honest(&mut self) -> Shot {
        while self.in_flight.len() < IN_FLIGHT {
            self.send_packet();
        }
        let at = self.rng.random_range(0..self.in_flight.len());
        self.in_flight.swap_remove(at)
    }

    fn send_packet(&mut self) {
        let len = self.rng.random_range(2..=self.largest);
        let max_datagram = self.rng.random_range(64..=DATAGRAM).max(68 + len / 8);
        let plan = plan(len, max_datagram).unwrap();
        let start = self.rng.random_range(0..self.noise.len() - len);
        let session = self.rng.random_range(0..SESSIONS);
        for (counter, cut) in (self.next[session]..).zip(plan.cuts()) {
            let bytes = start + cut.bytes.start..start + cut.bytes.end;
            let (index, count) = (cut.index, cut.count);
            self.in_flight.push(Shot { session, counter, index, count, bytes });
        }
        self.next[session] += plan.count() as u64;
    }

    fn repeated(&mut self) -> Shot {
        match self.sent.choose(&mut self.rng) {
            Some(shot) => shot.clone(),
            None => self.made_up(),
        }
    }

    fn resized(&mut self) -> Shot {
        let shot = self.repeated();
        Shot { bytes: self.some_bytes(shot.count), ..shot }
    }

    /// A fragment of the same packet, usually of the right length.
    fn forged_sibling(&mut self) -> Shot {
        let shot = self.repeated();
        let index = self.rng.random_range(0..shot.count);
        let first = shot.counter.saturating_sub(shot.index.into());
        let lie = self.rng.random_bool(0.3);
        let bytes = if lie { self.some_bytes(shot.count) } else { shot.bytes };
        Shot { counter: first + u64::from(index), index, bytes, ..shot }
    }

    fn recounted(&mut self) -> Shot {
        let shot = self.repeated();
        let count = self.rng.random_range(shot.index.max(1) + 1..=MAX_FRAGMENTS);
        Shot { count, ..shot }
    }

    /// Random values, near the counters in use.
    fn made_up(&mut self) -> Shot {
        let session = self.rng.random_range(0..SESSIONS);
        let count = self.rng.random_range(2..=MAX_FRAGMENTS);
        let index = self.rng.random_range(0..count);
        let counter = self.next[session].saturating_sub(self.rng.random_range(0..20));
        Shot { session, counter, index, count, bytes: self.some_bytes(count) }
    }

    /// A fragment of a packet without any others: they flood the table.
    fn never_completed(&mut self) -> Shot {
        let shot = self.made_up();
        self.next[shot.session] += 20;
        Shot { counter: self.next[shot.session] + u64::from(shot.index), ..shot }
    }

    /// Short, long, about as long as the room, or longer than any packet.
    fn some_bytes(&mut self, count: u8) -> Range<usize> {
        let most = self.largest / usize::from(count - 1);
        let len = match self.rng.random_range(0..5) {
            0 => self.rng.random_range(1..=64),
            1 => self.rng.random_range(1..=DATAGRAM.min(2 * self.largest)),
            2 => (most + self.rng.random_range(0..6)).saturating_sub(3).max(1),
            3 => self.largest + self.rng.random_range(0..4) - 2,
            _ => self.rng.random_range(1..=2 * self.largest),
        };
        let start = self.rng.random_range(0..self.noise.len() - len);
        start..start + len
    }
}
