//! Coalescing, against the rules of the kernel's GRO spelled out over descriptions of packets:
//! what is written splits into what was pushed, in the groups the rules name.
#![allow(clippy::unwrap_used, reason = "what does not unwrap fails its test")]

mod common;

use std::ops::Range;

use common::{ACK, CWR, ECE, FIN, PSH, RST, SYN, Spec, URG, checksum};
use proptest::prelude::*;
use vpnd_tun::{Coalescer, Limits, VNET_LEN, VnetHeader, split, unmerge};

const BOTH: Limits = Limits { tcp: true, udp: true, prefix: 0 };

/// A packet, and what was done to it after it was built.
#[derive(Clone, Debug)]
struct Sent {
    spec: Spec,
    twist: Twist,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Twist {
    None,
    BadChecksum,
    BadIpChecksum,
    NoChecksum,
    Fragment,
    IpOptions,
    Trailing,
    Truncated,
    Icmp,
    Garbage,
}

impl Sent {
    fn bytes(&self) -> Vec<u8> {
        let mut packet = self.spec.build();
        match self.twist {
            Twist::None => {}
            Twist::BadChecksum => *packet.last_mut().unwrap() ^= 0x40,
            Twist::BadIpChecksum if !self.spec.v6 => packet[10] ^= 1,
            Twist::BadIpChecksum => {}
            Twist::NoChecksum => {
                let at = self.spec.checksum_at();
                packet[at..at + 2].fill(0);
            }
            Twist::Fragment if !self.spec.v6 => self.patch_ipv4(&mut packet, 6, 0x20),
            Twist::IpOptions if !self.spec.v6 => {
                packet.splice(20..20, [1, 1, 1, 0]);
                packet[3] = packet[3].wrapping_add(4);
                self.patch_ipv4(&mut packet, 0, 0x46);
            }
            Twist::Fragment | Twist::IpOptions => packet[6] = 44,
            Twist::Trailing => packet.push(0),
            Twist::Truncated => drop(packet.pop()),
            Twist::Icmp if !self.spec.v6 => self.patch_ipv4(&mut packet, 9, 1),
            Twist::Icmp => packet[6] = 58,
            Twist::Garbage => packet[0] = 0,
        }
        packet
    }

    fn patch_ipv4(&self, packet: &mut [u8], at: usize, byte: u8) {
        packet[at] = byte;
        packet[10..12].fill(0);
        let len = usize::from(packet[0] & 0xf) * 4;
        let checksum = checksum(&[&packet[..len]]);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    }

    fn is_opaque(&self) -> bool {
        use Twist::{Fragment, Icmp, IpOptions, Trailing, Truncated};
        matches!(self.twist, Fragment | Icmp | IpOptions | Trailing | Truncated)
    }

    fn is_damaged(&self) -> bool {
        match self.twist {
            Twist::BadChecksum => true,
            Twist::BadIpChecksum => !self.spec.v6,
            Twist::NoChecksum => !self.spec.udp,
            _ => false,
        }
    }

    fn stays_alone(&self) -> bool {
        let unusual = self.spec.flags & (CWR | URG | SYN | RST) != 0 && !self.spec.udp;
        let unchecked = self.twist == Twist::NoChecksum && self.spec.udp;
        unusual || unchecked || self.spec.payload.is_empty()
    }
}

/// The groups the rules make: indices into `sent`, in the order of writing.
fn groups(sent: &[Sent], limits: Limits) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut open: Vec<usize> = Vec::new();
    for (at, packet) in sent.iter().enumerate() {
        let spec = &packet.spec;
        let merges = if spec.udp { limits.udp } else { limits.tcp };
        let of_hosts =
            |g: &usize, groups: &[Vec<usize>]| same_hosts(spec, &sent[groups[*g][0]].spec);
        let of_flow = |g: &usize, groups: &[Vec<usize>]| same_flow(spec, &sent[groups[*g][0]].spec);
        if packet.twist == Twist::Garbage {
            groups.push(vec![at]);
        } else if packet.is_opaque() {
            open.retain(|g| !of_hosts(g, &groups));
            groups.push(vec![at]);
        } else if packet.stays_alone() || !merges {
            open.retain(|g| !of_flow(g, &groups));
            groups.push(vec![at]);
        } else {
            let group = open.iter().copied().find(|g| of_flow(g, &groups));
            open.retain(|g| !of_flow(g, &groups));
            let group = match group.filter(|g| joins(sent, &groups[*g], packet)) {
                Some(group) => group,
                None => {
                    groups.push(Vec::new());
                    groups.len() - 1
                }
            };
            groups[group].push(at);
            if !ends(sent, &groups[group]) {
                open.push(group);
            }
        }
    }
    groups
}

