//! Sends refused by this host itself, routes that change, networks that come late, and ports and interfaces
//! that have to be chosen again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vpnd_tests::link::{cable, port};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_A4, INNER_A6, INNER_B4, PORT};
use vpnd_tests::traffic::ping;
use vpnd_tests::{Host, Lab, Routed, Vpnd, Wire, nft, vpnd};

use crate::socket::{B4, SECOND4, Uplinks};
use crate::tunnel::{SOON, Tunnel};

/// Sooner than the second try of a handshake.
const AT_ONCE: Duration = Duration::from_millis(4500);

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("reach::who refuses is named", Cost::Works, refused),
        Scenario::new("reach::who was refused is heard from elsewhere", Cost::Works, elsewhere),
        Scenario::new("reach::the default route moves", Cost::Works, default_route),
        Scenario::new("reach::an uplink without an address", Cost::Works, inner_source),
        Scenario::new("reach::a name server behind the tunnel", Cost::Works, name_server),
        Scenario::new("reach::a nexthop object moves", Cost::Works, nexthop),
        Scenario::new("reach::a network that comes late", Cost::Works, late),
        Scenario::new("reach::addresses that cannot be reached", Cost::Works, unreachable),
        Scenario::new("reach::a link-local peer on a new cable", Cost::Works, link_local),
        Scenario::new("reach::bind_device on a new cable", Cost::Works, bound),
        Scenario::new("reach::a port that leads nowhere", Cost::Waits, other_port),
    ]
}

fn refused(lab: &Lab) -> Result<String> {
    let Tunnel { wire, a, b: _b } = Tunnel::new(lab)?;
    let out = "table inet f {\nchain o {\ntype filter hook output priority 0;\nudp dport 51820 drop\n}\n}";
    wire.a.run_with_input("nft -f -", out)?;
    is_named(&wire.a, &a, "packet filter")?;
    nft::clear(&wire.a)?;
    is_over(&wire.a, &a)?;
    for (kind, word) in
        [("prohibit", "`prohibit`"), ("unreachable", "`unreachable`"), ("blackhole", "`blackhole`")]
    {
        wire.a.run(&format!("ip route add {kind} 192.0.2.2"))?;
        is_named(&wire.a, &a, word)?;
        wire.a.run(&format!("ip route del {kind} 192.0.2.2"))?;
        is_over(&wire.a, &a)?;
    }
    wire.a.run("ip route del 192.0.2.0/24 dev eth0")?;
    is_named(&wire.a, &a, "no route")?;
    wire.a.run("ip route add 192.0.2.0/24 dev eth0")?;
    is_over(&wire.a, &a)?;
    Ok("a filter, three kinds of routes, and no route".to_owned())
}

/// The peer has another address by now, and is heard from there without a new session.
fn elsewhere(lab: &Lab) -> Result<String> {
    let Tunnel { wire, a, b: _b } = Tunnel::new(lab)?;
    wire.a.run("ip route add unreachable 192.0.2.2")?;
    is_named(&wire.a, &a, "`unreachable`")?;
    wire.b.run("ip address del 192.0.2.2/24 dev eth0")?;
    wire.b.run("ip address add 192.0.2.3/24 dev eth0")?;
    ping::until_answered(&wire.b, INNER_A4, SOON)?;
    is_over(&wire.a, &a)?;
    Ok("the hint went with the move".to_owned())
}

/// Packets are sent, none arrives, and the reason is said.
fn is_named(host: &Host, vpnd: &Vpnd, word: &str) -> Result<()> {
    let pings = ping::series(host, INNER_B4, 3, Duration::from_millis(50))?;
    ensure!(pings.answered == 0, "{word}: {pings:?}");
    let named = |hint: Option<&str>| hint.is_some_and(|hint| hint.contains(word));
    vpnd.wait_for(word, SOON, |status| named(status.hint()))?;
    vpnd.wait_for_log("do not leave this host", SOON)
}

