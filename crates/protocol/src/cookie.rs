//! Protects us from doing Diffie-Hellman work for strangers. mac1 requires knowledge of our public key. Under
//! load, mac2 requires a cookie, which proves that the sender receives datagrams at its address. Each such
//! address has a token bucket.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand_core::CryptoRng;
use vpnd_crypto::aead::{Forged, xopen, xseal};
use vpnd_crypto::hash::{Digest, hash, mac, verify};
use vpnd_crypto::key::PublicKey;
use zerocopy::IntoBytes;
use zeroize::Zeroizing;

use crate::handshake::HandshakeError;
use crate::message::{CookieReply, Index, MACS_LEN, Macs, Sealed};
use crate::time::BootTime;

/// How long a secret makes cookies, and how long a cookie is used.
const PERIOD: Duration = Duration::from_secs(120);

type Cookie = Zeroizing<[u8; 16]>;

/// The key of a receiver's mac1: everybody who knows the receiver's public key has it.
#[derive(Clone)]
pub struct Mac1Key(Digest);

impl Mac1Key {
    /// The key of messages sent to `receiver`.
    pub fn new(receiver: &PublicKey) -> Self {
        Self(hash(&[b"mac1----", receiver.as_bytes()]))
    }

    /// Whether the sender of this message 1 or 2 knows the receiver's public key.
    pub fn verify(&self, datagram: &[u8]) -> bool {
        split_macs(datagram).is_some_and(|(body, macs)| verify(&mac(&self.0, &[body]), &macs.mac1))
    }
}

/// The receiving end: asks senders for a proof of address, and checks it.
pub struct Checker {
    cookie_key: Digest,
    secrets: [Option<Secret>; 2],
}

impl Checker {
    /// The checker of messages sent to the public key `own`.
    pub fn new(own: &PublicKey) -> Self {
        Self { cookie_key: cookie_key(own), secrets: [const { None }; 2] }
    }

    /// Whether this message 1 or 2 carries a cookie made for `from` with one of the last two secrets.
    pub fn verify_mac2(&self, now: BootTime, from: SocketAddr, datagram: &[u8]) -> bool {
        let Some((body, macs)) = split_macs(datagram) else { return false };
        if macs.mac2 == [0; 16] {
            return false;
        }
        self.secrets.iter().flatten().filter(|secret| secret.age(now) < 2 * PERIOD).any(|secret| {
            let expected = mac(&*secret.cookie(from), &[body, &macs.mac1]);
            verify(&expected, &macs.mac2)
        })
    }

    /// The cookie reply to a message 1 or 2 whose sender index is `sender` and whose mac1 is `rejected`.
    pub fn reply(
        &mut self,
        now: BootTime,
        from: SocketAddr,
        sender: Index,
        rejected: &Macs,
        rng: &mut impl CryptoRng,
    ) -> CookieReply {
        let mut sealed = Sealed { ciphertext: *self.secret(now, rng).cookie(from), tag: [0; 16] };
        let mut nonce = [0; 24];
        rng.fill_bytes(&mut nonce);
        sealed.tag = xseal(&self.cookie_key, &nonce, &rejected.mac1, &mut sealed.ciphertext);
        CookieReply::new(sender, nonce, sealed)
    }

    /// The current secret for cookies. The previous one is kept, because its cookies are still in use.
    fn secret(&mut self, now: BootTime, rng: &mut impl CryptoRng) -> &Secret {
        let [latest, before] = &mut self.secrets;
        if latest.as_ref().is_some_and(|secret| secret.age(now) >= PERIOD) {
            *before = latest.take();
        }
        latest.get_or_insert_with(|| Secret::new(now, rng))
    }
}

/// The secret that cookies are derived from, so that the cookies themselves need not be stored.
struct Secret {
    key: Zeroizing<[u8; 32]>,
    born: BootTime,
}

