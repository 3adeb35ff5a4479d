//! Detects that two machines use the peer's key, as happens when its configuration is copied.
//!
//! Each machine's handshake takes the tunnel over from the other machine. Data of the other machine is then
//! answered on a session that it does not have, so it initiates again after some 15 s. So there are new
//! sessions much more often than rekeys, and their initiations come from the same few addresses in turn.
//!
//! A single machine does not look like this. If it moves, it keeps its session and needs no handshake. If it
//! restarts, or changes its port because nobody answers, the port is a new one. In neither case does it return
//! to a former address again and again.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use super::{Diagnosis, Peer};
use crate::table::Arrival;
use crate::time::{BootTime, Now};

/// Sessions older than this do not count. The peer rekeys every two minutes, so in this time it makes two sessions.
const WITHIN: Duration = Duration::from_secs(180);
/// The number of sessions that are remembered.
const SESSIONS: usize = 8;
/// The number of returns to a former address that shows two machines. A single machine that makes a handshake
/// at each move, for example between two networks, may return once.
const RETURNS: usize = 2;

/// The addresses from which the peer initiated its last sessions.
#[derive(Debug, Default)]
pub(super) struct Origins(VecDeque<(BootTime, SocketAddr)>);

impl Origins {
    /// Records that the peer initiated a session from `at`. If the peer alternates between addresses, returns
    /// the last two, the smaller one first.
    fn note(&mut self, now: BootTime, at: SocketAddr) -> Option<[SocketAddr; 2]> {
        self.0.retain(|(since, _)| now.saturating_since(*since) < WITHIN);
        if self.0.len() == SESSIONS {
            self.0.pop_front();
        }
        let previous = self.0.back().map(|(_, at)| *at).filter(|previous| *previous != at);
        self.0.push_back((now, at));
        let previous = previous.filter(|_| self.returns() >= RETURNS)?;
        Some([previous.min(at), previous.max(at)])
    }

    /// How many sessions were initiated from an address that the peer had left before.
    fn returns(&self) -> usize {
        let addresses: Vec<_> = self.0.iter().map(|(_, at)| *at).collect();
        let is_return = |n: &usize| {
            let (earlier, at) = (&addresses[..*n], addresses[*n]);
            earlier.last() != Some(&at) && earlier.contains(&at)
        };
        (1..addresses.len()).filter(is_return).count()
    }
}

impl Peer {
    /// The peer has confirmed a session that it initiated. If the response went to several addresses, all but
    /// one of them are forged, and the session is ignored here.
    pub(super) fn watch_for_duplicates(&mut self, now: Now) {
        let Some(session) = self.keyring.current() else { return };
        if let [Arrival { from, .. }] = session.reached[..]
            && let Some(addresses) = self.paths.origins.note(now.boot, from)
        {
            self.events.push_back(Diagnosis::DuplicateKey { addresses }.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    /// The last two addresses after sessions from these ports, so many seconds apart.
    fn after(ports: &[u16], apart: u64) -> Option<[SocketAddr; 2]> {
        let mut origins = Origins::default();
        let mut last = None;
        for (n, port) in (0..).zip(ports) {
            let now = BootTime::default() + Duration::from_secs(n * apart);
            last = origins.note(now, at(*port));
        }
        last
    }

    #[test]
    fn only_repeated_returns_within_a_short_time_count() {
        let both = Some([at(1), at(2)]);
        for (ports, apart, expected) in [
            (&[1, 2, 1, 2][..], 15, both),
            (&[2, 2, 1, 1, 2, 2, 1], 15, both),
            (&[3, 1, 2, 3, 1, 2], 15, both),
            (&[1, 2, 1, 2, 1, 2], 55, both),
            (&[1, 2, 1], 15, None),
            (&[1, 2, 1, 1], 15, None),
            (&[1, 1, 1, 1, 1, 1], 5, None),
            (&[1, 2, 3, 4, 5, 6], 5, None),
            (&[1, 2, 1, 3, 4, 5], 5, None),
            (&[1, 2, 1, 2, 1, 2], 120, None),
        ] {
            assert_eq!(after(ports, apart), expected, "{ports:?} {apart}");
        }
    }
}
