//! Ends that die, sleep, or wake up in another century.

use std::time::Duration;

use vpnd_protocol::drop_reason::DropReason;
use vpnd_protocol::peer::{Change, Diagnosis};

use crate::end::{EPOCH, Floor, Side};
use crate::network::Kind;
use crate::world::{World, millis, seconds};

/// Between two packets.
const STRUCK: Duration = millis(10_250);

/// A keeps offering packets, B never speaks first.
fn one_sided() -> World {
    let mut world = World::with(1, |side, options| {
        options.endpoint = options.endpoint.filter(|_| side == Side::A);
    });
    world.resolve(Side::A);
    world.offer_every(Side::A, millis(500));
    world.run_until(STRUCK);
    world
}

fn set_back(world: &mut World, floor: Floor, to: Duration) {
    let now = world.now;
    world[Side::A].set_wall(now, to);
    world.restart(Side::A, floor);
}

fn delivered_at(world: &World, since: Duration) -> Option<Duration> {
    world.oracle.first_delivery(Side::A, since)
}

#[test]
fn a_restarted_end_that_knows_its_peer_is_back_after_one_round_trip() {
    let mut world = World::new(1);
    for side in Side::BOTH {
        world.offer_every(side, millis(100));
        world.resolve(side);
    }
    world.run_until(millis(30_050));
    world.restart(Side::B, Floor::Kept);
    world.run_for(millis(150));
    for side in Side::BOTH {
        let back = world.oracle.first_delivery(side, millis(30_051));
        assert!(back <= Some(millis(30_150)), "{side:?} {back:?}");
    }
}

#[test]
fn a_peer_that_restarted_while_the_host_was_suspended_is_found_at_once() {
    let mut world = one_sided();
    world.suspend(Side::A);
    world.restart(Side::B, Floor::Kept);
    world.run_for(seconds(30));
    world.resume(Side::A);
    let resumed = world.now;
    world.at(Side::A, |end, now| end.resumed(now));
    world.run_for(seconds(20));
    let back = delivered_at(&world, resumed);
    assert!(back <= Some(resumed + millis(600)), "{resumed:?} {back:?}");
}

/// Both copies of a virtual machine would use the same keys and counters.
#[test]
fn a_copied_machine_forgets_its_sessions_and_establishes_another() {
    let mut world = World::new(1);
    for side in Side::BOTH {
        world.offer_every(side, millis(100));
        world.resolve(side);
    }
    world.run_until(millis(30_050));
    let copied = world.now;
    let indices = world[Side::A].opening_indices();
    world.at(Side::A, |end, now| end.copied(now));
    assert!(world[Side::A].opening_indices().is_empty());
    world.run_for(seconds(2));
    for side in Side::BOTH {
        let back = world.oracle.first_delivery(side, copied);
        assert!(back <= Some(copied + millis(400)), "{side:?} {back:?}");
    }
    let now = world[Side::A].opening_indices();
    assert!(!now.is_empty() && now.iter().all(|index| !indices.contains(index)));
}

/// The peer speaks on, and initiates when nobody answers.
#[test]
fn who_is_about_to_sleep_makes_no_session_before_it_wakes_up() {
    for slept in [seconds(5), seconds(4000)] {
        let mut world = World::new(1);
        for side in Side::BOTH {
            world.offer_every(side, millis(100));
            world.resolve(side);
        }
        world.run_until(millis(30_050));
        world.at(Side::A, |end, now| end.forget(now));
        world.run_for(seconds(2));
        assert!(world[Side::A].opening_indices().is_empty(), "a key before the suspend");
        world.suspend(Side::A);
        world.run_for(slept);
        world.resume(Side::A);
        let woken = world.now;
        world.at(Side::A, |end, now| end.resumed(now));
        world.run_for(seconds(6));
        for side in Side::BOTH {
            let back = world.oracle.first_delivery(side, woken);
            assert!(back <= Some(woken + seconds(6)), "{side:?} {back:?} after {slept:?}");
        }
    }
}

#[test]
fn a_suspend_that_does_not_come_is_not_waited_for_longer_than_fifteen_seconds() {
    let mut world = World::new(2);
    for side in Side::BOTH {
        world.offer_every(side, millis(100));
        world.resolve(side);
    }
    world.run_until(millis(30_050));
    let asked = world.now;
    world.at(Side::A, |end, now| end.forget(now));
    world.run_for(seconds(14));
    assert!(world[Side::A].opening_indices().is_empty());
    assert!(world[Side::A].drops(DropReason::Asleep) <= 3, "the peer initiates now and then");
    world.run_for(seconds(8));
    let back = world.oracle.first_delivery(Side::A, asked + seconds(15));
    assert!(back <= Some(asked + seconds(21)), "{back:?}");
}

#[test]
fn a_restarted_end_that_does_not_is_found_by_its_peers_silence_rule() {
    let mut world = one_sided();
    world.restart(Side::B, Floor::Lost);
    world.run_for(seconds(20));
    let found = world.sent(Side::A, Kind::Initiation)[1];
    // The last thing A heard came before the first packet after it that nobody answered.
    assert!((seconds(15)..=seconds(26)).contains(&found), "{found:?}");
    assert!(delivered_at(&world, found).is_some());
}

