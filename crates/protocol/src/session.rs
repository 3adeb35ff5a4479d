//! The keys for sealing and opening that one handshake yields (whitepaper §5.4.5, §5.4.6). Data threads share
//! them; the control plane decides which are in use.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vpnd_crypto::aead::{AeadKey, Algorithm, Message, TAG_LEN};
use vpnd_crypto::memory::Secret;
use zerocopy::IntoBytes;

use crate::drop_reason::DropReason;
use crate::message::{DATA_HEADER_LEN, DataHeader, Index};
use crate::replay::Window;
use crate::terms::Protocol;
use crate::time::BootTime;
use crate::wake_flag::{Wake, WakeFlag};

/// Bytes that sealing adds to a padded packet.
pub const OVERHEAD: usize = DATA_HEADER_LEN + TAG_LEN;

/// From this counter on a new session is requested, with the cipher of the `WireGuard` protocol.
pub const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// The first unusable counter, for every cipher.
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// How much one AES-256-GCM key may seal, in blocks of 16 bytes and one more for each packet: an attacker who
/// sees all of it can distinguish it from noise with a probability of 2⁻⁵⁷.
const GCM_BLOCKS: u64 = 1 << 36;
/// The age at which an initiator that sends requests a new session.
pub const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// The age at which a key expires.
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// The initiator stops sealing earlier. The responder's key is older than ours by the transit time of the
/// response, and our datagrams have to arrive before it expires.
const INITIATOR_SEALS_FOR: Duration = Duration::from_secs(170);

/// The order in which this end's sessions were made. Never sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(u64);

impl Generation {
    /// The generation of the `n`th session that an earlier process has left, counted from 1.
    pub(crate) const fn inherited(n: u64) -> Self {
        Self(n)
    }

    /// The next generation.
    pub(crate) const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// The number of datagrams a key may seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limits {
    rekey: u64,
    reject: u64,
}

impl Limits {
    /// How many messages a key of `cipher` may encrypt, if no packet is longer than `largest` bytes.
    fn of(cipher: Algorithm, largest: usize) -> Self {
        if cipher != Algorithm::Aes256Gcm {
            return Self { rekey: REKEY_AFTER_MESSAGES, reject: REJECT_AFTER_MESSAGES };
        }
        let reject = GCM_BLOCKS / (largest.div_ceil(16) as u64 + 1);
        Self { rekey: reject / 2, reject }
    }
}

/// What a session may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// IP packets and keepalives: the `WireGuard` protocol.
    Packets,
    /// IP packets and frames.
    Frames,
    /// Frames, some of them with Ethernet frames, and no bare IP packets.
    Ethernet,
    /// Only the two messages of its upgrade.
    Bootstrap,
}

/// The keys a handshake was made with: which of ours, and which of the peer's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) own: usize,
    pub(crate) remote: usize,
}

impl Pair {
    /// The later key of each end.
    pub(crate) fn later(self, other: Self) -> Self {
        Self { own: self.own.max(other.own), remote: self.remote.max(other.remote) }
    }
}

/// The origin of a session, and its index at each end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    pub(crate) role: Role,
    pub(crate) birth: BootTime,
    /// Our index; the peer addresses the session by it.
    pub(crate) local: Index,
    /// The peer's index.
    pub(crate) remote: Index,
    /// The keys it was made with.
    pub(crate) pair: Pair,
    pub(crate) generation: Generation,
    pub(crate) protocol: Protocol,
    pub(crate) contents: Contents,
    /// The longest packet it seals.
    pub(crate) largest: usize,
    /// The age at which a new session is requested; `None` leaves that to the peer.
    pub(crate) rekey_after: Option<Duration>,
}

/// Who sent the initiation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We did.
    Initiator,
    /// The peer did.
    Responder,
}

/// Why a key no longer seals; nothing was reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The key is too old.
    Expired,
    /// The key has no counters left.
    Exhausted,
}

/// The counter of one datagram. Sealing consumes it, so that none is used twice.
pub struct Counter(u64);

/// A range of reserved counters. Unused ones are lost, which is harmless.
pub struct Counters {
    left: Range<u64>,
    wake: Wake,
}

impl Counters {
    /// The control plane has to be woken after this reservation: a new session is due.
    pub const fn wake(&self) -> Wake {
        self.wake
    }
}

