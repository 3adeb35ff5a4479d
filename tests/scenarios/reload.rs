//! `vpnd reload` of every key of the documentation: the live ones under numbered streams, of which nothing is lost; the
//! others are named, and nothing changes.

mod keys;
mod pairs;

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vpnd_tests::link::port;
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{INNER_A4, INNER_A6, INNER_B4, INNER_B6, Site, pair};
use vpnd_tests::traffic::ping;
use vpnd_tests::traffic::stream::{Pace, Stream, Tally};
use vpnd_tests::{Host, KeyPair, Lab, Vpnd, Wire};

use crate::tunnel::SOON;
use keys::{Expected, KEYS, Key, TAP_KEYS};

const PACE: Pace = Pace { per_second: 1000, payload: 200 };
/// The time in which a change shows whether it loses packets.
const SHOWS: Duration = Duration::from_millis(300);

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("reload::every key of a tun device", Cost::Waits, tun),
        Scenario::new("reload::every key of a tap device alone", Cost::Waits, tap),
        Scenario::new("reload::a refused change is taken back whole", Cost::Works, refused),
        Scenario::new("reload::a dry run changes nothing", Cost::Works, dry_run),
        Scenario::new("reload::the peer's new endpoint", Cost::Works, endpoint),
        Scenario::new("reload::the log follows", Cost::Works, log),
        Scenario::new("reload::a kill switch that came later outlives a crash", Cost::Works, crash),
        Scenario::new("reload::pairs of configurations", Cost::Waits, pairs::pairs),
    ]
}

/// Two vpnd that have everything that both ends need to change A's keys.
struct Ends {
    wire: Wire,
    a: Vpnd,
    b: Vpnd,
    /// A's configuration.
    base: String,
}

impl Ends {
    fn start(lab: &Lab, change: impl FnOnce(Site, Site) -> (Site, Site)) -> Result<Self> {
        let wire = Wire::new(lab)?;
        let (a, mut b) = pair()?;
        let next = KeyPair::generate()?;
        next.private.write(&wire.a.directory().join("next.key"))?;
        b.remote.next_public = Some(next.public);
        let a = a.towards(Wire::B4).keepalive(25).speaking_vpnd(&[]);
        let mut b = b.keepalive(25).speaking_vpnd(&[]);
        b.remote.allowed_ips.push("10.97.0.0/16".to_owned());
        let (a, b) = change(a, b);
        let b = Vpnd::start(&wire.b, &b)?;
        let a = Vpnd::start(&wire.a, &a)?;
        let base = a.text()?;
        ping::until_answered(&wire.a, INNER_B4, SOON)?;
        Ok(Self { wire, a, b, base })
    }

    fn reload(&self, text: &str) -> Result<()> {
        let (code, said) = self.a.reload_text(text, &[])?;
        ensure!(code == 0, "reload ends with {code}: {said}");
        Ok(())
    }

    /// Streams in both directions while `act` runs.
    fn under_streams(&self, act: impl FnOnce() -> Result<()>) -> Result<[Tally; 2]> {
        let Wire { a, b } = &self.wire;
        let there = Stream::start(a, b, INNER_B4, PACE)?;
        let back = Stream::start(b, a, INNER_A6, PACE)?;
        thread::sleep(SHOWS);
        let acted = act();
        let tallies = [there.stop()?, back.stop()?];
        acted.map(|()| tallies)
    }
}

/// The same configuration with other values of keys, given as `[table] key` and a value; an empty value leaves out the key.
fn with(text: &str, changes: &[(&str, &str)]) -> String {
    changes.iter().fold(text.to_owned(), |text, (key, value)| with_one(&text, key, value))
}

fn with_one(text: &str, key: &str, value: &str) -> String {
    let (table, key) = key.rsplit_once(' ').unwrap_or((key, ""));
    if table == "[[route]]" || key.is_empty() {
        return format!("{text}{value}\n");
    }
    let (mut lines, mut here, mut done) = (Vec::new(), "", value.is_empty());
    for line in text.lines() {
        if line.starts_with('[') {
            here = line;
        }
        let is_old = here == table && line.split('=').next().is_some_and(|word| word.trim() == key);
        if !is_old {
            lines.push(line.to_owned());
        }
        if line == table && !done {
            lines.push(format!("{key} = {value}"));
            done = true;
        }
    }
    if !done {
        lines.push(format!("{table}\n{key} = {value}"));
    }
    lines.join("\n") + "\n"
}

/// What a key of the table came to.
struct Row {
    name: String,
    result: String,
}

fn tun(lab: &Lab) -> Result<String> {
    keys::ensure_complete()?;
    let also =
        "also_accept = [\"cipher=aes-256-gcm\", \"post_quantum=false\", \"protocol=wireguard\"]";
    let ends = Ends::start(lab, |a, b| (a, b.speaking_vpnd(&[also])))?;
    let rows = try_all(&ends, KEYS)?;
    Ok(table(&rows))
}

