//! Round trip and loss over the last minute and the last ten, from the answered PINGs of all sessions.
//!
//! A PONG reports how many datagrams of a session have arrived. Some are still in flight at that time, or were
//! overtaken. So a datagram counts as lost only if it is still missing at the next PONG: datagrams sent before
//! one PING are judged by the answer to the following PING. Counting begins with the first PING of a session,
//! because on a path that reorders some datagrams are always in flight. When a session ends, its datagrams that
//! are not judged yet are ignored: at a restart or a rekey, datagrams are lost for other reasons than the path.
//!
//! The memory is allocated once: a slot for each of the last 600 seconds.

use std::net::SocketAddr;
use std::time::Duration;

use super::{Loss, Quality};
use crate::session::Generation;
use crate::time::BootTime;

/// Seconds that are remembered.
const SECONDS: u64 = 600;
/// The shorter window. Without a PONG for this long, the round trip is unknown as well.
const MINUTE: u64 = 60;
/// The weight of a new round trip (RFC 6298 §2), ...
const ROUND_TRIP_GAIN: u32 = 8;
/// ... and of a new difference (RFC 3550 §6.4.1).
const JITTER_GAIN: u32 = 16;

/// Round trip and loss of the last minutes. A value without any measurement is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recent {
    /// The round trip time and its variation.
    pub round_trip: Option<RoundTrip>,
    /// Loss of the last minute.
    pub minute: BothDirections,
    /// Loss of the last ten minutes.
    pub ten_minutes: BothDirections,
}

/// The loss in each direction, where it was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BothDirections {
    /// From us to the peer.
    pub outward: Option<Loss>,
    /// From the peer to us.
    pub inward: Option<Loss>,
}

/// The round trip.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoundTrip {
    /// The smoothed round trip of RFC 6298.
    pub smoothed: Duration,
    /// The mean difference between consecutive round trips, by the estimator of RFC 3550.
    pub jitter: Duration,
}

/// The sessions whose datagrams a PONG counts. After crossed handshakes they are two.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counted {
    /// The session that the PING was sent on.
    pub(super) outward: Generation,
    /// The session that the PONG arrived on.
    pub(super) inward: Generation,
}

/// The measurements of one peer.
#[derive(Debug)]
pub(super) struct Window {
    slots: Box<[Slot]>,
    /// The second of the newest slot.
    newest: u64,
    outward: Direction,
    inward: Direction,
    trip: Option<Trip>,
}

/// The counts of one second, for each direction.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    outward: Tally,
    inward: Tally,
}

/// A number of datagrams sent, and how many of them were lost. This may be negative, because datagrams that
/// counted as lost can still arrive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    sent: u64,
    lost: i64,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.sent = self.sent.saturating_add(other.sent);
        self.lost = self.lost.saturating_add(other.lost);
    }

    fn loss(self) -> Option<Loss> {
        let lost = u64::try_from(self.lost).unwrap_or(0).min(self.sent);
        (self.sent > 0).then(|| Loss { sent: self.sent, arrived: self.sent - lost })
    }
}

/// The judged and unjudged datagrams of one direction.
#[derive(Debug, Default)]
struct Direction {
    session: Generation,
    /// The counts that were last judged. None before the first.
    judged: Option<Loss>,
    /// The last counts, and when they were taken. The next PONG judges them.
    last: Option<(BootTime, Loss)>,
}

