//! `check --online` and `doctor`: staged faults are named by their cause, what mends them mends them, and a healthy
//! pair has none.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vpnd_tests::link::{cable, port};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_A4, INNER_B4, Site};
use vpnd_tests::traffic::ping;
use vpnd_tests::{Host, Key, KeyPair, Lab, Routed, Vpnd, Wire, eventually, nft, vpnd};

use crate::tunnel::{SOON, Tunnel};

pub(crate) fn scenarios() -> Vec<Scenario> {
    let works =
        |name: &str, body: fn(&Lab) -> Result<String>| Scenario::new(name, Cost::Works, body);
    let mut all = vec![
        works("doctor::the port is taken", taken_port),
        works("doctor::nftables drops what arrives", closed_input),
        works("doctor::nftables drops what leaves", closed_output),
        works("doctor::rules that are none of ours", other_rules),
        works("doctor::no route to the peer", no_route),
        works("doctor::a route that refuses", refusing_route),
        works("doctor::a route into the tunnel itself", own_route),
        works("doctor::no forwarding", not_forwarding),
        works("doctor::a strict rp_filter", strict_filter),
        works("doctor::a name that does not resolve", unknown_name),
        works("doctor::a clock behind the floor", late_clock),
        works("doctor::keys and terms that differ", other_terms),
        works("doctor::a path that is too narrow", narrow_path),
        works("doctor::a device name that is taken", taken_name),
        works("doctor::no driver", no_driver),
        works("doctor::nobody listens", nobody_listens),
        works("doctor::a device that somebody has changed", changed_device),
        works("doctor::a running tunnel that is cut off", cut_off),
        works("doctor::exit codes and JSON", usage),
        works("doctor::healthy: everything through the tunnel", healthy_default_route),
    ];
    for (mode, protocol) in [("tun", "wireguard"), ("tun", "vpnd"), ("tap", "vpnd")] {
        for (family, a, b) in [("IPv4", Wire::A4, Wire::B4), ("IPv6", Wire::A6, Wire::B6)] {
            let name = format!("doctor::healthy: {mode}, {protocol}, over {family}");
            let body = move |lab: &Lab| healthy(lab, mode, protocol, [a, b]);
            all.push(Scenario::new(name, Cost::Works, body));
        }
    }
    all
}

/// What was found: the exit code, and the faults.
struct Found {
    code: i32,
    findings: Vec<Value>,
    said: String,
}

/// Examines a tunnel that does not run.
fn check(host: &Host, file: &Path) -> Result<Found> {
    let file = file.display().to_string();
    examine(host, &["check", &file, "--online", "--json"], "/online/findings")
}

/// Examines the running tunnel `site-a` or `site-b`.
fn doctor(host: &Host, name: &str) -> Result<Found> {
    let file = host.directory().join(format!("{name}.toml")).display().to_string();
    examine(host, &["doctor", name, "--config", &file, "--json"], "/findings")
}

fn examine(host: &Host, words: &[&str], place: &str) -> Result<Found> {
    let (code, said) = vpnd::run(host, words)?;
    let found: Value =
        serde_json::from_str(&said).with_context(|| format!("{words:?}: exit {code}: {said}"))?;
    let findings = found.pointer(place).and_then(Value::as_array).context("no findings")?.clone();
    Ok(Found { code, findings, said })
}

impl Found {
    /// Nothing was found.
    fn clean(&self) -> Result<()> {
        ensure!(self.findings.is_empty() && self.code == 0, "exit {}: {}", self.code, self.said);
        Ok(())
    }

    /// The only fault, which is about this and whose cause has these words.
    fn only(&self, about: &str, words: &[&str]) -> Result<&Value> {
        ensure!(self.findings.len() == 1 && self.code == 1, "exit {}: {}", self.code, self.said);
        self.one(about, words)
    }

    /// One of the faults.
    fn one(&self, about: &str, words: &[&str]) -> Result<&Value> {
        let is_it = |one: &&Value| {
            let cause = one["cause"].as_str().unwrap_or_default();
            one["check"] == about && words.iter().all(|word| cause.contains(word))
        };
        let found = self.findings.iter().find(is_it);
        found.with_context(|| format!("no {about} with {words:?}: {}", self.said))
    }
}