fn tap(lab: &Lab) -> Result<String> {
    let frames = |mut site: Site| {
        site.interface.push("mode = \"tap\"".to_owned());
        site
    };
    let wire_a = |host: &Host| -> Result<()> {
        for bridge in ["br0", "br1"] {
            host.run(&format!("ip link add {bridge} type bridge"))?;
            port(host, bridge).up()?;
        }
        Ok(())
    };
    let ends = Ends::start(lab, |a, b| (frames(a), frames(b)))?;
    wire_a(&ends.wire.a)?;
    let rows = try_all(&ends, TAP_KEYS)?;
    Ok(table(&rows))
}

fn table(rows: &[Row]) -> String {
    let lines = rows.iter().map(|row| format!("\n    {:<38} {}", row.name, row.result));
    lines.collect()
}

fn try_all(ends: &Ends, keys: &[Key]) -> Result<Vec<Row>> {
    keys.iter().map(|key| try_one(ends, key).with_context(|| key.name.to_owned())).collect()
}

fn try_one(ends: &Ends, key: &Key) -> Result<Row> {
    let text = with(&ends.base, &[&[(key.name, key.value)], key.with].concat());
    let (code, said) = ends.a.reload_text(&text, &["--dry-run"])?;
    let line = said.lines().find(|line| line.contains(&key.shown())).unwrap_or_default();
    let result = match key.expected {
        Expected::Restart => {
            ensure!(code == 1 && line.starts_with("restart "), "{code} {said}");
            let (code, said) = ends.a.reload_text(&text, &[])?;
            ensure!(code == 1 && said.contains(&format!("`{}`", key.shown())), "{code} {said}");
            "restart".to_owned()
        }
        Expected::Live(pause) => {
            ensure!(code == 0 && line.starts_with("live "), "{code} {said}");
            let tallies = ends.under_streams(|| there_and_back(ends, &text, pause))?;
            tallies.iter().try_for_each(Tally::ensure_perfect)?;
            format!("live, 0 of {} lost", tallies.iter().map(|tally| tally.sent).sum::<u64>())
        }
        Expected::Quiet => {
            ensure!(code == 0 && line.starts_with("live "), "{code} {said}");
            there_and_back(ends, &text, SHOWS)?;
            "live; what the device is connected to changes".to_owned()
        }
        Expected::Elsewhere(scenario) => format!("live, see {scenario}"),
    };
    Ok(Row { name: key.name.to_owned(), result })
}

fn there_and_back(ends: &Ends, text: &str, pause: Duration) -> Result<()> {
    ends.reload(text)?;
    thread::sleep(pause);
    ends.reload(&ends.base)?;
    thread::sleep(pause);
    Ok(())
}

fn refused(lab: &Lab) -> Result<String> {
    let ends = Ends::start(lab, |a, b| (a, b))?;
    let host = &ends.wire.a;
    host.run("ip link add other type bridge")?;
    port(host, "other").up()?;
    host.run("ip route add 203.0.113.0/24 dev other")?;
    let taken = host.enter(|| Ok(std::net::TcpListener::bind("127.0.0.1:9586")?))?;
    let everything: &[(&str, &str)] = &[
        ("[interface] address", "[\"10.97.0.1/24\", \"10.99.0.1/30\", \"2001:db8:99::1/64\"]"),
        ("[interface] txqueuelen", "77"),
        ("[interface] mtu", "1300"),
        ("[socket] fwmark", "7"),
        ("[socket] rcvbuf", "\"1MiB\""),
        ("[peer] keepalive", "\"10s\""),
    ];
    let failing = [
        (
            "[[route]]",
            "[[route]]\nto = \"203.0.113.0/24\"",
            "[[route]]: adding route 203.0.113.0/24",
        ),
        ("[socket] bind_device", "\"eth7\"", "[socket] bind_device: cannot bind"),
        ("[metrics] listen", "\"127.0.0.1:9586\"", "[metrics] listen: "),
    ];
    let before = pairs::state(host)?;
    let mut said_all = Vec::new();
    let tallies = ends.under_streams(|| {
        for (key, value, reason) in failing {
            let text = with(&ends.base, &[everything, &[(key, value)]].concat());
            let (code, said) = ends.a.reload_text(&text, &[])?;
            ensure!(code == 1 && said.contains(reason), "{code}: {said}");
            ensure!(said.trim_end().ends_with("; nothing was changed"), "{said}");
            ensure!(
                pairs::state(host)? == before,
                "after {key}: {} not {before}",
                pairs::state(host)?
            );
            said_all.push(key);
        }
        Ok(())
    })?;
    drop(taken);
    tallies.iter().try_for_each(Tally::ensure_perfect)?;
    ends.reload(&with(&ends.base, everything))?;
    ensure!(pairs::state(host)? != before, "all of it but what failed changes something");
    Ok(format!("{} failed, and left the host as it was, 0 datagrams lost", said_all.join(", ")))
}