fn same_hosts(a: &Spec, b: &Spec) -> bool {
    (a.v6, a.flow.0) == (b.v6, b.flow.0)
}

fn same_flow(a: &Spec, b: &Spec) -> bool {
    (a.v6, a.udp, a.flow) == (b.v6, b.udp, b.flow)
}

fn joins(sent: &[Sent], group: &[usize], packet: &Sent) -> bool {
    let first = &sent[group[0]];
    let previous = &sent[*group.last().unwrap()].spec;
    let next = &packet.spec;
    let headers = |s: &Spec| Spec {
        id: 0,
        sequence: 0,
        flags: s.flags & !(FIN | PSH),
        payload: Vec::new(),
        ..s.clone()
    };
    let mut ids: Vec<u16> = group.iter().map(|at| sent[*at].spec.id).collect();
    ids.push(next.id);
    let total: usize = group.iter().map(|at| sent[*at].spec.payload.len()).sum();
    let offset = u32::try_from(previous.payload.len()).unwrap();
    !first.is_damaged()
        && !packet.is_damaged()
        && relevant(&headers(&first.spec)) == relevant(&headers(next))
        && (next.v6 || steps_by(&ids, 0) || steps_by(&ids, 1))
        && (next.udp || next.sequence == previous.sequence.wrapping_add(offset))
        && next.payload.len() <= first.spec.payload.len()
        && next.header_len() + total + next.payload.len() <= 65_535
}

/// Without the fields that the packet does not have.
fn relevant(spec: &Spec) -> Spec {
    let mut spec = spec.clone();
    if spec.v6 {
        spec.dont_fragment = false;
    } else {
        spec.label = 0;
    }
    if spec.udp {
        (spec.acknowledgment, spec.flags, spec.window, spec.urgent) = (0, 0, 0, 0);
        spec.options.clear();
    }
    spec
}

fn steps_by(ids: &[u16], step: u16) -> bool {
    ids.windows(2).all(|w| w[1].wrapping_sub(w[0]) == step)
}

fn ends(sent: &[Sent], group: &[usize]) -> bool {
    let last = &sent[*group.last().unwrap()].spec;
    let short = last.payload.len() < sent[group[0]].spec.payload.len();
    let pushed = !last.udp && last.flags & (FIN | PSH) != 0;
    short || pushed || group.len() == if last.udp { 64 } else { 128 }
}

/// What splitting a group gives back: equal IPv4 identifications come back counted.
fn expected(sent: &[Sent], group: &[usize]) -> Vec<Vec<u8>> {
    let first = &sent[group[0]].spec;
    let number = |(nth, at): (usize, &usize)| {
        let mut packet = sent[*at].clone();
        if group.len() > 1 {
            packet.spec.id = first.id.wrapping_add(u16::try_from(nth).unwrap());
        }
        packet.bytes()
    };
    group.iter().enumerate().map(number).collect()
}