impl Iterator for Counters {
    type Item = Counter;

    fn next(&mut self) -> Option<Counter> {
        self.left.next().map(Counter)
    }
}

/// Seals datagrams to the peer. The key cannot be copied, printed or stored.
pub struct SealingKey {
    aead: AeadKey,
    receiver: Index,
    contents: Contents,
    next: AtomicU64,
    /// The number of datagrams that only tested other paths than the one in use.
    aside: AtomicU64,
    limits: Limits,
    seals_until: BootTime,
    rekey_from: BootTime,
    /// Raised once, when a new session is due; it has no effect after the key was replaced.
    rekey_due: WakeFlag,
}

impl SealingKey {
    /// The sealing key of a session.
    pub(crate) fn new(key: &[u8; 32], origin: &Origin) -> Self {
        let seals_for = match origin.role {
            Role::Initiator => INITIATOR_SEALS_FOR,
            Role::Responder => REJECT_AFTER_TIME,
        };
        Self {
            aead: AeadKey::new(origin.protocol.cipher(), key),
            receiver: origin.remote,
            contents: origin.contents,
            next: AtomicU64::new(0),
            aside: AtomicU64::new(0),
            limits: Limits::of(origin.protocol.cipher(), origin.largest),
            seals_until: origin.birth + seals_for,
            rekey_from: origin.birth + origin.rekey_after.unwrap_or(REJECT_AFTER_TIME),
            rekey_due: WakeFlag::default(),
        }
    }

    /// The peer's index of the session.
    pub(crate) const fn receiver(&self) -> Index {
        self.receiver
    }

    /// Reserves the next `count` counters, all or none.
    ///
    /// # Errors
    /// If the key is too old or its counters are used up; no counter is then taken.
    pub fn reserve(&self, count: usize, now: BootTime) -> Result<Counters, Refused> {
        if now >= self.seals_until {
            return Err(Refused::Expired);
        }
        let first = self
            .next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
                next.checked_add(count as u64).filter(|&end| end <= self.limits.reject)
            })
            .map_err(|_| Refused::Exhausted)?;
        let left = first..first + count as u64;
        let due = now >= self.rekey_from || left.end > self.limits.rekey;
        let wake = if due { self.rekey_due.raise() } else { Wake::NO };
        Ok(Counters { left, wake })
    }

    /// Seals `datagram` in place: 16 bytes for the header, the padded packet, 16 for the tag.
    ///
    /// # Panics
    /// If `datagram` is shorter than [`OVERHEAD`]: a bug of the caller.
    pub fn seal(&self, counter: Counter, datagram: &mut [u8]) {
        let (header, rest) = datagram.split_at_mut(DATA_HEADER_LEN);
        let (packet, tag) = rest.split_at_mut(rest.len() - TAG_LEN);
        header.copy_from_slice(DataHeader::new(self.receiver, counter.0).as_bytes());
        tag.copy_from_slice(&self.aead.seal(counter.0, &[], packet));
    }

    /// Seals each of `datagrams` in place, as [`SealingKey::seal`] does. Consecutive ones of equal length are
    /// sealed together, which is faster.
    ///
    /// # Panics
    /// If there are fewer counters than datagrams, or one is shorter than [`OVERHEAD`].
    pub fn seal_each<'a>(
        &self,
        counters: &mut Counters,
        datagrams: impl Iterator<Item = &'a mut [u8]>,
    ) {
        self.aead.seal_each(datagrams.map(|datagram| {
            let Counter(counter) =
                counters.next().expect("a counter was reserved for each datagram");
            let (header, buffer) = datagram.split_at_mut(DATA_HEADER_LEN);
            header.copy_from_slice(DataHeader::new(self.receiver, counter).as_bytes());
            Message { counter, buffer }
        }));
    }

    /// Whether the key may still seal: it is not too old, and has a counter left.
    pub(crate) fn seals_at(&self, now: BootTime) -> bool {
        now < self.seals_until && self.used() < self.limits.reject
    }

    /// Whether a successor is due.
    pub(crate) fn wants_successor(&self) -> bool {
        self.rekey_due.is_raised()
    }

    /// Whether the peer understands frames, and therefore fragments.
    pub fn carries_frames(&self) -> bool {
        matches!(self.contents, Contents::Frames | Contents::Ethernet)
    }

    /// Datagrams sealed so far.
    pub fn used(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Datagrams sealed so far, without those that only tested another path: their loss does not count for the
    /// path in use.
    pub(crate) fn counted(&self) -> u64 {
        self.used().saturating_sub(self.aside.load(Ordering::Relaxed))
    }

    /// Excludes one datagram from [`SealingKey::counted`], because it only tests another path.
    pub(crate) fn set_aside(&self) {
        self.aside.fetch_add(1, Ordering::Relaxed);
    }

    /// Sets the counter near its end, which a test cannot reach otherwise.
    #[doc(hidden)]
    pub fn skip_to(&self, counter: u64) {
        self.next.fetch_max(counter, Ordering::Relaxed);
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealingKey").field("receiver", &self.receiver).finish_non_exhaustive()
    }
}

