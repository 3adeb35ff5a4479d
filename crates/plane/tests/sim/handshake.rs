//! How a session comes to be, and what happens when it does not.

use vpnd_crypto::key::SecretKey;
use vpnd_protocol::drop_reason::DropReason;
use vpnd_protocol::message::{self, Message};
use vpnd_protocol::peer::{Change, Diagnosis, Load};
use vpnd_protocol::session::Role;

use crate::end::{Disk, Side};
use crate::network::Kind;
use crate::world::{World, millis, seconds};

const OURS: fn(&Change) -> bool = |event| *event == Change::Established(Role::Initiator);
const THEIRS: fn(&Change) -> bool = |event| *event == Change::Established(Role::Responder);

/// Only A knows where the other is.
fn one_sided() -> World {
    World::with(1, |side, options| {
        if side == Side::B {
            options.endpoint = None;
        }
    })
}

#[test]
fn a_session_stands_after_one_round_trip_and_is_confirmed_by_a_keepalive() {
    let mut world = one_sided();
    world.resolve(Side::A);
    world.run_for(seconds(4));
    assert_eq!(world.sent(Side::A, Kind::Initiation), [millis(0)]);
    assert_eq!(world.sent(Side::B, Kind::Response), [millis(10)]);
    assert_eq!(world.changed(Side::A, OURS), [millis(20)]);
    assert_eq!(world.sent(Side::A, Kind::Keepalive), [millis(20)]);
    assert_eq!(world.changed(Side::B, THEIRS), [millis(30)]);
    assert_eq!(world.network.wire.len(), 3);
}

#[test]
fn the_responder_is_silent_until_the_initiator_has_used_the_session() {
    let mut world = one_sided();
    for _ in 0..3 {
        world.offer(Side::B);
    }
    world.network.loses = Some(Box::new(|sent| sent.datagram.kind() == Kind::Keepalive));
    world.resolve(Side::A);
    world.run_for(seconds(4));
    assert_eq!(world.changed(Side::A, OURS).len(), 1);
    assert_eq!(world.changed(Side::B, THEIRS), []);
    assert_eq!(world.sent(Side::B, Kind::Data), []);

    world.offer(Side::A);
    world.run_for(millis(20));
    assert_eq!(world.changed(Side::B, THEIRS), [seconds(4) + millis(10)]);
    assert_eq!(world.sent(Side::B, Kind::Data), [seconds(4) + millis(10); 3]);
    assert_eq!((world.lost(Side::A), world.lost(Side::B)), (0, 0));
}

#[test]
fn whoever_initiates_with_a_foreign_key_is_named_and_gets_no_answer() {
    let foreign = SecretKey::from_bytes([99; 32]).public();
    let mut world = World::with(1, |side, options| {
        if side == Side::B {
            (options.remote, options.endpoint) = (foreign, None);
        }
    });
    world.resolve(Side::A);
    world.run_for(seconds(4));
    let unknown = Diagnosis::UnknownPeer { key: Side::A.public(), from: Side::A.home() };
    assert_eq!(world.diagnosed(Side::B, |one| *one == unknown), [millis(10)]);
    assert_eq!(world[Side::B].drops(DropReason::UnknownPeer), 1);
    assert!(world.network.wire.iter().all(|sent| sent.by == Side::A));
}

#[test]
fn twenty_tries_five_seconds_apart_and_then_silence_until_there_is_new_data() {
    let mut world = one_sided();
    world.network.weather.loss = 1.0;
    world.resolve(Side::A);
    world.run_for(seconds(200));
    let tries = world.sent(Side::A, Kind::Initiation);
    assert_eq!(tries.len(), 20);
    for pair in tries.windows(2) {
        let wait = pair[1] - pair[0];
        assert!((millis(5000)..=millis(5333)).contains(&wait), "{wait:?}");
    }
    let gave_up = world.changed(Side::A, |one| *one == Change::GaveUp);
    assert_eq!(gave_up.len(), 1);
    assert!((millis(5000)..=millis(5333)).contains(&(gave_up[0] - tries[19])));

    world.network.weather.loss = 0.0;
    world.offer(Side::A);
    world.run_for(seconds(1));
    assert_eq!(world.sent(Side::A, Kind::Initiation)[20..], [seconds(200)]);
    assert_eq!(world.lost(Side::A), 0);
}

#[test]
fn packets_wait_for_a_session_the_newest_128_and_none_longer_than_100_seconds() {
    let mut world = World::new(1);
    world.network.weather.loss = 1.0;
    world.offer(Side::A);
    world.resolve(Side::A);
    world.run_for(seconds(50));
    (0..200).for_each(|_| world.offer(Side::A));
    assert_eq!(world[Side::A].drops(DropReason::StagingDropped), 73);
    world.run_until(seconds(70));
    (0..28).for_each(|_| world.offer(Side::A));
    world.run_until(seconds(151));
    world.network.weather.loss = 0.0;
    world.offer(Side::A);
    world.run_for(seconds(6));
    assert_eq!(world.oracle.tally(Side::A, seconds(0), seconds(60)), (201, 0));
    assert_eq!(world.oracle.tally(Side::A, seconds(60), seconds(200)), (29, 29));
}

#[test]
fn under_load_a_cookie_is_asked_for_and_the_next_try_brings_it() {
    let mut world = one_sided();
    world[Side::B].load = Load::Under;
    world.resolve(Side::A);
    world.run_for(seconds(6));
    assert_eq!(world.sent(Side::B, Kind::CookieReply), [millis(10)]);
    assert_eq!(world[Side::B].drops(DropReason::CookieDemanded), 1);
    let macs = world.captured(Side::A, Kind::Initiation).map(|sent| {
        let parsed = message::parse(&sent.datagram.bytes);
        let Ok(Message::Initiation(initiation)) = parsed else { panic!("no initiation") };
        initiation.macs.mac2 != [0; 16]
    });
    assert_eq!(macs.collect::<Vec<_>>(), [false, true]);
    let second = world.sent(Side::A, Kind::Initiation)[1];
    assert!((millis(5000)..=millis(5333)).contains(&second));
    assert_eq!(world.changed(Side::A, OURS), [second + millis(20)]);
    assert_eq!(world.changed(Side::B, THEIRS), [second + millis(30)]);
}

#[test]
fn an_initiator_under_load_asks_for_a_cookie_too() {
    let mut world = one_sided();
    world[Side::A].load = Load::Under;
    world.resolve(Side::A);
    world.run_for(seconds(6));
    assert_eq!(world.sent(Side::A, Kind::CookieReply), [millis(20)]);
    let second = world.sent(Side::A, Kind::Initiation)[1];
    assert_eq!(world.changed(Side::A, OURS), [second + millis(20)]);
}

#[test]
fn the_initiation_waits_for_its_timestamp_but_not_for_a_broken_disk() {
    for (disk, leaves) in [
        (Disk::Writes(millis(0)), millis(0)),
        (Disk::Writes(millis(120)), millis(120)),
        (Disk::Writes(millis(2000)), millis(500)),
        (Disk::Broken, millis(500)),
    ] {
        let mut world = World::with(1, |_, options| options.disk = disk);
        world.resolve(Side::A);
        world.run_for(seconds(4));
        assert_eq!(world.sent(Side::A, Kind::Initiation), [leaves]);
        assert_eq!(world.changed(Side::A, OURS), [leaves + millis(20)]);
    }
}
