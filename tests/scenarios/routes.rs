//! Routes: everything through the tunnel without a loop, routes that follow the peer, routes that others
//! remove, leftovers of a `kill -9`, and two tunnels on one host.
//!
//! ```text
//!   a [eth0] ──── [a] router [b] ──── [eth0] b [lo] 198.18.7.1, 2001:db8:18::1
//! ```
//!
//! The router knows nothing of the two addresses behind B: they are reached through the tunnel, or not at all.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vpnd_tests::capture::Capture;
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_B4, PORT, Site};
use vpnd_tests::traffic::{ping, tcp};
use vpnd_tests::{Host, Lab, Routed, Vpnd, eventually};

use crate::tunnel::SOON;

/// Behind B.
const BEHIND4: &str = "198.18.7.1";
/// Behind B.
const BEHIND6: &str = "2001:db8:18::1";
/// B's address outside.
const B6: &str = "[2001:db8:b::1]:51820";
/// The router's address on A's own LAN.
const LAN6: &str = "2001:db8:a::ff";

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    for (family, outside) in [("v4", Routed::B4), ("v6", B6)] {
        let name = format!("routes::everything through the tunnel, over {family}");
        all.push(Scenario::new(name, Cost::Works, move |lab| everything(lab, outside)));
    }
    for when_down in ["keep", "remove", "blackhole"] {
        let name = format!("routes::when_down is {when_down}");
        all.push(Scenario::new(name, Cost::Works, move |lab| peer_dies(lab, when_down)));
    }
    let works =
        |name: &str, body: fn(&Lab) -> Result<String>| Scenario::new(name, Cost::Works, body);
    all.extend([
        works("routes::what somebody removes comes back", removed),
        works("routes::kill -9, and another configuration", left_behind),
        works("routes::two tunnels on one host", two_tunnels),
    ]);
    all
}

/// The network with B running; A is still to start.
struct Net {
    hosts: Routed,
    site_a: Site,
    site_b: Site,
    b: Option<Vpnd>,
}

impl Net {
    fn new(lab: &Lab) -> Result<Self> {
        let hosts = Routed::new(lab)?;
        hosts.b.run(&format!("ip address add {BEHIND4}/32 dev lo"))?;
        hosts.b.run(&format!("ip address add {BEHIND6}/128 dev lo nodad"))?;
        let (mut site_a, site_b) = site::pair()?;
        site_a.remote.allowed_ips = vec!["0.0.0.0/0".to_owned(), "::/0".to_owned()];
        let b = Some(Vpnd::start(&hosts.b, &site_b)?);
        Ok(Self { hosts, site_a, site_b, b })
    }

    /// A with default routes and more lines in each.
    fn everything(&self, outside: &str, lines: &[&str]) -> Site {
        let mut site = self.site_a.clone().towards(outside);
        for to in ["0.0.0.0/0", "::/0"] {
            site.service.push(route(to, lines));
        }
        site
    }
}

fn route(to: &str, lines: &[&str]) -> String {
    format!("[[route]]\nto = {to:?}\n{}", lines.join("\n"))
}

/// With the strictest check of where packets arrive, too.
fn everything(lab: &Lab, outside: &str) -> Result<String> {
    let net = Net::new(lab)?;
    let a = &net.hosts.a;
    for device in ["all", "eth0"] {
        a.sysctl(&format!("ipv4/conf/{device}/rp_filter"), "1")?;
    }
    let before = a.network_state()?;
    let mut vpnd = Vpnd::start(a, &net.everything(outside, &[]))?;
    for address in [BEHIND4, BEHIND6] {
        ping::until_answered(a, address, SOON)?;
        tcp::transfer(a, &net.hosts.b, address, 4 << 20)?;
    }
    // Its own LAN, and what is routed more specifically than everything.
    for address in [Routed::ROUTER_A4, LAN6] {
        ensure!(ping::series(a, address, 3, Duration::from_millis(50))?.answered == 3, "{address}");
    }
    a.run("ip route add 198.51.100.254/32 via 192.0.2.254")?;
    let capture = Capture::start(a, "eth0", 64)?;
    ping::once(a, Routed::ROUTER_B4)?;
    ping::once(a, BEHIND4)?;
    let seen = capture.stop()?;
    ensure!(
        frames_to(&seen.others, Routed::ROUTER_B4)? == 1,
        "a more specific route is passed over"
    );
    ensure!(frames_to(&seen.others, BEHIND4)? == 0, "it left beside the tunnel");
    a.run("ip route del 198.51.100.254/32")?;
    let status = vpnd.status()?;
    ensure!(status.is_up(), "{status}");
    let rules = a.run("ip rule")?;
    ensure!(rules.contains("fwmark 0xca6c/0xca6c lookup 51820 proto 118"), "{rules}");
    vpnd.process().terminate()?;
    ensure!(a.network_state()? == before, "left behind: {}", a.network_state()?);
    Ok("both families behind B, its own LAN and a more specific route beside it; strict rp_filter"
        .into())
}