/// A datagram that authenticated but has not passed the replay window: only its position is known.
#[derive(Debug)]
pub struct Opened {
    pub(crate) counter: u64,
    pub(crate) plaintext_len: usize,
}

/// Opens datagrams from the peer. It owns the session's replay window.
pub struct OpeningKey {
    aead: AeadKey,
    /// What `aead` was made of: the next process of the tunnel opens with it what the peer still sends.
    secret: Secret,
    cipher: Algorithm,
    index: Index,
    generation: Generation,
    contents: Contents,
    dead_from: BootTime,
    /// Raised once, by the first datagram that opens and passes the window.
    confirmed: WakeFlag,
    /// Datagrams that passed the window; only the thread that holds the window adds to it.
    accepted: AtomicU64,
    window: Mutex<Window>,
}

impl OpeningKey {
    /// The opening key of a session.
    pub(crate) fn new(key: &[u8; 32], origin: &Origin) -> Self {
        let (name, cipher) = ((origin.local, origin.contents), origin.protocol.cipher());
        let dead_from = origin.birth + REJECT_AFTER_TIME;
        let new = Self::inherited(cipher, key, name, Window::default());
        Self { generation: origin.generation, ..new.living_until(dead_from, 0) }
    }

    /// The key of a session of an earlier process, with its window.
    pub(crate) fn inherited(
        cipher: Algorithm,
        key: &[u8; 32],
        (index, contents): (Index, Contents),
        window: Window,
    ) -> Self {
        Self {
            aead: AeadKey::new(cipher, key),
            secret: Secret::copy_of(key),
            cipher,
            index,
            generation: Generation::default(),
            contents,
            dead_from: BootTime::default(),
            confirmed: WakeFlag::default(),
            accepted: AtomicU64::new(0),
            window: Mutex::new(window),
        }
    }

    /// The same key, which expires at this time and has accepted so many datagrams.
    pub(crate) fn living_until(self, dead_from: BootTime, accepted: u64) -> Self {
        Self { dead_from, accepted: AtomicU64::new(accepted), ..self }
    }

    /// The same key, of a session that the peer has used before: its datagrams confirm nothing any more, and none of them
    /// takes the path from a newer session.
    pub(crate) fn used_in(self, generation: Generation) -> Self {
        let _awake = self.confirmed.raise();
        Self { generation, ..self }
    }

    /// What the key was made of.
    pub(crate) fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// The cipher of the key.
    pub(crate) const fn cipher(&self) -> Algorithm {
        self.cipher
    }

    /// Opens the transport data message `datagram` in place; its plaintext then begins at
    /// [`DATA_HEADER_LEN`]. Any thread may call this in any order: only the datagram's bytes change.
    ///
    /// # Errors
    /// [`DropReason::Expired`], or [`DropReason::Forged`] if it does not authenticate.
    pub fn open(
        &self,
        counter: u64,
        datagram: &mut [u8],
        now: BootTime,
    ) -> Result<Opened, DropReason> {
        let mut result = Err(DropReason::Malformed);
        self.open_each(std::iter::once((counter, datagram)), now, |opened| result = opened);
        result
    }

