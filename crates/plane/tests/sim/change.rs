//! Settings that change at one end and then at the other, while packets flow: nothing is lost.

use std::time::Duration;

use vpnd_crypto::aead::Algorithm;
use vpnd_protocol::peer::{Change, Diagnosis};
use vpnd_protocol::profile::{Kem, Mode, Profile};
use vpnd_protocol::terms::Protocol;

use crate::end::{End, Side};
use crate::network::Kind;
use crate::world::{World, millis, seconds};

const fn vpnd(cipher: Algorithm, kem: Kem) -> Protocol {
    Protocol::Vpnd(Profile { mode: Mode::Tun, cipher, kem })
}

const PLAIN: Protocol = vpnd(Algorithm::ChaCha20Poly1305, Kem::None);
const GCM: Protocol = vpnd(Algorithm::Aes256Gcm, Kem::None);
const POST_QUANTUM: Protocol = vpnd(Algorithm::ChaCha20Poly1305, Kem::MlKem768);

/// Both ends send 50 packets a second.
fn flowing(change: impl FnMut(Side, &mut crate::end::Options)) -> World {
    let mut world = World::with(7, change);
    for side in Side::BOTH {
        world.resolve(side);
        world.offer_every(side, millis(20));
    }
    world.run_for(seconds(5));
    world
}

fn ensure_nothing_lost(world: &World) {
    let until = world.now.saturating_sub(seconds(1));
    for side in Side::BOTH {
        let (offered, arrived) = world.oracle.tally(side, Duration::ZERO, until);
        assert_eq!(offered, arrived, "{side:?}");
        assert!(offered > 1000);
    }
}

fn sessions(world: &World, side: Side) -> usize {
    world.changed(side, |one| matches!(one, Change::Established(_))).len()
}

#[test]
fn a_preshared_key_rolls_over_whichever_end_goes_first() {
    for first in Side::BOTH {
        let (old, new) = ([1; 32], [2; 32]);
        let mut world = flowing(|_, options| {
            options.protocol = POST_QUANTUM;
            options.preshared = vec![old, new];
        });
        for side in [first, first.other()] {
            world[side].options.preshared = vec![new, old];
            world.at(side, End::adopt);
            world.run_for(seconds(125));
        }
        for side in Side::BOTH {
            world[side].options.preshared = vec![new];
            world.at(side, End::adopt);
            world.run_for(seconds(20));
        }
        ensure_nothing_lost(&world);
        assert!(Side::BOTH.iter().all(|&side| sessions(&world, side) >= 3));
    }
}

#[test]
fn a_profile_changes_at_one_end_and_back_while_the_other_accepts_both() {
    for other in [GCM, POST_QUANTUM, Protocol::WireGuard] {
        for changes in Side::BOTH {
            let mut world = flowing(|side, options| {
                options.protocol = PLAIN;
                if side != changes {
                    options.also = vec![other];
                }
            });
            for protocol in [other, PLAIN] {
                world[changes].options.protocol = protocol;
                world.at(changes, End::adopt);
                world.run_for(seconds(140));
            }
            ensure_nothing_lost(&world);
            for side in Side::BOTH {
                assert!(sessions(&world, side) >= 3, "{other:?} {changes:?}");
            }
        }
    }
}

#[test]
fn the_peer_is_told_of_another_mtu_at_once_and_on_every_session() {
    let mut world = flowing(|_, options| options.protocol = PLAIN);
    for (mtu, then) in [(1300, seconds(1)), (9000, seconds(1)), (9000, seconds(300))] {
        let now = world.now;
        if world[Side::B].peer_mtu(now) != Some(mtu) {
            world.at(Side::A, |end, now| end.set_mtu(now, mtu));
        }
        world.run_for(then);
        let now = world.now;
        let mtus = Side::BOTH.map(|side| world[side].peer_mtu(now));
        assert_eq!(mtus, [Some(1420), Some(mtu)]);
    }
    assert!(sessions(&world, Side::B) >= 3);
    ensure_nothing_lost(&world);
    let mut reference = flowing(|_, options| options.protocol = Protocol::WireGuard);
    let before = reference.told(Side::B, |_| true).len();
    reference.at(Side::A, |end, now| end.set_mtu(now, 1300));
    reference.run_for(seconds(20));
    assert_eq!(reference.told(Side::B, |_| true).len(), before, "WireGuard has no word for it");
    ensure_nothing_lost(&reference);
}

#[test]
fn an_end_that_is_not_to_accept_it_never_does() {
    let mut world = flowing(|_, options| options.protocol = POST_QUANTUM);
    world[Side::A].options.protocol = PLAIN;
    world.at(Side::A, End::adopt);
    let before = Side::BOTH.map(|side| sessions(&world, side));
    world.run_for(seconds(60));
    assert_eq!(Side::BOTH.map(|side| sessions(&world, side)), before);
    assert!(!world.diagnosed(Side::A, |one| *one == Diagnosis::AnswerDoesNotOpen).is_empty());
}

