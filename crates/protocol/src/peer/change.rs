//! Terms and keys that change while the tunnel runs. Nothing is lost on the way: the session there is
//! carries data until the next one stands.

use vpnd_crypto::key::PublicKey;

use super::{DeviceFacts, Peer};
use crate::handshake::Identity;
use crate::session::Pair;
use crate::terms::Terms;
use crate::time::Now;

impl Peer {
    /// Takes up other terms and keys, by a handshake at once. Sessions under the old ones carry data
    /// until then.
    pub fn adopt(
        &mut self,
        now: Now,
        terms: Vec<Terms>,
        identities: Vec<Identity>,
        remotes: Vec<PublicKey>,
    ) {
        // What was confirmed before was confirmed under the old terms.
        self.follow_edges(now);
        self.terms = terms;
        self.identities = self.identities.replaced(identities, remotes);
        // Half-made handshakes name keys by their place, and are made under the old terms.
        (self.answering, self.attempt) = (None, None);
        self.keyring.demote_next();
        self.keyring.forget_pairs(self.identities.confirmed());
        self.unconfirmed_answers = 0;
        self.renew(now);
    }

    /// The device has another MTU, and `largest_packet` is the longest that crosses it. The peer is told at once;
    /// the limits of a key follow with the next session.
    pub fn device_changed(&mut self, now: Now, mtu: u16, largest_packet: u16) {
        self.follow_edges(now);
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

    /// Initiates under our next key, and goes on so once a session stands under it; says whether there
    /// is a next key.
    pub fn rotate(&mut self, now: Now) -> bool {
        self.follow_edges(now);
        if !self.identities.rotate() {
            return false;
        }
        self.attempt = None;
        self.renew(now);
        true
    }

    /// Only a session made from now on will do.
    fn renew(&mut self, now: Now) {
        self.renewing = Some(self.generation);
        self.wanted = true;
        self.handle_wake(now);
    }

    /// Forgets the old key of whichever end has moved to its next; says whether one has.
    pub fn finish_rotation(&mut self) -> bool {
        let finished = self.identities.finish();
        if finished {
            // Its half-made handshakes name keys by their place.
            self.wanted |= self.attempt.take().is_some();
            self.answering = None;
            self.keyring.forget_pairs(Pair::default());
        }
        finished
    }
}
