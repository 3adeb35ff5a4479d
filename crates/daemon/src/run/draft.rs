//! What `wg` has set so far, before there is a tunnel.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use ipnet::IpNet;
use vpnd_crypto::{PresharedKey, PublicKey, SecretKey};

use crate::config::{self, Handed, Loaded, Report};
use crate::keys::HandedKeys;
use crate::uapi::{PeerLines, Refused, Set, Shown};
use crate::zone::Zones;

/// The settings so far.
#[derive(Default)]
pub(super) struct Draft {
    private_key: Option<SecretKey>,
    listen_port: u16,
    fwmark: u32,
    peer: Option<Peer>,
}

/// The one peer.
struct Peer {
    key: PublicKey,
    preshared: PresharedKey,
    endpoint: Option<SocketAddr>,
    /// In seconds; 0 is off.
    keepalive: u16,
    allowed_ips: BTreeSet<IpNet>,
}

impl Draft {
    /// The same settings, to return to if a request turns out to be wrong.
    pub(super) fn copy(&self) -> Self {
        let private_key = self.private_key.as_ref().map(SecretKey::to_base64);
        Self {
            private_key: private_key.and_then(|key| SecretKey::from_base64(&key).ok()),
            listen_port: self.listen_port,
            fwmark: self.fwmark,
            peer: self.peer.as_ref().map(Peer::copy),
        }
    }

    /// Takes over a request, or nothing of it.
    ///
    /// # Errors
    ///
    /// If it adds a second peer.
    pub(super) fn apply(&mut self, set: Set) -> Result<(), Refused> {
        let kept = self.peer.as_ref().map(|peer| peer.key).filter(|_| !set.replace_peers);
        check_peers(kept, &set.peers)?;
        self.private_key = set.private_key.or_else(|| self.private_key.take());
        self.listen_port = set.listen_port.unwrap_or(self.listen_port);
        self.fwmark = set.fwmark.unwrap_or(self.fwmark);
        if set.replace_peers {
            self.peer = None;
        }
        set.peers.into_iter().for_each(|lines| self.take(lines));
        Ok(())
    }

    fn take(&mut self, lines: PeerLines) {
        let is_there = self.peer.as_ref().is_some_and(|peer| peer.key == lines.key);
        match (lines.remove, is_there) {
            (true, true) => self.peer = None,
            (true, false) => {}
            (false, false) if lines.update_only => {}
            (false, _) => self.peer.get_or_insert_with(|| Peer::new(lines.key)).take(lines),
        }
    }

    /// Whether a tunnel can be made of it: a peer without addresses could not send anything.
    pub(super) fn is_complete(&self) -> bool {
        let peer = self.peer.as_ref().is_some_and(|peer| !peer.allowed_ips.is_empty());
        peer && self.private_key.is_some()
    }

    /// The configuration of the tunnel.
    ///
    /// # Errors
    ///
    /// What `vpnd check` would find wrong with it.
    pub(super) fn load(&self, device: &str) -> Result<Loaded, Report> {
        let keys = HandedKeys(self.keys());
        // Nobody has written this file. Its name is that of the file that `wg-quick` reads.
        let file = Path::new("/etc/wireguard").join(format!("{device}.conf"));
        config::load_handed(device, &file, Handed { source: self.text(device), keys })
    }

    fn keys(&self) -> Vec<(&'static str, zeroize::Zeroizing<String>)> {
        let private = self.private_key.as_ref().map(SecretKey::to_base64);
        let preshared = self.preshared().map(PresharedKey::to_base64);
        let named = [("private_key_file", private), ("preshared_key_file", preshared)];
        named.into_iter().filter_map(|(named_by, text)| Some((named_by, text?))).collect()
    }

    fn preshared(&self) -> Option<&PresharedKey> {
        let key = self.peer.as_ref().map(|peer| &peer.preshared);
        key.filter(|key| key.as_bytes().iter().any(|byte| *byte != 0))
    }

    /// The file, without secrets. Carrier and addresses are as with `wireguard-go`.
    fn text(&self, device: &str) -> String {
        let Self { listen_port, fwmark, .. } = self;
        let mut text = format!(
            "[interface]\nname = {device:?}\nprivate_key_file = \"private.key\"\nlisten = {listen_port}\n\
             carrier = \"always\"\n[socket]\nfwmark = {fwmark}\n[service]\nuapi = true\n[peer]\n"
        );
        if self.preshared().is_some() {
            text.push_str("preshared_key_file = \"preshared.key\"\n");
        }
        if let Some(peer) = &self.peer {
            // Writing to a string does not fail.
            let _written = write!(text, "{peer}");
        }
        text
    }

    /// The answer to `get`.
    pub(super) fn shown(&self) -> Shown {
        let peer = self.peer.as_ref();
        let preshared = peer.map(|peer| peer.preshared.copy());
        Shown {
            listen_port: self.listen_port,
            fwmark: self.fwmark,
            peer: peer.map(|peer| peer.key),
            preshared: preshared.unwrap_or_default(),
            endpoint: peer.and_then(|peer| peer.endpoint).map(shown),
            handshake: None,
            sent: 0,
            received: 0,
            keepalive: peer.map_or(0, |peer| peer.keepalive.into()),
            allowed_ips: peer.into_iter().flat_map(|peer| peer.allowed_ips.clone()).collect(),
        }
    }
}

