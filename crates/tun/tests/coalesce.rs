//! Tests of coalescing: its limits, its headers, and invalid packets. Random flows are tested in `roundtrip.rs`
//! and `kernel_gro.rs`.
#![allow(clippy::unwrap_used, reason = "what does not unwrap fails its test")]

mod common;

use common::flows::{Change, Flow, Sent, packets_of};
use common::rules::{BOTH, buffer, check, groups, written};
use common::{ACK, FIN, PSH, Spec};
use proptest::prelude::*;
use vpnd_tun::{Coalescer, Limits, VNET_LEN, VnetHeader, unmerge};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    /// Arbitrary bytes cause no panic, no packet is lost, and unmerged packets are unchanged.
    #[test]
    fn arbitrary_bytes_do_no_harm(
        sent in packets_of(3, 20),
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
    let mut flow = Flow::new(Spec::new(v6, udp), 1, len);
    (0..count).flat_map(|_| flow.step(Change::Nothing, 7)).collect()
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
fn equal_identifications_merge_only_where_nobody_may_fragment() {
    let equal = |udp, dont_fragment| {
        let spec = Spec { dont_fragment, ..Spec::new(false, udp) };
        let mut flow = Flow::new(spec, 0, 100);
        let sent: Vec<Sent> = (0..4).flat_map(|_| flow.step(Change::Nothing, 7)).collect();
        group_sizes(&sent)
    };
    for udp in [false, true] {
        assert_eq!(equal(udp, true), [4]);
        assert_eq!(equal(udp, false), [1, 1, 1, 1]);
    }
}

#[test]
fn counted_identifications_come_back_as_they_were() {
    for dont_fragment in [false, true] {
        let spec = Spec { dont_fragment, ..Spec::new(false, true) };
        let mut flow = Flow::new(spec, 1, 100);
        let sent: Vec<Sent> = (0..4).flat_map(|_| flow.step(Change::Nothing, 7)).collect();
        let whole = written(&mut Coalescer::new(BOTH), &sent, &[]);
        assert_eq!(whole, [sent.iter().map(Sent::bytes).collect::<Vec<_>>()]);
    }
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
