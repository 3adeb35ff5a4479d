//! Handles tunnels inside the tunnel: recognises WireGuard datagrams among the packets from the device.
//!
//! This tunnel's own datagrams never belong there. If the route to the peer leads into the device, each
//! datagram would return as a packet, be sealed and sent, and return again. Such datagrams are dropped. They
//! are recognised by the session or handshake that they name
//! ([`Table::sent`](vpnd_protocol::table::Table::sent)). Addresses alone are not enough: another tunnel on a
//! machine behind us may have our peer's address and our port.
//!
//! Datagrams of other tunnels may pass. But the routes of two tunnels can lead into each other, and neither
//! tunnel recognises what the other has sealed. So a datagram that carries another tunnel's datagram has a
//! lower hop limit than the inner datagram: after a few rounds it reaches zero, and the packet is dropped.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU8;

use vpnd_protocol::drop_reason::DropReason;
use vpnd_tun::Mode;
use vpnd_tun::wire::{IPV4_HEADER, IPV6_HEADER, UDP, UDP_HEADER, word16};

use crate::ecn::Ecn;
use crate::headers::{DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, ROUTING};
use crate::outer::Outer;

/// Checks the packets from one queue.
#[derive(Debug, Default)]
pub(crate) struct Watcher {
    /// The recently seen fragmented datagrams, with the decision about their first fragment.
    lately: [Option<(Fragment, Treatment)>; LATELY],
    next: usize,
}

/// The number of fragmented datagrams that are remembered. The kernel sends all fragments of one datagram
/// before those of the next.
const LATELY: usize = 4;

/// What to do with a tunnel's datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Treatment {
    /// The datagram is this tunnel's: drop it.
    Drop,
    /// The datagram is another tunnel's: carry it.
    Carry,
}

impl Watcher {
    /// Checks a packet, super-packet or frame, and returns the fields of the outer header. `is_ours`
    /// recognises the datagrams of this tunnel; it is called only for datagrams in WireGuard's format.
    ///
    /// # Errors
    /// The reason why it is dropped.
    pub(crate) fn admit(
        &mut self,
        mode: Mode,
        packet: &[u8],
        is_ours: impl Fn(&Datagram<'_>) -> bool,
    ) -> Result<Outer, DropReason> {
        let Some(ip) = mode.ip_start(packet).and_then(|start| packet.get(start..)) else {
            return Ok(Outer::default());
        };
        let hops = match Nested::read(ip) {
            None => None,
            Some(nested) => self.treat(&nested, is_ours)?,
        };
        Ok(Outer { ecn: Ecn::of_packet(ip), hops })
    }

    /// The hop limit of the datagram that is to carry `nested`.
    fn treat(
        &mut self,
        nested: &Nested<'_>,
        is_ours: impl Fn(&Datagram<'_>) -> bool,
    ) -> Result<Option<NonZeroU8>, DropReason> {
        let treatment = match nested.part {
            Part::Head(datagram) if is_ours(&datagram) => Some(Treatment::Drop),
            Part::Head(_) => Some(Treatment::Carry),
            Part::Rest => nested.fragment.and_then(|fragment| self.recall(fragment)),
        };
        if let (Part::Head(_), Some(fragment)) = (nested.part, nested.fragment) {
            self.lately[self.next] = treatment.map(|treatment| (fragment, treatment));
            self.next = (self.next + 1) % LATELY;
        }
        match treatment {
            Some(Treatment::Drop) => Err(DropReason::OwnDatagram),
            Some(Treatment::Carry) => nested.carried().map(Some).ok_or(DropReason::NestedTooDeep),
            // A fragment of other traffic, such as a long answer of a name server.
            None => Ok(None),
        }
    }

    fn recall(&self, fragment: Fragment) -> Option<Treatment> {
        let mut known = self.lately.iter().flatten();
        known.find(|(one, _)| *one == fragment).map(|(_, treatment)| *treatment)
    }
}

/// A tunnel's datagram in an IP packet, or a fragment that may belong to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Nested<'a> {
    /// The packet's TTL or hop limit.
    hops: u8,
    pub(crate) part: Part<'a>,
    /// The fragmented datagram that this fragment belongs to, if this is a fragment.
    pub(crate) fragment: Option<Fragment>,
}

/// The part of the datagram that the packet contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    /// Its ports and its first bytes.
    Head(Datagram<'a>),
    /// Neither, because this is a later fragment.
    Rest,
}

/// A datagram's source, destination and first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Datagram<'a> {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) payload: &'a [u8],
}

/// Identifies a fragmented datagram: addresses and identification, which all its fragments share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fragment {
    from: IpAddr,
    to: IpAddr,
    id: u32,
}