/// What A sends to an address behind B while the peer is dead, and once it is alive again.
fn peer_dies(lab: &Lab, when_down: &str) -> Result<String> {
    let mut net = Net::new(lab)?;
    let a = &net.hosts.a;
    let line = format!("when_down = {when_down:?}");
    let mut site = net.everything(Routed::B4, &[&line]).keepalive(1);
    site.remote.lines.push("dead_after = \"3s\"".to_owned());
    let before = a.network_state()?;
    let mut vpnd = Vpnd::start(a, &site)?;
    ping::until_answered(a, BEHIND4, SOON)?;
    ping::until_answered(a, BEHIND6, SOON)?;

    net.b.take().context("B runs")?.process().kill()?;
    let died = Instant::now();
    vpnd.wait_for_log("the peer is dead", Duration::from_secs(20))?;
    let noticed = died.elapsed();
    eventually("the routes are as wanted", SOON, || {
        let routes = a.run("ip route show table all")?;
        let inside = routes.matches("default dev tun0").count();
        ensure!((inside == 2) == (when_down == "keep"), "{inside} ways inside: {routes}");
        Ok(())
    })?;
    let leaked = leaks(a)?;
    let expected = if when_down == "remove" { [3, 3] } else { [0, 0] };
    ensure!(leaked == expected, "{leaked:?} packets left by eth0, not {expected:?}");

    net.b = Some(Vpnd::start(&net.hosts.b, &net.site_b)?);
    let back = Instant::now();
    ping::until_answered(a, BEHIND4, Duration::from_secs(30))?;
    ping::until_answered(a, BEHIND6, SOON)?;
    let again = back.elapsed();
    ensure!(leaks(a)? == [0, 0], "alive, and packets leave beside the tunnel");
    vpnd.process().terminate()?;
    // A kill switch stays for a moment, for it might have been a restart.
    eventually("nothing is left behind", SOON * 2, || {
        ensure!(a.network_state()? == before, "left behind: {}", a.network_state()?);
        Ok(())
    })?;
    Ok(format!(
        "dead after {noticed:.1?}: of 3 packets of each family {leaked:?} left by eth0; traffic {again:.1?} \
         after the peer's return"
    ))
}

/// How many of three packets to each address behind B leave A by its uplink.
fn leaks(a: &Host) -> Result<[usize; 2]> {
    let capture = Capture::start(a, "eth0", 64)?;
    for address in [BEHIND4, BEHIND6] {
        // Where nothing leads there, `ping` ends with an error.
        let _refused = a.run(&format!("ping -n -c 3 -i 0.05 -W 1 {address}"));
    }
    let seen = capture.stop()?.others;
    Ok([frames_to(&seen, BEHIND4)?, frames_to(&seen, BEHIND6)?])
}

/// How many of these Ethernet frames are for an address, and not about it as a neighbour.
fn frames_to(frames: &[Vec<u8>], address: &str) -> Result<usize> {
    let address: IpAddr = address.parse()?;
    let is_to = |frame: &&Vec<u8>| match address {
        IpAddr::V4(v4) => frame[12..14] == [8, 0] && frame.get(30..34) == Some(&v4.octets()),
        IpAddr::V6(v6) => frame[12..14] == [0x86, 0xdd] && frame.get(38..54) == Some(&v6.octets()),
    };
    Ok(frames.iter().filter(|frame| frame.len() > 14).filter(is_to).count())
}

fn removed(lab: &Lab) -> Result<String> {
    let net = Net::new(lab)?;
    let a = &net.hosts.a;
    let before = a.network_state()?;
    let mut site = net.everything(Routed::B4, &[]);
    site.service.push(route("203.0.113.0/24", &[]));
    let mut vpnd = Vpnd::start(a, &site)?;
    ping::until_answered(a, BEHIND4, SOON)?;
    let whole = a.network_state()?;
    let mut slowest = Duration::ZERO;
    for command in [
        "ip route del 203.0.113.0/24 dev tun0",
        "ip -6 route del default table 51820",
        "ip rule del priority 32004",
        "ip -6 rule del priority 32001",
        "ip -6 address flush dev tun0",
        "ip link set tun0 down",
    ] {
        a.run(command)?;
        if command.ends_with("down") {
            std::thread::sleep(Duration::from_secs(1));
            let shown = a.run("ip link show tun0")?;
            ensure!(!shown.contains(",UP"), "somebody set it down, and it is up: {shown}");
            a.run("ip link set tun0 up")?;
        }
        let start = Instant::now();
        eventually(command, Duration::from_secs(5), || {
            let now = a.network_state()?;
            ensure!(now == whole, "{now}");
            Ok(())
        })?;
        slowest = slowest.max(start.elapsed());
        // Not so often that it would be meant.
        std::thread::sleep(Duration::from_secs(3));
    }
    ping::until_answered(a, BEHIND4, SOON)?;
    ping::until_answered(a, BEHIND6, SOON)?;
    vpnd.process().terminate()?;
    ensure!(a.network_state()? == before, "left behind: {}", a.network_state()?);
    Ok(format!(
        "routes, rules, addresses, and all at once by down and up: back after {slowest:.1?} at most"
    ))
}

