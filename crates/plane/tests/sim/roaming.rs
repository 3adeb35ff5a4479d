//! The peer moves; and those who would have us believe it.

use std::net::SocketAddr;
use std::time::Duration;

use vpnd_crypto::aead::Algorithm;
use vpnd_protocol::drop_reason::DropReason;
use vpnd_protocol::endpoint::{Roam, Sources};
use vpnd_protocol::peer::{Change, Diagnosis, Load};
use vpnd_protocol::profile::{Kem, Mode, Profile};
use vpnd_protocol::terms::Protocol;

use crate::end::{Floor, Side};
use crate::network::{Captured, Datagram, Kind};
use crate::world::{World, millis, seconds};

pub(crate) fn attacker() -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 66], 666))
}

fn connected(roam: Roam) -> World {
    speaking(Protocol::WireGuard, roam)
}

pub(crate) fn speaking(protocol: Protocol, roam: Roam) -> World {
    let mut world =
        World::with(1, |_, options| (options.protocol, options.roam) = (protocol, roam));
    world.resolve(Side::A);
    world.run_until(seconds(1));
    // Late, as names are: who follows nobody learns only now where the peer is.
    world.resolve(Side::B);
    world
}

pub(crate) fn vpnd() -> Protocol {
    let cipher = Algorithm::ChaCha20Poly1305;
    Protocol::Vpnd(Profile { mode: Mode::Tun, cipher, kem: Kem::None })
}

fn post_quantum() -> Protocol {
    let cipher = Algorithm::ChaCha20Poly1305;
    Protocol::Vpnd(Profile { mode: Mode::Tun, cipher, kem: Kem::MlKem768 })
}

pub(crate) fn path(world: &World, side: Side) -> SocketAddr {
    world[side].data.table().send.as_ref().expect("a path").1.to
}

fn moves(world: &World, side: Side) -> usize {
    world.changed(side, |one| matches!(one, Change::Moved { .. })).len()
}

#[test]
fn a_peer_is_followed_as_far_as_the_policy_goes() {
    let home = Side::A.home();
    let (port, host) = (SocketAddr::new(home.ip(), 9), SocketAddr::from(([198, 51, 100, 7], 9)));
    for (roam, to, followed) in [
        (Roam::Any, host, true),
        (Roam::Any, port, true),
        (Roam::SameIp, port, true),
        (Roam::SameIp, host, false),
        (Roam::Off, port, false),
        (Roam::Off, host, false),
    ] {
        // A WireGuard peer at once, and a vpnd when it has answered from there.
        for (protocol, after) in [(Protocol::WireGuard, millis(10)), (vpnd(), millis(30))] {
            let mut world = speaking(protocol, roam);
            world[Side::A].address = to;
            world.offer(Side::A);
            world.run_for(after);
            assert_eq!(world.lost(Side::A), 0, "data is taken from anywhere");
            let expected = if followed { to } else { home };
            assert_eq!(path(&world, Side::B), expected, "{protocol} {roam:?} {to}");
            world.offer(Side::B);
            world.run_for(millis(10));
            assert_eq!(world.lost(Side::B), usize::from(!followed));
        }
    }
}

#[test]
fn who_stays_at_its_endpoint_stays_there_from_the_start() {
    let home = Side::A.home();
    let elsewhere = SocketAddr::new(home.ip(), 9);
    for (roam, endpoint, leads_to) in [
        (Roam::Any, Some(home), elsewhere),
        (Roam::SameIp, Some(home), elsewhere),
        (Roam::Off, Some(home), home),
        (Roam::Off, Some(elsewhere), elsewhere),
    ] {
        let mut world = World::with(1, |side, options| {
            options.roam = roam;
            options.endpoint = if side == Side::A { options.endpoint } else { endpoint };
        });
        world.network.loses = Some(Box::new(|sent| sent.by == Side::B && sent.at < seconds(1)));
        world.resolve(Side::B);
        world.run_until(seconds(1));
        world[Side::A].address = elsewhere;
        world.resolve(Side::A);
        world.run_for(seconds(1));
        assert_eq!(path(&world, Side::B), leads_to, "{roam:?} {endpoint:?}");
    }
}

