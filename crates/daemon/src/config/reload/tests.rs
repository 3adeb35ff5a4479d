use vpnd_crypto::SecretKey;

use super::*;
use crate::config::section::TABLES;
use crate::config::tests::{PEER, good, minimal};

/// The keys that differ between these configurations, each with how it takes effect.
fn differing(now: &Config, then: &Config) -> Vec<String> {
    let all = now.differences(then, Running::default(), &[]);
    all.iter().map(|one| format!("{} {}", one.takes, one.key)).collect()
}

#[test]
fn a_reload_changes_profile_and_keys() {
    let running = good(&minimal("", "protocol = 'vpnd'")).config;
    let next = SecretKey::from_bytes([5; 32]).public();
    for peer in [
        "protocol = 'wireguard'",
        "protocol = 'vpnd'\ncipher = 'aes-256-gcm'\npost_quantum = false",
        "protocol = 'vpnd'\nalso_accept = 'protocol=wireguard'",
        "protocol = 'vpnd'\npreshared_key_file = 'site.psk'",
        "protocol = 'vpnd'\nnext_preshared_key_file = 'site.psk'",
        &format!("protocol = 'vpnd'\nnext_public_key = '{next}'"),
    ] {
        let found = differing(&running, &good(&minimal("", peer)).config);
        assert!(found.iter().all(|one| one.starts_with("live ")), "{peer}: {found:?}");
    }
    let announced = good(&minimal("", &format!("next_public_key = '{next}'"))).config;
    let arrived = good(&minimal("", "").replace(PEER, &next.to_string())).config;
    let found = differing(&announced, &arrived);
    assert_eq!(found, ["live [peer] public_key", "live [peer] next_public_key"]);
    assert!(differing(&running, &arrived).contains(&"restart [peer] public_key".to_owned()));
}

#[test]
fn a_difference_is_shown_in_the_words_of_the_file() {
    let running = good(&minimal("", "")).config;
    let routes = "keepalive = '25s'\n[[route]]\nto = '192.168.20.0/24'\nmetric = 50";
    let wanted = good(&minimal("txqueuelen = 9\nname = 'tun7'", routes)).config;
    let found = running.differences(&wanted, Running::default(), &[]);
    let shown: Vec<_> =
        found.iter().map(|one| format!("{}: {} -> {}", one.key, one.was, one.becomes)).collect();
    assert_eq!(
        shown,
        [
            "[interface] name: none -> \"tun7\"",
            "[interface] txqueuelen: 1000 -> 9",
            "[interface] carrier: \"always\" -> \"peer\"",
            "[peer] allowed_ips: [\"10.99.0.0/30\"] -> [\"10.99.0.0/30\",\"192.168.20.0/24\"]",
            "[peer] keepalive: \"off\" -> \"25s\"",
            "[[route]]: none -> to 192.168.20.0/24 metric 50 when_down keep",
        ]
    );
}

#[test]
fn addresses_change_unless_one_that_stays_would_be_gone_for_a_moment() {
    let with = |address: &str, peers: &str| {
        let address = format!("address = [{address}]\n{peers}");
        let source = minimal("", "").replace("address = '10.99.0.1/30'", &address);
        good(&source).config
    };
    let plain = |address: &str| with(address, "");
    let restarts = |now: &Config, then: &Config| {
        differing(now, then).contains(&"restart [interface] address".to_owned())
    };
    let one = plain("'10.99.0.1/30'");
    for then in ["'10.98.0.1/30'", "'10.98.0.1/30', '10.99.0.1/30'", "'10.99.0.1/30', 'fd00::1/64'"]
    {
        assert!(!restarts(&one, &plain(then)), "{then}");
    }
    let [two, swapped] =
        ["'10.99.0.1/24', '10.99.0.9/24'", "'10.99.0.9/24', '10.99.0.1/24'"].map(plain);
    assert!(restarts(&two, &swapped), "the second becomes the first");
    assert!(restarts(&two, &plain("'10.99.0.9/24'")), "the second goes with the first");
    assert!(!restarts(&two, &plain("'10.99.0.1/24'")));
    assert!(
        restarts(&plain("'10.99.0.1/30', 'fd00::1/64'"), &plain("'10.99.0.1/30', 'fd00::1/128'")),
        "the same with another prefix"
    );
    let far = with("'10.99.0.1/30', 'fd00::1/128'", "peer_address = 'fd00::2'");
    let other = with("'10.99.0.1/30', 'fd00::1/128'", "peer_address = 'fd00::3'");
    assert_eq!(differing(&far, &other)[0], "restart [interface] peer_address");
}

