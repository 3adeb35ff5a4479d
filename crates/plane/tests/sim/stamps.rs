//! Timestamps of initiations: what they refuse, and what recorded or absurd ones cannot do.

use std::time::Duration;

use vpnd_crypto::key::SecretKey;
use vpnd_protocol::drop_reason::DropReason;
use vpnd_protocol::peer::{Change, Diagnosis};

use crate::end::{END_OF_TIME, EPOCH, Floor, Side};
use crate::network::{Captured, Datagram, Kind};
use crate::world::{World, millis, seconds};

/// One round trip and the disk.
const AT_ONCE: Duration = millis(50);

/// A calls B, which knows no endpoint.
fn one_sided(seed: u64) -> World {
    let mut world = World::with(seed, |side, options| {
        options.endpoint = options.endpoint.filter(|_| side == Side::A);
    });
    world.resolve(Side::A);
    world.run_until(seconds(1));
    world
}

/// A starts anew with such a clock, and nothing that reminds it of another.
fn restart_at(world: &mut World, clock: Duration) {
    let now = world.now;
    world[Side::A].set_wall(now, clock);
    world.restart(Side::A, Floor::Lost);
}

fn sessions(world: &World, side: Side) -> usize {
    world.changed(side, |one| matches!(one, Change::Established(_))).len()
}

#[test]
fn a_stamp_at_the_end_of_time_is_answered_and_locks_nobody_out() {
    let mut world = one_sided(1);
    restart_at(&mut world, END_OF_TIME);
    world.run_for(seconds(10));
    assert_eq!(sessions(&world, Side::B), 2, "it is answered");
    assert_eq!(world.diagnosed(Side::B, |e| matches!(e, Diagnosis::StampAhead { .. })).len(), 1);
    let clock = EPOCH + world.now;
    restart_at(&mut world, clock);
    world.run_for(AT_ONCE);
    assert_eq!(sessions(&world, Side::B), 3, "and so is the next");
    assert_eq!(world[Side::B].drops(DropReason::ReplayedInitiation), 0);
}

#[test]
fn no_stamp_under_the_old_key_locks_the_next_one_out() {
    let next = [77; 32];
    // The first is within a day, so that it refuses what comes after it.
    for clock in [EPOCH + seconds(86_000), END_OF_TIME] {
        let mut world = World::with(2, |side, options| {
            options.endpoint = options.endpoint.filter(|_| side == Side::A);
            options.next = if side == Side::A { [Some(next), None] } else { [None, Some(next)] };
        });
        restart_at(&mut world, clock);
        world.run_for(seconds(10));
        let right = EPOCH + world.now;
        restart_at(&mut world, right);
        world.at(Side::A, |a, now| a.rotate(now));
        world.run_for(seconds(6));
        let now = world.now;
        let keys = world[Side::B].status(now).keys;
        assert_eq!(keys[1], SecretKey::from_bytes(next).public(), "{clock:?}");
    }
}

#[test]
fn what_was_seen_of_a_key_goes_with_it_and_stays_with_one_that_stays() {
    let mut world = one_sided(3);
    let recorded = initiations(&world);
    world.at(Side::B, |b, now| b.adopt(now));
    replay(&mut world, &recorded[0]);
    assert_eq!(world[Side::B].drops(DropReason::ReplayedInitiation), 1);
    // It is dropped, and comes back later.
    world[Side::B].options.remote = SecretKey::from_bytes([99; 32]).public();
    world.at(Side::B, |b, now| b.adopt(now));
    world[Side::B].options.remote = Side::A.public();
    world.at(Side::B, |b, now| b.adopt(now));
    let answers = world.sent(Side::B, Kind::Response).len();
    replay(&mut world, &recorded[0]);
    assert_eq!(world.sent(Side::B, Kind::Response).len(), answers + 1);
}

fn initiations(world: &World) -> Vec<Captured> {
    world.captured(Side::A, Kind::Initiation).cloned().collect()
}

