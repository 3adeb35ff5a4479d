//! Copies of the peer's datagrams from other addresses: from an attacker's, and from where the peer was.

use std::net::SocketAddr;
use std::time::Duration;

use vpnd_protocol::endpoint::Roam;
use vpnd_protocol::frame::{ControlFrame, Ping};
use vpnd_protocol::terms::Protocol;

use crate::end::Side;
use crate::network::{Datagram, Kind};
use crate::roaming::{attacker, path, speaking, vpnd};
use crate::world::{World, millis, seconds};

/// Somebody on the path sends all that A sends ahead, from an address that it has itself, and brings to A what we send
/// there, as far as that is short: questions and handshakes. The originals come 10 ms later.
fn race(world: &mut World, from: SocketAddr) {
    world.network.spoofs = Some(Box::new(move |sent| (sent.by == Side::A).then_some(from)));
    world.network.carries = Some((from, 100, Side::A.home()));
}

#[test]
fn copies_sent_ahead_do_not_turn_data_elsewhere_while_the_originals_come() {
    let port = SocketAddr::new(Side::A.home().ip(), 4444);
    for protocol in [Protocol::WireGuard, vpnd()] {
        for (roam, from) in [(Roam::Any, attacker()), (Roam::Any, port), (Roam::SameIp, port)] {
            let mut world = speaking(protocol, roam);
            world.offer_every(Side::A, millis(20));
            world.offer_every(Side::B, millis(20));
            world.run_until(seconds(2));
            race(&mut world, from);
            // Over two rekeys.
            world.run_until(seconds(300));
            let (offered, arrived) = world.oracle.tally(Side::B, seconds(2), seconds(299));
            let case = format!("{protocol} {roam:?} {from}");
            assert!(offered - arrived <= 10, "{case}: {arrived} of {offered}");
            assert_eq!(path(&world, Side::B), Side::A.home(), "{case}");
            assert_eq!(world.lost(Side::A), 0, "{case}");
        }
    }
}

/// Each datagram that is sent ahead comes from another address.
#[test]
fn copies_from_many_addresses_do_not_turn_data_elsewhere() {
    for protocol in [Protocol::WireGuard, vpnd()] {
        let mut world = speaking(protocol, Roam::Any);
        world.offer_every(Side::A, millis(5));
        world.offer_every(Side::B, millis(5));
        world.run_until(seconds(2));
        let mut port = 1000;
        world.network.spoofs = Some(Box::new(move |sent| {
            port = if port < 60_000 { port + 1 } else { 1000 };
            (sent.by == Side::A).then(|| SocketAddr::new(attacker().ip(), port))
        }));
        world.run_until(seconds(42));
        let (offered, arrived) = world.oracle.tally(Side::B, seconds(2), seconds(41));
        assert!(arrived * 50 >= offered * 49, "{protocol}: {arrived} of {offered}");
        world.network.spoofs = None;
        world.run_for(seconds(1));
        assert_eq!(path(&world, Side::B), Side::A.home(), "{protocol}");
    }
}

#[test]
fn a_network_that_duplicates_does_not_keep_a_peer_from_moving() {
    for protocol in [Protocol::WireGuard, vpnd()] {
        let mut world = speaking(protocol, Roam::Any);
        world.network.weather.duplication = 1.0;
        world.network.weather.delay = millis(5)..=millis(80);
        world.offer_every(Side::A, millis(5));
        for host in [7, 8, 7, 9] {
            world.run_for(seconds(6));
            world[Side::A].roam(host, 7);
            world.run_for(seconds(1));
            assert_eq!(path(&world, Side::B), world[Side::A].address, "{protocol} {host}");
        }
    }
}

/// Copies that are kept, and sent from where the peer was long ago, lead nowhere.
#[test]
fn late_copies_from_where_the_peer_was_do_not_lead_back() {
    let mut world = speaking(vpnd(), Roam::Any);
    world.offer_every(Side::A, millis(50));
    world.run_for(seconds(1));
    world[Side::A].roam(7, 7);
    world.run_for(seconds(6));
    let sent = world.captured(Side::A, Kind::Data).last().expect("data").datagram.clone();
    world.run_for(seconds(1));
    world.inject(Datagram { from: Side::A.home(), ..sent });
    world.run_for(seconds(1));
    assert_eq!(path(&world, Side::B), world[Side::A].address);
}

/// Somebody who sees what A sends copies it from the address that A has left, but brings nothing to A.
#[test]
fn copies_from_where_the_peer_was_do_not_hold_data_there() {
    for (begins, most) in [(millis(0), 110), (millis(100), 3), (seconds(1), 3)] {
        let mut world = speaking(vpnd(), Roam::Any);
        Side::BOTH.into_iter().for_each(|side| world.offer_every(side, millis(20)));
        world.run_until(seconds(2));
        world.network.spoofed_after = millis(15);
        world[Side::A].roam(7, 7);
        world.run_for(begins);
        world.network.spoofs = Some(Box::new(|sent| (sent.by == Side::A).then(|| Side::A.home())));
        world.run_until(seconds(60));
        assert_eq!(path(&world, Side::B), world[Side::A].address, "{begins:?}");
        let (offered, arrived) = world.oracle.tally(Side::B, seconds(2), seconds(59));
        assert!(offered - arrived <= most, "{begins:?}: {arrived} of {offered}");
    }
}

