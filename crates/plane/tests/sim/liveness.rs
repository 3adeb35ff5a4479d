//! Alive and dead: nobody who lives is called dead, and nobody who is gone is called alive for long.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use vpnd_crypto::aead::Algorithm;
use vpnd_plane::Kind as State;
use vpnd_protocol::peer::Change;
use vpnd_protocol::profile::{Kem, Mode, Profile};
use vpnd_protocol::terms::Protocol;

use crate::end::{Floor, Options, Side};
use crate::hostile::is_long;
use crate::network::{Kind, Weather};
use crate::world::{World, millis, seconds};

const DEAD_AFTER: Duration = seconds(60);
/// Two looks and the way.
const A_LOOK: Duration = millis(600);

fn protocols() -> [Protocol; 3] {
    let cipher = Algorithm::ChaCha20Poly1305;
    let vpnd = |kem| Protocol::Vpnd(Profile { mode: Mode::Tun, cipher, kem });
    [Protocol::WireGuard, vpnd(Kem::None), vpnd(Kem::MlKem768)]
}

/// A watches, and calls.
fn watched(seed: u64, mut change: impl FnMut(Side, &mut Options)) -> World {
    let mut world = World::with(seed, |side, options| {
        options.watch = side == Side::A;
        change(side, options);
    });
    world.resolve(Side::A);
    world
}

fn died(world: &World, side: Side) -> Vec<Duration> {
    world.changed(side, |one| *one == Change::Dead)
}

fn lived(world: &World, side: Side) -> Vec<Duration> {
    world.changed(side, |one| *one == Change::Alive)
}

#[test]
fn who_lives_is_never_dead_whatever_it_has_to_say() {
    let keepalives = [None, Some(seconds(10)), Some(seconds(25)), Some(seconds(100))];
    for seed in 0..if is_long() { 2000 } else { 96 } {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut pick = |n: usize| rng.random_range(0..n);
        let protocol = protocols()[pick(3)];
        let (ours, theirs) = (keepalives[pick(4)], keepalives[pick(4)]);
        let (both, calls, speaks) = (pick(2) == 0, pick(2) == 0, pick(2) == 0);
        let mut world = watched(seed, |side, options| {
            options.protocol = protocol;
            options.keepalive = if side == Side::A { ours } else { theirs };
            options.watch |= both;
            options.endpoint = options.endpoint.filter(|_| side == Side::A || calls);
        });
        // A PING is repeated more often than an initiation may be.
        let loss = if protocol == Protocol::WireGuard { 0.05 } else { 0.15 };
        let weather = Weather { loss, duplication: 0.1, delay: millis(1)..=millis(400) };
        world.network.weather = weather;
        if speaks {
            world.offer_every(Side::A, seconds(97));
        }
        world.run_until(seconds(3600));
        for side in Side::BOTH {
            let what = format!("{side:?} of {seed}: {protocol}, {ours:?}, {theirs:?}");
            assert_eq!(lived(&world, side).len(), 1, "{what}");
            assert_eq!(died(&world, side), [], "{what}");
        }
    }
}

#[test]
fn who_is_gone_is_dead_in_time_and_alive_again_when_it_is_back() {
    for (seed, protocol) in (0..30).flat_map(|seed| protocols().map(|protocol| (seed, protocol))) {
        let mut world = watched(seed, |_, options| options.protocol = protocol);
        let gone = seconds(70) + millis(977 * seed);
        world.run_until(gone);
        world.suspend(Side::B);
        world.run_for(seconds(600));
        let [dead] = died(&world, Side::A)[..] else { panic!("{seed}: dead more or less often") };
        assert!(dead <= gone + DEAD_AFTER + A_LOOK, "{seed}: gone at {gone:?}, dead at {dead:?}");
        // Nobody offers a packet.
        world.resume(Side::B);
        world.restart(Side::B, Floor::Kept);
        world.run_for(seconds(6));
        assert_eq!(lived(&world, Side::A).len(), 2, "{seed}: {protocol}");
    }
}

#[test]
fn who_is_missed_is_called_without_end_and_like_in_any_attempt() {
    let mut world = watched(3, |_, _| ());
    world.suspend(Side::B);
    world.run_until(seconds(3600));
    let calls = world.sent(Side::A, Kind::Initiation);
    assert!(calls.len() > 650, "{} calls in an hour", calls.len());
    for pair in calls.windows(2) {
        let apart = pair[1] - pair[0];
        assert!((millis(5000)..=millis(5334)).contains(&apart), "{apart:?}");
    }
    assert_eq!(lived(&world, Side::A), []);
}

#[test]
fn a_restart_without_a_word_is_noticed_by_asking() {
    for protocol in protocols() {
        // B knows no endpoint, and has nothing to say.
        let mut world = watched(4, |side, options| {
            options.protocol = protocol;
            options.endpoint = options.endpoint.filter(|_| side == Side::A);
        });
        world.run_until(seconds(20));
        world.restart(Side::B, Floor::Kept);
        world.run_for(seconds(120));
        assert_eq!(died(&world, Side::A), [], "{protocol}");
        assert_eq!(lived(&world, Side::B).len(), 2, "{protocol}");
    }
}

