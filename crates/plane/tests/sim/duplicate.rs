//! Two machines with one key, and honest peers that resemble them.

use std::time::Duration;

use vpnd_crypto::aead::Algorithm;
use vpnd_protocol::peer::{Change, Diagnosis, Event};
use vpnd_protocol::profile::{Kem, Mode, Profile};
use vpnd_protocol::terms::Protocol;

use crate::end::{Floor, Options, Side};
use crate::world::{World, millis, seconds};

fn protocols() -> [Protocol; 3] {
    let vpnd = |kem| {
        let cipher = Algorithm::ChaCha20Poly1305;
        Protocol::Vpnd(Profile { mode: Mode::Tun, cipher, kem })
    };
    [Protocol::WireGuard, vpnd(Kem::None), vpnd(Kem::MlKem768)]
}

/// A knows where B is, and B waits.
fn world(change: impl Fn(&mut Options)) -> World {
    World::with(1, |side, options| {
        options.endpoint = options.endpoint.filter(|_| side == Side::A);
        change(options);
    })
}

fn told(world: &World) -> Vec<Duration> {
    let found = |one: &Diagnosis| matches!(one, Diagnosis::DuplicateKey { .. });
    for side in [Side::A, Side::B] {
        assert!(side == Side::B || world.diagnosed(side, found).is_empty(), "A cannot know");
    }
    world.diagnosed(Side::B, found)
}

/// A and its copy send data all the time.
fn copied(protocol: Protocol, change: impl Fn(&mut World)) -> World {
    let mut world = world(|options| options.protocol = protocol);
    world.copy_a(1);
    change(&mut world);
    world.resolve(Side::A);
    world.offer_every(Side::A, millis(200));
    world.run_until(seconds(1));
    world.resolve(Side::C);
    world.offer_every(Side::C, millis(200));
    world
}

#[test]
fn two_machines_with_one_key_are_found() {
    let expected = [Side::A.home(), Side::C.home()];
    for protocol in protocols() {
        let mut world = copied(protocol, |_| ());
        world.run_until(seconds(300));
        let told = told(&world);
        let first = *told.first().expect("found");
        assert!((seconds(10)..seconds(90)).contains(&first), "{protocol}: {first:?}");
        let apart = told.windows(2).map(|pair| pair[1] - pair[0]).max();
        assert!(apart < Some(seconds(100)), "{protocol}: found again after {apart:?}");
        assert!(world[Side::B].events.iter().all(|(_, event)| match event {
            Event::Diagnosis(Diagnosis::DuplicateKey { addresses }) => *addresses == expected,
            _ => true,
        }));
    }
}

/// Behind one address translation they differ in nothing but the port.
#[test]
fn two_machines_behind_one_address_are_found() {
    let mut world = copied(Protocol::WireGuard, |world| {
        world[Side::C].address.set_ip(Side::A.home().ip());
        world[Side::C].address.set_port(1024);
    });
    world.run_until(seconds(120));
    assert!(!told(&world).is_empty());
}

/// What they have to say is little: they ask each other for signs of life.
#[test]
fn two_idle_machines_that_watch_the_peer_are_found() {
    for protocol in protocols() {
        let mut world = world(|options| {
            options.protocol = protocol;
            (options.keepalive, options.watch) = (Some(seconds(25)), true);
        });
        world.copy_a(1);
        world.resolve(Side::A);
        world.run_until(seconds(3));
        world.resolve(Side::C);
        world.run_until(seconds(600));
        assert!(!told(&world).is_empty(), "{protocol}");
    }
}

/// From one network to the other and back, and restarts in between.
#[test]
fn a_peer_that_moves_is_no_second_machine() {
    for protocol in protocols() {
        for restarts in [false, true] {
            let mut world = world(|options| options.protocol = protocol);
            world.resolve(Side::A);
            world.offer_every(Side::A, millis(200));
            world.offer_every(Side::B, millis(200));
            world.run_until(seconds(2));
            for n in 0..20 {
                world[Side::A].roam(n % 2, 7);
                let now = world.now;
                world[Side::A].route_changed(now);
                world.run_for(seconds(8));
                if restarts && n % 7 == 1 {
                    world.restart(Side::A, Floor::Kept);
                }
            }
            assert_eq!(told(&world), [], "{protocol} {restarts}");
        }
    }
}

/// Each start takes a new port.
#[test]
fn a_peer_that_restarts_often_is_no_second_machine() {
    for fixed in [false, true] {
        let mut world = world(|_| ());
        world.resolve(Side::A);
        world.offer_every(Side::A, millis(200));
        for n in 0..20 {
            world.run_for(seconds(6));
            let port = if fixed { 7 } else { 1000 + n };
            world[Side::A].roam(7, port);
            world.restart(Side::A, Floor::Kept);
        }
        let sessions = world.changed(Side::B, |one| matches!(one, Change::Established(_))).len();
        assert!(sessions >= 20, "{sessions}");
        assert_eq!(told(&world), [], "{fixed}");
    }
}

/// The answers that B sends to one of two uplinks are lost, so that the peer has to try again and again.
#[test]
fn a_peer_with_a_bad_uplink_is_no_second_machine() {
    let mut world = world(|options| options.free_port = true);
    world.resolve(Side::A);
    world.offer_every(Side::A, millis(200));
    world.run_until(seconds(2));
    world.network.weather.loss = 0.3;
    for n in 0..10 {
        world[Side::A].roam(n % 2, 7);
        let bad = world[Side::A].address.ip();
        world.network.loses =
            Some(Box::new(move |sent| n % 2 == 1 && sent.datagram.to.ip() == bad));
        world.run_for(seconds(40));
    }
    assert_eq!(told(&world), []);
}
