//! The keys of the documentation, each with another value than the scenario starts with.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::SHOWS;

/// What a reload makes of a key.
#[derive(Clone, Copy)]
pub(super) enum Expected {
    /// It changes under streams; the pause is the time for a handshake under the new value.
    Live(Duration),
    /// It changes, and with it who is reached.
    Quiet,
    /// It is refused by name.
    Restart,
    /// It needs a change of the other end too, which another scenario makes.
    Elsewhere(&'static str),
}

/// A key with another value, and what has to change with it.
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) value: &'static str,
    pub(super) with: &'static [(&'static str, &'static str)],
    pub(super) expected: Expected,
}

impl Key {
    /// As a dry run names it.
    pub(super) fn shown(&self) -> String {
        if self.name.starts_with("[[route]]") {
            "[[route]]".to_owned()
        } else {
            self.name.to_owned()
        }
    }
}

const fn key(name: &'static str, value: &'static str, expected: Expected) -> Key {
    Key { name, value, with: &[], expected }
}

const LIVE: Expected = Expected::Live(SHOWS);
/// A change of what both ends speak takes a handshake, whose first try may find the other end busy.
const HANDSHAKE: Expected = Expected::Live(Duration::from_millis(1500));
use Expected::{Elsewhere, Quiet, Restart};

const ADDRESSES: &str = "[\"10.97.0.1/32\", \"10.99.0.1/30\", \"2001:db8:99::1/64\"]";
const HOOK: &str = "[\"/bin/true\"]";

pub(super) const KEYS: &[Key] = &[
    key("[interface] name", "\"tun7\"", Restart),
    key("[interface] mode", "\"tap\"", Restart),
    key("[interface] address", ADDRESSES, LIVE),
    Key {
        name: "[interface] peer_address",
        value: "[\"10.97.0.2\"]",
        with: &[("[interface] address", ADDRESSES)],
        expected: LIVE,
    },
    key("[interface] private_key_file", "\"next.key\"", HANDSHAKE),
    key("[interface] next_private_key_file", "\"next.key\"", LIVE),
    key("[interface] listen", "51999", Restart),
    key("[interface] mtu", "1300", LIVE),
    key("[interface] mtu", "\"auto\"", LIVE),
    key("[interface] txqueuelen", "777", LIVE),
    key("[interface] queues", "2", Restart),
    key("[interface] persist", "true", Restart),
    key("[interface] adopt", "\"never\"", Restart),
    key("[interface] owner", "\"nobody\"", Restart),
    key("[interface] group", "\"nogroup\"", Restart),
    key("[interface] vrf", "\"blue\"", Restart),
    key("[interface] multicast", "false", LIVE),
    key("[interface] carrier", "\"always\"", LIVE),
    key("[interface] netns", "\"blue\"", Restart),
    key("[peer] protocol", "\"wireguard\"", HANDSHAKE),
    key("[peer] cipher", "\"aes-256-gcm\"", HANDSHAKE),
    key("[peer] post_quantum", "false", HANDSHAKE),
    key("[peer] also_accept", "[\"cipher=aes-256-gcm\"]", LIVE),
    key("[peer] public_key", "\"x/w8KfNz7rhSYau3uquf7fT8Qr6/4o7d/LItsHMBgzM=\"", Restart),
    key("[peer] next_public_key", "\"x/w8KfNz7rhSYau3uquf7fT8Qr6/4o7d/LItsHMBgzM=\"", LIVE),
    key("[peer] preshared_key_file", "", Elsewhere("change::preshared key")),
    key("[peer] next_preshared_key_file", "", Elsewhere("change::preshared key")),
    key("[peer] endpoint", "[\"192.0.2.2:51820\", \"[2001:db8::2]:51820\"]", LIVE),
    // A thread for the name is started by a daemon that is confined.
    key("[peer] endpoint", "[\"192.0.2.2:51820\", \"localhost:51821\"]", LIVE),
    key(
        "[peer] allowed_ips",
        "[\"10.99.0.2/32\", \"2001:db8:99::2/128\", \"198.51.100.0/24\"]",
        LIVE,
    ),
    key("[peer] guard", "[]", LIVE),
    key("[peer] keepalive", "\"5s\"", LIVE),
    key("[peer] dead_after", "\"20s\"", LIVE),
    key("[peer] roam", "\"off\"", LIVE),
    key("[peer] return_after", "\"10s\"", LIVE),
    key("[peer] resolve_every", "\"30s\"", LIVE),
    key("[[route]] to", "[[route]]\nto = \"192.168.20.0/24\"", LIVE),
    key("[[route]] metric", "[[route]]\nto = \"192.168.20.0/24\"\nmetric = 9", LIVE),
    key("[[route]] table", "[[route]]\nto = \"192.168.20.0/24\"\ntable = 77", LIVE),
    key(
        "[[route]] when_down",
        "[[route]]\nto = \"192.168.20.0/24\"\nwhen_down = \"blackhole\"",
        LIVE,
    ),
    key("[[route]] to", "[[route]]\nto = \"0.0.0.0/0\"\nwhen_down = \"blackhole\"", LIVE),
    key("[path] mss_clamp", "1000", LIVE),
    key("[path] mtu_max", "1400", LIVE),
    key("[path] raise_every", "\"1m\"", LIVE),
    key("[path] icmp", "\"ignore\"", LIVE),
    key("[path] gso", "false", LIVE),
    key("[path] offload", "false", Restart),
    key("[socket] fwmark", "7", LIVE),
    key("[socket] bind_device", "\"eth0\"", LIVE),
    key("[socket] source", "\"192.0.2.1\"", LIVE),
    key("[socket] dscp", "\"af11\"", LIVE),
    key("[socket] rcvbuf", "\"1MiB\"", LIVE),
    key("[socket] sndbuf", "\"1MiB\"", LIVE),
    key("[socket] netns", "\"blue\"", Restart),
    key("[dns] servers", "[\"10.99.0.2\"]", Restart),
    key("[dns] domains", "[\"corp.example\"]", Restart),
    key("[hooks] up", HOOK, Restart),
    key("[hooks] established", HOOK, Restart),
    key("[hooks] lost", HOOK, Restart),
    key("[hooks] down", HOOK, Restart),
    key("[hooks] timeout", "\"5s\"", Restart),
    key("[metrics] listen", "\"127.0.0.1:9587\"", LIVE),
    key("[service] state_dir", "\"/var/lib/vpnd-elsewhere\"", Restart),
    key("[service] control", "\"/run/vpnd/elsewhere.sock\"", Restart),
    key("[service] uapi", "true", Restart),
    key("[service] allow_key_log", "true", Restart),
    key("[service] user", "\"nobody\"", Restart),
    key("[service] nice", "0", Restart),
    key("[service] firewall", "true", Restart),
    key("[service] sandbox", "\"errno\"", Restart),
    key("[service] log_level", "\"trace\"", LIVE),
    key("[service] log_format", "\"json\"", LIVE),
];

