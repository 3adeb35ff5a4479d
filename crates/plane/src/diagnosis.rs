//! Which fault stands, what is news of it, and when it is forgotten. The sentences are the daemon's.

mod came_back;
mod duplicate;
mod misfits;
mod names;
mod refused_sources;
mod trouble;

use std::time::Duration;

use vpnd_protocol::peer::{Change, Diagnosis};
use vpnd_protocol::time::BootTime;
use vpnd_tunnel::engine::RefusedPackets;

use crate::effect::Notice;
use crate::outlook::Outlook;
use crate::plane::Plane;
use crate::reach::Refused;
use crate::state::Found;

use came_back::CameBack;
use duplicate::Duplicate;
use misfits::Misfits;
use names::Names;
use refused_sources::RefusedSources;

pub use names::{Failure, Unresolved};
pub use trouble::Trouble;

/// The hint at a wrong public key at the other end goes after this time without another such message. Tries are five
/// seconds apart.
const BAD_MAC1_FORGOTTEN: Duration = Duration::from_secs(20);

/// Unanswered tries of a handshake before silence is a fault.
pub(crate) const TRIES_BEFORE_HINT: u32 = 3;

/// What the data threads only count and never queue, so that garbage wakes nobody. Numbers are those since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted {
    /// Handshake messages that were made for another key.
    pub bad_mac1: u64,
    /// Own datagrams that came out of the device.
    pub own_datagrams: u64,
    /// Datagrams that have been through tunnels of this host too often.
    pub nested: u64,
    /// Packets of the peer that the source filter has dropped, if it has.
    pub refused_sources: Option<RefusedPackets>,
    /// Whether the kernel refuses to segment what is sent to the peer.
    pub sends_singly: bool,
    /// Whether the path marks everything for congestion.
    pub marks_everything: bool,
}

/// The faults that stand, except for those that the routes show and for a refusal of this host.
#[derive(Debug, Default)]
pub(crate) struct Diagnoses {
    /// The latest that a session ends.
    latest: Option<Trouble>,
    bad_mac1: u64,
    /// When that last changed.
    bad_mac1_at: BootTime,
    misfits: Misfits,
    refused_sources: RefusedSources,
    names: Names,
    came_back: CameBack,
    duplicate: Duplicate,
}

impl Diagnoses {
    /// The latest fault, which a session that stands ends, or else what does not fit. What leads the tunnel into
    /// itself comes first, and what our own host refuses: anybody may send what looks like another tunnel's datagram.
    fn trouble(&self, outlook: &Outlook, refused: Option<Refused>) -> Option<Trouble> {
        let inner_source = || outlook.inner_source.clone().map(Trouble::InnerSource);
        let looped = outlook.loops.first().cloned().map(Trouble::Loop);
        let first = looped.or_else(|| refused.map(Trouble::Refused));
        let first = first.or_else(|| self.came_back.trouble().cloned());
        let first = first.or_else(|| self.duplicate.addresses().map(Trouble::DuplicateKey));
        let first = first.or_else(inner_source).or_else(|| self.unresolved());
        let first = first.or_else(|| self.latest.clone()).or_else(|| self.misfits.trouble());
        first.or_else(|| self.refused_sources.current().map(Trouble::RefusedSource))
    }

    /// A name that cannot be looked up explains why nobody answers, and nothing else.
    fn unresolved(&self) -> Option<Trouble> {
        let explains = matches!(self.latest, None | Some(Trouble::NoAnswer));
        self.names.unresolved().filter(|_| explains).cloned().map(Trouble::Unresolved)
    }

    /// Takes note of a change of the peer's state. Returns whether it is news that nobody answers. Where this host
    /// refuses to send, nobody can.
    pub(crate) fn changed(&mut self, change: &Change, is_refused: bool) -> bool {
        match change {
            Change::Established(_) => self.latest = None,
            Change::Closed => self.latest = Some(Trouble::Closed),
            Change::GaveUp if !is_refused => {
                self.latest.get_or_insert(Trouble::NoAnswer);
            }
            Change::Initiating { attempt, .. } => {
                let is_news = *attempt > TRIES_BEFORE_HINT && !is_refused && self.latest.is_none();
                if is_news {
                    self.latest = Some(Trouble::NoAnswer);
                }
                return is_news;
            }
            Change::GaveUp
            | Change::Lost
            | Change::Alive
            | Change::Dead
            | Change::PathCarries { .. }
            | Change::Segmentation { .. }
            | Change::Moved { .. }
            | Change::Switched { .. } => {}
        }
        false
    }

