//! Which fault stands at which end, and for how long.

use std::net::SocketAddr;

use vpnd_crypto::key::SecretKey;
use vpnd_device::Found;
use vpnd_plane::{Loop, Notice, Trouble};
use vpnd_protocol::peer::Change;

use crate::end::{Options, Side};
use crate::world::{World, millis, seconds};

/// A calls, and B waits.
fn world(mut change: impl FnMut(Side, &mut Options)) -> World {
    World::with(1, |side, options| {
        options.endpoint = options.endpoint.filter(|_| side == Side::A);
        change(side, options);
    })
}

/// The tunnel's own device is the way to there.
fn into_the_tunnel(to: SocketAddr) -> Loop {
    let (device, to_all) = ("tun0".into(), "0.0.0.0/0".parse().expect("a network"));
    let route =
        Found { index: 7, device, to: Some(to_all), is_routed: false, table: None, source: None };
    Loop { to, route }
}

#[test]
fn each_end_has_its_view_of_a_preshared_key_that_differs_and_a_session_ends_both() {
    let mut world = world(|side, options| options.preshared = vec![[side as u8; 32]]);
    world.resolve(Side::A);
    assert_eq!(Side::BOTH.map(|side| world.trouble(side)), [None, None]);
    world.run_for(seconds(14));
    assert_eq!(world.trouble(Side::A), Some(Trouble::AnswerDoesNotOpen));
    assert_eq!(world.trouble(Side::B), Some(Trouble::NeverConfirms(3)));
    world[Side::B].options.preshared = world[Side::A].options.preshared.clone();
    world.at(Side::B, |end, now| end.adopt(now));
    world.run_for(seconds(6));
    assert_eq!(Side::BOTH.map(|side| world.trouble(side)), [None, None]);
}

#[test]
fn an_address_whose_route_leads_into_the_tunnel_is_avoided_until_it_no_longer_does() {
    let (home, other) = (Side::B.home(), SocketAddr::from(([203, 0, 113, 2], 51820)));
    let mut world = world(|side, options| {
        options.also_at = if side == Side::A { vec![other] } else { Vec::new() };
    });
    world[Side::B].others.push(other);
    let looped = into_the_tunnel(home);
    world[Side::A].loops = vec![looped.clone()];
    world.resolve(Side::A);
    world.offer_every(Side::A, millis(500));
    world.run_for(seconds(30));
    assert_eq!(world.changed(Side::A, |one| matches!(one, Change::Established(_))).len(), 1);
    let to_home = world.network.wire.iter().filter(|sent| sent.datagram.to == home).count();
    assert_eq!(to_home, 0, "nothing is sent into the loop");
    assert_eq!(
        world.trouble(Side::A),
        Some(Trouble::Loop(looped.clone())),
        "though a session stands"
    );

    // The other address is lost, and the first is free again.
    world.at(Side::A, |end, now| end.change_routes(now, Vec::new()));
    assert_eq!(world.trouble(Side::A), None);
    let of_loops = |one: &&Notice| matches!(one, Notice::Loops(_) | Notice::LoopsOver(_));
    let reported: Vec<_> = world[Side::A].notices.iter().filter(of_loops).collect();
    assert_eq!(reported, [&Notice::Loops(vec![looped]), &Notice::LoopsOver(vec![home])]);
    world.network.loses = Some(Box::new(move |sent| sent.datagram.to == other));
    let lost_at = world.now;
    world.run_for(seconds(60));
    let (offered, arrived) = world.oracle.tally(Side::A, lost_at + seconds(30), world.now);
    assert!(offered > 50 && arrived + 1 >= offered, "{arrived} of {offered}");
}

#[test]
fn a_wrong_public_key_shows_at_the_end_that_hears_it_and_is_forgotten() {
    let stranger = SecretKey::from_bytes([9; 32]).public();
    let mut world = world(|side, options| {
        if side == Side::A {
            options.remote = stranger;
        }
    });
    world.resolve(Side::A);
    world.run_for(seconds(21));
    assert_eq!(world.trouble(Side::A), Some(Trouble::NoAnswer));
    assert!(matches!(world.trouble(Side::B), Some(Trouble::BadMac1(4..))));
    world.suspend(Side::A);
    world.run_for(seconds(19));
    assert!(matches!(world.trouble(Side::B), Some(Trouble::BadMac1(_))), "it may try again");
    world.run_for(seconds(2));
    assert_eq!(world.trouble(Side::B), None, "nobody tries any more");
}

#[test]
fn what_this_host_refuses_comes_before_silence_and_goes_when_something_leaves() {
    let mut world = world(|_, options| options.watch = true);
    world[Side::A].refuses = Some(Box::new(|_| true));
    world.resolve(Side::A);
    world.run_for(seconds(100));
    assert!(matches!(world.trouble(Side::A), Some(Trouble::Refused(_))));
    assert_eq!(
        world.changed(Side::A, |one| *one == Change::GaveUp),
        [],
        "the peer is not to blame"
    );
    assert!(!world[Side::A].notices.contains(&Notice::NoAnswer));
    world[Side::A].refuses = None;
    world.at(Side::A, |end, now| end.retry_refused(now));
    world.run_for(seconds(2));
    assert_eq!(world.trouble(Side::A), None);
    assert!(world[Side::A].notices.contains(&Notice::Leaves));
}

#[test]
fn a_second_machine_is_forgotten_minutes_after_its_last_sign() {
    let mut world = world(|_, _| ());
    world.copy_a(1);
    world.resolve(Side::A);
    world.offer_every(Side::A, millis(200));
    world.run_until(seconds(1));
    world.resolve(Side::C);
    world.offer_every(Side::C, millis(200));
    world.run_until(seconds(120));
    let both = Some(Trouble::DuplicateKey([Side::A.home(), Side::C.home()]));
    assert_eq!(world.trouble(Side::B), both);
    world.suspend(Side::C);
    world.run_for(seconds(200));
    assert_eq!(world.trouble(Side::B), both, "it may only be silent");
    world.run_for(seconds(400));
    assert_eq!(world.trouble(Side::B), None);
}
