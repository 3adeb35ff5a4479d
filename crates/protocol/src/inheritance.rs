//! What a process leaves to the next process of the same tunnel, so that a restart loses no datagram: the keys that
//! open what the peer still sends, with their replay windows, where the peer is, and the newest timestamps of its
//! initiations.
//!
//! No key that seals is ever part of it: two processes that seal with one key could use the same nonce twice. The next
//! process opens datagrams of the old sessions, and sends nothing but a handshake until it has a session of its own.
//! Whoever makes an [`Inheritance`] loses all its sessions by that ([`Peer::hand_on`](crate::peer::Peer::hand_on)).

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;

use thiserror::Error;
use vpnd_crypto::PublicKey;
use vpnd_crypto::aead::Algorithm;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};
use zeroize::Zeroizing;

use crate::high_water::HighWater;
use crate::keyring::MAX_KEYS;
use crate::message::Index;
use crate::replay::{WORDS, Window};
use crate::session::{Contents, Generation, OpeningKey};
use crate::table::IDENTITIES;
use crate::time::BootTime;
use crate::timestamp::Timestamp;

/// The first bytes of an encoded inheritance. The number grows with each change of the format.
const MAGIC: [u8; 8] = *b"vpnd-in2";

/// The sessions and the path of a process that has ended, for the next one.
#[derive(Debug, Default)]
pub struct Inheritance {
    pub(crate) keys: Vec<Arc<OpeningKey>>,
    pub(crate) path: Option<Reached>,
    pub(crate) life: Option<Lived>,
    /// The timestamp of our last initiation.
    pub(crate) stamp: Option<Timestamp>,
    /// The newest timestamps that were accepted under each key of the peer.
    pub(crate) accepted: Vec<(PublicKey, HighWater)>,
}

/// Where the peer was last reached, and from which address of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reached {
    pub(crate) to: SocketAddr,
    pub(crate) from: Option<IpAddr>,
}

/// Since when the peer is alive, and when it was last heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lived {
    pub(crate) since: BootTime,
    pub(crate) heard: BootTime,
}

/// Why an encoded inheritance cannot be used. The next process then begins with a handshake, as after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Unusable {
    /// It was written by another version of vpnd.
    #[error("another version of vpnd has written it")]
    Format,
    /// Its length is wrong, or a field has no meaning.
    #[error("it is damaged")]
    Damaged,
}

/// The encoded form before the keys.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    /// Bits of [`HAS_PATH`] and the following ones.
    has: u8,
    keys: u8,
    port: U16,
    scope: U32,
    to: [u8; 16],
    from: [u8; 16],
    since: U64,
    heard: U64,
    stamp: [u8; 12],
    accepted: [Accepted; IDENTITIES],
}

/// The encoded form of the newest timestamps under one key of the peer.
#[derive(Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Accepted {
    key: [u8; 32],
    /// Bits of [`HAS_MARK`] and the following one; 0 if there is no such key.
    has: u8,
    mark: [u8; 12],
    ahead: [u8; 12],
}

const HAS_MARK: u8 = 1;
const HAS_AHEAD: u8 = 2;

const HAS_PATH: u8 = 1;
const HAS_SOURCE: u8 = 2;
const HAS_LIFE: u8 = 4;
const HAS_STAMP: u8 = 8;

/// The encoded form of one key.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Key {
    secret: [u8; 32],
    index: U32,
    cipher: u8,
    contents: u8,
    any: u8,
    zero: u8,
    dead_from: U64,
    accepted: U64,
    newest: U64,
    seen: [U64; WORDS],
}

/// The longest encoded form in bytes.
pub const MAX_LEN: usize = size_of::<Header>() + MAX_KEYS * size_of::<Key>();

impl Inheritance {
    /// What is known after a crash, when nobody left anything: the peer was alive until now.
    pub fn of_a_crash(now: BootTime) -> Self {
        Self { life: Some(Lived { since: now, heard: now }), ..Self::default() }
    }

    /// Whether the peer is alive.
    pub const fn is_alive(&self) -> bool {
        self.life.is_some()
    }

    /// The number of sessions that still open datagrams.
    pub fn sessions(&self) -> usize {
        self.keys.len()
    }

    /// The timestamp of our last initiation.
    pub const fn stamp(&self) -> Option<Timestamp> {
        self.stamp
    }

