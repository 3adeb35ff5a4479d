//! How long the fault lasts that two machines use the peer's key.

use std::net::SocketAddr;
use std::time::Duration;

use vpnd_protocol::endpoint::renumbered;
use vpnd_protocol::time::BootTime;

/// If two machines send data, the protocol finds a new sign of it at least every minute or two. After this time
/// without one, only one machine is left.
const FORGOTTEN: Duration = Duration::from_secs(300);

/// The two addresses at which the peer's key was used last, and when.
#[derive(Debug, Default)]
pub(super) struct Duplicate(Option<([SocketAddr; 2], BootTime)>);

impl Duplicate {
    /// Records a sign of two machines. Returns whether these two addresses are new.
    pub(super) fn note(&mut self, now: BootTime, addresses: [SocketAddr; 2]) -> bool {
        self.forget(now);
        let is_new = self.addresses() != Some(addresses);
        self.0 = Some((addresses, now));
        is_new
    }

    /// Forgets the fault after [`FORGOTTEN`] without a new sign.
    pub(super) fn forget(&mut self, now: BootTime) {
        self.0.take_if(|(_, at)| now.saturating_since(*at) >= FORGOTTEN);
    }

    /// The interface of link-local addresses has changed its index: the addresses are still the same.
    pub(super) fn renumber(&mut self, old: u32, new: u32) {
        if let Some((addresses, _)) = &mut self.0 {
            *addresses = addresses.map(|at| renumbered(at, old, new));
        }
    }

    pub(super) fn addresses(&self) -> Option<[SocketAddr; 2]> {
        self.0.map(|(addresses, _)| addresses)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, SocketAddrV6};

    use super::*;

    #[test]
    fn it_is_news_once_and_goes_when_it_happens_no_more() {
        let at = |seconds| BootTime::default() + Duration::from_secs(seconds);
        let pair = |port: u16| [1, 2].map(|host| SocketAddr::from(([192, 0, 2, host], port)));
        let mut duplicate = Duplicate::default();
        assert!(duplicate.note(at(0), pair(1)));
        assert!(!duplicate.note(at(250), pair(1)));
        assert!(duplicate.note(at(260), pair(2)));
        duplicate.forget(at(559));
        assert_eq!(duplicate.addresses(), Some(pair(2)));
        duplicate.forget(at(560));
        assert_eq!(duplicate.addresses(), None);
        assert!(duplicate.note(at(600), pair(2)));
        assert!(duplicate.note(at(1000), pair(2)), "after a long pause it is news again");
    }

    #[test]
    fn addresses_on_an_interface_with_another_number_are_the_same() {
        let pair = |zone: u32| {
            [1, 2].map(|host| {
                SocketAddrV6::new(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, host), 1, 0, zone)
            })
        };
        let (before, after) = (pair(4).map(SocketAddr::V6), pair(9).map(SocketAddr::V6));
        let mut duplicate = Duplicate::default();
        assert!(duplicate.note(BootTime::default(), before));
        duplicate.renumber(4, 9);
        assert!(!duplicate.note(BootTime::default(), after));
        duplicate.renumber(4, 5);
        assert_eq!(duplicate.addresses(), Some(after));
    }
}