impl Direction {
    /// Takes the next counts of a session; returns the datagrams that they judge, and when those were counted.
    fn take(
        &mut self,
        now: BootTime,
        session: Generation,
        count: Loss,
    ) -> Option<(BootTime, Tally)> {
        if self.session != session {
            *self = Self { session, ..Self::default() };
        }
        let (then, before) = self.last.replace((now, count))?;
        let missing = before.missing().min(count.missing());
        let settled = Loss { sent: before.sent, arrived: before.sent - missing };
        let judged = self.judged.replace(settled)?;
        let sent = settled.sent.saturating_sub(judged.sent);
        let (was, is) = (signed(judged.missing()), signed(missing));
        Some((then, Tally { sent, lost: is.saturating_sub(was) }))
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// The round trips to one address.
#[derive(Clone, Copy, Debug)]
struct Trip {
    to: SocketAddr,
    at: BootTime,
    last: Duration,
    estimate: RoundTrip,
}

impl Trip {
    fn first(to: SocketAddr, at: BootTime, took: Duration) -> Self {
        let estimate = RoundTrip { smoothed: took, jitter: Duration::ZERO };
        Self { to, at, last: took, estimate }
    }

    fn then(self, at: BootTime, took: Duration) -> Self {
        let RoundTrip { smoothed, jitter } = self.estimate;
        let estimate = RoundTrip {
            smoothed: nearer(smoothed, took, ROUND_TRIP_GAIN),
            jitter: nearer(jitter, took.abs_diff(self.last), JITTER_GAIN),
        };
        Self { at, last: took, estimate, ..self }
    }
}

/// `mean`, moved by a fraction of its distance to `new`.
fn nearer(mean: Duration, new: Duration, gain: u32) -> Duration {
    let step = mean.abs_diff(new) / gain;
    if new > mean { mean + step } else { mean - step }
}

impl Default for Window {
    fn default() -> Self {
        let slots = (0..SECONDS).map(|_| Slot::default()).collect();
        let (outward, inward) = (Direction::default(), Direction::default());
        Self { slots, newest: 0, outward, inward, trip: None }
    }
}

impl Window {
    /// Takes an answered PING of the path to `to`.
    pub(super) fn take(&mut self, now: BootTime, to: SocketAddr, of: Counted, found: Quality) {
        let took = found.round_trip;
        let trip = self.trip.filter(|trip| trip.to == to);
        self.trip =
            Some(trip.map_or_else(|| Trip::first(to, now, took), |trip| trip.then(now, took)));
        if let Some((then, tally)) = self.outward.take(now, of.outward, found.outward)
            && let Some(slot) = self.slot(second(then))
        {
            slot.outward.add(tally);
        }
        if let Some((then, tally)) = self.inward.take(now, of.inward, found.inward)
            && let Some(slot) = self.slot(second(then))
        {
            slot.inward.add(tally);
        }
    }

    /// The path may be another one.
    pub(super) const fn forget_round_trip(&mut self) {
        self.trip = None;
    }

    /// The measurements as of now.
    pub(super) fn recent(&self, now: BootTime) -> Recent {
        let fresh = |trip: &Trip| now.saturating_since(trip.at) < Duration::from_secs(MINUTE);
        Recent {
            round_trip: self.trip.filter(fresh).map(|trip| trip.estimate),
            minute: self.minute(now),
            ten_minutes: self.sum(now, SECONDS),
        }
    }

    /// The loss of the last minute.
    pub(super) fn minute(&self, now: BootTime) -> BothDirections {
        self.sum(now, MINUTE)
    }

    /// When the last second with a measurement leaves the last minute.
    pub(super) fn minute_ends(&self) -> BootTime {
        BootTime::from_nanos(0) + Duration::from_secs(self.newest + MINUTE)
    }

    /// The slot of a second that is still remembered; it becomes the newest one if it is later.
    fn slot(&mut self, second: u64) -> Option<&mut Slot> {
        if second > self.newest {
            let skipped = (self.newest + 1).max(second.saturating_sub(SECONDS - 1))..=second;
            for second in skipped {
                self.slots[place(second)] = Slot::default();
            }
            self.newest = second;
        }
        (self.newest - second < SECONDS).then(|| &mut self.slots[place(second)])
    }

    /// The sum over the slots of the last `seconds`.
    fn sum(&self, now: BootTime, seconds: u64) -> BothDirections {
        let from = (second(now) + 1).saturating_sub(seconds);
        let remembered = (self.newest + 1).saturating_sub(SECONDS);
        let mut all = Slot::default();
        for second in from.max(remembered)..=self.newest {
            let slot = self.slots[place(second)];
            all.outward.add(slot.outward);
            all.inward.add(slot.inward);
        }
        BothDirections { outward: all.outward.loss(), inward: all.inward.loss() }
    }
}

fn second(at: BootTime) -> u64 {
    at.as_nanos() / 1_000_000_000
}

/// The position of the slot of a second.
fn place(second: u64) -> usize {
    // A remainder of 600 fits every integer.
    usize::try_from(second % SECONDS).unwrap_or_default()
}

#[cfg(test)]
mod tests;
