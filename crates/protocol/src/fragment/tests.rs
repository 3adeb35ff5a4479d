//! Packets that are fragmented, lost, reordered and forged, compared with a very simple model.

mod hostile;
mod model;

use std::env;

use allocation_counter::measure;
use proptest::prelude::*;
use proptest::sample::Index;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use self::hostile::Hostility;
use self::model::Model;
use super::*;
use crate::frame::Frame;

/// The UDP payload of a datagram over IPv4 and Ethernet.
const DATAGRAM: usize = 1472;

fn session(number: usize) -> Generation {
    (0..number).fold(Generation::default(), |generation, _| generation.next())
}

fn after(millis: u64) -> BootTime {
    BootTime::from_nanos(1) + Duration::from_millis(millis)
}

fn fragment(index: u8, count: u8, bytes: &[u8]) -> Fragment<'_> {
    Fragment { index, count, bytes }
}

/// A packet without repetition among neighbouring bytes.
fn packet(len: usize, salt: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(salt).fill(&mut bytes[..]);
    bytes
}

/// Bytes of a packet in one datagram: 32 belong to message 4, four precede the fragment, and everything comes
/// in blocks of 16.
fn room(max_datagram: usize) -> usize {
    (max_datagram - 32) / 16 * 16 - 4
}

/// The plaintexts of a packet's fragments.
fn cut(packet: &[u8], plan: Plan) -> Vec<Vec<u8>> {
    plan.cuts()
        .map(|cut| {
            let mut plaintext = vec![0xff; cut.plaintext_len()];
            cut.write(packet, &mut plaintext);
            plaintext
        })
        .collect()
}

