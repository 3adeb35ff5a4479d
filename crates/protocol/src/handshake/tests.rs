//! Rejected handshake messages, and that they change nothing.

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::time::WallTime;

struct Site {
    identity: Identity,
    rng: StdRng,
}

fn site(seed: u64) -> Site {
    let mut rng = StdRng::seed_from_u64(seed);
    Site { identity: Identity::new(SecretKey::generate(&mut rng)), rng }
}

impl Site {
    fn initiate(&mut self, remote: &Self) -> (Initiator, Initiation) {
        let stamp = Timestamp::from_wall(WallTime::default());
        let remote = remote.identity.public();
        Initiator::initiate(&self.identity, remote, Index::new(7), stamp, &mut self.rng).unwrap()
    }

    fn accept(&mut self, initiation: &Initiation) -> Result<Claim, HandshakeError> {
        read_initiation(&self.identity, initiation)?.prove(&self.identity)
    }

    fn answer(&mut self, initiation: &Initiation, psk: u8) -> (Response, SessionKeys) {
        let claim = self.accept(initiation).unwrap();
        let (response, agreed) = claim.respond(Index::new(9), &key(psk), &mut self.rng).unwrap();
        (response, agreed.keys())
    }
}

fn key(byte: u8) -> PresharedKey {
    PresharedKey::from_bytes([byte; 32])
}

#[test]
fn both_ends_agree() {
    let (mut a, mut b) = (site(1), site(2));
    let (waiting, initiation) = a.initiate(&b);
    let unproven = read_initiation(&b.identity, &initiation).unwrap();
    assert_eq!(unproven.remote(), a.identity.public());
    let claim = unproven.prove(&b.identity).unwrap();
    assert_eq!(claim.timestamp(), Timestamp::from_wall(WallTime::default()));
    assert_eq!(claim.remote_index(), waiting.index());

    let (response, theirs) = claim.respond(Index::new(9), &key(1), &mut b.rng).unwrap();
    let answer = waiting.open_response(&a.identity, &[key(1)], &response).unwrap();
    assert_eq!(answer.remote_index, Index::new(9));
    let (ours, theirs) = (answer.agreed.keys(), theirs.keys());
    assert_eq!(*ours.sealing, *theirs.opening);
    assert_eq!(*ours.opening, *theirs.sealing);
    assert_ne!(*ours.opening, *ours.sealing);
    assert_eq!(ours.handshake_hash, theirs.handshake_hash);
}

#[test]
fn the_candidate_that_opens_is_named() {
    let (mut a, mut b) = (site(1), site(2));
    let (waiting, initiation) = a.initiate(&b);
    let candidates = [key(0), key(1), key(2)];
    for psk in 0..3 {
        let (response, theirs) = b.answer(&initiation, psk);
        let answer = waiting.open_response(&a.identity, &candidates, &response).unwrap();
        assert_eq!(answer.candidate, usize::from(psk));
        assert_eq!(*answer.agreed.keys().sealing, *theirs.opening);
    }
}

#[test]
fn another_psk_does_not_open_and_the_right_answer_still_does() {
    let (mut a, mut b) = (site(1), site(2));
    let (waiting, initiation) = a.initiate(&b);
    let mut open = |psk, candidates: &[PresharedKey]| {
        let (response, _) = b.answer(&initiation, psk);
        waiting.open_response(&a.identity, candidates, &response).err()
    };
    let closed = Some(HandshakeError::AnswerDoesNotOpen);
    assert_eq!(open(3, &[key(1), key(2)]), closed);
    assert_eq!(open(3, &[]), closed);
    assert_eq!(open(3, &[key(3)]), None);
}

#[test]
fn an_answer_to_another_initiation_is_refused() {
    let (mut a, mut b) = (site(1), site(2));
    let (waiting, initiation) = a.initiate(&b);
    let (mut response, _) = b.answer(&initiation, 0);
    response.receiver = Index::new(8);
    let opened = waiting.open_response(&a.identity, &[key(0)], &response);
    assert_eq!(opened.err(), Some(HandshakeError::OtherReceiver));

    let (_, second) = a.initiate(&b);
    let (response, _) = b.answer(&second, 0);
    let opened = waiting.open_response(&a.identity, &[key(0)], &response);
    assert_eq!(opened.err(), Some(HandshakeError::AnswerDoesNotOpen));
}