fn shown(at: SocketAddr) -> String {
    Zones::default().show(at)
}

/// At no time there may be two.
fn check_peers(mut kept: Option<PublicKey>, peers: &[PeerLines]) -> Result<(), Refused> {
    for PeerLines { key, remove, update_only, .. } in peers {
        match kept {
            Some(old) if old == *key => kept = kept.filter(|_| !remove),
            _ if *remove || *update_only => {}
            Some(old) => {
                return Err(Refused::unsupported(
                    "peer",
                    format!(
                        "a second peer, {key} beside {old}: vpnd has one peer; wireguard-go has many"
                    ),
                ));
            }
            None => kept = Some(*key),
        }
    }
    Ok(())
}

impl Peer {
    fn new(key: PublicKey) -> Self {
        Self {
            key,
            preshared: PresharedKey::default(),
            endpoint: None,
            keepalive: 0,
            allowed_ips: BTreeSet::new(),
        }
    }

    fn copy(&self) -> Self {
        let Self { key, preshared, endpoint, keepalive, allowed_ips } = self;
        let preshared = preshared.copy();
        let allowed_ips = allowed_ips.clone();
        Self { key: *key, preshared, endpoint: *endpoint, keepalive: *keepalive, allowed_ips }
    }

    fn take(&mut self, lines: PeerLines) {
        lines.change_allowed_ips(&mut self.allowed_ips);
        if let Some(preshared) = lines.preshared {
            self.preshared = preshared;
        }
        self.endpoint = lines.endpoint.or(self.endpoint);
        self.keepalive = lines.keepalive.unwrap_or(self.keepalive);
    }
}

/// Its lines in the file.
impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "public_key = \"{}\"", self.key)?;
        let networks: Vec<_> = self.allowed_ips.iter().map(ToString::to_string).collect();
        writeln!(f, "allowed_ips = {networks:?}")?;
        if let Some(endpoint) = self.endpoint {
            writeln!(f, "endpoint = {:?}", shown(endpoint))?;
        }
        if self.keepalive > 0 {
            writeln!(f, "keepalive = \"{}s\"", self.keepalive)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uapi::parse_set;

    const PRIVATE: &str =
        "private_key=0101010101010101010101010101010101010101010101010101010101010101\n";

    /// A line for the peer of this private key.
    fn peer(seed: u8) -> String {
        let public = SecretKey::from_bytes([seed; 32]).public();
        let digits: String = public.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("public_key={digits}\n")
    }

    fn apply(draft: &mut Draft, lines: &str) -> Result<(), Refused> {
        draft.apply(parse_set(lines)?)
    }

    #[test]
    fn a_file_of_wg_quick_makes_a_configuration() {
        let mut draft = Draft::default();
        let lines = format!(
            "{PRIVATE}listen_port=51820\nfwmark=51820\nreplace_peers=true\n{}preshared_key={}\n\
             endpoint=192.0.2.2:51820\npersistent_keepalive_interval=25\nreplace_allowed_ips=true\n\
             allowed_ip=0.0.0.0/0\nallowed_ip=::/0\n",
            peer(2),
            "03".repeat(32)
        );
        assert!(!draft.is_complete());
        apply(&mut draft, &lines).unwrap();
        assert!(draft.is_complete());
        let Loaded { config, keys, .. } =
            draft.load("wg0").unwrap_or_else(|report| panic!("{report}"));
        assert_eq!(config.name, "wg0");
        assert_eq!(config.interface.name.as_deref(), Some("wg0"));
        assert_eq!(config.socket.fwmark, 51820);
        assert_eq!(config.peer.keepalive, Some(std::time::Duration::from_secs(25)));
        assert_eq!(config.peer.allowed_ips.len(), 2);
        assert!(config.service.uapi && config.interface.addresses.is_empty());
        assert_eq!(keys.preshared.as_bytes(), &[3; 32]);
        assert_eq!(keys.secret.public(), SecretKey::from_bytes([1; 32]).public());
    }

    #[test]
    fn a_second_peer_is_refused_and_changes_nothing() {
        let mut draft = Draft::default();
        let one = format!("{}allowed_ip=10.0.0.0/24\n", peer(2));
        apply(&mut draft, &format!("{PRIVATE}{one}")).unwrap();
        let refused = apply(&mut draft, &format!("listen_port=7\n{}", peer(3))).unwrap_err();
        assert!(refused.errno == libc::EOPNOTSUPP && refused.why.starts_with("a second peer"));
        assert!(draft.listen_port == 0 && draft.is_complete());
        apply(&mut draft, &format!("{}remove=true\n{}allowed_ip=::/0\n", peer(2), peer(3)))
            .unwrap();
        assert!(draft.is_complete());
        apply(&mut draft, "replace_peers=true\n").unwrap();
        assert!(!draft.is_complete());
    }
}
