//! Datagrams that do not leave, or do not arrive in one direction alone: other addresses, of the peer and of
//! ours, and another port.

use std::net::SocketAddr;
use std::time::Duration;

use vpnd_crypto::aead::Algorithm;
use vpnd_protocol::peer::Change;
use vpnd_protocol::profile::{Kem, Mode, Profile};
use vpnd_protocol::terms::Protocol;

use crate::end::{Options, Side};
use crate::network::{Captured, Datagram, Kind};
use crate::world::{World, millis, seconds};

/// Another address of each end.
fn other(side: Side) -> SocketAddr {
    SocketAddr::from(([203, 0, 113, side as u8 + 1], 51820))
}

fn protocols() -> [Protocol; 2] {
    let cipher = Algorithm::ChaCha20Poly1305;
    [Protocol::WireGuard, Protocol::Vpnd(Profile { mode: Mode::Tun, cipher, kem: Kem::None })]
}

/// Both ends have a second address each.
fn world(seed: u64, change: impl FnMut(Side, &mut Options)) -> World {
    let mut world = World::with(seed, change);
    Side::BOTH.into_iter().for_each(|side| world[side].others.push(other(side)));
    world
}

/// Packets of `side` that were offered between two moments, and how many of them arrived.
fn tally(world: &World, side: Side, from: Duration, until: Duration) -> (usize, usize) {
    world.oracle.tally(side, from, until)
}

#[test]
fn a_source_that_leads_nowhere_is_let_go_though_the_peer_is_heard() {
    for (seed, protocol) in (0..5).flat_map(|seed| protocols().map(|one| (seed, one))) {
        // B knows A by its second address, so A answers from there.
        let mut world = world(seed, |side, options| {
            options.protocol = protocol;
            options.endpoint = Some(other(Side::A)).filter(|_| side == Side::B);
        });
        world.resolve(Side::B);
        world.run_until(seconds(2));
        world.network.loses = Some(Box::new(|sent| sent.datagram.from == other(Side::A)));
        world.offer_every(Side::A, millis(500));
        world.offer_every(Side::B, millis(500));
        world.run_until(seconds(60));
        let (offered, arrived) = tally(&world, Side::A, seconds(24), seconds(59));
        assert_eq!(offered, arrived, "{seed} {protocol}: 22 s after the path had died");
        let (offered, arrived) = tally(&world, Side::B, seconds(24), seconds(59));
        assert_eq!(offered, arrived, "{seed} {protocol}: and back");
    }
}

#[test]
fn of_two_addresses_the_one_that_is_dead_outward_is_left() {
    for (seed, protocol, both) in (0..5)
        .flat_map(|seed| protocols().map(|one| (seed, one)))
        .flat_map(|(seed, one)| [false, true].map(|both| (seed, one, both)))
    {
        let mut world = world(seed, |side, options| {
            options.protocol = protocol;
            options.endpoint = options.endpoint.filter(|_| side == Side::A);
            options.also_at = if side == Side::A { vec![other(Side::B)] } else { Vec::new() };
        });
        world.resolve(Side::A);
        world.run_until(seconds(2));
        world.network.loses = Some(Box::new(|sent| sent.datagram.to == Side::B.home()));
        world.offer_every(Side::A, millis(500));
        if both {
            world.offer_every(Side::B, millis(500));
        }
        world.run_until(seconds(60));
        let (offered, arrived) = tally(&world, Side::A, seconds(25), seconds(59));
        assert_eq!(offered, arrived, "{seed} {protocol} {both}: 23 s after the path had died");
    }
}

#[test]
fn what_our_own_host_refuses_goes_to_the_next_address_at_once() {
    let dead = [7, 8, 9].map(|host| SocketAddr::from(([198, 51, 100, host], 1)));
    let mut world = world(1, |side, options| {
        options.endpoint = Some(dead[0]).filter(|_| side == Side::A);
        options.also_at = vec![dead[1], dead[2], Side::B.home()];
    });
    world[Side::A].refuses = Some(Box::new(move |sent| dead.contains(&sent.to)));
    world.resolve(Side::A);
    world.run_until(millis(100));
    assert_eq!(world.changed(Side::A, |one| matches!(one, Change::Established(_))).len(), 1);
    let asked: Vec<_> = world[Side::A].refused.iter().map(|(_, to)| *to).collect();
    assert_eq!(asked, dead);
}

