//! Every state and every reason to be degraded, entered and left again.

use std::net::SocketAddr;
use std::time::Duration;

use vpnd_crypto::aead::Algorithm;
use vpnd_plane::{Counted, Kind, Reason, State};
use vpnd_protocol::peer::Change;
use vpnd_protocol::profile::{Kem, Mode, Profile};
use vpnd_protocol::terms::Protocol;

use crate::end::{Floor, MTU, Options, Side, policy};
use crate::world::{World, millis, seconds};

/// Two vpnd that speak their own protocol; A calls.
fn world(seed: u64, mut change: impl FnMut(Side, &mut Options)) -> World {
    World::with(seed, |side, options| {
        let cipher = Algorithm::ChaCha20Poly1305;
        options.protocol = Protocol::Vpnd(Profile { mode: Mode::Tun, cipher, kem: Kem::None });
        options.endpoint = options.endpoint.filter(|_| side == Side::A);
        change(side, options);
    })
}

/// The same with a session, and packets in both directions.
fn flowing(seed: u64, change: impl FnMut(Side, &mut Options)) -> World {
    let mut world = world(seed, change);
    world.resolve(Side::A);
    Side::BOTH.into_iter().for_each(|side| world.offer_every(side, millis(50)));
    world.run_until(seconds(2));
    world
}

fn state(world: &mut World, side: Side) -> State {
    let now = world.now;
    world[side].state(now)
}

fn kind(world: &mut World, side: Side) -> Kind {
    state(world, side).kind
}

fn reasons(world: &mut World, side: Side) -> Vec<Reason> {
    let state = state(world, side);
    assert_eq!(state.kind == Kind::Degraded, !state.reasons.is_empty(), "{state:?}");
    state.reasons.iter().collect()
}

/// What the service manager was told, without what it was told twice, since `from`.
fn told(world: &World, side: Side, from: Duration) -> Vec<Kind> {
    let since = world[side].told.iter().filter(|(at, _)| *at >= from);
    let mut kinds: Vec<_> = since.map(|(_, state)| state.kind).collect();
    kinds.dedup();
    kinds
}

fn logged(world: &World, side: Side) -> Vec<Kind> {
    world[side].logged.iter().map(|(_, state)| state.kind).collect()
}

/// The end that is configured so is degraded for this reason alone, until `mend`; the other one is not.
fn degraded(world: &mut World, reason: Reason, mend: impl FnOnce(&mut World)) {
    assert_eq!(reasons(world, Side::A), [reason]);
    mend(world);
    world.run_for(seconds(1));
    assert_eq!(kind(world, Side::A), Kind::Up);
    let kinds = [Kind::Degraded, Kind::Up];
    assert!(told(world, Side::A, Duration::ZERO).ends_with(&kinds));
    assert!(logged(world, Side::A).ends_with(&kinds));
}

#[test]
fn the_life_of_a_tunnel() {
    let mut world = world(1, |_, _| ());
    assert_eq!(Side::BOTH.map(|side| kind(&mut world, side)), [Kind::Connecting, Kind::Idle]);
    world.suspend(Side::B);
    world.resolve(Side::A);
    world.run_until(seconds(10));
    assert_eq!(kind(&mut world, Side::A), Kind::Connecting);
    world.run_until(seconds(20));
    assert_eq!(kind(&mut world, Side::A), Kind::Down, "four tries were not answered");
    world.resume(Side::B);
    world.run_until(seconds(30));
    assert_eq!(Side::BOTH.map(|side| kind(&mut world, side)), [Kind::Up; 2]);
    world.run_until(seconds(300));
    assert_eq!(Side::BOTH.map(|side| kind(&mut world, side)), [Kind::Idle; 2], "nobody speaks");
    world.offer(Side::A);
    world.run_for(millis(100));
    assert_eq!(kind(&mut world, Side::A), Kind::Up);
    world.suspend(Side::B);
    world.offer_every(Side::A, seconds(1));
    let gone = world.now;
    world.run_for(seconds(20));
    assert_eq!(kind(&mut world, Side::A), Kind::Unresponsive);
    world.run_for(seconds(45));
    assert_eq!(kind(&mut world, Side::A), Kind::Down);
    let since = state(&mut world, Side::A).since;
    world.resume(Side::B);
    world.restart(Side::B, Floor::Kept);
    world.run_for(seconds(10));
    assert_eq!(kind(&mut world, Side::A), Kind::Up);
    assert!(state(&mut world, Side::A).since > since);
    assert_eq!(told(&world, Side::A, gone), [Kind::Unresponsive, Kind::Down, Kind::Up]);
    let lines = [Kind::Down, Kind::Up, Kind::Unresponsive, Kind::Down, Kind::Up];
    assert_eq!(logged(&world, Side::A), lines, "that it was idle is no news");
    assert!(world[Side::A].checked.hooks >= 3, "they were compared with the state");
}

