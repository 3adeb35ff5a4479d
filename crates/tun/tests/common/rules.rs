//! The rules of the kernel's GRO, applied to descriptions of packets, and a check that the crate follows them:
//! the written packets split into the pushed packets, in the groups that the rules demand.

use std::ops::Range;

use vpnd_tun::{Coalescer, Limits, VNET_LEN, VnetHeader};

use super::flows::{Sent, Twist};
use super::super_packet::segments;
use super::{FIN, PSH, Spec};

pub(crate) const BOTH: Limits = Limits { tcp: true, udp: true, prefix: 0 };

/// Pushes `sent` and compares the written packets with the rules.
pub(crate) fn check(sent: &[Sent], limits: Limits) {
    let expected: Vec<_> = groups(sent, limits).iter().map(|g| expected(sent, g)).collect();
    assert_eq!(written(&mut Coalescer::new(limits), sent, &[]), expected);
}

/// The written packets, each split again.
pub(crate) fn written(
    coalescer: &mut Coalescer,
    sent: &[Sent],
    prefix: &[u8],
) -> Vec<Vec<Vec<u8>>> {
    let resplit = |write: Vec<u8>| {
        let (header, packet) = VnetHeader::decode(&write).unwrap();
        segments(header, packet, prefix.len())
    };
    merged(coalescer, sent, prefix).into_iter().map(resplit).collect()
}

/// The writes: each consists of a header and a packet.
pub(crate) fn merged(coalescer: &mut Coalescer, sent: &[Sent], prefix: &[u8]) -> Vec<Vec<u8>> {
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
        assert_eq!(segments(header, packet, prefix.len()).len(), count);
        writes.push(write);
    });
    writes
}

/// A receive buffer with gaps between the packets, like the tunnel's receive buffer.
pub(crate) fn buffer(sent: &[Sent], prefix: &[u8]) -> (Vec<u8>, Vec<Range<usize>>) {
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

/// The groups according to the rules: indices into `sent`, in the order of writing.
pub(crate) fn groups(sent: &[Sent], limits: Limits) -> Vec<Vec<usize>> {
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

pub(crate) fn same_hosts(a: &Spec, b: &Spec) -> bool {
    (a.v6, a.flow.0) == (b.v6, b.flow.0)
}

pub(crate) fn same_flow(a: &Spec, b: &Spec) -> bool {
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
        && (next.v6 || steps_by(&ids, 1) || next.dont_fragment && steps_by(&ids, 0))
        && (next.udp || next.sequence == previous.sequence.wrapping_add(offset))
        && next.payload.len() <= first.spec.payload.len()
        && next.header_len() + total + next.payload.len() <= 65_535
}

/// The description without the fields that the packet does not have.
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

/// The expected result of splitting a group. Equal IPv4 identifications, which are merged only if DF is set,
/// are incremented.
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