#[test]
fn a_keepalive_is_enough_to_be_followed() {
    let mut world = connected(Roam::Any);
    world.offer(Side::B);
    world[Side::A].roam(7, 7);
    world.offer(Side::B);
    world[Side::A].address = Side::A.home();
    world.run_for(seconds(1));
    world[Side::A].roam(7, 7);
    world.run_for(seconds(10));
    assert_eq!(path(&world, Side::B), world[Side::A].address);
}

#[test]
fn a_replay_from_elsewhere_moves_nothing() {
    let mut world = connected(Roam::Any);
    world.offer(Side::A);
    world.run_for(seconds(1));
    for sent in world.network.wire.clone() {
        if sent.by == Side::A {
            world.inject(Datagram { from: attacker(), ..sent.datagram });
        }
    }
    world.run_for(seconds(1));
    assert_eq!(world[Side::B].drops(DropReason::Replayed), 2);
    assert_eq!(world[Side::B].drops(DropReason::ReplayedInitiation), 1);
    assert_eq!((path(&world, Side::B), moves(&world, Side::B)), (Side::A.home(), 1));
    assert!(world.network.wire.iter().all(|sent| sent.datagram.to != attacker()));
}

#[test]
fn what_was_overtaken_is_delivered_but_moves_nothing() {
    let mut world = connected(Roam::Any);
    world.network.weather.loss = 1.0;
    world.offer(Side::A);
    let held = world.network.wire.last().expect("it was sent").datagram.clone();
    world.network.weather.loss = 0.0;
    world.offer(Side::A);
    world.run_for(seconds(1));
    world.inject(Datagram { from: attacker(), ..held });
    world.run_for(seconds(1));
    assert_eq!(world.lost(Side::A), 0);
    assert_eq!((path(&world, Side::B), moves(&world, Side::B)), (Side::A.home(), 1));
}

#[test]
fn an_older_session_moves_nothing() {
    let mut world = connected(Roam::Any);
    world.run_until(seconds(121));
    world.network.weather.loss = 1.0;
    world.offer(Side::A);
    let held = world.network.wire.last().expect("it was sent").datagram.clone();
    world.network.weather.loss = 0.0;
    world.run_for(seconds(1));
    assert_eq!(world.sent(Side::A, Kind::Initiation).len(), 2);
    world.inject(Datagram { from: attacker(), ..held });
    world.run_for(seconds(1));
    assert_eq!(world.lost(Side::A), 0);
    assert_eq!(path(&world, Side::B), Side::A.home());
}

/// The kernel chooses again: the address may be what fails.
#[test]
fn the_address_the_peer_wrote_to_is_let_go_when_nothing_is_heard_there() {
    let from = |world: &World| world[Side::A].data.table().send.as_ref().and_then(|s| s.1.from);
    let all: fn(&Captured) -> bool = |sent| sent.by == Side::B;
    let answers: fn(&Captured) -> bool = |sent| sent.datagram.kind() == Kind::Response;
    for (offered, lost, let_go_after) in
        [(seconds(2), all, millis(15_350)), (seconds(121), answers, millis(5_350))]
    {
        let mut world = connected(Roam::Any);
        world.run_until(offered);
        assert_eq!(from(&world), Some(Side::A.home().ip()));
        world.network.loses = Some(Box::new(lost));
        world.offer(Side::A);
        world.run_for(let_go_after);
        assert_eq!(from(&world), None, "{offered:?}");
    }
}

/// What the configuration says is what begins anew, not whatever the kernel takes for best.
#[test]
fn the_configured_source_takes_the_place_of_one_that_fails() {
    let source = [192, 0, 2, 99].into();
    let mut world = World::with(1, |side, options| {
        options.sources.v4 = Some(source).filter(|_| side == Side::A);
        options.sources = Sources { v6: Some([0x2001; 8].into()), ..options.sources };
    });
    world.resolve(Side::A);
    world.run_until(seconds(2));
    let way = |world: &World| world[Side::A].data.table().send.as_ref().expect("a way").1;
    assert_eq!(way(&world).from, Some(Side::A.home().ip()), "the peer wrote to another");
    assert_eq!(way(&world).dscp, 46);
    world.network.loses = Some(Box::new(|sent| sent.by == Side::B));
    world.offer(Side::A);
    world.run_for(millis(15_350));
    assert_eq!(way(&world).from, Some(source.into()));

    // The kernel says that it is no longer ours.
    let now = world.now;
    world[Side::A].lose_source(now);
    assert_eq!(way(&world).from, None);
}

