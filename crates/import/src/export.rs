//! Writes one end of a tunnel as WireGuard's other programs read it.

use std::fmt::{Display, Write as _};
use std::net::IpAddr;

use ipnet::IpNet;
use qrcode::render::unicode::Dense1x2;
use qrcode::{EcLevel, QrCode};
use vpnd_crypto::{PresharedKey, PublicKey};
use zeroize::Zeroizing;

use crate::shell_word;
use crate::tunnel::{Command, Route};

/// The value of a private key that is not known. WireGuard's tools refuse it.
pub const PLACEHOLDER: &str = "PUT-THE-PRIVATE-KEY-OF-THIS-END-HERE";

/// One end of a WireGuard tunnel.
pub struct End {
    /// The name of its device.
    pub device: String,
    /// Its private key in base64, if it is known.
    pub private_key: Option<Zeroizing<String>>,
    /// Its public key.
    pub public_key: PublicKey,
    /// Its addresses inside.
    pub addresses: Vec<IpNet>,
    /// Its port.
    pub listen: Option<u16>,
    /// The MTU of its device.
    pub mtu: Option<u16>,
    /// The mark of its datagrams.
    pub fwmark: Option<u32>,
    /// Name servers behind the tunnel.
    pub dns_servers: Vec<IpAddr>,
    /// Search domains.
    pub dns_domains: Vec<String>,
    /// The routes to the allowed IPs.
    pub routing: Routing,
    /// Commands after the device is up.
    pub up: Vec<Hook>,
    /// Commands before the device goes.
    pub down: Vec<Hook>,
    /// The other end's public key.
    pub peer: PublicKey,
    /// The preshared key in base64.
    pub preshared_key: Option<Zeroizing<String>>,
    /// Where the other end is reached.
    pub endpoint: Option<String>,
    /// The sources that the other end may use.
    pub allowed_ips: Vec<IpNet>,
    /// Seconds between keepalives.
    pub keepalive: Option<u16>,
}

/// Which of the allowed IPs are routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    /// Each that no address covers, a default route in a table of its own.
    Auto,
    /// Each, in this table.
    Table(u32),
    /// None.
    Off,
}

/// A command for `wg-quick`'s shell, on one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook(String);

impl Hook {
    /// The command, if the file of `wg-quick` can say it: `#` begins a comment there even within quotes, a line ends the
    /// command, and `%i` becomes the device's name.
    pub fn new(command: &Command) -> Option<Self> {
        let text = match command.as_slice() {
            [shell, option, text] if ["sh", "bash"].contains(&shell.as_str()) && option == "-c" => {
                text.clone()
            }
            words => words.iter().map(|word| shell_word(word)).collect::<Vec<_>>().join(" "),
        };
        let plain = !text.contains(['#', '\n', '\r']) && !text.contains("%i");
        plain.then_some(Self(text))
    }

    /// A route of `wg-quick`'s device.
    pub fn route(route: &Route) -> Self {
        let family = if route.to.addr().is_ipv4() { "-4" } else { "-6" };
        let mut text = format!("ip {family} route add {} dev %i", route.to);
        for (word, number) in [("metric", route.metric), ("table", route.table)] {
            text.extend(number.map(|number| format!(" {word} {number}")));
        }
        Self(text)
    }
}

impl End {
    /// The file of `wg-quick`.
    pub fn wg_quick(&self) -> Zeroizing<String> {
        let mut text = Lines::new();
        text.line("[Interface]");
        if self.private_key.is_none() {
            text.line(&format!(
                "# The private key is that of this end, whose public key is {}",
                self.public_key
            ));
        }
        text.pair("PrivateKey", Some(self.key_or_placeholder()));
        text.list("Address", &self.addresses, ", ");
        text.pair("ListenPort", self.listen);
        text.pair("MTU", self.mtu);
        text.pair("FwMark", self.fwmark.map(|mark| format!("{mark:#x}")));
        let dns = self.dns_servers.iter().map(ToString::to_string);
        let dns: Vec<_> = dns.chain(self.dns_domains.iter().cloned()).collect();
        text.list("DNS", &dns, ", ");
        match self.routing {
            Routing::Auto => {}
            Routing::Table(table) => text.pair("Table", Some(table)),
            Routing::Off => text.pair("Table", Some("off")),
        }
        self.up.iter().for_each(|hook| text.pair("PostUp", Some(&hook.0)));
        self.down.iter().for_each(|hook| text.pair("PreDown", Some(&hook.0)));
        text.line("\n[Peer]");
        self.write_peer(&mut text);
        text.0
    }

    /// The `.netdev` and the `.network` of systemd-networkd.
    pub fn networkd(&self) -> (Zeroizing<String>, Zeroizing<String>) {
        let mut netdev = Lines::new();
        netdev.line("[NetDev]");
        netdev.pair("Name", Some(&self.device));
        netdev.pair("Kind", Some("wireguard"));
        netdev.pair("MTUBytes", self.mtu);
        netdev.line("\n[WireGuard]");
        if self.private_key.is_none() {
            netdev.line(&format!(
                "# The private key is that of this end, whose public key is {}",
                self.public_key
            ));
        }
        netdev.pair("PrivateKey", Some(self.key_or_placeholder()));
        netdev.pair("ListenPort", self.listen);
        netdev.pair("FirewallMark", self.fwmark);
        match self.routing {
            Routing::Auto => netdev.pair("RouteTable", Some("main")),
            Routing::Table(table) => netdev.pair("RouteTable", Some(table)),
            Routing::Off => {}
        }
        netdev.line("\n[WireGuardPeer]");
        self.write_peer(&mut netdev);
        let mut network = Lines::new();
        network.line("[Match]");
        network.pair("Name", Some(&self.device));
        network.line("\n[Network]");
        self.addresses.iter().for_each(|address| network.pair("Address", Some(address)));
        self.dns_servers.iter().for_each(|server| network.pair("DNS", Some(server)));
        network.list("Domains", &self.dns_domains, " ");
        (netdev.0, network.0)
    }

