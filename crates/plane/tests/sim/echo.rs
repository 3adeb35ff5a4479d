//! PINGs that a user requests.

use std::time::Duration;

use vpnd_crypto::aead::Algorithm;
use vpnd_protocol::peer::{Echo, NotAsked};
use vpnd_protocol::profile::{Kem, Mode, Profile};
use vpnd_protocol::terms::Protocol;

use crate::end::Side;
use crate::network::Weather;
use crate::world::{World, millis, seconds};

fn world(protocol: Protocol) -> World {
    World::with(1, |side, options| {
        options.protocol = protocol;
        options.endpoint = options.endpoint.filter(|_| side == Side::A);
    })
}

fn vpnd() -> Protocol {
    Protocol::Vpnd(Profile { mode: Mode::Tun, cipher: Algorithm::ChaCha20Poly1305, kem: Kem::None })
}

fn ping(world: &mut World, side: Side) -> Result<u32, NotAsked> {
    let mut asked = Err(NotAsked::NoSession);
    world.at(side, |end, now| asked = end.ping(now));
    asked
}

fn run_for(world: &mut World, time: Duration) {
    let until = world.now + time;
    world.run_until(until);
}

#[test]
fn each_is_answered_with_the_round_trip_of_its_own() {
    let mut world = world(vpnd());
    world.resolve(Side::A);
    world.run_until(seconds(2));
    // Several are under way at once, and their answers overtake each other.
    world.network.weather = Weather { delay: millis(5)..=millis(200), ..Weather::fair(millis(5)) };
    let mut asked = Vec::new();
    for side in [Side::A, Side::B, Side::A, Side::A] {
        asked.push((side, ping(&mut world, side).unwrap()));
        run_for(&mut world, millis(1));
    }
    run_for(&mut world, seconds(1));
    for (side, sequence) in asked {
        let of = |echo: &&Echo| echo.sequence == sequence;
        let echoes: Vec<_> = world[side].echoes.iter().filter(of).collect();
        assert_eq!(echoes.len(), 1, "{side:?} {sequence}");
        assert!((millis(10)..=millis(400)).contains(&echoes[0].round_trip), "{echoes:?}");
    }
}

#[test]
fn one_that_is_lost_has_no_answer() {
    let mut world = world(vpnd());
    world.resolve(Side::A);
    world.run_until(seconds(2));
    world.network.weather.loss = 1.0;
    ping(&mut world, Side::A).unwrap();
    run_for(&mut world, seconds(1));
    world.network.weather.loss = 0.0;
    let heard = ping(&mut world, Side::A).unwrap();
    run_for(&mut world, seconds(1));
    let echoes: Vec<_> = world[Side::A].echoes.iter().map(|echo| echo.sequence).collect();
    assert_eq!(echoes, [heard]);
}

#[test]
fn without_a_session_one_is_begun() {
    let mut world = world(vpnd());
    world.resolve(Side::A);
    world.run_until(seconds(2));
    // Long after the session has expired: nothing keeps it up.
    run_for(&mut world, seconds(600));
    assert_eq!(ping(&mut world, Side::A), Err(NotAsked::NoSession));
    run_for(&mut world, seconds(1));
    ping(&mut world, Side::A).unwrap();
    run_for(&mut world, seconds(1));
    assert_eq!(world[Side::A].echoes.len(), 1);
}

#[test]
fn wireguard_has_none() {
    let mut world = world(Protocol::WireGuard);
    world.resolve(Side::A);
    world.run_until(seconds(2));
    assert_eq!(ping(&mut world, Side::A), Err(NotAsked::WireGuard));
}
