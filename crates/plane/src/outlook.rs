//! What is known of the routes to the peer's addresses.

use std::net::{IpAddr, SocketAddr};

use vpnd_device::Found;

use crate::effect::Notice;

/// An address of the peer whose route leads into the tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loop {
    /// The peer's address.
    pub to: SocketAddr,
    /// Its route.
    pub route: Found,
}

/// An address of the peer to which the kernel would send from an address of the tunnel itself. The kernel does
/// this if the uplink has no address: it then takes one of any device. The peer's answers to that address would
/// be routed into the tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InnerSource {
    /// The peer's address.
    pub to: SocketAddr,
    /// The address of the tunnel.
    pub source: IpAddr,
    /// The device without an address.
    pub uplink: String,
}

/// The routes to the peer's addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outlook {
    /// The routes that lead into the tunnel.
    pub loops: Vec<Loop>,
    /// Whether any route leads to a router.
    pub is_routed: bool,
    /// The route to the peer's current address.
    pub current: Option<Found>,
    /// The first address of the peer to which the kernel would send from an address of the tunnel.
    pub inner_source: Option<InnerSource>,
}

impl Outlook {
    /// Whether the route to this address leads into the tunnel.
    pub fn leads_back(&self, to: SocketAddr) -> bool {
        self.loops.iter().any(|one| one.to == to)
    }

    /// The changes since `before` that are to be reported.
    pub(crate) fn news(&self, before: &Self) -> Vec<Notice> {
        let new = self.loops.iter().filter(|one| !before.loops.contains(one)).cloned();
        let over = before.loops.iter().map(|one| one.to).filter(|to| !self.leads_back(*to));
        let (new, over) = (new.collect::<Vec<_>>(), over.collect::<Vec<_>>());
        let source = match (&before.inner_source, &self.inner_source) {
            (before, Some(inner)) if before.as_ref() != Some(inner) => {
                Some(Notice::InnerSource(inner.clone()))
            }
            (Some(_), None) => Some(Notice::OuterSource),
            _ => None,
        };
        let loops = (!new.is_empty()).then_some(Notice::Loops(new));
        let over = (!over.is_empty()).then_some(Notice::LoopsOver(over));
        [loops, over, source].into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looped(to: SocketAddr) -> Outlook {
        let route = Found {
            index: 7,
            device: "tun0".into(),
            to: None,
            is_routed: false,
            table: None,
            source: None,
        };
        Outlook { loops: vec![Loop { to, route }], ..Outlook::default() }
    }

    #[test]
    fn a_change_of_routes_is_news_once() {
        let [first, second] = [1, 2].map(|host| SocketAddr::from(([192, 0, 2, host], 1)));
        let (clear, to_first, to_second) = (Outlook::default(), looped(first), looped(second));
        assert_eq!(to_first.news(&clear), [Notice::Loops(to_first.loops.clone())]);
        assert_eq!(to_first.news(&to_first), []);
        let both = [Notice::Loops(to_second.loops.clone()), Notice::LoopsOver(vec![first])];
        assert_eq!(to_second.news(&to_first), both);
        assert_eq!(clear.news(&to_second), [Notice::LoopsOver(vec![second])]);
    }

    #[test]
    fn so_is_a_source_inside_the_tunnel() {
        let inner = |uplink: &str| {
            let to = "192.0.2.1:1".parse().unwrap();
            let source = "10.0.0.1".parse().unwrap();
            InnerSource { to, source, uplink: uplink.into() }
        };
        let from = |uplink| Outlook { inner_source: Some(inner(uplink)), ..Outlook::default() };
        let (clear, one, other) = (Outlook::default(), from("eth0"), from("eth1"));
        assert_eq!(one.news(&clear), [Notice::InnerSource(inner("eth0"))]);
        assert_eq!(one.news(&one), []);
        assert_eq!(other.news(&one), [Notice::InnerSource(inner("eth1"))]);
        assert_eq!(clear.news(&other), [Notice::OuterSource]);
    }
}
