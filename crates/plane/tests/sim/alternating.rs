//! Addresses that change to and fro, at either end or at both.

use std::net::SocketAddr;
use std::time::Duration;

use vpnd_crypto::aead::Algorithm;
use vpnd_protocol::peer::Change;
use vpnd_protocol::profile::{Kem, Mode, Profile};
use vpnd_protocol::terms::Protocol;

use crate::end::Side;
use crate::network::Datagram;
use crate::world::{World, millis, seconds};

fn protocols() -> [Protocol; 2] {
    let cipher = Algorithm::ChaCha20Poly1305;
    [Protocol::WireGuard, Protocol::Vpnd(Profile { mode: Mode::Tun, cipher, kem: Kem::None })]
}

/// Another address of each end.
fn other(side: Side) -> SocketAddr {
    SocketAddr::from(([203, 0, 113, side as u8 + 1], 51820))
}

fn connected(protocol: Protocol) -> World {
    let mut world = World::with(1, |side, options| {
        options.protocol = protocol;
        options.endpoint = options.endpoint.filter(|_| side == Side::A);
    });
    world.resolve(Side::A);
    world.run_until(seconds(2));
    world
}

fn path(world: &World, side: Side) -> SocketAddr {
    world[side].data.table().send.as_ref().expect("a path").1.to
}

fn moves(world: &World, side: Side) -> usize {
    world.changed(side, |one| matches!(one, Change::Moved { .. })).len()
}

/// A sends in turn from two ports, so many datagrams from each.
fn alternate(world: &mut World, ports: [u16; 2], each: usize, pause: Duration, until: Duration) {
    for n in 0.. {
        if world.now >= until {
            return;
        }
        world[Side::A].address.set_port(ports[n / each % 2]);
        world.offer(Side::A);
        world.run_for(pause);
    }
}

#[test]
fn who_alternates_between_two_ports_is_followed_less_and_less() {
    for protocol in protocols() {
        for (each, pause) in [(1, millis(20)), (10, millis(20)), (25, millis(20))] {
            let mut world = connected(protocol);
            let before = moves(&world, Side::B);
            // As behind an address translation, what goes to either port arrives.
            let port = |port| SocketAddr::new(Side::A.home().ip(), port);
            world[Side::A].others = vec![port(1001), port(1002)];
            alternate(&mut world, [1001, 1002], each, pause, seconds(62));
            let moved = moves(&world, Side::B) - before;
            assert!((5..=12).contains(&moved), "{protocol} {each}: {moved} moves in a minute");
            if world.lost(Side::A) > 0 {
                world.narrate();
            }
            assert_eq!(world.lost(Side::A), 0, "{protocol} {each}");

            // Where it stays at last it is found soon.
            world[Side::A].others.clear();
            for port in [1003, 1001, 1002] {
                world[Side::A].address.set_port(port);
                for _ in 0..80 {
                    world.offer(Side::A);
                    world.run_for(millis(20));
                }
                assert_eq!(path(&world, Side::B).port(), port, "{protocol} {each}");
            }
        }
    }
}

/// It alternated for two minutes and stays at last, while one datagram in ten also comes ahead from an address of no one.
#[test]
fn copies_now_and_then_do_not_hold_off_one_who_alternated_and_stays() {
    for protocol in protocols() {
        let mut world = connected(protocol);
        let port = |port| SocketAddr::new(Side::A.home().ip(), port);
        world[Side::A].others = vec![port(1001), port(1002)];
        alternate(&mut world, [1001, 1002], 10, millis(20), seconds(122));
        world[Side::A].others.clear();
        let mut sent_by_a = 0;
        world.network.spoofs = Some(Box::new(move |sent| {
            sent_by_a += usize::from(sent.by == Side::A);
            let chosen = sent.by == Side::A && sent_by_a % 10 == 0;
            chosen.then_some(SocketAddr::from(([198, 51, 100, 66], 666)))
        }));
        world[Side::A].roam(7, 7);
        world.offer_every(Side::A, millis(20));
        let took = crate::contest::until_moved(&mut world, seconds(100)).expect("it is found");
        assert!(took <= seconds(3), "{protocol}: {took:?}");
    }
}

#[test]
fn a_peer_that_returns_is_followed_at_once() {
    for protocol in protocols() {
        let mut world = connected(protocol);
        world.offer_every(Side::A, millis(10));
        for host in [7, 8, 7] {
            world[Side::A].roam(host, 7);
            world.run_for(millis(60));
            assert_eq!(path(&world, Side::B), world[Side::A].address, "{protocol} {host}");
            world.run_for(millis(240));
        }
        // And as often as it likes, if it stays for a few seconds each time.
        for n in 0..20 {
            world.run_for(seconds(3));
            world[Side::A].roam(7 + n % 2, 7);
            world.run_for(millis(60));
            assert_eq!(path(&world, Side::B), world[Side::A].address, "{protocol}: move {n}");
        }
    }
}

/// The address of ours that the peer writes to changes with each datagram.
#[test]
fn an_own_address_that_alternates_is_changed_less_and_less() {
    for protocol in protocols() {
        let mut world = connected(protocol);
        world[Side::B].others.push(other(Side::B));
        world[Side::A].others.push(other(Side::A));
        let home = Side::B.home();
        world.network.loses = Some(Box::new(|sent| sent.by == Side::A));
        let from = |world: &World| world[Side::B].data.table().send.as_ref().and_then(|s| s.1.from);
        let (mut seen, mut changes, mut last) = (world.network.wire.len(), 0, from(&world));
        for n in 0..6000 {
            world.offer(Side::A);
            let sent: Vec<_> = world.network.wire.drain(seen..).map(|sent| sent.datagram).collect();
            seen = world.network.wire.len();
            let addresses = [home, other(Side::B)];
            for datagram in sent.into_iter().filter(|datagram| addresses.contains(&datagram.to)) {
                world.inject(Datagram { to: addresses[n / 20 % 2], ..datagram });
            }
            world.run_for(millis(10));
            changes += usize::from(from(&world) != last);
            last = from(&world);
        }
        assert!((4..=12).contains(&changes), "{protocol}: {changes} changes in a minute");
    }
}

/// B has two addresses. A has just moved to one, and B to the other: each is heard where it was before.
#[test]
fn two_ends_that_look_for_each_other_meet() {
    for protocol in protocols() {
        for delay in [1, 10, 200] {
            let mut world = connected(protocol);
            world.network.weather.delay = millis(delay)..=millis(delay);
            world.run_for(seconds(2));
            world[Side::B].address = other(Side::B);
            world[Side::B].others.push(Side::B.home());
            world.at(Side::B, |b, now| b.lose_source(now));
            world.offer_every(Side::A, millis(20));
            world.offer_every(Side::B, millis(20));
            let since = world.now;
            world.run_for(seconds(60));
            let moved = moves(&world, Side::A);
            assert!(moved <= 8, "{protocol} {delay}: {moved} moves in a minute");
            let to = path(&world, Side::A);
            let from = world[Side::B].data.table().send.as_ref().and_then(|s| s.1.from);
            assert_eq!(from, Some(to.ip()), "{protocol} {delay}: they have met");
            for side in Side::BOTH {
                let (offered, arrived) = world.oracle.tally(side, since, since + seconds(59));
                assert_eq!(offered, arrived, "{protocol} {delay} {side:?}");
            }
        }
    }
}
