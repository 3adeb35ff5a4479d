//! Both ends initiate at once: both sessions stand, and nothing is lost.

use std::time::Duration;

use vpnd_protocol::peer::Change;

use crate::end::Side;
use crate::network::Kind;
use crate::world::{World, millis, seconds};

/// B follows A after this long; both have packets to send, before and after.
fn crossed(offset: Duration) -> World {
    let mut world = World::new(1);
    for side in Side::BOTH {
        world.offer_every(side, millis(20));
    }
    world.resolve(Side::A);
    world.run_for(offset);
    world.resolve(Side::B);
    world
}

fn established(world: &World, side: Side) -> Vec<Duration> {
    world.changed(side, |one| matches!(one, Change::Established(_)))
}

#[test]
fn crossed_initiations_converge_at_once_and_lose_nothing_nor_does_the_rekey() {
    for offset in [0, 1, 4, 5, 9].map(millis) {
        let mut world = crossed(offset);
        world.run_until(millis(100));
        for side in Side::BOTH {
            assert!(established(&world, side)[0] <= millis(50), "{offset:?}");
            assert_eq!(world.sent(side, Kind::Initiation).len(), 1);
        }
        world.run_until(seconds(280));
        for side in Side::BOTH {
            let (offered, arrived) = world.oracle.tally(side, seconds(0), seconds(279));
            assert_eq!((offered, arrived), (13_950, 13_950), "{side:?} {offset:?}");
        }
        let initiations: usize =
            Side::BOTH.map(|side| world.sent(side, Kind::Initiation).len()).iter().sum();
        assert_eq!(initiations, 4, "two crossed, then one every two minutes: {offset:?}");
    }
}

/// Whatever overtakes what, and however late the control plane gets up.
#[test]
fn crossed_initiations_lose_nothing_when_everything_overtakes_everything() {
    for seed in 0..100 {
        let mut world = World::new(seed);
        world.network.weather.delay = millis(0)..=millis(seed * 5);
        world.drowsiness = millis(seed % 7 * 10);
        for side in Side::BOTH {
            world.offer_every(side, millis(100));
            world.resolve(side);
        }
        world.run_until(seconds(280));
        for side in Side::BOTH {
            let (offered, arrived) = world.oracle.tally(side, seconds(0), seconds(279));
            assert_eq!((offered, arrived), (2790, 2790), "{side:?} with seed {seed}");
        }
        let [a, b] = Side::BOTH.map(|side| world.sent(side, Kind::Initiation));
        assert_eq!(a.len() + b.len(), 4, "seed {seed}: {a:?} {b:?}");
    }
}

/// The sessions of a crossing do not both ask for a successor: who has the greater public key
/// does, and the other waits ten seconds longer for it.
#[test]
fn after_a_crossing_the_smaller_key_waits_ten_seconds_longer() {
    let (smaller, greater) = (Side::smaller(), Side::smaller().other());
    for (mute, first) in [(smaller, greater), (greater, smaller)] {
        let mut world = crossed(millis(0));
        world.network.loses = Some(Box::new(move |sent| {
            sent.by == mute && sent.datagram.kind() == Kind::Initiation && sent.at > seconds(100)
        }));
        world.run_until(seconds(140));
        let rekeys = |side| world.sent(side, Kind::Initiation).get(1).copied();
        let due = |side| millis(if side == smaller { 130_020 } else { 120_020 });
        assert_eq!(rekeys(first), Some(due(first)), "{first:?} is heard");
        let unheard = rekeys(mute);
        assert_eq!(unheard, Some(due(mute)).filter(|at| *at < due(first)), "{mute:?} is not");
    }
}
