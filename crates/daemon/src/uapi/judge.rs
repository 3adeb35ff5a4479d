//! What a `set` request changes, compared with what is in force. A request with a part that cannot be carried out
//! changes nothing.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use vpnd_crypto::{PresharedKey, PublicKey, verify};

use super::lines::{PeerLines, Set};
use super::refused::Refused;

/// What a tunnel runs with.
pub(crate) struct InForce<'t> {
    /// Our public key.
    pub(crate) own: PublicKey,
    /// The peer's.
    pub(crate) peer: PublicKey,
    /// The UDP port.
    pub(crate) listen_port: u16,
    /// The mark of the tunnel's datagrams.
    pub(crate) fwmark: u32,
    /// Whether the mark may change: not if rules and filters of ours contain it.
    pub(crate) mark_may_change: bool,
    /// The preshared key; all zeros if there is none.
    pub(crate) preshared: &'t PresharedKey,
    /// The interval of keepalives.
    pub(crate) keepalive: Option<Duration>,
    /// Where the peer is.
    pub(crate) endpoint: Option<SocketAddr>,
    /// The addresses that the peer may use.
    pub(crate) allowed_ips: &'t [IpNet],
}

/// What is to be changed; what is absent stays.
#[derive(Default)]
pub(crate) struct Changes {
    /// Another preshared key; all zeros for none.
    pub(crate) preshared: Option<PresharedKey>,
    /// Where the peer is now.
    pub(crate) endpoint: Option<SocketAddr>,
    /// Another interval of keepalives, or none.
    pub(crate) keepalive: Option<Option<Duration>>,
    /// Another mark.
    pub(crate) fwmark: Option<u32>,
}

/// Compares a request with what is in force.
///
/// # Errors
///
/// The first part that cannot be carried out.
pub(crate) fn judge(set: Set, now: &InForce<'_>) -> Result<Changes, Refused> {
    device(&set, now)?;
    let fwmark = set.fwmark.filter(|mark| *mark != now.fwmark);
    let mut wanted = Wanted::new(now);
    let mut is_named = false;
    for peer in set.peers {
        if peer.key == now.peer {
            // The peer is removed with everything about it, and then added.
            wanted.reset(set.replace_peers && !is_named);
            is_named = true;
            wanted.take(peer)?;
        } else if !peer.remove && !peer.update_only {
            return Err(Refused::unsupported(
                "peer",
                format!(
                    "peer {} cannot be added: the tunnel's only peer is {}",
                    peer.key, now.peer
                ),
            ));
        }
    }
    if set.replace_peers && !is_named {
        return Err(cannot_remove());
    }
    Ok(Changes { fwmark, ..wanted.changes(now)? })
}

fn cannot_remove() -> Refused {
    let why = "the tunnel's only peer cannot be removed; stop vpnd to end the tunnel";
    Refused::unsupported("remove", why)
}

fn device(set: &Set, now: &InForce<'_>) -> Result<(), Refused> {
    if set.private_key.as_ref().is_some_and(|key| key.public() != now.own) {
        let why = "the private key cannot be changed here: change its file, and run `vpnd reload`";
        return Err(Refused::unsupported("private_key", why));
    }
    // The tools send 0 for a file without a port.
    if let Some(port) = set.listen_port.filter(|port| ![0, now.listen_port].contains(port)) {
        return Err(Refused::unsupported(
            "listen_port",
            format!(
                "the port cannot be changed to {port} while the tunnel runs; it is {}",
                now.listen_port
            ),
        ));
    }
    match set.fwmark {
        Some(mark) if mark != now.fwmark && !now.mark_may_change => Err(Refused::unsupported(
            "fwmark",
            format!(
                "the mark cannot be changed to {mark:#x}: rules or filters of this tunnel contain it"
            ),
        )),
        _ => Ok(()),
    }
}

/// What the peer is to have.
struct Wanted {
    preshared: Option<PresharedKey>,
    endpoint: Option<SocketAddr>,
    keepalive: Option<Option<Duration>>,
    allowed_ips: BTreeSet<IpNet>,
}

impl Wanted {
    fn new(now: &InForce<'_>) -> Self {
        let allowed_ips = now.allowed_ips.iter().map(IpNet::trunc).collect();
        Self { preshared: None, endpoint: None, keepalive: None, allowed_ips }
    }

    fn reset(&mut self, is_replaced: bool) {
        if is_replaced {
            self.preshared = Some(PresharedKey::default());
            self.keepalive = Some(None);
            self.allowed_ips.clear();
        }
    }

    fn take(&mut self, lines: PeerLines) -> Result<(), Refused> {
        if lines.remove {
            return Err(cannot_remove());
        }
        lines.change_allowed_ips(&mut self.allowed_ips);
        self.preshared = lines.preshared.or_else(|| self.preshared.take());
        self.endpoint = lines.endpoint.or(self.endpoint);
        self.keepalive = lines.keepalive.map(seconds).or(self.keepalive);
        Ok(())
    }