#[test]
fn an_initiation_replayed_to_a_restarted_responder_steers_nothing() {
    let mut world = World::with(1, |side, options| {
        options.endpoint = options.endpoint.filter(|_| side == Side::A);
    });
    world.resolve(Side::A);
    world.run_until(seconds(1));
    let initiation = world.captured(Side::A, Kind::Initiation).next().expect("one").clone();
    world.restart(Side::B, Floor::Kept);
    world.inject(Datagram { from: attacker(), ..initiation.datagram.clone() });
    world.run_for(seconds(1));
    let answer = &world.network.wire.last().expect("an answer").datagram;
    assert_eq!((answer.kind(), answer.to), (Kind::Response, attacker()));
    assert!(world[Side::B].data.table().send.is_none());

    // Nor does the answer keep the real one out.
    world.offer(Side::A);
    world.run_until(seconds(20));
    world.offer_every(Side::A, millis(100));
    world.offer_every(Side::B, millis(100));
    world.run_for(seconds(1));
    world.inject(Datagram { from: attacker(), ..initiation.datagram });
    world.run_for(seconds(1));
    assert_eq!(world[Side::B].drops(DropReason::ReplayedInitiation), 1);
    world.run_until(seconds(60));
    assert_eq!((path(&world, Side::B), moves(&world, Side::B)), (Side::A.home(), 2));
    assert_eq!(world.oracle.tally(Side::B, seconds(20), seconds(59)), (390, 390));
}

/// What A sends arrives from the attacker's address, and before what A sent.
fn overtake(world: &mut World) {
    world.network.spoofs = Some(Box::new(|sent| (sent.by == Side::A).then(attacker)));
}

#[test]
fn what_is_sent_again_from_elsewhere_does_not_turn_data_there() {
    let mut world = speaking(vpnd(), Roam::Any);
    world.offer_every(Side::B, millis(10));
    world.run_for(seconds(1));
    for only in [1, usize::MAX] {
        let mut left = only;
        world.network.spoofs = Some(Box::new(move |sent| {
            let chosen = sent.by == Side::A && left > 0;
            left -= usize::from(chosen);
            chosen.then(attacker)
        }));
        for _ in 0..20 {
            world.offer(Side::A);
            world.run_for(millis(100));
        }
        assert_eq!((path(&world, Side::B), moves(&world, Side::B)), (Side::A.home(), 1));
    }
    let (came, went) = world.oracle.account(attacker());
    assert!(came > 0 && went > 0 && went <= 3 * came, "{came} bytes came, {went} went");
    world.run_for(millis(10));
    assert_eq!(world.oracle.tally(Side::B, seconds(0), seconds(5)), (400, 400));
}

#[test]
fn a_new_address_is_asked_once_and_not_again_before_more_comes_from_there() {
    let mut world = speaking(vpnd(), Roam::Any);
    overtake(&mut world);
    // A measures the path, and answers a question, both at once.
    world.offer(Side::B);
    world.run_for(seconds(1));
    // And then a third time, when B asks where A is.
    assert_eq!(world.oracle.account(attacker()), (240, 80));
    world.run_for(seconds(60));
    assert_eq!(world.oracle.account(attacker()), (240, 80));
}

#[test]
fn an_answer_that_comes_from_elsewhere_than_it_was_asked_for_proves_nothing() {
    let mut world = speaking(vpnd(), Roam::Any);
    overtake(&mut world);
    world.offer_every(Side::A, millis(500));
    world.offer_every(Side::B, millis(500));
    // Both measure the way, so that PONGs overtake themselves too.
    world.run_for(seconds(30));
    assert_eq!((path(&world, Side::B), moves(&world, Side::B)), (Side::A.home(), 1));
}

