//! The path's MTU: found, followed by the device, and lost again.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use vpnd_crypto::aead::Algorithm;
use vpnd_protocol::limits::{HEADERS_V4, LEAST_DATAGRAM};
use vpnd_protocol::peer::{Change, PathSize, Probed};
use vpnd_protocol::profile::{Kem, Mode, Profile};
use vpnd_protocol::session::OVERHEAD;
use vpnd_protocol::terms::Protocol;

use crate::end::Side;
use crate::world::{World, millis, seconds};

const LINK: u16 = 1500 - HEADERS_V4;

/// Both ends over Ethernet, with full packets in both directions.
fn flowing(seed: u64, raise_after: Duration) -> World {
    let mut world = World::with(seed, |_, options| {
        options.protocol = Protocol::Vpnd(Profile {
            mode: Mode::Tun,
            cipher: Algorithm::ChaCha20Poly1305,
            kem: Kem::None,
        });
        options.link = Some(LINK);
        options.mtu_follows = Some(LINK);
        options.raise_after = raise_after;
    });
    world.full_size = true;
    for side in Side::BOTH {
        world.resolve(side);
        world.offer_every(side, millis(10));
    }
    world
}

fn carry(world: &mut World, mtu: u16, reports: bool) {
    world.network.most = Some(usize::from(mtu - HEADERS_V4));
    world.network.reports = reports;
}

/// The MTU of the device over a path of this MTU.
fn inside(mtu: u16) -> u16 {
    let payload = usize::from(mtu - HEADERS_V4);
    u16::try_from(payload - OVERHEAD).expect("an MTU").max(1280)
}

fn ensure_mtu(world: &World, mtu: u16) {
    for side in Side::BOTH {
        assert_eq!(world[side].device_mtu, inside(mtu), "{side:?} over {mtu} at {:?}", world.now);
    }
}

/// The longest time without a delivery to either end since then.
fn stall(world: &World, since: Duration) -> Duration {
    let longest = |from: Side| {
        let mine = world.oracle.packets.iter().filter(|one| one.from == from);
        let mut times: Vec<_> = mine.filter_map(|one| one.delivered).collect();
        times.push(world.now);
        times.sort_unstable();
        times.retain(|at| *at >= since);
        times.windows(2).map(|two| two[1] - two[0]).max().unwrap_or(Duration::MAX)
    };
    Side::BOTH.map(longest).into_iter().max().expect("two ends")
}

#[test]
fn the_device_takes_what_the_path_carries_within_a_round_trip_of_the_first_session() {
    let mut world = flowing(1, seconds(600));
    world.run_for(millis(500));
    ensure_mtu(&world, 1500);
    assert!(Side::BOTH.iter().all(|side| world[*side].dont_fragment));
}

#[test]
fn the_path_shrinks_and_grows_under_traffic() {
    for reports in [false, true] {
        let mut world = flowing(2, seconds(10));
        world.run_for(seconds(2));
        for mtu in [1280, 1500, 1400] {
            carry(&mut world, mtu, reports);
            for side in Side::BOTH {
                if mtu == 1500 {
                    // The kernel forgets what was reported.
                    world[side].options.link = Some(LINK);
                }
            }
            let before = world.now;
            world.run_for(seconds(20));
            ensure_mtu(&world, mtu);
            let stall = stall(&world, before);
            assert!(stall < millis(1600), "{mtu}, reports {reports}: {stall:?}");
            println!("path of {mtu}, ICMP {reports}: longest stall {stall:?}");
        }
    }
}

#[test]
fn a_jumbo_path_is_found_and_a_narrow_one_is_never_exceeded_for_long() {
    let mut world = flowing(3, seconds(600));
    for side in Side::BOTH {
        world[side].options.link = Some(9000 - HEADERS_V4);
    }
    world.run_for(seconds(8));
    for side in Side::BOTH {
        // The device's MTU is bounded.
        assert_eq!(world[side].device_mtu, LINK);
        let found = world.changed(side, |change| *change == Change::PathCarries { payload: 8972 });
        assert_eq!(found.len(), 1, "{side:?}");
    }
}

#[test]
fn probes_count_for_no_loss() {
    let mut world = flowing(4, seconds(600));
    carry(&mut world, 1400, false);
    world.run_for(seconds(20));
    for side in Side::BOTH {
        let now = world.now;
        let quality = world[side].status(now).quality.expect("it was measured");
        assert_eq!(quality.outward.sent, quality.outward.arrived, "{side:?}");
        assert_eq!(quality.inward.sent, quality.inward.arrived, "{side:?}");
    }
}

/// A size is tried so often before it counts as too large.
const TRIES: usize = 3;
/// The longest time for which data of a size is sent that the path no longer carries: the rest of a round of a search in which
/// that size was just answered (600 ms), the time until it is confirmed again (500 ms), and its three tries (600 ms).
const NARROWED: Duration = millis(1750);

/// One end since the path became narrower.
#[derive(Debug, Default)]
struct Narrowing {
    /// When the size in use was tried.
    tries: BTreeSet<Duration>,
    /// How often nothing was concluded, because no small probe was answered either.
    unreached: usize,
}

