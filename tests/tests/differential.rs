//! Random handshakes against two independent implementations: `snow`, which knows Noise but not the messages,
//! and `boringtun`, which knows the messages too.
//!
//! A failure names its seed; `VPND_SEED=n` runs that one alone.

#![expect(clippy::unwrap_used, reason = "whatever does not unwrap is a difference")]

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use vpnd_crypto::{AeadKey, Algorithm, PresharedKey, PublicKey, SecretKey};
use vpnd_protocol::cookie::{Checker, Jar, Mac1Key};
use vpnd_protocol::handshake::{
    Claim, HandshakeError, Identity, Initiator, SessionKeys, read_initiation,
};
use vpnd_protocol::message::{
    CookieReply, DATA_HEADER_LEN, DataHeader, Index, Initiation, Message, Response, parse,
};
use vpnd_protocol::time::{BootTime, WallTime};
use vpnd_protocol::timestamp::Timestamp;
use zerocopy::{FromBytes, IntoBytes};

const SNOW_SEEDS: u64 = 10_000;
const TAMPERED_SEEDS: u64 = 1_000;
const BORINGTUN_SEEDS: u64 = 2_000;

const NOW: BootTime = BootTime::from_nanos(0);
/// Where the Noise message lies in message 1, and in message 2.
const NOISE_FIRST: Range<usize> = 8..116;
const NOISE_SECOND: Range<usize> = 12..60;

#[test]
fn we_initiate_to_snow() {
    each_seed(SNOW_SEEDS, |pair| {
        let (waiting, initiation) = pair.initiate();
        let mut snow = pair.snow().build_responder().unwrap();
        let mut stamp = [0; 12];
        let read = snow.read_message(&initiation.as_bytes()[NOISE_FIRST], &mut stamp);
        assert_eq!((read, stamp), (Ok(12), *pair.stamp.as_bytes()));
        assert_eq!(snow.get_remote_static().unwrap(), pair.ours.public().as_bytes());

        let response = pair.snow_response(&mut snow, waiting.index());
        let keys = pair.open(&waiting, &response).unwrap();
        let (first, second) = snow.dangerously_get_raw_split();
        assert_eq!((*keys.sealing, *keys.opening), (first, second));
        pair.check_transport(snow, &keys);
    });
}

#[test]
fn snow_initiates_to_us() {
    each_seed(SNOW_SEEDS, |pair| {
        let mut snow = pair.snow().build_initiator().unwrap();
        let initiation = pair.snow_initiation(&mut snow);
        let claim = pair.accept(&initiation).unwrap();
        assert_eq!(claim.timestamp(), pair.stamp);

        let psk = PresharedKey::from_bytes(pair.psk);
        let (response, agreed) = claim.respond(pair.index, &psk, &mut pair.rng).unwrap();
        let keys = agreed.keys();
        let read = snow.read_message(&response.as_bytes()[NOISE_SECOND], &mut []);
        assert_eq!(read, Ok(0));
        let (first, second) = snow.dangerously_get_raw_split();
        assert_eq!((*keys.opening, *keys.sealing), (first, second));
        pair.check_transport(snow, &keys);
    });
}

#[test]
fn what_snow_refuses_we_refuse() {
    each_seed(TAMPERED_SEEDS, |pair| {
        let mut snow = pair.snow().build_initiator().unwrap();
        let mut initiation = pair.snow_initiation(&mut snow);
        pair.flip_a_bit(&mut initiation.as_mut_bytes()[NOISE_FIRST]);
        let mut responder = pair.mirror().build_responder().unwrap();
        let read = responder.read_message(&initiation.as_bytes()[NOISE_FIRST], &mut [0; 12]);
        assert!(read.is_err() && pair.accept(&initiation).is_err());

        let (waiting, initiation) = pair.initiate();
        let mut snow = pair.snow().build_responder().unwrap();
        snow.read_message(&initiation.as_bytes()[NOISE_FIRST], &mut [0; 12]).unwrap();
        let response = pair.snow_response(&mut snow, waiting.index());
        let mut tampered = response;
        pair.flip_a_bit(&mut tampered.as_mut_bytes()[NOISE_SECOND]);
        assert!(pair.open(&waiting, &tampered).is_err());
        pair.psk[0] ^= 1;
        assert_eq!(pair.open(&waiting, &response).err(), Some(HandshakeError::AnswerDoesNotOpen));
    });
}