/// The types of WireGuard messages: a tunnel's datagram begins with its type and three zero bytes.
const MESSAGES: std::ops::RangeInclusive<u32> = 1..=4;
/// The length of a message's beginning, including its index.
const HEAD: usize = 8;
/// The hop limit decreases by this each time one tunnel carries another.
const STEP: u8 = 8;
/// The highest inner hop limit that is used: the usual one of a new packet.
const MOST: u8 = 64;

/// The extension headers, other than the fragment header, that a host may put before UDP.
const EXTENSIONS: [u8; 3] = [HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS];
/// The maximum number of extension headers that are read.
const MOST_EXTENSIONS: usize = 4;

impl<'a> Nested<'a> {
    /// Parses the beginning of an IP packet or super-packet; `None` if it contains no datagram of a tunnel.
    pub(crate) fn read(ip: &'a [u8]) -> Option<Self> {
        match ip.first()? >> 4 {
            4 => Self::read_v4(ip),
            6 => Self::read_v6(ip),
            _ => None,
        }
    }

    /// Whether the packet shows that this is a tunnel's datagram, and which tunnel's.
    pub(crate) const fn is_head(&self) -> bool {
        matches!(self.part, Part::Head(_))
    }

    /// The hop limit of a datagram that carries this one; `None` if it would be zero.
    pub(crate) fn carried(&self) -> Option<NonZeroU8> {
        NonZeroU8::new(self.hops.min(MOST).saturating_sub(STEP))
    }

    fn read_v4(ip: &'a [u8]) -> Option<Self> {
        let header: &[u8; IPV4_HEADER] = ip.first_chunk()?;
        if header[9] != UDP {
            return None;
        }
        let addresses = || {
            let address = |at: usize| Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
            [address(12).into(), address(16).into()]
        };
        let (id, place) = (word16(header, 4).into(), word16(header, 6));
        let udp = ip.get(usize::from(header[0] & 0xf) * 4..)?;
        Self::assemble(header[8], Place::of(place & 0x3fff, place & 0x1fff, id), udp, addresses)
    }

    fn read_v6(ip: &'a [u8]) -> Option<Self> {
        let header: &[u8; IPV6_HEADER] = ip.first_chunk()?;
        let (mut next, mut rest, mut place) = (header[6], &ip[IPV6_HEADER..], Place::Whole);
        for _ in 0..MOST_EXTENSIONS {
            if next == UDP || matches!(place, Place::Rest(_)) {
                break;
            }
            let extension: &[u8; 8] = rest.first_chunk()?;
            let len = match next {
                FRAGMENT => {
                    let [_, _, high, low, id @ ..] = *extension;
                    let at = u16::from_be_bytes([high, low]);
                    place = Place::of(at & 0xfff9, at & 0xfff8, u32::from_be_bytes(id));
                    extension.len()
                }
                _ if EXTENSIONS.contains(&next) => (usize::from(extension[1]) + 1) * 8,
                _ => return None,
            };
            (next, rest) = (extension[0], rest.get(len..)?);
        }
        if next != UDP {
            return None;
        }
        let addresses = || {
            let address = |at: usize| {
                let bytes = ip[at..].first_chunk::<16>().copied().unwrap_or_default();
                IpAddr::from(Ipv6Addr::from(bytes))
            };
            [address(8), address(24)]
        };
        Self::assemble(header[7], place, rest, addresses)
    }

    /// Reads the addresses only if the packet may contain a tunnel's datagram, which is rare.
    fn assemble(
        hops: u8,
        place: Place,
        udp: &'a [u8],
        addresses: impl Fn() -> [IpAddr; 2],
    ) -> Option<Self> {
        let fragment = |id| {
            let [from, to] = addresses();
            Fragment { from, to, id }
        };
        let (part, id) = match place {
            Place::Rest(id) => (Part::Rest, Some(id)),
            Place::First(id) => (Part::Head(Datagram::read(udp, &addresses)?), Some(id)),
            Place::Whole => (Part::Head(Datagram::read(udp, &addresses)?), None),
        };
        Some(Self { hops, part, fragment: id.map(fragment) })
    }
}

impl<'a> Datagram<'a> {
    fn read(udp: &'a [u8], addresses: &impl Fn() -> [IpAddr; 2]) -> Option<Self> {
        let (header, payload) = udp.split_first_chunk::<UDP_HEADER>()?;
        let kind = u32::from_le_bytes(*payload.first_chunk()?);
        if !MESSAGES.contains(&kind) || payload.len() < HEAD {
            return None;
        }
        let [from, to] = addresses();
        let [from, to] = [(from, word16(header, 0)).into(), (to, word16(header, 2)).into()];
        Some(Self { from, to, payload })
    }
}

/// The part of a datagram that a packet contains, and the identification that the datagram's fragments share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Whole,
    First(u32),
    Rest(u32),
}

