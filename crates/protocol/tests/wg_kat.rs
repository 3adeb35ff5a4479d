//! Two whole handshakes, their MACs, a cookie and transport data, byte for byte, as an
//! implementation in another language computed them.

#![expect(clippy::unwrap_used, reason = "a vector that does not read fails its test")]

use std::convert::Infallible;

use rand_core::{TryCryptoRng, TryRng};
use serde_json::Value;
use vpnd_crypto::{AeadKey, Algorithm, PresharedKey, SecretKey, TAG_LEN};
use vpnd_protocol::cookie::{Jar, Mac1Key};
use vpnd_protocol::handshake::{Identity, Initiator, SessionKeys, read_initiation};
use vpnd_protocol::message::{DataHeader, Index, Initiation, Message, Response, parse};
use vpnd_protocol::time::BootTime;
use vpnd_protocol::timestamp::Timestamp;
use zerocopy::IntoBytes;

const NOW: BootTime = BootTime::from_nanos(0);

#[test]
fn handshakes_are_byte_for_byte() {
    for_each_case(|case| {
        let (initiator, responder) = (case.identity("s_i"), case.identity("s_r"));
        assert_eq!(initiator.public().as_bytes().as_slice(), case.bytes("S_i"));
        assert_eq!(responder.public().as_bytes().as_slice(), case.bytes("S_r"));

        let (waiting, mut initiation) = case.initiate();
        Jar::new(responder.public()).seal_macs(NOW, initiation.as_mut_bytes());
        assert_eq!(initiation.as_bytes(), case.bytes("initiation"));

        let claim = read_initiation(&responder, &initiation).unwrap();
        assert_eq!(claim.remote(), initiator.public());
        let claim = claim.prove(&responder).unwrap();
        assert_eq!(claim.timestamp().as_bytes().as_slice(), case.bytes("timestamp"));
        let (mut response, agreed) =
            claim.respond(case.index("sender_r"), &case.psk(), &mut case.rng("e_r")).unwrap();
        Jar::new(initiator.public()).seal_macs(NOW, response.as_mut_bytes());
        assert_eq!(response.as_bytes(), case.bytes("response"));
        case.check_keys(&agreed.keys(), ["key_r_to_i", "key_i_to_r"]);

        let answer = waiting.open_response(&initiator, &[case.psk()], &response).unwrap();
        assert_eq!(answer.remote_index, case.index("sender_r"));
        case.check_keys(&answer.agreed.keys(), ["key_i_to_r", "key_r_to_i"]);
    });
}

#[test]
fn who_asks_gets_an_exporter_beside_the_same_keys() {
    for_each_case(|case| {
        let (initiator, responder) = (case.identity("s_i"), case.identity("s_r"));
        let (waiting, initiation) = case.initiate();
        let claim = read_initiation(&responder, &initiation).unwrap().prove(&responder).unwrap();
        let (response, responders) =
            claim.respond(case.index("sender_r"), &case.psk(), &mut case.rng("e_r")).unwrap();
        let answer = waiting.open_response(&initiator, &[case.psk()], &response).unwrap();
        for (agreed, directions) in [
            (answer.agreed, ["key_i_to_r", "key_r_to_i"]),
            (responders, ["key_r_to_i", "key_i_to_r"]),
        ] {
            let (keys, exporter) = agreed.keys_and_exporter();
            case.check_keys(&keys, directions);
            assert_eq!(exporter.as_bytes(), &case.key("exporter_t3"));
        }
    });
}

#[test]
fn the_vectors_parse_and_their_mac1_holds() {
    for_each_case(|case| {
        let (initiation, response) = (case.bytes("initiation"), case.bytes("response"));
        assert!(Mac1Key::new(case.identity("s_r").public()).verify(&initiation));
        assert!(Mac1Key::new(case.identity("s_i").public()).verify(&response));
        assert!(!Mac1Key::new(case.identity("s_i").public()).verify(&initiation));
        let Ok(Message::Initiation(Initiation { sender, .. })) = parse(&initiation) else {
            panic!("not an initiation")
        };
        assert_eq!(*sender, case.index("sender_i"));
        let Ok(Message::Response(Response { receiver, .. })) = parse(&response) else {
            panic!("not a response")
        };
        assert_eq!(*receiver, case.index("sender_i"));
    });
}

