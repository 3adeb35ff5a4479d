//! The pattern's published test vectors, run through the functions that make sessions.

use serde_json::Value;
use vpnd_crypto::{AeadKey, Algorithm, Digest, PresharedKey, SecretKey};
use zerocopy::{FromBytes, IntoBytes};

use super::noise::{self, Remote};
use super::symmetric::{ChaChaPoly, Cipher, Symmetric};
use super::{HandshakeError, Identity};
use crate::message::Sealed;

#[test]
fn chachapoly_vector() {
    check::<ChaChaPoly>();
}

#[test]
fn aesgcm_vector() {
    check::<AesGcm>();
}

fn check<C: Cipher>() {
    let vector = Vector::named(str::from_utf8(C::PROTOCOL).unwrap());
    let (by_initiator, by_responder, hash) = handshake::<C>(&vector);
    assert_eq!(hash.as_slice(), vector.bytes("handshake_hash"));
    let messages = vector.0["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 6);
    for number in 2..messages.len() {
        let key = if number % 2 == 0 { &by_initiator } else { &by_responder };
        let mut sealed = vector.payload(number);
        let tag = AeadKey::new(C::ALGORITHM, key).seal(number as u64 / 2 - 1, &[], &mut sealed);
        sealed.extend(tag);
        assert_eq!(sealed, vector.ciphertext(number), "message {number}");
    }
}

type Key = [u8; 32];

/// Both ends of the vector's handshake, checked to agree: the keys of each direction and the hash.
fn handshake<C: Cipher>(vector: &Vector) -> (Key, Key, Digest) {
    let (initiator, responder) = (vector.identity("init_static"), vector.identity("resp_static"));
    let [e_i, e_r] = ["init_ephemeral", "resp_ephemeral"].map(|name| vector.secret(name));
    let prologue = vector.bytes("init_prologue");
    let psk = PresharedKey::from_bytes(unhex(&vector.0["init_psks"][0]).try_into().unwrap());

    let payload: [u8; 16] = vector.payload(0).try_into().unwrap();
    let (waiting, fixed, sealed) =
        noise::write_first::<C, _>(&prologue, &initiator, responder.public(), &e_i, &payload)
            .unwrap();
    let first = [e_i.public().as_bytes(), fixed.as_bytes(), sealed.as_bytes()].concat();
    assert_eq!(first, vector.ciphertext(0));

    let (state, from) =
        noise::read_first_static::<C>(&prologue, &responder, &e_i.public(), &fixed).unwrap();
    assert_eq!(from, *initiator.public());
    let (state, read) = noise::read_first_payload(state, &responder, &from, &sealed).unwrap();
    assert_eq!(read, payload);

    let payload: [u8; 15] = vector.payload(1).try_into().unwrap();
    let remote = Remote { ephemeral: e_i.public(), fixed: from };
    let (accepted, sealed) = noise::write_second(state, &e_r, &remote, &psk, &payload).unwrap();
    let second = [e_r.public().as_bytes(), sealed.as_bytes()].concat();
    assert_eq!(second, vector.ciphertext(1));

    let state = noise::read_second_keys(waiting, &initiator, &e_i, &e_r.public()).unwrap();
    let (answered, read) = noise::read_second_payload(state, &psk, &sealed).unwrap();
    assert_eq!(read, payload);
    agreed(accepted, answered)
}

fn agreed<C: Cipher>(responder: Symmetric<C>, initiator: Symmetric<C>) -> (Key, Key, Digest) {
    let [ours, theirs] = [initiator, responder].map(|end| {
        let ([by_initiator, by_responder], hash) = end.split();
        (*by_initiator, *by_responder, hash)
    });
    assert_eq!(ours, theirs);
    ours
}

#[test]
fn ciphers_do_not_mix() {
    let vector = Vector::named("Noise_IKpsk2_25519_AESGCM_BLAKE2s");
    let fixed = Sealed::read_from_bytes(&vector.ciphertext(0)[32..80]).unwrap();
    let (responder, e_i) = (vector.identity("resp_static"), vector.secret("init_ephemeral"));
    let prologue = vector.bytes("init_prologue");
    let read = noise::read_first_static::<ChaChaPoly>(&prologue, &responder, &e_i.public(), &fixed);
    assert_eq!(read.err(), Some(HandshakeError::NotForUs));
}

/// One of the vectors; its fields are hexadecimal.
struct Vector(Value);

impl Vector {
    fn named(protocol: &str) -> Self {
        let file: Value =
            serde_json::from_str(include_str!("../../tests/data/cacophony.json")).unwrap();
        let vectors = file["vectors"].as_array().unwrap();
        Self(vectors.iter().find(|v| v["protocol_name"] == protocol).unwrap().clone())
    }

    fn bytes(&self, field: &str) -> Vec<u8> {
        unhex(&self.0[field])
    }

    fn secret(&self, field: &str) -> SecretKey {
        SecretKey::from_bytes(self.bytes(field).try_into().unwrap())
    }

    fn identity(&self, field: &str) -> Identity {
        Identity::new(self.secret(field))
    }

    fn payload(&self, message: usize) -> Vec<u8> {
        unhex(&self.0["messages"][message]["payload"])
    }

    fn ciphertext(&self, message: usize) -> Vec<u8> {
        unhex(&self.0["messages"][message]["ciphertext"])
    }
}

fn unhex(text: &Value) -> Vec<u8> {
    let text = text.as_str().unwrap();
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

/// The other cipher of the vectors.
struct AesGcm;

impl Cipher for AesGcm {
    const PROTOCOL: &'static [u8] = b"Noise_IKpsk2_25519_AESGCM_BLAKE2s";
    const ALGORITHM: Algorithm = Algorithm::Aes256Gcm;
}