fn is_over(host: &Host, vpnd: &Vpnd) -> Result<()> {
    ping::until_answered(host, INNER_B4, SOON)?;
    vpnd.wait_for("no hint", SOON, |status| status.hint().is_none())?;
    Ok(())
}

/// The address of the uplink that is left stays, and what is sent from it by the other goes nowhere.
fn default_route(lab: &Lab) -> Result<String> {
    let net = Uplinks::new(lab)?;
    for key in ["all", "one", "two"] {
        net.router.sysctl(&format!("ipv4/conf/{key}/rp_filter"), "1")?;
    }
    let (a, b) = site::pair()?;
    let b = Vpnd::start(&net.b, &b)?;
    let _a = Vpnd::start(&net.a, &a.towards(&format!("{B4}:{PORT}")))?;
    ping::until_answered(&net.a, INNER_B4, SOON)?;
    let mut lost = Vec::new();
    for (gateway, at) in [("198.51.100.254", SECOND4), ("192.0.2.254", "192.0.2.1")] {
        net.a.run(&format!("ip route replace default via {gateway}"))?;
        let pings = ping::series(&net.a, INNER_B4, 40, Duration::from_millis(100))?;
        ensure!(pings.answered >= 20, "by {gateway}: {pings:?}");
        let at = format!("{at}:{PORT}");
        b.wait_for("B follows", SOON, |status| status.endpoint() == Some(&at))?;
        lost.push(pings.sent - pings.answered);
    }
    Ok(format!("{lost:?} of 40 pings lost, ten a second"))
}

/// The default route stays as it is and its nexthop object leads elsewhere, of which the kernel sends no route message.
fn nexthop(lab: &Lab) -> Result<String> {
    let net = Uplinks::new(lab)?;
    for key in ["all", "one", "two"] {
        net.router.sysctl(&format!("ipv4/conf/{key}/rp_filter"), "1")?;
    }
    net.a.sysctl("ipv4/nexthop_compat_mode", "0")?;
    net.a.run("ip nexthop add id 7 via 192.0.2.254 dev one")?;
    net.a.run("ip route replace default nhid 7")?;
    let (a, b) = site::pair()?;
    let b = Vpnd::start(&net.b, &b)?;
    let _a = Vpnd::start(&net.a, &a.towards(&format!("{B4}:{PORT}")))?;
    ping::until_answered(&net.a, INNER_B4, SOON)?;
    let mut took = Vec::new();
    for (by, at) in [("198.51.100.254 dev two", SECOND4), ("192.0.2.254 dev one", "192.0.2.1")] {
        let moved = Instant::now();
        net.a.run(&format!("ip nexthop replace id 7 via {by}"))?;
        ping::until_answered(&net.a, INNER_B4, SOON)?;
        let at = format!("{at}:{PORT}");
        b.wait_for("B follows", SOON, |status| status.endpoint() == Some(&at))?;
        took.push(moved.elapsed());
        ensure!(moved.elapsed() < AT_ONCE, "by {by}: {took:?}");
    }
    Ok(format!("B follows after {took:.0?}"))
}

/// Puts a file of this text in the place of another one of the host's.
pub(crate) fn replace_file(host: &Host, path: &str, text: &str) -> Result<()> {
    let name = path.replace('/', "-");
    host.run_with_input(&format!("tee /run/{name}"), text)?;
    host.run(&format!("mount --bind /run/{name} {path}"))?;
    Ok(())
}