/// What is left keeps packets in; the next start takes over what it wants, and the rest goes.
fn left_behind(lab: &Lab) -> Result<String> {
    let net = Net::new(lab)?;
    let a = &net.hosts.a;
    let before = a.network_state()?;
    let guarded = net.everything(Routed::B4, &["when_down = \"blackhole\""]).keepalive(1);
    let mut vpnd = Vpnd::start(a, &guarded)?;
    ping::until_answered(a, BEHIND4, SOON)?;
    vpnd.process().kill()?;
    ensure!(leaks(a)? == [0, 0], "killed, and packets leave beside the tunnel");

    // The same again, with another mark, from another port.
    let mut other = guarded;
    other.listen = Some(4501);
    other.service.push("[socket]\nfwmark = 7".to_owned());
    let mut vpnd = Vpnd::start(a, &other)?;
    ping::until_answered(a, BEHIND4, SOON)?;
    let rules = a.run("ip rule")?;
    let ours = rules.contains("fwmark 0x7") && rules.contains("sport 4501");
    let others = rules.contains("fwmark 0xca6c") || rules.contains("sport 51820");
    ensure!(ours && !others, "{rules}");
    vpnd.process().kill()?;
    ensure!(leaks(a)? == [0, 0], "killed again, and packets leave beside the tunnel");

    // Without any of it.
    let plain = net.site_a.clone().towards(Routed::B4).route("203.0.113.0/24");
    let mut vpnd = Vpnd::start(a, &plain)?;
    ping::until_answered(a, INNER_B4, SOON)?;
    let state = a.network_state()?;
    ensure!(!state.contains("blackhole") && !state.contains("lookup 51820"), "{state}");
    vpnd.process().interrupt()?;
    ensure!(a.network_state()? == before, "left behind: {}", a.network_state()?);
    Ok("no packet beside the tunnel after kill -9; another mark and port taken over; then nothing left".into())
}

/// Each with default routes; the router is the second peer.
fn two_tunnels(lab: &Lab) -> Result<String> {
    let net = Net::new(lab)?;
    let a = &net.hosts.a;
    let before = a.network_state()?;
    let mut first = Vpnd::start(a, &net.everything(Routed::B4, &[]))?;
    let with_first = a.network_state()?;
    let (second_site, _router) = second(&net)?;
    let mut second = Vpnd::start(a, &second_site)?;
    let rules = a.run("ip rule")?;
    ensure!(rules.contains("lookup 51820") && rules.contains("lookup 51821"), "{rules}");
    ping::until_answered(a, BEHIND4, SOON)?;
    ping::until_answered(a, "10.99.7.2", SOON)?;

    second.process().kill()?;
    second = second.restart()?;
    ping::until_answered(a, "10.99.7.2", SOON)?;
    ping::once(a, BEHIND4)?;
    second.process().terminate()?;
    let now = a.network_state()?;
    ensure!(
        now == with_first,
        "the first tunnel has lost something, or got: {now}, not {with_first}"
    );
    ping::once(a, BEHIND4)?;
    first.process().terminate()?;
    ensure!(a.network_state()? == before, "left behind: {}", a.network_state()?);
    Ok("tables 51820 and 51821; one killed, restarted and stopped, the other's are all there"
        .into())
}

/// A second tunnel of A's, to the router, which runs its other end.
fn second(net: &Net) -> Result<(Site, Vpnd)> {
    let (a, b) = site::pair()?;
    let end = |site: Site, address: &str| Site {
        name: format!("{}-two", site.name),
        device: "tun1".to_owned(),
        addresses: vec![address.to_owned()],
        listen: Some(PORT + 1),
        ..site
    };
    let (mut a, mut b) = (end(a, "10.99.7.1/30"), end(b, "10.99.7.2/30"));
    a.remote.allowed_ips = vec!["0.0.0.0/0".to_owned(), "::/0".to_owned()];
    b.remote.allowed_ips = vec!["10.99.7.1/32".to_owned()];
    for to in ["0.0.0.0/0", "::/0"] {
        a.service.push(route(to, &[]));
    }
    let router = Vpnd::start(&net.hosts.router, &b)?;
    Ok((a.towards(&format!("{}:{}", Routed::ROUTER_A4, PORT + 1)), router))
}
