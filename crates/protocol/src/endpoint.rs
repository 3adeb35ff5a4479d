//! The peer's addresses: the configured ones, and the one it was last heard from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// The new addresses to which the peer is followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Roam {
    /// Any address that an authentic datagram with the newest counter came from.
    #[default]
    Any,
    /// Other ports of the same host, for a NAT that changes its mapping.
    SameIp,
    /// None; only the configured endpoints are used.
    Off,
}

impl Roam {
    /// Whether the peer may move from `current` to `heard`.
    pub fn permits(self, current: SocketAddr, heard: SocketAddr) -> bool {
        match self {
            Self::Any => true,
            Self::SameIp => current.ip() == heard.ip(),
            Self::Off => false,
        }
    }
}

/// Our source addresses until the peer has sent to another one: at most one of each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// For IPv4 destinations.
    pub v4: Option<Ipv4Addr>,
    /// For IPv6 destinations.
    pub v6: Option<Ipv6Addr>,
}

impl Sources {
    /// The source address for `to`, of the same family; `None` lets the kernel choose.
    pub fn towards(self, to: SocketAddr) -> Option<IpAddr> {
        if to.is_ipv4() { self.v4.map(IpAddr::from) } else { self.v6.map(IpAddr::from) }
    }
}

/// Replaces the interface index `old` by `new` in a link-local address.
pub fn renumbered(address: SocketAddr, old: u32, new: u32) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() && v6.scope_id() == old => {
            SocketAddrV6::new(*v6.ip(), v6.port(), v6.flowinfo(), new).into()
        }
        other => other,
    }
}

/// The addresses that handshakes are sent to, in order: first the peer's last address, then the configured
/// ones in their order.
#[derive(Debug, Default)]
pub(crate) struct Candidates {
    configured: Vec<SocketAddr>,
    /// An address where the peer seemed to be, but did not answer; it is tried last.
    seemed: Option<SocketAddr>,
    cursor: usize,
}

impl Candidates {
    /// Replaces the configured addresses with the result of name resolution; returns whether they differ from
    /// before.
    pub(crate) fn configure(&mut self, addresses: Vec<SocketAddr>) -> bool {
        let changed = self.configured != addresses;
        if changed {
            self.configured = addresses;
            self.cursor = 0;
        }
        changed
    }

    /// The next attempt begins with the first configured address, and not with the peer's last one.
    pub(crate) const fn begin_with_configured(&mut self) {
        self.cursor = 1;
    }

    /// The configured addresses, in their order.
    pub(crate) fn configured(&self) -> impl Iterator<Item = SocketAddr> {
        self.configured.iter().copied()
    }

    /// The address for the next try, given where the peer last was.
    pub(crate) fn target(&self, last: Option<SocketAddr>) -> Option<SocketAddr> {
        let place = self.cursor.checked_rem(self.count(last))?;
        self.all(last).nth(place)
    }

    /// How many addresses there are.
    pub(crate) fn count(&self, last: Option<SocketAddr>) -> usize {
        self.all(last).count()
    }

    /// The next address of this try, given the peer's last address and those that the try was sent to already.
    pub(crate) fn untried(
        &self,
        last: Option<SocketAddr>,
        asked: &[SocketAddr],
    ) -> Option<SocketAddr> {
        let count = self.count(last);
        let from_cursor = self.all(last).cycle().skip(self.cursor.checked_rem(count)?).take(count);
        { from_cursor }.find(|address| !asked.contains(address))
    }

    /// The position of an address among the configured ones, which is its order of preference.
    pub(crate) fn rank(&self, address: SocketAddr) -> Option<usize> {
        self.configured.iter().position(|one| *one == address)
    }

    fn all(&self, last: Option<SocketAddr>) -> impl Iterator<Item = SocketAddr> + Clone {
        let seemed = self.seemed.filter(|at| !self.configured.contains(at));
        let others = self.configured.iter().copied().chain(seemed);
        let others = others.filter(move |&a| Some(a) != last);
        last.into_iter().chain(others)
    }

    /// Whether the peer may be at `heard` if it was never heard before.
    pub(crate) fn permit(&self, roam: Roam, heard: SocketAddr) -> bool {
        let near =
            |&configured: &SocketAddr| configured == heard || roam.permits(configured, heard);
        // Without configured addresses any is permitted, whether or not some will follow. Only `Off` requires
        // one.
        (self.configured.is_empty() && roam != Roam::Off) || self.configured.iter().any(near)
    }

    /// Applies `change` to each configured address.
    pub(crate) fn change(&mut self, change: impl Fn(SocketAddr) -> SocketAddr) {
        self.configured.iter_mut().for_each(|address| *address = change(*address));
    }

    /// The peer did not answer at this address, but may do so later.
    pub(crate) fn remember(&mut self, seemed: SocketAddr) {
        self.seemed = Some(seemed);
    }

    /// Whether the configuration names this address.
    pub(crate) fn name(&self, address: SocketAddr) -> bool {
        self.configured.contains(&address)
    }

    /// An attempt was unanswered: the next one uses the next address.
    pub(crate) fn advance(&mut self) {
        self.cursor = self.cursor.wrapping_add(1);
    }

    /// An attempt was answered: attempts begin with the peer's last address again.
    pub(crate) fn settle(&mut self) {
        (self.cursor, self.seemed) = (0, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    #[test]
    fn tries_go_round_all_addresses_each_once() {
        let mut candidates = Candidates::default();
        assert_eq!(candidates.target(None), None);
        assert!(candidates.configure(vec![at(1), at(2)]));
        assert!(!candidates.configure(vec![at(1), at(2)]));
        let mut tries = Vec::new();
        for _ in 0..4 {
            tries.push(candidates.target(Some(at(2))));
            candidates.advance();
        }
        assert_eq!(tries, [Some(at(2)), Some(at(1)), Some(at(2)), Some(at(1))]);
        candidates.settle();
        assert_eq!(candidates.target(Some(at(3))), Some(at(3)));
    }

    #[test]
    fn one_try_goes_to_each_address_once() {
        let mut candidates = Candidates::default();
        candidates.configure(vec![at(1), at(2), at(3)]);
        candidates.advance();
        let mut asked = Vec::new();
        while let Some(next) = candidates.untried(Some(at(2)), &asked) {
            asked.push(next);
        }
        assert_eq!(asked, [at(1), at(3), at(2)]);
        assert_eq!((candidates.rank(at(2)), candidates.rank(at(9))), (Some(1), None));
        assert_eq!(Candidates::default().untried(None, &[]), None);
    }

    #[test]
    fn a_source_is_of_the_family_it_sends_to() {
        let v4 = Sources { v4: Some([192, 0, 2, 9].into()), v6: None };
        assert_eq!(v4.towards(at(1)), Some([192, 0, 2, 9].into()));
        assert_eq!(v4.towards(SocketAddr::from(([0x2001; 8], 1))), None);
        assert_eq!(Sources::default().towards(at(1)), None);
    }

    #[test]
    fn roaming_follows_its_policy() {
        let elsewhere = SocketAddr::from(([198, 51, 100, 1], 1));
        for (roam, same_host, other_host) in
            [(Roam::Any, true, true), (Roam::SameIp, true, false), (Roam::Off, false, false)]
        {
            assert_eq!(roam.permits(at(1), at(2)), same_host);
            assert_eq!(roam.permits(at(1), elsewhere), other_host);
        }
    }
}