    /// Opens each of `datagrams`, given with its counter, in place, and reports the results in the same
    /// order, as [`OpeningKey::open`] does for one. Consecutive ones of equal length are opened together,
    /// which is faster.
    ///
    /// # Panics
    /// If a datagram is shorter than its header, which parsing excludes.
    pub fn open_each<'a>(
        &self,
        datagrams: impl Iterator<Item = (u64, &'a mut [u8])>,
        now: BootTime,
        mut opened: impl FnMut(Result<Opened, DropReason>),
    ) {
        if now >= self.dead_from {
            return datagrams.for_each(|_dead| opened(Err(DropReason::Expired)));
        }
        let messages = datagrams.map(|(counter, datagram)| Message {
            counter,
            buffer: &mut datagram[DATA_HEADER_LEN..],
        });
        self.aead.open_each(messages, |counter, plaintext| {
            opened(match plaintext {
                Err(_forged) => Err(DropReason::Forged),
                Ok(_) if counter >= REJECT_AFTER_MESSAGES => Err(DropReason::Expired),
                Ok(plaintext) => Ok(Opened { counter, plaintext_len: plaintext.len() }),
            });
        });
    }

    /// The window, for the one thread that accepts. Never contended.
    pub fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Our index, by which the peer addresses this session.
    pub const fn index(&self) -> Index {
        self.index
    }

    /// The session's generation.
    pub const fn generation(&self) -> Generation {
        self.generation
    }

    /// What the session may carry.
    pub const fn contents(&self) -> Contents {
        self.contents
    }

    /// Datagrams that opened and were new.
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Counts one more accepted datagram; the caller holds the window.
    pub(crate) fn count_accepted(&self) {
        self.accepted.store(self.accepted() + 1, Ordering::Relaxed);
    }

    /// When the key expires.
    pub(crate) const fn dead_from(&self) -> BootTime {
        self.dead_from
    }

    pub(crate) const fn confirmed(&self) -> &WakeFlag {
        &self.confirmed
    }
}

impl fmt::Debug for OpeningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpeningKey").field("index", &self.index).finish_non_exhaustive()
    }
}

