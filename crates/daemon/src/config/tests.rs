//! Invalid configurations with the expected messages, and the configurations that are shipped.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tempfile::TempDir;
use vpnd_crypto::{Algorithm, SecretKey};
use vpnd_tunnel::udp::Listen;
use zeroize::Zeroizing;

pub(crate) use super::section::TABLES;
use super::{AlsoAccept, Handed, Loaded, Protocol, Report, load, load_handed};
use crate::keys::{self, HandedKeys};

/// A public key whose private half nobody has.
pub(super) const PEER: &str = "x/w8KfNz7rhSYau3uquf7fT8Qr6/4o7d/LItsHMBgzM=";

/// A directory with `site.key` and `site.psk` in it.
fn directory() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    put_key(directory.path(), "site.key", 1);
    put_key(directory.path(), "site.psk", 2);
    directory
}

fn put_key(directory: &Path, name: &str, seed: u8) {
    let key = SecretKey::from_bytes([seed; 32]);
    keys::create(&directory.join(name), &key.to_base64()).unwrap();
}

fn put(directory: &Path, name: &str, source: &str) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, source).unwrap();
    path
}

/// The smallest valid configuration, with more lines in either table.
pub(super) fn minimal(interface: &str, peer: &str) -> String {
    format!(
        "[interface]\nprivate_key_file = 'site.key'\naddress = '10.99.0.1/30'\nlisten = 51820\n\
         {interface}\n[peer]\npublic_key = '{PEER}'\n{peer}\n"
    )
}

/// A directory with everything that the tunnel `site` needs: a valid configuration with more lines in [peer],
/// its keys, and a directory for its socket.
pub(crate) fn site(peer: &str) -> (TempDir, PathBuf) {
    let directory = directory();
    let source = minimal("", &format!("{peer}\n[service]\ncontrol = 'run/site.sock'\nuser = ''"));
    let file = put(directory.path(), "site.toml", &source);
    (directory, file)
}

fn try_load(source: &str) -> Result<Loaded, Report> {
    let directory = directory();
    load(&put(directory.path(), "site.toml", source))
}

pub(super) fn good(source: &str) -> Loaded {
    try_load(source).unwrap_or_else(|report| panic!("{source}\n{report}"))
}

/// The messages about `source`, without the directory.
fn said(source: &str) -> Vec<String> {
    let report = match try_load(source) {
        Ok(loaded) => loaded.warnings,
        Err(report) => report,
    };
    let bare =
        |line: String| {
            let words =
                line.split(' ').map(|word| {
                    word.rsplit_once('/').map_or(word, |(head, tail)| {
                        if head.contains("/.tmp") { tail } else { word }
                    })
                });
            words.collect::<Vec<_>>().join(" ")
        };
    report.lines().map(bare).collect()
}

