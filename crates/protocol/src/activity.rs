//! The data threads' reports to the control plane: a few atomics, stored at most once per batch, and wake flags
//! for events that cannot wait for the next poll.

use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::session::Generation;
use crate::time::BootTime;
use crate::wake_flag::{Wake, WakeFlag};

/// The source of an authentic datagram, and the address of ours that it was sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The peer's address.
    pub from: SocketAddr,
    /// Our address, if the kernel reported it.
    pub local: Option<IpAddr>,
    /// The session whose newest counter the datagram carried.
    pub generation: Generation,
}

/// A datagram of the peer came twice, from two addresses: somebody on the path sends copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contested {
    /// The source of the first one, which was accepted.
    pub first: SocketAddr,
    /// The source of the second one.
    pub copy: SocketAddr,
}

/// The start of a condition that lasts; zero if the condition does not hold.
#[derive(Debug, Default)]
struct Since(AtomicU64);

impl Since {
    fn begin(&self, now: BootTime) {
        if self.get().is_none() {
            self.0.store(now.as_nanos(), Ordering::Relaxed);
        }
    }

    /// Stores only if that changes the value, because the data path calls this for nearly every batch.
    fn end(&self) {
        if self.get().is_some() {
            self.0.store(0, Ordering::Relaxed);
        }
    }

    fn get(&self) -> Option<BootTime> {
        Some(self.0.load(Ordering::Relaxed)).filter(|&n| n != 0).map(BootTime::from_nanos)
    }
}

/// A timestamp that threads share; zero means never.
#[derive(Debug, Default)]
struct Moment(AtomicU64);

impl Moment {
    fn set(&self, now: BootTime) {
        // A thread that was delayed in a send may store an earlier timestamp late.
        self.0.fetch_max(now.as_nanos(), Ordering::SeqCst);
    }

    fn get(&self) -> Option<BootTime> {
        Some(self.0.load(Ordering::SeqCst)).filter(|&n| n != 0).map(BootTime::from_nanos)
    }
}

/// The traffic of one tunnel as all its threads see it.
#[derive(Debug, Default)]
pub struct Activity {
    data_sent: Moment,
    sent: Moment,
    data_received: Moment,
    received: Moment,
    /// When an initiation of the peer was last received. It proves less than a datagram of a session.
    called: Moment,
    bytes_sent: AtomicU64,
    bytes_received: AtomicU64,
    packets_sent: AtomicU64,
    packets_received: AtomicU64,
    too_big: AtomicU64,
    active: AtomicBool,
    /// Raised by outbound when it has packets and no key; lowered when a key is published or the attempt is
    /// given up.
    pub want_handshake: WakeFlag,
    /// Raised by outbound when the path's source address no longer exists on this host.
    pub source_lost: WakeFlag,
    /// Raised by inbound when a datagram of the peer came from another address.
    new_source: WakeFlag,
    /// The source of the peer's last datagram, if it differs from the path.
    source: Mutex<Option<Source>>,
    /// Since when datagrams of the peer come only from other addresses than the path's.
    unheard: Since,
    /// The same, but a copy from the path's address also ends it.
    absent: Since,
    /// Raised by inbound when a copy of a datagram came from another address.
    new_contest: WakeFlag,
    contest: Mutex<Option<Contested>>,
}

/// The timestamps that all timer rules derive from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timestamps {
    /// When transport data other than a keepalive was last sent.
    pub data_sent: Option<BootTime>,
    /// When an authenticated datagram of any kind was last sent.
    pub sent: Option<BootTime>,
    /// When transport data other than a keepalive was last received.
    pub data_received: Option<BootTime>,
    /// When a datagram of a session, or a response to an initiation of ours, was last received.
    pub received: Option<BootTime>,
    /// When an initiation of the peer was last received. It does not prove that the peer receives our
    /// datagrams; it rather suggests the opposite.
    pub called: Option<BootTime>,
}

/// The traffic through the tunnel so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// UDP payload bytes sent.
    pub bytes_sent: u64,
    /// UDP payload bytes received that were authentic.
    pub bytes_received: u64,
    /// Inner packets sent.
    pub packets_sent: u64,
    /// Inner packets received.
    pub packets_received: u64,
    /// Datagrams that were too large for the path to carry in one packet.
    pub too_big: u64,
}

