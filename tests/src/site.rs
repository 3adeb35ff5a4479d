//! The configuration of one end of a tunnel, for any of the programs.

use anyhow::Result;

use crate::{Key, KeyPair};

/// The UDP port every end listens on.
pub const PORT: u16 = 51820;
/// Inside the tunnel, at A.
pub const INNER_A4: &str = "10.99.0.1";
/// Inside the tunnel, at B.
pub const INNER_B4: &str = "10.99.0.2";
/// Inside the tunnel, at A.
pub const INNER_A6: &str = "2001:db8:99::1";
/// Inside the tunnel, at B.
pub const INNER_B6: &str = "2001:db8:99::2";

/// One end: its own settings, and those about the other end.
#[derive(Debug, Clone)]
pub struct Site {
    /// The name of the configuration file, and so of the service.
    pub name: String,
    /// The name of the tunnel's device.
    pub device: String,
    /// Its own keys.
    pub keys: KeyPair,
    /// Only for vpnd: its next keys.
    pub next_keys: Option<KeyPair>,
    /// Inner addresses with their prefix.
    pub addresses: Vec<String>,
    /// The UDP port; none means any.
    pub listen: Option<u16>,
    /// The device's MTU; 0 leaves it to vpnd.
    pub mtu: u16,
    /// More lines for vpnd's `[interface]` table.
    pub interface: Vec<String>,
    /// Networks behind the other end.
    pub routes: Vec<String>,
    /// More lines for vpnd's `[service]` table.
    pub service: Vec<String>,
    /// More tables for vpnd's file.
    pub tables: Vec<String>,
    /// The other end.
    pub remote: Remote,
}

/// An end's settings about the other.
#[derive(Debug, Clone)]
pub struct Remote {
    /// Its public key.
    pub public: Key,
    /// Their preshared key.
    pub preshared: Option<Key>,
    /// `address:port`; without it, this end waits for the other, and cannot initiate.
    pub endpoint: Option<String>,
    /// Accepted inner source addresses.
    pub allowed_ips: Vec<String>,
    /// Seconds between persistent keepalives.
    pub keepalive: Option<u16>,
    /// Only for vpnd: `any`, `same-ip` or `off`.
    pub roam: Option<String>,
    /// Only for vpnd: the next preshared key.
    pub next_preshared: Option<Key>,
    /// The public key that takes the other's place.
    pub next_public: Option<Key>,
    /// Only for vpnd: the protocol of both ends, `wireguard` or `vpnd`.
    pub protocol: &'static str,
    /// More lines for vpnd's `[peer]` table.
    pub lines: Vec<String>,
}

impl Site {
    /// The same end with an endpoint for the other: it may initiate.
    #[must_use]
    pub fn towards(mut self, endpoint: &str) -> Self {
        self.remote.endpoint = Some(endpoint.to_owned());
        self
    }

    /// The same end with a preshared key.
    #[must_use]
    pub fn with_preshared(mut self, key: &Key) -> Self {
        self.remote.preshared = Some(key.clone());
        self
    }

    /// The same end with the protocol `vpnd`, and more lines about the peer.
    #[must_use]
    pub fn speaking_vpnd(mut self, lines: &[&str]) -> Self {
        self.remote.protocol = "vpnd";
        self.remote.lines.extend(lines.iter().map(ToString::to_string));
        self
    }

    /// The same end with a network behind the other.
    #[must_use]
    pub fn route(mut self, network: &str) -> Self {
        self.routes.push(network.to_owned());
        self.remote.allowed_ips.push(network.to_owned());
        self
    }

    /// The same end with a persistent keepalive.
    #[must_use]
    pub fn keepalive(mut self, seconds: u16) -> Self {
        self.remote.keepalive = Some(seconds);
        self
    }
}

/// Two ends with matching settings. Neither has the other's endpoint yet.
///
/// # Errors
/// When keys cannot be made.
pub fn pair() -> Result<(Site, Site)> {
    let (a, b) = (KeyPair::generate()?, KeyPair::generate()?);
    let (public_a, public_b) = (a.public.clone(), b.public.clone());
    Ok((
        end("site-a", a, public_b, [INNER_A4, INNER_A6], [INNER_B4, INNER_B6]),
        end("site-b", b, public_a, [INNER_B4, INNER_B6], [INNER_A4, INNER_A6]),
    ))
}

fn end(name: &str, keys: KeyPair, public: Key, own: [&str; 2], other: [&str; 2]) -> Site {
    let remote = Remote {
        public,
        preshared: None,
        endpoint: None,
        allowed_ips: vec![format!("{}/32", other[0]), format!("{}/128", other[1])],
        keepalive: None,
        roam: None,
        next_preshared: None,
        next_public: None,
        protocol: "wireguard",
        lines: Vec::new(),
    };
    Site {
        name: name.to_owned(),
        device: "tun0".to_owned(),
        keys,
        next_keys: None,
        addresses: vec![format!("{}/30", own[0]), format!("{}/64", own[1])],
        listen: Some(PORT),
        mtu: 1420,
        interface: Vec::new(),
        routes: Vec::new(),
        service: Vec::new(),
        tables: Vec::new(),
        remote,
    }
}