#[test]
fn some_keys_take_a_restart_on_some_hosts() {
    let tap =
        |mtu: &str| good(&minimal(&format!("mode = 'tap'\n{mtu}"), "protocol = 'vpnd'")).config;
    let (set, bare) = (tap("mtu = 1400"), tap(""));
    let adopted = Running { adopted: true, has_runner: false };
    let takes = |now: &Config, then: &Config, running| now.differences(then, running, &[])[0].takes;
    assert_eq!(takes(&bare, &set, adopted), Takes::Live);
    assert_eq!(takes(&set, &bare, adopted), Takes::Restart, "the MTU that it had is not known");
    assert_eq!(takes(&set, &bare, Running::default()), Takes::Live);
    let names = |routes: &str| {
        let more = format!("[dns]\nservers = '10.99.0.2'\n{routes}");
        good(&minimal("", &more)).config
    };
    let runner = Running { adopted: false, has_runner: true };
    let everything = names("[[route]]\nto = '0.0.0.0/0'");
    let last =
        |now: &Config, then: &Config| now.differences(then, runner, &[]).pop().unwrap().takes;
    assert_eq!(last(&names(""), &everything), Takes::Restart, "all names are resolved there");
    assert_eq!(last(&names(""), &names("[[route]]\nto = '192.168.7.0/24'")), Takes::Live);
    let more = |more: &str| good(&minimal("", more)).config;
    for (now, then, expected) in [
        ("", "[socket]\nfwmark = 7", "live [socket] fwmark"),
        (
            "[[route]]\nto = '192.168.2.0/24'\nwhen_down = 'blackhole'\n[service]\nfirewall = true",
            "[[route]]\nto = '192.168.2.0/24'\nwhen_down = 'blackhole'\n[service]\nfirewall = true\n[socket]\nfwmark = 7",
            "restart [socket] fwmark",
        ),
        ("", "[socket]\nbind_device = 'eth0'", "live [socket] bind_device"),
        ("[socket]\nbind_device = 'eth0'", "", "live [socket] bind_device"),
        ("", "[metrics]\nlisten = '127.0.0.1:9586'", "live [metrics] listen"),
        ("", "[metrics]\nlisten = '/run/vpnd/m'", "restart [metrics] listen"),
        (
            "[metrics]\nlisten = '[::1]:9586'",
            "[metrics]\nlisten = '127.0.0.1:9586'",
            "restart [metrics] listen",
        ),
    ] {
        assert_eq!(differing(&more(now), &more(then)), [expected]);
    }
    let free = |more: &str| {
        let more = format!("endpoint = '192.0.2.2:7'\n{more}");
        good(&minimal("", &more).replace("listen = 51820", "")).config
    };
    let bound = free("[socket]\nbind_device = 'eth0'");
    assert_eq!(
        differing(&bound, &free("")),
        ["restart [socket] bind_device"],
        "its port would be lost"
    );
    assert_eq!(differing(&free(""), &bound), ["live [socket] bind_device"]);
}

#[test]
fn routes_are_everything_with_one_network_or_its_halves() {
    let of = |routes: &[&str]| {
        let tables: String = routes.iter().map(|to| format!("[[route]]\nto = '{to}'\n")).collect();
        good(&minimal("", &tables)).config.routes_everything()
    };
    assert!(of(&["192.168.20.0/24", "::/0"]));
    assert!(of(&["0.0.0.0/1", "128.0.0.0/1"]));
    assert!(!of(&["0.0.0.0/1", "8000::/1"]));
    assert!(!of(&["10.0.0.0/8"]));
}

/// The table in the documentation has every key in the class that the code has it in.
#[test]
fn the_documentation_says_what_takes_a_restart() {
    let page = include_str!("../../../../../docs/configuration.md");
    let rows =
        page.lines().filter(|line| line.starts_with("| `[") && line.matches('|').count() == 5);
    let keys = |cell: &str| -> Vec<String> {
        cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    let mut documented = Vec::new();
    for row in rows {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let table = cells[1].trim_matches('`');
        for (cell, class) in [(cells[2], "live"), (cells[3], "some"), (cells[4], "restart")] {
            documented.extend(keys(cell).iter().map(|key| format!("{class} {table} {key}")));
        }
    }
    let tables = TABLES.iter().filter(|(title, _)| !title.is_empty());
    let all = tables.flat_map(|(title, keys)| keys.iter().map(move |key| (*title, *key)));
    let mut coded: Vec<_> =
        all.map(|(title, key)| format!("{} {title} {key}", class(title, key).unwrap())).collect();
    documented.sort();
    coded.sort();
    assert_eq!(documented, coded);
}

/// The class of a key as the documentation names it: `live`, `restart`, or `some` for a key that takes a restart on some
/// hosts. `None` for an unknown key.
fn class(table: &str, key: &str) -> Option<&'static str> {
    let config = good(&minimal("", "")).config;
    let known = |one: &Compared| one.table == table && (one.key == key || one.key.is_empty());
    Some(match compared(&config, &config).into_iter().find(known)?.class {
        Live | Contents => "live",
        Restart => "restart",
        Unless(_) => "some",
    })
}