fn replay(world: &mut World, sent: &Captured) {
    world.inject(Datagram { from: ([198, 18, 0, 1], 1).into(), ..sent.datagram.clone() });
    world.run_for(millis(1));
}

/// An hour of recorded initiations, an end that starts anew, and somebody who plays them back to it, the
/// first one before it could call.
fn held_off(apart: Duration) -> Duration {
    let mut world = one_sided(4);
    world.offer_every(Side::A, seconds(30));
    world.run_until(seconds(3590));
    let recorded = initiations(&world);
    assert!(recorded.len() > 20, "{}", recorded.len());
    world.restart(Side::B, Floor::Kept);
    let since = world.now;
    world[Side::B].options.endpoint = Some(Side::A.home());
    replay(&mut world, &recorded[0]);
    world.resolve(Side::B);
    world.offer_every(Side::B, millis(100));
    for sent in &recorded[1..] {
        world.run_for(apart);
        replay(&mut world, sent);
    }
    world.run_for(seconds(10));
    world.oracle.first_delivery(Side::B, since).expect("back") - since
}

#[test]
fn recorded_initiations_hold_a_restarted_end_off_once_and_not_each_time() {
    for apart in [millis(20), millis(500), millis(1700), millis(4900)] {
        let took = held_off(apart);
        assert!(took <= apart.min(seconds(5)) + 2 * AT_ONCE, "{apart:?}: {took:?}");
    }
}

/// A keeps calling B, which is down; somebody records that, and once B is up plays it back, just ahead of
/// each initiation of A.
#[test]
fn recorded_initiations_just_ahead_of_its_own_do_not_keep_the_peer_out() {
    for burst in [1, 20] {
        let mut world = World::with(6, |side, options| {
            options.endpoint = options.endpoint.filter(|_| side == Side::A);
            options.watch = true;
        });
        world.suspend(Side::B);
        world.resolve(Side::A);
        world.run_until(seconds(300));
        let recorded = initiations(&world);
        assert!(recorded.len() > 40, "{}", recorded.len());
        world.resume(Side::B);
        world.restart(Side::B, Floor::Kept);
        let (mut old, mut seen) = (recorded.iter(), recorded.len());
        while seen < recorded.len() + 2 {
            world.run_for(millis(1));
            if world.sent(Side::A, Kind::Initiation).len() > seen {
                seen += 1;
                // A's own takes 10 ms.
                old.by_ref().take(burst).for_each(|sent| {
                    world.inject(Datagram {
                        from: ([198, 18, 0, 1], 1).into(),
                        ..sent.datagram.clone()
                    });
                });
            }
            if sessions(&world, Side::B) > 0 {
                break;
            }
        }
        assert_eq!(
            (sessions(&world, Side::B), seen),
            (1, recorded.len() + 1),
            "{burst}: at its first"
        );
    }
}

/// All honest stamps are then a day ahead.
#[test]
fn where_our_clock_is_wrong_replays_are_answered_rarely_and_displace_nothing() {
    let mut world = one_sided(5);
    world.offer_every(Side::A, seconds(30));
    world.run_until(seconds(1200));
    let recorded = initiations(&world);
    let now = world.now;
    world[Side::B].set_wall(now, Duration::ZERO);
    world.restart(Side::B, Floor::Kept);
    for sent in &recorded {
        world.run_for(millis(24));
        replay(&mut world, sent);
    }
    let answered = world.sent(Side::B, Kind::Response).len();
    // Now each is known, and comes again, forty times a second.
    let mut again = recorded.iter().cycle();
    let mut flood = |world: &mut World, many: usize| {
        for sent in again.by_ref().take(many) {
            world.run_for(millis(24));
            replay(world, sent);
        }
    };
    flood(&mut world, 390);
    let more = world.sent(Side::B, Kind::Response).len() - answered;
    assert!((1..=2).contains(&more), "{more} answers to replays in ten seconds");
    // A, whose packets went unanswered, starts anew meanwhile.
    world.restart(Side::A, Floor::Kept);
    let established = sessions(&world, Side::B);
    flood(&mut world, 4);
    assert!(sessions(&world, Side::B) > established);
}