/// Runs the command that mends a fault, as a shell does.
fn mend(host: &Host, finding: &Value) -> Result<String> {
    let command = finding["command"].as_str().with_context(|| format!("no command: {finding}"))?;
    let output = host.command("sh").args(["-c", command]).output()?;
    ensure!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(command.to_owned())
}

fn advice(finding: &Value) -> &str {
    finding["advice"].as_str().unwrap_or_default()
}

/// A pair on a cable: B runs, and A is about to be started.
struct Ready {
    wire: Wire,
    site_a: Site,
    site_b: Site,
    b: Vpnd,
}

impl Ready {
    fn new(lab: &Lab) -> Result<Self> {
        Self::with(lab, |a, b| (a, b))
    }

    fn with(lab: &Lab, change: impl FnOnce(Site, Site) -> (Site, Site)) -> Result<Self> {
        let wire = Wire::new(lab)?;
        let (site_a, site_b) = site::pair()?;
        let (site_a, site_b) = change(site_a.towards(Wire::B4), site_b);
        let b = Vpnd::start(&wire.b, &site_b)?;
        let ready = Self { wire, site_a, site_b, b };
        ready.check()?.clean().context("before the fault")?;
        Ok(ready)
    }

    fn check(&self) -> Result<Found> {
        self.check_as(&self.site_a)
    }

    fn check_as(&self, site: &Site) -> Result<Found> {
        check(&self.wire.a, &vpnd::write_files(&self.wire.a, site)?)
    }

    /// The only fault is this one, and its command mends it.
    fn mended(&self, about: &str, words: &[&str]) -> Result<String> {
        let found = self.check()?;
        let command = mend(&self.wire.a, found.only(about, words)?)?;
        self.check()?.clean().with_context(|| format!("after `{command}`"))?;
        Ok(format!("mended by `{command}`"))
    }
}

fn taken_port(lab: &Lab) -> Result<String> {
    let ready = Ready::new(lab)?;
    let other = KeyPair::generate()?;
    let mut holder = site::pair()?.0;
    (holder.name, holder.device) = ("other".to_owned(), "tun9".to_owned());
    holder.addresses = vec!["10.9.9.1/30".to_owned()];
    holder.remote.public = other.public;
    holder.remote.allowed_ips = vec!["10.9.9.2/32".to_owned()];
    let mut holder = Vpnd::start(&ready.wire.a, &holder)?;
    let found = ready.check()?;
    let finding = found
        .only("port", &["UDP port 51820 is taken by vpnd(", &holder.process().id().to_string()])?;
    let command = mend(&ready.wire.a, finding)?;
    holder.process().wait(SOON)?;
    ready.check()?.clean()?;
    Ok(format!("mended by `{command}`"))
}

fn chain(hook: &str, policy: &str, rules: &str) -> String {
    format!(
        "table inet filter {{\nchain lost {{\nudp dport 51820 drop\n}}\nchain {hook} {{\n\
         type filter hook {hook} priority 0; policy {policy};\n{rules}\n}}\n}}\n"
    )
}

fn set(host: &Host, rules: &str) -> Result<()> {
    nft::clear(host)?;
    host.run_with_input("nft -f -", rules).map(drop)
}

/// The policy, a rule, a rule of another chain, and one of an earlier hook.
fn closed_input(lab: &Lab) -> Result<String> {
    let ready = Ready::new(lab)?;
    let usual = "ct state established,related accept\niif lo accept\ntcp dport 22 accept\nct state invalid drop";
    let mut said = String::new();
    for (hook, policy, rules, words) in [
        (
            "input",
            "drop",
            "",
            ["chain input drops UDP to port 51820", "(policy drop, no rule accepts it)"],
        ),
        (
            "input",
            "drop",
            usual,
            ["chain input drops UDP to port 51820", "(policy drop, no rule accepts it)"],
        ),
        (
            "input",
            "accept",
            "udp dport 51820 counter drop",
            ["table inet filter, chain input", "rule with handle"],
        ),
        (
            "prerouting",
            "accept",
            "meta l4proto udp jump lost",
            ["chain prerouting drops", "of chain lost"],
        ),
        (
            "input",
            "accept",
            "udp dport { 53, 51000-52000 } reject",
            ["chain input drops", "rule with handle"],
        ),
    ] {
        set(&ready.wire.a, &chain(hook, policy, rules))?;
        said = ready.mended("firewall", &words).with_context(|| rules.to_owned())?;
    }
    Ok(said)
}