impl Secret {
    fn new(born: BootTime, rng: &mut impl CryptoRng) -> Self {
        let mut key = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut *key);
        Self { key, born }
    }

    fn age(&self, now: BootTime) -> Duration {
        now.saturating_since(self.born)
    }

    /// The port counts too: many senders may share one NAT address.
    fn cookie(&self, from: SocketAddr) -> Cookie {
        let port = from.port().to_be_bytes();
        Zeroizing::new(match from.ip() {
            IpAddr::V4(ip) => mac(&*self.key, &[&ip.octets(), &port]),
            IpAddr::V6(ip) => mac(&*self.key, &[&ip.octets(), &port]),
        })
    }
}

/// The sending end: signs our messages to one remote, and keeps the cookies it sent us.
///
/// Anybody who knows the remote's public key and sees our message can forge a cookie reply to it. So a new
/// cookie never replaces one that was in a message that got an answer: the two are used alternately, until an
/// answer shows which of them is good.
pub struct Jar {
    mac1_key: Mac1Key,
    cookie_key: Digest,
    /// The mac1 of the last message, until a cookie has come for it.
    last_mac1: Option<[u8; 16]>,
    /// The cookie in the last message.
    carried: Option<Kind>,
    /// A cookie from a message that got an answer.
    proven: Option<Kept>,
    /// The newest cookie; anybody may have sent it.
    fresh: Option<Kept>,
}

/// A cookie, and when it was received.
type Kept = (Cookie, BootTime);

/// Which of the two cookies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Proven,
    Fresh,
}

impl Jar {
    /// An empty jar for messages to `remote`.
    pub fn new(remote: &PublicKey) -> Self {
        let (mac1_key, cookie_key) = (Mac1Key::new(remote), cookie_key(remote));
        Self { mac1_key, cookie_key, last_mac1: None, carried: None, proven: None, fresh: None }
    }

    /// Writes both MACs of a whole message 1 or 2; mac2 stays zero without a usable cookie.
    /// Anything too short to be either is left alone.
    pub fn seal_macs(&mut self, now: BootTime, datagram: &mut [u8]) {
        let Some((body, macs)) = datagram.split_last_chunk_mut::<MACS_LEN>() else { return };
        let mac1 = mac(&self.mac1_key.0, &[body]);
        self.last_mac1 = Some(mac1);
        self.expire(now);
        self.carried = self.choose();
        let mac2 = self.carried_cookie().map(|cookie| mac(&**cookie, &[body, &mac1]));
        *macs = zerocopy::transmute!(Macs { mac1, mac2: mac2.unwrap_or_default() });
    }

    /// Keeps the cookie for the next message. Each message accepts one cookie, and receiving one sends
    /// nothing: otherwise anybody who can forge addresses could make us send.
    ///
    /// # Errors
    /// The cookie was not sealed for the last message we sent.
    pub fn receive(&mut self, now: BootTime, reply: &CookieReply) -> Result<(), HandshakeError> {
        let mac1 = self.last_mac1.ok_or(HandshakeError::UnexpectedCookie)?;
        let mut sealed = reply.encrypted_cookie;
        xopen(&self.cookie_key, &reply.nonce, &mac1, sealed.as_mut_bytes())
            .map_err(|Forged| HandshakeError::ForgedCookie)?;
        self.fresh = Some((Zeroizing::new(sealed.ciphertext), now));
        self.last_mac1 = None;
        Ok(())
    }

    /// The last message was answered, so the cookie in it is good. A cookie that came for that very message
    /// is not from the remote, which sends either a cookie or an answer.
    pub fn answered(&mut self) {
        let replied = self.last_mac1.take().is_none();
        let fresh = self.fresh.take();
        if self.carried.take() == Some(Kind::Fresh) && !replied {
            self.proven = fresh;
        }
    }

    fn expire(&mut self, now: BootTime) {
        for cookie in [&mut self.proven, &mut self.fresh] {
            cookie.take_if(|(_, received)| now.saturating_since(*received) >= PERIOD);
        }
    }