#[test]
fn defaults() {
    let Loaded { config, warnings, .. } = good(&minimal("", ""));
    let json = serde_json::to_value(&config).unwrap();
    assert!(warnings.is_empty());
    assert_eq!(config.name, "site");
    assert_eq!(
        json["interface"],
        serde_json::json!({
            "name": null, "mode": "tun", "address": ["10.99.0.1/30"], "peer_address": [],
            "private_key_file": config.file.with_file_name("site.key"),
            "next_private_key_file": null, "listen": 51820, "mtu": 1420, "txqueuelen": 1000,
            "queues": 1, "persist": false, "adopt": "auto", "owner": null, "group": null,
            "mac": null, "bridge": null, "stp_cost": null, "vrf": null, "multicast": true, "carrier": "always",
            "netns": null,
        })
    );
    assert_eq!(
        json["peer"],
        serde_json::json!({
            "protocol": "wireguard", "cipher": "chacha20-poly1305", "post_quantum": false,
            "also_accept": [], "public_key": PEER, "next_public_key": null,
            "preshared_key_file": null, "next_preshared_key_file": null, "endpoint": [],
            "allowed_ips": ["10.99.0.0/30"], "allowed_macs": [], "guard": ["ra"], "keepalive": "off",
            "dead_after": "1m", "roam": "any", "return_after": "1m", "resolve_every": "5m",
        })
    );
    assert_eq!(
        json["path"],
        serde_json::json!({
            "mss_clamp": "auto", "mtu_max": null, "raise_every": "10m", "icmp": "hint", "gso": "auto", "offload": "auto",
        })
    );
    assert_eq!(
        json["socket"],
        serde_json::json!({
            "fwmark": 0, "bind_device": null, "source": [], "dscp": 0,
            "rcvbuf": 4 << 20, "sndbuf": 4 << 20, "netns": null,
        })
    );
    assert_eq!(json["dns"], serde_json::json!({ "servers": [], "domains": [] }));
    assert_eq!(
        json["hooks"],
        serde_json::json!({
            "up": [], "established": [], "lost": [], "down": [], "timeout": "10s",
        })
    );
    assert_eq!(json["metrics"], serde_json::json!({ "listen": null }));
    assert_eq!(json["service"]["state_dir"], "/var/lib/vpnd");
    assert_eq!(json["service"]["control"], "/run/vpnd/site.sock");
}

#[test]
fn a_device_as_it_may_be_told() {
    let interface = "name = 'tap7'\nmode = 'tap'\nqueues = 'auto'\npersist = true\n\
                     adopt = 'require'\nowner = 'root'\ngroup = '7'\n\
                     mac = '02:00:5e:00:53:0A'\nvrf = 'red'\nnetns = '/run/netns/blue'";
    let peer = "protocol = 'vpnd'\nkeepalive = '25s'\ndead_after = '5s'\n\
                allowed_macs = '02:00:5e:00:53:0b'";
    let config = good(&minimal(interface, peer)).config;
    let json = serde_json::to_value(&config).unwrap();
    let told = serde_json::json!({
        "mode": "tap", "queues": "auto", "persist": true, "adopt": "require", "owner": "root",
        "group": "7", "mac": "02:00:5e:00:53:0a", "vrf": "red", "netns": "/run/netns/blue",
        "carrier": "peer",
    });
    for (key, value) in told.as_object().unwrap() {
        assert_eq!(json["interface"][key], *value, "{key}");
    }
    assert_eq!(config.interface.owner.map(|owner| owner.id), Some(0));
    assert_eq!(json["peer"]["dead_after"], "5s");
    assert_eq!(json["peer"]["allowed_macs"], serde_json::json!(["02:00:5e:00:53:0b"]));
}

/// The resolver ignores a link without carrier, and would send its queries elsewhere.
#[test]
fn with_name_servers_the_carrier_stays_on() {
    let with = |interface: &str, dns: &str| good(&(minimal(interface, "keepalive = '25s'") + dns));
    let servers = "\n[dns]\nservers = '10.0.0.53'\n";
    for (dns, expected) in [
        ("", super::Carrier::Peer),
        ("\n[dns]\n", super::Carrier::Peer),
        (servers, super::Carrier::Always),
    ] {
        assert_eq!(with("", dns).config.interface.carrier, expected, "{dns}");
    }
    let told = with("carrier = 'peer'", servers);
    assert_eq!(told.config.interface.carrier, super::Carrier::Peer);
    let warning = told.warnings.to_string();
    assert!(warning.contains("queries leave outside the tunnel"), "{warning}");
}