/// One who brings our questions to A as well can hold data there, as can anybody if A is a `WireGuard` peer; but only while
/// it goes on.
#[test]
fn what_holds_data_where_the_peer_was_ends_with_the_next_handshake() {
    for protocol in [Protocol::WireGuard, vpnd()] {
        let mut world = speaking(protocol, Roam::Any);
        Side::BOTH.into_iter().for_each(|side| world.offer_every(side, millis(20)));
        world.run_until(seconds(2));
        world[Side::A].roam(7, 7);
        world.network.spoofs = Some(Box::new(|sent| (sent.by == Side::A).then(|| Side::A.home())));
        world.network.spoofed_after = millis(15);
        world.network.carries = Some((Side::A.home(), 100, world[Side::A].address));
        world.run_until(seconds(120));
        assert_eq!(path(&world, Side::B), Side::A.home(), "{protocol}");
        world.network.spoofs = None;
        world.network.carries = None;
        world.run_for(seconds(21));
        assert_eq!(path(&world, Side::B), world[Side::A].address, "{protocol}");
        let since = world.now;
        world.run_for(seconds(10));
        assert_eq!(
            world.oracle.tally(Side::B, since, since + seconds(9)),
            (450, 450),
            "{protocol}"
        );
    }
}

/// The PING that is to tell may be lost, and so may its answer.
#[test]
fn copies_sent_ahead_are_found_on_a_path_that_loses() {
    for seed in 0..10 {
        let mut world = World::with(seed, |_, options| options.protocol = vpnd());
        Side::BOTH.into_iter().for_each(|side| world.resolve(side));
        Side::BOTH.into_iter().for_each(|side| world.offer_every(side, millis(20)));
        world.run_until(seconds(2));
        world.network.weather.loss = 0.2;
        race(&mut world, attacker());
        world.run_until(seconds(100));
        let (_, went) = world.oracle.account(attacker());
        let all: usize =
            world.captured(Side::B, Kind::Data).map(|sent| sent.datagram.bytes.len()).sum();
        assert!(went * 10 < all, "{seed}: {went} bytes of {all} went to the attacker");
        world.network.spoofs = None;
        world.network.weather.loss = 0.0;
        world.run_for(seconds(3));
        assert_eq!(path(&world, Side::B), Side::A.home(), "{seed}");
    }
}

/// An empty datagram or a control frame of A, sealed as A would.
fn sealed(world: &World, plaintext: &[u8]) -> Vec<u8> {
    let boot = world[Side::A].clock(world.now).boot;
    let (key, _) = world[Side::A].data.table().send.clone().expect("a key");
    let Ok(mut counters) = key.reserve(1, boot) else { panic!("no counters") };
    let mut datagram = vec![0; plaintext.len() + 32];
    datagram[16..][..plaintext.len()].copy_from_slice(plaintext);
    key.seal(counters.next().expect("one"), &mut datagram);
    datagram
}

/// The peer itself wants our data to go to somebody else, and answers PINGs that it has not received.
#[test]
fn guessed_answers_from_an_address_move_nothing() {
    let mut world = speaking(vpnd(), Roam::Any);
    Side::BOTH.into_iter().for_each(|side| world.offer_every(side, millis(100)));
    world.run_until(seconds(20));
    let forged = |world: &mut World, plaintext: &[u8]| {
        let bytes = sealed(world, plaintext);
        world.inject(Datagram { from: attacker(), to: Side::B.home(), bytes });
        world.run_for(millis(1));
    };
    for sequence in 1..200 {
        if sequence % 20 == 1 {
            forged(&mut world, &[]);
            world.run_for(millis(300));
        }
        let timestamp = world[Side::B].clock(world.now).boot.as_nanos();
        for timestamp in [0, timestamp] {
            let pong = Ping::new(sequence, timestamp, 0).answer(0, 0);
            forged(&mut world, &ControlFrame::begin().pong(&pong).end());
            assert_eq!(path(&world, Side::B), Side::A.home(), "{sequence}");
        }
    }
    let (came, went) = world.oracle.account(attacker());
    assert!(went > 0 && went < came, "{went} bytes for {came}");
}

/// How long it takes until data goes to where A is.
pub(crate) fn until_moved(world: &mut World, limit: Duration) -> Option<Duration> {
    let since = world.now;
    while world.now < since + limit {
        world.run_for(millis(20));
        if path(world, Side::B) == world[Side::A].address {
            return Some(world.now - since);
        }
    }
    None
}

/// Somebody sends one copy ahead from an address to which the peer will really move, so that the address is rejected.
#[test]
fn a_copy_from_where_the_peer_will_be_does_not_hold_the_move_off() {
    let next = SocketAddr::from(([198, 51, 100, 7], 7));
    for protocol in [Protocol::WireGuard, vpnd()] {
        for (copies_calls, limit) in [(false, seconds(2)), (true, seconds(10))] {
            let mut world = speaking(protocol, Roam::Any);
            Side::BOTH.into_iter().for_each(|side| world.offer_every(side, millis(20)));
            world.run_until(seconds(2));
            let mut copied = false;
            world.network.spoofs = Some(Box::new(move |sent| {
                let first = sent.by == Side::A && sent.datagram.kind() == Kind::Data && !copied;
                copied |= first;
                first.then_some(next)
            }));
            world.run_for(seconds(6));
            assert_eq!(path(&world, Side::B), Side::A.home());
            world.network.spoofs = copies_calls.then(|| -> crate::network::Spoof {
                Box::new(|sent| {
                    let calls = sent.by == Side::A && sent.datagram.kind() == Kind::Initiation;
                    calls.then(attacker)
                })
            });
            world.network.spoofed_after = millis(15);
            world[Side::A].roam(7, 7);
            assert_eq!(world[Side::A].address, next);
            let took = until_moved(&mut world, seconds(100)).expect("it is found");
            assert!(took <= limit, "{protocol} {copies_calls}: {took:?}");
        }
    }
}