    /// The fresh cookie, but not twice in a row if there is also a proven one.
    fn choose(&self) -> Option<Kind> {
        let after_fresh = self.carried == Some(Kind::Fresh);
        match (&self.proven, &self.fresh) {
            (Some(_), Some(_)) if after_fresh => Some(Kind::Proven),
            (_, Some(_)) => Some(Kind::Fresh),
            (Some(_), None) => Some(Kind::Proven),
            (None, None) => None,
        }
    }

    fn carried_cookie(&self) -> Option<&Cookie> {
        let kept = match self.carried? {
            Kind::Proven => &self.proven,
            Kind::Fresh => &self.fresh,
        };
        kept.as_ref().map(|(cookie, _)| cookie)
    }
}

fn cookie_key(receiver: &PublicKey) -> Digest {
    hash(&[b"cookie--", receiver.as_bytes()])
}

fn split_macs(datagram: &[u8]) -> Option<(&[u8], Macs)> {
    let (body, macs) = datagram.split_last_chunk::<MACS_LEN>()?;
    Some((body, zerocopy::transmute!(*macs)))
}

/// The time until a source gets back the token of one handshake: 20 a second.
const COST: Duration = Duration::from_millis(50);
/// Handshakes a source may send at once after a pause.
const BURST: u32 = 5;
/// The number of sources remembered. Each has proved its address by a cookie, so more than these are a flood
/// by an owner of many addresses.
const MAX_SOURCES: usize = 4096;

/// A token bucket per IPv4 address or IPv6 /64, which limits its handshakes under load. Addresses at which
/// the peer is expected have buckets of their own, so that neither neighbours nor any number of other
/// addresses can empty them. An attacker who knows our public key and sees a cookie reply to the peer still
/// can, because it can read the cookie.
///
/// A bucket is stored as the time at which it will be full again, so that it needs no refilling.
#[derive(Debug, Default)]
pub struct RateLimiter {
    full_at: BTreeMap<Source, BootTime>,
    swept: BootTime,
}

impl RateLimiter {
    /// All buckets full.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a token from the bucket of `from`, if there is one. If there are too many sources at once, new
    /// ones have to wait.
    pub fn allow(&mut self, now: BootTime, from: IpAddr) -> bool {
        self.take_token(now, Source::from(from))
    }

    /// As [`RateLimiter::allow`], for an address where the peer last was or is configured to be. Its cookie
    /// has proved the port too.
    pub fn allow_expected(&mut self, now: BootTime, from: SocketAddr) -> bool {
        self.take_token(now, Source::Expected(from))
    }

    fn take_token(&mut self, now: BootTime, source: Source) -> bool {
        self.make_room(now);
        let full_at = match self.full_at.get(&source) {
            Some(&full_at) => full_at.max(now) + COST,
            // There are few of these, and strangers cannot add any.
            None if self.full_at.len() < MAX_SOURCES || source.is_expected() => now + COST,
            None => return false,
        };
        let allowed = full_at.saturating_since(now) <= COST * BURST;
        if allowed {
            self.full_at.insert(source, full_at);
        }
        allowed
    }

    /// Forgets full buckets, which are equivalent to absent ones. Not at every message, because a flood would
    /// make us search the whole map each time.
    fn make_room(&mut self, now: BootTime) {
        let due = now.saturating_since(self.swept) >= COST * BURST;
        if due && self.full_at.len() >= MAX_SOURCES {
            self.full_at.retain(|_, full_at| *full_at > now);
            self.swept = now;
        }
    }
}

/// The owner of a token bucket: a host may use a whole IPv6 /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    V4(u32),
    V6(u64),
    Expected(SocketAddr),
}

impl Source {
    const fn is_expected(self) -> bool {
        matches!(self, Self::Expected(_))
    }
}

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip.to_bits()),
            IpAddr::V6(ip) => Self::V6((ip.to_bits() >> 64) as u64),
        }
    }
}

#[cfg(test)]
mod tests;