#[test]
fn where_all_is_refused_each_try_goes_round_once() {
    let addresses = [7, 8, 9].map(|host| SocketAddr::from(([198, 51, 100, host], 1)));
    let mut world = world(2, |side, options| {
        options.watch = true;
        options.endpoint = Some(addresses[0]).filter(|_| side == Side::A);
        options.also_at = vec![addresses[1], addresses[2]];
    });
    world[Side::A].refuses = Some(Box::new(|_| true));
    world.resolve(Side::A);
    world.run_until(seconds(600));
    let refused = world[Side::A].refused.len();
    assert!((330..=360).contains(&refused), "{refused} in ten minutes");
    assert_eq!(world.port_changes(Side::A), [], "no port is to blame");

    // One way comes back, in the middle between two tries.
    world.run_for(millis(2500));
    let before = world[Side::A].refused.len();
    let home = Side::B.home();
    world[Side::A].options.also_at = vec![addresses[1], home];
    world[Side::A].refuses = Some(Box::new(move |sent| sent.to != home));
    let now = world.now;
    world.at(Side::A, |end, now| end.resolve(now));
    world.at(Side::A, |end, now| end.retry_refused(now));
    world.run_for(millis(100));
    let [up] = world.changed(Side::A, |one| matches!(one, Change::Established(_)))[..] else {
        panic!("not up")
    };
    assert!(up <= now + millis(100), "up at {up:?}, the network at {now:?}");
    assert!(world[Side::A].refused.len() <= before + 2);
}

#[test]
fn a_network_that_comes_late_is_used_at_once() {
    let mut world = world(3, |side, options| {
        options.endpoint = options.endpoint.filter(|_| side == Side::A);
    });
    world[Side::A].refuses = Some(Box::new(|_| true));
    world.resolve(Side::A);
    world.run_until(millis(500));
    world[Side::A].refuses = None;
    world.at(Side::A, |end, now| end.retry_refused(now));
    world.run_for(millis(100));
    assert_eq!(world.changed(Side::A, |one| matches!(one, Change::Established(_))).len(), 1);
    assert_eq!(world.sent(Side::A, Kind::Initiation).len(), 1);
}

#[test]
fn nothing_heard_for_long_wants_another_port() {
    for free_port in [true, false] {
        let mut world = world(4, |side, options| {
            options.free_port = free_port;
            options.watch = true;
            options.endpoint = options.endpoint.filter(|_| side == Side::A);
        });
        // What comes from this port is translated to an address that leads nowhere.
        let home = Side::A.home();
        world.network.loses = Some(Box::new(move |sent| sent.datagram.from == home));
        world.resolve(Side::A);
        world.run_until(seconds(37));
        let up = world.changed(Side::A, |one| matches!(one, Change::Established(_))).len();
        assert_eq!(up, usize::from(free_port));
    }
}

/// A, whose port is free, knows where B is, and finds it dead after 3 s.
fn roaming_watcher(seed: u64) -> World {
    let mut world = World::with(seed, |side, options| {
        options.protocol = protocols()[1];
        options.free_port = side == Side::A;
        options.dead_after = seconds(3);
        options.watch = true;
        options.endpoint = options.endpoint.filter(|_| side == Side::A);
    });
    world.resolve(Side::A);
    world.offer_every(Side::A, millis(100));
    world.run_until(seconds(20));
    world
}

/// A's datagrams still reach B, and B's go to an address that is no longer the NAT's.
#[test]
fn a_mapping_that_dies_under_a_standing_tunnel_is_left_when_the_peer_is_dead() {
    for seed in 0..10 {
        let mut world = roaming_watcher(seed);
        let home = Side::A.home();
        world.network.loses = Some(Box::new(move |sent| sent.datagram.to == home));
        let died = world.now;
        world.run_for(seconds(10));
        let up = world.changed(Side::A, |one| matches!(one, Change::Established(_)));
        let took = up.into_iter().find(|at| *at > died).expect("another port") - died;
        assert!(took < millis(4500), "seed {seed}: {took:?}");
        assert_eq!(world.port_changes(Side::A).len(), 1, "seed {seed}");
    }
}

