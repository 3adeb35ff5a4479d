//! Sealing and opening keys: what one handshake yields for each direction (whitepaper §5.4.5,
//! §5.4.6). Data threads share them; the control plane decides which are in use.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vpnd_crypto::aead::{AeadKey, Algorithm, Message, TAG_LEN};
use zerocopy::IntoBytes;

use crate::drop_reason::DropReason;
use crate::edge::{Edge, Wake};
use crate::message::{DATA_HEADER_LEN, DataHeader, Index};
use crate::replay::Window;
use crate::time::BootTime;

/// Bytes that sealing adds to a padded packet.
pub const OVERHEAD: usize = DATA_HEADER_LEN + TAG_LEN;

/// The counter from which an initiator asks for a new session.
pub const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// The first counter that is never used.
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// The age at which an initiator that sends asks for a new session.
pub const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// The age at which a key is dead.
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// The initiator stops sealing earlier: the responder's key is older than ours by the time the
/// response took, and what is sealed must still open there.
const INITIATOR_SEALS_FOR: Duration = Duration::from_secs(170);

/// The order in which sessions came to be, at this end. Not on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(u64);

impl Generation {
    /// The one after this.
    pub(crate) const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Who sent the initiation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We did.
    Initiator,
    /// The peer did.
    Responder,
}

/// Why a key seals no more; nothing was reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The key is too old.
    Expired,
    /// The key has no counters left.
    Exhausted,
}

/// The number of one datagram. Sealing consumes it, so that no number is used twice.
pub struct Counter(u64);

/// A run of reserved numbers; what is not used is lost, which is harmless.
pub struct Counters {
    left: Range<u64>,
    wake: Wake,
}

impl Counters {
    /// The control plane has to hear of this reservation: a new session is due.
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

/// Seals what goes to the peer. It cannot be copied, shown or stored.
pub struct SealingKey {
    aead: AeadKey,
    receiver: Index,
    next: AtomicU64,
    seals_until: BootTime,
    rekey_from: BootTime,
    /// Raised once, when a new session is due; the key's replacement ends it.
    rekey_due: Edge,
}

impl SealingKey {
    /// A key whose session began at `birth` and asks for its successor after `rekey_after`
    /// (`None`: never by age; the responder leaves that to the initiator).
    pub(crate) fn new(
        key: &[u8; 32],
        receiver: Index,
        birth: BootTime,
        role: Role,
        rekey_after: Option<Duration>,
    ) -> Self {
        let seals_for = match role {
            Role::Initiator => INITIATOR_SEALS_FOR,
            Role::Responder => REJECT_AFTER_TIME,
        };
        Self {
            aead: AeadKey::new(data_cipher(), key),
            receiver,
            next: AtomicU64::new(0),
            seals_until: birth + seals_for,
            rekey_from: birth + rekey_after.unwrap_or(REJECT_AFTER_TIME),
            rekey_due: Edge::default(),
        }
    }