#[test]
fn what_a_wireguard_peer_has_no_time_to_answer() {
    let warns = |lines: &str| good(&minimal("", lines)).warnings.to_string();
    let warning = warns("keepalive = '1s'\ndead_after = '3s'");
    assert!(warning.contains("[peer] dead_after: there is no time to probe"), "{warning}");
    for unwatched in ["dead_after = '11s'", "dead_after = '3s'\nprotocol = 'vpnd'"] {
        let warning = warns(unwatched);
        assert!(
            warning.contains("[peer] dead_after: a peer that has nothing to send"),
            "{warning}"
        );
    }
    for fine in [
        "keepalive = '1s'\ndead_after = '15s'",
        "keepalive = '1s'\ndead_after = '3s'\nprotocol = 'vpnd'",
        "dead_after = '12s'",
    ] {
        assert_eq!(warns(fine), "", "{fine}");
    }
}

#[test]
fn who_is_watched() {
    let watches = |lines: &str| good(&minimal("", lines)).config.watches();
    assert!(!watches("") && watches("keepalive = '25s'"));
    let route = "allowed_ips = ['0.0.0.0/0']\n[[route]]\nto = '192.168.20.0/24'\nwhen_down = ";
    assert!(!watches(&format!("{route}'keep'")) && watches(&format!("{route}'remove'")));
    let silent = |lines: &str| good(&minimal(lines, "keepalive = '25s'")).config.watches_with(None);
    assert!(silent("") && !silent("carrier = 'always'"), "the carrier follows the peer");
    assert!(!watches("[hooks]\nup = ['true']") && watches("[hooks]\nlost = ['true']"));
}

#[test]
fn one_command_or_many() {
    let hooks = |lines: &str| good(&minimal("", &format!("[hooks]\n{lines}"))).config.hooks;
    assert_eq!(hooks("up = ['a', 'b c']").up, [["a", "b c"]]);
    assert_eq!(hooks("up = [['a', '1'], ['b']]").up, [vec!["a", "1"], vec!["b"]]);
    assert_eq!(hooks("up = []\nlost = ['x', '']").lost, [["x", ""]]);
}

#[test]
fn a_socket_as_it_may_be_told() {
    let socket = |lines: &str| good(&minimal("", lines)).config.socket;
    let told = socket(
        "[socket]\nfwmark = '0xcA6c'\nbind_device = 'eth1'\nsource = ['192.0.2.9', '2001:db8::9']\n\
         dscp = 'af41'\nrcvbuf = '1MiB'\nsndbuf = 131072",
    );
    assert_eq!((told.fwmark, told.dscp), (51820, 34));
    assert_eq!((told.rcvbuf, told.sndbuf), (1 << 20, 1 << 17));
    let sources = told.sources();
    assert_eq!(sources.v4, Some([192, 0, 2, 9].into()));
    assert_eq!(sources.v6, "2001:db8::9".parse().ok());
    let egress = told.egress();
    assert_eq!((egress.mark, egress.device.as_deref()), (51820, Some("eth1")));
    for (name, point) in
        [("cs0", 0), ("cs7", 56), ("af11", 10), ("af43", 38), ("ef", 46), ("le", 1)]
    {
        assert_eq!(socket(&format!("[socket]\ndscp = '{name}'")).dscp, point, "{name}");
    }
    assert_eq!(socket("[socket]\nfwmark = 0xffffffff").fwmark, u32::MAX);
    assert_eq!(socket("[socket]\nsource = '192.0.2.9'").sources.len(), 1, "without brackets");
}

#[test]
fn vpnd_at_both_ends_is_post_quantum_unless_told_otherwise() {
    let plain = good(&minimal("", "protocol = 'vpnd'")).config.peer;
    assert_eq!((plain.protocol, plain.cipher), (Protocol::Vpnd, Algorithm::ChaCha20Poly1305));
    assert!(plain.post_quantum);
    let other = "protocol = 'vpnd'\ncipher = 'aes-256-gcm'\npost_quantum = false\n\
                 also_accept = ['protocol=wireguard', 'post_quantum=true']";
    let other = good(&minimal("", other)).config.peer;
    assert_eq!((other.cipher, other.post_quantum), (Algorithm::Aes256Gcm, false));
    let accepted = [AlsoAccept::WireGuard, AlsoAccept::PostQuantum(true)];
    assert_eq!(other.also_accept, accepted, "in the order of the file");
    let json = serde_json::to_value(&other).unwrap();
    let shown = ["protocol", "cipher", "also_accept"].map(|key| json[key].clone());
    let changes = serde_json::json!(["protocol=wireguard", "post_quantum=true"]);
    assert_eq!(shown, ["vpnd".into(), "aes-256-gcm".into(), changes]);
}