    /// The encoded form: at most [`MAX_LEN`] bytes, which are wiped when they are dropped.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        // With its full capacity from the beginning, so that no copy of a key is left in memory.
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_LEN));
        bytes.extend_from_slice(self.header().as_bytes());
        for key in self.keys.iter().take(MAX_KEYS) {
            key.append_to(&mut bytes);
        }
        bytes
    }

    fn header(&self) -> Header {
        let path = self.path.map(|path| (v6(path.to), path.from.map(octets)));
        let (to, from) = path.unzip();
        let (from, life) = (from.flatten(), self.life.unwrap_or_default());
        let mut accepted = <[Accepted; IDENTITIES]>::default();
        for (encoded, (key, newest)) in accepted.iter_mut().zip(&self.accepted) {
            *encoded = Accepted::of(key, newest);
        }
        Header {
            magic: MAGIC,
            has: bit(to.is_some(), HAS_PATH)
                | bit(from.is_some(), HAS_SOURCE)
                | bit(self.life.is_some(), HAS_LIFE)
                | bit(self.stamp.is_some(), HAS_STAMP),
            keys: u8::try_from(self.keys.len().min(MAX_KEYS)).unwrap_or_default(),
            port: to.map_or(0, |to| to.port()).into(),
            scope: to.map_or(0, |to| to.scope_id()).into(),
            to: to.map_or([0; 16], |to| to.ip().octets()),
            from: from.unwrap_or_default(),
            since: life.since.as_nanos().into(),
            heard: life.heard.as_nanos().into(),
            stamp: octets_of(self.stamp),
            accepted,
        }
    }

    /// The value that [`Inheritance::encode`] has written.
    ///
    /// # Errors
    /// If it was written by another version, or is damaged.
    pub fn decode(bytes: &[u8]) -> Result<Self, Unusable> {
        let (header, keys) = Header::ref_from_prefix(bytes).map_err(|_short| Unusable::Damaged)?;
        if header.magic != MAGIC {
            return Err(Unusable::Format);
        }
        let keys = <[Key]>::ref_from_bytes(keys).map_err(|_length| Unusable::Damaged)?;
        if keys.len() != usize::from(header.keys) || keys.len() > MAX_KEYS {
            return Err(Unusable::Damaged);
        }
        let has = |bit| header.has & bit != 0;
        // The oldest comes last.
        let generations = (1..=keys.len() as u64).rev().map(Generation::inherited);
        let keys = keys.iter().zip(generations).map(|(key, generation)| {
            let key = key.restore().ok_or(Unusable::Damaged)?;
            Ok(Arc::new(key.used_in(generation)))
        });
        let life = Lived { since: nanos(header.since), heard: nanos(header.heard) };
        Ok(Self {
            keys: keys.collect::<Result<_, _>>()?,
            path: has(HAS_PATH).then(|| header.path(has(HAS_SOURCE))),
            life: has(HAS_LIFE).then_some(life),
            stamp: has(HAS_STAMP).then(|| Timestamp::from_bytes(header.stamp)),
            accepted: header.accepted.iter().filter_map(Accepted::restore).collect(),
        })
    }
}

impl Header {
    fn path(&self, has_source: bool) -> Reached {
        let to = SocketAddrV6::new(self.to.into(), self.port.get(), 0, self.scope.get());
        let canonical = to.ip().to_canonical();
        let to = match canonical {
            IpAddr::V4(_) => SocketAddr::new(canonical, to.port()),
            IpAddr::V6(_) => to.into(),
        };
        let from = has_source.then(|| Ipv6Addr::from(self.from).to_canonical());
        Reached { to, from }
    }
}

impl Accepted {
    fn of(key: &PublicKey, newest: &HighWater) -> Self {
        let [mark, ahead] = newest.parts();
        Self {
            key: *key.as_bytes(),
            has: bit(mark.is_some(), HAS_MARK) | bit(ahead.is_some(), HAS_AHEAD),
            mark: octets_of(mark),
            ahead: octets_of(ahead),
        }
    }

    fn restore(&self) -> Option<(PublicKey, HighWater)> {
        let stamp = |flag, bytes| (self.has & flag != 0).then(|| Timestamp::from_bytes(bytes));
        let newest =
            HighWater::of_parts([stamp(HAS_MARK, self.mark), stamp(HAS_AHEAD, self.ahead)]);
        (self.has != 0).then(|| (PublicKey::from_bytes(self.key), newest))
    }
}

const fn bit(is_set: bool, bit: u8) -> u8 {
    if is_set { bit } else { 0 }
}

fn octets_of(stamp: Option<Timestamp>) -> [u8; 12] {
    stamp.map_or([0; 12], |stamp| *stamp.as_bytes())
}

impl OpeningKey {
    /// Appends the encoded form. No thread opens or accepts datagrams any more.
    fn append_to(&self, bytes: &mut Zeroizing<Vec<u8>>) {
        let window = self.window();
        let (newest, seen) = window.parts();
        let key = Zeroizing::new(Key {
            secret: *self.secret(),
            index: self.index().get().into(),
            cipher: matches!(self.cipher(), Algorithm::Aes256Gcm).into(),
            contents: position(self.contents()),
            any: newest.is_some().into(),
            zero: 0,
            dead_from: self.dead_from().as_nanos().into(),
            accepted: self.accepted().into(),
            newest: newest.unwrap_or_default().into(),
            seen: seen.map(U64::new),
        });
        bytes.extend_from_slice(key.as_bytes());
    }
}

impl zeroize::Zeroize for Key {
    fn zeroize(&mut self) {
        self.secret.zeroize();
    }
}

impl Key {
    fn restore(&self) -> Option<OpeningKey> {
        let cipher = match self.cipher {
            0 => Algorithm::ChaCha20Poly1305,
            1 => Algorithm::Aes256Gcm,
            _ => return None,
        };
        let newest = (self.any != 0).then_some(self.newest.get());
        let window = Window::of_parts(newest, self.seen.map(U64::get));
        let contents = CONTENTS.get(usize::from(self.contents)).copied()?;
        let index = Index::new(self.index.get());
        let key = OpeningKey::inherited(cipher, &self.secret, (index, contents), window);
        Some(key.living_until(nanos(self.dead_from), self.accepted.get()))
    }
}

