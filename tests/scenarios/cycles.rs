//! Repeated starts and stops, clean ones and by `kill -9`: the host is left unchanged.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_B4, Site};
use vpnd_tests::traffic::ping;
use vpnd_tests::{Host, Lab, Vpnd, Wire, long};

use crate::tunnel::SOON;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    for tap in [false, true] {
        let what = if tap { "a port of a bridge" } else { "default routes" };
        let stopped = format!("cycles::start and stop, {what}");
        all.push(Scenario::new(stopped, Cost::Works, move |lab| stopped_often(lab, tap)));
        let killed = format!("cycles::kill -9 and restart, {what}");
        all.push(Scenario::new(killed, Cost::Works, move |lab| killed_often(lab, tap)));
    }
    all
}

/// A, everything it may be told to change in the system, and B beside it.
struct Cycles {
    a: Host,
    site: Site,
    _b: Vpnd,
}

impl Cycles {
    fn new(lab: &Lab, tap: bool) -> Result<Self> {
        let Wire { a, b } = Wire::new(lab)?;
        a.run("ip link add br0 type bridge")?;
        // With a port of its own, so that nothing depends on ours.
        a.run("ip link add lan type veth peer name station")?;
        a.run("ip link set lan master br0")?;
        for device in ["station", "lan", "br0"] {
            a.run(&format!("ip link set {device} up"))?;
        }
        // Its link-local address, and the route for groups, come a moment later.
        for device in ["station", "lan", "br0"] {
            vpnd_tests::eventually("the bridge is ready", SOON, || {
                let shown = a.run(&format!("ip -6 route show table all dev {device}"))?;
                (shown.contains("fe80::/64") && shown.contains("ff00::/8"))
                    .then_some(())
                    .context(shown)
            })?;
        }
        a.run("ip route add default via 192.0.2.2")?;
        let (mut site_a, mut site_b) = site::pair()?;
        site_a.remote.allowed_ips = vec!["0.0.0.0/0".to_owned(), "::/0".to_owned()];
        let mut routes = vec![
            ("198.51.100.0/24", "remove"),
            ("203.0.113.0/24", "blackhole"),
            ("2001:db8:7::/48", "keep"),
        ];
        if tap {
            site_a = site_a.speaking_vpnd(&[]);
            site_b = site_b.speaking_vpnd(&[]);
            site_a.interface.extend(["mode = \"tap\"".to_owned(), "bridge = \"br0\"".to_owned()]);
            site_b.interface.push("mode = \"tap\"".to_owned());
        } else {
            routes.extend([("0.0.0.0/0", "blackhole"), ("::/0", "blackhole")]);
        }
        let lines =
            routes.iter().map(|(to, when)| format!("[[route]]\nto = {to:?}\nwhen_down = {when:?}"));
        site_a.service.extend(lines);
        let b = Vpnd::start(&b, &site_b)?;
        Ok(Self { a, site: site_a.towards(Wire::B4).keepalive(1), _b: b })
    }

    /// Everything of the host that must be as before.
    fn state(&self) -> Result<String> {
        let state = self.a.network_state()?;
        let sysctls = self.a.enter(|| {
            let mut text = String::new();
            sysctls(Path::new("/proc/sys/net"), &mut text)?;
            Ok(text)
        })?;
        Ok(state + &sysctls)
    }

    fn ensure_as(&self, before: &str, round: u32) -> Result<()> {
        let after = self.state()?;
        ensure!(before == after, "round {round}: {}", difference(before, &after));
        Ok(())
    }
}

/// Every value that a namespace has, but what counts or tells the time.
fn sysctls(directory: &Path, text: &mut String) -> Result<()> {
    let mut entries: Vec<_> =
        fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    entries.sort();
    for path in entries {
        if path.is_dir() {
            sysctls(&path, text)?;
        } else if !counts(&path) {
            // Some may only be written, and one that goes between two looks is not the same either.
            let value = fs::read(&path).unwrap_or_default();
            writeln!(text, "{}: {}", path.display(), String::from_utf8_lossy(&value).trim())?;
        }
    }
    Ok(())
}

