//! Compares split packets with packets that are built one by one.
#![allow(clippy::unwrap_used, reason = "what does not unwrap fails its test")]

mod common;

use common::super_packet::{any_spec, header, segments, with_options};
use common::{CWR, FIN, PSH, Spec};
use proptest::prelude::*;
use vpnd_tun::{SplitError, VnetHeader, split};

/// The segments of a super-packet, each built separately by the rules of the data path.
fn expected(spec: &Spec, gso_size: usize) -> Vec<Vec<u8>> {
    let mut payloads: Vec<&[u8]> = spec.payload.chunks(gso_size).collect();
    if payloads.is_empty() {
        payloads.push(&[]);
    }
    let last = payloads.len() - 1;
    let segment = |(at, payload): (usize, &&[u8])| {
        let mut segment = spec.clone();
        segment.payload = payload.to_vec();
        segment.id = spec.id.wrapping_add(u16::try_from(at).unwrap());
        segment.sequence = spec.sequence.wrapping_add(u32::try_from(at * gso_size).unwrap());
        if at < last {
            segment.flags &= !(FIN | PSH);
        }
        if at > 0 {
            segment.flags &= !CWR;
        }
        segment.build()
    };
    payloads.iter().enumerate().map(segment).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn each_segment_is_as_if_built_alone(
        spec in any_spec(),
        gso_size in prop_oneof![1usize..100, 500usize..1500, Just(65_535)],
        ecn: bool,
    ) {
        let mut header = header(&spec, gso_size);
        if ecn && !spec.udp {
            header.gso_type |= 0x80;
        }
        prop_assert_eq!(segments(header, &spec.build_super(), 0), expected(&spec, gso_size));
    }

    #[test]
    fn a_checksum_left_to_us_is_completed(spec in any_spec()) {
        let header = VnetHeader { gso_type: 0, gso_size: 0, ..header(&spec, 1) };
        let mut expected = spec.build();
        if expected[spec.checksum_at()..][..2] == [0, 0] {
            expected[spec.checksum_at()..][..2].fill(0xff);
        }
        prop_assert_eq!(segments(header, &spec.build_super(), 0), vec![expected]);
    }

    #[test]
    fn a_complete_packet_passes_as_it_came(packet: Vec<u8>, data_valid: bool) {
        let flags = if data_valid { 2 } else { 0 };
        let header = VnetHeader { flags, ..VnetHeader::PLAIN };
        prop_assert_eq!(segments(header, &packet, 0), [packet]);
    }

    /// Wrong claims of the header or the packet cause no panic, and a packet is split completely or not at all.
    #[test]
    fn lies_do_no_harm(
        (spec, cut) in any_spec().prop_flat_map(|s| (Just(s), 0usize..400)),
        (flags, gso_type, hdr_len) in any::<(u8, u8, u16)>(),
        (gso_size, csum_start, csum_offset) in any::<(u16, u16, u16)>(),
        honest in any::<[bool; 6]>(),
        damage in prop::collection::vec((0usize..80, any::<u8>()), 0..4),
        prefix in prop_oneof![Just(0usize), Just(14), Just(18), 0usize..100],
    ) {
        let truth = header(&spec, 100);
        let pick = |at: usize, truth: u16, lie: u16| if honest[at] { truth } else { lie % 300 };
        let header = VnetHeader {
            flags: if honest[0] { truth.flags } else { flags },
            gso_type: if honest[1] { truth.gso_type } else { gso_type },
            hdr_len,
            gso_size: if honest[2] { truth.gso_size } else { gso_size },
            csum_start: pick(3, truth.csum_start, csum_start),
            csum_offset: pick(4, truth.csum_offset, csum_offset),
        };
        let mut packet = vec![0; prefix];
        packet.extend(spec.build_super());
        packet.truncate(packet.len().saturating_sub(if honest[5] { 0 } else { cut * 50 }));
        for (at, byte) in damage {
            if let Some(place) = packet.get_mut(prefix + at) {
                *place = byte;
            }
        }
        if let Ok(mut segments) = split(header, &packet, prefix) {
            let promised = segments.remaining();
            let mut out = Vec::new();
            let mut count = 0;
            while let Some(len) = segments.next_len() {
                out.resize(len, 0);
                segments.write_next(&mut out);
                count += 1;
            }
            prop_assert_eq!(count, promised);
        }
    }
}