/// The totals of one batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Datagrams; keepalives and packets that were dropped after authentication count.
    pub datagrams: u64,
    /// Datagrams that carried a packet.
    pub packets: u64,
    /// UDP payload bytes.
    pub bytes: u64,
}

impl Activity {
    /// Records a batch of sealed datagrams.
    pub fn sent(&self, now: BootTime, tally: Tally) -> Wake {
        self.sent.set(now);
        if tally.packets > 0 {
            self.data_sent.set(now);
        }
        self.bytes_sent.fetch_add(tally.bytes, Ordering::Relaxed);
        self.packets_sent.fetch_add(tally.packets, Ordering::Relaxed);
        self.stir()
    }

    /// Records a batch of datagrams that opened and passed their windows.
    pub fn received(&self, now: BootTime, tally: Tally) -> Wake {
        if tally.datagrams == 0 {
            return Wake::NO;
        }
        self.received.set(now);
        if tally.packets > 0 {
            self.data_received.set(now);
        }
        self.bytes_received.fetch_add(tally.bytes, Ordering::Relaxed);
        self.packets_received.fetch_add(tally.packets, Ordering::Relaxed);
        self.stir()
    }

    /// Records an initiation of the peer.
    pub(crate) fn called(&self, now: BootTime, bytes: usize) -> Wake {
        self.called.set(now);
        self.bytes_received.fetch_add(bytes as u64, Ordering::Relaxed);
        self.stir()
    }

    /// Counts a datagram that was too large for the path.
    pub fn path_too_small(&self) {
        self.too_big.fetch_add(1, Ordering::Relaxed);
    }

    /// Reports the address that an authentic datagram with the newest counter came from.
    pub fn heard_from(&self, source: Source) -> Wake {
        *lock(&self.source) = Some(source);
        self.new_source.raise()
    }

    /// Records that an authentic, newest datagram came from another address than the path's.
    pub(crate) fn heard_elsewhere(&self, now: BootTime) {
        self.unheard.begin(now);
        self.absent.begin(now);
    }

    /// Records that an authentic, newest datagram came from the path's address.
    pub(crate) fn heard_there(&self) {
        self.unheard.end();
        self.absent.end();
    }

    /// Records that a copy of a datagram from another address came from the path's address.
    pub(crate) fn copied_there(&self) {
        self.absent.end();
    }

    /// Since when datagrams of the peer come only from other addresses than the path's.
    pub(crate) fn unheard_since(&self) -> Option<BootTime> {
        self.unheard.get()
    }

    /// Since when nothing comes from the path's address, not even a copy, while datagrams of the peer come from
    /// other addresses.
    pub(crate) fn absent_since(&self) -> Option<BootTime> {
        self.absent.get()
    }

    /// Records that an authentic, newest datagram came from the path's address, and to our source address. An
    /// earlier report of another source is then out of date. Its flag stays raised, so that a peer that sends
    /// from two addresses in turn does not wake the control plane each time.
    pub(crate) fn heard_here(&self) {
        self.heard_there();
        if self.has_source() {
            *lock(&self.source) = None;
        }
    }

    /// The timestamps, for the timer rules.
    pub fn timestamps(&self) -> Timestamps {
        Timestamps {
            data_sent: self.data_sent.get(),
            sent: self.sent.get(),
            data_received: self.data_received.get(),
            received: self.received.get(),
            called: self.called.get(),
        }
    }

    /// The totals, for `status`.
    pub fn traffic(&self) -> Traffic {
        Traffic {
            bytes_sent: self.bytes_sent.load(Ordering::Relaxed),
            bytes_received: self.bytes_received.load(Ordering::Relaxed),
            packets_sent: self.packets_sent.load(Ordering::Relaxed),
            packets_received: self.packets_received.load(Ordering::Relaxed),
            too_big: self.too_big.load(Ordering::Relaxed),
        }
    }

    /// Whether there is a reported source that was not taken yet. Until it is taken, newer ones replace it
    /// without a wake-up.
    pub(crate) fn has_source(&self) -> bool {
        self.new_source.is_raised()
    }

