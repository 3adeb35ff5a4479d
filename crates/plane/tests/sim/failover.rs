//! Several addresses of one peer: the first that answers is used, a dead one is left, and a better one is returned to.

use std::net::SocketAddr;
use std::time::Duration;

use vpnd_crypto::aead::Algorithm;
use vpnd_protocol::endpoint::Roam;
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

/// B's third address.
fn third() -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 3], 51820))
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

/// When A has called B at its first address since then, and B has answered.
fn answered_at_home(world: &mut World, since: Duration) -> Duration {
    let is_home = |sent: &&Captured| sent.at >= since && sent.datagram.from == Side::B.home();
    while world.captured(Side::B, Kind::Response).filter(is_home).count() == 0 {
        world.run_for(millis(100));
        assert!(world.now < since + seconds(200), "it is not called there");
    }
    world.now
}

/// The path in use dies while the peer is called at an earlier address, and answers there each time.
#[test]
fn a_dead_path_is_found_though_calls_at_an_earlier_address_are_answered() {
    for (seed, offers) in (0..10).flat_map(|seed| [true, false].map(|offers| (seed, offers))) {
        let mut world = world(seed, protocols()[0], |_, options| options.dead_after = seconds(60));
        world.resolve(Side::A);
        if offers {
            world.offer_every(Side::A, millis(200));
        }
        world.run_until(seconds(10));
        world.network.loses = Some(dead(Side::B.home()));
        world.run_until(seconds(100));
        assert_eq!(path(&world), Some(second()), "{seed}");
        world.network.loses = None;
        let died = answered_at_home(&mut world, seconds(100)) + seconds(2);
        world.run_until(died);
        // Another WireGuard does not look for A because it is called twice.
        let mut is_dead = dead(second());
        let answers =
            |sent: &Captured| sent.by == Side::A || sent.datagram.kind() == Kind::Response;
        world.network.loses = Some(Box::new(move |sent| is_dead(sent) || !answers(sent)));
        // Rule 1, or half of `dead_after`; then two tries.
        let within = if offers { seconds(28) } else { seconds(43) };
        world.run_until(died + within);
        assert_eq!(path(&world), Some(Side::B.home()), "{seed} {offers}");
        let moved = *moves(&world).last().expect("it has moved");
        assert!(moved > died, "{seed} {offers}: {moved:?}, dead since {died:?}");
    }
}

/// The peer goes on speaking from the address that we use.
#[test]
fn a_call_at_an_earlier_address_moves_neither_end_of_an_idle_tunnel() {
    for seed in 0..10 {
        let mut world = world(seed, protocols()[0], |_, options| options.dead_after = seconds(60));
        world.resolve(Side::A);
        world.run_until(seconds(10));
        world.network.loses = Some(dead(Side::B.home()));
        world.run_until(seconds(100));
        world.network.loses = None;
        let called = answered_at_home(&mut world, seconds(100));
        world.run_until(called + seconds(30));
        assert_eq!(path(&world), Some(second()), "{seed}");
        let at = world[Side::B].data.table().send.as_ref().expect("a path").1;
        assert_eq!((at.to, at.from), (Side::A.home(), Some(second().ip())), "{seed}");
    }
}

/// A call at another address is no sign of life for the peer, which hears nothing of it.
#[test]
fn calls_at_an_earlier_address_put_off_no_keepalive() {
    for seed in 0..10 {
        let mut world = world(seed, protocols()[0], |_, _| ());
        world.resolve(Side::A);
        world.offer_every(Side::B, millis(100));
        world.run_until(seconds(10));
        world.network.loses = Some(dead(Side::B.home()));
        world.run_until(seconds(40));
        assert_eq!(path(&world), Some(second()), "{seed}");
        world.run_until(seconds(150));
        let to_path = |sent: &&Captured| sent.datagram.to == second() && sent.at > seconds(40);
        let times: Vec<_> = world.network.wire.iter().filter(to_path).map(|sent| sent.at).collect();
        let longest = times.windows(2).map(|two| two[1] - two[0]).max().expect("keepalives");
        assert!(longest < millis(10_600), "{seed}: {longest:?} without a keepalive");
    }
}

