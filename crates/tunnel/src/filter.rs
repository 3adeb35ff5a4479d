//! Filters the peer's packets by source: by inner IP address, or by hardware address for frames.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The addresses in some networks, except for addresses that no packet of the peer may come from.
#[derive(Clone, Debug)]
pub struct Filter {
    v4: Ranges<u32>,
    v6: Ranges<u128>,
    /// Addresses that are excluded even if a network contains them.
    left_out: Vec<IpNet>,
}

impl Filter {
    /// Covers `networks`; nothing if there are none. Some addresses are always excluded, because no other host
    /// of the internet has them: those of this host, multicast, and IPv4-mapped IPv6. Link-local addresses of
    /// IPv6 are covered only by networks within `fe80::/10`, because they are the source of the messages by
    /// which routers configure hosts.
    pub fn new(networks: &[IpNet]) -> Self {
        let (local, wide): (Vec<IpNet>, Vec<IpNet>) =
            networks.iter().partition(|network| is_link_local(network));
        let wide = Self::of(&wide).without(&[IpNet::V6(LINK_LOCAL)]);
        wide.and(Self::of(&local)).without(NEVER)
    }

    /// Also excludes `networks`.
    #[must_use]
    pub fn without(self, networks: &[IpNet]) -> Self {
        let Self { mut v4, mut v6, mut left_out } = self;
        for network in networks {
            match network {
                IpNet::V4(n) => v4 = v4.without(n.network().into(), n.broadcast().into()),
                IpNet::V6(n) => v6 = v6.without(n.network().into(), n.broadcast().into()),
            }
        }
        left_out.extend(networks);
        Self { v4, v6, left_out }
    }

    /// Whether a wider configuration would have covered `address`. False for an address that no host sends
    /// from, and for one that is valid only on one link: the user needs no report about these.
    pub fn could_allow(&self, address: IpAddr) -> bool {
        let of_a_link = match address {
            IpAddr::V4(address) => address.is_link_local(),
            IpAddr::V6(address) => LINK_LOCAL.contains(&address),
        };
        !of_a_link && !self.left_out.iter().any(|network| network.contains(&address))
    }

    fn of(networks: &[IpNet]) -> Self {
        let mut filter =
            Self { v4: Ranges(Vec::new()), v6: Ranges(Vec::new()), left_out: Vec::new() };
        for network in IpNet::aggregate(&networks.to_vec()) {
            match network {
                IpNet::V4(n) => filter.v4.0.push((n.network().into(), n.broadcast().into())),
                IpNet::V6(n) => filter.v6.0.push((n.network().into(), n.broadcast().into())),
            }
        }
        filter.v4.0.sort_unstable();
        filter.v6.0.sort_unstable();
        filter
    }

    /// The union of two filters, which must have no address in common.
    fn and(mut self, other: Self) -> Self {
        self.v4.0.extend(other.v4.0);
        self.v6.0.extend(other.v6.0);
        self.v4.0.sort_unstable();
        self.v6.0.sort_unstable();
        self
    }

    /// Whether `address` is covered.
    pub fn allows(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.contains(address.into()),
            IpAddr::V6(address) => self.v6.contains(address.into()),
        }
    }
}

/// Whether the network consists of link-local addresses only.
pub fn is_link_local(network: &IpNet) -> bool {
    matches!(network, IpNet::V6(network) if LINK_LOCAL.contains(network))
}

const LINK_LOCAL: Ipv6Net = v6([0xfe80, 0, 0, 0, 0, 0], 10);

/// Addresses that no host sends from: "this network", loopback, multicast, the broadcast address
/// (RFC 1122 §3.2.1.3), their IPv6 counterparts, and v4-mapped addresses (RFC 4291 §2.5, RFC 4942 §2.2).
const NEVER: &[IpNet] = &[
    v4([0, 0, 0, 0], 8),
    v4([127, 0, 0, 0], 8),
    v4([224, 0, 0, 0], 4),
    v4([255, 255, 255, 255], 32),
    IpNet::V6(v6([0, 0, 0, 0, 0, 0], 127)),
    IpNet::V6(v6([0, 0, 0, 0, 0, 0xffff], 96)),
    IpNet::V6(v6([0xff00, 0, 0, 0, 0, 0], 8)),
];

const fn v4([a, b, c, d]: [u8; 4], len: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), len))
}

const fn v6([a, b, c, d, e, f]: [u16; 6], len: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, 0, 0), len)
}

/// The hardware addresses that frames may come from, in ascending order.
#[derive(Clone, Debug)]
pub struct Macs(Vec<[u8; 6]>);