fn closed_output(lab: &Lab) -> Result<String> {
    let ready = Ready::new(lab)?;
    let mut said = String::new();
    for (hook, policy, rules) in [
        ("output", "drop", "tcp dport 22 accept"),
        ("output", "accept", "udp dport 51820 drop"),
        ("postrouting", "accept", "ip daddr 192.0.2.2 oifname eth0 meta l4proto udp drop"),
    ] {
        set(&ready.wire.a, &chain(hook, policy, rules))?;
        let words = [&*format!("chain {hook} drops UDP to the peer, 192.0.2.2:51820")];
        said = ready.mended("firewall", &words).with_context(|| rules.to_owned())?;
    }
    Ok(said)
}

/// Rules that let the tunnel pass, some of which look as if they did not.
fn other_rules(lab: &Lab) -> Result<String> {
    let ready = Ready::new(lab)?;
    let rules = [
        ("drop", "udp dport 51820 accept"),
        ("drop", "iifname \"eth*\" accept"),
        ("drop", "ip saddr 192.0.2.0/24 meta l4proto { tcp, udp } accept"),
        ("drop", "udp dport vmap { 51820 : accept, 53 : drop }"),
        ("drop", "udp dport 51820 limit rate 1000/second accept"),
        (
            "accept",
            "tcp dport 51820 drop\nudp dport 53 drop\nip6 nexthdr udp drop\niifname eth9 drop",
        ),
        ("accept", "fib saddr . iif oif missing drop\nmeta mark 0x7 drop\nudp length > 1400 drop"),
        ("accept", "ct state invalid drop\nmeta pkttype { broadcast, multicast } drop"),
    ];
    for (policy, rules) in rules {
        set(&ready.wire.a, &chain("input", policy, rules))?;
        ready.check()?.clean().with_context(|| rules.to_owned())?;
    }
    // A site that only calls lets in nothing but answers.
    let calls = Site { listen: None, ..ready.site_a.clone() };
    set(&ready.wire.a, &chain("input", "drop", "ct state established,related accept"))?;
    ready.check_as(&calls)?.clean().context("a site that only calls")?;
    let _a = Vpnd::start(&ready.wire.a, &calls.keepalive(1))?;
    ping::until_answered(&ready.wire.a, INNER_B4, SOON)?;
    doctor(&ready.wire.a, "site-a")?.clean().context("a running one")?;
    Ok(format!("{} rulesets without a finding", rules.len() + 1))
}

fn no_route(lab: &Lab) -> Result<String> {
    let ready = Ready::new(lab)?;
    let far = ready.site_a.clone().towards("203.0.113.9:51820");
    let found = ready.check_as(&far)?;
    let finding = found.only("route", &["no route to the peer at 203.0.113.9"])?;
    ensure!(advice(finding).contains("ip route add 203.0.113.9 via"), "{finding}");
    port(&ready.wire.a, "eth0").down()?;
    ready.mended("route", &["no route to the peer at 192.0.2.2", "the link eth0 is down"])
}

fn refusing_route(lab: &Lab) -> Result<String> {
    let ready = Ready::new(lab)?;
    let mut said = String::new();
    for kind in ["blackhole", "unreachable", "prohibit"] {
        ready.wire.a.run(&format!("ip route add {kind} 192.0.2.2/32 metric 7"))?;
        let words = [&*format!("{kind} 192.0.2.2/32"), "refuses datagrams to the peer"];
        said = ready.mended("route", &words)?;
    }
    Ok(said)
}