impl Narrowing {
    /// Takes the end's status, which is of an end whose data is too large.
    fn look(&mut self, now: Duration, since: Duration, size: &PathSize) {
        let of = |size| move |(_, probe): &&(Duration, Probed)| probe.size == size;
        let tries = size.probes.iter().filter(of(size.payload)).map(|(age, _)| now - *age);
        let newest = tries.max().filter(|at| *at >= since);
        let is_fourth = newest.is_some_and(|at| !self.tries.contains(&at));
        let small = size.probes.iter().find(of(LEAST_DATAGRAM));
        if is_fourth && self.tries.len() == TRIES && small.is_some_and(|(_, one)| !one.answered) {
            self.tries.clear();
            self.unreached += 1;
        }
        self.tries.extend(newest);
    }
}

/// Lets time pass until neither end sends data that is larger than the path carries: within three tries that reached the peer.
/// Returns how long that took, and whether all tries reached it.
fn ensure_narrowed(world: &mut World, mtu: u16) -> (Duration, bool) {
    let (since, most) = (world.now, mtu - HEADERS_V4);
    let mut ends = [Narrowing::default(), Narrowing::default()];
    loop {
        let now = world.now;
        // Without a session nothing is sent.
        let sizes = Side::BOTH.map(|side| world[side].status(now).path_size);
        let known =
            ends.iter_mut().zip(&sizes).filter_map(|(end, size)| Some((end, size.as_ref()?)));
        let too_large: Vec<_> = known.filter(|(_, size)| size.payload > most).collect();
        if too_large.is_empty() {
            break;
        }
        for (end, size) in too_large {
            end.look(now, since, size);
            assert!(end.tries.len() <= TRIES, "path of {mtu} since {since:?}: {end:?}, {size:?}");
        }
        world.run_for(millis(10));
    }
    (world.now - since, ends.iter().all(|end| end.unreached == 0))
}

/// How many seeds, and which one alone.
fn seeds() -> std::ops::Range<u64> {
    if std::env::var("VPND_TESTS").is_ok_and(|size| size == "long") { 0..2000 } else { 0..60 }
}

#[test]
fn changing_sizes_loss_and_reordering_never_keep_it_from_the_right_size() {
    let (mut slowest, mut unreached) = (Duration::ZERO, 0);
    for seed in seeds() {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = flowing(seed, seconds(10));
        world.network.weather.loss = rng.random_range(0.0..0.2);
        world.network.weather.delay = millis(5)..=millis(40);
        for _ in 0..3 {
            let mtu = rng.random_range(1280..=1500);
            carry(&mut world, mtu, rng.random_bool(0.3));
            let changed = world.now;
            let (took, is_reached) = ensure_narrowed(&mut world, mtu);
            assert!(took < NARROWED || !is_reached, "seed {seed}, path of {mtu}: {took:?}");
            unreached += usize::from(!is_reached);
            slowest = slowest.max(took);
            world.run_until(changed + seconds(20));
            let most = usize::from(mtu - HEADERS_V4);
            let late = changed + seconds(8);
            // Each end searches twice in this time, with three tries of up to eighteen sizes. Of data there would be thousands.
            let larger = world.network.wire.iter().filter(|sent| sent.at > late);
            let larger = larger.filter(|sent| sent.datagram.bytes.len() > most).count();
            assert!(larger < 300, "seed {seed}: {larger} datagrams above {mtu}");
            for side in Side::BOTH {
                world[side].options.link = Some(LINK);
            }
        }
        world.network.weather.loss = 0.0;
        carry(&mut world, 1400, false);
        world.run_for(seconds(40));
        for side in Side::BOTH {
            assert_eq!(world[side].device_mtu, inside(1400), "seed {seed}, {side:?}");
        }
    }
    println!(
        "data was too large for {slowest:?} at most; {unreached} times the peer was not reached"
    );
}

#[test]
fn a_path_that_carries_the_least_size_alone_is_used_at_that_size() {
    let mut world = flowing(5, seconds(600));
    world.network.most = Some(LEAST_DATAGRAM.into());
    world.run_for(seconds(20));
    ensure_mtu(&world, 1280);
    let (offered, arrived) = world.oracle.tally(Side::A, seconds(1), seconds(19));
    assert!(arrived == offered && offered > 1000, "{arrived} of {offered}");
}

/// Somebody on the path sends each datagram ahead from another address, so that answers to probes go there. It drops nothing.
#[test]
fn copies_that_are_sent_ahead_do_not_keep_it_from_the_right_size() {
    let mut world = flowing(6, seconds(10));
    let stranger = SocketAddr::from(([198, 51, 100, 66], 666));
    let most = Rc::new(Cell::new(LINK));
    let fits = Rc::clone(&most);
    world.network.spoofs = Some(Box::new(move |sent| {
        (sent.datagram.bytes.len() <= fits.get().into()).then_some(stranger)
    }));
    world.run_for(seconds(5));
    ensure_mtu(&world, 1500);
    for mtu in [1400, 1300] {
        carry(&mut world, mtu, false);
        most.set(mtu - HEADERS_V4);
        world.run_for(seconds(20));
        ensure_mtu(&world, mtu);
    }
    world.oracle.spares(|at| at == stranger);
}