impl Place {
    /// Decodes the offset together with the "more fragments" flag, the offset alone, and the identification.
    const fn of(place: u16, offset: u16, id: u32) -> Self {
        match (place, offset) {
            (0, _) => Self::Whole,
            (_, 0) => Self::First(id),
            _ => Self::Rest(id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::tables;
    use proptest::prelude::*;
    use vpnd_protocol::table::Table;

    const PORT: u16 = 51820;
    const HERE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
    const PEER: [&str; 2] = ["192.0.2.2", "2001:db8::2"];

    /// Which fragment a packet is.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Cut {
        Whole,
        First,
        Later,
    }

    /// A packet that is to be built.
    #[derive(Clone, Debug)]
    struct Wanted {
        v6: bool,
        from: SocketAddr,
        to: SocketAddr,
        hops: u8,
        cut: Cut,
        id: u16,
        /// An IPv6 extension header, in units of eight bytes.
        extensions: Vec<u8>,
        payload: Vec<u8>,
    }

    impl Wanted {
        fn new(v6: bool, payload: Vec<u8>) -> Self {
            let at = |addresses: [&str; 2]| {
                SocketAddr::new(addresses[usize::from(v6)].parse().unwrap(), PORT)
            };
            let (from, to, extensions) = (at(HERE), at(PEER), Vec::new());
            Self { v6, from, to, hops: 64, cut: Cut::Whole, id: 7, extensions, payload }
        }

        fn packet(&self) -> Vec<u8> {
            let mut udp = self.payload.clone();
            if self.cut != Cut::Later {
                let ports = [self.from.port().to_be_bytes(), self.to.port().to_be_bytes()];
                udp = [ports.as_flattened(), &[0; 4], &self.payload].concat();
            }
            if self.v6 { self.ipv6(&udp) } else { self.ipv4(&udp) }
        }

        fn ipv4(&self, udp: &[u8]) -> Vec<u8> {
            let [high, low] = self.id.to_be_bytes();
            let place = match self.cut {
                Cut::Whole => 0x40,
                Cut::First => 0x20,
                Cut::Later => 1,
            };
            let mut packet = vec![0x45, 0, 0, 0, high, low, place, 0, self.hops, UDP, 0, 0];
            packet.extend(octets(self.from));
            packet.extend(octets(self.to));
            packet.extend(udp);
            packet
        }

        fn ipv6(&self, udp: &[u8]) -> Vec<u8> {
            let mut kinds = self.extensions.clone();
            if self.cut != Cut::Whole {
                kinds.push(FRAGMENT);
            }
            kinds.push(UDP);
            let mut packet = vec![0x60, 0, 0, 0, 0, 0, kinds[0], self.hops];
            packet.extend(octets(self.from));
            packet.extend(octets(self.to));
            for pair in kinds.windows(2) {
                let [high, low] = self.id.to_be_bytes();
                packet.extend(match (pair[0], self.cut) {
                    (FRAGMENT, Cut::First) => [pair[1], 0, 0, 1, 0, 0, high, low],
                    (FRAGMENT, _) => [pair[1], 0, 5, 0, 0, 0, high, low],
                    _ => [pair[1], 0, 0, 0, 0, 0, 0, 0],
                });
            }
            packet.extend(udp);
            packet
        }
    }

    fn octets(at: SocketAddr) -> Vec<u8> {
        match at.ip() {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        }
    }

    fn data(index: u32) -> Vec<u8> {
        [&4u32.to_le_bytes()[..], &index.to_le_bytes(), &[9; 40]].concat()
    }

    fn admit(watcher: &mut Watcher, table: &Table, wanted: &Wanted) -> Result<Outer, DropReason> {
        let ours = |d: &Datagram<'_>| table.sent(PORT, d.from, d.to, d.payload);
        watcher.admit(Mode::Tun, &wanted.packet(), ours)
    }

    /// The table of one end of a session, and a datagram that this end has sealed.
    fn near(v6: bool) -> (Table, Vec<u8>) {
        let at = |addresses: [&str; 2]| {
            SocketAddr::new(addresses[usize::from(v6)].parse().unwrap(), PORT)
        };
        let [table, _] = tables(at(HERE), at(PEER));
        let (key, _) = table.send.as_ref().unwrap();
        let mut datagram = vec![0; 48];
        let counters = key.reserve(1, crate::clock::boot()).unwrap();
        key.seal_each(&mut { counters }, std::iter::once(&mut datagram[..]));
        (table, datagram)
    }

    #[test]
    fn own_datagrams_are_dropped_whatever_address_they_bear() {
        for v6 in [false, true] {
            let (table, datagram) = near(v6);
            let mut wanted = Wanted::new(v6, datagram);
            for (from, to) in [(PORT, PORT), (1024, PORT), (PORT, 9), (4500, 4501)] {
                wanted.from.set_port(from);
                wanted.to.set_port(to);
                let admitted = admit(&mut Watcher::default(), &table, &wanted);
                assert_eq!(admitted, Err(DropReason::OwnDatagram));
            }
        }
    }

    #[test]
    fn a_fragment_shares_the_fate_of_its_first() {
        for v6 in [false, true] {
            let (table, datagram) = near(v6);
            let mut watcher = Watcher::default();
            let first = Wanted { cut: Cut::First, ..Wanted::new(v6, datagram) };
            let other = Wanted { id: 8, payload: data(77), ..first.clone() };
            let rest =
                |first: &Wanted| Wanted { cut: Cut::Later, payload: vec![5; 30], ..first.clone() };
            assert_eq!(admit(&mut watcher, &table, &rest(&first)), Ok(Outer::default()));
            assert_eq!(admit(&mut watcher, &table, &first), Err(DropReason::OwnDatagram));
            let carried = admit(&mut watcher, &table, &other).unwrap();
            assert_eq!(carried.hops, NonZeroU8::new(56));
            assert_eq!(admit(&mut watcher, &table, &rest(&first)), Err(DropReason::OwnDatagram));
            assert_eq!(admit(&mut watcher, &table, &rest(&other)), Ok(carried));
        }
    }

    #[test]
    fn each_tunnel_leaves_less_of_the_hop_limit_until_there_is_none() {
        let hops = |hops| {
            let (table, _) = near(false);
            let wanted = Wanted { hops, ..Wanted::new(false, data(1)) };
            admit(&mut Watcher::default(), &table, &wanted).map(|outer| outer.hops.unwrap().get())
        };
        assert_eq!((hops(255), hops(64), hops(63), hops(9)), (Ok(56), Ok(56), Ok(55), Ok(1)));
        assert_eq!(hops(8), Err(DropReason::NestedTooDeep));
    }

    #[test]
    fn frames_are_looked_into_behind_the_tags_of_virtual_lans() {
        let (table, datagram) = near(false);
        let ours = |d: &Datagram<'_>| table.sent(PORT, d.from, d.to, d.payload);
        for tags in [&[][..], &[0x81, 0, 0, 5]] {
            let ip = Wanted::new(false, datagram.clone()).packet();
            let frame = [&[2; 12][..], tags, &[8, 0], &ip].concat();
            let admitted = Watcher::default().admit(Mode::Tap, &frame, ours);
            assert_eq!(admitted, Err(DropReason::OwnDatagram));
        }
        let arp = [&[2; 12][..], &[8, 6], &[0; 46]].concat();
        assert_eq!(Watcher::default().admit(Mode::Tap, &arp, ours), Ok(Outer::default()));
    }

    prop_compose! {
        fn anything()(
            v6: bool,
            cut in prop::sample::select(vec![Cut::Whole, Cut::First, Cut::Later]),
            (from, to) in prop_oneof![Just((PORT, PORT)), any::<(u16, u16)>()],
            (extensions, hops) in (prop::collection::vec(prop::sample::select(vec![0u8, 43, 60]), 0..3), 9u8..),
            payload in prop::collection::vec(any::<u8>(), 0..80),
        ) -> Wanted {
            let mut wanted = Wanted { cut, extensions, hops, ..Wanted::new(v6, payload) };
            wanted.from.set_port(from);
            wanted.to.set_port(to);
            wanted
        }
    }

    proptest! {
        #[test]
        fn what_is_ours_never_passes(mut wanted in anything(), beyond in 0usize..50) {
            let (table, datagram) = near(wanted.v6);
            wanted.payload = [&datagram[..], &vec![0; beyond]].concat();
            let admitted = admit(&mut Watcher::default(), &table, &wanted);
            prop_assert_eq!(admitted.is_err(), wanted.cut != Cut::Later);
        }

        #[test]
        fn others_pass_even_from_our_port_to_the_peer(wanted in anything(), index: u32, tunnel: bool) {
            let (table, ours) = near(wanted.v6);
            let mut wanted = wanted;
            if tunnel {
                wanted.payload = data(index);
            }
            // Such a datagram is from a machine behind us, or one behind a NAT.
            prop_assume!(wanted.payload.get(4..8) != Some(&ours[4..8]));
            prop_assert!(admit(&mut Watcher::default(), &table, &wanted).is_ok());
        }

        #[test]
        fn arbitrary_bytes_do_no_harm(
            mut bytes in prop::collection::vec(any::<u8>(), 0..120),
            version in prop_oneof![Just(0x45u8), Just(0x4f), Just(0x60)],
            protocol in prop::sample::select(vec![UDP, 0, 43, 44, 60]),
        ) {
            for (at, value) in [(0, version), (6, protocol), (9, UDP), (40, protocol)] {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            let _ = Nested::read(&bytes);
        }
    }
}