/// The peer is a name, and a kill switch keeps the queries of it in.
fn name_server(lab: &Lab) -> Result<String> {
    const SERVER: &str = "198.18.9.53";
    let net = Routed::new(lab)?;
    replace_file(&net.a, "/etc/resolv.conf", &format!("nameserver {SERVER}\n"))?;
    let (a, b) = site::pair()?;
    let _b = Vpnd::start(&net.b, &b)?;
    let mut site = a.towards("b.vpn.example:51820").keepalive(1);
    site.remote.allowed_ips = vec!["0.0.0.0/0".to_owned()];
    site.service.push("[[route]]\nto = \"0.0.0.0/0\"\nwhen_down = \"blackhole\"".to_owned());
    let file = vpnd::write_files(&net.a, &site)?;
    let file = file.to_str().context("a path of our own making")?;
    let check = || -> Result<String> {
        let (code, said) = vpnd::run(&net.a, &["check", file])?;
        ensure!(code == 0, "{code}: {said}");
        Ok(said)
    };
    let warning = format!("name server {SERVER} of /etc/resolv.conf is reached through the tunnel");
    ensure!(check()?.contains(&warning), "{}", check()?);
    let began = Instant::now();
    let a = Vpnd::start(&net.a, &site)?;
    let hint = format!("name server {SERVER} is reached through the tunnel itself");
    a.wait_for("the reason", SOON, |status| status.hint().is_some_and(|h| h.contains(&hint)))?;
    a.wait_for_log(&hint, SOON)?;
    let named = began.elapsed();
    replace_file(&net.a, "/etc/hosts", "198.51.100.1 b.vpn.example\n")?;
    ensure!(!check()?.contains(&warning), "the hosts file has the name: {}", check()?);
    net.a.run(&format!("ip route add {SERVER} via 192.0.2.254"))?;
    ping::until_answered(&net.a, INNER_B4, SOON)?;
    a.wait_for("no hint", SOON, |status| status.hint().is_none())?;
    Ok(format!("named {} ms after the start", named.as_millis()))
}

/// The uplink has a link-local address only, so the kernel sends from the tunnel's.
fn inner_source(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    wire.a.run("ip address add fe80::1/64 dev eth0 nodad")?;
    wire.b.run("ip address add fe80::2/64 dev eth0 nodad")?;
    wire.a.run("ip address del 2001:db8::1/64 dev eth0")?;
    wire.a.run("ip route add 2001:db8::/64 via fe80::2 dev eth0")?;
    let (a, b) = site::pair()?;
    let _b = Vpnd::start(&wire.b, &b)?;
    let began = Instant::now();
    let a = Vpnd::start(&wire.a, &a.towards(Wire::B6))?;
    let said = format!("from {INNER_A6}, an address of the tunnel itself");
    a.wait_for_log(&said, SOON)?;
    a.wait_for("it is the hint", SOON, |status| {
        status.hint().is_some_and(|hint| hint.contains(&said))
    })?;
    let named = began.elapsed();
    wire.a.run("ip address add 2001:db8::1/64 dev eth0 nodad")?;
    ping::until_answered(&wire.a, INNER_B4, SOON)?;
    a.wait_for("no hint", SOON, |status| status.hint().is_none())?;
    Ok(format!("named {} ms after the start", named.as_millis()))
}

/// A has no network when it starts.
fn late(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let cable = port(&wire.a, "eth0");
    cable.down()?;
    let (a, b) = site::pair()?;
    let _b = Vpnd::start(&wire.b, &b)?;
    let a = Vpnd::start(&wire.a, &a.towards(Wire::B4))?;
    a.wait_for("no route", SOON, |status| status.hint().is_some_and(|h| h.contains("no route")))?;
    let came = Instant::now();
    cable.up()?;
    a.wait_for("a session", SOON, |status| status.is_up())?;
    let took = came.elapsed();
    ensure!(took < AT_ONCE, "up {took:?} after the network came");
    Ok(format!("up {} ms after the network came", took.as_millis()))
}

/// The host refuses to send to the first addresses of the list.
fn unreachable(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    wire.a.run("ip route add unreachable 198.51.100.0/24")?;
    let (a, b) = site::pair()?;
    let _b = Vpnd::start(&wire.b, &b)?;
    let mut a = a;
    let list = ["[2001:db8:dead::1]:51820", "198.51.100.7:51820", "203.0.113.7:1", Wire::B4];
    a.remote.lines.push(format!("endpoint = {list:?}"));
    let started = Instant::now();
    let a = Vpnd::start(&wire.a, &a)?;
    a.wait_for("a session", SOON, |status| status.is_up())?;
    let took = started.elapsed();
    ensure!(took < AT_ONCE, "up after {took:?}");
    let status = a.status()?;
    ensure!(status.reasons() == ["endpoint", "family"], "{status}");
    Ok(format!("the fourth address was reached {} ms after the start", took.as_millis()))
}