    fn write_peer(&self, text: &mut Lines) {
        text.pair("PublicKey", Some(self.peer));
        text.pair("PresharedKey", self.preshared_key.as_ref().map(|key| key.as_str()));
        text.list("AllowedIPs", &self.allowed_ips, ", ");
        text.pair("Endpoint", self.endpoint.as_ref());
        text.pair("PersistentKeepalive", self.keepalive);
    }

    /// A request that sets the device over WireGuard's socket. An endpoint must be an address there.
    pub fn uapi(&self) -> Zeroizing<String> {
        let mut text = Lines::new();
        text.line("set=1");
        let private = self.private_key.as_ref().and_then(|key| hex_of(key));
        text.assign("private_key", Some(private.as_ref().map_or(PLACEHOLDER, |hex| hex.as_str())));
        text.assign("listen_port", self.listen);
        text.assign("fwmark", self.fwmark);
        text.line("replace_peers=true");
        text.assign("public_key", Some(hex(self.peer.as_bytes()).as_str()));
        let preshared = self.preshared_key.as_ref().and_then(|key| hex_of(key));
        text.assign("preshared_key", preshared.as_ref().map(|hex| hex.as_str()));
        text.assign("endpoint", self.endpoint.as_ref());
        text.assign("persistent_keepalive_interval", self.keepalive);
        text.line("replace_allowed_ips=true");
        self.allowed_ips.iter().for_each(|net| text.assign("allowed_ip", Some(net)));
        text.line("");
        text.0
    }

    /// Whether a private or a preshared key is in the texts.
    pub fn has_keys(&self) -> bool {
        self.private_key.is_some() || self.preshared_key.is_some()
    }

    fn key_or_placeholder(&self) -> &str {
        self.private_key.as_ref().map_or(PLACEHOLDER, |key| key.as_str())
    }
}

/// A QR code for a terminal, light on dark; `None` if the text is too long for one.
pub fn qr(text: &str) -> Option<Zeroizing<String>> {
    let code = QrCode::with_error_correction_level(text, EcLevel::L).ok()?;
    let mut image = code.render::<Dense1x2>();
    image.dark_color(Dense1x2::Light).light_color(Dense1x2::Dark);
    Some(Zeroizing::new(image.build() + "\n"))
}

/// A key of base64 in hexadecimal. All keys have the same text form.
fn hex_of(key: &str) -> Option<Zeroizing<String>> {
    PresharedKey::from_base64(key).ok().map(|key| hex(key.as_bytes()))
}

fn hex(bytes: &[u8]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(2 * bytes.len()));
    for byte in bytes {
        // Writing to a string cannot fail.
        let _written = write!(text, "{byte:02x}");
    }
    text
}

/// Lines with keys and values. The text has room for all that is written, so that no copies of keys are left behind.
struct Lines(Zeroizing<String>);

impl Lines {
    fn new() -> Self {
        Self(Zeroizing::new(String::with_capacity(1 << 16)))
    }

    fn line(&mut self, text: &str) {
        self.0.push_str(text);
        self.0.push('\n');
    }

    fn pair(&mut self, key: &str, value: Option<impl Display>) {
        self.written(key, " = ", value);
    }

    fn assign(&mut self, key: &str, value: Option<impl Display>) {
        self.written(key, "=", value);
    }

    fn written(&mut self, key: &str, between: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            // Writing to a string cannot fail.
            let _written = writeln!(self.0, "{key}{between}{value}");
        }
    }

    fn list<T: Display>(&mut self, key: &str, items: &[T], between: &str) {
        let items: Vec<_> = items.iter().map(ToString::to_string).collect();
        self.pair(key, (!items.is_empty()).then(|| items.join(between)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_wg_quick_can_say_is_a_hook() {
        let hook = |words: &[&str]| {
            let command: Command = words.iter().map(|word| (*word).to_owned()).collect();
            Hook::new(&command).map(|hook| hook.0)
        };
        assert_eq!(hook(&["ip", "link", "a b"]).unwrap(), "ip link 'a b'");
        assert_eq!(hook(&["sh", "-c", "a && b"]).unwrap(), "a && b");
        for unsaid in ["nft -f - <<E\ntable\nE", "echo '#'", "date +%i", "a\rb"] {
            assert_eq!(hook(&["sh", "-c", unsaid]), None, "{unsaid:?}");
        }
        assert_eq!(hook(&["logger", "a#b"]), None);
        let route = Route { to: "192.0.2.0/24".parse().unwrap(), metric: Some(5), table: None };
        assert_eq!(Hook::route(&route).0, "ip -4 route add 192.0.2.0/24 dev %i metric 5");
    }
}
