//! Compares coalescing with the kernel's own GRO, with random flows. The kernel has to merge everything that we
//! merge, and into the same super-packet.
//!
//! The kernel merges more, because some packets, such as an empty UDP datagram or one with a wrong checksum,
//! overtake held packets of their flow. Our packets are never reordered, so GRO batches may end at different
//! packets. If they do, the test sends the packets of our super-packet through the kernel again, alone.
#![allow(clippy::unwrap_used, reason = "what does not unwrap fails its test")]

mod common;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use common::flows::{Sent, packets_of};
use common::gro::{Gro, payloads};
use common::namespace::{in_namespace, is_root};
use common::rules::{BOTH, merged, same_flow, same_hosts};
use common::seeds::{each_seed, sized};
use proptest::prelude::*;
use vpnd_tun::{Coalescer, VNET_LEN};

#[test]
fn what_we_merge_the_kernel_merges() {
    if !is_root() {
        return println!("skipped: only root may tell the kernel's GRO when to let go");
    }
    in_namespace("what_we_merge_the_kernel_merges", || {
        let comparison = RefCell::new(Comparison { gro: Gro::open(), tally: Tally::default() });
        let streams = prop_oneof![packets_of(1, 150), packets_of(4, 64)];
        let packets = each_seed(&streams, sized(8_000, 500_000), |sent| {
            comparison.borrow_mut().compare(&sent);
            sent.len()
        });
        println!("beside the kernel's GRO: {packets} packets, {}", comparison.borrow().tally);
    });
}

struct Comparison {
    gro: Gro,
    tally: Tally,
}

impl Comparison {
    /// A clock tick ends a batch of the kernel early, so only a difference that repeats counts.
    fn compare(&mut self, sent: &[Sent]) {
        let ours = Merged::of(sent, merged(&mut Coalescer::new(BOTH), sent, &[]));
        let mut differences = Vec::new();
        for _ in 0..ATTEMPTS {
            let theirs = self.ask_kernel(sent);
            differences = ours.unexplained(&theirs);
            if differences.is_empty() {
                self.tally.add(sent, &ours, &theirs);
                return self.compare_bytes(sent, &ours, &theirs);
            }
            self.tally.repeated += 1;
        }
        panic!("we merge and the kernel does not: {differences:?}");
    }

    fn ask_kernel(&mut self, sent: &[Sent]) -> Merged {
        let packets: Vec<_> = sent.iter().map(Sent::bytes).collect();
        for _ in 0..ATTEMPTS {
            if let Some(merged) = self.gro.merge(&packets) {
                return Merged::of(sent, merged);
            }
            self.tally.repeated += 1;
        }
        panic!("no batch was written between two ticks of the clock");
    }

    fn compare_bytes(&mut self, sent: &[Sent], ours: &Merged, theirs: &Merged) {
        for (group, packet) in ours.super_packets() {
            if let Some(theirs) = theirs.0.get(group) {
                assert_eq!(packet, theirs, "{group:?}");
            } else {
                self.compare_alone(group.iter().map(|at| sent[*at].clone()).collect());
            }
        }
    }

    /// Sends the packets of one of our super-packets alone.
    fn compare_alone(&mut self, sent: Vec<Sent>) {
        self.tally.alone += 1;
        let ours = Merged::of(&sent, merged(&mut Coalescer::new(BOTH), &sent, &[]));
        assert_eq!(ours.0.len(), 1);
        for _ in 1..ATTEMPTS {
            if self.ask_kernel(&sent) == ours {
                return;
            }
            self.tally.repeated += 1;
        }
        assert_eq!(self.ask_kernel(&sent), ours);
    }
}

/// Groups of packets, and the result for each group.
#[derive(Debug, PartialEq)]
struct Merged(BTreeMap<Vec<usize>, Vec<u8>>);

impl Merged {
    fn of(sent: &[Sent], merged: Vec<Vec<u8>>) -> Self {
        Self(merged.into_iter().map(|packet| group(sent, packet)).collect())
    }

    fn super_packets(&self) -> impl Iterator<Item = (&Vec<usize>, &Vec<u8>)> {
        self.0.iter().filter(|(group, _)| group.len() > 1)
    }

