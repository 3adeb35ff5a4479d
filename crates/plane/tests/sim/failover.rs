//! Several addresses of one peer: the first that answers is used, a dead one is left, and a better one is returned to.

use std::net::SocketAddr;
use std::time::Duration;

use vpnd_crypto::aead::Algorithm;
use vpnd_protocol::peer::Change;
use vpnd_protocol::profile::{Kem, Mode, Profile};
use vpnd_protocol::terms::Protocol;

use crate::end::{Options, Side};
use crate::network::{Captured, Kind};
use crate::world::{World, millis, seconds};

const DEAD_AFTER: Duration = seconds(3);

/// B's second address.
fn second() -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 2], 51820))
}

/// Nobody is there.
fn nobody() -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 9], 51820))
}

fn protocols() -> [Protocol; 2] {
    let cipher = Algorithm::ChaCha20Poly1305;
    [Protocol::WireGuard, Protocol::Vpnd(Profile { mode: Mode::Tun, cipher, kem: Kem::None })]
}

/// A knows two addresses of B, which knows none of A. A watches B.
fn world(seed: u64, protocol: Protocol, mut change: impl FnMut(Side, &mut Options)) -> World {
    let mut world = World::with(seed, |side, options| {
        options.protocol = protocol;
        (options.watch, options.dead_after) = (true, DEAD_AFTER);
        options.keepalive = Some(seconds(1));
        if protocol == Protocol::WireGuard {
            // It answers no probe, so its own keepalive shows that it is there.
            let own = side == Side::B;
            (options.watch, options.keepalive) = (!own, Some(seconds(if own { 1 } else { 25 })));
        }
        options.endpoint = options.endpoint.filter(|_| side == Side::A);
        options.also_at = if side == Side::A { vec![second()] } else { Vec::new() };
        change(side, options);
    });
    world[Side::B].others.push(second());
    world
}

/// Loses everything that goes to an address of B, or comes from there.
fn dead(at: SocketAddr) -> Box<dyn FnMut(&Captured) -> bool> {
    Box::new(move |sent| sent.datagram.to == at || sent.datagram.from == at)
}

fn path(world: &World) -> Option<SocketAddr> {
    world[Side::A].data.table().send.as_ref().map(|(_, path)| path.to)
}

/// When A's path changed.
fn moves(world: &World) -> Vec<Duration> {
    world.changed(Side::A, |one| matches!(one, Change::Moved { .. }))
}

fn deaths(world: &World, side: Side) -> usize {
    world.changed(side, |one| *one == Change::Dead).len()
}

fn up_at(world: &World) -> Duration {
    let up = world.changed(Side::A, |one| matches!(one, Change::Established(_)));
    *up.first().expect("a session stands")
}

#[test]
fn an_address_that_does_not_answer_costs_a_quarter_of_a_second() {
    for (seed, protocol) in (0..5).flat_map(|seed| protocols().map(|one| (seed, one))) {
        let mut world = world(seed, protocol, |_, options| {
            options.endpoint = options.endpoint.map(|_| nobody());
            options.also_at = vec![nobody(), second()];
        });
        world.resolve(Side::A);
        world.run_until(seconds(10));
        assert_eq!(path(&world), Some(second()), "{seed} {protocol}");
        assert!(up_at(&world) < seconds(1), "{seed} {protocol}: {:?}", up_at(&world));
    }
}

#[test]
fn of_several_that_answer_the_first_is_used() {
    for (seed, protocol) in (0..5).flat_map(|seed| protocols().map(|one| (seed, one))) {
        for delay in [millis(10), millis(200)] {
            let mut world = world(seed, protocol, |_, _| ());
            world.network.weather.delay = delay..=delay;
            world.resolve(Side::A);
            world.run_until(seconds(10));
            assert_eq!(path(&world), Some(Side::B.home()), "{seed} {protocol} {delay:?}");
            assert_eq!(deaths(&world, Side::A), 0);
        }
    }
}

#[test]
fn a_try_asks_each_of_many_addresses_once() {
    let many: Vec<_> = (1..=64).map(|host| SocketAddr::from(([198, 51, 100, host], 1))).collect();
    let mut world = world(1, protocols()[0], |_, options| options.also_at = many.clone());
    world.network.loses = Some(Box::new(|_| true));
    world.resolve(Side::A);
    world.run_until(seconds(600));
    // Five seconds, and four addresses a second.
    let asked = world.sent(Side::A, Kind::Initiation).len();
    assert!((1000..=2520).contains(&asked), "{asked} in ten minutes");
}

