//! Rotations, restarts and reloads of both ends that cross each other in any order, and the order of effects.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use vpnd_crypto::aead::Algorithm;
use vpnd_protocol::profile::{Kem, Mode, Profile};
use vpnd_protocol::terms::Protocol;

use crate::end::{End, Floor, Side};
use crate::hostile::each_seed;
use crate::world::{World, millis, seconds};

const SEEDS: u64 = 100;
const SEEDS_LONG: u64 = 1000;

/// What an administrator does to an end.
#[derive(Clone, Copy, Debug)]
enum Change {
    Rotate,
    Restart,
    /// Its two preshared keys change places.
    Reload,
}

#[test]
fn rotations_restarts_and_reloads_may_cross() {
    each_seed(SEEDS, SEEDS_LONG, |seed| {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = flowing(seed, &mut rng);
        for _ in 0..12 {
            let side = *Side::BOTH.choose(&mut rng).expect("two");
            let changes = [Change::Rotate, Change::Restart, Change::Reload];
            change(&mut world, side, *changes.choose(&mut rng).expect("three"));
            // Often in the middle of the handshake that the last one began.
            let pause = if rng.random() { millis(30) } else { seconds(20) };
            world.run_for(rng.random_range(millis(0)..pause));
        }
        // A change in the middle of a handshake may cost a try, and restarts that cross two.
        world.run_for(seconds(20));
        let calm = world.now;
        world.run_for(seconds(20));
        for side in Side::BOTH {
            assert!(world[side].alive, "{side:?}, seed {seed}");
            let (offered, arrived) = world.oracle.tally(side, calm, world.now - seconds(1));
            assert!(offered > 0 && offered == arrived, "{side:?} {offered} {arrived}, seed {seed}");
        }
    });
}

fn flowing(seed: u64, rng: &mut StdRng) -> World {
    let kem = if rng.random() { Kem::MlKem768 } else { Kem::None };
    let protocol = if rng.random() { profile(kem) } else { Protocol::WireGuard };
    let mut world = World::with(seed, |side, options| {
        options.protocol = protocol;
        options.preshared = vec![[1; 32], [2; 32]];
        options.watch = true;
        let next = [[11; 32], [12; 32]].map(Some);
        options.next = if side == Side::A { next } else { [next[1], next[0]] };
    });
    for side in Side::BOTH {
        world.resolve(side);
        world.offer_every(side, millis(100));
    }
    world.run_for(seconds(2));
    world
}

const fn profile(kem: Kem) -> Protocol {
    Protocol::Vpnd(Profile { mode: Mode::Tun, cipher: Algorithm::ChaCha20Poly1305, kem })
}

fn change(world: &mut World, side: Side, change: Change) {
    match change {
        Change::Rotate => world.at(side, End::rotate),
        Change::Restart => world.restart(side, Floor::Kept),
        Change::Reload => {
            world[side].options.preshared.reverse();
            world.at(side, End::adopt);
        }
    }
}

/// [`End`] checks the order of effects in every test of the simulator. This one makes sure that it has seen them.
#[test]
fn effects_come_in_their_order() {
    let mut world = World::with(1, |_, options| {
        options.protocol = profile(Kem::None);
        options.watch = true;
    });
    for side in Side::BOTH {
        world.resolve(side);
        world.offer_every(side, seconds(1));
    }
    world.run_for(seconds(300));
    world.at(Side::B, End::close);
    world.run_for(seconds(1));
    let checked = Side::BOTH.map(|side| world[side].checked);
    assert!(checked[0].responses + checked[1].responses > 2, "{checked:?}");
    assert!(checked[0].hooks >= 2, "alive and dead: {checked:?}");
}