/// A receive buffer with the packets apart from each other, as the tunnel has them.
fn buffer(sent: &[Sent], prefix: &[u8]) -> (Vec<u8>, Vec<Range<usize>>) {
    let mut buffer = Vec::new();
    let mut ranges = Vec::new();
    for (at, packet) in sent.iter().enumerate() {
        buffer.extend(std::iter::repeat_n(0xee, 16 + at % 5));
        let start = buffer.len();
        buffer.extend(prefix);
        buffer.extend(packet.bytes());
        ranges.push(start..buffer.len());
    }
    (buffer, ranges)
}

/// What was written, each write split again.
fn written(coalescer: &mut Coalescer, sent: &[Sent], prefix: &[u8]) -> Vec<Vec<Vec<u8>>> {
    let (mut buffer, ranges) = buffer(sent, prefix);
    for range in ranges {
        coalescer.push(&buffer, range);
    }
    let mut writes = Vec::new();
    coalescer.flush(&mut buffer, |slices, count| {
        let write: Vec<u8> = slices.iter().flat_map(|s| s.iter().copied()).collect();
        let (header, packet) = VnetHeader::decode(&write).unwrap();
        assert_eq!(slices[0].len(), VNET_LEN);
        assert_eq!(count > 1, header != VnetHeader::PLAIN);
        let packets = resplit(header, packet, prefix.len());
        assert_eq!(packets.len(), count);
        writes.push(packets);
    });
    writes
}

fn resplit(header: VnetHeader, packet: &[u8], prefix: usize) -> Vec<Vec<u8>> {
    let mut segments = split(header, packet, prefix).unwrap();
    let mut packets = Vec::new();
    while let Some(len) = segments.next_len() {
        packets.push(vec![0; len]);
        segments.write_next(packets.last_mut().unwrap());
    }
    packets
}

fn check(sent: &[Sent], limits: Limits) {
    let expected: Vec<_> = groups(sent, limits).iter().map(|g| expected(sent, g)).collect();
    assert_eq!(written(&mut Coalescer::new(limits), sent, &[]), expected);
}

/// What the next packet of a flow does differently.
#[derive(Clone, Copy, Debug)]
enum Change {
    Nothing,
    Length(usize),
    Sequence(i32),
    Id(u16),
    /// Flags of this packet only.
    Flags(u8),
    /// A header field, from now on.
    Field(u8),
    Twist(Twist),
}

fn change() -> impl Strategy<Value = Change> {
    use Twist::*;
    let flags = prop::sample::select(vec![PSH, FIN, PSH | FIN, ECE, CWR, SYN, RST, URG]);
    let twist = prop::sample::select(vec![
        BadChecksum,
        BadIpChecksum,
        NoChecksum,
        Fragment,
        IpOptions,
        Trailing,
        Truncated,
        Icmp,
        Garbage,
    ]);
    prop_oneof![
        20 => Just(Change::Nothing),
        3 => prop_oneof![Just(0usize), 1usize..300].prop_map(Change::Length),
        1 => prop::sample::select(vec![-100, -1, 1, 100]).prop_map(Change::Sequence),
        1 => prop::sample::select(vec![0xffff, 1, 2, 1000]).prop_map(Change::Id),
        2 => flags.prop_map(Change::Flags),
        1 => (0u8..9).prop_map(Change::Field),
        2 => twist.prop_map(Change::Twist),
    ]
}

/// Packets of up to six flows between four pairs of hosts, interleaved.
fn train(flows: usize, len: usize) -> impl Strategy<Value = Vec<Sent>> {
    let flow = (any::<(bool, bool)>(), 0u8..2, 0u16..2, prop_oneof![Just(100usize), 1usize..300]);
    let step = (0..flows, change(), any::<u8>());
    (prop::collection::vec(flow, flows), prop::collection::vec(step, 0..len)).prop_map(
        |(flows, steps)| {
            let mut states: Vec<_> = flows
                .iter()
                .zip(0u8..)
                .map(|(((v6, udp), host, id_step, size), port)| {
                    (Spec { flow: (*host, port), ..Spec::new(*v6, *udp) }, *id_step, *size)
                })
                .collect();
            let send = |(flow, change, fill): &(usize, Change, u8)| {
                let (spec, id_step, size) = &mut states[*flow];
                next(spec, *id_step, *size, *change, *fill)
            };
            steps.iter().map(send).collect()
        },
    )
}