/// The path dies, and comes back.
#[test]
fn a_dead_path_is_left_in_time_and_returned_to_when_it_is_good() {
    let mut slowest = [(Duration::ZERO, 0); 2];
    for (seed, protocol) in (0..10).flat_map(|seed| protocols().map(|one| (seed, one))) {
        let mut world = world(seed, protocol, |_, _| ());
        world.resolve(Side::A);
        world.offer_every(Side::A, millis(100));
        world.offer_every(Side::B, millis(100));
        world.run_until(seconds(20));
        assert_eq!(path(&world), Some(Side::B.home()), "{seed} {protocol}");
        world.network.loses = Some(dead(Side::B.home()));
        world.run_until(seconds(20) + DEAD_AFTER + seconds(1));
        assert_eq!(path(&world), Some(second()), "{seed} {protocol}");
        let (offered, arrived) = world.oracle.tally(Side::A, seconds(20), seconds(24));
        let after = *moves(&world).last().expect("it has moved") - seconds(20);
        let slowest = &mut slowest[usize::from(protocol != Protocol::WireGuard)];
        *slowest = (*slowest).max((after, offered - arrived));
        world.run_until(seconds(120));
        for side in Side::BOTH {
            let (offered, arrived) = world.oracle.tally(side, seconds(25), seconds(119));
            assert_eq!(offered, arrived, "{seed} {protocol} {side:?}");
        }
        world.network.loses = None;
        world.run_until(seconds(175));
        assert_eq!(path(&world), Some(second()), "{seed} {protocol}: too early");
        world.run_until(seconds(250));
        assert_eq!(path(&world), Some(Side::B.home()), "{seed} {protocol}: it is good");
        let (offered, arrived) = world.oracle.tally(Side::A, seconds(25), seconds(249));
        assert_eq!(offered, arrived, "{seed} {protocol}: the return loses nothing");
        let (offered, arrived) = world.oracle.tally(Side::B, seconds(25), seconds(249));
        assert_eq!(offered, arrived, "{seed} {protocol}: nor does the way back");
        assert_eq!(moves(&world).len(), 3, "{seed} {protocol}: {:?}", moves(&world));
        if protocol != Protocol::WireGuard {
            assert_eq!((deaths(&world, Side::A), deaths(&world, Side::B)), (0, 0), "{seed}");
        }
    }
    println!("slowest switch, packets lost of 10 a second: [WireGuard, vpnd] {slowest:?}");
}

/// The better path loses a tenth of everything, the other nothing.
#[test]
fn a_better_path_that_loses_is_not_returned_to() {
    for (seed, protocol) in (0..10).flat_map(|seed| protocols().map(|one| (seed, one))) {
        let mut world = world(seed, protocol, |_, _| ());
        world.resolve(Side::A);
        world.offer_every(Side::A, millis(200));
        world.offer_every(Side::B, millis(200));
        world.run_until(seconds(10));
        world.network.loses = Some(dead(Side::B.home()));
        world.run_until(seconds(20));
        assert_eq!(path(&world), Some(second()), "{seed} {protocol}");
        let mut count = 0;
        world.network.loses = Some(Box::new(move |sent| {
            let here = [sent.datagram.to, sent.datagram.from].contains(&Side::B.home());
            count += u32::from(here);
            here && count.wrapping_mul(2_654_435_761) % 10 == 0
        }));
        world.run_until(seconds(620));
        if protocol != Protocol::WireGuard {
            assert_eq!(path(&world), Some(second()), "{seed} {protocol}");
        }
    }
}

#[test]
fn loss_alone_moves_nothing_in_ten_minutes() {
    let mut figures = [[0; 2]; 2];
    for seed in 0..40 {
        for (place, protocol) in protocols().into_iter().enumerate() {
            let mut world = world(seed, protocol, |_, _| ());
            world.resolve(Side::A);
            world.offer_every(Side::A, millis(500));
            world.offer_every(Side::B, millis(500));
            world.run_until(seconds(5));
            world.network.weather.loss = 0.1;
            world.run_for(seconds(600));
            figures[place][0] += usize::from(moves(&world).len() > 1);
            figures[place][1] += deaths(&world, Side::A);
        }
    }
    println!("of 40 worlds with 10 % loss, moved and deaths: [WireGuard, vpnd] {figures:?}");
    assert_eq!(figures[1][0], 0, "vpnd");
    assert!(figures[0][0] <= 8, "WireGuard: {figures:?}");
}

/// Ten times a second the better path comes and goes.
#[test]
fn a_flapping_path_costs_bounded_work() {
    let mut world = world(3, protocols()[1], |_, _| ());
    world.resolve(Side::A);
    world.offer_every(Side::A, millis(100));
    world.run_until(seconds(5));
    world.network.loses = Some(Box::new(|sent| {
        let here = [sent.datagram.to, sent.datagram.from].contains(&Side::B.home());
        here && sent.at.as_millis() / 5000 % 2 == 0
    }));
    world.run_until(seconds(605));
    let moves = moves(&world).len();
    assert!(moves <= 4, "{moves} in ten minutes");
    assert_eq!(path(&world), Some(second()));
}

#[test]
fn a_probe_moves_neither_end_and_is_no_loss() {
    let mut world = world(4, protocols()[1], |_, options| options.return_after = seconds(3600));
    world.resolve(Side::A);
    world.offer_every(Side::A, millis(100));
    world.run_until(seconds(5));
    world.network.loses = Some(dead(Side::B.home()));
    // The session has no datagram by the dead path but probes.
    world.run_until(seconds(180));
    world.at(Side::A, |end, now| {
        let quality = end.status(now).quality.expect("it was measured");
        assert_eq!(quality.outward.sent, quality.outward.arrived, "{quality:?}");
    });
    world.network.loses = None;
    world.run_until(seconds(280));
    assert_eq!(path(&world), Some(second()));
    let at = world[Side::B].data.table().send.as_ref().expect("a path").1;
    assert_eq!((at.to, at.from), (Side::A.home(), Some(second().ip())));
    assert_eq!(moves(&world).len(), 2);
}

#[test]
fn names_are_looked_up_when_it_does_not_work_and_seldom_when_it_does() {
    let mut world =
        world(5, protocols()[1], |_, options| options.resolve_every = Some(seconds(300)));
    world.resolve(Side::A);
    world.run_until(seconds(400));
    assert_eq!(world[Side::A].lookups.len(), 1, "{:?}", world[Side::A].lookups);
    world.network.loses = Some(Box::new(|_| true));
    world.run_until(seconds(500));
    let lookups = &world[Side::A].lookups[1..];
    assert!((4..=6).contains(&lookups.len()), "{lookups:?}");
    assert!(lookups[0] < seconds(405), "{lookups:?}");
}
