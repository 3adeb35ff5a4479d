//! Timers and endpoints that change while packets flow.

use std::net::SocketAddr;
use std::time::Duration;

use vpnd_protocol::peer::Change;

use crate::end::{End, Side};
use crate::world::{World, millis, seconds};

/// B's second address.
fn second() -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 2], 51820))
}

/// Both ends send 50 packets a second.
fn flowing() -> World {
    let mut world = World::with(9, |side, options| {
        options.endpoint = options.endpoint.filter(|_| side == Side::A);
    });
    world[Side::B].others.push(second());
    world.resolve(Side::A);
    world.run_for(seconds(2));
    for side in Side::BOTH {
        world.offer_every(side, millis(20));
    }
    world.run_for(seconds(5));
    world
}

fn ensure_nothing_lost(world: &World) {
    let until = world.now.saturating_sub(seconds(1));
    for side in Side::BOTH {
        let (offered, arrived) = world.oracle.tally(side, Duration::ZERO, until);
        assert_eq!(offered, arrived, "{side:?}");
        assert!(offered > 300);
    }
}

fn count(world: &World, which: fn(&Change) -> bool) -> usize {
    world.changed(Side::A, which).len()
}

#[test]
fn other_timers_take_no_handshake_and_lose_nothing() {
    let mut world = flowing();
    let before = count(&world, |one| matches!(one, Change::Established(_)));
    let options = &mut world[Side::A].options;
    (options.keepalive, options.dead_after, options.watch) = (Some(seconds(3)), seconds(4), true);
    world.at(Side::A, End::retune);
    world.run_for(seconds(20));
    ensure_nothing_lost(&world);
    assert_eq!(count(&world, |one| matches!(one, Change::Established(_))), before);
    assert_eq!(count(&world, |one| matches!(one, Change::Dead)), 0);
}

#[test]
fn a_silent_peer_is_dead_by_the_new_time() {
    for (dead_after, expected) in [(seconds(3), 1), (seconds(50), 0)] {
        let mut world = flowing();
        let options = &mut world[Side::A].options;
        (options.dead_after, options.watch) = (seconds(10), true);
        world.at(Side::A, End::retune);
        world.network.loses = Some(Box::new(|_| true));
        world.run_for(seconds(2));
        world[Side::A].options.dead_after = dead_after;
        world.at(Side::A, End::retune);
        world.run_for(seconds(6));
        assert_eq!(count(&world, |one| matches!(one, Change::Dead)), expected, "{dead_after:?}");
    }
}

#[test]
fn a_tunnel_moves_to_its_new_endpoint() {
    let mut world = flowing();
    world[Side::A].options.endpoint = Some(second());
    world.at(Side::A, End::replace_endpoints);
    world.run_for(seconds(8));
    let now = world.now;
    assert_eq!(world[Side::A].status(now).endpoint, Some(second()));
    ensure_nothing_lost(&world);
}

#[test]
fn a_new_endpoint_where_nobody_answers_costs_nothing() {
    let mut world = flowing();
    let before = {
        let now = world.now;
        world[Side::A].status(now).endpoint
    };
    world[Side::A].options.endpoint = Some(SocketAddr::from(([198, 51, 100, 9], 51820)));
    world.at(Side::A, End::replace_endpoints);
    world.run_for(seconds(60));
    let now = world.now;
    assert_eq!(world[Side::A].status(now).endpoint, before);
    ensure_nothing_lost(&world);
}