    /// The newest source, without taking it. None if a later datagram came from the path's address.
    pub(crate) fn newest_source(&self) -> Option<Source> {
        if !self.has_source() {
            return None;
        }
        *lock(&self.source)
    }

    /// The newest source not yet taken.
    pub(crate) fn take_source(&self) -> Option<Source> {
        self.new_source.take().then(|| lock(&self.source).take()).flatten()
    }

    /// Reports the addresses that a datagram came from first, and that a copy of it came from.
    pub(crate) fn contested(&self, contested: Contested) -> Wake {
        *lock(&self.contest) = Some(contested);
        self.new_contest.raise()
    }

    /// Whether there is a contest that was not taken yet. Until it is taken, newer ones replace it without a
    /// wake-up.
    pub(crate) fn has_contest(&self) -> bool {
        self.new_contest.is_raised()
    }

    /// The newest contest not yet taken.
    pub(crate) fn take_contest(&self) -> Option<Contested> {
        self.new_contest.take().then(|| lock(&self.contest).take()).flatten()
    }

    /// Whether traffic has flowed since [`Activity::rest`].
    pub(crate) fn is_active(&self) -> bool {
        self.active.load(Ordering::SeqCst)
    }

    /// Declares the tunnel idle, unless there was traffic since `seen`. The caller then sleeps until its next
    /// deadline, and the next batch wakes it. Both sides store, then load, so at least one of them sees the
    /// other's store.
    pub(crate) fn rest(&self, seen: Timestamps) {
        self.active.store(false, Ordering::SeqCst);
        if self.timestamps() != seen {
            self.active.store(true, Ordering::SeqCst);
        }
    }

    fn stir(&self) -> Wake {
        Wake::if_due(
            !self.active.load(Ordering::SeqCst) && !self.active.swap(true, Ordering::SeqCst),
        )
    }
}

/// The contents of a poisoned lock are still valid: they are only replaced as a whole.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_tunnel_is_woken_by_its_first_batch_only() {
        let activity = Activity::default();
        let batch = Tally { datagrams: 1, packets: 1, bytes: 100 };
        assert!(activity.sent(BootTime::from_nanos(1), batch).is_due());
        assert!(!activity.sent(BootTime::from_nanos(2), batch).is_due());
        activity.rest(activity.timestamps());
        assert!(!activity.is_active());
        assert!(activity.received(BootTime::from_nanos(3), batch).is_due());
    }

    #[test]
    fn a_source_is_out_of_date_once_the_peer_is_heard_where_it_was() {
        let activity = Activity::default();
        let heard = |port| {
            let from = SocketAddr::from(([192, 0, 2, 1], port));
            activity.heard_from(Source { from, local: None, generation: Generation::default() })
        };
        let newest = || activity.newest_source().map(|source| source.from.port());
        activity.heard_here();
        assert!(heard(1).is_due());
        assert_eq!(newest(), Some(1));
        activity.heard_here();
        assert_eq!(newest(), None);
        assert!(!heard(1).is_due(), "nobody has looked yet");
        assert_eq!(newest(), Some(1));
        assert_eq!(activity.take_source().map(|source| source.from.port()), Some(1));
        assert!(heard(2).is_due());
        activity.heard_here();
        assert_eq!(activity.take_source(), None);
        assert!(!activity.has_source());
    }

    #[test]
    fn a_copy_shows_that_the_peer_may_be_there_but_not_that_it_was_heard() {
        let activity = Activity::default();
        let at = BootTime::from_nanos;
        let since = || (activity.unheard_since(), activity.absent_since());
        activity.heard_elsewhere(at(1));
        activity.heard_elsewhere(at(2));
        assert_eq!(since(), (Some(at(1)), Some(at(1))));
        activity.copied_there();
        activity.heard_elsewhere(at(3));
        assert_eq!(since(), (Some(at(1)), Some(at(3))));
        activity.heard_here();
        assert_eq!(since(), (None, None));
    }

    #[test]
    fn a_batch_that_slips_in_before_resting_keeps_it_awake() {
        let activity = Activity::default();
        let seen = activity.timestamps();
        let _ =
            activity.sent(BootTime::from_nanos(1), Tally { datagrams: 1, packets: 0, bytes: 32 });
        activity.rest(seen);
        assert!(activity.is_active());
    }
}
