use std::fs;
use std::path::Path;
use std::rc::Rc;

use clap::Parser;
use vpnd_crypto::{PublicKey, SecretKey};
use vpnd_import::{Choices, Host, Source, Tunnel};

use super::*;
use crate::config::Loaded;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    options: ExportOptions,
}

fn options(arguments: &[&str]) -> ExportOptions {
    Line::parse_from([&["export", "site"], arguments].concat()).options
}

/// A host without files, for configurations that need none.
struct Bare;

impl Host for Bare {
    fn read(&self, _: &Path) -> io::Result<Zeroizing<String>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn absolute(&self, path: &Path) -> PathBuf {
        path.to_owned()
    }

    fn distrust(&self, _: &Path) -> Option<String> {
        None
    }

    fn private_key(&self) -> Zeroizing<String> {
        SecretKey::from_bytes([1; 32]).to_base64()
    }

    fn preshared_key(&self) -> Zeroizing<String> {
        SecretKey::from_bytes([2; 32]).to_base64()
    }
}

fn imported(name: &str, text: &str) -> Tunnel {
    let source = Source { name: name.to_owned(), text: Zeroizing::new(text.to_owned()) };
    let host: Rc<dyn Host> = Rc::new(Bare);
    let imported = vpnd_import::import(&[source], &Choices::default(), &host);
    imported.unwrap_or_else(|failure| panic!("{text}\n{}", failure.error)).tunnel
}

/// Loads the tunnel as `vpnd` would.
fn loaded(tunnel: &Tunnel) -> Loaded {
    let directory = tempfile::tempdir().unwrap();
    let at = |extension: &str| directory.path().join(format!("{}.{extension}", tunnel.name));
    keys::create(&at("key"), &tunnel.private_key).unwrap();
    if let Some(key) = &tunnel.preshared_key {
        keys::create(&at("psk"), key).unwrap();
    }
    fs::write(at("toml"), tunnel.to_toml("a test")).unwrap();
    config::load(&at("toml")).unwrap_or_else(|report| panic!("{report}"))
}

