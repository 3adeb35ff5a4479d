//! Terms and keys that change while the tunnel runs. Nothing is lost on the way: the session there is
//! carries data until the next one stands.

use vpnd_crypto::key::PublicKey;

use super::{Pair, Peer};
use crate::handshake::Identity;
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
        self.config.terms = terms;
        self.identities = self.identities.replaced(identities, remotes);
        // Half-made handshakes name keys by their place.
        self.answering = None;
        self.keyring.forget_pairs(self.identities.calling());
        self.attempt = None;
        self.publish = true;
        self.unconfirmed_answers = 0;
        self.wanted = true;
        self.handle_wake(now);
    }

    /// Initiates under our next key, and goes on so once a session stands under it; says whether there
    /// is a next key.
    pub fn rotate(&mut self, now: Now) -> bool {
        if !self.identities.rotate() {
            return false;
        }
        self.publish |= self.attempt.take().is_some();
        self.wanted = true;
        self.handle_wake(now);
        true
    }

    /// Forgets the old key of whichever end has moved to its next; says whether one has.
    pub fn finish_rotation(&mut self) -> bool {
        let finished = self.identities.finish();
        if finished {
            // Its half-made handshakes name keys by their place.
            self.attempt = None;
            self.answering = None;
            self.keyring.forget_pairs(Pair::default());
            self.publish = true;
        }
        finished
    }
}