#[test]
fn we_initiate_to_boringtun() {
    each_seed(BORINGTUN_SEEDS, |pair| {
        let (waiting, mut initiation) = pair.initiate();
        let mut jar = Jar::new(&pair.their_public());
        jar.seal_macs(NOW, initiation.as_mut_bytes());
        let mut tunn = pair.boringtun(None);
        let response = tunn.receive(initiation.as_bytes());
        assert!(Mac1Key::new(pair.ours.public()).verify(&response));
        let response = Response::read_from_bytes(&response).unwrap();
        let keys = pair.open(&waiting, &response).unwrap();

        for counter in 0..3 {
            pair.send_to_boringtun(&mut tunn, &keys, response.sender, counter);
            let packet = pair.packet();
            let datagram = tunn.send(&packet);
            check_data(&datagram, &keys, waiting.index(), counter, &packet);
        }
    });
}

#[test]
fn boringtun_initiates_to_us() {
    each_seed(BORINGTUN_SEEDS, |pair| {
        let mut tunn = pair.boringtun(None);
        let staged = pair.packet();
        let initiation = tunn.send(&staged);
        assert!(Mac1Key::new(pair.ours.public()).verify(&initiation));
        let claim = pair.accept(&Initiation::read_from_bytes(&initiation).unwrap()).unwrap();
        let (theirs, psk) = (claim.remote_index(), PresharedKey::from_bytes(pair.psk));
        let (mut response, agreed) = claim.respond(pair.index, &psk, &mut pair.rng).unwrap();
        let keys = agreed.keys();
        Jar::new(&pair.their_public()).seal_macs(NOW, response.as_mut_bytes());

        let keepalive = tunn.receive(response.as_bytes());
        check_data(&keepalive, &keys, pair.index, 0, &[]);
        check_data(&tunn.receive(&[]), &keys, pair.index, 1, &staged);
        for counter in 0..3 {
            pair.send_to_boringtun(&mut tunn, &keys, theirs, counter);
        }
    });
}

#[test]
fn we_keep_a_cookie_of_boringtun() {
    each_seed(BORINGTUN_SEEDS, |pair| {
        let (waiting, mut initiation) = pair.initiate();
        let mut jar = Jar::new(&pair.their_public());
        jar.seal_macs(NOW, initiation.as_mut_bytes());
        let mut tunn = pair.boringtun(Some(pair.always_loaded()));
        let reply = CookieReply::read_from_bytes(&tunn.receive(initiation.as_bytes())).unwrap();
        assert_eq!(reply.receiver, waiting.index());
        jar.receive(NOW, &reply).unwrap();
        jar.seal_macs(NOW, initiation.as_mut_bytes());
        let response = tunn.receive(initiation.as_bytes());
        assert!(matches!(parse(&response), Ok(Message::Response(_))));
    });
}

#[test]
fn boringtun_keeps_a_cookie_of_ours() {
    each_seed(BORINGTUN_SEEDS, |pair| {
        let from = "192.0.2.1:51820".parse().unwrap();
        let mut checker = Checker::new(pair.ours.public());
        let mut tunn = pair.boringtun(None);
        let initiation = tunn.initiate();
        assert!(!checker.verify_mac2(NOW, from, &initiation));
        let rejected = Initiation::read_from_bytes(&initiation).unwrap();
        let reply = checker.reply(NOW, from, rejected.sender, &rejected.macs, &mut pair.rng);
        assert_eq!(tunn.receive(reply.as_bytes()), []);
        assert!(checker.verify_mac2(NOW, from, &tunn.initiate()));
    });
}

fn each_seed(count: u64, check: impl Fn(&mut Pair)) {
    let only = std::env::var("VPND_SEED").ok().map(|seed| seed.parse().unwrap());
    for seed in only.map_or(0..count, |seed: u64| seed..seed + 1) {
        let _named = OnPanic(seed);
        check(&mut Pair::random(seed));
    }
}

/// Names the seed when the check it guards panics.
struct OnPanic(u64);

impl Drop for OnPanic {
    #[expect(clippy::print_stderr, reason = "this is the test's output")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the failing seed: VPND_SEED={}", self.0);
        }
    }
}

/// Two ends of a tunnel, ours and theirs, and all that is random between them.
struct Pair {
    rng: StdRng,
    our_secret: [u8; 32],
    ours: Identity,
    their_secret: [u8; 32],
    their_ephemeral: [u8; 32],
    psk: [u8; 32],
    stamp: Timestamp,
    index: Index,
}