#[test]
fn with_its_floor_an_end_is_heard_whatever_its_clock_says() {
    for to in [Duration::ZERO, EPOCH - seconds(86_400 * 365), EPOCH + seconds(86_400 * 365)] {
        let mut world = one_sided();
        set_back(&mut world, Floor::Kept, to);
        set_back(&mut world, Floor::Kept, Duration::ZERO);
        world.run_for(seconds(1));
        let back = delivered_at(&world, STRUCK);
        assert_eq!(back, Some(seconds(10) + millis(510)));
        assert_eq!(world[Side::B].drops(DropReason::ReplayedInitiation), 0);
    }
}

#[test]
fn a_clock_set_back_while_running_needs_no_floor() {
    let mut world = one_sided();
    let now = world.now;
    world[Side::A].set_wall(now, Duration::ZERO);
    world.run_until(millis(300_250));
    assert_eq!(world.lost(Side::A), 0);
    assert_eq!(world[Side::B].drops(DropReason::ReplayedInitiation), 0);
}

/// The documented outcome: whoever has lost its floor and its clock is refused until its clock
/// has passed the last timestamp its peer accepted.
#[test]
fn without_its_floor_and_its_clock_an_end_is_locked_out_until_the_clock_has_caught_up() {
    let mut world = one_sided();
    // The last accepted stamp was taken at the start, so 40 s back from there.
    set_back(&mut world, Floor::Lost, EPOCH - seconds(40));
    world.run_until(seconds(60));
    let tries = world.sent(Side::A, Kind::Initiation)[1..].to_vec();
    let first_heard = tries.iter().position(|at| world_clock(*at) > EPOCH).expect("a try");
    assert_eq!(world[Side::B].drops(DropReason::ReplayedInitiation), first_heard);
    let stale = world.diagnosed(Side::B, |e| matches!(e, Diagnosis::StaleInitiation { .. }));
    assert_eq!(stale.len(), first_heard, "each is told");
    let heard = delivered_at(&world, STRUCK).expect("heard at last");
    assert_eq!(heard, tries[first_heard] + millis(30));
    assert!((seconds(50)..=seconds(56)).contains(&heard), "{heard:?}");
}

/// A's clock in the test above.
fn world_clock(at: Duration) -> Duration {
    EPOCH - seconds(40) + (at - STRUCK)
}

#[test]
fn the_lockout_also_ends_when_the_peer_restarts() {
    let mut world = one_sided();
    set_back(&mut world, Floor::Lost, Duration::ZERO);
    world.run_until(seconds(90));
    assert_eq!(delivered_at(&world, STRUCK), None);
    world.restart(Side::B, Floor::Kept);
    world.run_for(seconds(6));
    assert!(delivered_at(&world, seconds(80)).is_some());
}

#[test]
fn the_lockout_also_ends_when_the_peer_has_something_to_say() {
    let mut world = one_sided();
    set_back(&mut world, Floor::Lost, Duration::ZERO);
    world.run_until(seconds(30));
    assert_eq!(delivered_at(&world, STRUCK), None);
    world.offer(Side::B);
    world.run_for(seconds(16));
    let initiated = world.sent(Side::B, Kind::Initiation)[0];
    assert!((seconds(45)..=millis(45_333)).contains(&initiated), "{initiated:?}");
    assert!(delivered_at(&world, STRUCK).is_some());
}

#[test]
fn after_a_suspend_the_data_lines_refuse_the_old_keys_before_any_timer_has_run() {
    let mut world = World::new(1);
    world.resolve(Side::A);
    world.run_until(seconds(1));
    world.offer(Side::B);
    let held = world.network.wire.last().expect("it was sent").datagram.clone();
    world.suspend(Side::A);
    world.run_until(seconds(601));
    let wire = world.network.wire.len();
    world.resume(Side::A);
    world.inject(held);
    world.offer(Side::A);
    assert_eq!(world.network.wire.len(), wire, "nothing is sealed under a dead key");
    world.run_for(millis(40));
    assert_eq!(world[Side::A].drops(DropReason::Expired), 1);
    assert_eq!(world.changed(Side::A, |e| *e == Change::Lost), [seconds(601)]);
    assert_eq!(delivered_at(&world, seconds(601)), Some(seconds(601) + millis(30)));
}

#[test]
fn a_session_that_ran_out_in_a_suspend_is_renewed_though_its_timer_ran_first() {
    let mut world = World::new(1);
    world.resolve(Side::A);
    world.run_until(seconds(1));
    world.suspend(Side::A);
    world.run_until(seconds(601));
    world.resume(Side::A);
    world.run_for(millis(5));
    assert_eq!(world.changed(Side::A, |e| *e == Change::Lost), [seconds(601)]);
    world.at(Side::A, |end, now| end.resumed(now));
    world.run_for(seconds(1));
    let sent = world.sent(Side::A, Kind::Initiation);
    assert_eq!(sent, [seconds(0), seconds(601) + millis(5)]);
}

/// A try that the peer's own session has made needless ends in the same moment as silence asks
/// for another.
#[test]
fn after_a_suspend_all_that_is_due_is_done_in_one_go() {
    let mut world = World::new(1);
    world.network.loses = Some(Box::new(|sent| {
        sent.by == Side::B && sent.datagram.kind() == Kind::Response || sent.at == seconds(1)
    }));
    world.resolve(Side::A);
    world.resolve(Side::B);
    world.run_until(seconds(1));
    world.offer(Side::A);
    world.run_until(seconds(2));
    world.suspend(Side::A);
    world.run_until(seconds(62));
    world.resume(Side::A);
    world.run_for(seconds(1));
    assert_eq!(world.sent(Side::A, Kind::Initiation), [seconds(0), seconds(62)]);
}