fn own_route(lab: &Lab) -> Result<String> {
    let ready = Ready::new(lab)?;
    for line in [
        "ip tuntap add dev tun0 mode tun user 0",
        "ip link set tun0 up",
        "ip route add 192.0.2.2/32 dev tun0",
    ] {
        ready.wire.a.run(line)?;
    }
    ready.mended("route", &["leads into the tunnel itself", "192.0.2.2/32 dev tun0"])
}

/// A host with a LAN behind it; one without has a note.
fn not_forwarding(lab: &Lab) -> Result<String> {
    let ready = Ready::with(lab, |a, b| (a.route("192.168.20.0/24"), b))?;
    let a = &ready.wire.a;
    a.run("ip link add lan0 type veth peer name lan1")?;
    port(a, "lan0").up()?;
    port(a, "lan1").up()?;
    port(a, "lan0").address(&["192.168.10.1/24"])?;
    ready.mended(
        "forwarding",
        &["does not forward IPv4", "net.ipv4.ip_forward = 0", "192.168.10.0/24 on lan0"],
    )
}

/// A sends by one cable, and B's answers come by the other.
fn strict_filter(lab: &Lab) -> Result<String> {
    let ready = Ready::new(lab)?;
    let Wire { a, b } = &ready.wire;
    cable(port(a, "eth1"), port(b, "eth1"))?;
    port(a, "eth1").address(&["198.18.1.1/24"])?;
    port(b, "eth1").address(&["198.18.1.2/24"])?;
    a.run("ip route add 192.0.2.2/32 via 198.18.1.2 dev eth1 src 192.0.2.1")?;
    ready.check()?.clean().context("asymmetric, without the filter")?;
    a.sysctl("ipv4/conf/eth0/rp_filter", "1")?;
    ready.mended("reverse_path", &["rp_filter is strict on eth0", "leads through eth1"])
}

fn unknown_name(lab: &Lab) -> Result<String> {
    let ready = Ready::new(lab)?;
    let named = ready.site_a.clone().towards("peer.invalid:51820");
    let found = ready.check_as(&named)?;
    let finding = found.only("name", &["peer.invalid does not resolve"])?;
    ensure!(advice(finding).contains("[peer] endpoint"), "{finding}");
    ready.check()?.clean()?;
    Ok("named; an address instead mends it".to_owned())
}

/// The timestamp of the last handshake, a day ahead, as after a battery has died.
fn late_clock(lab: &Lab) -> Result<String> {
    let mut ready = Ready::new(lab)?;
    let file = ready.wire.a.directory().join("state/site-a.floor");
    let ahead = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() + 86_000;
    fs::write(&file, format!("@{:016x}00000000\n", (1_u64 << 62) + 10 + ahead))?;
    let words = ["the clock is behind the timestamp of the last handshake", "site-a.floor"];
    let found = ready.check()?;
    let finding = found.only("clock", &words)?;
    ensure!(finding["command"] == "timedatectl set-ntp true", "{finding}");
    // B has seen that timestamp by now, and answers no older one.
    fs::remove_file(&file)?;
    ready.check()?.only("peer", &["no answer", "its clock has seen a later time"])?;
    ready.b = ready.b.restart()?;
    ready.check()?.clean()?;
    Ok("named, with the file; a clock that is right again mends it".to_owned())
}

fn other_terms(lab: &Lab) -> Result<String> {
    let mut ready = Ready::new(lab)?;
    let right = ready.site_a.clone();
    ready.site_a.remote.public = KeyPair::generate()?.public;
    let found = ready.check()?;
    let finding = found.only(
        "peer",
        &["no answer from the peer at 192.0.2.2:51820", "public_key is not its key"],
    )?;
    ensure!(advice(finding).contains(right.keys.public.as_str()), "{finding}");

    ready.site_a = right.clone().with_preshared(&Key::preshared()?);
    ready.check()?.only("peer", &["answers, but on other terms", "has no preshared key"])?;
    ready.site_a = right.clone().speaking_vpnd(&["cipher = \"aes-256-gcm\""]);
    let words = [
        "it speaks \"wireguard\", and this configuration \"vpnd, tun, aes-256-gcm, post-quantum\"",
    ];
    ready.check()?.only("peer", &words)?;
    ready.b.process().terminate()?;
    ready.b = Vpnd::start(&ready.wire.b, &ready.site_b.clone().with_preshared(&Key::preshared()?))?;
    ready
        .check_as(&right.clone().with_preshared(&Key::preshared()?))?
        .only("peer", &["its answer does not open: the preshared keys differ"])?;
    ready.b.process().terminate()?;
    ready.b = Vpnd::start(&ready.wire.b, &ready.site_b)?;
    ready.site_a = right;
    ready.check()?.clean()?;
    Ok("wrong key, missing and wrong preshared key, another protocol: each is named".to_owned())
}

