//! The lines of a request.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use ipnet::IpNet;
use nix::net::if_::if_nametoindex;
use vpnd_crypto::{PresharedKey, PublicKey, Secret, SecretKey};
use vpnd_tunnel::udp::unmapped;

use super::refused::Refused;

/// A request that is valid by itself.
pub(super) enum Parsed {
    Get,
    Set(Box<Set>),
}

/// A `set` request. What is absent stays as it is.
#[derive(Default)]
pub(crate) struct Set {
    /// A private key. A key of zeros is absent: the tools send it for a file without one, and `get` shows none.
    pub(crate) private_key: Option<SecretKey>,
    /// The UDP port; 0 for any.
    pub(crate) listen_port: Option<u16>,
    /// The mark of datagrams; 0 is none.
    pub(crate) fwmark: Option<u32>,
    /// Peers that are not named are removed.
    pub(crate) replace_peers: bool,
    /// The peers, in the request's order. One key may come twice.
    pub(crate) peers: Vec<PeerLines>,
}

/// The part of a request that follows a peer's key.
pub(crate) struct PeerLines {
    /// The peer.
    pub(crate) key: PublicKey,
    /// It is removed.
    pub(crate) remove: bool,
    /// It is changed if it is there, and not added.
    pub(crate) update_only: bool,
    /// All zeros are no key.
    pub(crate) preshared: Option<PresharedKey>,
    /// Where it is.
    pub(crate) endpoint: Option<SocketAddr>,
    /// In seconds; 0 is off.
    pub(crate) keepalive: Option<u16>,
    /// Addresses that are not named are removed.
    pub(crate) replace_allowed_ips: bool,
    /// Addresses without host bits, each with whether it is added, or else removed.
    pub(crate) allowed_ips: Vec<(IpNet, bool)>,
}

impl PeerLines {
    /// Adds and removes the networks of the lines, in their order.
    pub(crate) fn change_allowed_ips(&self, networks: &mut BTreeSet<IpNet>) {
        if self.replace_allowed_ips {
            networks.clear();
        }
        for (network, adds) in &self.allowed_ips {
            if *adds {
                networks.insert(*network);
            } else {
                networks.remove(network);
            }
        }
    }
}

/// Whether this is no key at all.
pub(super) fn is_zero(key: &[u8; 32]) -> bool {
    key.iter().fold(0, |bits, byte| bits | byte) == 0
}

/// Parses a request.
///
/// # Errors
///
/// If it is incomplete, or a line is not part of the protocol.
pub(super) fn parse(request: &[u8]) -> Result<Parsed, Refused> {
    let text = std::str::from_utf8(request).map_err(|_| Refused::invalid("it is no text"))?;
    let text = text.strip_suffix("\n\n").ok_or_else(|| Refused::invalid("it has no end"))?;
    match text.split_once('\n').unwrap_or((text, "")) {
        ("get=1", "") => Ok(Parsed::Get),
        ("set=1", lines) => set(lines).map(Box::new).map(Parsed::Set),
        _ => Err(Refused::invalid("it begins with neither get=1 nor set=1")),
    }
}

fn set(lines: &str) -> Result<Set, Refused> {
    let mut set = Set::default();
    for line in lines.lines() {
        let (key, value) =
            line.split_once('=').ok_or_else(|| Refused::invalid("a line has no `=`"))?;
        match (key, set.peers.last_mut()) {
            ("public_key", _) => set.peers.push(PeerLines::new(value)?),
            (_, Some(peer)) => peer.take(key, value)?,
            (_, None) => set.take(key, value)?,
        }
    }
    Ok(set)
}

impl Set {
    fn take(&mut self, key: &str, value: &str) -> Result<(), Refused> {
        match key {
            "private_key" => {
                let bytes = key_bytes(key, value)?;
                self.private_key = (!is_zero(&bytes)).then(|| SecretKey::from(bytes));
            }
            "listen_port" => self.listen_port = Some(number(key, value)?),
            "fwmark" => self.fwmark = Some(number(key, value)?),
            "replace_peers" => self.replace_peers = truth(key, value)?,
            _ => return Err(unknown(key)),
        }
        Ok(())
    }
}