#[test]
fn who_says_that_it_stops_is_down_at_once() {
    let mut world = flowing(2, |_, _| ());
    world.at(Side::B, |end, now| end.close(now));
    world.suspend(Side::B);
    world.run_for(millis(20));
    assert_eq!(kind(&mut world, Side::A), Kind::Down);
}

#[test]
fn loss_in_either_direction_is_seen_at_both_ends_and_forgotten_below_one_in_a_hundred() {
    for (seed, lossy) in (0..10).flat_map(|seed| Side::BOTH.map(|side| (seed, side))) {
        let mut world = flowing(seed, |_, _| ());
        let mut count = 0;
        world.network.loses = Some(Box::new(move |sent| {
            count += u32::from(sent.by == lossy);
            sent.by == lossy && count % 25 == 0
        }));
        let begun = world.now;
        world.run_for(seconds(70));
        for side in Side::BOTH {
            assert_eq!(reasons(&mut world, side), [Reason::Loss], "{seed} {lossy:?} {side:?}");
            let recent = world[side].status(begun + seconds(70)).recent;
            let (bad, good) = (recent.minute.outward, recent.minute.inward);
            let (bad, good) = if side == lossy { (bad, good) } else { (good, bad) };
            let (bad, good) = (bad.expect("measured"), good.expect("measured"));
            assert_eq!(good.arrived, good.sent);
            let share = (bad.sent - bad.arrived) * 1000 / bad.sent;
            assert!((36..=44).contains(&share), "{share} of 1000");
        }
        world.network.loses = None;
        world.run_for(seconds(63));
        assert_eq!(Side::BOTH.map(|side| kind(&mut world, side)), [Kind::Up; 2], "{seed}");
        for side in Side::BOTH {
            assert_eq!(logged(&world, side), [Kind::Up, Kind::Degraded, Kind::Up]);
        }
    }
}

#[test]
fn loss_that_nobody_measures_any_more_is_forgotten() {
    let mut world = flowing(3, |_, _| ());
    world.network.weather.loss = 0.1;
    world.run_for(seconds(30));
    assert_eq!(reasons(&mut world, Side::A), [Reason::Loss]);
    // Nothing flows, and the only thing left to do is to look once more.
    world.network.weather.loss = 0.0;
    world.stop_offers();
    world.run_for(seconds(65));
    let quiet = world.now;
    assert_eq!(kind(&mut world, Side::A), Kind::Up);
    assert_eq!(world[Side::A].status(quiet).recent.minute, Default::default(), "absent, not zero");
    assert_ne!(world[Side::A].status(quiet).recent.ten_minutes, Default::default());
}

/// Datagrams that are lost with a session are not the path's.
#[test]
fn a_restart_a_rekey_and_a_suspend_are_no_loss() {
    for seed in 0..20 {
        let mut world = flowing(seed, |_, options| options.watch = true);
        world.run_until(seconds(30) + millis(97 * seed));
        world.restart(Side::B, Floor::Kept);
        world.run_for(seconds(300));
        world.suspend(Side::B);
        world.run_for(seconds(100));
        world.resume(Side::B);
        world.restart(Side::B, Floor::Kept);
        world.run_for(seconds(300));
        for side in Side::BOTH {
            let degraded =
                world[side].told.iter().filter(|(_, state)| state.kind == Kind::Degraded);
            assert_eq!(degraded.count(), 0, "{seed} {side:?}");
            assert_eq!(kind(&mut world, side), Kind::Up, "{seed} {side:?}");
            let now = world.now;
            for loss in [world[side].status(now).recent.ten_minutes].map(|loss| loss.outward) {
                let loss = loss.expect("measured");
                assert_eq!(loss.sent - loss.arrived, 0, "{seed} {side:?}");
            }
        }
    }
}

/// One in two hundred is lost, the rest is out of order and often late.
#[test]
fn a_path_that_is_merely_bad_is_not_degraded() {
    for seed in 0..10 {
        let mut world = flowing(seed, |_, _| ());
        world.network.weather.loss = 0.005;
        world.network.weather.duplication = 0.05;
        world.network.weather.delay = millis(1)..=millis(400);
        world.run_for(seconds(600));
        for side in Side::BOTH {
            let degraded = world[side].told.iter().any(|(_, state)| state.kind == Kind::Degraded);
            assert!(!degraded, "{seed} {side:?}: {:?}", world[side].told);
        }
    }
}

#[test]
fn a_path_that_alternates_fills_no_log() {
    let mut world = flowing(4, |_, _| ());
    Side::BOTH.into_iter().for_each(|side| world.offer_every(side, millis(600)));
    for minute in 0..240 {
        world.network.weather.loss = if minute % 4 < 2 { 0.2 } else { 0.0 };
        world.run_for(seconds(60));
    }
    let changes = told(&world, Side::A, Duration::ZERO).len();
    assert!(changes > 100, "{changes} changes in four hours");
    let lines = world[Side::A].logged.len();
    assert!((20..=50).contains(&lines), "{lines} lines in four hours");
}

