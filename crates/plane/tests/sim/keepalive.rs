//! The rules that act without a datagram, each at its time, and none besides.

use std::time::Duration;

use vpnd_protocol::peer::Change;

use crate::end::Side;
use crate::network::Kind;
use crate::world::{World, millis, seconds};

/// A's session, a second old.
fn connected() -> World {
    let mut world = World::new(1);
    world.resolve(Side::A);
    world.run_until(seconds(1));
    world
}

fn persistent(keepalive: Duration) -> World {
    World::with(1, |side, options| {
        options.keepalive = Some(keepalive).filter(|_| side == Side::A);
        options.endpoint = options.endpoint.filter(|_| side == Side::A);
    })
}

#[test]
fn data_without_an_answer_for_15_seconds_is_followed_by_an_initiation() {
    for seed in 0..20 {
        let mut world = World::new(seed);
        world.resolve(Side::A);
        world.run_until(seconds(1));
        world.network.weather.loss = 1.0;
        world.offer(Side::A);
        world.run_for(seconds(3));
        world.offer(Side::A);
        world.run_for(seconds(14));
        let again = world.sent(Side::A, Kind::Initiation)[1] - seconds(1);
        assert!((millis(15_000)..=millis(15_333)).contains(&again), "{again:?}");
    }
}

#[test]
fn data_without_data_back_for_10_seconds_is_answered_by_one_keepalive() {
    let mut world = connected();
    world.offer(Side::A);
    world.run_for(seconds(60));
    assert_eq!(world.sent(Side::B, Kind::Keepalive), [seconds(11) + millis(10)]);
    assert_eq!(world.sent(Side::A, Kind::Keepalive), [millis(20)], "no ping-pong");
    assert_eq!(world.sent(Side::A, Kind::Initiation).len(), 1);
}

#[test]
fn data_back_in_time_is_answer_enough() {
    let mut world = connected();
    world.offer(Side::A);
    world.run_for(seconds(9));
    world.offer(Side::B);
    world.run_for(seconds(60));
    assert_eq!(world.sent(Side::B, Kind::Keepalive), []);
    assert_eq!(world.sent(Side::A, Kind::Keepalive)[1..], [seconds(20) + millis(10)]);
}

#[test]
fn the_configured_keepalive_is_sent_when_nothing_else_was() {
    let mut world = persistent(seconds(25));
    world.resolve(Side::A);
    world.run_until(seconds(100));
    let at = |s| seconds(s) + millis(20);
    assert_eq!(world.sent(Side::A, Kind::Keepalive), [at(0), at(25), at(50), at(75)]);
    assert_eq!(world.sent(Side::B, Kind::Keepalive), []);
}

#[test]
fn traffic_either_way_puts_the_configured_keepalive_off() {
    let mut world = persistent(seconds(25));
    world.resolve(Side::A);
    world.run_until(seconds(10));
    world.offer(Side::B);
    world.run_until(seconds(20));
    world.offer(Side::A);
    world.run_until(seconds(60));
    // B owes 10 s later what A then counts from.
    assert_eq!(world.sent(Side::B, Kind::Keepalive), [seconds(30) + millis(10)]);
    assert_eq!(world.sent(Side::A, Kind::Keepalive)[1..], [seconds(55) + millis(20)]);
}

#[test]
fn the_configured_keepalive_begins_anew_after_giving_up() {
    let mut world = persistent(seconds(25));
    world.network.weather.loss = 1.0;
    world.resolve(Side::A);
    world.run_until(seconds(130));
    let tries = world.sent(Side::A, Kind::Initiation);
    assert_eq!(world.changed(Side::A, |e| *e == Change::GaveUp).len(), 1);
    assert_eq!(tries[20], tries[19] + seconds(25));
}

#[test]
fn an_idle_tunnel_wakes_nobody() {
    let mut world = connected();
    world.run_until(seconds(180));
    for side in Side::BOTH {
        let wakes = &world[side].wakes;
        assert!(wakes.iter().all(|at| *at < seconds(2)), "{side:?}: {wakes:?}");
    }
}

#[test]
fn a_busy_tunnel_looks_four_times_a_second() {
    let mut world = connected();
    for side in Side::BOTH {
        world.offer_every(side, millis(7));
    }
    world.run_until(seconds(61));
    for side in Side::BOTH {
        let busy = world[side].wakes.iter().filter(|at| **at >= seconds(1)).count();
        assert!((235..=245).contains(&busy), "{side:?}: {busy} wakes in a minute");
    }
}