#[test]
fn keys_that_come_next_are_read_like_their_elders() {
    let directory = directory();
    put_key(directory.path(), "next.key", 3);
    put_key(directory.path(), "next.psk", 4);
    let next = SecretKey::from_bytes([5; 32]).public();
    let peer = format!("next_preshared_key_file = 'next.psk'\nnext_public_key = '{next}'");
    let source = minimal("next_private_key_file = 'next.key'", &peer);
    let file = put(directory.path(), "site.toml", &source);
    let Loaded { config, keys, .. } = load(&file).unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(config.peer.next_public_key, Some(next));
    let public = |seed| SecretKey::from_bytes([seed; 32]).public();
    assert_eq!(keys.next_secret.unwrap().public(), public(3));
    assert_eq!(keys.secret.public(), public(1));
    assert_eq!(keys.next_preshared.unwrap().as_bytes(), &[4; 32]);
    assert_eq!(keys.preshared.as_bytes(), &[0; 32], "none is what it replaces");

    let open = fs::Permissions::from_mode(0o644);
    fs::set_permissions(directory.path().join("next.psk"), open).unwrap();
    let report = load(&file).err().unwrap();
    assert!(report.lines().next().unwrap().contains("has mode 0644, open to others"), "{report}");
}

#[test]
fn what_is_handed_over_comes_to_the_same() {
    let (directory, file) = site("preshared_key_file = 'site.psk'\nprotocol = 'vpnd'");
    put_key(directory.path(), "next.psk", 3);
    let source = fs::read_to_string(&file).unwrap();
    let more = "next_preshared_key_file = 'next.psk'\nprotocol";
    fs::write(&file, source.replace("protocol", more)).unwrap();
    let here = load(&file).unwrap();
    directory.close().unwrap();

    let there = load_handed("site", &file, here.hand_over()).unwrap();
    assert_eq!(there.config, here.config);
    assert_eq!(there.keys.secret.public(), here.keys.secret.public());
    assert_eq!(there.keys.preshared.as_bytes(), here.keys.preshared.as_bytes());
    assert_eq!(there.keys.next_preshared.unwrap().as_bytes(), &[3; 32]);
    assert!(there.keys.next_secret.is_none());
}

#[test]
fn what_is_handed_over_is_checked_like_a_file() {
    let handed = |named_by, text: &str, source: String| Handed {
        source,
        keys: HandedKeys(vec![(named_by, Zeroizing::new(text.to_owned()))]),
    };
    let said = |handed| {
        let loaded = load_handed("site", Path::new("/nowhere/site.toml"), handed);
        loaded.err().map(|report| report.lines().collect::<Vec<_>>().join("\n"))
    };
    let key = SecretKey::from_bytes([1; 32]).to_base64();
    let credential = minimal("", "").replace("site.key", "cred:site.key");
    assert_eq!(said(handed("private_key_file", &key, credential)), None);
    let said = |named_by, text, peer| said(handed(named_by, text, minimal("", peer))).unwrap();
    let (private, preshared) = ("private_key_file", "preshared_key_file");
    assert!(said(private, "x", "").contains("/nowhere/site.key holds no key: "));
    assert!(
        said(preshared, &key, "")
            .ends_with("the contents of /nowhere/site.key were not handed over")
    );
    let file = said(private, &key, "preshared_key_file = '/etc/hostname'");
    assert!(file.ends_with("the contents of /etc/hostname were not handed over"), "{file}");
    let place = said(private, &key, "mtu = 1");
    assert!(place.starts_with("site.toml:8:1: unknown key `mtu` in [peer]"), "{place}");
}