fn counts(path: &Path) -> bool {
    const COUNTERS: [&str; 3] = ["nf_conntrack_count", "dentry-state", "tcp_fastopen_key"];
    path.file_name().is_some_and(|name| COUNTERS.iter().any(|counter| name == *counter))
}

/// The lines that one has and the other has not.
fn difference(before: &str, after: &str) -> String {
    let without = |of: &str, other: &str, sign: &str| {
        let lines: Vec<_> = of.lines().filter(|line| !other.lines().any(|o| o == *line)).collect();
        lines.iter().map(|line| format!("\n{sign} {line}")).collect::<String>()
    };
    without(before, after, "-") + &without(after, before, "+")
}

fn stopped_often(lab: &Lab, tap: bool) -> Result<String> {
    let rounds = if long() { 200 } else { 20 };
    let cycles = Cycles::new(lab, tap)?;
    let before = cycles.state()?;
    let start = Instant::now();
    for round in 0..rounds {
        let mut vpnd = Vpnd::start(&cycles.a, &cycles.site)?;
        // Half of them stop before anybody has answered.
        if round % 2 == 0 {
            answered(&cycles.a, tap)?;
            ensure!(cycles.state()? != before, "it changed nothing");
        }
        let status = vpnd.process().interrupt()?;
        ensure!(status.success(), "round {round}: {status}: {}", vpnd.process().log());
        cycles.ensure_as(&before, round)?;
    }
    let lines = before.lines().count();
    let each = start.elapsed() / rounds;
    Ok(format!(
        "{rounds} starts and stops, {each:.1?} each: {lines} lines of state and sysctls as before"
    ))
}

fn killed_often(lab: &Lab, tap: bool) -> Result<String> {
    let rounds = if long() { 20 } else { 5 };
    let cycles = Cycles::new(lab, tap)?;
    let before = cycles.state()?;
    let mut vpnd = Vpnd::start(&cycles.a, &cycles.site)?;
    answered(&cycles.a, tap)?;
    let running = settled(&cycles)?;
    for round in 0..rounds {
        vpnd.process().kill()?;
        let left = cycles.a.network_state()?;
        ensure!(left.contains("blackhole 203.0.113.0/24"), "nothing keeps packets in: {left}");
        vpnd = vpnd.restart()?;
        answered(&cycles.a, tap)?;
        let now = settled(&cycles)?;
        ensure!(now == running, "round {round}: {}", difference(&running, &now));
    }
    vpnd.process().interrupt()?;
    cycles.ensure_as(&before, rounds)?;
    let lines = running.lines().count();
    Ok(format!(
        "{rounds} times killed and started: {lines} lines the same while it runs, and as before at the end"
    ))
}

/// A bridge's port has its address behind it only on B: it is the routes that show that it works.
fn answered(a: &Host, tap: bool) -> Result<()> {
    if !tap {
        return ping::until_answered(a, INNER_B4, SOON);
    }
    vpnd_tests::eventually("the peer is alive", SOON, || {
        let routes = a.run("ip route show")?;
        routes.contains("198.51.100.0/24 dev tun0").then_some(()).context(routes)
    })
}

/// The state once the routes that follow the peer are there; a bridge's port takes a moment to forward, and its
/// number changes from start to start.
fn settled(cycles: &Cycles) -> Result<String> {
    vpnd_tests::eventually("the routes are there", Duration::from_secs(10), || {
        let state = cycles.a.network_state()?;
        ensure!(state.contains("198.51.100.0/24 dev tun0"), "{state}");
        // The carrier has come, and the kernel takes a moment to say so everywhere.
        ensure!(!state.contains("linkdown") && state.contains("ff00::/8 dev tun0"), "{state}");
        Ok(without_numbers(&state))
    })
}

fn without_numbers(state: &str) -> String {
    let line = |line: &str| match line.split_once(": ") {
        Some((number, rest)) if number.parse::<u32>().is_ok() => rest.to_owned(),
        _ => line.to_owned(),
    };
    state.lines().map(line).collect::<Vec<_>>().join("\n")
}