/// The flow's next packet; `state` moves on.
fn next(state: &mut Spec, id_step: u16, size: usize, change: Change, fill: u8) -> Sent {
    let (mut flags, mut len, mut twist) = (0, size, Twist::None);
    match change {
        Change::Nothing => {}
        Change::Length(other) => len = other,
        Change::Sequence(by) => state.sequence = state.sequence.wrapping_add_signed(by),
        Change::Id(by) => state.id = state.id.wrapping_add(by),
        Change::Flags(bits) => flags = bits,
        Change::Field(which) => change_field(state, which),
        Change::Twist(t) => twist = t,
    }
    let mut spec = Spec { payload: vec![fill; len], ..state.clone() };
    spec.flags |= flags;
    if twist == Twist::BadChecksum && len == 0 {
        twist = Twist::None;
    }
    state.sequence = state.sequence.wrapping_add(u32::try_from(len).unwrap());
    state.id = state.id.wrapping_add(id_step);
    Sent { spec, twist }
}

fn change_field(spec: &mut Spec, which: u8) {
    match which {
        0 => spec.acknowledgment += 1,
        1 => spec.window += 1,
        2 => spec.ttl -= 1,
        3 => spec.tos ^= 2,
        4 => spec.dont_fragment ^= true,
        5 => spec.label ^= 1,
        6 => spec.urgent += 1,
        7 => spec.flags ^= ECE,
        _ if !spec.udp && spec.options.is_empty() => spec.options = vec![1; 12],
        _ if !spec.udp => spec.options[11] ^= 1,
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn random_flows_merge_by_the_rules(sent in train(6, 120), tcp in prop::bool::weighted(0.9), udp in prop::bool::weighted(0.9)) {
        check(&sent, Limits { tcp, udp, prefix: 0 });
    }

    #[test]
    fn a_single_flow_merges_by_the_rules(sent in train(1, 40)) {
        check(&sent, BOTH);
    }

    /// Whatever is pushed: no panic, nothing lost, and what stays alone is untouched.
    #[test]
    fn arbitrary_bytes_do_no_harm(
        sent in train(3, 20),
        damage in prop::collection::vec((0usize..3000, any::<u8>()), 0..20),
        cuts in prop::collection::vec((0usize..20, 0usize..60), 0..4),
        prefix in prop_oneof![Just(0usize), Just(14), 0usize..40],
    ) {
        let (mut bytes, mut ranges) = buffer(&sent, &ether_header(prefix));
        for (at, byte) in damage {
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
        }
        for (which, keep) in cuts {
            if let Some(range) = ranges.get_mut(which) {
                range.end = range.end.min(range.start + keep);
            }
        }
        let before = bytes.clone();
        let mut coalescer = Coalescer::new(Limits { prefix, ..BOTH });
        ranges.iter().for_each(|range| coalescer.push(&before, range.clone()));
        let (mut packets, mut total) = (0, 0);
        coalescer.flush(&mut bytes, |slices, count| {
            packets += count;
            total += slices[1..].iter().map(|s| s.len()).sum::<usize>();
            if count == 1 {
                assert!(ranges.iter().any(|r| before[r.clone()] == *slices[1]));
            }
        });
        prop_assert_eq!(packets, ranges.len());
        prop_assert!(total <= ranges.iter().map(ExactSizeIterator::len).sum());
    }
}

fn ether_header(len: usize) -> Vec<u8> {
    let mut header = vec![2; len];
    if len >= 2 {
        header[len - 2..].copy_from_slice(&[8, 0]);
    }
    header
}

/// `count` packets of one flow, each with `len` bytes.
fn stream(v6: bool, udp: bool, count: usize, len: usize) -> Vec<Sent> {
    let mut state = Spec::new(v6, udp);
    (0..count).map(|_| next(&mut state, 1, len, Change::Nothing, 7)).collect()
}

fn group_sizes(sent: &[Sent]) -> Vec<usize> {
    check(sent, BOTH);
    groups(sent, BOTH).iter().map(Vec::len).collect()
}

#[test]
fn an_ip_packet_ends_at_65535_bytes() {
    assert_eq!(group_sizes(&stream(false, false, 100, 1380)), [47, 47, 6]);
    assert_eq!(group_sizes(&stream(true, false, 100, 1360)), [48, 48, 4]);
    assert_eq!(group_sizes(&stream(false, true, 3, 32_753)), [2, 1]);
    assert_eq!(group_sizes(&stream(false, true, 3, 32_754)), [1, 1, 1]);
}

#[test]
fn small_segments_end_at_their_number() {
    assert_eq!(group_sizes(&stream(false, true, 130, 10)), [64, 64, 2]);
    assert_eq!(group_sizes(&stream(true, false, 130, 10)), [128, 2]);
}

#[test]
fn the_last_packet_hands_its_flags_to_the_whole() {
    let mut sent = stream(false, false, 3, 100);
    sent[2].spec.flags |= PSH | FIN;
    assert_eq!(group_sizes(&sent), [3]);
}

#[test]
fn a_coalescer_starts_anew_after_a_flush() {
    let mut coalescer = Coalescer::new(BOTH);
    let sent = stream(false, false, 4, 100);
    assert_eq!(written(&mut coalescer, &sent[..2], &[]).len(), 1);
    assert_eq!(written(&mut coalescer, &sent[2..], &[]).len(), 1);
}

#[test]
fn frames_merge_behind_equal_ethernet_headers_only() {
    let sent = stream(false, true, 3, 100);
    let limits = Limits { prefix: 14, ..BOTH };
    let ipv4 = ether_header(14);
    assert_eq!(written(&mut Coalescer::new(limits), &sent, &ipv4).len(), 1);
    let other = [2; 14];
    assert_eq!(written(&mut Coalescer::new(limits), &sent, &other).len(), 3);
}

#[test]
fn a_refused_write_is_undone_packet_by_packet() {
    let sent = stream(false, true, 3, 100);
    let (mut bytes, ranges) = buffer(&sent, &[]);
    let mut coalescer = Coalescer::new(BOTH);
    ranges.into_iter().for_each(|range| coalescer.push(&bytes, range));
    let (mut packets, mut refused) = (Vec::new(), None);
    coalescer.flush(&mut bytes, |slices, _| {
        refused = VnetHeader::decode(&slices[0]).map(|(header, _)| header);
        unmerge(slices, 0, |single| {
            assert_eq!(*single[0], [0; VNET_LEN]);
            packets.push(single[1].to_vec());
        })
        .unwrap();
    });
    assert_eq!(packets, sent.iter().map(Sent::bytes).collect::<Vec<_>>());

    coalescer.limits_mut().forbid(refused.unwrap());
    assert_eq!(written(&mut coalescer, &sent, &[]).len(), 3);
    assert_eq!(written(&mut coalescer, &stream(false, false, 3, 100), &[]).len(), 1);
}

#[test]
fn the_header_describes_the_whole() {
    let sent = stream(true, false, 3, 100);
    let (mut bytes, ranges) = buffer(&sent, &[]);
    let mut coalescer = Coalescer::new(BOTH);
    ranges.into_iter().for_each(|range| coalescer.push(&bytes, range));
    let mut headers = Vec::new();
    coalescer.flush(&mut bytes, |slices, _| {
        headers.push(VnetHeader::decode(&slices[0]).unwrap().0);
    });
    let header = VnetHeader {
        flags: 1,
        gso_type: 4,
        hdr_len: 60,
        gso_size: 100,
        csum_start: 40,
        csum_offset: 16,
    };
    assert_eq!(headers, [header]);
    assert_eq!(sent[0].spec.flags, ACK);
}
