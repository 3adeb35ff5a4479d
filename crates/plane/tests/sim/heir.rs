//! A process that hands its sessions on to the next one: nothing is lost, and the peer notices nothing. The oracle asserts
//! all the time that no two processes seal with one key and counter.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use vpnd_protocol::inheritance::Inheritance;
use vpnd_protocol::peer::Change;

use crate::end::Side;
use crate::network::Kind;
use crate::world::{World, millis, seconds};

/// Both ends send a thousand packets a second.
fn flowing(seed: u64) -> World {
    flowing_every(seed, millis(1))
}

fn flowing_every(seed: u64, interval: Duration) -> World {
    let mut world = World::new(seed);
    for side in Side::BOTH {
        world.resolve(side);
    }
    world.run_for(seconds(1));
    for side in Side::BOTH {
        world.offer_every(side, interval);
    }
    world.run_for(seconds(1));
    world
}

fn ensure_nothing_lost(world: &World, since: Duration) {
    for side in Side::BOTH {
        let (offered, arrived) = world.oracle.tally(side, since, world.now - seconds(1));
        assert_eq!(offered, arrived, "{side:?}");
        assert!(offered > 100, "{side:?}: {offered}");
        let ended = world
            .changed(side, |change| matches!(change, Change::Dead | Change::Lost | Change::Closed));
        assert_eq!(ended.len(), 0, "{side:?} {ended:?}");
    }
}

#[test]
fn nothing_is_lost_when_a_process_hands_on_to_the_next() {
    for side in Side::BOTH {
        let mut world = flowing(1);
        let since = world.now;
        for _ in 0..20 {
            world.hand_on(side);
            world.run_for(millis(700));
        }
        world.run_for(seconds(2));
        ensure_nothing_lost(&world, since);
    }
}

#[test]
fn both_ends_may_hand_on_at_any_time() {
    let seeds = if std::env::var("VPND_TESTS").is_ok_and(|size| size == "long") { 200 } else { 10 };
    for seed in 0..seeds {
        let mut world = flowing_every(seed, millis(5));
        let mut rng = StdRng::seed_from_u64(seed);
        let since = world.now;
        for _ in 0..10 {
            let side = Side::BOTH[usize::from(rng.random_bool(0.5))];
            world.hand_on(side);
            world.run_for(millis(rng.random_range(60..8000)));
        }
        world.run_for(seconds(2));
        ensure_nothing_lost(&world, since);
    }
}

/// Until the new session is there, the next process sends only the initiation.
#[test]
fn an_heir_sends_nothing_but_a_handshake() {
    let mut world = flowing(2);
    // Between two packets.
    world.run_for(Duration::from_micros(300));
    let since = world.now;
    world.hand_on(Side::A);
    // Less than a round trip.
    world.run_for(millis(15));
    let sent: Vec<_> = world.network.wire.iter().filter(|one| one.at >= since).collect();
    let kinds: Vec<_> =
        sent.iter().filter(|one| one.by == Side::A).map(|one| one.datagram.kind()).collect();
    assert_eq!(kinds, [Kind::Initiation]);
}

#[test]
fn what_the_peer_sent_before_is_a_replay_after() {
    let mut world = flowing(3);
    let recorded: Vec<_> = {
        let of_b = world.network.wire.iter().filter(|one| one.by == Side::B);
        of_b.map(|one| one.datagram.clone()).collect()
    };
    world.stop_offers();
    world.run_for(seconds(1));
    world.hand_on(Side::A);
    // A packet that is delivered twice makes the oracle panic.
    recorded.into_iter().for_each(|datagram| world.inject(datagram));
    world.run_for(seconds(1));
}

/// The next process knows which of the peer's initiations are old.
#[test]
fn an_initiation_from_before_is_a_replay_after() {
    for side in Side::BOTH {
        // Both ends have initiated once.
        let mut world = flowing(6);
        world.hand_on(side.other());
        world.run_for(seconds(1));
        world.stop_offers();
        let of_peer = |world: &World, kind| {
            let all = world.network.wire.iter().filter(|one| one.by == side.other());
            all.filter(|one| one.datagram.kind() == kind).map(|one| one.datagram.clone()).collect()
        };
        let initiations: Vec<_> = of_peer(&world, Kind::Initiation);
        world.hand_on(side);
        world.run_for(seconds(2));
        let since = world.now;
        let initiation = initiations.last().expect("the next process of the peer has initiated");
        world.inject(initiation.clone());
        world.run_for(seconds(1));
        let sent = world.network.wire.iter().filter(|one| one.at >= since && one.by == side);
        let answers = sent.filter(|one| one.datagram.kind() == Kind::Response).count();
        assert_eq!(answers, 0, "{side:?} answers an initiation of before");
    }
}

/// After a crash only the kernel's objects are there. The peer counts as alive as long as it may be.
#[test]
fn after_a_crash_the_carrier_and_the_routes_stay() {
    let mut world = flowing(4);
    let boot = world[Side::A].clock(world.now).boot;
    world.at(Side::A, |end, now| end.take_over(now, Inheritance::of_a_crash(boot)));
    let crashed = world.now;
    world.run_for(seconds(5));
    let ended = world.changed(Side::A, |change| *change == Change::Dead);
    assert_eq!(ended.len(), 0);
    let back = world.oracle.first_delivery(Side::A, crashed).expect("it sends again");
    assert!(back <= crashed + millis(60), "{:?}", back - crashed);
}

/// A peer that has gone meanwhile is dead when its time is over.
#[test]
fn an_inherited_peer_that_is_silent_dies() {
    let mut world = flowing_every(5, millis(10));
    world.suspend(Side::B);
    world.run_for(millis(50));
    world.hand_on(Side::A);
    let dead_after = world[Side::A].options.dead_after;
    // Nothing can be sent, so that only the end of the attempt shows it.
    world.run_for(dead_after * 2);
    let ended = world.changed(Side::A, |change| *change == Change::Dead);
    assert_eq!(ended.len(), 1);
}
