//! Preshared keys: the right one among several, and the wrong one.

use vpnd_protocol::drop_reason::DropReason;
use vpnd_protocol::peer::{Change, Diagnosis};

use crate::end::Side;
use crate::network::Kind;
use crate::world::{World, millis, seconds};

fn world(ours: &[[u8; 32]], theirs: [u8; 32]) -> World {
    World::with(1, |side, options| {
        options.preshared = if side == Side::A { ours.to_vec() } else { vec![theirs] };
        options.endpoint = options.endpoint.filter(|_| side == Side::A);
    })
}

#[test]
fn an_answer_under_any_of_the_candidates_opens() {
    let mut world = world(&[[1; 32], [2; 32], [3; 32]], [3; 32]);
    world.resolve(Side::A);
    world.offer(Side::A);
    world.run_for(seconds(4));
    assert_eq!(world.diagnosed(Side::A, |e| *e == Diagnosis::AnswerDoesNotOpen), []);
    assert_eq!(world.lost(Side::A), 0);
    assert_eq!(world.sent(Side::A, Kind::Initiation).len(), 1);
}

#[test]
fn a_wrong_one_is_told_by_both_ends_and_no_session_comes_of_it() {
    let mut world = world(&[[1; 32]], [2; 32]);
    world.resolve(Side::A);
    world.offer(Side::A);
    world.run_for(seconds(14));
    let tries = world.sent(Side::A, Kind::Initiation);
    assert_eq!(tries.len(), 3);
    let answered = tries.iter().map(|&at| at + millis(20)).collect::<Vec<_>>();
    assert_eq!(world.diagnosed(Side::A, |e| *e == Diagnosis::AnswerDoesNotOpen), answered);
    assert_eq!(world[Side::A].drops(DropReason::ResponseDoesNotOpen), 3);
    let third = tries[2] + millis(10);
    assert_eq!(world.diagnosed(Side::B, |e| *e == Diagnosis::NeverConfirms(3)), [third]);
    for side in Side::BOTH {
        assert_eq!(world.changed(side, |e| matches!(e, Change::Established(_))), []);
        assert_eq!(world.sent(side, Kind::Data), []);
    }
}