#[test]
fn who_confirms_a_session_is_where_the_answer_went() {
    for protocol in [Protocol::WireGuard, vpnd()] {
        let mut world = World::with(1, |side, options| {
            options.protocol = protocol;
            options.endpoint = options.endpoint.filter(|_| side == Side::A);
        });
        world.network.spoofs = Some(Box::new(|sent| {
            (sent.by == Side::A && sent.datagram.kind() != Kind::Initiation).then(attacker)
        }));
        world.resolve(Side::A);
        world.run_until(millis(29));
        assert!(world[Side::B].alive, "{protocol}: the attacker's copy came first");
        world.network.spoofs = None;
        world.offer(Side::A);
        world.run_until(seconds(1));
        world.offer(Side::B);
        world.run_for(seconds(1));
        assert_eq!((path(&world, Side::B), world.lost(Side::B)), (Side::A.home(), 0), "{protocol}");
    }
}

/// Somebody near B sends A's initiation from elsewhere, and brings the answer to A.
#[test]
fn an_answer_that_was_carried_to_the_peer_proves_nothing() {
    let mut world = speaking(vpnd(), Roam::Any);
    world.network.spoofs = Some(Box::new(|sent| {
        (sent.by == Side::A && sent.datagram.kind() == Kind::Initiation).then(attacker)
    }));
    world.run_until(seconds(10));
    world.restart(Side::A, Floor::Kept);
    world.run_for(millis(1));
    let carried = world.network.wire.last().expect("an answer").datagram.clone();
    assert_eq!((carried.kind(), carried.to), (Kind::Response, attacker()));
    world.inject(Datagram { to: Side::A.home(), ..carried });
    world.run_for(seconds(1));
    assert_eq!(world.changed(Side::B, |e| matches!(e, Change::Established(_))).len(), 2);
    assert_eq!((path(&world, Side::B), moves(&world, Side::B)), (Side::A.home(), 1));
}

/// Somebody beside the path sends each initiation of A ahead of it, from elsewhere.
#[test]
fn an_initiation_that_is_raced_from_elsewhere_is_answered_where_it_comes_from() {
    for protocol in [Protocol::WireGuard, vpnd(), post_quantum()] {
        for (roam, knows) in [(Roam::Any, true), (Roam::Any, false), (Roam::Off, true)] {
            let mut world = World::with(1, |side, options| {
                (options.protocol, options.roam) = (protocol, roam);
                options.endpoint = options.endpoint.filter(|_| side == Side::A || knows);
            });
            world.network.spoofs = Some(Box::new(|sent| {
                (sent.by == Side::A && sent.datagram.kind() == Kind::Initiation).then(attacker)
            }));
            world.resolve(Side::A);
            world.run_for(millis(5));
            world.resolve(Side::B);
            Side::BOTH.into_iter().for_each(|side| world.offer_every(side, millis(100)));
            world.run_until(seconds(300));
            let what = format!("{protocol} {roam:?} {knows}");
            assert_eq!(path(&world, Side::B), Side::A.home(), "{what}");
            for side in Side::BOTH {
                let (offered, arrived) = world.oracle.tally(side, millis(500), seconds(299));
                assert_eq!(offered, arrived, "{what}: {side:?}");
            }
            assert_eq!(
                world.diagnosed(Side::B, |e| matches!(e, Diagnosis::StaleInitiation { .. })),
                [],
                "{what}"
            );
            assert_eq!(
                world.diagnosed(Side::B, |e| matches!(e, Diagnosis::NeverConfirms(_))),
                [],
                "{what}"
            );
        }
    }
}

#[test]
fn copies_of_an_initiation_are_answered_at_a_few_addresses_for_a_second() {
    let mut world = World::with(1, |side, options| {
        options.endpoint = options.endpoint.filter(|_| side == Side::A);
    });
    // The session is not used, so its answer is still wanted.
    world.network.loses = Some(Box::new(|sent| sent.datagram.kind() == Kind::Response));
    world.resolve(Side::A);
    world.run_for(millis(15));
    let initiation = world.network.wire[0].datagram.clone();
    let answers =
        |world: &World| world.captured(Side::B, Kind::Response).cloned().collect::<Vec<_>>();
    let again = |world: &mut World, host: u8, mac2: u8| {
        let from = SocketAddr::from(([198, 51, 100, host], 666));
        let mut copy = Datagram { from, ..initiation.clone() };
        *copy.bytes.last_mut().expect("a mac2") ^= mac2;
        world.inject(copy);
        world.run_for(millis(0));
    };
    // One address twice, then ten others. What mac2 says is of no concern without load.
    (1..=10).chain([1]).for_each(|host| again(&mut world, host, host % 2));
    let sent = answers(&world);
    assert_eq!(sent.len(), 4, "in all");
    assert!(sent.iter().all(|one| one.datagram.bytes == sent[0].datagram.bytes), "the same answer");
    assert_eq!(world[Side::B].drops(DropReason::ReplayedInitiation), 8);
    world.run_until(seconds(1) + millis(100));
    again(&mut world, 11, 0);
    assert_eq!(answers(&world).len(), 4, "not later");
}

