//! The source addresses that the kernel has chosen for datagrams to the peer.
//!
//! If a route moves to and fro, the peer's datagrams arrive at an address of ours that the kernel has chosen a moment ago and
//! will choose again. Such an address counts as the kernel's choice too: pinned, it would leave by the wrong uplink half of
//! the time.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::{Query, Shift};

/// The number of choices, each other than the last, that make a route that moves to and fro …
const FLAPS: usize = 3;
/// … within this time. It is shorter than the time after which a source address that the peer keeps writing to is taken
/// back.
const WITHIN: Duration = Duration::from_secs(5);

/// The last choices for one query, regardless of its source address.
#[derive(Default)]
pub(super) struct Choices {
    query: Option<Query>,
    now: Option<IpAddr>,
    /// Each other than the one before it, with the time when it was last seen.
    last: VecDeque<(IpAddr, Instant)>,
}

impl Choices {
    /// Records the kernel's choice for `query`, if it has a route.
    pub(super) fn note(&mut self, query: &Query, choice: Option<IpAddr>, at: Instant) {
        let query = Query { from: None, ..query.clone() };
        if self.query.as_ref() != Some(&query) {
            *self = Self { query: Some(query), ..Self::default() };
        }
        self.now = choice;
        let Some(choice) = choice else { return };
        if self.last.back().is_some_and(|(one, _)| *one == choice) {
            self.last.pop_back();
        }
        self.last.push_back((choice, at));
        if self.last.len() > FLAPS {
            self.last.pop_front();
        }
    }

    /// The answer to `query`, if it has a source address.
    pub(super) fn source(&self, query: &Query, now: Instant) -> Option<Shift> {
        let from = query.from?;
        let is_kernels = self.now == Some(from) || self.changes(from, now).is_some();
        Some(Shift::Source { to: query.to, from, is_kernels })
    }

    /// Until when `from`, which is not the kernel's choice now, counts as one.
    pub(super) fn changes(&self, from: IpAddr, now: Instant) -> Option<Instant> {
        let (_, first) = self.last.front().filter(|_| self.last.len() == FLAPS)?;
        let is_known = self.last.iter().any(|(one, _)| *one == from);
        Some(*first + WITHIN).filter(|until| is_known && self.now != Some(from) && now < *until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESSES: [IpAddr; 3] = [
        IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)),
        IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1)),
        IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 1)),
    ];

    fn query(from: IpAddr) -> Query {
        let to = ([192, 0, 2, 129], 1).into();
        Query { to, from: Some(from), mark: 0, device: None, port: 1 }
    }

    /// Which of the addresses count, a second after the last of these choices, one second apart; then four seconds
    /// later.
    fn counting(chosen: &[usize]) -> [Vec<usize>; 2] {
        let (start, mut choices) = (Instant::now(), Choices::default());
        let at = |second: usize| start + Duration::from_secs(second as u64);
        for (second, one) in chosen.iter().enumerate() {
            choices.note(&query(ADDRESSES[0]), Some(ADDRESSES[*one]), at(second));
        }
        let counts = |one: usize, now| {
            let query = query(ADDRESSES[one]);
            let Some(Shift::Source { is_kernels, .. }) = choices.source(&query, now) else {
                panic!("no answer")
            };
            is_kernels
        };
        [chosen.len(), chosen.len() + 4]
            .map(|second| (0..3).filter(|one| counts(*one, at(second))).collect())
    }

    #[test]
    fn an_address_that_the_kernel_has_left_no_longer_counts() {
        assert_eq!(counting(&[0]), [[0], [0]]);
        assert_eq!(counting(&[0, 0, 1]), [[1], [1]]);
    }

    #[test]
    fn of_a_route_that_moves_to_and_fro_both_count_for_a_while() {
        assert_eq!(counting(&[0, 1, 0]), [vec![0, 1], vec![0]]);
        assert_eq!(counting(&[0, 1, 1, 0, 1]), [vec![0, 1], vec![1]]);
    }

    #[test]
    fn another_query_begins_anew() {
        let (now, mut choices) = (Instant::now(), Choices::default());
        for one in [0, 1, 0] {
            choices.note(&query(ADDRESSES[2]), Some(ADDRESSES[one]), now);
        }
        assert!(choices.changes(ADDRESSES[1], now).is_some());
        let other = Query { port: 2, ..query(ADDRESSES[2]) };
        choices.note(&other, None, now);
        assert_eq!(choices.changes(ADDRESSES[1], now), None);
    }
}
