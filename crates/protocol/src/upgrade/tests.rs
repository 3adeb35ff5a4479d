//! The key schedule against the reference, and in use.

use std::collections::HashSet;

use rand::SeedableRng;
use rand::rngs::StdRng;
use vpnd_crypto::aead::Algorithm;
use vpnd_crypto::kem::{DecapsulationKey, EncapsulationKey};
use vpnd_crypto::key::SecretKey;

use super::*;
use crate::handshake::{Agreed, Identity, Initiator, read_initiation};
use crate::profile::{Kem, Mode};
use crate::timestamp::Timestamp;
use crate::vectors::{Vector, vectors};

const PROFILE: Profile =
    Profile { mode: Mode::Tun, cipher: Algorithm::ChaCha20Poly1305, kem: Kem::MlKem768 };

#[test]
fn the_keys_are_the_reference_s() {
    let vectors = vectors("upgrades");
    assert_eq!(vectors.len(), 2);
    for vector in &vectors {
        let given = Given::of(vector);
        assert_eq!(given.profile.codes(), vector.array("codes"));
        let (ours, confirmation) = given.derive().answer();
        assert_eq!(*ours.opening, vector.array("k_ir"));
        assert_eq!(*ours.sealing, vector.array("k_ri"));
        assert_eq!(ours.handshake_hash, vector.array("transcript"));
        assert_eq!(confirmation, vector.array("confirmation"));
    }
}

#[test]
fn each_input_matters_to_each_output() {
    let changes: [fn(&mut Given); 17] = [
        |_unchanged| (),
        |given| given.exporter[0] ^= 1,
        |given| given.exporter[31] ^= 0x80,
        |given| given.secret[0] ^= 1,
        |given| given.secret[31] ^= 0x80,
        |given| given.handshake_hash[0] ^= 1,
        |given| given.handshake_hash[31] ^= 0x80,
        |given| given.encapsulation_key[0] ^= 1,
        |given| given.encapsulation_key[1183] ^= 0x80,
        |given| given.ciphertext[0] ^= 1,
        |given| given.ciphertext[1087] ^= 0x80,
        |given| given.indices[0] ^= 1,
        |given| given.indices[1] ^= 0x8000_0000,
        |given| given.indices.reverse(),
        |given| given.profile.mode = Mode::Tap,
        |given| given.profile.cipher = Algorithm::Aes256Gcm,
        |given| given.profile.kem = Kem::None,
    ];
    let vector = vectors("upgrades").remove(0);
    let mut seen = HashSet::new();
    for (number, change) in changes.into_iter().enumerate() {
        let mut given = Given::of(&vector);
        change(&mut given);
        let (keys, confirmation) = given.derive().answer();
        for output in [&keys.sealing[..], &keys.opening[..], &confirmation] {
            assert!(seen.insert(output.to_vec()), "change {number} changed too little");
        }
    }
}