fn dry_run(lab: &Lab) -> Result<String> {
    let ends = Ends::start(lab, |a, b| (a, b))?;
    let (before, handshakes) = (pairs::state(&ends.wire.a)?, ends.a.status()?.handshakes());
    let (code, said) = ends.a.reload_text(&ends.base, &["--dry-run"])?;
    ensure!(code == 0 && said.contains("nothing differs"), "{code} {said}");
    let live: &[(&str, &str)] = &[
        ("[interface] txqueuelen", "77"),
        ("[interface] private_key_file", "\"next.key\""),
        ("[[route]]", "[[route]]\nto = \"192.168.77.0/24\""),
    ];
    let (code, said) = ends.a.reload_text(&with(&ends.base, live), &["--dry-run"])?;
    ensure!(
        code == 0
            && said
                .lines()
                .filter(|line| line.contains("->"))
                .all(|line| line.starts_with("live ") || line.contains("-->")),
        "{code} {said}"
    );
    ensure!(said.contains("[[route]]: none -> to 192.168.77.0/24"), "{said}");
    let secret = fs::read_to_string(ends.wire.a.directory().join("next.key"))?;
    ensure!(!said.contains(secret.trim()), "a key is shown");
    let text = with(&with(&ends.base, live), &[("[path] offload", "false")]);
    let (code, said) = ends.a.reload_text(&text, &["--dry-run"])?;
    ensure!(code == 1 && said.contains("restart   [path] offload: "), "{code} {said}");
    ensure!(pairs::state(&ends.wire.a)? == before, "something changed");
    ensure!(ends.a.status()?.handshakes() == handshakes, "there was a handshake");
    Ok("no route, no handshake, and no key shown".to_owned())
}

fn endpoint(lab: &Lab) -> Result<String> {
    let ends = Ends::start(lab, |a, b| (a, b))?;
    let text = with(&ends.base, &[("[peer] endpoint", &format!("[{:?}]", Wire::B6))]);
    let begun = Instant::now();
    let mut took = Duration::ZERO;
    let tallies = ends.under_streams(|| {
        ends.reload(&text)?;
        ends.a.wait_for("the new endpoint", SOON, |status| status.endpoint() == Some(Wire::B6))?;
        took = begun.elapsed();
        ends.b.wait_for("A's other address", SOON, |status| status.endpoint() == Some(Wire::A6))?;
        Ok(())
    })?;
    tallies.iter().try_for_each(Tally::ensure_perfect)?;
    for address in [INNER_B4, INNER_B6] {
        ping::until_answered(&ends.wire.a, address, SOON)?;
    }
    ping::until_answered(&ends.wire.b, INNER_A4, SOON)?;
    Ok(format!("there after {} ms, and nothing lost", took.as_millis()))
}

fn log(lab: &Lab) -> Result<String> {
    let ends = Ends::start(lab, |a, b| (a, b))?;
    let json = [("[service] log_format", "\"json\""), ("[service] log_level", "\"trace\"")];
    ends.reload(&with(&ends.base, &json))?;
    ends.reload(&ends.base)?;
    ends.a.wait_for_log("\"message\":\"reloaded, as asked\"", SOON)?;
    ends.reload(&with(&ends.base, &[("[service] log_level", "\"off\"")]))?;
    let quiet = ends.a.as_process().log();
    ends.reload(&ends.base)?;
    let said = ends.a.as_process().log();
    let after = said.strip_prefix(quiet.as_str()).context("the log was rewritten")?;
    ensure!(after.contains("INFO reloaded, as asked"), "{after:?}");
    Ok("JSON and back, off and on".to_owned())
}

fn crash(lab: &Lab) -> Result<String> {
    let firewall = |mut site: Site| {
        site.service.push("firewall = true".to_owned());
        site
    };
    let ends = Ends::start(lab, |a, b| (firewall(a), b))?;
    let route = "[[route]]\nto = \"198.18.0.0/15\"\nwhen_down = \"blackhole\"";
    let host = &ends.wire.a;
    let guarded = |host: &Host| -> Result<[bool; 2]> {
        let routes = host.run("ip route show type blackhole")?;
        let tables = host.run("nft list tables")?;
        Ok([routes.contains("198.18.0.0/15"), tables.contains("vpnd_killswitch-site-a")])
    };
    ensure!(guarded(host)? == [false; 2], "there is a kill switch");
    ends.reload(&with(&ends.base, &[("[[route]]", route)]))?;
    ensure!(guarded(host)? == [true; 2], "{:?} after the reload", guarded(host)?);
    let file = host.directory().join("site-a.toml");
    let Ends { wire, a, base, b: _b } = ends;
    a.into_process().kill()?;
    ensure!(guarded(&wire.a)? == [true; 2], "{:?} after the crash", guarded(&wire.a)?);
    fs::write(&file, &base)?;
    let again = Vpnd::start_file(&wire.a, "site-a", file)?;
    ensure!(guarded(&wire.a)? == [false; 2], "{:?} after the next start", guarded(&wire.a)?);
    // One that a reload has removed is not left behind either.
    for text in [with(&base, &[("[[route]]", route)]), base] {
        let (code, said) = again.reload_text(&text, &[])?;
        ensure!(code == 0, "{said}");
    }
    ensure!(guarded(&wire.a)? == [false; 2], "{:?} after its removal", guarded(&wire.a)?);
    Ok("it stayed after kill -9, and the next start removed it".to_owned())
}