/// A packet whose payload makes its checksum zero.
fn summing_to_zero(udp: bool) -> Spec {
    let spec = Spec { payload: vec![0, 0], ..Spec::new(false, udp) };
    let at = spec.checksum_at();
    Spec { payload: spec.build()[at..at + 2].to_vec(), ..spec }
}

fn checksum_of_first(header: VnetHeader, spec: &Spec) -> Vec<u8> {
    let packet = segments(header, &spec.build_super(), 0).remove(0);
    packet[spec.checksum_at()..][..2].to_vec()
}

#[test]
fn a_udp_checksum_of_zero_is_sent_as_ones() {
    let spec = summing_to_zero(true);
    assert_eq!(checksum_of_first(header(&spec, 2), &spec), [0xff, 0xff]);
}

/// The kernel treats plain packets of all protocols alike.
#[test]
fn a_tcp_checksum_of_zero_is_sent_as_ones_unless_segmented() {
    let spec = summing_to_zero(false);
    let segmented = header(&spec, 2);
    let plain = VnetHeader { gso_type: 0, gso_size: 0, ..segmented };
    assert_eq!(checksum_of_first(segmented, &spec), [0, 0]);
    assert_eq!(checksum_of_first(plain, &spec), [0xff, 0xff]);
}

#[test]
fn extension_headers_are_copied_to_every_segment() {
    let mut spec = Spec::new(true, false);
    spec.payload = vec![7; 250];
    let header = VnetHeader { csum_start: 48, ..header(&spec, 100) };
    let expected: Vec<_> = expected(&spec, 100).into_iter().map(with_options).collect();
    assert_eq!(segments(header, &with_options(spec.build_super()), 0), expected);
}

#[test]
fn a_prefix_is_copied_to_every_segment() {
    let mut spec = Spec::new(false, true);
    spec.payload = vec![7; 250];
    let with_prefix = |packet: Vec<u8>| [&[9u8; 14][..], &packet].concat();
    let header = VnetHeader { csum_start: 34, ..header(&spec, 100) };
    let expected: Vec<_> = expected(&spec, 100).into_iter().map(with_prefix).collect();
    assert_eq!(segments(header, &with_prefix(spec.build_super()), 14), expected);
}

#[test]
fn what_does_not_fit_is_named() {
    let spec = Spec::new(false, false);
    let packet = spec.build_super();
    let good = header(&spec, 100);
    let error = |header, packet: &[u8]| split(header, packet, 0).unwrap_err();
    assert_eq!(error(VnetHeader { gso_type: 3, ..good }, &packet), SplitError::UnknownType);
    assert_eq!(error(VnetHeader { gso_type: 4, ..good }, &packet), SplitError::Headers);
    assert_eq!(error(VnetHeader { gso_size: 0, ..good }, &packet), SplitError::SegmentSize);
    assert_eq!(error(VnetHeader { csum_start: 24, ..good }, &packet), SplitError::Headers);
    assert_eq!(error(VnetHeader { csum_offset: 6, ..good }, &packet), SplitError::Checksum);
    assert_eq!(error(VnetHeader { flags: 0, ..good }, &packet), SplitError::Checksum);
    assert_eq!(error(good, &packet[..39]), SplitError::Headers);
    assert_eq!(error(good, &[0x45; 70_000]), SplitError::TooLong);
    let beyond = VnetHeader { gso_type: 0, csum_start: 60_000, ..good };
    assert_eq!(error(beyond, &packet), SplitError::Checksum);
}