impl Pair {
    fn random(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let wall = Duration::new(rng.random_range(1..1 << 33), rng.random_range(0..1_000_000_000));
        let our_secret = rng.random();
        Self {
            our_secret,
            ours: Identity::new(SecretKey::from_bytes(our_secret)),
            their_secret: rng.random(),
            their_ephemeral: rng.random(),
            psk: if seed.is_multiple_of(2) { [0; 32] } else { rng.random() },
            stamp: Timestamp::from_wall(WallTime::from_unix(wall)),
            index: Index::new(rng.random()),
            rng,
        }
    }

    fn their_public(&self) -> PublicKey {
        SecretKey::from_bytes(self.their_secret).public()
    }

    fn initiate(&mut self) -> (Initiator, Initiation) {
        let remote = self.their_public();
        Initiator::initiate(&self.ours, &remote, self.index, self.stamp, &mut self.rng).unwrap()
    }

    fn open(
        &self,
        waiting: &Initiator,
        response: &Response,
    ) -> Result<SessionKeys, HandshakeError> {
        let psk = PresharedKey::from_bytes(self.psk);
        let answer = waiting.open_response(&self.ours, &[psk], response)?;
        assert_eq!(answer.remote_index, response.sender);
        Ok(answer.agreed.keys())
    }

    fn accept(&self, initiation: &Initiation) -> Result<Claim, HandshakeError> {
        let unproven = read_initiation(&self.ours, initiation)?;
        assert_eq!(*unproven.remote(), self.their_public());
        unproven.prove(&self.ours)
    }

    fn flip_a_bit(&mut self, bytes: &mut [u8]) {
        let bit = self.rng.random_range(0..bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
    }

    /// A whole IP packet, of either family, from a documentation address.
    fn packet(&mut self) -> Vec<u8> {
        let payload = self.rng.random_range(0..1400_u16);
        let mut packet = if self.rng.random() {
            let length = (20 + payload).to_be_bytes();
            let mut header = vec![0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, 17, 0, 0];
            header.extend([192, 0, 2, 1, 192, 0, 2, 2]);
            header
        } else {
            let length = payload.to_be_bytes();
            let mut header = vec![0x60, 0, 0, 0, length[0], length[1], 17, 64];
            header.extend([0x20, 0x01, 0x0d, 0xb8].iter().chain(&[1; 28]));
            header
        };
        packet.extend((0..payload).map(|_| self.rng.random::<u8>()));
        packet
    }
}

/// `snow`: pure Noise, with our messages around it.
impl Pair {
    /// Their end.
    fn snow(&self) -> snow::Builder<'_> {
        let builder = builder(&self.psk, &self.their_secret);
        builder
            .remote_public_key(self.ours.public().as_bytes())
            .unwrap()
            .fixed_ephemeral_key_for_testing_only(&self.their_ephemeral)
    }

    /// Our end, as snow would be it.
    fn mirror(&self) -> snow::Builder<'_> {
        builder(&self.psk, &self.our_secret)
    }

    fn snow_initiation(&self, snow: &mut snow::HandshakeState) -> Initiation {
        let mut bytes = [0; size_of::<Initiation>()];
        bytes[0] = 1;
        let written = snow.write_message(self.stamp.as_bytes(), &mut bytes[NOISE_FIRST]);
        assert_eq!(written, Ok(NOISE_FIRST.len()));
        Initiation::read_from_bytes(&bytes).unwrap()
    }

    fn snow_response(&self, snow: &mut snow::HandshakeState, receiver: Index) -> Response {
        let mut bytes = [0; size_of::<Response>()];
        bytes[0] = 2;
        bytes[8..12].copy_from_slice(receiver.as_bytes());
        let written = snow.write_message(&[], &mut bytes[NOISE_SECOND]);
        assert_eq!(written, Ok(NOISE_SECOND.len()));
        Response::read_from_bytes(&bytes).unwrap()
    }

    /// Both ends name the session alike, and each opens what the other seals.
    fn check_transport(&mut self, snow: snow::HandshakeState, keys: &SessionKeys) {
        assert_eq!(snow.get_handshake_hash(), keys.handshake_hash);
        let snow = snow.into_stateless_transport_mode().unwrap();
        let (counter, packet) = (self.rng.random::<u64>() >> 1, self.packet());

        let sealed = seal(&keys.sealing, counter, &packet);
        let mut opened = vec![0; packet.len()];
        assert_eq!(snow.read_message(counter, &sealed, &mut opened), Ok(packet.len()));
        assert_eq!(opened, packet);

        let mut sealed = vec![0; packet.len() + 16];
        snow.write_message(counter, &packet, &mut sealed).unwrap();
        assert_eq!(open(&keys.opening, counter, &sealed), packet);
    }
}

