//! Rekeying by age, by count and after 165 s, and keys that expire.

use vpnd_protocol::drop_reason::DropReason;
use vpnd_protocol::peer::Change;
use vpnd_protocol::session::{REJECT_AFTER_MESSAGES, REKEY_AFTER_MESSAGES, Role};

use crate::end::Side;
use crate::network::{Datagram, Kind};
use crate::world::{World, millis, seconds};

fn connected() -> World {
    let mut world = World::new(1);
    world.resolve(Side::A);
    world.run_until(seconds(1));
    world
}

fn skip_to(world: &World, side: Side, counter: u64) {
    let (key, _) = world[side].data.table().send.as_ref().expect("a session");
    key.skip_to(counter);
}

#[test]
fn the_initiator_rekeys_every_two_minutes_and_nothing_is_lost() {
    let mut world = connected();
    for side in Side::BOTH {
        world.offer_every(side, millis(20));
    }
    world.run_until(seconds(400));
    let initiations = world.sent(Side::A, Kind::Initiation);
    assert_eq!(initiations, [0, 120_020, 240_040, 360_060].map(millis));
    assert_eq!(world.sent(Side::B, Kind::Initiation), []);
    let confirmed = world.changed(Side::B, |e| *e == Change::Established(Role::Responder));
    assert_eq!(confirmed, [30, 120_050, 240_070, 360_090].map(millis));
    for side in Side::BOTH {
        assert_eq!(world.oracle.tally(side, seconds(0), seconds(399)), (19_900, 19_900));
    }
}

#[test]
fn a_rekey_outlasts_a_minute_of_loss() {
    let mut world = connected();
    for side in Side::BOTH {
        world.offer_every(side, millis(100));
    }
    world.network.loses = Some(Box::new(|sent| {
        let handshake = matches!(sent.datagram.kind(), Kind::Initiation | Kind::Response);
        handshake && (seconds(100)..seconds(160)).contains(&sent.at)
    }));
    world.run_until(seconds(299));
    for side in Side::BOTH {
        assert_eq!(world.oracle.tally(side, seconds(0), seconds(298)), (2970, 2970));
    }
    assert!(world.sent(Side::A, Kind::Initiation).windows(2).all(|w| w[1] - w[0] >= seconds(5)));
}

#[test]
fn an_initiator_that_hears_at_the_last_minute_rekeys_at_once() {
    let mut world = connected();
    world.run_until(seconds(166));
    world.offer(Side::B);
    world.run_for(seconds(2));
    assert_eq!(world.sent(Side::A, Kind::Initiation)[1..], [seconds(166) + millis(10)]);
}

#[test]
fn the_last_minute_is_asked_for_once() {
    let mut world = connected();
    world.run_until(seconds(166));
    world.network.loses = Some(Box::new(|sent| sent.datagram.kind() == Kind::Response));
    world.offer_every(Side::B, millis(100));
    world.run_until(seconds(178));
    let tries = world.sent(Side::A, Kind::Initiation);
    assert_eq!(tries[1], seconds(166) + millis(10));
    assert!(tries[2] - tries[1] >= seconds(5) && tries.len() == 4, "{tries:?}");
}

#[test]
fn what_it_hears_before_is_answered_by_a_keepalive_which_asks_for_the_rekey() {
    let mut world = connected();
    world.run_until(seconds(150));
    world.offer(Side::B);
    world.run_until(seconds(165));
    let answered = seconds(160) + millis(10);
    assert_eq!(world.sent(Side::A, Kind::Keepalive)[1], answered);
    let rekey = world.sent(Side::A, Kind::Initiation)[1];
    assert!((answered..=answered + millis(250)).contains(&rekey), "{rekey:?}");
}

#[test]
fn either_side_rekeys_when_it_has_sealed_too_much() {
    for side in Side::BOTH {
        let mut world = connected();
        world.run_until(seconds(10));
        skip_to(&world, side, REKEY_AFTER_MESSAGES - 1);
        world.offer(side);
        world.run_for(seconds(1));
        assert!(world.sent(side, Kind::Initiation).last() < Some(&seconds(10)));
        world.offer(side);
        world.run_for(seconds(1));
        assert_eq!(world.sent(side, Kind::Initiation).last(), Some(&seconds(11)), "{side:?}");
        assert_eq!(world.lost(side), 0);
    }
}

/// B asked first, but our answer was lost, and so was all that B said of it since.
#[test]
fn an_answer_that_is_never_used_does_not_keep_the_initiator_from_rekeying() {
    let mut world = connected();
    for side in Side::BOTH {
        world.offer_every(side, millis(500));
    }
    world.network.loses = Some(Box::new(|sent| match sent.datagram.kind() {
        Kind::Response => sent.by == Side::A,
        Kind::Initiation => sent.by == Side::B && sent.at > seconds(102),
        _ => false,
    }));
    world.run_until(seconds(100));
    skip_to(&world, Side::B, REKEY_AFTER_MESSAGES);
    world.run_until(seconds(200));
    assert_eq!(world.sent(Side::A, Kind::Response).len(), 1);
    let rekey = world.sent(Side::A, Kind::Initiation)[1];
    assert!(rekey < seconds(121), "{rekey:?}");
}

#[test]
fn no_counter_beyond_the_last_is_used_and_what_waits_leaves_on_the_next_session() {
    for side in Side::BOTH {
        let mut world = connected();
        world.run_until(seconds(10));
        skip_to(&world, side, REJECT_AFTER_MESSAGES - 2);
        (0..5).for_each(|_| world.offer(side));
        assert_eq!(world.sent(side, Kind::Data), [seconds(10); 2]);
        world.run_for(seconds(1));
        assert_eq!(world.lost(side), 0, "{side:?}");
        assert_eq!(world.sent(side, Kind::Data)[2..], [seconds(10) + millis(20); 3]);
    }
}

#[test]
fn idle_keys_die_at_180_seconds_and_the_next_packet_begins_anew() {
    let mut world = connected();
    let replay = Datagram { ..world.network.wire[2].datagram.clone() };
    world.run_until(seconds(200));
    let lost = |e: &Change| *e == Change::Lost;
    assert_eq!(world.changed(Side::A, lost), [seconds(180) + millis(20)]);
    assert_eq!(world.changed(Side::B, lost), [seconds(180) + millis(10)]);
    for side in Side::BOTH {
        let table = world[side].data.table();
        assert!(table.send.is_none() && table.open.iter().all(Option::is_none));
    }
    world.inject(replay);
    world.run_for(millis(1));
    assert_eq!(world[Side::B].drops(DropReason::UnknownIndex), 1);
    world.offer(Side::B);
    world.run_for(millis(30));
    assert_eq!(world.lost(Side::B), 0);
}

#[test]
fn an_initiator_stops_sealing_at_170_seconds_and_stages() {
    let mut world = connected();
    world.run_until(seconds(172));
    world.network.loses = Some(Box::new(|sent| sent.datagram.kind() == Kind::Response));
    world.offer(Side::A);
    world.offer(Side::A);
    world.run_for(seconds(1));
    assert_eq!(world.sent(Side::A, Kind::Data), []);
    assert_eq!(world.sent(Side::A, Kind::Initiation)[1..], [seconds(172)]);
    world.network.loses = None;
    world.run_for(seconds(6));
    assert_eq!(world.lost(Side::A), 0);
}