/// What an inherited session may carry. A session that waits for its upgrade is not inherited.
const CONTENTS: [Contents; 3] = [Contents::Packets, Contents::Frames, Contents::Ethernet];

fn position(contents: Contents) -> u8 {
    let at = CONTENTS.iter().position(|one| *one == contents);
    at.and_then(|at| u8::try_from(at).ok()).unwrap_or(u8::MAX)
}

fn nanos(nanos: U64) -> BootTime {
    BootTime::from_nanos(nanos.get())
}

fn v6(to: SocketAddr) -> SocketAddrV6 {
    match to {
        SocketAddr::V4(to) => SocketAddrV6::new(to.ip().to_ipv6_mapped(), to.port(), 0, 0),
        SocketAddr::V6(to) => to,
    }
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::Freshness;

    fn key(index: u32, counters: &[u64]) -> Arc<OpeningKey> {
        let contents = Contents::Frames;
        let cipher = Algorithm::Aes256Gcm;
        let window = Window::default();
        let key = OpeningKey::inherited(cipher, &[7; 32], (Index::new(index), contents), window);
        let key = key.living_until(BootTime::from_nanos(99), 3);
        for counter in counters {
            key.window().accept(*counter).unwrap();
        }
        Arc::new(key)
    }

    fn inheritance(to: &str, from: Option<&str>) -> Inheritance {
        let path =
            Reached { to: to.parse().unwrap(), from: from.map(|from| from.parse().unwrap()) };
        Inheritance {
            keys: vec![key(5, &[1, 3, 9000]), key(6, &[])],
            path: Some(path),
            life: Some(Lived { since: BootTime::from_nanos(4), heard: BootTime::from_nanos(5) }),
            stamp: Some(Timestamp::from_bytes([9; 12])),
            accepted: [[Some(7), None], [Some(6), Some(8)]].map(newest).into(),
        }
    }

    /// A key of the peer, and the newest timestamps under it.
    fn newest(stamps: [Option<u8>; 2]) -> (PublicKey, HighWater) {
        let key = PublicKey::from_bytes([stamps[1].unwrap_or_default(); 32]);
        let stamps = stamps.map(|stamp| stamp.map(|byte| Timestamp::from_bytes([byte; 12])));
        (key, HighWater::of_parts(stamps))
    }

    #[test]
    fn all_of_it_comes_back() {
        for (to, from) in [
            ("192.0.2.1:51820", Some("192.0.2.7")),
            ("[2001:db8::1]:7", None),
            ("[fe80::1%3]:7", Some("fe80::2")),
        ] {
            let left = inheritance(to, from);
            let got = Inheritance::decode(&left.encode()).unwrap();
            assert_eq!((got.path, got.life, got.stamp), (left.path, left.life, left.stamp));
            let parts = |left: &Inheritance| {
                left.accepted.iter().map(|(key, newest)| (*key, newest.parts())).collect::<Vec<_>>()
            };
            assert_eq!(parts(&got), parts(&left));
            let [one, other] = &got.keys[..] else { panic!("{got:?}") };
            assert_eq!((one.index().get(), other.index().get()), (5, 6));
            assert_eq!((one.secret(), one.contents()), (&[7; 32], Contents::Frames));
            assert_eq!((one.dead_from(), one.accepted()), (BootTime::from_nanos(99), 3));
            assert!(one.generation() > other.generation() && one.confirmed().is_raised());
        }
    }

    #[test]
    fn what_was_accepted_stays_a_replay() {
        let got = Inheritance::decode(&inheritance("192.0.2.1:1", None).encode()).unwrap();
        let mut window = got.keys[0].window();
        for replayed in [3, 9000, 1] {
            assert!(window.accept(replayed).is_err(), "{replayed}");
        }
        assert_eq!(window.accept(8999), Ok(Freshness::Late));
        assert_eq!(window.accept(9001), Ok(Freshness::Newest));
        assert_eq!(got.keys[1].window().accept(0), Ok(Freshness::Newest));
    }

    #[test]
    fn what_is_damaged_or_of_another_version_is_refused() {
        let bytes = inheritance("192.0.2.1:1", None).encode();
        assert!(bytes.len() < MAX_LEN);
        for len in 0..bytes.len() {
            assert_eq!(Inheritance::decode(&bytes[..len]).err(), Some(Unusable::Damaged));
        }
        let changed = |at: usize, to: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = to;
            Inheritance::decode(&bytes).err()
        };
        assert_eq!(changed(7, b'9'), Some(Unusable::Format));
        assert_eq!(changed(9, 3), Some(Unusable::Damaged));
        let cipher = size_of::<Header>() + 36;
        assert_eq!(changed(cipher, 2), Some(Unusable::Damaged));
        assert_eq!(changed(cipher + 1, 3), Some(Unusable::Damaged));
    }
}