fn narrow_path(lab: &Lab) -> Result<String> {
    let path = Routed::new(lab)?;
    let (site_a, site_b) = site::pair()?;
    let mut site_a = site_a.towards(Routed::B4);
    let _b = Vpnd::start(&path.b, &site_b)?;
    check(&path.a, &vpnd::write_files(&path.a, &site_a)?)?.clean()?;
    for link in [port(&path.router, "b"), port(&path.b, "eth0")] {
        link.mtu(1400)?;
    }
    let found = check(&path.a, &vpnd::write_files(&path.a, &site_a)?)?;
    let words = ["carries packets of 1400 bytes", "MTU 1420", "1480 bytes outside"];
    let finding = found.only("mtu", &words)?;
    ensure!(advice(finding).starts_with("mtu = 1340 in [interface] of "), "{finding}");
    site_a.mtu = 1340;
    check(&path.a, &vpnd::write_files(&path.a, &site_a)?)?.clean()?;
    Ok("1420 over a path of 1400: 1340 is named, and is right".to_owned())
}

fn taken_name(lab: &Lab) -> Result<String> {
    let ready = Ready::new(lab)?;
    let a = &ready.wire.a;
    a.run("ip link add tun0 type veth peer name lan1")?;
    let said = ready.mended("device", &["tun0 is an interface that is no TUN or TAP device"])?;
    a.run("ip tuntap add dev tun0 mode tap user 0")?;
    let found = ready.check()?;
    let finding = found.only("device", &["tun0 exists as a TAP device", "mode = \"tun\""])?;
    ensure!(finding["command"] == "vpnd tuntap del dev tun0", "{finding}");
    let (code, text) = vpnd::run(a, &["tuntap", "del", "dev", "tun0"])?;
    ensure!(code == 0, "{text}");
    ready.check()?.clean()?;

    let mut holder = site::pair()?.0;
    (holder.name, holder.listen) = ("other".to_owned(), Some(7));
    let mut holder = Vpnd::start(a, &holder)?;
    let found = ready.check()?;
    let finding = found.one("device", &["tun0 is a device that another program holds: vpnd("])?;
    mend(a, finding)?;
    holder.process().wait(SOON)?;
    ready.check()?.clean()?;
    Ok(said)
}

fn no_driver(lab: &Lab) -> Result<String> {
    let ready = Ready::new(lab)?;
    ready.wire.a.run("mount -t tmpfs none /dev/net")?;
    ready.mended("device", &["/dev/net/tun cannot be opened: No such file"])
}

fn nobody_listens(lab: &Lab) -> Result<String> {
    let mut ready = Ready::new(lab)?;
    ready.b.process().terminate()?;
    let found = ready.check()?;
    let words = ["nothing listens at 192.0.2.2:51820", "ICMP port unreachable"];
    ensure!(
        advice(found.only("peer", &words)?).contains("start the tunnel there"),
        "{}",
        found.said
    );
    // A running tunnel is told the same.
    let _a = Vpnd::start(&ready.wire.a, &ready.site_a.clone().keepalive(1))?;
    doctor(&ready.wire.a, "site-a")?.one("peer", &words)?;
    let _b = Vpnd::start(&ready.wire.b, &ready.site_b)?;
    ping::until_answered(&ready.wire.a, INNER_B4, SOON)?;
    doctor(&ready.wire.a, "site-a")?.clean()?;
    Ok("named before the start and while it runs; a start there mends it".to_owned())
}