#[test]
fn a_peer_that_has_announced_its_end_is_awaited_at_the_same_port() {
    let mut world = roaming_watcher(1);
    world.at(Side::B, |end, now| end.close(now));
    world.suspend(Side::B);
    world.run_for(seconds(2));
    assert_eq!(world.changed(Side::A, |one| *one == Change::Dead).len(), 1);
    assert_eq!(world.port_changes(Side::A), []);
}

/// Of a flow whose translation leads nowhere, which is forgotten after 30 s without a datagram.
fn stuck(from: SocketAddr) -> impl FnMut(&Captured) -> bool {
    let mut last = None;
    move |sent| {
        let ours = sent.datagram.from == from;
        let before = if ours { last.replace(sent.at) } else { None };
        ours && before.is_none_or(|before| sent.at < before + seconds(30))
    }
}

#[test]
fn a_fixed_port_is_silent_once_so_that_its_flow_is_forgotten() {
    for fixed_port in [true, false] {
        let mut world = world(4, |side, options| {
            options.fixed_port = fixed_port;
            options.watch = true;
            options.endpoint = options.endpoint.filter(|_| side == Side::A);
        });
        world.network.loses = Some(Box::new(stuck(Side::A.home())));
        world.resolve(Side::A);
        world.run_until(seconds(55));
        let up = world.changed(Side::A, |one| matches!(one, Change::Established(_))).len();
        assert_eq!(up, usize::from(fixed_port));
    }
}

#[test]
fn a_fixed_port_is_seldom_silent() {
    let mut world = world(6, |side, options| {
        options.fixed_port = true;
        options.watch = true;
        options.endpoint = options.endpoint.filter(|_| side == Side::A);
    });
    world.suspend(Side::B);
    world.resolve(Side::A);
    world.run_until(seconds(600));
    assert_eq!(world.port_changes(Side::A).len(), 1);
    assert!(world.sent(Side::A, Kind::Initiation).len() > 100);
}

#[test]
fn a_port_is_kept_while_the_peer_is_heard_and_changed_only_so_often() {
    let mut world = world(5, |side, options| {
        options.watch = true;
        options.endpoint = options.endpoint.filter(|_| side == Side::A);
    });
    world.resolve(Side::A);
    world.offer_every(Side::A, seconds(10));
    world.run_until(seconds(600));
    assert_eq!(world.port_changes(Side::A), []);
    world.suspend(Side::B);
    world.run_for(seconds(600));
    let changes = world.port_changes(Side::A);
    assert!((15..=20).contains(&changes.len()), "{} in ten minutes", changes.len());
}

#[test]
fn a_route_that_changed_is_followed_at_once_and_the_peer_knows() {
    for protocol in protocols() {
        let mut world = world(6, |side, options| {
            options.protocol = protocol;
            options.endpoint = Some(other(Side::A)).filter(|_| side == Side::B);
        });
        world.resolve(Side::B);
        world.run_until(seconds(2));
        let path =
            |world: &World, side: Side| world[side].data.table().send.as_ref().expect("one").1;
        assert_eq!(path(&world, Side::A).from, Some(other(Side::A).ip()));
        assert_eq!(path(&world, Side::B).to, other(Side::A));
        // The peer goes on writing to the old address until it has heard of the new one.
        world.offer_every(Side::B, millis(3));
        world.offer_every(Side::A, millis(3));
        world.run_for(millis(300));
        world.network.loses = Some(Box::new(|sent| sent.datagram.from == other(Side::A)));
        world.at(Side::A, |end, now| end.route_changed(now));
        world.run_for(millis(400));
        assert_eq!(path(&world, Side::A).from, Some(Side::A.home().ip()), "{protocol}");
        assert_eq!(path(&world, Side::B).to, Side::A.home(), "{protocol}");
        let until = world.now;
        world.run_for(millis(100));
        for side in Side::BOTH {
            let (offered, arrived) = tally(&world, side, seconds(2), until);
            assert_eq!(offered, arrived, "{protocol} {side:?}");
        }
    }
}

