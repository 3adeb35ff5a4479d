//! Super-packets, and the packets that result from splitting them.

use proptest::prelude::*;
use vpnd_tun::{VnetHeader, split};

use super::{Spec, checksum};

/// The kernel's header in front of the super-packet `spec`.
pub(crate) fn header(spec: &Spec, gso_size: usize) -> VnetHeader {
    let gso_type = match (spec.udp, spec.v6) {
        (true, _) => 5,
        (false, false) => 1,
        (false, true) => 4,
    };
    VnetHeader {
        flags: 1,
        gso_type,
        // Not the length of the headers: the kernel writes the length of its linear part here, which must not
        // matter.
        hdr_len: 17,
        gso_size: u16::try_from(gso_size).unwrap(),
        csum_start: u16::try_from(spec.ip_len()).unwrap(),
        csum_offset: if spec.udp { 6 } else { 16 },
    }
}

/// The packets that result when [`split()`] splits a packet.
pub(crate) fn segments(header: VnetHeader, packet: &[u8], prefix: usize) -> Vec<Vec<u8>> {
    let mut segments = split(header, packet, prefix).unwrap();
    let mut out = Vec::new();
    while let Some(len) = segments.next_len() {
        let mut packet = vec![0xaa; len];
        segments.write_next(&mut packet);
        out.push(packet);
    }
    assert_eq!(segments.remaining(), 0);
    out
}

/// `packet` with four bytes of options behind its IPv4 header, or eight behind its IPv6 header.
pub(crate) fn with_options(mut packet: Vec<u8>) -> Vec<u8> {
    let lengthen = |packet: &mut [u8], at: usize, by: u16| {
        let len = u16::from_be_bytes([packet[at], packet[at + 1]]) + by;
        packet[at..at + 2].copy_from_slice(&len.to_be_bytes());
    };
    if packet[0] >> 4 == 6 {
        lengthen(&mut packet, 4, 8);
        let next = std::mem::replace(&mut packet[6], 60);
        packet.splice(40..40, [next, 0, 1, 4, 0, 0, 0, 0]);
        return packet;
    }
    lengthen(&mut packet, 2, 4);
    packet[0] += 1;
    packet.splice(20..20, [1, 1, 1, 0]);
    packet[10..12].fill(0);
    let sum = checksum(&[&packet[..24]]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

pub(crate) fn any_spec() -> impl Strategy<Value = Spec> {
    let options = prop::collection::vec(any::<[u8; 4]>(), 0..=10);
    let lengths = prop_oneof![0usize..200, 0usize..20_000];
    (any::<(bool, bool, u16, bool, u8, u8, u32)>(), any::<(u8, u16, u16)>(), options, lengths)
        .prop_flat_map(
            |((v6, udp, id, df, ttl, tos, sequence), (flags, window, urgent), o, len)| {
                let spec = Spec {
                    id,
                    dont_fragment: df,
                    ttl,
                    tos,
                    sequence,
                    flags,
                    window,
                    urgent,
                    options: if udp { Vec::new() } else { o.concat() },
                    ..Spec::new(v6, udp)
                };
                prop::collection::vec(any::<u8>(), len)
                    .prop_map(move |payload| Spec { payload, ..spec.clone() })
            },
        )
}