/// Each change of a running tunnel's device is named, and its command takes it back.
fn changed_device(lab: &Lab) -> Result<String> {
    let mut tunnel =
        Tunnel::with(lab, |a, b| (a.towards(Wire::B4).keepalive(1).route("192.168.20.0/24"), b))?;
    let a = tunnel.wire.a.clone();
    doctor(&a, "site-a")?.clean()?;
    let mut commands = Vec::new();
    for (lines, about, words) in [
        (vec!["ip link set tun0 down"], "device", "tun0 was set down"),
        (vec!["ip link set tun0 mtu 1300"], "mtu", "set the MTU of tun0 to 1300"),
        (
            vec!["ip route replace 192.168.20.0/24 dev eth0"],
            "route",
            "192.168.20.0/24 over tun0 is missing: somebody has replaced it by one over eth0",
        ),
    ] {
        for line in lines {
            a.run(line)?;
        }
        let found = doctor(&a, "site-a")?;
        commands.push(mend(&a, found.one(about, &[words])?)?);
        eventually("it is clean again", SOON * 2, || doctor(&a, "site-a")?.clean())
            .with_context(|| words.to_owned())?;
    }
    for what in ["address del 10.99.0.1/30", "route del 192.168.20.0/24"] {
        commands.push(removed(&a, what)?);
    }
    ensure!(tunnel.a.process().ended()?.is_none(), "{}", tunnel.a.as_process().log());
    Ok(commands.join("; "))
}

/// What is removed again and again is not restored at once.
fn removed(a: &Host, what: &str) -> Result<String> {
    for _ in 0..20 {
        // It may not be back yet.
        let _gone = a.run(&format!("ip {what} dev tun0"));
        sleep(Duration::from_millis(200));
    }
    let found = doctor(a, "site-a")?;
    let is_address = what.starts_with("address");
    let finding = match is_address {
        true => found.one("device", &["lacks its address 10.99.0.1/30"])?,
        false => found
            .one("route", &["192.168.20.0/24 over tun0 is missing: somebody has removed it"])?,
    };
    let command = mend(a, finding)?;
    // The kernel has dropped the route with the address.
    let _there = a.run("ip route add 192.168.20.0/24 dev tun0 proto 118");
    eventually("it is clean again", SOON * 2, || doctor(a, "site-a")?.clean())?;
    Ok(command)
}

/// The firewall, a route and the filter of source addresses, while the tunnel runs.
fn cut_off(lab: &Lab) -> Result<String> {
    let tunnel = Tunnel::with(lab, |a, b| {
        let mut a = a.towards(Wire::B4).keepalive(1);
        a.remote.lines.push("dead_after = \"3s\"".to_owned());
        (a, b)
    })?;
    let a = &tunnel.wire.a;
    let works = || {
        tunnel.a.wait_for("it works", SOON * 3, |status| status.state() == "up")?;
        // The daemon notices at the next datagram that the route is good again.
        eventually("nothing is found", SOON, || doctor(a, "site-a")?.clean())
    };
    let fails = || tunnel.a.wait_for("it is down", SOON * 3, |status| status.state() == "down");
    works()?;
    set(a, &chain("input", "drop", ""))?;
    fails()?;
    let found = doctor(a, "site-a")?;
    found.one("tunnel", &["the tunnel is down for"])?;
    let first = mend(a, found.one("firewall", &["chain input drops UDP to port 51820"])?)?;
    works().with_context(|| first.clone())?;

    a.run("ip route add blackhole 192.0.2.2/32")?;
    fails()?;
    let found = doctor(a, "site-a")?;
    let second = mend(a, found.one("route", &["`blackhole 192.0.2.2/32` refuses"])?)?;
    works().with_context(|| second.clone())?;
    Ok(format!("{first}; {second}"))
}

