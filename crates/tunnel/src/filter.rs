//! Which sources the peer's packets may have: inner IP addresses, or the hardware addresses of frames.

use std::net::IpAddr;

use ipnet::IpNet;

/// The set of addresses that some networks cover.
#[derive(Clone, Debug)]
pub struct Filter {
    v4: Ranges<u32>,
    v6: Ranges<u128>,
}

impl Filter {
    /// Covers what `networks` cover; nothing if there are none.
    pub fn new(networks: &[IpNet]) -> Self {
        let mut filter = Self { v4: Ranges(Vec::new()), v6: Ranges(Vec::new()) };
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

    /// Whether `address` is covered.
    pub fn allows(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.contains(address.into()),
            IpAddr::V6(address) => self.v6.contains(address.into()),
        }
    }
}

/// The hardware addresses that frames may come from, in ascending order.
#[derive(Clone, Debug)]
pub struct Macs(Vec<[u8; 6]>);

impl Macs {
    /// These alone.
    pub fn new(macs: &[[u8; 6]]) -> Self {
        let mut macs = macs.to_vec();
        macs.sort_unstable();
        Self(macs)
    }

    /// Whether this frame comes from one of them.
    pub fn allow(&self, frame: &[u8]) -> bool {
        let source = frame.get(6..).and_then(|behind| behind.first_chunk::<6>());
        source.is_some_and(|source| self.0.binary_search(source).is_ok())
    }
}

/// First and last address of disjoint networks in ascending order, so that one binary search
/// decides, for one network as for hundreds.
#[derive(Clone, Debug)]
struct Ranges<T>(Vec<(T, T)>);

impl<T: Copy + Ord> Ranges<T> {
    fn contains(&self, address: T) -> bool {
        let after = self.0.partition_point(|(first, _)| *first <= address);
        after > 0 && address <= self.0[after - 1].1
    }
}

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
        assert!(allows(&["0.0.0.0/0"], "255.255.255.255"));
        assert!(!allows(&["0.0.0.0/0"], "2001:db8::1"));
        assert!(allows(&["::/0"], "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"));
        assert!(!allows(&["::/0"], "0.0.0.0"));
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
        // Few distinct addresses, so that networks nest, touch and repeat.
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
                let expected = networks.iter().any(|n| n.contains(&address));
                prop_assert_eq!(filter.allows(address), expected, "{}", address);
            }
        }
    }
}