fn fixture(name: &str) -> String {
    let path = format!("{}/../import/fixtures/wg-quick/{name}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(path).unwrap()
}

const FIXTURES: [&str; 7] = [
    "wg0.conf",
    "laptop.conf",
    "server-one.conf",
    "table-off.conf",
    "table-123.conf",
    "sloppy.conf",
    "narrow.conf",
];

/// From wg-quick to vpnd and back: the second import has the same tunnel as the first.
#[test]
fn a_round_trip_keeps_the_tunnel() {
    for name in FIXTURES {
        let first = imported(name, &fixture(name));
        let Loaded { config, keys, .. } = loaded(&first);
        let text = ends::own(&config, &keys).0.wg_quick();
        let second = imported(name, &text);
        assert_eq!(comparable(&second), comparable(&first), "{name}\n{}", text.as_str());
    }
}

/// Everything but the order of routes, and the default MTU, which is a number after the first import.
fn comparable(tunnel: &Tunnel) -> (String, Vec<String>) {
    let mut routes: Vec<_> = tunnel.routes.iter().map(|route| format!("{route:?}")).collect();
    routes.sort();
    let established = vec![];
    let mtu = Some(tunnel.mtu.unwrap_or(1420));
    let rest = Tunnel { routes: vec![], mtu, established, uapi: false, ..tunnel.clone() };
    (rest.to_toml(""), routes)
}

/// The other end's file leads back to this end: both name each other's keys, addresses and ports.
#[test]
fn the_other_end_belongs_to_this_one() {
    let here = imported("wg0.conf", &fixture("wg0.conf"));
    let Loaded { config, keys, .. } = loaded(&here);
    let options =
        options(&["--wg-quick", "--endpoint", "a.example.net", "--network", "192.168.10.0/24"]);
    let secret = SecretKey::from_bytes([6; 32]);
    let (end, notes) = ends::other(&config, &keys, Some(secret.to_base64()), &options).unwrap();
    let there = imported("wg1.conf", &end.wg_quick());
    assert_eq!(there.public_key, Some(keys.secret.public()));
    assert_eq!(there.preshared_key, here.preshared_key);
    assert_eq!(there.endpoints, ["a.example.net:51820"]);
    assert_eq!(there.listen, Some((None, 51820)));
    assert_eq!(there.addresses, ["10.99.0.2/30".parse().unwrap()]);
    let allowed: Vec<_> = there.allowed_ips.unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(allowed, ["10.99.0.1/32", "fd99::1/128", "192.168.10.0/24"]);
    assert!(!notes.iter().any(|note| note.contains("--peer-key")), "{notes:?}");
}

#[test]
fn without_its_key_the_other_end_has_a_placeholder() {
    let Loaded { config, keys, .. } = loaded(&imported("wg0.conf", &fixture("wg0.conf")));
    let (end, notes) = ends::other(&config, &keys, None, &options(&["--qr"])).unwrap();
    let text = end.wg_quick();
    assert!(
        text.contains(export::PLACEHOLDER) && text.contains(&config.peer.public_key.to_string())
    );
    for missing in ["--peer-key", "--endpoint", "--network", "stays here"] {
        assert!(notes.iter().any(|note| note.contains(missing)), "{missing}: {notes:?}");
    }
    let mut notes = vec![];
    assert!(super::text(&end, &options(&["--qr"]), &mut notes).unwrap().contains('█'));
    // That of wg0.conf.
    assert!(notes[0].contains("this contains keys"), "{notes:?}");
    assert!(notes[1].contains("no private key"), "{notes:?}");
}

#[test]
fn every_format_has_both_keys() {
    let here = imported("wg0.conf", &fixture("wg0.conf"));
    let Loaded { config, keys, .. } = loaded(&here);
    let (end, _) = ends::own(&config, &keys);
    let hex = |key: &PublicKey| {
        key.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let uapi = end.uapi();
    assert!(uapi.starts_with("set=1\nprivate_key=") && uapi.ends_with("\n\n"));
    assert!(uapi.contains(&format!("public_key={}\n", hex(&config.peer.public_key))));
    assert!(uapi.contains("allowed_ip=192.168.20.0/24\n"));
    let (netdev, network) = end.networkd();
    let sources = [("wg0.netdev", netdev), ("wg0.network", network)];
    let sources = sources.map(|(name, text)| Source { name: name.to_owned(), text });
    let host: Rc<dyn Host> = Rc::new(Bare);
    let again = vpnd_import::import(&sources, &Choices::default(), &host);
    let again = again.unwrap_or_else(|failure| panic!("{}", failure.error)).tunnel;
    assert_eq!(comparable(&again), comparable(&here));
}

#[test]
fn an_endpoint_of_this_end_takes_the_port_that_is_listened_at() {
    let Loaded { config, keys, .. } = loaded(&imported("wg0.conf", &fixture("wg0.conf")));
    let endpoint = |text: &str| {
        let other = ends::other(&config, &keys, None, &options(&["--uapi", "--endpoint", text]));
        other.map(|(end, _)| end.endpoint.unwrap())
    };
    assert_eq!(endpoint("a.example.net").unwrap(), "a.example.net:51820");
    assert_eq!(endpoint("a.example.net:443").unwrap(), "a.example.net:443");
    assert_eq!(endpoint("2001:db8::1").unwrap(), "[2001:db8::1]:51820");
    assert_eq!(endpoint("[2001:db8::1]:443").unwrap(), "[2001:db8::1]:443");
    assert!(matches!(endpoint("a b"), Err(ExportError::Endpoint(_))));
}

#[test]
fn only_the_peers_key_is_taken_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    let secret = SecretKey::from_bytes([6; 32]);
    keys::create(&path, &secret.to_base64()).unwrap();
    let Loaded { config, .. } = loaded(&imported("wg0.conf", &fixture("wg0.conf")));
    let error = peer_key(&path, &config.peer).unwrap_err();
    assert!(error.is::<ExportError>(), "{error:#}");
    let peer = config::Peer { public_key: secret.public(), ..config.peer };
    assert_eq!(peer_key(&path, &peer).unwrap(), secret.to_base64());
}

#[test]
fn every_form_with_a_key_says_so() {
    let Loaded { config, keys, .. } = loaded(&imported("wg0.conf", &fixture("wg0.conf")));
    for form in ["--wg-quick", "--networkd", "--uapi", "--qr"] {
        let said = |end: &End| {
            let mut notes = vec![];
            text(end, &options(&[form]), &mut notes).unwrap();
            notes.concat().contains("this contains keys")
        };
        let (end, _) = ends::own(&config, &keys);
        assert!(said(&end), "{form}");
        let (other, _) = ends::other(&config, &keys, None, &options(&[form])).unwrap();
        assert!(said(&other), "{form}: the preshared key");
        assert!(!said(&End { preshared_key: None, ..other }), "{form}");
    }
}

/// A command that `wg-quick` would read as another is left out, and said.
#[test]
fn a_command_that_cannot_be_said_is_not() {
    let command = |text: &str| vec!["sh".to_owned(), "-c".to_owned(), text.to_owned()];
    let up = vec![command("nft -f - <<E\nadd table t\nE"), command("logger up")];
    let tunnel = Tunnel {
        up,
        down: vec![command("echo '#'")],
        ..imported("wg0.conf", &fixture("wg0.conf"))
    };
    let Loaded { config, keys, .. } = loaded(&tunnel);
    let (end, notes) = ends::own(&config, &keys);
    let text = end.wg_quick();
    assert!(
        text.contains("PostUp = logger up\n") && !text.contains("PreDown"),
        "{}",
        text.as_str()
    );
    assert!(!text.contains("nft") && !text.contains("add table"), "{}", text.as_str());
    let unsaid: Vec<_> = notes.iter().filter(|note| note.contains("a command with")).collect();
    assert_eq!(unsaid.len(), 2, "{notes:?}");
    assert!(unsaid[0].contains(r"sh -c $'nft -f - <<E\012add table t\012E'"), "{notes:?}");
}