/// The codes for scripts; a page for people.
fn usage(lab: &Lab) -> Result<String> {
    let ready = Ready::new(lab)?;
    let a = &ready.wire.a;
    let file = vpnd::write_files(a, &ready.site_a)?.display().to_string();
    let (code, page) = vpnd::run(a, &["check", &file, "--online"])?;
    ensure!(code == 0 && page == "site-a: nothing found\n", "exit {code}: {page}");
    for (words, expected) in [
        (vec!["doctor", "site-a"], 4),
        (vec!["doctor"], 2),
        (vec!["check", "/not/there.toml", "--online"], 78),
        (vec!["check", "/not/there.toml", "--online", "--json"], 78),
    ] {
        let (code, said) = vpnd::run(a, &words)?;
        ensure!(code == expected, "{words:?}: exit {code}: {said}");
    }
    let _a = Vpnd::start(a, &ready.site_a)?;
    let (code, said) = vpnd::run(a, &["check", &file, "--online"])?;
    ensure!(code == 1 && said.contains("`vpnd doctor site-a`"), "exit {code}: {said}");
    let (code, said) = vpnd::run(a, &["doctor", "site-a"])?;
    ensure!(code == 78 && said.contains("/etc/vpnd/site-a.toml"), "exit {code}: {said}");
    set(a, &chain("input", "drop", ""))?;
    let (_, page) = vpnd::run(a, &["doctor", "site-a", "--config", &file])?;
    let mends = "              mend: nft insert rule inet filter input udp dport 51820 accept\n";
    ensure!(page.contains(mends) && page.lines().count() < 24, "{page}");
    let as_nobody = format!(
        "setpriv --reuid 65534 --regid 65534 --clear-groups {} doctor site-a",
        vpnd::program()?.display()
    );
    let refused = a.run(&as_nobody).err().map(|error| error.to_string()).unwrap_or_default();
    ensure!(refused.contains("run this as root") || refused.contains("ermission"), "{refused}");
    Ok("0, 1, 2, 4, 78; one page".to_owned())
}

fn healthy(lab: &Lab, mode: &str, protocol: &str, [at_a, at_b]: [&str; 2]) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (site_a, site_b) = site::pair()?;
    let of = |site: Site, to: &str| {
        let mut site = site.towards(to).keepalive(1);
        site.interface.push(format!("mode = {mode:?}"));
        if protocol == "vpnd" { site.speaking_vpnd(&[]) } else { site }
    };
    let (site_a, site_b) = (of(site_a, at_b), of(site_b, at_a));
    let mut b = Vpnd::start(&wire.b, &site_b)?;
    check(&wire.a, &vpnd::write_files(&wire.a, &site_a)?)?
        .clean()
        .context("A, before its start")?;
    let a = Vpnd::start(&wire.a, &site_a)?;
    ping::until_answered(&wire.a, INNER_B4, SOON)?;
    for (host, end, name) in [(&wire.a, &a, "site-a"), (&wire.b, &b, "site-b")] {
        end.wait_for("it is up", SOON, |status| status.state() == "up")?;
        doctor(host, name)?.clean().context(name)?;
    }
    b.process().terminate()?;
    check(&wire.b, &vpnd::write_files(&wire.b, &site_b)?)?
        .clean()
        .context("B, before its start")?;
    let _b = Vpnd::start(&wire.b, &site_b)?;
    ping::until_answered(&wire.b, INNER_A4, SOON * 3).context("after a check")?;
    Ok("0 findings before the start and while it runs, at both ends".to_owned())
}

/// A default route with a kill switch, and vpnd's own table of nftables.
fn healthy_default_route(lab: &Lab) -> Result<String> {
    let path = Routed::new(lab)?;
    let (site_a, site_b) = site::pair()?;
    let mut site_a = site_a.towards(Routed::B4).keepalive(1);
    for to in ["0.0.0.0/0", "::/0"] {
        site_a.remote.allowed_ips.push(to.to_owned());
        site_a.tables.push(format!("[[route]]\nto = {to:?}\nwhen_down = \"blackhole\""));
    }
    site_a.service.push("firewall = true".to_owned());
    let _b = Vpnd::start(&path.b, &site_b)?;
    check(&path.a, &vpnd::write_files(&path.a, &site_a)?)?.clean()?;
    let a = Vpnd::start(&path.a, &site_a)?;
    ping::until_answered(&path.a, INNER_B4, SOON)?;
    a.wait_for("it is up", SOON, |status| status.state() == "up")?;
    doctor(&path.a, "site-a")?.clean()?;
    doctor(&path.b, "site-b")?.clean()?;
    Ok("0 findings before the start and while it runs".to_owned())
}
