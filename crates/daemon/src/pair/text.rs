//! The configuration of one end of a pair, as text.

use std::fmt::{self, Display, Formatter};

use ipnet::IpNet;
use vpnd_crypto::PublicKey;

use super::networks::is_default;
use super::plan::End;
use crate::config::Protocol;

/// The line that stands for the peer's key until it is known. Without that key no vpnd starts.
pub(super) const PENDING: &str =
    "# public_key: missing until `vpnd pair --finish` has read the other site's answer";

/// The line with the peer's key.
pub(super) fn public_key(key: &PublicKey) -> String {
    format!("public_key = \"{key}\"")
}

/// The configuration of an end. Without the peer's key it has the line [`PENDING`] instead.
pub(super) fn config(end: End<'_>, peer: Option<&PublicKey>) -> String {
    let (name, other) = (&end.site().name, &end.peer().name);
    format!(
        "# The tunnel from {name} to {other}. Every other key: docs/configuration.md\n\n\
         [interface]\nname = \"{device}\"\n{carries}\nprivate_key_file = \"{name}.key\"\n{listen}\n\n\
         [peer]\n{protocol}\n{public_key}\npreshared_key_file = \"{name}.psk\"\n{endpoint}\n{keepalive}\n{routes}{hooks}",
        device = end.device(),
        carries = carries(end),
        listen = listen(end),
        protocol = protocol(end),
        public_key = peer.map_or_else(|| PENDING.to_owned(), public_key),
        endpoint = endpoint(end),
        keepalive = keepalive(end),
        routes = routes(end),
        hooks = Masquerade::of(end).map(|it| it.to_string()).unwrap_or_default(),
    )
}

fn carries(end: End<'_>) -> String {
    match end.bridge() {
        Some(bridge) => format!("mode = \"tap\"\nbridge = \"{bridge}\""),
        None => {
            let addresses = end.addresses();
            let addresses: Vec<_> = addresses.iter().map(|net| format!("\"{net}\"")).collect();
            format!("address = [{}]", addresses.join(", "))
        }
    }
}

fn listen(end: End<'_>) -> String {
    match &end.site().endpoint {
        None => "# listen: absent, for nobody finds this site by its address".to_owned(),
        Some(at) => format!("listen = {}  # UDP; the firewall must let it in", at.port),
    }
}