impl PeerLines {
    fn new(key: &str) -> Result<Self, Refused> {
        Ok(Self {
            key: PublicKey::from_bytes(*key_bytes("public_key", key)?),
            remove: false,
            update_only: false,
            preshared: None,
            endpoint: None,
            keepalive: None,
            replace_allowed_ips: false,
            allowed_ips: Vec::new(),
        })
    }

    fn take(&mut self, key: &str, value: &str) -> Result<(), Refused> {
        match key {
            "remove" => self.remove = truth(key, value)?,
            "update_only" => self.update_only = truth(key, value)?,
            "preshared_key" => {
                self.preshared = Some(key_bytes(key, value)?.into());
            }
            "endpoint" => self.endpoint = Some(endpoint(value)?),
            "persistent_keepalive_interval" => self.keepalive = Some(number(key, value)?),
            "replace_allowed_ips" => {
                self.replace_allowed_ips = truth(key, value)?;
                self.allowed_ips.clear();
            }
            "allowed_ip" => self.allowed_ips.push(allowed_ip(value)?),
            "protocol_version" if value == "1" => {}
            _ => return Err(unknown(key)),
        }
        Ok(())
    }
}

fn unknown(key: &str) -> Refused {
    let key = start(key);
    Refused::invalid(format!("{key:?} is not known here, or not at this place"))
}

fn wrong(key: &str, value: &str) -> Refused {
    Refused::invalid(format!("{key} cannot be {:?}", start(value)))
}

/// As much of a text as belongs in a log line.
fn start(text: &str) -> String {
    text.chars().take(60).collect()
}

/// The protocol has no other value: what is not to be is left out.
fn truth(key: &str, value: &str) -> Result<bool, Refused> {
    if value == "true" { Ok(true) } else { Err(wrong(key, value)) }
}

/// A decimal number without a sign.
fn number<T: std::str::FromStr>(key: &str, value: &str) -> Result<T, Refused> {
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    value.parse().ok().filter(|_| digits).ok_or_else(|| wrong(key, value))
}

/// 32 bytes in 64 hexadecimal digits of either case. The value is not repeated in an error, because it may be a secret.
fn key_bytes(key: &str, value: &str) -> Result<Secret, Refused> {
    let mut bytes = Secret::default();
    let digits = value.as_bytes();
    if digits.len() != 2 * bytes.len() {
        return Err(no_key(key));
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|it| u8::try_from(it).ok());
        let (high, low) = digit(pair[0]).zip(digit(pair[1])).ok_or_else(|| no_key(key))?;
        *byte = high << 4 | low;
    }
    Ok(bytes)
}

fn no_key(key: &str) -> Refused {
    Refused::invalid(format!("{key} is not 64 hexadecimal digits"))
}

/// An address and a port other than 0; an IPv6 address in brackets, and one of a link with its interface.
fn endpoint(value: &str) -> Result<SocketAddr, Refused> {
    let parsed = value.parse().ok().or_else(|| on_a_link(value));
    let usable = parsed.map(unmapped).filter(|at| at.port() != 0);
    usable.ok_or_else(|| wrong("endpoint", value))
}

/// `[fe80::2%eth0]:51820`.
fn on_a_link(value: &str) -> Option<SocketAddr> {
    let (inside, port) = value.strip_prefix('[')?.rsplit_once("]:")?;
    let (ip, interface) = inside.split_once('%')?;
    let IpAddr::V6(ip) = ip.parse().ok()? else { return None };
    let index = if_nametoindex(interface).ok()?;
    Some(SocketAddrV6::new(ip, port.parse().ok()?, 0, index).into())
}

