//! Changes of terms and keys at run time. No packet is lost: the current session carries data until the next
//! one is established.

use std::net::SocketAddr;
use std::time::Duration;

use vpnd_crypto::key::{PresharedKey, PublicKey};

#[cfg(doc)]
use super::Config;
use super::{DeviceFacts, Peer};
use crate::endpoint::{Roam, Sources};
use crate::handshake::Identity;
use crate::session::Pair;
use crate::terms::Terms;
use crate::time::Now;

/// The settings that do not concern handshakes or keys, and that may change while the tunnel runs. They have the
/// meaning of the same fields of [`Config`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// See [`Config::keepalive`].
    pub keepalive: Option<Duration>,
    /// See [`Config::dead_after`].
    pub dead_after: Duration,
    /// See [`Config::watch`].
    pub watch: bool,
    /// See [`Config::roam`].
    pub roam: Roam,
    /// See [`Config::return_after`].
    pub return_after: Duration,
    /// See [`Config::sources`].
    pub sources: Sources,
    /// See [`Config::dscp`].
    pub dscp: u8,
    /// See [`Config::raise_after`].
    pub raise_after: Duration,
    /// See [`Config::tests_segmentation`].
    pub tests_segmentation: bool,
}

impl Peer {
    /// Uses other settings from now on. Sessions and the path stay.
    pub fn retune(&mut self, now: Now, tuning: &Tuning) {
        self.follow_flags(now);
        self.timers.set_keepalive(tuning.keepalive);
        self.life.retune(tuning.dead_after, tuning.watch);
        self.port.retune(tuning.dead_after);
        self.paths.retune(tuning);
        self.handle_wake(now);
    }

    /// Changes to other terms and keys, with an immediate handshake. Sessions under the old ones carry data
    /// until it completes.
    pub fn adopt(
        &mut self,
        now: Now,
        terms: Vec<Terms>,
        identities: Vec<Identity>,
        remotes: Vec<PublicKey>,
    ) {
        // Earlier sessions were confirmed under the old terms.
        self.follow_flags(now);
        self.terms = terms;
        self.identities = self.identities.replaced(identities, remotes);
        self.drop_pending();
        self.keyring.forget_pairs(self.identities.confirmed());
        self.renew(now);
    }

    /// Changes to another preshared key under all terms, with an immediate handshake. Sessions under the old
    /// key carry data until it completes. While the other end still has the old key, no answer opens, and the
    /// handshake is tried again as if it were unanswered.
    pub fn set_preshared(&mut self, now: Now, preshared: &PresharedKey) {
        self.follow_flags(now);
        self.terms =
            self.terms.iter().map(|terms| Terms::new(terms.protocol(), preshared)).collect();
        self.drop_pending();
        self.renew(now);
    }

    /// Pending handshakes refer to keys by index, and use the old terms.
    fn drop_pending(&mut self) {
        (self.answering, self.attempt) = (None, None);
        self.keyring.demote_next();
        self.unconfirmed_answers = 0;
    }

    /// Changes the interval of keepalives, and whether silence alone shows that the peer is dead.
    pub fn set_keepalive(&mut self, now: Now, keepalive: Option<Duration>, watch: bool) {
        self.timers.set_keepalive(keepalive);
        self.life.set_watched(watch);
        self.handle_wake(now);
    }

    /// Sends to this address from now on, as if the peer had proved it, until the peer is heard from another.
    /// Without a session only the configured addresses count.
    pub fn go_to(&mut self, now: Now, to: SocketAddr) {
        self.follow_flags(now);
        if self.keyring.current().is_some() && self.endpoint() != Some(to) {
            self.paths.settle_at(now.boot, to, None);
        }
        self.handle_wake(now);
    }

    /// The device has another MTU, and `largest_packet` is the longest packet that crosses it. The peer is
    /// informed at once; the limits of a key change with the next session.
    pub fn device_changed(&mut self, now: Now, mtu: u16, largest_packet: u16) {
        self.follow_flags(now);
        self.device = DeviceFacts { mtu, largest_packet, ..self.device };
        if self.frames_flow() {
            self.greet(now);
        }
        if let Some((mtu, mac)) =
            self.greeting.as_ref().map(|greeting| (greeting.mtu, greeting.mac))
        {
            self.compare_devices(mtu, mac);
        }
        self.handle_wake(now);
    }

    /// Initiates under our next key, and keeps using it once a session is established under it; returns
    /// whether there is a next key.
    pub fn rotate(&mut self, now: Now) -> bool {
        self.follow_flags(now);
        if !self.identities.rotate() {
            return false;
        }
        self.attempt = None;
        self.renew(now);
        true
    }

    /// Only a session made from now on is acceptable.
    pub(super) fn renew(&mut self, now: Now) {
        self.renewing = Some(self.generation);
        self.wanted = true;
        self.handle_wake(now);
    }

    /// Removes the previous key of each end that has moved to its next one; returns whether any was removed.
    pub fn finish_rotation(&mut self) -> bool {
        let finished = self.identities.finish();
        if finished {
            // Its pending handshakes refer to keys by index.
            self.wanted |= self.attempt.take().is_some();
            self.answering = None;
            self.keyring.forget_pairs(Pair::default());
        }
        finished
    }
}