    fn changes(self, now: &InForce<'_>) -> Result<Changes, Refused> {
        if self.allowed_ips != now.allowed_ips.iter().map(IpNet::trunc).collect() {
            let why = "allowed IPs cannot be changed here: change [peer] allowed_ips, and run `vpnd reload`";
            return Err(Refused::unsupported("allowed_ip", why));
        }
        let differs = |key: &PresharedKey| !verify(key.as_bytes(), now.preshared.as_bytes());
        Ok(Changes {
            preshared: self.preshared.filter(differs),
            endpoint: self.endpoint.filter(|at| Some(*at) != now.endpoint),
            keepalive: self.keepalive.filter(|interval| *interval != now.keepalive),
            fwmark: None,
        })
    }
}

fn seconds(interval: u16) -> Option<Duration> {
    (interval > 0).then(|| Duration::from_secs(interval.into()))
}

#[cfg(test)]
mod tests {
    use super::super::lines;
    use super::*;
    use vpnd_crypto::SecretKey;

    const PEER: [u8; 32] = [9; 32];

    fn own() -> SecretKey {
        SecretKey::from_bytes([1; 32])
    }

    fn set(lines: &str) -> Set {
        let peer = "09".repeat(32);
        let request = format!("set=1\n{}\n\n", lines.replace("PEER", &peer));
        match lines::parse(request.as_bytes()) {
            Ok(lines::Parsed::Set(set)) => *set,
            _ => panic!("{lines}"),
        }
    }

    fn network(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn judged(lines: &str) -> Result<Changes, Refused> {
        let allowed_ips = ["10.0.0.0/24", "2001:db8::/64"].map(network);
        judge(
            set(lines),
            &InForce {
                own: own().public(),
                peer: PublicKey::from_bytes(PEER),
                listen_port: 51820,
                fwmark: 7,
                mark_may_change: false,
                preshared: &PresharedKey::from_bytes([2; 32]),
                keepalive: Some(Duration::from_secs(25)),
                endpoint: Some(([192, 0, 2, 2], 51820).into()),
                allowed_ips: &allowed_ips,
            },
        )
    }

    fn refused(lines: &str) -> String {
        judged(lines).err().map(|refused| refused.why).unwrap_or_default()
    }

    fn nothing(lines: &str) {
        let changes = judged(lines).unwrap();
        assert!(changes.preshared.is_none() && changes.endpoint.is_none(), "{lines}");
        assert!(changes.keepalive.is_none() && changes.fwmark.is_none(), "{lines}");
    }

    const EQUAL: &str = "public_key=PEER\npreshared_key=0202020202020202020202020202020202020202020202020202020202020202\n\
        endpoint=192.0.2.2:51820\npersistent_keepalive_interval=25\nreplace_allowed_ips=true\n\
        allowed_ip=2001:db8::1/64\nallowed_ip=10.0.0.9/24";

    #[test]
    fn what_is_in_force_is_accepted() {
        let private = "01".repeat(32);
        for port in [0, 51820] {
            nothing(&format!(
                "private_key={private}\nlisten_port={port}\nfwmark=7\nreplace_peers=true\n{EQUAL}"
            ));
        }
        nothing(EQUAL);
        nothing(&format!("public_key={}\nremove=true", "08".repeat(32)));
        nothing(&format!("public_key={}\nupdate_only=true", "08".repeat(32)));
        nothing("public_key=PEER\nallowed_ip=-10.0.0.0/24\nallowed_ip=10.0.0.0/24");
    }

    #[test]
    fn three_things_change() {
        let changes = judged(&format!(
            "public_key=PEER\npreshared_key={}\nendpoint=192.0.2.3:1\npersistent_keepalive_interval=0",
            "00".repeat(32)
        ));
        let changes = changes.unwrap();
        assert_eq!(changes.preshared.unwrap().as_bytes(), &[0; 32]);
        assert_eq!(changes.endpoint, Some("192.0.2.3:1".parse().unwrap()));
        assert_eq!(changes.keepalive, Some(None));
    }

    #[test]
    fn a_peer_that_is_replaced_has_only_what_is_told() {
        let told =
            "replace_peers=true\npublic_key=PEER\nallowed_ip=10.0.0.0/24\nallowed_ip=2001:db8::/64";
        let changes = judged(told).unwrap();
        assert_eq!(changes.preshared.unwrap().as_bytes(), &[0; 32]);
        assert_eq!(changes.keepalive, Some(None));
    }

    #[test]
    fn all_else_is_refused_with_the_reason() {
        let other = "08".repeat(32);
        for (lines, said) in [
            (format!("public_key={other}"), "peer CAgI"),
            (format!("{EQUAL}\npublic_key={other}"), "peer CAgI"),
            ("public_key=PEER\nremove=true".to_owned(), "the tunnel's only peer cannot be removed"),
            ("replace_peers=true".to_owned(), "the tunnel's only peer cannot be removed"),
            (format!("private_key={other}"), "the private key cannot be changed here"),
            ("listen_port=1".to_owned(), "the port cannot be changed to 1"),
            ("fwmark=0".to_owned(), "the mark cannot be changed to 0x0"),
            ("public_key=PEER\nallowed_ip=10.0.1.0/24".to_owned(), "allowed IPs cannot"),
            ("public_key=PEER\nallowed_ip=-10.0.0.0/24".to_owned(), "allowed IPs cannot"),
            ("public_key=PEER\nreplace_allowed_ips=true".to_owned(), "allowed IPs cannot"),
        ] {
            assert!(refused(&lines).starts_with(said), "{lines}: {}", refused(&lines));
        }
    }
}