#[test]
fn an_initiation_for_someone_else_names_nobody() {
    let (mut a, b, mut c) = (site(1), site(2), site(3));
    let (_, initiation) = a.initiate(&b);
    assert_eq!(c.accept(&initiation).err(), Some(HandshakeError::NotForUs));
}

#[test]
fn a_borrowed_public_key_proves_nothing() {
    let (victim, mut b, mut attacker) = (site(1), site(2), site(3));
    attacker.identity.public = *victim.identity.public();
    let (_, initiation) = attacker.initiate(&b);
    let unproven = read_initiation(&b.identity, &initiation).unwrap();
    assert_eq!(unproven.remote(), victim.identity.public());
    assert_eq!(b.accept(&initiation).err(), Some(HandshakeError::Impostor));
}

/// The points whose multiples reveal nothing of the scalar: <https://cr.yp.to/ecdh.html#validate>.
fn low_order() -> Vec<[u8; 32]> {
    let mut one = [0; 32];
    one[0] = 1;
    let mut minus_one = [0xff; 32];
    (minus_one[0], minus_one[31]) = (0xec, 0x7f);
    vec![[0; 32], one, minus_one]
}

#[test]
fn low_order_points_are_refused_everywhere() {
    let (mut a, mut b) = (site(1), site(2));
    let (waiting, mut initiation) = a.initiate(&b);
    let (mut response, _) = b.answer(&initiation, 0);
    for point in low_order() {
        initiation.ephemeral = point;
        assert_eq!(b.accept(&initiation).err(), Some(HandshakeError::NonContributory));

        response.ephemeral = point;
        let opened = waiting.open_response(&a.identity, &[key(0)], &response);
        assert_eq!(opened.err(), Some(HandshakeError::NonContributory));

        let (remote, stamp) = (PublicKey::from_bytes(point), Timestamp::from_bytes([0; 12]));
        let index = Index::new(1);
        let begun = Initiator::initiate(&a.identity, &remote, index, stamp, &mut a.rng);
        assert_eq!(begun.err(), Some(NonContributory));
    }
}

#[test]
fn a_low_order_static_key_is_refused() {
    let (mut a, mut b) = (site(1), site(2));
    for point in low_order() {
        a.identity.public = PublicKey::from_bytes(point);
        let (_, initiation) = a.initiate(&b);
        assert_eq!(b.accept(&initiation).err(), Some(HandshakeError::NonContributory));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_flipped_bit_of_an_initiation_is_noticed(bit in 8 * 8usize..116 * 8) {
        let (mut a, mut b) = (site(1), site(2));
        let (_, mut initiation) = a.initiate(&b);
        initiation.as_mut_bytes()[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(b.accept(&initiation).is_err());
    }

    #[test]
    fn any_flipped_bit_of_a_response_is_noticed(bit in 8 * 8usize..60 * 8) {
        let (mut a, mut b) = (site(1), site(2));
        let (waiting, initiation) = a.initiate(&b);
        let (mut response, _) = b.answer(&initiation, 0);
        response.as_mut_bytes()[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(waiting.open_response(&a.identity, &[key(0)], &response).is_err());
        response.as_mut_bytes()[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(waiting.open_response(&a.identity, &[key(0)], &response).is_ok());
    }

    #[test]
    fn random_messages_open_nothing(
        first in proptest::collection::vec(any::<u8>(), 148),
        second in proptest::collection::vec(any::<u8>(), 92),
    ) {
        let (mut a, mut b) = (site(1), site(2));
        let (waiting, _) = a.initiate(&b);
        prop_assert!(b.accept(&Initiation::read_from_bytes(&first).unwrap()).is_err());
        let mut response = Response::read_from_bytes(&second).unwrap();
        response.receiver = waiting.index();
        prop_assert!(waiting.open_response(&a.identity, &[key(0)], &response).is_err());
    }
}
