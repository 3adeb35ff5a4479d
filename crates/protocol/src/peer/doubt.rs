//! Doubts about an address that a handshake has chosen among several.
//!
//! An initiation may go to several addresses, and the first response decides (see the module `race`). The response proves that
//! the peer has received the initiation, but not where: an attacker on the path can hold it until another address was asked
//! as well, and deliver it with that address as its source. Data would go to where nobody is, or to a third party, if the
//! attacker also controls a name server.
//!
//! So the other addresses that were asked get a keepalive, which confirms the session wherever the peer is. Then all of them are
//! probed every [`PROBES_APART`]. The doubt is over as soon as the chosen address has answered. If another one has answered, and
//! the chosen one has not for [`MISSING_AFTER`] after that, the path moves there, on the session there is.
//!
//! A `WireGuard` peer answers no PROBE, and its silence proves nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::roaming::MISSING_AFTER;
use super::{Peer, Transmit};
use crate::time::{BootTime, Now};

/// From one probe of an address to the next.
const PROBES_APART: Duration = Duration::from_millis(250);
/// After this time without any answer the doubt is over: the rules for a silent peer apply.
const DOUBTED_FOR: Duration = Duration::from_secs(10);

/// A choice that is not proven yet.
#[derive(Debug)]
pub(super) struct Doubt {
    chosen: SocketAddr,
    /// The other addresses that were asked.
    others: Vec<SocketAddr>,
    since: BootTime,
    /// Since when one of the others has answered.
    elsewhere_since: Option<BootTime>,
    next_at: BootTime,
}

impl Doubt {
    /// The doubt about `chosen`, if other addresses were asked too.
    pub(super) fn of(now: BootTime, chosen: SocketAddr, asked: &[SocketAddr]) -> Option<Self> {
        let others: Vec<_> = asked.iter().copied().filter(|to| *to != chosen).collect();
        let next_at = now + PROBES_APART;
        let doubt = Self { chosen, others, since: now, elsewhere_since: None, next_at };
        (!doubt.others.is_empty()).then_some(doubt)
    }

    /// All addresses that were asked.
    pub(super) fn asked(&self) -> impl Iterator<Item = SocketAddr> {
        self.others.iter().copied().chain([self.chosen])
    }

    /// Whether the chosen address has not answered for long after another one did.
    fn is_confirmed(&self, now: BootTime) -> bool {
        self.elsewhere_since.is_some_and(|since| now >= since + MISSING_AFTER)
    }
}

impl Peer {
    /// When the addresses are to be probed.
    pub(super) fn doubt_deadline(&self) -> Option<BootTime> {
        self.paths.doubt.as_ref().map(|doubt| doubt.next_at)
    }

    /// Confirms the session to a peer that is at another address than the chosen one. That is greeted later, so that the
    /// newest counter goes there.
    pub(super) fn greet_others(&mut self, now: Now) {
        let current = self.keyring.current().filter(|_| self.frames_flow());
        let sealing = current.map(|session| Arc::clone(&session.sealing));
        let others = self.paths.doubt.as_ref().map(|doubt| doubt.others.clone());
        let Some((sealing, others)) = sealing.zip(others) else { return };
        for to in others {
            // Most of them are lost, and that is not the path's loss.
            if self.send_sealed(now, &sealing, Transmit { to, from: None }, &[]) {
                sealing.set_aside();
            }
        }
    }

    /// Probes the addresses, and moves the path if the chosen one was wrong.
    pub(super) fn follow_doubt(&mut self, now: Now) {
        let Some(mut doubt) = self.paths.doubt.take() else { return };
        if self.endpoint() != Some(doubt.chosen) {
            // The first greeting went to where the peer may not be.
            self.greet(now);
            return;
        }
        if self.is_dispelled(now, &doubt) {
            return;
        }
        let elsewhere = self.paths.alternatives.answering(&doubt.others, doubt.since);
        doubt.elsewhere_since = doubt.elsewhere_since.or_else(|| elsewhere.map(|_| now.boot));
        if let Some(to) = elsewhere.filter(|_| doubt.is_confirmed(now.boot)) {
            self.move_to(now, to, false);
            self.greet(now);
            return;
        }
        if now.boot >= doubt.next_at {
            doubt.next_at = now.boot + PROBES_APART;
            self.probe_doubted(now, doubt);
        } else {
            self.paths.doubt = Some(doubt);
        }
    }

    fn probe_doubted(&mut self, now: Now, doubt: Doubt) {
        let asked: Vec<_> = doubt.asked().filter(|_| self.can_probe()).collect();
        self.paths.doubt = Some(doubt);
        self.forget_others();
        asked.into_iter().for_each(|to| self.send_probe(now, to));
    }

    /// Whether the chosen address has answered, or nothing can be found out.
    fn is_dispelled(&self, now: Now, doubt: &Doubt) -> bool {
        let since = doubt.since;
        let probed = self.paths.alternatives.answering(&[doubt.chosen], since);
        let is_late = now.boot >= since + DOUBTED_FOR;
        probed.is_some() || self.paths.answered_at >= Some(since) || is_late || !self.frames_flow()
    }
}