#[test]
fn under_load_a_copy_of_an_initiation_earns_a_cookie_and_no_answer() {
    let mut world = connected(Roam::Any);
    world.run_until(seconds(10));
    let initiation =
        world.captured(Side::A, Kind::Initiation).next().expect("one").datagram.clone();
    world[Side::B].load = Load::Under;
    let before = world.sent(Side::B, Kind::Response).len();
    world.inject(Datagram { from: attacker(), ..initiation });
    world.run_for(millis(1));
    assert_eq!(world.sent(Side::B, Kind::Response).len(), before);
    assert_eq!(world.sent(Side::B, Kind::CookieReply).len(), 1);
}

#[test]
fn a_wireguard_peer_that_does_not_answer_elsewhere_is_looked_for_where_it_was() {
    for knows in [true, false] {
        let mut world = World::with(1, |side, options| {
            options.endpoint = options.endpoint.filter(|_| side == Side::A || knows);
        });
        world.resolve(Side::A);
        world.run_until(seconds(1));
        world.resolve(Side::B);
        world.run_until(seconds(7));
        overtake(&mut world);
        world.offer(Side::A);
        world.run_for(millis(1));
        world.network.spoofs = None;
        assert_eq!(path(&world, Side::B), attacker(), "as WireGuard does");
        world.offer_every(Side::B, millis(100));
        world.run_for(seconds(15) + seconds(6));
        assert_eq!(path(&world, Side::B), Side::A.home(), "{knows}");
        let since = world.now;
        world.run_for(seconds(3));
        assert_eq!(world.oracle.tally(Side::B, since, since + seconds(2)), (20, 20), "{knows}");
    }
}

/// One that has really moved and fallen silent is called where it was last heard as well.
#[test]
fn a_wireguard_peer_that_has_moved_is_found_though_a_call_was_lost() {
    let mut world = World::with(1, |side, options| {
        options.endpoint = options.endpoint.filter(|_| side == Side::A);
    });
    world.resolve(Side::A);
    world.run_until(seconds(1));
    world[Side::A].roam(7, 7);
    world.offer(Side::A);
    world.run_until(seconds(2));
    let mut lost = 0;
    world.network.loses = Some(Box::new(move |sent| {
        lost += usize::from(sent.datagram.kind() == Kind::Initiation);
        sent.datagram.kind() != Kind::Initiation || lost == 1
    }));
    world.offer(Side::B);
    world.run_for(seconds(16));
    world.network.loses = Some(Box::new(|sent| sent.at < seconds(23)));
    world.run_for(seconds(20));
    assert_eq!(path(&world, Side::B), world[Side::A].address);
}

/// A NAT that alternates between two ports for one flow.
#[test]
fn who_flaps_between_two_ports_moves_a_few_times_a_second() {
    for protocol in [Protocol::WireGuard, vpnd()] {
        let mut world = speaking(protocol, Roam::Any);
        let (before, wakes) = (moves(&world, Side::B), world[Side::B].wakes.len());
        let pace = Duration::from_micros(500);
        for n in 0..4000 {
            world[Side::A].address.set_port(1000 + n % 2);
            world.offer(Side::A);
            world.run_for(pace);
        }
        let moved = moves(&world, Side::B) - before;
        assert!(moved <= 9, "{protocol}: {moved} moves in two seconds");
        assert!(world[Side::B].wakes.len() - wakes <= 40, "{protocol}");
        world.offer(Side::A);
        world.run_for(seconds(1));
        world.offer(Side::A);
        world.run_for(seconds(1));
        assert_eq!(path(&world, Side::B), world[Side::A].address, "{protocol}: the newest wins");
        assert_eq!(world.lost(Side::A), 0);
    }
}