fn builder<'a>(psk: &'a [u8; 32], secret: &'a [u8; 32]) -> snow::Builder<'a> {
    let pattern = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s".parse().unwrap();
    let builder = snow::Builder::new(pattern).prologue(b"WireGuard v1 zx2c4 Jason@zx2c4.com");
    builder.unwrap().psk(2, psk).unwrap().local_private_key(secret).unwrap()
}

/// `boringtun`: whole datagrams. It draws its own ephemeral keys and reads its own clock, so a
/// seed does not repeat its bytes.
impl Pair {
    fn boringtun(&mut self, limiter: Option<Arc<RateLimiter>>) -> Boringtun {
        let secret = x25519::StaticSecret::from(self.their_secret);
        let ours = x25519::PublicKey::from(*self.ours.public().as_bytes());
        let psk = (self.psk != [0; 32]).then_some(self.psk);
        let index = self.rng.random::<u32>() >> 8;
        Boringtun(Tunn::new(secret, ours, psk, None, index, limiter))
    }

    /// A limiter that asks for a cookie from the first message on.
    fn always_loaded(&self) -> Arc<RateLimiter> {
        let theirs = x25519::PublicKey::from(*self.their_public().as_bytes());
        Arc::new(RateLimiter::new(&theirs, 0))
    }

    fn send_to_boringtun(
        &mut self,
        tunn: &mut Boringtun,
        keys: &SessionKeys,
        receiver: Index,
        counter: u64,
    ) {
        let packet = self.packet();
        let mut padded = packet.clone();
        padded.resize(packet.len().next_multiple_of(16), 0);
        let header = DataHeader::new(receiver, counter);
        let sealed = seal(&keys.sealing, counter, &padded);
        assert_eq!(tunn.receive(&[header.as_bytes(), &sealed].concat()), packet);
    }
}

struct Boringtun(Tunn);

impl Boringtun {
    /// What comes of a datagram: a datagram, a packet, or nothing.
    fn receive(&mut self, datagram: &[u8]) -> Vec<u8> {
        let from = "192.0.2.1".parse().unwrap();
        let mut out = [0; 2048];
        written(self.0.decapsulate(Some(from), datagram, &mut out))
    }

    fn send(&mut self, packet: &[u8]) -> Vec<u8> {
        written(self.0.encapsulate(packet, &mut [0; 2048]))
    }

    fn initiate(&mut self) -> Vec<u8> {
        written(self.0.format_handshake_initiation(&mut [0; 2048], true))
    }
}

fn written(result: TunnResult<'_>) -> Vec<u8> {
    match result {
        TunnResult::Done => Vec::new(),
        TunnResult::WriteToNetwork(bytes)
        | TunnResult::WriteToTunnelV4(bytes, _)
        | TunnResult::WriteToTunnelV6(bytes, _) => bytes.to_vec(),
        TunnResult::Err(error) => panic!("boringtun: {error:?}"),
    }
}

fn check_data(datagram: &[u8], keys: &SessionKeys, to: Index, number: u64, packet: &[u8]) {
    let Ok(Message::Data { receiver, counter }) = parse(datagram) else { panic!("not data") };
    assert_eq!((receiver, counter), (to, number));
    let opened = open(&keys.opening, counter, &datagram[DATA_HEADER_LEN..]);
    assert_eq!(opened[..packet.len()], *packet);
    assert!(opened[packet.len()..].iter().all(|&padding| padding == 0));
}

fn seal(key: &[u8; 32], counter: u64, packet: &[u8]) -> Vec<u8> {
    let mut sealed = packet.to_vec();
    let tag = AeadKey::new(Algorithm::ChaCha20Poly1305, key).seal(counter, &[], &mut sealed);
    sealed.extend(tag);
    sealed
}

fn open(key: &[u8; 32], counter: u64, sealed: &[u8]) -> Vec<u8> {
    let mut opened = sealed.to_vec();
    let key = AeadKey::new(Algorithm::ChaCha20Poly1305, key);
    key.open(counter, &[], &mut opened).unwrap().to_vec()
}