    /// Each packet that was merged, in a pair with the packet before it.
    fn pairs(&self) -> BTreeSet<(usize, usize)> {
        self.0.keys().flat_map(|group| pairs(group)).collect()
    }

    /// Our super-packets that `theirs` contains in several parts, although it merged none of their packets with
    /// a packet of another super-packet.
    fn unexplained(&self, theirs: &Self) -> Vec<&Vec<usize>> {
        let theirs = theirs.pairs();
        let more = &theirs - &self.pairs();
        let in_fragments = |group: &[usize]| pairs(group).any(|pair| !theirs.contains(&pair));
        let explained =
            |group: &[usize]| more.iter().any(|(a, b)| group.contains(a) || group.contains(b));
        self.0.keys().filter(|group| in_fragments(group) && !explained(group)).collect()
    }
}

/// The packets that are in `packet`, and `packet` without the header fields that may differ.
fn group(sent: &[Sent], mut packet: Vec<u8>) -> (Vec<usize>, Vec<u8>) {
    if let Some(payloads) = payloads(&packet) {
        let find = |payload| sent.iter().position(|s| s.spec.payload == payload).unwrap();
        let group = payloads.into_iter().map(find).collect();
        // The kernel writes the length of the contiguous part of its first packet to hdr_len.
        packet[2..4].fill(0);
        return (group, packet);
    }
    // The header also shows whether the kernel has verified the checksum, so it may differ.
    packet.drain(..VNET_LEN);
    let at = sent.iter().position(|s| s.bytes() == packet);
    (vec![at.expect("a single packet is as it was")], packet)
}

fn pairs(group: &[usize]) -> impl Iterator<Item = (usize, usize)> {
    group.windows(2).map(|pair| (pair[0], pair[1]))
}

/// The result of the comparison.
#[derive(Default)]
struct Tally {
    super_packets: usize,
    alone: usize,
    ours: usize,
    theirs: usize,
    only_theirs: BTreeMap<&'static str, usize>,
    repeated: usize,
}

impl Tally {
    fn add(&mut self, sent: &[Sent], ours: &Merged, theirs: &Merged) {
        let (our_pairs, their_pairs) = (ours.pairs(), theirs.pairs());
        self.super_packets += ours.super_packets().count();
        self.ours += our_pairs.len();
        self.theirs += their_pairs.len();
        for (a, b) in &their_pairs - &our_pairs {
            *self.only_theirs.entry(reason(sent, a, b)).or_default() += 1;
        }
    }
}

/// Why we do not join packet `b` to packet `a`.
fn reason(sent: &[Sent], a: usize, b: usize) -> &'static str {
    let (first, last) = (&sent[a].spec, &sent[b].spec);
    let between = || sent[a + 1..b].iter().filter(|s| same_hosts(&s.spec, first));
    let of_flow = || between().filter(|s| same_flow(&s.spec, first));
    if sent[a].is_opaque() {
        "behind IPv6 extension headers"
    } else if between().any(Sent::is_opaque) {
        "past a fragment or another packet of no flow"
    } else if of_flow().any(Sent::is_damaged) {
        "past a damaged packet"
    } else if of_flow().any(Sent::stays_alone) {
        "past a datagram without payload or checksum"
    } else if of_flow().any(|s| s.spec.label != first.label) {
        "past another flow label"
    } else if first.id == last.id && !first.v6 && !first.dont_fragment {
        "of one identification, although routers may fragment (kernels from 6.18 on)"
    } else if first.urgent != last.urgent {
        "with another urgent pointer"
    } else {
        "beyond our number of segments, or otherwise"
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} super-packets of ours, 0 differences", self.super_packets)?;
        writeln!(f, "{:7} of them compared alone", self.alone)?;
        writeln!(
            f,
            "{:7} packets joined by us, {} by the kernel; only there",
            self.ours, self.theirs
        )?;
        for (reason, count) in &self.only_theirs {
            writeln!(f, "{count:7} {reason}")?;
        }
        write!(f, "{:7} times the clock ticked and the kernel was asked again", self.repeated)
    }
}

const ATTEMPTS: usize = 30;