/// The one that has moved is heard all the time, so that the path leads there again and again.
#[test]
fn a_wireguard_peer_is_called_where_it_is_heard_though_a_call_was_lost() {
    let mut world = World::with(1, |side, options| {
        options.endpoint = options.endpoint.filter(|_| side == Side::B);
    });
    world.resolve(Side::B);
    world.run_until(seconds(1));
    world[Side::A].roam(7, 7);
    world.offer_every(Side::A, seconds(1));
    world.offer_every(Side::B, seconds(1));
    let mut first = true;
    world.network.loses = Some(Box::new(move |sent| {
        let rekeys = sent.at > seconds(100) && sent.datagram.kind() == Kind::Initiation;
        rekeys && std::mem::take(&mut first)
    }));
    world.run_until(seconds(138));
    let rekeyed = world.changed(Side::B, |e| matches!(e, Change::Established(_)))[1];
    assert!(rekeyed < seconds(137), "{rekeyed:?}");
    assert_eq!(path(&world, Side::B), world[Side::A].address);
}

/// Nothing can be answered there.
#[test]
fn what_comes_from_source_port_0_is_ignored() {
    for protocol in [Protocol::WireGuard, vpnd(), post_quantum()] {
        let mut world = World::with(1, |_, options| options.protocol = protocol);
        world.network.spoofs = Some(Box::new(|sent| Some((sent.datagram.from.ip(), 0).into())));
        Side::BOTH.into_iter().for_each(|side| world.resolve(side));
        Side::BOTH.into_iter().for_each(|side| world.offer_every(side, millis(100)));
        world.run_until(seconds(300));
        for side in Side::BOTH {
            assert_eq!(path(&world, side), side.other().home(), "{protocol}");
            let (offered, arrived) = world.oracle.tally(side, millis(500), seconds(299));
            assert_eq!(offered, arrived, "{protocol}: {side:?}");
            assert!(world[side].drops(DropReason::Malformed) > 2000);
        }
        assert!(world.network.wire.iter().all(|sent| sent.datagram.to.port() != 0));
    }
}

#[test]
fn a_refused_ping_to_a_new_address_does_not_impair_the_tunnel() {
    let mut world = speaking(vpnd(), Roam::Any);
    world[Side::B].refuses = Some(Box::new(|sent| sent.to == attacker()));
    overtake(&mut world);
    world.offer_every(Side::A, millis(100));
    world.offer_every(Side::B, millis(100));
    let since = world.now;
    world.run_for(seconds(100));
    assert!(!world[Side::B].refused.is_empty());
    assert_eq!(world[Side::B].impaired, []);
    assert_eq!(world.oracle.tally(Side::B, since, since + seconds(99)), (990, 990));
    // Where the peer is, a refusal does.
    world[Side::B].refuses = Some(Box::new(|sent| sent.to == Side::A.home()));
    world.run_for(seconds(2));
    assert!(!world[Side::B].impaired.is_empty());
}

#[test]
fn a_wireguard_path_that_our_host_refuses_leads_back_at_once() {
    let mut world = connected(Roam::Any);
    world.run_until(seconds(7));
    overtake(&mut world);
    world.offer(Side::A);
    world.run_for(millis(1));
    world.network.spoofs = None;
    assert_eq!(path(&world, Side::B), attacker());
    world.at(Side::B, |b, now| b.data_refused(now, attacker()));
    assert_eq!((path(&world, Side::B), world[Side::B].impaired.len()), (Side::A.home(), 0));
    let since = world.now;
    world.offer_every(Side::B, millis(100));
    world.run_for(seconds(10));
    assert_eq!(world.oracle.tally(Side::B, since, since + seconds(9)), (90, 90));
    // One that has proved itself has nothing to lead back to.
    world.at(Side::B, |b, now| b.data_refused(now, Side::A.home()));
    assert_eq!((path(&world, Side::B), world[Side::B].impaired.len()), (Side::A.home(), 1));
}