#[test]
fn what_may_come_in_follows_from_what_may_go_out() {
    let routes = "[[route]]\nto = '192.168.20.0/24'\n[[route]]\nto = 'fd20::/48'";
    let source = minimal("peer_address = ['10.99.0.2']", routes);
    let allowed = good(&source).config.peer.allowed_ips;
    let allowed: Vec<_> = allowed.iter().map(ToString::to_string).collect();
    assert_eq!(allowed, ["10.99.0.0/30", "10.99.0.2/32", "192.168.20.0/24", "fd20::/48"]);
}

#[test]
fn an_ipv4_address_in_ipv6_spelling_is_the_ipv4_address() {
    let source = minimal(
        "",
        "endpoint = '[::ffff:192.0.2.2]:1'\nallowed_ips = ['::ffff:192.0.2.128/121', '2001:db8::/32']\n\
         [socket]\nsource = '::ffff:192.0.2.1'\n[[route]]\nto = '::ffff:198.51.100.0/120'",
    );
    let listen = "listen = '[::ffff:192.0.2.1]:51820'";
    let config = good(&source.replace("listen = 51820", listen)).config;
    assert_eq!(config.interface.listen, Listen::Address("192.0.2.1:51820".parse().unwrap()));
    assert_eq!(config.peer.endpoints[0].to_string(), "192.0.2.2:1");
    let allowed: Vec<_> = config.peer.allowed_ips.iter().map(ToString::to_string).collect();
    assert_eq!(allowed, ["192.0.2.128/25", "2001:db8::/32"]);
    assert_eq!(config.socket.sources().v4, Some([192, 0, 2, 1].into()));
    assert_eq!(config.routes[0].to.to_string(), "198.51.100.0/24");
}

#[test]
fn our_own_address_alone_is_not_let_in() {
    let source = minimal("peer_address = '10.99.0.2'", "").replace("/30", "/32");
    let allowed = good(&source).config.peer.allowed_ips;
    assert_eq!(allowed, ["10.99.0.2/32".parse().unwrap()]);
}

/// Those of the addresses that are accepted as a source from the peer.
fn let_in<'a>(source: &str, addresses: &[&'a str]) -> Vec<&'a str> {
    let filter = crate::options::filter(&good(source).config);
    let allowed = |address: &&&str| filter.allows(address.parse().unwrap());
    addresses.iter().filter(allowed).copied().collect()
}

#[test]
fn nobody_comes_in_under_our_name() {
    let four = ["10.99.0.0", "10.99.0.1", "10.99.0.2", "10.99.0.3"];
    for everything in ["", "allowed_ips = '0.0.0.0/0'"] {
        let source = minimal("", everything);
        assert_eq!(let_in(&source, &four), ["10.99.0.2"], "{everything}");
        assert_eq!(let_in(&source.replace("/30", "/31"), &four[..2]), ["10.99.0.0"]);
        let point_to_point = minimal("peer_address = '10.99.0.3'", everything);
        assert_eq!(let_in(&point_to_point, &four), ["10.99.0.2", "10.99.0.3"]);
    }
    let source = minimal("", "").replace("10.99.0.1/30", "2001:db8::1/64");
    assert_eq!(let_in(&source, &["2001:db8::", "2001:db8::1", "2001:db8::2"]), ["2001:db8::2"]);
    let source = source.replace("/64", "/127");
    assert_eq!(let_in(&source, &["2001:db8::", "2001:db8::1"]), ["2001:db8::"]);
}