impl Macs {
    /// Allows only these addresses.
    pub fn new(macs: &[[u8; 6]]) -> Self {
        let mut macs = macs.to_vec();
        macs.sort_unstable();
        Self(macs)
    }

    /// Whether this frame's source address is one of them.
    pub fn allow(&self, frame: &[u8]) -> bool {
        let source = frame.get(6..).and_then(|behind| behind.first_chunk::<6>());
        source.is_some_and(|source| self.0.binary_search(source).is_ok())
    }
}

/// First and last address of disjoint networks in ascending order: one binary search finds an address, in one
/// network as in hundreds.
#[derive(Clone, Debug)]
struct Ranges<T>(Vec<(T, T)>);

impl<T: Copy + Ord> Ranges<T> {
    fn contains(&self, address: T) -> bool {
        let after = self.0.partition_point(|(first, _)| *first <= address);
        after > 0 && address <= self.0[after - 1].1
    }
}

impl<T: Address> Ranges<T> {
    /// Removes the addresses from `first` to `last`, but not those below or above.
    fn without(self, first: T, last: T) -> Self {
        let left = self.0.into_iter().flat_map(|(from, to)| {
            let before = first.previous().map(|end| (from, to.min(end)));
            let after = last.next().map(|start| (from.max(start), to));
            [before, after].into_iter().flatten().filter(|(from, to)| from <= to)
        });
        Self(left.collect())
    }
}

/// A number that has neighbours.
trait Address: Copy + Ord {
    fn previous(self) -> Option<Self>;
    fn next(self) -> Option<Self>;
}

macro_rules! address {
    ($($number:ty)*) => {$(
        impl Address for $number {
            fn previous(self) -> Option<Self> {
                self.checked_sub(1)
            }

            fn next(self) -> Option<Self> {
                self.checked_add(1)
            }
        }
    )*};
}

