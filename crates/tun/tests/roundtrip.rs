//! Tests coalescing and splitting together: random flows are merged and split again. The result must be the
//! packets that were pushed, in the groups that the rules of the kernel's GRO demand.
#![allow(clippy::unwrap_used, reason = "what does not unwrap fails its test")]

mod common;

use common::flows::packets_of;
use common::rules::check;
use common::seeds::{each_seed, sized};
use proptest::prelude::*;
use vpnd_tun::Limits;

#[test]
fn what_is_merged_splits_into_what_was_pushed() {
    let merged = prop::bool::weighted(0.9);
    let streams = prop_oneof![packets_of(1, 150), packets_of(6, 120)];
    let packets = each_seed(&(streams, merged, merged), sized(50_000, 1_000_000), |drawn| {
        let (sent, tcp, udp) = drawn;
        check(&sent, Limits { tcp, udp, prefix: 0 });
        sent.len()
    });
    println!("merged and split again: {packets} packets, 0 differences");
}