#[test]
fn link_local_neighbours_come_in_where_we_are_link_local() {
    let near = ["fe80::1", "fe80::2", "fe80:0:0:1::2"];
    let source = minimal("", "allowed_ips = '::/0'");
    assert!(let_in(&source, &near).is_empty());
    let source = source.replace("10.99.0.1/30", "fe80::1/64");
    assert_eq!(let_in(&source, &near), ["fe80::2"]);
    let elsewhere = source.replace("::/0", "2001:db8::/32");
    assert!(let_in(&elsewhere, &near).is_empty());
}

/// One case of `bad.txt`: the configuration, and the expected messages.
fn case(text: &str) -> (String, Vec<&str>) {
    let (told, lines): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.starts_with('!'));
    let told = told.iter().map(|line| line.trim_start_matches("! ")).collect();
    let (mut interface, mut peer, mut alone) = (String::new(), String::new(), String::new());
    let mut into = &mut alone;
    for line in lines {
        match line {
            "in [interface]" => into = &mut interface,
            "in [peer]" => into = &mut peer,
            "alone" => into = &mut alone,
            _ => *into += &format!("{line}\n"),
        }
    }
    let partial = text.starts_with("in");
    let source = if partial { minimal(interface.trim(), peer.trim()) } else { alone };
    let own = SecretKey::from_bytes([1; 32]).public().to_string();
    (source.replace("PEER", PEER).replace("OWN", &own), told)
}

#[test]
fn what_is_said_of_bad_configurations() {
    let cases = include_str!("bad.txt").split("\n\n").skip(1);
    for (source, expected) in cases.map(case) {
        let said = said(&source);
        let bare = said.iter().map(|line| line.trim_start_matches("site.toml:").trim_start());
        assert_eq!(bare.collect::<Vec<_>>(), expected, "of\n{source}");
    }
}

#[test]
fn every_key_is_read() {
    for (title, keys) in TABLES.iter().filter(|(title, _)| !title.is_empty()) {
        for key in *keys {
            let lines = said(&format!("{title}\n{key} = 1979-05-27\n"));
            let told = lines.iter().any(|line| line.starts_with("site.toml:2:"));
            assert!(told, "{title} {key} is never looked at: {lines:?}");
        }
    }
}

/// The shipped `site-a.toml` or `site-b.toml`.
fn shipped(name: &str) -> String {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config");
    fs::read_to_string(directory.join(name)).unwrap()
}

/// Loads it, less what depends on the directory.
fn load_shipped(name: &str, source: &str) -> Loaded {
    let directory = directory();
    put_key(directory.path(), "site-a.key", 3);
    put_key(directory.path(), "site-b.key", 4);
    put_key(directory.path(), "site-a.psk", 5);
    put_key(directory.path(), "site-b.psk", 5);
    let loaded = load(&put(directory.path(), name, source));
    let mut loaded = loaded.unwrap_or_else(|report| panic!("{report}"));
    assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
    let file = &mut loaded.config;
    file.file = name.into();
    file.interface.private_key_file = PathBuf::new();
    file.peer.preshared_key_file = None;
    loaded
}

#[test]
fn the_shipped_examples_are_good_and_belong_together() {
    let (a, b) = ("site-a.toml", "site-b.toml");
    let (a, b) = (load_shipped(a, &shipped(a)).config, load_shipped(b, &shipped(b)).config);
    let net = |config: &super::Config| config.interface.addresses[0].trunc();
    assert_eq!(net(&a), net(&b));
    assert_ne!(a.interface.addresses, b.interface.addresses);
    assert_eq!(a.peer.endpoints[0].port, 51820);
    assert_eq!(b.peer.endpoints[0].port, 51820);
    assert_ne!(a.peer.public_key, b.peer.public_key);
    assert_eq!((a.peer.protocol, b.peer.protocol), (Protocol::Vpnd, Protocol::Vpnd));
}