#[test]
fn a_path_that_is_narrower_than_the_pinned_mtu() {
    let mut world = world(5, |side, options| {
        options.link = Some(if side == Side::A { 1400 } else { 1472 });
    });
    world.network.loses =
        Some(Box::new(|sent| sent.by == Side::A && sent.datagram.bytes.len() > 1400));
    world.resolve(Side::A);
    world.run_until(seconds(2));
    assert_eq!(kind(&mut world, Side::B), Kind::Up);
    degraded(&mut world, Reason::PathMtu, |world| {
        world.at(Side::A, |a, now| a.set_policy(now, policy(1280, None, &["10.99.0.0/16"])));
    });
    world.at(Side::A, |a, now| a.set_policy(now, policy(MTU, None, &["10.99.0.0/16"])));
    degraded(&mut world, Reason::PathMtu, |world| {
        world[Side::A].options.link = Some(1472);
        world.network.loses = None;
        world.at(Side::A, |end, now| end.route_changed(now));
    });
}

#[test]
fn an_mtu_that_follows_the_path_is_no_reason() {
    let mut world = world(6, |_, options| {
        options.link = Some(1400);
        options.mtu_follows = Some(MTU);
    });
    world.network.most = Some(1400);
    world.resolve(Side::A);
    world.run_until(seconds(2));
    assert_eq!(kind(&mut world, Side::A), Kind::Up);
}

#[test]
fn what_the_data_path_finds() {
    let mut world = flowing(7, |_, _| ());
    for (reason, counted) in [
        (Reason::Segmentation, Counted { sends_singly: true, ..Counted::default() }),
        (Reason::Ecn, Counted { marks_everything: true, ..Counted::default() }),
    ] {
        world[Side::A].counted = counted;
        world.trouble(Side::A);
        degraded(&mut world, reason, |world| {
            world[Side::A].counted = Counted::default();
            world.trouble(Side::A);
        });
    }
    let counted = Counted { sends_singly: true, marks_everything: true, ..Counted::default() };
    world[Side::A].counted = counted;
    world.trouble(Side::A);
    assert_eq!(reasons(&mut world, Side::A), [Reason::Segmentation, Reason::Ecn]);
}

/// An attempt of our own that was under way says nothing about the session that the peer's has established.
#[test]
fn a_session_after_an_outage_is_not_unresponsive() {
    for seed in 0..40 {
        let mut world = world(seed, |_, options| {
            options.watch = true;
            options.dead_after = seconds(60);
        });
        world.resolve(Side::A);
        world.resolve(Side::B);
        for side in Side::BOTH {
            world.offer_every(side, millis(700));
        }
        world.run_until(seconds(30) + millis(seed * 117));
        world.network.loses = Some(Box::new(|sent| sent.by == Side::A));
        world.run_for(seconds(18) + millis(seed * 201));
        world.network.loses = None;
        world.run_for(seconds(10));
        for side in Side::BOTH {
            let established =
                world.changed(side, |change| matches!(change, Change::Established(_)));
            let last = *established.last().expect("a session");
            let since = world[side].logged.iter().filter(|(at, _)| *at >= last);
            let kinds: Vec<_> = since.map(|(_, state)| state.kind).collect();
            assert!(!kinds.contains(&Kind::Unresponsive), "seed {seed}, {side:?}: {kinds:?}");
        }
    }
}

#[test]
fn a_family_that_does_not_reach_the_peer() {
    let other: SocketAddr = "[2001:db8::2]:51820".parse().unwrap();
    let mut world = world(9, |side, options| {
        options.also_at = if side == Side::A { vec![other] } else { Vec::new() };
        options.watch = true;
        options.dead_after = seconds(10);
    });
    world[Side::B].others.push(other);
    world.resolve(Side::A);
    world.run_until(seconds(2));
    assert_eq!(reasons(&mut world, Side::A), []);
    world.network.loses = Some(Box::new(|sent| sent.datagram.to == Side::B.home()));
    world.offer_every(Side::A, millis(500));
    world.run_for(seconds(60));
    assert_eq!(reasons(&mut world, Side::A), [Reason::Endpoint, Reason::Family]);
    world.network.loses = Some(Box::new(move |sent| sent.datagram.to == other));
    world.run_for(seconds(60));
    assert_eq!(reasons(&mut world, Side::A), []);
}

#[test]
fn the_second_endpoint_is_not_the_first() {
    let other = SocketAddr::from(([203, 0, 113, 2], 51820));
    let mut world = world(8, |side, options| {
        options.also_at = if side == Side::A { vec![other] } else { Vec::new() };
        options.watch = true;
        options.dead_after = seconds(10);
    });
    world[Side::B].others.push(other);
    world.resolve(Side::A);
    world.run_until(seconds(2));
    assert_eq!(kind(&mut world, Side::A), Kind::Up);
    world.network.loses = Some(Box::new(|sent| sent.datagram.to == Side::B.home()));
    world.offer_every(Side::A, millis(500));
    world.run_for(seconds(60));
    degraded(&mut world, Reason::Endpoint, |world| {
        world.network.loses = Some(Box::new(move |sent| sent.datagram.to == other));
        world.run_for(seconds(60));
    });
}