/// Keys that only a TAP device has.
pub(super) const TAP_KEYS: &[Key] = &[
    key("[interface] mac", "\"02:00:00:00:00:07\"", Restart),
    key("[interface] txqueuelen", "777", LIVE),
    key("[interface] multicast", "false", LIVE),
    key("[interface] mtu", "1300", LIVE),
    key("[interface] address", ADDRESSES, LIVE),
    key("[interface] bridge", "\"br0\"", Quiet),
    Key {
        name: "[interface] stp_cost",
        value: "77",
        with: &[("[interface] bridge", "\"br0\"")],
        expected: Quiet,
    },
    key("[peer] allowed_macs", "[\"02:00:00:00:00:07\"]", Quiet),
];

/// Every key of the documentation is in one of the lists.
pub(super) fn ensure_complete() -> Result<()> {
    let page = include_str!("../../../docs/configuration.md");
    let (mut table, mut is_list, mut documented) = ("", false, BTreeSet::new());
    for line in page.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            table = title.split('`').nth(1).filter(|title| title.starts_with('[')).unwrap_or("");
        }
        // Other tables of the page list values.
        is_list = line.starts_with("| key |") || (is_list && line.starts_with('|'));
        let key = line.strip_prefix("| `").and_then(|rest| rest.split('`').next());
        documented.extend(key.filter(|_| is_list).map(|key| format!("{table} {key}")));
    }
    let tried: BTreeSet<_> = KEYS.iter().chain(TAP_KEYS).map(|key| key.name.to_owned()).collect();
    let missing: Vec<_> = documented.difference(&tried).collect();
    ensure!(missing.is_empty(), "not tried: {missing:?}");
    ensure!(documented.len() > 70, "only {} keys are documented", documented.len());
    Ok(())
}