#[test]
fn every_example_is_good_and_has_its_page() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let directories = fs::read_dir(root.join("config")).unwrap().map(|entry| entry.unwrap().path());
    for example in directories.filter(|path| path.is_dir()) {
        let name = example.file_name().unwrap().to_str().unwrap();
        let page =
            fs::read_to_string(root.join("docs/examples").join(format!("{name}.md"))).unwrap();
        for file in fs::read_dir(&example).unwrap().map(|entry| entry.unwrap().path()) {
            let file = file.file_name().unwrap().to_str().unwrap();
            let path = format!("config/{name}/{file}");
            assert!(page.contains(&path), "{path}");
            let Some(stem) = file.strip_suffix(".toml") else { continue };
            let directory = directory();
            put_key(directory.path(), &format!("{stem}.key"), 3);
            put_key(directory.path(), &format!("{stem}.psk"), 5);
            let source = fs::read_to_string(root.join(&path)).unwrap();
            let loaded = load(&put(directory.path(), file, &source));
            let loaded = loaded.unwrap_or_else(|report| panic!("{path}: {report}"));
            // What the hooks run need not be installed here.
            let warnings: Vec<_> = loaded.warnings.lines().collect();
            assert!(warnings.iter().all(|line| line.contains("[hooks]")), "{path}: {warnings:#?}");
        }
    }
}

#[test]
fn the_example_shows_the_defaults() {
    let plain = shipped("site-a.toml");
    let is_key = |line: &&str| line.starts_with('#') && !line.starts_with("# ") && line.len() > 1;
    // The user `vpnd` is the default only where it exists, what comes next is no key of now, how large
    // packets may be and where they leave the routes say, and the rest is not there by default.
    let others = "user next_ mtu_max bridge stp_cost bind_device source mac vrf owner group netns allowed_macs \
                  servers domains up established lost down table listen";
    let is_other = |line: &str| others.split(' ').any(|other| line[1..].starts_with(other));
    let has_default = |line: &&str| !is_other(line);
    let spelled_out: Vec<_> = plain
        .lines()
        .map(|line| if is_key(&line) && has_default(&line) { &line[1..] } else { line })
        .collect();
    let spelled_out = load_shipped("site-a.toml", &spelled_out.join("\n")).config;
    assert_eq!(spelled_out, load_shipped("site-a.toml", &plain).config);
}

#[test]
fn every_key_is_shown_and_documented() {
    let manual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    let (example, manual) = (shipped("site-a.toml"), fs::read_to_string(manual).unwrap());
    for (title, keys) in TABLES.iter().filter(|(title, _)| !title.is_empty()) {
        assert!(example.contains(title) && manual.contains(title), "{title}");
        for key in *keys {
            let shows = |line: &str| line.trim_start_matches('#').starts_with(&format!("{key} = "));
            assert!(example.lines().any(shows), "site-a.toml lacks {key}");
            assert!(manual.contains(&format!("\n| `{key}` |")), "configuration.md lacks {key}");
        }
    }
}

proptest! {
    #[test]
    fn no_text_panics(source in ".*") {
        said(&source);
    }

    #[test]
    fn no_likely_text_panics(parts in prop::collection::vec(likely(), 0..40)) {
        if let Err(report) = try_load(&parts.concat()) {
            report.to_string();
        }
    }
}

/// Fragments of real configurations, and what may break them.
fn likely() -> impl Strategy<Value = String> {
    let words = TABLES.iter().flat_map(|(title, keys)| {
        let title = format!("\n{title}\n");
        keys.iter().map(|key| format!("{key} = ")).chain([title])
    });
    let values =
        ["'x'", "1", "[", "]", "{", "}", ",", "'", "\"", "\n", "\r\n", "é", "\u{0}", "off"];
    let values = values.into_iter().map(str::to_owned);
    let more = ["'10.99.0.1/30'", "'[fe80::1%x]:1'", "99999999999999999999", "'25s'", "-1", "0x1f"];
    let all: Vec<_> = words.chain(values).chain(more.map(str::to_owned)).collect();
    prop::sample::select(all)
}