    /// Takes note of what the protocol has found. Returns what people should know.
    pub(crate) fn found(
        &mut self,
        now: BootTime,
        found: Diagnosis,
        is_refused: bool,
    ) -> Option<Notice> {
        match found {
            // Of a peer that is not reached this would say nothing true.
            Diagnosis::NeverConfirms(_) if is_refused => return None,
            Diagnosis::NeverConfirms(count) => self.latest = Some(Trouble::NeverConfirms(count)),
            Diagnosis::AnswerDoesNotOpen => self.latest = Some(Trouble::AnswerDoesNotOpen),
            Diagnosis::UnknownPeer { key, .. } => self.latest = Some(Trouble::UnknownPeer(key)),
            Diagnosis::StaleInitiation { .. } => {
                self.latest.get_or_insert(Trouble::StaleInitiation);
            }
            Diagnosis::DuplicateKey { addresses } if !self.duplicate.note(now, addresses) => {
                return Some(Notice::Again(found));
            }
            Diagnosis::Devices { same_mac, mtus } => {
                return self.misfits.compare(same_mac, mtus).map(Notice::Diagnosis);
            }
            Diagnosis::DuplicateKey { .. }
            | Diagnosis::StampAhead { .. }
            | Diagnosis::RotationUnanswered
            | Diagnosis::UpgradeFailed => {}
        }
        Some(Notice::Diagnosis(found))
    }

    /// Takes note of handshake messages that were made for another key: the only sign of a wrong public key at the
    /// other end. The hint goes when no more of them come.
    fn watch_bad_mac1(&mut self, now: BootTime, count: u64, connected: bool) -> Option<Notice> {
        if count == self.bad_mac1 || connected {
            self.bad_mac1 = count;
            let is_old = now.saturating_since(self.bad_mac1_at) >= BAD_MAC1_FORGOTTEN;
            self.latest.take_if(|trouble| is_old && matches!(trouble, Trouble::BadMac1(_)));
            return None;
        }
        (self.bad_mac1, self.bad_mac1_at) = (count, now);
        let says_less = |trouble: &Trouble| {
            matches!(trouble, Trouble::BadMac1(_) | Trouble::NoAnswer | Trouble::Closed)
        };
        if self.latest.as_ref().is_none_or(says_less) {
            self.latest = Some(Trouble::BadMac1(count));
        }
        Some(Notice::BadMac1(count))
    }

    /// The interface of link-local addresses has another number.
    pub(crate) fn renumber(&mut self, old: u32, new: u32) {
        self.duplicate.renumber(old, new);
    }

    /// The configuration was reloaded.
    pub(crate) const fn reloaded(&mut self) {
        self.refused_sources.reloaded();
    }
}

impl Plane {
    /// The fault that a person should know of first, if one stands.
    pub fn trouble(&self) -> Option<Trouble> {
        self.diagnoses.trouble(&self.outlook, self.reach.refusal())
    }

    /// What the data threads have counted by now. To be called after everything else that has happened, and before
    /// [`Plane::trouble`].
    pub fn counters_seen(&mut self, now: BootTime, counted: Counted) {
        let Counted { bad_mac1, own_datagrams, nested, refused_sources, .. } = counted;
        let Counted { sends_singly, marks_everything, .. } = counted;
        self.states.found(Found { sends_singly, marks_everything });
        let connected = self.is_connected();
        let notices = [
            self.diagnoses.watch_bad_mac1(now, bad_mac1, connected),
            self.diagnoses.refused_sources.watch(now, refused_sources).map(Notice::RefusedSource),
            self.diagnoses.came_back.watch(now, (own_datagrams, nested), &self.outlook),
        ];
        self.diagnoses.duplicate.forget(now);
        notices.into_iter().flatten().for_each(|notice| self.notify(notice));
    }

    /// Names of the peer cannot be looked up, or can be again if there are none. That a name server is reached through
    /// the tunnel is reported when it is new; the resolver reports the rest.
    pub fn lookups_failed(&mut self, unresolved: Unresolved) {
        if self.diagnoses.names.failed(unresolved.clone()) {
            self.notify(Notice::Unresolved(unresolved));
        }
    }

    /// Reports how the routes to the peer have changed, and forgets what the former ones explain.
    pub(crate) fn compare_routes(&mut self, before: &Outlook) {
        let news = self.outlook.news(before);
        news.into_iter().for_each(|notice| self.notify(notice));
        if before.current != self.outlook.current {
            self.diagnoses.came_back.forget();
        }
    }
}

#[cfg(test)]
mod tests;