address!(u32 u128);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filter(networks: &[&str]) -> Filter {
        Filter::new(&networks.iter().map(|n| n.parse().unwrap()).collect::<Vec<_>>())
    }

    fn allows(networks: &[&str], address: &str) -> bool {
        filter(networks).allows(address.parse().unwrap())
    }

    #[test]
    fn no_network_allows_nothing() {
        assert!(!allows(&[], "192.0.2.1"));
        assert!(!allows(&[], "2001:db8::1"));
    }

    #[test]
    fn a_default_route_allows_its_family_only() {
        assert!(allows(&["0.0.0.0/0"], "223.255.255.255"));
        assert!(!allows(&["0.0.0.0/0"], "2001:db8::1"));
        assert!(allows(&["::/0"], "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"));
        assert!(!allows(&["::/0"], "192.0.2.1"));
    }

    #[test]
    fn what_is_no_host_elsewhere_is_never_allowed() {
        for never in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.255.255.255",
            "224.0.0.5",
            "239.255.255.255",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:192.0.2.1",
            "ff02::1",
        ] {
            let itself = IpNet::from(never.parse::<IpAddr>().unwrap()).to_string();
            assert!(!allows(&["0.0.0.0/0", "::/0", &itself], never), "{never}");
        }
        for near in ["1.0.0.0", "126.255.255.255", "128.0.0.0", "::2", "::fffe:ffff:ffff"] {
            assert!(allows(&["0.0.0.0/0", "::/0"], near), "{near}");
        }
    }

    #[test]
    fn wider_networks_would_allow_hosts_and_nothing_else() {
        let own = ["198.51.100.1/32", "198.51.100.0/32"].map(|n| n.parse().unwrap());
        let filter = filter(&["198.51.100.0/24"]).without(&own);
        let could = |address: &str| filter.could_allow(address.parse().unwrap());
        for host in ["198.51.100.2", "192.168.30.7", "fd30::7"] {
            assert!(could(host), "{host}");
        }
        for none in
            ["198.51.100.1", "198.51.100.0", "0.0.0.0", "::", "ff02::16", "fe80::2", "169.254.7.7"]
        {
            assert!(!could(none), "{none}");
        }
    }

    #[test]
    fn link_local_addresses_are_allowed_by_name_only() {
        for wide in ["::/0", "fe00::/8", "fe80::/9"] {
            assert!(!allows(&[wide], "fe80::2"), "{wide}");
            assert!(!allows(&[wide], "febf::2"), "{wide}");
            assert!(allows(&[wide, "fe80::/64"], "fe80::2"), "{wide}");
            assert!(!allows(&[wide, "fe80::/64"], "fe80:0:0:1::2"), "{wide}");
            assert!(allows(&[wide, "fe80::2/128"], "fe80::2"), "{wide}");
        }
        assert!(allows(&["fe80::/10"], "febf::2"));
        assert!(allows(&["fe80::/9"], "fec0::2"));
        assert!(allows(&["::/0", "fe80::/10"], "2001:db8::1"));
    }

    #[test]
    fn what_is_left_out_leaves_its_neighbours() {
        let networks = ["198.51.100.0/29", "2001:db8::/125"];
        let out = ["198.51.100.0/32", "198.51.100.3/32", "198.51.100.6/31", "2001:db8::/127"];
        let out = out.map(|n| n.parse().unwrap());
        let filter = filter(&networks).without(&out);
        let allowed: Vec<u8> =
            (0..8).filter(|&n| filter.allows(Ipv4Addr::new(198, 51, 100, n).into())).collect();
        assert_eq!(allowed, [1, 2, 4, 5]);
        assert!(!filter.allows("2001:db8::1".parse().unwrap()));
        assert!(filter.allows("2001:db8::2".parse().unwrap()));
        let all = ["0.0.0.0/0", "::/0"].map(|n| n.parse().unwrap());
        assert!(!filter.without(&all).allows("198.51.100.1".parse().unwrap()));
    }

    #[test]
    fn a_network_ends_at_its_edges() {
        let networks = ["198.51.100.64/26", "2001:db8:1::/48"];
        assert!(!allows(&networks, "198.51.100.63"));
        assert!(allows(&networks, "198.51.100.64"));
        assert!(allows(&networks, "198.51.100.127"));
        assert!(!allows(&networks, "198.51.100.128"));
        assert!(!allows(&networks, "2001:db8:0:ffff::1"));
        assert!(allows(&networks, "2001:db8:1:ffff::1"));
        assert!(!allows(&networks, "2001:db8:2::"));
    }

    #[test]
    fn host_bits_of_a_network_do_not_matter() {
        assert!(allows(&["192.0.2.77/24"], "192.0.2.1"));
    }

    #[test]
    fn an_ipv4_mapped_address_is_an_ipv6_address() {
        assert!(!allows(&["192.0.2.0/24"], "::ffff:192.0.2.1"));
    }

    #[test]
    fn a_frame_comes_from_its_second_address() {
        let macs = Macs::new(&[[2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 7]]);
        let frame =
            |source: u8| [&[2, 0, 0, 0, 0, 8][..], &[2, 0, 0, 0, 0, source], &[8, 0]].concat();
        assert!(macs.allow(&frame(7)) && macs.allow(&frame(9)));
        assert!(!macs.allow(&frame(8)));
        assert!(!macs.allow(&frame(7)[..11]), "cut short");
        assert!(!Macs::new(&[]).allow(&frame(7)));
    }

    fn network() -> impl Strategy<Value = IpNet> {
        // Only few different addresses, so that networks contain each other, touch and repeat.
        let v4 = (0u32..1 << 12, 0u8..=32)
            .prop_map(|(a, p)| IpNet::new(IpAddr::V4((a << 20 | a).into()), p).unwrap());
        let v6 = (0u128..1 << 12, 0u8..=128)
            .prop_map(|(a, p)| IpNet::new(IpAddr::V6((a << 116 | a).into()), p).unwrap());
        prop_oneof![v4, v6]
    }

    proptest! {
        #[test]
        fn agrees_with_asking_every_network(
            networks in prop::collection::vec(network(), 0..20),
            addresses in prop::collection::vec(network().prop_map(|n| n.addr()), 0..20),
        ) {
            let filter = Filter::new(&networks);
            let edges = networks.iter().flat_map(|n| [n.network(), n.broadcast()]);
            for address in addresses.into_iter().chain(edges) {
                let covers = |n: &&IpNet| n.contains(&address);
                let local = is_link_local(&IpNet::from(address));
                let allowed = networks.iter().filter(covers).any(|n| !local || is_link_local(n));
                let expected = allowed && !NEVER.iter().any(|n| n.contains(&address));
                prop_assert_eq!(filter.allows(address), expected, "{}", address);
            }
        }

        #[test]
        fn leaving_out_agrees_with_asking_every_network(
            networks in prop::collection::vec(network(), 0..20),
            out in prop::collection::vec(network(), 0..20),
        ) {
            let (all, filter) = (Filter::new(&networks), Filter::new(&networks).without(&out));
            for address in networks.iter().chain(&out).flat_map(|n| [n.network(), n.broadcast()]) {
                let expected = all.allows(address) && !out.iter().any(|n| n.contains(&address));
                prop_assert_eq!(filter.allows(address), expected, "{}", address);
            }
        }
    }
}