/// `10.0.0.0/8`, or `-10.0.0.0/8` to remove it. The tools send host bits, which do not count.
fn allowed_ip(value: &str) -> Result<(IpNet, bool), Refused> {
    let (network, adds) = match value.strip_prefix('-') {
        Some(network) => (network, false),
        None => (value, true),
    };
    let network: IpNet = network.parse().map_err(|_| wrong("allowed_ip", value))?;
    Ok((network.trunc(), adds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(lines: &str) -> String {
        match parse(format!("set=1\n{lines}\n\n").as_bytes()) {
            Err(refused) => refused.why,
            Ok(_) => String::new(),
        }
    }

    fn set_of(lines: &str) -> Set {
        match parse(format!("set=1\n{lines}\n").as_bytes()) {
            Ok(Parsed::Set(set)) => *set,
            _ => panic!("{lines}"),
        }
    }

    #[test]
    fn what_the_tools_send() {
        let (key, secret) = ("0a".repeat(32), "0B".repeat(32));
        let set = set_of(&format!(
            "private_key={secret}\nlisten_port=0\nfwmark=4294967295\nreplace_peers=true\npublic_key={key}\n\
             preshared_key={secret}\nendpoint=[2001:db8::1]:7\npersistent_keepalive_interval=65535\n\
             replace_allowed_ips=true\nallowed_ip=10.1.2.3/8\nallowed_ip=-2001:db8::1/32\nprotocol_version=1\n"
        ));
        assert_eq!((set.listen_port, set.fwmark), (Some(0), Some(u32::MAX)));
        assert!(set.private_key.is_some() && set.replace_peers && set.peers.len() == 1);
        let peer = &set.peers[0];
        assert_eq!(peer.key.as_bytes(), &[10; 32]);
        assert_eq!(peer.preshared.as_ref().unwrap().as_bytes(), &[11; 32]);
        assert_eq!(peer.endpoint.unwrap().to_string(), "[2001:db8::1]:7");
        assert_eq!(peer.keepalive, Some(65535));
        let networks: Vec<_> =
            peer.allowed_ips.iter().map(|(n, adds)| (n.to_string(), *adds)).collect();
        let expected = [("10.0.0.0/8", true), ("2001:db8::/32", false)];
        assert_eq!(networks, expected.map(|(network, adds)| (network.to_owned(), adds)));
    }

    #[test]
    fn a_key_of_zeros_is_none() {
        let set = set_of(&format!("private_key={}\n", "00".repeat(32)));
        assert!(set.private_key.is_none());
    }

    #[test]
    fn a_link_has_a_name_or_a_number() {
        let lo = if_nametoindex("lo").unwrap();
        for text in ["[fe80::1%lo]:1".to_owned(), format!("[fe80::1%{lo}]:1")] {
            let SocketAddr::V6(at) = endpoint(&text).unwrap() else { panic!() };
            assert_eq!(at.scope_id(), lo);
        }
    }

    #[test]
    fn what_is_wrong_is_named_and_no_secret_is() {
        let peer = format!("public_key={}\n", "00".repeat(32));
        for (lines, said) in [
            ("fwmark=0x10", "fwmark cannot be \"0x10\""),
            ("listen_port=65536", "listen_port cannot be \"65536\""),
            ("listen_port=+1", "listen_port cannot be \"+1\""),
            ("listen_port=", "listen_port cannot be \"\""),
            ("private_key=c2VjcmV0", "private_key is not 64 hexadecimal digits"),
            ("endpoint=192.0.2.1:1", "\"endpoint\" is not known here"),
            ("garbage", "a line has no `=`"),
            ("replace_peers=false", "replace_peers cannot be \"false\""),
        ] {
            assert!(why(lines).starts_with(said), "{lines}: {}", why(lines));
        }
        for (lines, said) in [
            ("private_key=00", "\"private_key\" is not known here, or not at this place"),
            ("endpoint=192.0.2.1:0", "endpoint cannot be"),
            ("endpoint=example.net:1", "endpoint cannot be"),
            ("allowed_ip=10.0.0.1", "allowed_ip cannot be"),
            ("allowed_ip=+10.0.0.1/32", "allowed_ip cannot be"),
            ("persistent_keepalive_interval=65536", "persistent_keepalive_interval cannot be"),
            ("protocol_version=2", "\"protocol_version\" is not known here"),
            ("preshared_key=zz", "preshared_key is not 64"),
        ] {
            let all = format!("{peer}{lines}");
            assert!(why(&all).starts_with(said), "{lines}: {}", why(&all));
        }
    }
}
