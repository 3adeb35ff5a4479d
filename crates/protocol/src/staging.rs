//! Packets that wait for a session: at most 128 of them, for at most 100 seconds.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::BootTime;

/// The number of packets that wait; a further one replaces the oldest.
pub const STAGED_PACKETS: usize = 128;
/// How long a packet waits: as long as one attempt to establish a session.
pub const STAGED_FOR: Duration = Duration::from_secs(100);

/// Packets in the order they came, after splitting.
pub struct Staging {
    /// The largest number of packets that wait.
    most: usize,
    packets: VecDeque<(BootTime, Vec<u8>)>,
    /// Buffers of packets that were sent, so that a long outage allocates once.
    spare: Vec<Vec<u8>>,
}

impl Default for Staging {
    fn default() -> Self {
        Self::one_of(1)
    }
}

impl Staging {
    /// The staging of one of `places` workers, with its share of the room.
    pub fn one_of(places: usize) -> Self {
        let most = (STAGED_PACKETS / places.max(1)).max(1);
        Self { most, packets: VecDeque::new(), spare: Vec::new() }
    }

    /// Keeps a copy of `packet`; returns how many older ones were dropped for it.
    #[must_use]
    pub fn push(&mut self, now: BootTime, packet: &[u8]) -> usize {
        let mut lost = self.purge(now);
        if self.packets.len() == self.most {
            self.pop();
            lost += 1;
        }
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(packet);
        self.packets.push_back((now, buffer));
        lost
    }

    /// Drops packets that waited too long; returns how many.
    pub fn purge(&mut self, now: BootTime) -> usize {
        let before = self.packets.len();
        while self.packets.front().is_some_and(|(at, _)| now.saturating_since(*at) >= STAGED_FOR) {
            self.pop();
        }
        before - self.packets.len()
    }

    /// The packets, oldest first.
    pub fn packets(&self) -> impl Iterator<Item = &[u8]> {
        self.packets.iter().map(|(_, packet)| packet.as_slice())
    }

    /// The oldest packet.
    pub fn peek(&self) -> Option<&[u8]> {
        self.packets.front().map(|(_, packet)| packet.as_slice())
    }

    /// Removes the oldest packet.
    pub fn pop(&mut self) {
        self.spare.extend(self.packets.pop_front().map(|(_, packet)| packet));
    }

    /// Whether no packet waits.
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> BootTime {
        BootTime::from_nanos(1) + Duration::from_secs(seconds)
    }

    #[test]
    fn the_oldest_makes_room() {
        let mut staging = Staging::default();
        for n in 0..=STAGED_PACKETS {
            let lost = staging.push(at(0), &n.to_be_bytes());
            assert_eq!(lost, usize::from(n == STAGED_PACKETS));
        }
        assert_eq!(staging.packets.len(), STAGED_PACKETS);
        assert_eq!(staging.peek(), Some(&1usize.to_be_bytes()[..]));
    }

    #[test]
    fn several_places_share_the_room() {
        let mut staging = Staging::one_of(8);
        let lost: usize = (0..20).map(|n: u8| staging.push(at(0), &[n])).sum();
        assert_eq!((lost, staging.packets().count()), (4, STAGED_PACKETS / 8));
    }

    #[test]
    fn nothing_waits_longer_than_an_attempt_lasts() {
        let mut staging = Staging::default();
        assert_eq!(staging.push(at(0), b"old"), 0);
        assert_eq!(staging.push(at(99), b"new"), 0);
        assert_eq!(staging.purge(at(100)), 1);
        assert_eq!(staging.peek(), Some(&b"new"[..]));
        staging.pop();
        assert!(staging.is_empty());
    }
}
