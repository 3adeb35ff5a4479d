//! Random pairs of configurations: after a reload the host is as after a start of the second one.

use std::env;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use vpnd_tests::site::{INNER_B4, Site, pair};
use vpnd_tests::traffic::ping;
use vpnd_tests::vpnd::{Service, config};
use vpnd_tests::{Host, Lab, Vpnd, Wire, eventually, long};

use super::with;
use crate::tunnel::SOON;

/// How long a host may take to have the state that it keeps.
const SETTLES: Duration = Duration::from_secs(10);

pub(super) fn pairs(lab: &Lab) -> Result<String> {
    let seed = env::var("VPND_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let count = if long() { 200 } else { 8 };
    let wire = Wire::new(lab)?;
    let (a, mut b) = pair()?;
    b.remote.allowed_ips = vec!["0.0.0.0/0".to_owned(), "::/0".to_owned()];
    let b = b.keepalive(1).speaking_vpnd(&[]);
    let a = a.towards(Wire::B4).keepalive(1).speaking_vpnd(&[]);
    let _peer = Vpnd::start(&wire.b, &b)?;
    let mut rng = StdRng::seed_from_u64(seed);
    for number in 0..count {
        let told = || format!("pair {number} of seed {seed}");
        one(&wire.a, &a, &mut rng).with_context(told)?;
    }
    Ok(format!("{count} pairs: each state is that of a fresh start"))
}

fn one(host: &Host, site: &Site, rng: &mut StdRng) -> Result<()> {
    // What takes a restart is the same in both.
    let firewall = rng.random_bool(0.5);
    let [first, second] = [(); 2].map(|()| random(rng, firewall));
    let fresh = {
        let started = begin(host, site, &second)?;
        let fresh = settled(host)?;
        started.into_process().interrupt()?;
        fresh
    };
    let running = begin(host, site, &first)?;
    settled(host)?;
    let base = running.text()?;
    let text = with(&site_text(host, site)?, &second);
    let (code, said) = running.reload_text(&text, &[])?;
    ensure!(code == 0, "reload ends with {code}: {said}\n{base}\n{text}");
    let compared = eventually("the state of a fresh start", SETTLES, || {
        let reloaded = state(host)?;
        ensure!(reloaded == fresh, "{}", difference(&fresh, &reloaded));
        Ok(())
    });
    compared.with_context(|| format!("from\n{base}\nto\n{text}"))?;
    running.into_process().interrupt()?;
    Ok(())
}

type Changes = Vec<(&'static str, &'static str)>;

fn site_text(host: &Host, site: &Site) -> Result<String> {
    Ok(config(site, &host.directory().join("state"), Service::TESTED))
}

/// Starts the tunnel with these changes, and waits for the peer.
fn begin(host: &Host, site: &Site, changes: &Changes) -> Result<Vpnd> {
    let path = vpnd_tests::vpnd::write_files(host, site)?;
    std::fs::write(&path, with(&site_text(host, site)?, changes))?;
    let vpnd = Vpnd::start_file(host, &site.name, path)?;
    ping::until_answered(host, INNER_B4, SOON)?;
    vpnd.wait_for("the peer is alive", SOON, |status| status.alive() == Some(true))?;
    Ok(vpnd)
}

/// A random choice for each key that changes the host.
fn random(rng: &mut StdRng, firewall: bool) -> Changes {
    let mut changes: Changes =
        vec![("[service] firewall", if firewall { "true" } else { "false" })];
    for (key, values) in CHOICES {
        let value = values[rng.random_range(0..values.len())];
        changes.extend((!value.is_empty()).then_some((*key, value)));
    }
    // With the table of a kill switch the mark takes a restart.
    if firewall {
        changes.retain(|(key, _)| *key != "[socket] fwmark");
    }
    for routes in ROUTES {
        changes.push(("[[route]]", routes[rng.random_range(0..routes.len())]));
    }
    changes
}

/// Values of keys; an empty one leaves out the key.
const CHOICES: &[(&str, &[&str])] = &[
    (
        "[interface] address",
        &[
            "[\"10.99.0.1/30\"]",
            "[\"10.99.0.1/30\", \"2001:db8:99::1/64\"]",
            "[\"10.97.0.1/24\", \"10.99.0.1/30\"]",
            "[\"10.99.0.1/30\", \"10.96.0.1/24\", \"10.96.0.7/24\", \"fd00:96::1/64\"]",
        ],
    ),
    ("[interface] mtu", &["1420", "1300", "\"auto\"", "1500"]),
    ("[interface] txqueuelen", &["", "77", "3000"]),
    ("[interface] multicast", &["", "false"]),
    ("[interface] carrier", &["", "\"always\""]),
    ("[socket] fwmark", &["", "7", "\"0x100\""]),
    ("[socket] rcvbuf", &["", "\"1MiB\"", "\"2MiB\""]),
    ("[socket] sndbuf", &["", "\"1MiB\""]),
    ("[socket] bind_device", &["", "\"eth0\""]),
    ("[peer] dead_after", &["", "\"20s\""]),
    ("[metrics] listen", &["", "\"127.0.0.1:9588\"", "\"127.0.0.1:9589\""]),
];

/// Routes, of which one each is chosen.
const ROUTES: &[&[&str]] = &[
    &[
        "",
        "[[route]]\nto = \"192.168.20.0/24\"",
        "[[route]]\nto = \"192.168.20.0/24\"\nmetric = 9",
        "[[route]]\nto = \"192.168.20.0/24\"\nwhen_down = \"blackhole\"",
        "[[route]]\nto = \"192.168.20.0/24\"\nmetric = 9\nwhen_down = \"remove\"",
    ],
    &[
        "",
        "[[route]]\nto = \"198.18.0.0/15\"\ntable = 77",
        "[[route]]\nto = \"fd20::/48\"\nwhen_down = \"blackhole\"",
        "[[route]]\nto = \"fd20::/48\"\nmetric = 50",
    ],
    &[
        "",
        "[[route]]\nto = \"0.0.0.0/0\"",
        "[[route]]\nto = \"0.0.0.0/0\"\nwhen_down = \"blackhole\"",
        "[[route]]\nto = \"::/0\"\nwhen_down = \"blackhole\"",
        "[[route]]\nto = \"0.0.0.0/0\"\n[[route]]\nto = \"::/0\"",
    ],
];

/// The state once it no longer changes.
fn settled(host: &Host) -> Result<String> {
    let mut last = state(host)?;
    eventually("the host settles", SETTLES, || {
        std::thread::sleep(Duration::from_millis(400));
        let now = state(host)?;
        let is_same = std::mem::replace(&mut last, now.clone()) == now;
        ensure!(is_same, "it changes");
        Ok(now)
    })
}

/// Addresses, routes, rules, packet filter, device and socket, sorted, without what the kernel counts or numbers.
pub(super) fn state(host: &Host) -> Result<String> {
    let mut lines = Vec::new();
    for (command, dropped) in [
        (
            "ip -j addr show dev tun0",
            &[
                "ifindex",
                "valid_life_time",
                "preferred_life_time",
                "cacheinfo",
                "operstate",
                "flags",
            ][..],
        ),
        ("ip -j -4 route show table all", &["cache"]),
        ("ip -j -6 route show table all", &["cache", "pref"]),
        ("ip -j -4 rule", &[]),
        ("ip -j -6 rule", &[]),
    ] {
        let shown: Value = serde_json::from_str(&host.run(command)?).unwrap_or_default();
        lines.extend(flat(&shown, dropped));
    }
    lines.extend(ruleset(&host.run("nft --stateless list ruleset")?));
    let sockets = host.run("ss -uanepmO")?;
    let ours = sockets.lines().filter(|line| line.contains("vpnd")).map(socket_line);
    lines.extend(ours);
    let metrics = host.run("ss -tlnH")?;
    lines.extend(metrics.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")));
    lines.sort();
    Ok(lines.join("\n"))
}

/// The lines of the packet filter, each with the table, set or chain that it is in: these have no order. Read as text,
/// because nft 1.0.6 prints no sound JSON of a table that has an owner.
fn ruleset(text: &str) -> Vec<String> {
    let mut place = "";
    let said = text.lines().filter(|line| !["", "}"].contains(&line.trim()));
    let placed = said.map(|line| {
        place = if line.ends_with('{') || line.starts_with("table ") { line } else { place };
        format!("{place} {line}")
    });
    placed.collect()
}

/// The elements of lists as one line each.
fn flat(value: &Value, dropped: &[&str]) -> Vec<String> {
    match value {
        Value::Array(all) => all.iter().flat_map(|one| flat(one, dropped)).collect(),
        Value::Object(of) => match of.get("addr_info") {
            Some(inner) => {
                let outer =
                    Value::Object(of.iter().filter(|(_, one)| !one.is_array()).map(own).collect());
                flat(inner, dropped).into_iter().chain([plain(&outer, dropped)]).collect()
            }
            None => vec![plain(value, dropped)],
        },
        other => vec![plain(other, dropped)],
    }
}

fn own((key, value): (&String, &Value)) -> (String, Value) {
    (key.clone(), value.clone())
}

fn plain(value: &Value, dropped: &[&str]) -> String {
    fn without(value: &Value, dropped: &[&str]) -> Value {
        match value {
            Value::Object(of) => {
                let kept = of.iter().filter(|(key, _)| !dropped.contains(&key.as_str()));
                Value::Object(kept.map(|(key, one)| (key.clone(), without(one, dropped))).collect())
            }
            Value::Array(all) => {
                Value::Array(all.iter().map(|one| without(one, dropped)).collect())
            }
            other => other.clone(),
        }
    }
    without(value, dropped).to_string()
}

/// The address, mark, interface and buffers of a socket.
fn socket_line(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let is_kept = |word: &&&str| word.starts_with("fwmark") || word.contains(":51820");
    let buffers = line.split("skmem:(").nth(1).unwrap_or_default();
    let sizes =
        buffers.split([',', ')']).filter(|part| part.starts_with("rb") || part.starts_with("tb"));
    let kept: Vec<_> = words.iter().filter(is_kept).copied().chain(sizes).collect();
    format!("socket {}", kept.join(" "))
}

/// The lines that only one of two states has.
fn difference(wanted: &str, is: &str) -> String {
    let only_in = |one: &str, other: &str, sign: char| -> String {
        let others: Vec<_> = other.lines().collect();
        let only = one.lines().filter(|line| !others.contains(line));
        only.map(|line| format!("\n{sign} {line}")).collect()
    };
    only_in(wanted, is, '-') + &only_in(is, wanted, '+')
}
