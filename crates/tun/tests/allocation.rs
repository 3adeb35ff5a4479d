//! Neither splitting nor coalescing allocates memory once it is set up.
#![allow(clippy::unwrap_used, reason = "what does not unwrap fails its test")]

mod common;

use allocation_counter::measure;
use common::Spec;
use vpnd_tun::{Coalescer, Limits, READ_BUFFER, VnetHeader, split};

#[test]
fn no_packet_allocates() {
    let mut packets = Vec::new();
    let mut ranges = Vec::new();
    for at in 0..200u16 {
        let id = at / 10;
        let spec = Spec { id, flow: (1, u8::try_from(at % 10).unwrap()), ..Spec::new(false, true) };
        let start = packets.len();
        packets.extend(spec.build());
        ranges.push(start..packets.len());
    }
    let mut coalescer = Coalescer::new(Limits { tcp: true, udp: true, prefix: 0 });
    let mut out = vec![0; READ_BUFFER];
    let mut written = 0;
    let allocations = measure(|| {
        for range in &ranges {
            coalescer.push(&packets, range.clone());
        }
        coalescer.flush(&mut packets, |slices, count| {
            let len = gather(slices, &mut out);
            let (header, packet) = VnetHeader::decode(&out[..len]).unwrap();
            assert_eq!(count, 20);
            written += take_apart(header, packet);
        });
    });
    assert_eq!(written, 200);
    assert_eq!(allocations.count_total, 0);
}

fn gather(slices: &[std::io::IoSlice<'_>], out: &mut [u8]) -> usize {
    let mut len = 0;
    for slice in slices {
        out[len..len + slice.len()].copy_from_slice(slice);
        len += slice.len();
    }
    len
}

fn take_apart(header: VnetHeader, packet: &[u8]) -> usize {
    let mut out = [0; 2000];
    let mut count = 0;
    let mut segments = split(header, packet, 0).unwrap();
    while let Some(len) = segments.next_len() {
        segments.write_next(&mut out[..len]);
        count += 1;
    }
    count
}