/// A new cable between two hosts; the kernel gives no number of an interface twice.
fn new_cable(a: &Host, b: &Host) -> Result<()> {
    cable(port(a, "eth0"), port(b, "eth0"))?;
    for (host, last) in [(a, 1), (b, 2)] {
        port(host, "eth0")
            .address(&[&format!("fe80::{last}/64"), &format!("192.0.2.{last}/24")])?;
    }
    Ok(())
}

fn link_local(lab: &Lab) -> Result<String> {
    let (host_a, host_b) = (lab.host("a")?, lab.host("b")?);
    new_cable(&host_a, &host_b)?;
    let (a, b) = site::pair()?;
    let b = Vpnd::start(&host_b, &b)?;
    let a = Vpnd::start(&host_a, &a.towards("[fe80::2%eth0]:51820"))?;
    ping::until_answered(&host_a, INNER_B4, SOON)?;
    b.wait_for("a name", SOON, |status| status.endpoint() == Some("[fe80::1%eth0]:51820"))?;
    host_a.run("ip link del eth0")?;
    new_cable(&host_a, &host_b)?;
    // B has learnt where A is, and no configuration names it.
    let came = Instant::now();
    ping::until_answered(&host_b, INNER_A4, SOON)?;
    ping::until_answered(&host_a, INNER_B4, SOON)?;
    let took = came.elapsed();
    ensure!(took < AT_ONCE, "up {took:?} after the cable");
    let shown = a.status()?;
    ensure!(shown.endpoint() == Some("[fe80::2%eth0]:51820"), "{shown}");
    Ok(format!("up {} ms after a cable with another number", took.as_millis()))
}

fn bound(lab: &Lab) -> Result<String> {
    let (host_a, host_b) = (lab.host("a")?, lab.host("b")?);
    new_cable(&host_a, &host_b)?;
    let (a, b) = site::pair()?;
    let _b = Vpnd::start(&host_b, &b)?;
    let a = crate::socket::told(a, &["bind_device = \"eth0\""]).towards(Wire::B4);
    let _a = Vpnd::start(&host_a, &a)?;
    ping::until_answered(&host_a, INNER_B4, SOON)?;
    host_a.run("ip link del eth0")?;
    new_cable(&host_a, &host_b)?;
    let came = Instant::now();
    ping::until_answered(&host_a, INNER_B4, SOON)?;
    let took = came.elapsed();
    ensure!(took < AT_ONCE, "up {took:?} after the cable");
    Ok(format!("up {} ms after a cable with another number", took.as_millis()))
}

/// What stands for a translation of addresses that every datagram keeps alive, and that leads nowhere.
fn other_port(lab: &Lab) -> Result<String> {
    let net = Routed::new(lab)?;
    let (a, b) = site::pair()?;
    let lines = ["dead_after = \"2s\""];
    let mut a = a.speaking_vpnd(&lines).keepalive(1).towards(Routed::B4);
    a.listen = None;
    let _b = Vpnd::start(&net.b, &b.speaking_vpnd(&lines).keepalive(1))?;
    let a = Vpnd::start(&net.a, &a)?;
    ping::until_answered(&net.a, INNER_B4, SOON)?;
    let before = a.status()?.listen_port().context("a port")?;
    nft::drop_arriving(&net.router, &format!("udp sport {before}"))?;
    let cut = Instant::now();
    let after = a.wait_for("another port", SOON * 3, |status| {
        status.listen_port().is_some_and(|port| port != before)
    })?;
    ping::until_answered(&net.a, INNER_B4, SOON)?;
    let (after, took) = (after.listen_port().context("a port")?, cut.elapsed());
    Ok(format!("port {before} became {after}, up again after {} s", took.as_secs()))
}
