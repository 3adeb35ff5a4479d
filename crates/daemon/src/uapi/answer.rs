//! The answers: the state as `wg` reads it, and the numbers of errors.

use std::fmt::Write as _;
use std::time::Duration;

use ipnet::IpNet;
use vpnd_crypto::{PresharedKey, PublicKey};
use zeroize::Zeroizing;

use super::lines::is_zero;

/// A tunnel's state, as far as the protocol has words for it. The private key is not part of it.
pub(crate) struct Shown {
    /// The UDP port.
    pub(crate) listen_port: u16,
    /// The mark of the tunnel's datagrams; 0 is none.
    pub(crate) fwmark: u32,
    /// The peer's key; without a peer, nothing that follows is shown.
    pub(crate) peer: Option<PublicKey>,
    /// The preshared key in force; all zeros if there is none.
    pub(crate) preshared: PresharedKey,
    /// Where the peer is, if that is known: an address and a port.
    pub(crate) endpoint: Option<String>,
    /// The time of the last handshake, since 1970.
    pub(crate) handshake: Option<Duration>,
    /// Bytes to the peer.
    pub(crate) sent: u64,
    /// Bytes from the peer.
    pub(crate) received: u64,
    /// In seconds; 0 is off.
    pub(crate) keepalive: u64,
    /// The addresses that the peer may use.
    pub(crate) allowed_ips: Vec<IpNet>,
}

/// More than the answer has without its addresses, so that a text with a key never grows.
const FIXED_PART: usize = 1024;
/// More than the line of an address has.
const ADDRESS: usize = 64;

impl Shown {
    /// The answer to `get`. Only root gets the preshared key.
    pub(super) fn answer(&self, is_root: bool) -> Zeroizing<String> {
        let size = FIXED_PART + ADDRESS * self.allowed_ips.len();
        let mut text = Zeroizing::new(String::with_capacity(size));
        put(&mut text, "listen_port", self.listen_port);
        if self.fwmark != 0 {
            put(&mut text, "fwmark", self.fwmark);
        }
        if let Some(key) = &self.peer {
            put_key(&mut text, "public_key", key.as_bytes());
            if is_root && !is_zero(self.preshared.as_bytes()) {
                put_key(&mut text, "preshared_key", self.preshared.as_bytes());
            }
            self.put_peer(&mut text);
        }
        put(&mut text, "errno", 0);
        text.push('\n');
        text
    }

    fn put_peer(&self, text: &mut String) {
        put(text, "protocol_version", 1);
        if let Some(endpoint) = &self.endpoint {
            put(text, "endpoint", endpoint);
        }
        if let Some(at) = self.handshake {
            put(text, "last_handshake_time_sec", at.as_secs());
            put(text, "last_handshake_time_nsec", at.subsec_nanos());
        }
        put(text, "tx_bytes", self.sent);
        put(text, "rx_bytes", self.received);
        put(text, "persistent_keepalive_interval", self.keepalive);
        for network in &self.allowed_ips {
            put(text, "allowed_ip", network.trunc());
        }
    }
}

/// The answer to a `set` that was carried out.
pub(super) fn done() -> Zeroizing<String> {
    Zeroizing::new("errno=0\n\n".to_owned())
}

/// The answer to a request that was not. `wg` reads a positive number after `get`, and a negative one after `set`.
pub(super) fn failed(is_get: bool, errno: i32) -> Zeroizing<String> {
    let sign = if is_get { "" } else { "-" };
    Zeroizing::new(format!("errno={sign}{errno}\n\n"))
}

/// Writing to a string does not fail.
fn put(text: &mut String, key: &str, value: impl std::fmt::Display) {
    let _written = writeln!(text, "{key}={value}");
}

fn put_key(text: &mut String, key: &str, bytes: &[u8; 32]) {
    let _written = write!(text, "{key}=");
    for byte in bytes {
        let _written = write!(text, "{byte:02x}");
    }
    text.push('\n');
}