#[test]
fn who_says_that_it_stops_is_dead_at_once() {
    for watch in [false, true] {
        let mut world = watched(5, |_, options| {
            options.protocol = protocols()[1];
            options.watch = watch;
        });
        world.run_until(seconds(2));
        world.at(Side::B, |end, now| end.close(now));
        world.suspend(Side::B);
        world.run_for(seconds(60));
        assert_eq!(died(&world, Side::A), [seconds(2) + millis(10)]);
        let calls = world.sent(Side::A, Kind::Initiation).len();
        assert!(if watch { calls > 10 } else { calls == 1 }, "{calls} calls");
    }
}

#[test]
fn unwatched_an_idle_tunnel_is_alive_and_an_unanswered_one_is_not() {
    let mut world = World::new(6);
    world.resolve(Side::A);
    world.run_until(seconds(600));
    assert_eq!(died(&world, Side::A), []);
    world.suspend(Side::B);
    world.offer(Side::A);
    world.run_for(seconds(300));
    let [dead] = died(&world, Side::A)[..] else { panic!("dead more or less often") };
    // The session is gone, so that nothing was sent but initiations: those of an attempt.
    assert!((seconds(700)..seconds(710)).contains(&dead), "{dead:?}");
}

#[test]
fn unwatched_what_is_sent_and_not_answered_tells() {
    let mut world = World::new(7);
    world.resolve(Side::A);
    world.run_until(seconds(2));
    world.suspend(Side::B);
    world.offer_every(Side::A, seconds(1));
    world.run_for(seconds(80));
    let [dead] = died(&world, Side::A)[..] else { panic!("dead more or less often") };
    assert!((seconds(62)..seconds(62) + A_LOOK).contains(&dead), "{dead:?}");
    world.resume(Side::B);
    world.run_for(seconds(6));
    assert_eq!(lived(&world, Side::A).len(), 2);
}

#[test]
fn who_slept_asks_before_it_believes_the_worst() {
    let mut world = watched(8, |_, options| options.keepalive = Some(seconds(25)));
    world.run_until(seconds(100));
    world.suspend(Side::A);
    world.run_for(seconds(4000));
    world.resume(Side::A);
    world.run_for(seconds(300));
    assert_eq!(died(&world, Side::A), []);
}

#[test]
fn an_initiation_of_the_peer_proves_nothing() {
    let other = [9; 32];
    let mut world = World::with(9, |side, options| {
        options.watch = true;
        options.endpoint = options.endpoint.filter(|_| side == Side::A);
        if side == Side::B {
            options.preshared = vec![other];
        }
    });
    world.resolve(Side::A);
    world.run_until(seconds(300));
    assert!(world.sent(Side::B, Kind::Response).len() > 50);
    assert_eq!(Side::BOTH.map(|side| lived(&world, side).len()), [0, 0]);
}

#[test]
fn a_peer_that_answers_keepalives_is_never_asked() {
    for protocol in protocols().into_iter().skip(1) {
        let run = |watch| {
            let mut world = World::with(10, |_, options| {
                *options = Options { protocol, watch, ..options.clone() };
                options.keepalive = Some(seconds(25));
            });
            world.resolve(Side::A);
            world.run_until(seconds(900));
            Side::BOTH.map(|side| (world[side].wakes.len(), world.network.wire.len()))
        };
        assert_eq!(run(true), run(false), "{protocol}");
    }
}

#[test]
fn a_silent_peer_is_asked_twice_a_minute() {
    for protocol in protocols() {
        let mut world = watched(11, |_, options| options.protocol = protocol);
        world.run_until(seconds(601));
        let datagrams = world.network.wire.len();
        println!("{protocol}: {datagrams} datagrams and {} wakes in ten idle minutes", {
            world[Side::A].wakes.len()
        });
        assert!(datagrams < 90, "{protocol}: {datagrams} datagrams in ten minutes");
        assert!(world[Side::A].wakes.len() < 120, "{protocol}: {:?}", world[Side::A].wakes);
    }
}

#[test]
fn who_is_gone_counts_as_unresponsive_until_it_is_dead() {
    for (protocol, watch) in protocols().into_iter().flat_map(|one| [(one, false), (one, true)]) {
        let mut world = World::with(1, |side, options| {
            options.protocol = protocol;
            options.watch = watch && side == Side::A;
        });
        world.resolve(Side::A);
        world.offer_every(Side::A, seconds(1));
        world.run_until(seconds(30));
        assert_eq!(kind(&mut world), State::Up);
        world.suspend(Side::B);
        let (gone, mut changes) = (world.now, vec![(Duration::ZERO, State::Up)]);
        while world.now < gone + seconds(140) {
            world.run_for(millis(100));
            let (after, is) = (world.now - gone, kind(&mut world));
            if changes.last().is_some_and(|last| last.1 != is) {
                changes.push((after, is));
            }
        }
        let [_, (silent, State::Unresponsive), (dead, State::Down)] = changes[..] else {
            panic!("{protocol} {watch}: {changes:?}")
        };
        assert!(silent <= seconds(16) + A_LOOK, "{protocol} {watch}: after {silent:?}");
        assert!(dead <= DEAD_AFTER + A_LOOK, "{protocol} {watch}: after {dead:?}");
        world.resume(Side::B);
        world.restart(Side::B, Floor::Kept);
        world.resolve(Side::B);
        world.offer(Side::B);
        world.run_for(seconds(11));
        assert_eq!(kind(&mut world), State::Up, "{protocol} {watch}");
    }
}

fn kind(world: &mut World) -> State {
    let now = world.now;
    world[Side::A].state(now).kind
}