#[test]
fn the_cookie_opens_and_signs_the_next_message() {
    for_each_case(|case| {
        let (_, mut initiation) = case.initiate();
        let mut jar = Jar::new(case.identity("s_r").public());
        jar.seal_macs(NOW, initiation.as_mut_bytes());
        let reply = case.bytes("cookie_reply_to_initiation");
        let Ok(Message::CookieReply(reply)) = parse(&reply) else { panic!("not a cookie reply") };
        assert_eq!(reply.receiver, case.index("sender_i"));
        jar.receive(NOW, reply).unwrap();
        jar.seal_macs(NOW, initiation.as_mut_bytes());
        assert_eq!(initiation.as_bytes(), case.bytes("initiation_with_mac2"));
    });
}

#[test]
fn transport_is_byte_for_byte() {
    for_each_case(|case| {
        for packet in case.0["transport"].as_array().unwrap() {
            let packet = Case(packet.clone());
            for (key, receiver, field) in [
                ("key_i_to_r", "sender_r", "packet_i_to_r"),
                ("key_r_to_i", "sender_i", "packet_r_to_i"),
            ] {
                let key = AeadKey::new(Algorithm::ChaCha20Poly1305, &case.key(key));
                check_transport(&packet, &key, case.index(receiver), &packet.bytes(field));
            }
        }
    });
}

fn check_transport(packet: &Case, key: &AeadKey, receiver: Index, expected: &[u8]) {
    let counter = packet.0["counter"].as_str().unwrap().parse().unwrap();
    let mut padded = packet.bytes("plaintext");
    padded.resize(padded.len().next_multiple_of(16), 0);

    let mut ciphertext = padded.clone();
    let tag: [u8; TAG_LEN] = key.seal(counter, &[], &mut ciphertext);
    let header = DataHeader::new(receiver, counter);
    assert_eq!([header.as_bytes(), &ciphertext, &tag].concat(), expected);

    let Ok(Message::Data { receiver: to, counter: number }) = parse(expected) else {
        panic!("not data")
    };
    assert_eq!((to, number), (receiver, counter));
    let mut opened = expected[size_of::<DataHeader>()..].to_vec();
    assert_eq!(key.open(counter, &[], &mut opened).unwrap(), padded);
}

fn for_each_case(check: impl Fn(&Case)) {
    let file: Value = serde_json::from_str(include_str!("data/wg_kat.json")).unwrap();
    let cases = file["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 2);
    cases.iter().for_each(|case| check(&Case(case.clone())));
}

/// One case of the file, or one packet of a case; bytes are hexadecimal.
struct Case(Value);

impl Case {
    fn bytes(&self, field: &str) -> Vec<u8> {
        let text = self.0[field].as_str().unwrap();
        (0..text.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap())
            .collect()
    }

    fn key(&self, field: &str) -> [u8; 32] {
        self.bytes(field).try_into().unwrap()
    }

    fn identity(&self, field: &str) -> Identity {
        Identity::new(SecretKey::from_bytes(self.key(field)))
    }

    fn psk(&self) -> PresharedKey {
        PresharedKey::from_bytes(self.key("psk"))
    }

    fn index(&self, field: &str) -> Index {
        Index::new(self.0[field].as_u64().unwrap().try_into().unwrap())
    }

    fn rng(&self, field: &str) -> Once {
        Once(Some(self.key(field)))
    }

    fn initiate(&self) -> (Initiator, Initiation) {
        let stamp = Timestamp::from_bytes(self.bytes("timestamp").try_into().unwrap());
        let (local, remote) = (self.identity("s_i"), self.identity("s_r"));
        let (index, mut rng) = (self.index("sender_i"), self.rng("e_i"));
        Initiator::initiate(&local, remote.public(), index, stamp, &mut rng).unwrap()
    }

    fn check_keys(&self, keys: &SessionKeys, [sealing, opening]: [&str; 2]) {
        assert_eq!(*keys.sealing, self.key(sealing));
        assert_eq!(*keys.opening, self.key(opening));
        assert_eq!(keys.handshake_hash, self.key("handshake_hash"));
    }
}

/// The "randomness" of a vector: one ephemeral key.
struct Once(Option<[u8; 32]>);

impl TryRng for Once {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        unreachable!("keys are filled whole")
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        unreachable!("keys are filled whole")
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        bytes.copy_from_slice(&self.0.take().expect("one key a message"));
        Ok(())
    }
}

impl TryCryptoRng for Once {}
