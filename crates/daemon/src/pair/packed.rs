//! The content of a code, packed into few bytes: each of them is two letters to type.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use zeroize::Zeroizing;

use super::networks::inner_network;
use super::plan::{Link, Plan, Routed, Site};
use crate::config::Protocol;

/// Packs what is put, one value after the other.
pub(super) struct Packer(Zeroizing<Vec<u8>>);

impl Packer {
    /// Nothing yet. The capacity is never exceeded, so that secrets leave no copies behind.
    pub(super) fn new() -> Self {
        Self(Zeroizing::new(Vec::with_capacity(1 << 14)))
    }

    /// What was put.
    pub(super) fn done(self) -> Zeroizing<Vec<u8>> {
        self.0
    }

    /// Bytes of a length that the reader knows.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    /// A text without a zero byte, which ends it.
    pub(super) fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
        self.bytes(&[0]);
    }

    /// A plan.
    pub(super) fn plan(&mut self, plan: &Plan) {
        for Site { name, endpoint } in plan.sites() {
            self.text(name.as_ref());
            self.text(&endpoint.as_ref().map(ToString::to_string).unwrap_or_default());
        }
        match plan.link() {
            Link::Bridged(bridges) => {
                self.count(BRIDGED);
                bridges.iter().for_each(|bridge| self.text(&bridge.to_string()));
            }
            Link::Routed(Routed { behind, inner, protocol }) => {
                self.count(match protocol {
                    Protocol::Vpnd => ROUTED,
                    Protocol::WireGuard => ROUTED_WIREGUARD,
                });
                behind.iter().for_each(|nets| self.networks(nets));
                self.networks(&inner.iter().map(|net| net.net()).collect::<Vec<_>>());
            }
        }
    }

    fn networks(&mut self, nets: &[IpNet]) {
        self.count(nets.len());
        nets.iter().for_each(|net| self.network(net));
    }

    /// A byte with family and prefix length, and as many bytes of the address as the prefix covers.
    fn network(&mut self, net: &IpNet) {
        let used = usize::from(net.prefix_len().div_ceil(8));
        match net.addr() {
            IpAddr::V4(v4) => {
                self.bytes(&[net.prefix_len()]);
                self.bytes(&v4.octets()[..used]);
            }
            IpAddr::V6(v6) => {
                self.bytes(&[V6 + net.prefix_len()]);
                self.bytes(&v6.octets()[..used]);
            }
        }
    }

    /// A number below 256, as all numbers of a plan are.
    fn count(&mut self, count: usize) {
        self.0.push(u8::try_from(count).unwrap_or(u8::MAX));
    }
}

const ROUTED: usize = 0;
const ROUTED_WIREGUARD: usize = 1;
const BRIDGED: usize = 2;
/// What is added to the prefix length of an IPv6 network.
const V6: u8 = 33;

/// Reads what was packed. Every method returns `None` if that is not what the bytes are.
pub(super) struct Unpacker<'a>(&'a [u8]);

impl<'a> Unpacker<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether everything was read.
    pub(super) fn is_done(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        self.0.split_off(..N)?.try_into().ok()
    }

    pub(super) fn parsed<T: FromStr>(&mut self) -> Option<T> {
        self.text()?.parse().ok()
    }

    pub(super) fn plan(&mut self) -> Option<Plan> {
        let sites = [self.site()?, self.site()?];
        let link = match self.count()? {
            ROUTED => self.routed(Protocol::Vpnd)?,
            ROUTED_WIREGUARD => self.routed(Protocol::WireGuard)?,
            BRIDGED => Link::Bridged([self.parsed()?, self.parsed()?]),
            _ => return None,
        };
        Plan::new(sites, link).ok()
    }

    fn site(&mut self) -> Option<Site> {
        let name = self.parsed()?;
        let endpoint = match self.text()? {
            "" => None,
            text => Some(text.parse().ok()?),
        };
        Some(Site { name, endpoint })
    }

    fn routed(&mut self, protocol: Protocol) -> Option<Link> {
        let behind = [self.networks()?, self.networks()?];
        let inner = self.networks()?;
        let inner = inner.iter().map(|net| inner_network(&net.to_string()).ok());
        Some(Link::Routed(Routed { behind, inner: inner.collect::<Option<_>>()?, protocol }))
    }

    fn networks(&mut self) -> Option<Vec<IpNet>> {
        (0..self.count()?).map(|_| self.network()).collect()
    }

    fn network(&mut self) -> Option<IpNet> {
        let [first] = *self.array()?;
        let (prefix, is_v6) = match first.checked_sub(V6) {
            Some(prefix) => (prefix, true),
            None => (first, false),
        };
        let address = self.0.split_off(..usize::from(prefix.div_ceil(8)))?;
        let mut octets = [0; 16];
        octets.get_mut(..address.len())?.copy_from_slice(address);
        let [a, b, c, d, ..] = octets;
        let address: IpAddr =
            if is_v6 { Ipv6Addr::from(octets).into() } else { Ipv4Addr::from([a, b, c, d]).into() };
        let net = IpNet::new(address, prefix).ok()?;
        (net == net.trunc()).then_some(net)
    }

    fn count(&mut self) -> Option<usize> {
        self.array().map(|[count]| usize::from(*count))
    }

    fn text(&mut self) -> Option<&'a str> {
        let len = self.0.iter().position(|byte| *byte == 0)?;
        let text = self.0.split_off(..len)?;
        self.0.split_off_first()?;
        std::str::from_utf8(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{both_families, bridged, routed};
    use super::*;

    fn packed(plan: &Plan) -> Zeroizing<Vec<u8>> {
        let mut packer = Packer::new();
        packer.plan(plan);
        packer.done()
    }

    fn all() -> Vec<Plan> {
        let behind: [&[&str]; 2] = [&["0.0.0.0/0", "::/0"], &["10.1.2.128/25", "10.9.8.7/32"]];
        let everything = routed(["a=192.0.2.1:1", "b"], behind, &["10.99.0.0/30"]).unwrap();
        vec![both_families(), bridged(), everything]
    }

    #[test]
    fn plans_are_read_as_they_were_packed() {
        for plan in all() {
            let bytes = packed(&plan);
            let mut unpacker = Unpacker::new(&bytes);
            assert_eq!(unpacker.plan().as_ref(), Some(&plan));
            assert!(unpacker.is_done());
            for len in 0..bytes.len() {
                assert!(Unpacker::new(&bytes[..len]).plan().is_none(), "{len}");
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_read_from_any_bytes_is_a_plan(which in 0..3_usize, at: prop::sample::Index, byte: u8) {
            let mut bytes = packed(&all()[which]);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            // It has other names or networks, or is none at all: there is no panic.
            if let Some(plan) = Unpacker::new(&bytes).plan() {
                let again = packed(&plan);
                prop_assert_eq!(Unpacker::new(&again).plan(), Some(plan));
            }
        }
    }
}