/// The length to which a packet of `len` bytes is padded with zeros: a multiple of 16, but never
/// past the device's `mtu` (whitepaper §5.4.6; `send.c`).
pub const fn padded_len(len: usize, mtu: usize) -> usize {
    let tail = if mtu > 0 && len > mtu { len % mtu } else { len };
    let padded = tail.next_multiple_of(16);
    len - tail + if mtu > 0 && padded > mtu { mtu } else { padded }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Kem, Mode, Profile};

    const BIRTH: BootTime = BootTime::from_nanos(1_000);

    fn origin(role: Role, protocol: Protocol) -> Origin {
        Origin {
            role,
            birth: BIRTH,
            local: Index::new(1),
            remote: Index::new(1),
            pair: Pair::default(),
            generation: Generation(1),
            protocol,
            contents: Contents::Packets,
            largest: 1420,
            rekey_after: matches!(role, Role::Initiator).then_some(REKEY_AFTER_TIME),
        }
    }

    fn sealing(role: Role) -> SealingKey {
        SealingKey::new(&[7; 32], &origin(role, Protocol::WireGuard))
    }

    fn opening() -> OpeningKey {
        OpeningKey::new(&[7; 32], &origin(Role::Initiator, Protocol::WireGuard))
    }

    fn seconds(s: u64) -> BootTime {
        BIRTH + Duration::from_secs(s)
    }

    #[test]
    fn what_is_sealed_opens_once_intact() {
        let mut datagram = [0; OVERHEAD + 32];
        datagram[16..20].copy_from_slice(b"ping");
        let key = sealing(Role::Initiator);
        let counter = key.reserve(1, BIRTH).unwrap().next().unwrap();
        key.seal(counter, &mut datagram);
        assert_ne!(&datagram[16..20], b"ping");
        let opened = opening().open(0, &mut datagram, BIRTH).unwrap();
        assert_eq!(opened.plaintext_len, 32);
        assert_eq!(&datagram[16..20], b"ping");
    }

    #[test]
    fn every_bit_of_a_datagram_is_protected() {
        let mut sealed = [0; OVERHEAD + 16];
        let key = sealing(Role::Initiator);
        key.seal(key.reserve(1, BIRTH).unwrap().next().unwrap(), &mut sealed);
        for bit in DATA_HEADER_LEN * 8..sealed.len() * 8 {
            let mut bent = sealed;
            bent[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(opening().open(0, &mut bent, BIRTH).unwrap_err(), DropReason::Forged);
        }
        assert_eq!(opening().open(1, &mut sealed, BIRTH).unwrap_err(), DropReason::Forged);
    }

    #[test]
    fn a_reservation_is_all_or_nothing_and_a_refusal_moves_nothing() {
        let key = sealing(Role::Initiator);
        key.skip_to(REJECT_AFTER_MESSAGES - 2);
        assert_eq!(key.reserve(3, BIRTH).err(), Some(Refused::Exhausted));
        for _ in 0..1000 {
            assert!(key.reserve(usize::MAX, BIRTH).is_err());
        }
        assert_eq!(key.reserve(2, BIRTH).unwrap().count(), 2);
        assert_eq!(key.reserve(1, BIRTH).err(), Some(Refused::Exhausted));
        assert_eq!(key.used(), REJECT_AFTER_MESSAGES);
    }

    #[test]
    fn keys_die_of_age_without_any_timer() {
        assert!(sealing(Role::Initiator).reserve(1, seconds(169)).is_ok());
        assert_eq!(sealing(Role::Initiator).reserve(1, seconds(170)).err(), Some(Refused::Expired));
        assert!(sealing(Role::Responder).reserve(1, seconds(179)).is_ok());
        assert_eq!(sealing(Role::Responder).reserve(1, seconds(180)).err(), Some(Refused::Expired));
        let mut datagram = [0; OVERHEAD];
        assert_eq!(
            opening().open(0, &mut datagram, seconds(180)).unwrap_err(),
            DropReason::Expired
        );
    }

    #[test]
    fn a_successor_is_asked_for_once() {
        let key = sealing(Role::Initiator);
        assert!(!key.reserve(1, seconds(119)).unwrap().wake().is_due());
        assert!(key.reserve(1, seconds(120)).unwrap().wake().is_due());
        assert!(!key.reserve(1, seconds(121)).unwrap().wake().is_due());
        assert!(key.wants_successor());
        let key = sealing(Role::Responder);
        assert!(!key.reserve(1, seconds(179)).unwrap().wake().is_due());
        key.skip_to(REKEY_AFTER_MESSAGES);
        assert!(key.reserve(1, BIRTH).unwrap().wake().is_due());
    }

    #[test]
    fn aes_gcm_rekeys_at_half_of_its_limit_and_seals_nothing_beyond() {
        let (mode, cipher, kem) = (Mode::Tun, Algorithm::Aes256Gcm, Kem::None);
        let protocol = Protocol::Vpnd(Profile { mode, cipher, kem });
        let key = SealingKey::new(&[7; 32], &origin(Role::Responder, protocol));
        // 1420 bytes are 89 blocks and one for the length.
        let limit = (1 << 36) / 90;
        key.skip_to(limit / 2 - 1);
        assert!(!key.reserve(1, BIRTH).unwrap().wake().is_due());
        assert!(key.reserve(1, BIRTH).unwrap().wake().is_due());
        key.skip_to(limit - 1);
        assert_eq!(key.reserve(2, BIRTH).err(), Some(Refused::Exhausted));
        assert!(key.seals_at(BIRTH) && key.reserve(1, BIRTH).is_ok());
        assert!(!key.seals_at(BIRTH) && key.reserve(1, BIRTH).is_err());
    }

    #[test]
    fn counters_at_the_limit_do_not_open_even_if_authentic() {
        let aead = AeadKey::new(Algorithm::ChaCha20Poly1305, &[7; 32]);
        for (counter, opens) in [(REJECT_AFTER_MESSAGES - 1, true), (REJECT_AFTER_MESSAGES, false)]
        {
            let mut datagram = [0; OVERHEAD + 16];
            let (text, tag) = datagram[DATA_HEADER_LEN..].split_at_mut(16);
            tag.copy_from_slice(&aead.seal(counter, &[], text));
            let opened = opening().open(counter, &mut datagram, BIRTH);
            assert_eq!(opened.is_ok(), opens);
            assert!(opens || opened.is_err_and(|reason| reason == DropReason::Expired));
        }
    }

    #[test]
    fn padding_is_to_sixteen_and_never_past_the_mtu() {
        for (len, mtu, padded) in [
            (0, 1420, 0),
            (1, 1420, 16),
            (16, 1420, 16),
            (1410, 1420, 1420),
            (1420, 1420, 1420),
            (1421, 1420, 1436),
            (2840, 1420, 2840),
            (100, 0, 112),
        ] {
            assert_eq!(padded_len(len, mtu), padded, "{len} of {mtu}");
        }
    }
}
