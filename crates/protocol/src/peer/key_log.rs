//! The key log of the handshakes from now on, for a capture.

use super::Peer;
use crate::key_log::Lines;
use crate::time::Now;

impl Peer {
    /// Logs the keys of handshakes from now on, and starts one at once, because only sessions whose handshake is captured
    /// can be decrypted. The session carries data until it completes.
    pub fn start_key_log(&mut self, now: Now) {
        self.follow_flags(now);
        self.key_log.switch(true);
        for (identity, remote) in self.identities.pairs() {
            self.key_log.note_pair(identity, remote);
        }
        self.renew(now);
    }

    /// Logs no more keys, and wipes what was not fetched.
    pub fn stop_key_log(&mut self) {
        self.key_log.switch(false);
    }

    /// The next lines of the key log. Call this before a datagram is sent: they belong before it.
    pub fn poll_key_log(&mut self) -> Option<Lines> {
        self.key_log.next()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use vpnd_crypto::key::{PresharedKey, SecretKey};

    use super::*;
    use crate::activity::Activity;
    use crate::handshake::Identity;
    use crate::peer::Config;
    use crate::terms::{Protocol, Terms};
    use crate::time::{BootTime, WallTime};

    fn peer() -> Peer {
        let [ours, theirs] = [1, 2].map(|seed| SecretKey::from_bytes([seed; 32]));
        let terms = vec![Terms::new(Protocol::WireGuard, &PresharedKey::from_bytes([3; 32]))];
        let config = Config::new(vec![Identity::new(ours)], vec![theirs.public()], terms, 1420);
        let rng = Box::new(StdRng::seed_from_u64(7));
        Peer::new(config, Arc::new(Activity::default()), rng, at(0))
    }

    fn at(seconds: u64) -> Now {
        let since = std::time::Duration::from_secs(seconds);
        Now { boot: BootTime::default() + since, wall: WallTime::from_unix(since) }
    }

    #[test]
    fn a_handshake_is_logged_before_it_leaves_and_only_if_asked() {
        let mut peer = peer();
        peer.handle_endpoints(at(1), vec!["192.0.2.1:1".parse().unwrap()]);
        assert!(peer.poll_key_log().is_none());
        // The first attempt is abandoned, because its keys were not kept.
        peer.start_key_log(at(10));
        let statics = peer.poll_key_log().unwrap();
        assert!(
            statics.starts_with("LOCAL_STATIC_PRIVATE_KEY = AQEB")
                && !statics.contains("EPHEMERAL")
        );
        let lines = peer.poll_key_log().unwrap();
        let names: Vec<_> = lines.lines().filter_map(|line| line.split(' ').next()).collect();
        let expected = [
            "LOCAL_STATIC_PRIVATE_KEY",
            "REMOTE_STATIC_PUBLIC_KEY",
            "LOCAL_EPHEMERAL_PRIVATE_KEY",
            "PRESHARED_KEY",
        ];
        assert_eq!(names, expected);
        peer.stop_key_log();
        peer.handle_wake(at(30));
        assert!(peer.poll_key_log().is_none());
    }
}