fn parsed(plaintext: &[u8]) -> Fragment<'_> {
    match frame::parse(plaintext) {
        Ok(Frame::Fragment(fragment)) => fragment,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_plan_has_the_fewest_fragments_that_fit_and_they_are_even() {
    for max_datagram in [48, 49, 63, 64, 100, 576, 1168, 1200, 1280, 1452, DATAGRAM, 8972, 65_507] {
        let room = room(max_datagram);
        let lens = (2..70).chain((70..65_536).step_by(61)).chain([8 * room - 1, 8 * room]);
        for len in lens {
            let Some(plan) = plan(len, max_datagram) else {
                assert!(len > 8 * room, "{len} bytes in datagrams of {max_datagram}");
                continue;
            };
            assert_eq!(plan.count(), len.div_ceil(room).max(2), "{len} of {max_datagram}");
            check(plan, len, max_datagram);
        }
        assert_eq!(plan(8 * room + 1, max_datagram), None);
    }
    assert!((0..48).all(|max_datagram| plan(1500, max_datagram).is_none()));
    assert!((0..2).all(|len| plan(len, DATAGRAM).is_none()), "nothing to part");
}

fn check(plan: Plan, len: usize, max_datagram: usize) {
    let cuts: Vec<Cut> = plan.cuts().collect();
    assert_eq!(cuts.len(), plan.count());
    let each = cuts[0].bytes().len();
    let mut next = 0;
    for cut in &cuts {
        let (bytes, size) = (cut.bytes(), cut.plaintext_len() + OVERHEAD);
        assert_eq!(size, cuts[0].plaintext_len() + OVERHEAD, "one size is one run of a GSO send");
        assert!(size <= max_datagram && size % 16 == 0, "{len} bytes of {max_datagram}: {size}");
        assert_eq!((bytes.start, bytes.is_empty()), (next, false));
        assert!(bytes.len() == each || (bytes.len() < each && bytes.end == len));
        next = bytes.end;
    }
    assert_eq!(next, len);
    // Rounded up to a block, each other fragment takes at most 15 bytes from the last.
    let last = cuts[cuts.len() - 1].bytes().len();
    assert!(each - last < 16 * cuts.len(), "{len} bytes of {max_datagram}: {each} and {last}");
}

#[test]
fn the_bytes_of_a_fragment() {
    let cuts = cut(&packet(1514, 1), plan(1514, DATAGRAM).unwrap());
    assert_eq!(cuts.iter().map(Vec::len).collect::<Vec<_>>(), [768, 768]);
    assert_eq!(cuts[0], [&[3, 0, 0, 2], &packet(1514, 1)[..764]].concat());
    assert_eq!(cuts[1], [&[3, 14, 1, 2], &packet(1514, 1)[764..], &[0; 14]].concat());
}

#[test]
fn a_last_fragment_that_is_shorter_by_blocks_is_padded_to_the_others() {
    let cuts = cut(&packet(1500, 1), plan(1500, DATAGRAM).unwrap());
    assert_eq!(cuts.iter().map(Vec::len).collect::<Vec<_>>(), [768, 768]);
    assert_eq!(cuts[1], [&[3, 28, 1, 2], &packet(1500, 1)[764..], &[0; 28]].concat());
    assert_eq!(parsed(&cuts[1]).bytes(), &packet(1500, 1)[764..]);
}

#[test]
fn a_fragment_is_one_of_two_to_eight_and_not_empty() {
    for count in 0..=u8::MAX {
        for index in 0..=u8::MAX {
            let sound = (2..=8).contains(&count) && index < count;
            let expected = sound.then(|| Frame::Fragment(fragment(index, count, b"x")));
            let expected = expected.ok_or(DropReason::FragmentMalformed);
            assert_eq!(frame::parse(&[3, 0, index, count, b'x']), expected);
        }
    }
    for short in [&[3, 0][..], &[3, 0, 0], &[3, 0, 0, 2], &[3, 1, 0, 2, 0]] {
        assert_eq!(frame::parse(short), Err(DropReason::FragmentMalformed), "{short:?}");
    }
    for no_frame in [&[3][..], &[3, 1], &[3, 4, 0, 2, 0]] {
        assert_eq!(frame::parse(no_frame), Err(DropReason::FrameMalformed), "{no_frame:?}");
    }
}

/// A packet in transit.
struct Sent {
    first: u64,
    packet: Vec<u8>,
    plaintexts: Vec<Vec<u8>>,
}

fn send(packets: &[(Index, usize, u64)]) -> Vec<Sent> {
    let mut next = 0;
    let send = |&(len, max_datagram, salt): &(Index, usize, u64)| {
        let packet = packet(2 + len.index(8 * room(max_datagram) - 1), salt);
        let plaintexts = cut(&packet, plan(packet.len(), max_datagram).unwrap());
        let first = next;
        next += plaintexts.len() as u64;
        Sent { first, packet, plaintexts }
    };
    packets.iter().map(send).collect()
}

/// Every fragment, as the numbers of its packet and its own, in some order.
fn shuffled(all: &[Sent], seed: u64) -> Vec<(usize, usize)> {
    let fragments = |(at, sent): (usize, &Sent)| (0..sent.plaintexts.len()).map(move |n| (at, n));
    let mut order: Vec<_> = all.iter().enumerate().flat_map(fragments).collect();
    order.shuffle(&mut StdRng::seed_from_u64(seed));
    order
}

proptest! {
    #[test]
    fn packets_survive_any_disorder_and_a_lost_fragment_costs_its_packet_alone(
        packets in prop::collection::vec((any::<Index>(), 48..400usize, any::<u64>()), 1..=64),
        losses in prop::collection::vec(any::<Index>(), 0..12),
        seed in any::<u64>(),
    ) {
        let all = send(&packets);
        let order = shuffled(&all, seed);
        let lost: Vec<_> = losses.iter().map(|loss| order[loss.index(order.len())]).collect();
        let mut reassembly = Reassembly::new(8 * room(400));
        let (mut came, mut delivered) = (vec![0; all.len()], vec![0; all.len()]);
        for &(at, number) in order.iter().filter(|fragment| !lost.contains(fragment)) {
            let (sent, fragment) = (&all[at], parsed(&all[at].plaintexts[number]));
            let counter = sent.first + number as u64;
            let whole = reassembly.insert(session(0), counter, fragment, after(0));
            came[at] += 1;
            if let Some(whole) = whole.unwrap() {
                prop_assert_eq!(&*whole, &sent.packet);
                delivered[at] += 1;
            }
        }
        let mut unassembled = 0;
        for (at, sent) in all.iter().enumerate() {
            let arrived = came[at] == sent.plaintexts.len();
            prop_assert_eq!(delivered[at], usize::from(arrived), "packet {}", at);
            unassembled += usize::from(came[at] > 0 && !arrived);
        }
        prop_assert_eq!(reassembly.purge(after(1999)), 0);
        prop_assert_eq!(reassembly.purge(after(2000)), unassembled);
        prop_assert_eq!(reassembly.purge(after(9000)), 0);
    }
}

#[test]
fn fragments_that_come_too_late_meet_nobody() {
    let mut reassembly = Reassembly::new(100);
    let [first, second] = [fragment(0, 2, b"ab"), fragment(1, 2, b"c")];
    assert_eq!(reassembly.insert(session(0), 0, first, after(0)), Ok(None));
    assert_eq!(reassembly.insert(session(0), 1, second, after(1999)).unwrap().unwrap(), b"abc");
    assert_eq!(reassembly.insert(session(0), 2, first, after(0)), Ok(None));
    assert_eq!(
        reassembly.insert(session(0), 3, second, after(2000)),
        Ok(None),
        "a packet of its own"
    );
    assert_eq!(reassembly.insert(session(0), 2, first, after(3999)).unwrap().unwrap(), b"abc");
    assert_eq!(reassembly.purge(after(3999)), 1);
}

#[test]
fn the_sixty_fifth_packet_pushes_out_the_oldest() {
    let mut reassembly = Reassembly::new(100);
    for packet in 0..=64 {
        assert_eq!(
            reassembly.insert(session(0), packet * 2, fragment(0, 2, b"ab"), after(0)),
            Ok(None)
        );
    }
    assert_eq!(reassembly.purge(after(0)), 1);
    for packet in 1..=64 {
        let whole = reassembly.insert(session(0), packet * 2 + 1, fragment(1, 2, b"c"), after(0));
        assert_eq!(whole.unwrap().unwrap(), b"abc");
    }
    assert_eq!(reassembly.insert(session(0), 1, fragment(1, 2, b"c"), after(0)), Ok(None));
    assert_eq!(reassembly.purge(after(2000)), 1);
}

#[test]
fn one_session_does_not_complete_what_another_began() {
    let mut reassembly = Reassembly::new(100);
    assert_eq!(reassembly.insert(session(1), 0, fragment(0, 2, b"ab"), after(0)), Ok(None));
    assert_eq!(reassembly.insert(session(2), 1, fragment(1, 2, b"z"), after(0)), Ok(None));
    let whole = reassembly.insert(session(1), 1, fragment(1, 2, b"c"), after(0));
    assert_eq!(whole.unwrap().unwrap(), b"abc");
    let whole = reassembly.insert(session(2), 0, fragment(0, 2, b"xy"), after(0));
    assert_eq!(whole.unwrap().unwrap(), b"xyz");
}

#[test]
fn fragments_agree_or_are_refused_and_those_before_them_stand() {
    use DropReason::{FragmentConflicts, FragmentMalformed, LargerThanMtu};
    let mut reassembly = Reassembly::new(10);
    for (counter, fragment, outcome) in [
        (6, fragment(1, 3, b"bbb"), Ok(None)),
        (6, fragment(1, 3, b"bbb"), Err(FragmentConflicts)),
        (5, fragment(0, 2, b"aaa"), Err(FragmentConflicts)),
        (5, fragment(0, 3, b"aa"), Err(FragmentConflicts)),
        (7, fragment(2, 3, b"ccccc"), Err(FragmentConflicts)),
        (7, fragment(2, 3, b"cccc"), Ok(None)),
        (7, fragment(2, 3, b"cc"), Err(FragmentConflicts)),
        (5, fragment(0, 3, b"aaa"), Ok(Some(&b"aaabbbcccc"[..]))),
        // The last one first: the others have to leave room for it.
        (11, fragment(2, 3, b"cc"), Ok(None)),
        (10, fragment(1, 3, b"bbbbb"), Err(LargerThanMtu)),
        (10, fragment(1, 3, b"bbbb"), Ok(None)),
        (9, fragment(0, 3, b"aaaa"), Ok(Some(b"aaaabbbbcc"))),
        (20, fragment(1, 2, b"ccccccccc"), Ok(None)),
        (19, fragment(0, 2, b"bb"), Err(FragmentConflicts)),
        (19, fragment(0, 2, b"a"), Ok(Some(b"accccccccc"))),
        (30, fragment(1, 2, b"cccccccccc"), Err(LargerThanMtu)),
        (30, fragment(0, 2, b"aaaaaaaaaa"), Err(LargerThanMtu)),
        (0, fragment(1, 2, b"c"), Err(FragmentMalformed)),
    ] {
        let got = reassembly
            .insert(session(0), counter, fragment, after(0))
            .map(|whole| whole.map(|w| &*w));
        assert_eq!(got, outcome, "{fragment:?} of {counter}");
    }
    assert_eq!(reassembly.purge(after(2000)), 0, "what is refused leaves nothing behind");
}

/// Counts the results of the fragments.
#[derive(Debug, Default)]
struct Outcomes {
    delivered: usize,
    kept: usize,
    malformed: usize,
    too_large: usize,
    conflicts: usize,
    unassembled: usize,
}

#[test]
fn hostile_fragments_deliver_what_was_sent_or_nothing_and_allocate_nothing() {
    let long = env::var("VPND_TESTS").is_ok_and(|tests| tests == "long");
    let seeds = match env::var("VPND_SEED").ok().map(|seed| seed.parse().unwrap()) {
        Some(seed) => seed..seed + 1,
        None => 0..if long { 200 } else { 20 },
    };
    let mut all = Outcomes::default();
    seeds.for_each(|seed| survive(seed, &mut all));
    println!("{all:?}");
    let Outcomes { delivered, kept, malformed, too_large, conflicts, unassembled } = all;
    let all = [delivered, kept, malformed, too_large, conflicts, unassembled];
    assert!(all.iter().all(|&times| times > 10));
}

/// Five thousand fragments, for each of which the code and the model must agree.
fn survive(seed: u64, outcomes: &mut Outcomes) {
    let mut hostility = Hostility::new(seed);
    let largest = hostility.largest;
    let (mut reassembly, mut model) = (Reassembly::new(largest), Model::new(largest));
    for number in 0..5000 {
        let (shot, now) = hostility.shoot();
        let (generation, bytes) = (session(shot.session), &hostility.noise[shot.bytes.clone()]);
        let fragment = fragment(shot.index, shot.count, bytes);
        let expected = model.insert(generation, shot.counter, fragment, now);
        let mut same = false;
        let allocated = measure(|| {
            let got = reassembly.insert(generation, shot.counter, fragment, now);
            let expected = expected.as_ref().map(Option::as_deref).map_err(|&reason| reason);
            same = got.map(|whole| whole.map(|whole| &*whole)) == expected;
        });
        assert!(same, "VPND_SEED={seed}: fragment {number}, {shot:?}: not {expected:?}");
        assert_eq!(allocated.count_total, 0, "VPND_SEED={seed}: fragment {number}, {shot:?}");
        outcomes.note(&expected);
        if number % 64 == 0 {
            outcomes.unassembled += compare_dead(&mut reassembly, &mut model, now, seed);
        }
    }
    let end = hostility.now() + FRAGMENTS_WITHIN;
    outcomes.unassembled += compare_dead(&mut reassembly, &mut model, end, seed);
}

fn compare_dead(reassembly: &mut Reassembly, model: &mut Model, now: BootTime, seed: u64) -> usize {
    let dead = reassembly.purge(now);
    assert_eq!(dead, model.purge(now), "VPND_SEED={seed}");
    dead
}

impl Outcomes {
    fn note(&mut self, outcome: &Result<Option<Vec<u8>>, DropReason>) {
        match outcome {
            Ok(Some(_)) => self.delivered += 1,
            Ok(None) => self.kept += 1,
            Err(DropReason::FragmentMalformed) => self.malformed += 1,
            Err(DropReason::LargerThanMtu) => self.too_large += 1,
            Err(_) => self.conflicts += 1,
        }
    }
}

#[test]
fn congestion_of_any_fragment_is_the_packets() {
    for marked in [[true, false], [false, true], [false, false]] {
        let mut reassembly = Reassembly::new(100);
        let mut take = |counter, fragment, mark| {
            let whole = reassembly.insert_marked(session(0), counter, (fragment, mark), after(0));
            whole.unwrap().map(|(_, congested)| congested)
        };
        assert_eq!(take(0, fragment(0, 2, b"ab"), marked[0]), None);
        assert_eq!(take(1, fragment(1, 2, b"c"), marked[1]), Some(marked != [false, false]));
    }
}

impl Reassembly {
    /// A fragment that met no congestion.
    fn insert(
        &mut self,
        generation: Generation,
        counter: u64,
        fragment: Fragment<'_>,
        now: BootTime,
    ) -> Result<Option<&mut [u8]>, DropReason> {
        let whole = self.insert_marked(generation, counter, (fragment, false), now)?;
        Ok(whole.map(|(packet, _congested)| packet))
    }
}

#[test]
fn a_new_size_keeps_what_waits_and_still_fits() {
    let sent = packet(1200, 1);
    let cuts = cut(&sent, plan(1200, 500).unwrap());
    let insert = |reassembly: &mut Reassembly, number: usize, now| {
        let whole = reassembly.insert(session(0), number as u64, parsed(&cuts[number]), now);
        whole.unwrap().map(|whole| whole.to_vec())
    };
    // Which of the three fragments arrive before the change.
    for before in 1..0b111 {
        let mut reassembly = Reassembly::new(1500);
        let (first, second): (Vec<_>, Vec<_>) =
            (0..cuts.len()).partition(|number| before & (1 << number) != 0);
        assert!(first.iter().all(|&one| insert(&mut reassembly, one, after(0)).is_none()));
        for largest in [1300, 65_535, 1200, 1200] {
            reassembly.resize(largest);
        }
        let whole = second.iter().filter_map(|&one| insert(&mut reassembly, one, after(1999)));
        assert_eq!(whole.collect::<Vec<_>>(), [&sent[..]], "{before:b} came before");
        assert_eq!(reassembly.purge(after(9000)), 0);
    }
    // Its known length already exceeds the new limit.
    let mut reassembly = Reassembly::new(1500);
    assert_eq!([0, 1].map(|one| insert(&mut reassembly, one, after(0))), [None, None]);
    reassembly.resize(700);
    assert_eq!(reassembly.purge(after(0)), 1);
}
