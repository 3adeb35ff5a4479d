//! The key log: the secrets of handshakes, in the form in which Wireshark reads them, so that it can decrypt a capture of
//! the tunnel's datagrams. It is off unless a capture with keys runs, and keeps nothing then.

use std::collections::VecDeque;

use vpnd_crypto::key::{PresharedKey, PublicKey, SecretKey};
use zeroize::Zeroizing;

use crate::handshake::Identity;

/// Lines of a key log. They contain our private key.
pub type Lines = Zeroizing<String>;

/// The lines that nobody has fetched yet, if it is on.
#[derive(Default)]
pub(crate) struct KeyLog(Option<VecDeque<Lines>>);

/// More than all lines of one handshake have, so that a text with keys never grows.
const CAPACITY: usize = 1024;

impl KeyLog {
    /// Logs the handshakes from now on, or no longer. What was not fetched is wiped.
    pub(crate) fn switch(&mut self, on: bool) {
        self.0 = on.then(VecDeque::new);
    }

    /// Logs one of our static keys with one of the peer's. Our key alone opens initiations of the peer, so it comes
    /// before them.
    pub(crate) fn note_pair(&mut self, identity: &Identity, remote: &PublicKey) {
        if let Some(all) = &mut self.0 {
            all.push_back(statics(identity, remote));
        }
    }

    /// Logs a handshake, before its first message with our ephemeral key leaves. Its preshared key is one of these.
    pub(crate) fn note<'k>(
        &mut self,
        (identity, remote): (&Identity, &PublicKey),
        ephemeral: &SecretKey,
        preshared: impl IntoIterator<Item = &'k PresharedKey>,
    ) {
        let Some(all) = &mut self.0 else { return };
        let mut lines = statics(identity, remote);
        put(&mut lines, "LOCAL_EPHEMERAL_PRIVATE_KEY", &ephemeral.to_base64());
        // A preshared key belongs to the ephemeral key in the line before. Without one, there is no line.
        let is_there = |key: &&PresharedKey| key.as_bytes().iter().any(|byte| *byte != 0);
        for key in preshared.into_iter().filter(is_there) {
            put(&mut lines, "PRESHARED_KEY", &key.to_base64());
        }
        all.push_back(lines);
    }

    /// The next lines.
    pub(crate) fn next(&mut self) -> Option<Lines> {
        self.0.as_mut()?.pop_front()
    }
}

fn statics(identity: &Identity, remote: &PublicKey) -> Lines {
    let mut lines = Zeroizing::new(String::with_capacity(CAPACITY));
    put(&mut lines, "LOCAL_STATIC_PRIVATE_KEY", &identity.secret().to_base64());
    put(&mut lines, "REMOTE_STATIC_PUBLIC_KEY", &remote.to_string());
    lines
}

fn put(lines: &mut String, name: &str, value: &str) {
    [name, " = ", value, "\n"].iter().for_each(|part| lines.push_str(part));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(log: &mut KeyLog, preshared: &[PresharedKey]) {
        let identity = Identity::new(SecretKey::from_bytes([1; 32]));
        let remote = SecretKey::from_bytes([2; 32]).public();
        log.note((&identity, &remote), &SecretKey::from_bytes([3; 32]), preshared);
    }

    #[test]
    fn nothing_is_kept_unless_it_is_on() {
        let mut log = KeyLog::default();
        note(&mut log, &[]);
        assert!(log.next().is_none());
        log.switch(true);
        note(&mut log, &[]);
        log.switch(false);
        assert!(log.next().is_none());
    }

    #[test]
    fn a_preshared_key_follows_its_ephemeral_key_and_none_has_no_line() {
        let mut log = KeyLog::default();
        log.switch(true);
        note(&mut log, &[PresharedKey::default(), PresharedKey::from_bytes([4; 32])]);
        let lines = log.next().unwrap();
        let text = |seed: u8| SecretKey::from_bytes([seed; 32]).to_base64();
        let expected = format!(
            "LOCAL_STATIC_PRIVATE_KEY = {}\nREMOTE_STATIC_PUBLIC_KEY = {}\n\
             LOCAL_EPHEMERAL_PRIVATE_KEY = {}\nPRESHARED_KEY = {}\n",
            *text(1),
            SecretKey::from_bytes([2; 32]).public(),
            *text(3),
            *text(4)
        );
        assert_eq!(*lines, expected);
        assert!(lines.capacity() == CAPACITY && log.next().is_none());
    }
}