    /// Takes the next `count` numbers, all or none.
    ///
    /// # Errors
    /// When the key is too old or its numbers are used up; the counter then stays where it was.
    pub fn reserve(&self, count: usize, now: BootTime) -> Result<Counters, Refused> {
        if now >= self.seals_until {
            return Err(Refused::Expired);
        }
        let first = self
            .next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
                next.checked_add(count as u64).filter(|&end| end <= REJECT_AFTER_MESSAGES)
            })
            .map_err(|_| Refused::Exhausted)?;
        let left = first..first + count as u64;
        let due = now >= self.rekey_from || left.end > REKEY_AFTER_MESSAGES;
        let wake = if due { self.rekey_due.raise() } else { Wake::NO };
        Ok(Counters { left, wake })
    }

    /// Seals `datagram` in place: 16 bytes for the header, the padded packet, 16 for the tag.
    ///
    /// # Panics
    /// When `datagram` is shorter than [`OVERHEAD`]; the caller lays it out.
    pub fn seal(&self, counter: Counter, datagram: &mut [u8]) {
        let (header, rest) = datagram.split_at_mut(DATA_HEADER_LEN);
        let (packet, tag) = rest.split_at_mut(rest.len() - TAG_LEN);
        header.copy_from_slice(DataHeader::new(self.receiver, counter.0).as_bytes());
        tag.copy_from_slice(&self.aead.seal(counter.0, &[], packet));
    }

    /// Seals each of `datagrams` in place, as [`SealingKey::seal`] does one. Those of one length that
    /// follow each other are sealed together, which is quicker.
    ///
    /// # Panics
    /// When there are fewer counters than datagrams, or one is shorter than [`OVERHEAD`].
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

    /// Whether the key is young enough to seal, and has a counter left.
    pub(crate) fn seals_at(&self, now: BootTime) -> bool {
        now < self.seals_until && self.used() < REJECT_AFTER_MESSAGES
    }

    /// Whether a successor is due.
    pub(crate) fn wants_successor(&self) -> bool {
        self.rekey_due.is_raised()
    }

    /// Datagrams sealed so far.
    pub fn used(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Puts the counter near its end, which no test can wait for.
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

/// A datagram that authenticated but has not passed its window: only its place is known.
#[derive(Debug)]
pub struct Opened {
    pub(crate) counter: u64,
    pub(crate) plaintext_len: usize,
}

/// Opens what comes from the peer. The window lives and dies with it.
pub struct OpeningKey {
    aead: AeadKey,
    index: Index,
    generation: Generation,
    dead_from: BootTime,
    /// Raised once, by the first datagram that opens and passes the window.
    confirmed: Edge,
    window: Mutex<Window>,
}

impl OpeningKey {
    /// A key whose session began at `birth` and that the peer names by `index`.
    pub(crate) fn new(
        key: &[u8; 32],
        index: Index,
        generation: Generation,
        birth: BootTime,
    ) -> Self {
        Self {
            aead: AeadKey::new(data_cipher(), key),
            index,
            generation,
            dead_from: birth + REJECT_AFTER_TIME,
            confirmed: Edge::default(),
            window: Mutex::new(Window::default()),
        }
    }

    /// Opens the transport data message `datagram` in place; its plaintext then begins at
    /// [`DATA_HEADER_LEN`]. Any thread, any order: nothing changes but the bytes.
    ///
    /// # Errors
    /// [`DropReason::Expired`], or [`DropReason::Forged`] when it does not authenticate.
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

    /// Opens each of `datagrams`, named by its counter, in place, and says in their order what came of
    /// it, as [`OpeningKey::open`] does of one. Those of one length that follow each other are opened
    /// together, which is quicker.
    ///
    /// # Panics
    /// When a datagram is shorter than its header; what was parsed is not.
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

    /// The window, for the one thread whose turn it is. Never contended.
    pub fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Our index, by which the peer addresses this session.
    pub const fn index(&self) -> Index {
        self.index
    }

    /// Where the session stands among this end's sessions.
    pub const fn generation(&self) -> Generation {
        self.generation
    }

    /// When the key dies.
    pub(crate) const fn dead_from(&self) -> BootTime {
        self.dead_from
    }

    pub(crate) const fn confirmed(&self) -> &Edge {
        &self.confirmed
    }
}

impl fmt::Debug for OpeningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpeningKey").field("index", &self.index).finish_non_exhaustive()
    }
}

/// What seals transport data.
#[cfg(not(vpnd_bench))]
const fn data_cipher() -> Algorithm {
    Algorithm::ChaCha20Poly1305
}

#[cfg(vpnd_bench)]
fn data_cipher() -> Algorithm {
    crate::bench::data_cipher()
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

    const BIRTH: BootTime = BootTime::from_nanos(1_000);

    fn sealing(role: Role) -> SealingKey {
        let after = matches!(role, Role::Initiator).then_some(REKEY_AFTER_TIME);
        SealingKey::new(&[7; 32], Index::new(1), BIRTH, role, after)
    }

    fn opening() -> OpeningKey {
        OpeningKey::new(&[7; 32], Index::new(1), Generation(1), BIRTH)
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
    fn counters_at_the_limit_do_not_open_even_if_authentic() {
        let aead = AeadKey::new(data_cipher(), &[7; 32]);
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