#[test]
fn only_the_responders_confirmation_gives_the_keys_out() {
    let given = Given::of(&vectors("upgrades").remove(0));
    let (theirs, confirmation) = given.derive().answer();
    for bit in 0..CONFIRMATION_LEN * 8 {
        let mut bent = confirmation;
        bent[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(given.derive().confirm(&bent).err(), Some(Unconfirmed));
    }
    let ours = given.derive().confirm(&confirmation).unwrap();
    assert_eq!((*ours.sealing, *ours.opening), (*theirs.opening, *theirs.sealing));
    assert_eq!(ours.handshake_hash, theirs.handshake_hash);
}

#[test]
fn both_ends_of_a_handshake_upgrade_to_the_same_keys() {
    let (theirs, ours) = exchange(|_ciphertext| (), PROFILE);
    let ours = ours.unwrap();
    assert_eq!((*ours.sealing, *ours.opening), (*theirs.opening, *theirs.sealing));
    assert_ne!(*ours.sealing, *ours.opening);
    assert_eq!(ours.handshake_hash, theirs.handshake_hash);
}

#[test]
fn what_the_ends_saw_or_set_differently_is_not_confirmed() {
    let (_, ours) = exchange(|ciphertext| ciphertext[500] ^= 1, PROFILE);
    assert_eq!(ours.err(), Some(Unconfirmed));
    let (_, ours) = exchange(|_ciphertext| (), Profile { mode: Mode::Tap, ..PROFILE });
    assert_eq!(ours.err(), Some(Unconfirmed));
}

/// The responder's keys and the initiator's. The responder's answer to the initiator is modified by `bend`,
/// and the initiator's profile is `profile`.
fn exchange(
    bend: impl FnOnce(&mut [u8; CIPHERTEXT_LEN]),
    profile: Profile,
) -> (SessionKeys, Result<SessionKeys, Unconfirmed>) {
    let mut rng = StdRng::seed_from_u64(1);
    let [initiator, responder] = handshake(&mut rng);
    let secret_half = DecapsulationKey::generate(&mut rng);
    let key = secret_half.encapsulation_key();

    let (mut ciphertext, secret) = EncapsulationKey::parse(&key).unwrap().encapsulate(&mut rng);
    let (theirs, confirmation) = upgrade(responder, &key, &ciphertext, secret, PROFILE).answer();

    bend(&mut ciphertext);
    let secret = secret_half.decapsulate(&ciphertext);
    let ours = upgrade(initiator, &key, &ciphertext, secret, profile).confirm(&confirmation);
    (theirs, ours)
}

fn upgrade(
    agreed: Agreed,
    encapsulation_key: &[u8; ENCAPSULATION_KEY_LEN],
    ciphertext: &[u8; CIPHERTEXT_LEN],
    secret: SharedSecret,
    profile: Profile,
) -> UpgradedKeys {
    let (bootstrap, exporter) = agreed.keys_and_exporter();
    let transcript = Transcript {
        handshake_hash: &bootstrap.handshake_hash,
        encapsulation_key,
        ciphertext,
        initiator: Index::new(3),
        responder: Index::new(4),
        profile,
    };
    transcript.upgrade(exporter, secret)
}

/// The results of one handshake at its initiator and its responder.
fn handshake(rng: &mut StdRng) -> [Agreed; 2] {
    let [a, b] = [(), ()].map(|()| Identity::new(SecretKey::generate(rng)));
    let (stamp, index) = (Timestamp::from_bytes([0; 12]), Index::new(1));
    let (waiting, initiation) = Initiator::initiate(&a, b.public(), index, stamp, rng).unwrap();
    let claim = read_initiation(&b, &initiation).unwrap().prove(&b).unwrap();
    let psk = PROFILE.bind(None);
    let (response, responder) = claim.respond(Index::new(2), &psk, rng).unwrap();
    [waiting.open_response(&a, &[psk], &response).unwrap().agreed, responder]
}

/// The inputs of the keys.
struct Given {
    exporter: [u8; 32],
    secret: [u8; 32],
    handshake_hash: Digest,
    encapsulation_key: [u8; ENCAPSULATION_KEY_LEN],
    ciphertext: [u8; CIPHERTEXT_LEN],
    indices: [u32; 2],
    profile: Profile,
}

impl Given {
    fn of(vector: &Vector) -> Self {
        let [mode, cipher, _kem] = vector.array("codes");
        Self {
            exporter: vector.array("t3"),
            secret: vector.array("ss"),
            handshake_hash: vector.array("h"),
            encapsulation_key: vector.array("ek"),
            ciphertext: vector.array("ct"),
            indices: ["index_i", "index_r"].map(|field| vector.number(field)),
            profile: Profile {
                mode: [Mode::Tun, Mode::Tap][usize::from(mode)],
                cipher: [Algorithm::ChaCha20Poly1305, Algorithm::Aes256Gcm][usize::from(cipher)],
                kem: Kem::MlKem768,
            },
        }
    }

    fn derive(&self) -> UpgradedKeys {
        let [initiator, responder] = self.indices.map(Index::new);
        let Self { handshake_hash, encapsulation_key, ciphertext, profile, .. } = self;
        let transcript = Transcript {
            handshake_hash,
            encapsulation_key,
            ciphertext,
            initiator,
            responder,
            profile: *profile,
        };
        transcript.derive(&self.exporter, &self.secret)
    }
}