/// The kernel has two addresses for A, and sends from the second one from now on. What leaves from the first one is lost.
#[test]
fn a_source_that_the_kernel_chose_moves_with_the_route_before_anybody_has_noticed() {
    for protocol in protocols() {
        let mut world = world(8, |_, options| options.protocol = protocol);
        world.resolve(Side::A);
        world.run_until(seconds(2));
        let home = Side::A.home();
        world[Side::A].address = other(Side::A);
        world[Side::A].others = vec![home];
        world.network.loses = Some(Box::new(move |sent| sent.datagram.from == home));
        let moved = world.now;
        world.offer_every(Side::A, millis(10));
        world.run_for(seconds(3));
        let (offered, arrived) = tally(&world, Side::A, moved, world.now - millis(100));
        assert_eq!(offered, arrived, "{protocol}");
        let to = world[Side::B].data.table().send.as_ref().map(|sent| sent.1.to);
        assert_eq!(to, Some(other(Side::A)), "{protocol}: the peer follows");
    }
}

/// The kernel would send from A's first address, but the peer has written to the second one, and hears only that.
#[test]
fn another_source_than_the_kernels_choice_is_pinned() {
    for protocol in protocols() {
        let mut world = world(9, |side, options| {
            options.protocol = protocol;
            options.endpoint = Some(other(Side::A)).filter(|_| side == Side::B);
        });
        world.network.loses = Some(Box::new(|sent| sent.datagram.from == Side::A.home()));
        world.resolve(Side::B);
        world.run_until(seconds(2));
        let start = world.now;
        Side::BOTH.into_iter().for_each(|side| world.offer_every(side, millis(10)));
        world.run_for(seconds(3));
        let (offered, arrived) = tally(&world, Side::A, start, world.now - millis(100));
        assert_eq!(offered, arrived, "{protocol}");
    }
}

/// Somebody on the side brings one datagram of the peer to another address of ours.
#[test]
fn a_datagram_brought_to_another_address_of_ours_turns_nothing_unless_that_works() {
    let protocol = protocols()[1];
    for works in [false, true] {
        let mut world = world(7, |_, options| options.protocol = protocol);
        world.resolve(Side::A);
        world.run_until(seconds(2));
        world.network.weather.loss = 1.0;
        world.offer(Side::B);
        let held = world.network.wire.last().expect("it was sent").datagram.clone();
        world.network.weather.loss = 0.0;
        world.network.loses =
            Some(Box::new(move |sent| !works && sent.datagram.from == other(Side::A)));
        world.inject(Datagram { to: other(Side::A), ..held });
        world.offer_every(Side::A, millis(3));
        world.run_for(seconds(3));
        let from = world[Side::A].data.table().send.as_ref().and_then(|sent| sent.1.from);
        assert!(works || from == Some(Side::A.home().ip()), "{from:?}");
        let (offered, arrived) = tally(&world, Side::A, seconds(2), seconds(4));
        assert_eq!(offered, arrived, "works: {works}");
        let moves = world.changed(Side::B, |one| matches!(one, Change::Moved { .. })).len();
        assert!(moves <= 4, "{moves} moves: the ends pass each other by");
    }
}

/// Somebody sends copies ahead, from an address that B's host sends nothing to.
#[test]
fn a_refused_answer_to_a_stranger_does_not_impair_the_tunnel() {
    for (seed, protocol) in (0..5).flat_map(|seed| protocols().map(|one| (seed, one))) {
        let stranger = SocketAddr::from(([198, 51, 100, 66], 666));
        let mut world = world(seed, |_, options| {
            (options.protocol, options.link) = (protocol, Some(1472));
        });
        world.resolve(Side::A);
        world.offer_every(Side::A, millis(500));
        world.run_until(seconds(1));
        world[Side::B].refuses = Some(Box::new(move |sent| sent.to == stranger));
        // Handshakes, and probes of the path's size.
        world.network.spoofs = Some(Box::new(move |sent| {
            let is_large = sent.datagram.bytes.len() > 1000;
            let is_chosen =
                sent.by == Side::A && (is_large || sent.datagram.kind() == Kind::Initiation);
            is_chosen.then_some(stranger)
        }));
        world.at(Side::A, |end, now| end.route_changed(now));
        world.run_until(seconds(300));
        assert!(!world[Side::B].refused.is_empty(), "{seed} {protocol}");
        assert_eq!(world[Side::B].impaired, [], "{seed} {protocol}");
        let (offered, arrived) = tally(&world, Side::A, Duration::ZERO, seconds(299));
        assert_eq!(offered, arrived, "{seed} {protocol}");
    }
}
