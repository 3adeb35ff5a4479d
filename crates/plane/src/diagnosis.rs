//! Which fault is current, when it is reported, and when it is forgotten. The daemon words the messages.

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

/// The hint at a wrong public key at the other end disappears after this time without another such message.
/// Tries are five seconds apart.
const BAD_MAC1_FORGOTTEN: Duration = Duration::from_secs(20);

/// The number of unanswered handshake tries before silence counts as a fault.
pub(crate) const TRIES_BEFORE_HINT: u32 = 3;

/// Counters of the data threads since the start. The data threads do not queue these events, so that garbage
/// does not wake the control plane.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted {
    /// Handshake messages that were made for another key.
    pub bad_mac1: u64,
    /// Datagrams of this tunnel that came out of its own device.
    pub own_datagrams: u64,
    /// Datagrams that have passed through tunnels of this host too often.
    pub nested: u64,
    /// Packets of the peer that the source filter has dropped, if any.
    pub refused_sources: Option<RefusedPackets>,
    /// Whether the kernel refuses to segment what is sent to the peer.
    pub sends_singly: bool,
    /// Whether the path marks everything for congestion.
    pub marks_everything: bool,
}

/// The current faults, except those that the routes show, and a refusal of this host to send.
#[derive(Debug, Default)]
pub(crate) struct Diagnoses {
    /// The latest fault of those that end when a session is established.
    latest: Option<Trouble>,
    bad_mac1: u64,
    /// When `bad_mac1` last changed.
    bad_mac1_at: BootTime,
    misfits: Misfits,
    refused_sources: RefusedSources,
    names: Names,
    came_back: CameBack,
    duplicate: Duplicate,
}

impl Diagnoses {
    /// The most important fault. Routing loops and refusals of our own host come first, because anybody can
    /// cause the faults that messages from the network show.
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

    /// A name that cannot be looked up. It only explains that nobody answers, so it does not hide other faults.
    fn unresolved(&self) -> Option<Trouble> {
        let explains = matches!(self.latest, None | Some(Trouble::NoAnswer));
        self.names.unresolved().filter(|_| explains).cloned().map(Trouble::Unresolved)
    }

    /// Records a change of the peer's state. Returns whether to report that nobody answers. This is not
    /// reported if this host refuses to send, because then nobody can answer.
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

    /// Records a diagnosis of the protocol. Returns what to report.
    pub(crate) fn found(
        &mut self,
        now: BootTime,
        found: Diagnosis,
        is_refused: bool,
    ) -> Option<Notice> {
        match found {
            // The peer cannot confirm what this host did not send.
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

    /// Records handshake messages that were made for another key, which are the only sign of a wrong public key
    /// at the other end. The hint disappears when no more of them arrive.
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

    /// The interface of link-local addresses has changed its index.
    pub(crate) fn renumber(&mut self, old: u32, new: u32) {
        self.duplicate.renumber(old, new);
    }

    /// The configuration was reloaded.
    pub(crate) const fn reloaded(&mut self) {
        self.refused_sources.reloaded();
    }
}

impl Plane {
    /// The fault to show, if there is one.
    pub fn trouble(&self) -> Option<Trouble> {
        self.diagnoses.trouble(&self.outlook, self.reach.refusal())
    }

    /// Takes the data threads' counters. Call it after all other events, and before [`Plane::trouble`].
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

    /// Some names of the peer cannot be looked up; or all can again, if there are no failures. Only a name
    /// server that is reached through the tunnel is reported here, once. The resolver reports everything else.
    pub fn lookups_failed(&mut self, unresolved: Unresolved) {
        if self.diagnoses.names.failed(unresolved.clone()) {
            self.notify(Notice::Unresolved(unresolved));
        }
    }

    /// Reports how the routes to the peer have changed, and forgets the faults of the former ones.
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