/// B is called at both addresses that are preferred to its third, and answers at one of them.
#[test]
fn a_dead_address_does_not_keep_the_path_from_the_next_better_one() {
    for (seed, protocol) in (0..10).flat_map(|seed| protocols().map(|one| (seed, one))) {
        let mut world = world(seed, protocol, |side, options| {
            options.also_at.extend((side == Side::A).then_some(third()));
        });
        world[Side::B].others.push(third());
        world.resolve(Side::A);
        world.offer_every(Side::A, millis(200));
        world.offer_every(Side::B, millis(200));
        world.run_until(seconds(10));
        let (mut first, mut next) = (dead(Side::B.home()), dead(second()));
        world.network.loses = Some(Box::new(move |sent| first(sent) || next(sent)));
        world.run_until(seconds(40));
        assert_eq!(path(&world), Some(third()), "{seed} {protocol}");
        world.network.loses = Some(dead(Side::B.home()));
        world.run_until(seconds(240));
        assert_eq!(path(&world), Some(second()), "{seed} {protocol}");
        world.network.loses = None;
        world.run_until(seconds(440));
        assert_eq!(path(&world), Some(Side::B.home()), "{seed} {protocol}");
    }
}

/// Where the host has no route to the preferred address, the one in use is as good as before.
#[test]
fn a_refused_call_at_an_earlier_address_does_not_impair_the_tunnel() {
    for (seed, protocol) in (0..5).flat_map(|seed| protocols().map(|one| (seed, one))) {
        let mut world = world(seed, protocol, |_, _| ());
        world.resolve(Side::A);
        world.offer_every(Side::A, millis(200));
        world.offer_every(Side::B, millis(200));
        world.run_until(seconds(10));
        world.network.loses = Some(dead(Side::B.home()));
        world.run_until(seconds(30));
        assert_eq!(path(&world), Some(second()), "{seed} {protocol}");
        world[Side::A].refuses = Some(Box::new(|sent| sent.to == Side::B.home()));
        world.run_until(seconds(300));
        assert!(!world[Side::A].refused.is_empty(), "{seed} {protocol}");
        assert_eq!(world[Side::A].impaired, [], "{seed} {protocol}");
        for side in Side::BOTH {
            let (offered, arrived) = world.oracle.tally(side, seconds(30), seconds(299));
            assert_eq!(offered, arrived, "{seed} {protocol} {side:?}");
        }
    }
}

/// Somebody on the path holds the first response until another address was asked as well, and delivers it from there. Nobody
/// is at that address.
#[test]
fn a_response_that_was_held_back_does_not_choose_the_address() {
    for (seed, roam) in (0..10).flat_map(|seed| [Roam::Any, Roam::Off].map(|one| (seed, one))) {
        let mut world = world(seed, protocols()[1], |side, options| {
            options.dead_after = seconds(60);
            options.roam = if side == Side::A { roam } else { Roam::Any };
        });
        world[Side::B].others.clear();
        let is_first =
            |sent: &Captured| sent.datagram.kind() == Kind::Response && sent.at < seconds(1);
        world.network.loses = Some(Box::new(is_first));
        world.network.spoofed_after = millis(300);
        world.network.spoofs = Some(Box::new(move |sent| is_first(sent).then(second)));
        world.resolve(Side::A);
        world.offer_every(Side::A, millis(100));
        world.run_until(millis(325));
        assert_eq!(path(&world), Some(second()), "{seed} {roam:?}: it is misled at first");
        world.run_until(seconds(3));
        assert_eq!(path(&world), Some(Side::B.home()), "{seed} {roam:?}");
        world.run_until(seconds(30));
        let (offered, arrived) = world.oracle.tally(Side::A, seconds(3), seconds(29));
        assert_eq!(offered, arrived, "{seed} {roam:?}");
        world.at(Side::B, |end, now| {
            assert!(end.status(now).greeting.is_some(), "{seed} {roam:?}: B knows what A is");
        });
    }
}

/// Both addresses were asked, and both work: the one that answered first stays.
#[test]
fn of_several_that_were_asked_the_chosen_one_stays_while_it_works() {
    for (seed, delay) in (0..10).flat_map(|seed| [200, 400, 800].map(|delay| (seed, delay))) {
        let mut world = world(seed, protocols()[1], |_, options| options.dead_after = seconds(60));
        world.network.weather.delay = millis(delay)..=millis(delay + 20);
        world.resolve(Side::A);
        world.run_until(seconds(30));
        let chosen = path(&world);
        assert!(chosen.is_some(), "{seed} {delay}");
        assert_eq!(moves(&world).len(), 1, "{seed} {delay}: {:?}", moves(&world));
    }
}