fn protocol(end: End<'_>) -> &'static str {
    match end.protocol() {
        Protocol::WireGuard => "protocol = \"wireguard\"  # at both ends",
        Protocol::Vpnd => {
            "protocol = \"vpnd\"  # at both ends; \"wireguard\" is any WireGuard, and has neither of these two\n\
             # cipher = \"chacha20-poly1305\"\n# post_quantum = true"
        }
    }
}

fn endpoint(end: End<'_>) -> String {
    match &end.peer().endpoint {
        None => format!("# endpoint: absent, for {} finds this site", end.peer().name),
        // A zone may contain a quotation mark.
        Some(at) => format!("endpoint = {}", toml::Value::from(at.to_string())),
    }
}

fn keepalive(end: End<'_>) -> &'static str {
    match end.bridge() {
        None => "keepalive = \"25s\"  # keeps a NAT on the way open",
        Some(_) => {
            "# The port goes down when the peer is dead, and the bridge removes its forwarding entries.\n\
             keepalive = \"10s\"\ndead_after = \"30s\""
        }
    }
}

fn routes(end: End<'_>) -> String {
    let other = &end.peer().name;
    match end.beyond() {
        [] if end.bridge().is_some() => String::new(),
        [] => format!("\n# A network behind {other}:\n# [[route]]\n# to = \"192.0.2.0/24\"\n"),
        nets => nets.iter().map(|net| route(net, other.as_ref())).collect(),
    }
}

fn route(net: &IpNet, other: &str) -> String {
    if is_default(net) {
        let kill_switch = "when_down = \"blackhole\"  # nothing leaves outside the tunnel";
        format!("\n# Everything through {other}:\n[[route]]\nto = \"{net}\"\n{kill_switch}\n")
    } else {
        format!("\n# Behind {other}:\n[[route]]\nto = \"{net}\"\n")
    }
}

/// The hooks of a site through which the other one reaches everything: packets from the tunnel leave with the site's
/// own addresses.
struct Masquerade {
    device: String,
    rules: Vec<String>,
}

impl Masquerade {
    fn of(end: End<'_>) -> Option<Self> {
        let device = end.device();
        let hosts = end.peer_addresses().into_iter().map(|net| IpNet::from(net.addr()));
        let sources: Vec<IpNet> = hosts.chain(end.beyond().iter().copied()).collect();
        let everything = end.behind().iter().filter(|net| is_default(net));
        let rule = |source: &IpNet| {
            let family = if source.addr().is_ipv4() { "ip" } else { "ip6" };
            format!("{family} saddr {source} oifname != \"{device}\" masquerade")
        };
        let of_family = |net: &IpNet| {
            let is_v4 = net.addr().is_ipv4();
            sources.iter().filter(move |source| source.addr().is_ipv4() == is_v4).map(rule)
        };
        let rules: Vec<_> = everything.flat_map(of_family).collect();
        (!rules.is_empty()).then_some(Self { device, rules })
    }
}

impl Display for Masquerade {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (table, rules) = (&self.device, self.rules.join("\n            "));
        write!(
            f,
            r#"
# Packets from the tunnel leave with this machine's own addresses.
[hooks]
up = [["/usr/sbin/nft", """
    table inet {table}
    delete table inet {table}
    table inet {table} {{
        chain postrouting {{
            type nat hook postrouting priority srcnat;
            {rules}
        }}
    }}
"""]]
down = ["/usr/sbin/nft", "delete table inet {table}"]
"#
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::Plan;
    use super::super::tests::{both_families, bridged, road_warrior};
    use super::*;

    fn key() -> PublicKey {
        vpnd_crypto::SecretKey::from_bytes([1; 32]).public()
    }

    fn texts(plan: &Plan) -> [String; 2] {
        plan.ends().map(|end| config(end, Some(&key())))
    }

    #[test]
    fn networks_are_routed_in_both_directions() {
        let [a, b] = texts(&both_families());
        for net in ["192.168.10.0/24", "fd10::/48"] {
            assert!(b.contains(&format!("[[route]]\nto = \"{net}\"\n")), "{b}");
            assert!(!a.contains(net), "{a}");
        }
        assert!(a.contains("[[route]]\nto = \"192.168.20.0/24\"\n"), "{a}");
        assert!(a.contains("address = [\"10.99.0.1/30\", \"fd99::1/64\"]"), "{a}");
    }

    #[test]
    fn a_bridged_end_has_no_addresses() {
        let [a, b] = texts(&bridged());
        assert!(a.contains("mode = \"tap\"\nbridge = \"br0\"\n"), "{a}");
        assert!(b.contains("bridge = \"br-lan\"") && b.contains("# listen: absent"), "{b}");
        assert!(!a.contains("address") && !a.contains("[[route]]"), "{a}");
    }

    #[test]
    fn everything_is_masqueraded_and_switched_off() {
        let [home, road] = texts(&road_warrior());
        for rule in ["ip saddr 10.99.0.2/32", "ip saddr 192.168.1.0/24", "ip6 saddr fd99::2/128"] {
            let rule = format!("{rule} oifname != \"vpn-home\" masquerade\n");
            assert!(home.contains(&rule), "{rule}{home}");
        }
        assert!(road.contains("to = \"0.0.0.0/0\"\nwhen_down = \"blackhole\""), "{road}");
        assert!(!road.contains("[hooks]"), "{road}");
    }

    #[test]
    fn without_a_key_its_line_says_so() {
        let plan = bridged();
        let pending = config(plan.ends()[0], None);
        assert!(pending.lines().any(|line| line == PENDING) && !pending.contains("\npublic_key ="));
        assert_eq!(
            pending.replace(PENDING, &public_key(&key())),
            config(plan.ends()[0], Some(&key()))
        );
    }
}