#[test]
fn both_identities_roll_over() {
    let next = |side: Side| [side as u8 + 11; 32];
    let mut world = flowing(|side, options| {
        options.protocol = POST_QUANTUM;
        options.next = [Some(next(side)), Some(next(side.other()))];
    });
    for side in Side::BOTH {
        let before = sessions(&world, side);
        world.at(side, End::rotate);
        world.run_for(seconds(10));
        assert!(sessions(&world, side) > before, "{side:?} has no session under its next key");
        // The next handshake is under the new key too, whoever begins it.
        world.run_for(seconds(140));
    }
    for side in Side::BOTH {
        world.at(side, End::finish_rotation);
        world.run_for(seconds(150));
    }
    ensure_nothing_lost(&world);
    assert_eq!(world.diagnosed(Side::B, |one| matches!(one, Diagnosis::UnknownPeer { .. })), []);
}

#[test]
fn both_identities_roll_over_at_the_same_moment() {
    let next = |side: Side| [side as u8 + 11; 32];
    for apart in [0, 5, 15, 40].map(millis) {
        let mut world = flowing(|side, options| {
            options.protocol = POST_QUANTUM;
            options.next = [Some(next(side)), Some(next(side.other()))];
        });
        world.at(Side::A, End::rotate);
        world.run_for(apart);
        world.at(Side::B, End::rotate);
        world.run_for(seconds(20));
        for side in Side::BOTH {
            world.at(side, End::finish_rotation);
        }
        world.run_for(seconds(300));
        ensure_nothing_lost(&world);
        let last = |side| world.changed(side, |one| matches!(one, Change::Established(_))).pop();
        assert!(Side::BOTH.map(last).iter().all(|at| *at > Some(seconds(200))), "{apart:?}");
    }
}

#[test]
fn a_next_key_that_the_peer_does_not_know_costs_nothing() {
    let mut world = flowing(|side, options| {
        options.protocol = PLAIN;
        options.next = if side == Side::A { [Some([11; 32]), None] } else { [None, None] };
    });
    world.run_for(seconds(100));
    world.at(Side::A, End::rotate);
    world.run_for(seconds(250));
    assert_eq!(world.diagnosed(Side::A, |one| *one == Diagnosis::RotationUnanswered).len(), 1);
    ensure_nothing_lost(&world);
}

/// B has just been answered under the old terms: that session is not what the reload wants.
#[test]
fn what_was_answered_before_a_reload_is_not_what_it_leads_to() {
    let mut world = flowing(|side, options| {
        options.protocol = POST_QUANTUM;
        options.endpoint = options.endpoint.filter(|_| side == Side::B);
        options.also = if side == Side::B { vec![PLAIN] } else { vec![] };
    });
    // Until A has answered B's rekey, and not a moment longer.
    let answers = |world: &World| world.sent(Side::A, Kind::Response).len();
    let before = answers(&world);
    while answers(&world) == before {
        world.run_for(millis(1));
    }
    world[Side::A].options.protocol = PLAIN;
    world.at(Side::A, End::adopt);
    let reloaded = world.now;
    world.run_for(seconds(20));
    let new = world.changed(Side::A, |one| matches!(one, Change::Established(_)));
    assert!(new.iter().any(|at| *at > reloaded + millis(50)), "{new:?} after {reloaded:?}");
    world.run_for(seconds(20));
    ensure_nothing_lost(&world);
}

#[test]
fn after_a_crossing_either_end_is_heard_to_stop() {
    for stops in Side::BOTH {
        let mut world = World::with(3, |_, options| options.protocol = POST_QUANTUM);
        for side in Side::BOTH {
            world.resolve(side);
            world.offer_every(side, millis(20));
        }
        world.run_for(seconds(3));
        world.at(stops, End::close);
        world.run_for(millis(15));
        let told = world.changed(stops.other(), |one| *one == Change::Closed);
        assert_eq!(told.len(), 1, "{stops:?} stops");
    }
}

#[test]
fn an_end_that_stops_says_so_and_comes_back() {
    let mut world = flowing(|side, options| {
        options.protocol = POST_QUANTUM;
        options.endpoint = options.endpoint.filter(|_| side == Side::A);
    });
    let now = world.now;
    world.at(Side::B, End::close);
    world.run_for(millis(15));
    assert_eq!(world.changed(Side::A, |one| *one == Change::Closed).len(), 1);
    world.restart(Side::B, crate::end::Floor::Kept);
    world.run_for(seconds(20));
    let heard = |side| world.oracle.first_delivery(side, now + millis(20));
    assert!(Side::BOTH.map(heard).iter().all(Option::is_some));
}
