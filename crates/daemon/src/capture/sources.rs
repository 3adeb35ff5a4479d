//! Our addresses. The kernel chooses the one that most datagrams leave from, so it is not known to the socket; but the
//! daemon knows its choice when the capture begins, and the peer's answers come to it. Wireshark takes datagrams for one
//! session only if both ends have the same addresses in both directions.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use vpnd_tunnel::tap::{Datagram, Direction};

/// Our address for each address of the other end.
pub(super) struct Sources {
    known: BTreeMap<IpAddr, IpAddr>,
}

/// Anybody can send datagrams from many addresses.
const MOST: usize = 256;

impl Sources {
    /// What is known when the capture begins: the peer's address, and ours.
    pub(super) fn new(begun: Option<(IpAddr, IpAddr)>) -> Self {
        Self { known: begun.into_iter().collect() }
    }

    /// The datagram with both addresses, if ours is known by now.
    pub(super) fn complete(&mut self, direction: Direction, datagram: Datagram) -> Datagram {
        let Datagram { from, to, .. } = datagram;
        let (ours, theirs) = match direction {
            Direction::Sent => (from, to.ip()),
            Direction::Received => (to, from.ip()),
        };
        if !ours.ip().is_unspecified() {
            self.learn(theirs, ours.ip());
            return datagram;
        }
        let known = self.known.get(&theirs).copied().unwrap_or_else(|| ours.ip());
        let ours = SocketAddr::new(known, ours.port());
        match direction {
            Direction::Sent => Datagram { from: ours, ..datagram },
            Direction::Received => Datagram { to: ours, ..datagram },
        }
    }

    fn learn(&mut self, theirs: IpAddr, ours: IpAddr) {
        if self.known.len() < MOST || self.known.contains_key(&theirs) {
            self.known.insert(theirs, ours);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(from: &str, to: &str) -> Datagram {
        Datagram { from: from.parse().unwrap(), to: to.parse().unwrap(), tos: 0, hops: 0 }
    }

    fn sent(sources: &mut Sources, to: &str) -> String {
        sources.complete(Direction::Sent, datagram("0.0.0.0:7", to)).from.to_string()
    }

    #[test]
    fn our_address_is_the_one_that_was_answered() {
        let [peer, ours] = ["192.0.2.2", "192.0.2.1"].map(|text| text.parse().unwrap());
        let mut sources = Sources::new(Some((peer, ours)));
        assert_eq!(sent(&mut sources, "192.0.2.2:9"), "192.0.2.1:7");
        assert_eq!(sent(&mut sources, "198.51.100.1:9"), "0.0.0.0:7");
        let answer = datagram("198.51.100.1:9", "203.0.113.5:7");
        assert_eq!(sources.complete(Direction::Received, answer), answer);
        assert_eq!(sent(&mut sources, "198.51.100.1:10"), "203.0.113.5:7");
    }

    #[test]
    fn strangers_do_not_fill_the_memory() {
        let mut sources = Sources::new(None);
        for n in 0..2 * MOST {
            let from = format!("[2001:db8::{n:x}]:1");
            sources.complete(Direction::Received, datagram(&from, "[2001:db8:1::1]:7"));
        }
        assert_eq!(sources.known.len(), MOST);
    }
}
