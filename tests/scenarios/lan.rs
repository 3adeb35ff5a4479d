//! The protocols that two joined LANs need: DHCP, ARP, neighbour discovery, router advertisements, multicast
//! groups, and large frames. Each is seen at the far side, and nothing of it between the sites.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use vpnd_tests::capture::{Capture, Seen};
use vpnd_tests::frame::{self, Arp, BROADCAST, Frame};
use vpnd_tests::link::port;
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::traffic::{ping, tcp, udp};
use vpnd_tests::{Host, Lab, Process, eventually};

use crate::lans::{LEFT4, LEFT6, Lans, RIGHT4, RIGHT6, Wiretap, ensure_seen, plug};
use crate::tunnel::SOON;

/// What a client and a server say to each other of a lease.
const LEASE: [&str; 4] = ["DISCOVER", "OFFER", "REQUEST", "ACK"];

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("lan::DHCP from one side to the other", Cost::Waits, dhcp),
        Scenario::new("lan::ARP, and a host that moves", Cost::Works, arp),
        Scenario::new("lan::IPv6 neighbours, and a router that advertises", Cost::Waits, discovery),
        Scenario::new("lan::jumbo frames over a path of 1500", Cost::Works, jumbo),
    ]
}

/// The server is left's, the client right's.
fn dhcp(lab: &Lab) -> Result<String> {
    let lans = Lans::new(lab, 1500)?;
    port(&lans.right, "eth0").remove_address(&format!("{RIGHT4}/24"))?;
    let captures = lans.captures()?;
    let wiretap = Wiretap::new(&lans, &[])?;
    let range = "--dhcp-range=198.18.0.100,198.18.0.109,2m";
    let _server = dnsmasq(&lans.left, &[range, "--dhcp-authoritative", "--no-ping"])?;
    let client = udhcpc(&lans.right)?;
    let leased = told(&client, "bound")?;
    let address = address_of(&leased)?;
    ensure!(address.octets()[3] >= 100, "not of the server's range: {leased}");
    ping::until_answered(&lans.left, &address.to_string(), SOON)?;
    client.signal(Signal::SIGUSR1)?;
    let renewed = told(&client, "renew")?;
    ensure!(renewed.ends_with(&leased["bound".len()..]), "{leased}, then {renewed}");
    let [left, right] = captures.map(Capture::stop);
    let (left, right) = (dhcp_messages(&left?), dhcp_messages(&right?));
    ensure!(sorted(&left) == sorted(&right), "left sent or saw {left:?}, right {right:?}");
    for seen in [&left, &right] {
        ensure!(seen.starts_with(&LEASE), "messages: {seen:?}");
        // The client may repeat itself, where an answer comes while it is not listening yet.
        let renewal = &seen[LEASE.len()..];
        let has = |kind| renewal.contains(&kind);
        ensure!(has("REQUEST") && has("ACK") && !has("another"), "messages: {seen:?}");
    }
    Ok(format!("{} at both sides; {leased}; {}", right.join(", "), wiretap.heard()?))
}

/// A server of addresses on a host's eth0.
pub(crate) fn dnsmasq(host: &Host, options: &[&str]) -> Result<Process> {
    name_server(host, &[&["--port=0"], options].concat())
}

/// A server of names too.
pub(crate) fn name_server(host: &Host, options: &[&str]) -> Result<Process> {
    let mut command = host.command("dnsmasq");
    command.args(["--conf-file=/dev/null", "--keep-in-foreground", "--log-facility=-"]);
    command.args(["--interface=eth0", "--bind-interfaces", "--user=root"]);
    let leases = host.directory().join("leases");
    command.arg(format!("--dhcp-leasefile={}", leases.display())).arg("--pid-file").args(options);
    let server = host.spawn("dnsmasq", command)?;
    eventually("dnsmasq is ready", SOON, || {
        ensure!(server.log().contains("started"), "it says {}", server.log());
        Ok(server.log())
    })?;
    Ok(server)
}

/// A client on a host's eth0, whose script prints what it is told, and sets the address.
pub(crate) fn udhcpc(host: &Host) -> Result<Process> {
    let script = host.directory().join("leased");
    let lines = "#!/bin/sh\necho \"$1 $ip for $lease seconds of $serverid\"\n\
        [ -z \"$ip\" ] || exec ip address replace \"$ip/$mask\" dev \"$interface\"\n";
    fs::write(&script, lines)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let mut command = host.command("udhcpc");
    command.args(["--foreground", "--interface", "eth0", "--script"]).arg(&script);
    host.spawn("udhcpc", command)
}

/// The line that the client's script printed of such an event.
pub(crate) fn told(client: &Process, event: &str) -> Result<String> {
    eventually(&format!("the client is told {event:?}"), SOON, || {
        let log = client.log();
        let line = log.lines().find(|line| line.starts_with(&format!("{event} ")));
        line.map(str::to_owned).with_context(|| log.clone())
    })
}

/// The address that such a line tells.
pub(crate) fn address_of(told: &str) -> Result<Ipv4Addr> {
    let address = told.split(' ').nth(1).unwrap_or_default();
    address.parse().with_context(|| format!("no address in {told:?}"))
}

fn sorted<'a>(messages: &[&'a str]) -> Vec<&'a str> {
    let mut sorted = messages.to_vec();
    sorted.sort_unstable();
    sorted
}

/// The kinds of DHCP's messages, in order.
fn dhcp_messages(seen: &Seen) -> Vec<&'static str> {
    let kind = |frame: &Frame| {
        let (ports, message) = frame.udp()?;
        let is_dhcp = matches!(ports, [67, 68] | [68, 67]);
        match *option(message.get(240..).filter(|_| is_dhcp)?, 53)?.first()? {
            1 => Some("DISCOVER"),
            2 => Some("OFFER"),
            3 => Some("REQUEST"),
            5 => Some("ACK"),
            _ => Some("another"),
        }
    };
    seen.frames.iter().filter_map(kind).collect()
}

/// The value of one of DHCP's options.
fn option(options: &[u8], wanted: u8) -> Option<&[u8]> {
    let (kind, rest) = options.split_first()?;
    match *kind {
        0 => option(rest, wanted),
        0xff => None,
        kind => {
            let (len, rest) = rest.split_first()?;
            let (value, rest) = rest.split_at_checked(usize::from(*len))?;
            if kind == wanted { Some(value) } else { option(rest, wanted) }
        }
    }
}

/// The third host is on left's LAN, then on right's: with the same addresses, there and here.
fn arp(lab: &Lab) -> Result<String> {
    let lans = Lans::new(lab, 1500)?;
    let moving = lab.host("moving")?;
    moving.sysctl("ipv6/conf/default/disable_ipv6", "1")?;
    let (here, there) = (port(&moving, "eth0"), port(&moving, "eth1"));
    plug(here, &lans.wire.a, "moving", 1500)?;
    plug(there, &lans.wire.b, "moving", 1500)?;
    let wiretap = Wiretap::new(&lans, &[&moving])?;
    asked_and_answered(&lans)?;
    // Only the device that has the address answers for it.
    moving.sysctl("ipv4/conf/all/arp_ignore", "1")?;
    let (mac, address) = (here.mac()?, "198.18.0.9");
    here.address(&[&format!("{address}/24")])?;
    ping::until_answered(&lans.right, address, SOON)?;
    lans.learned(&lans.wire.a, mac, "moving")?;
    lans.learned(&lans.wire.b, mac, "tap0")?;
    let capture = Capture::frames(&lans.left, "eth0")?;
    here.remove_address(&format!("{address}/24"))?;
    there.address(&[&format!("{address}/24")])?;
    // From now on a device tells everybody of a new hardware address, unasked.
    moving.sysctl("ipv4/conf/all/arp_notify", "1")?;
    let name = mac.map(|byte| format!("{byte:02x}")).join(":");
    moving.run(&format!("ip link set eth1 address {name}"))?;
    lans.learned(&lans.wire.b, mac, "moving")?;
    lans.learned(&lans.wire.a, mac, "tap0")?;
    let own: Ipv4Addr = address.parse()?;
    let is_own = |arp: Arp| (arp.sender, arp.target) == (own, own);
    ensure_seen(&capture.stop()?, "gratuitous ARP", |frame| {
        frame.is_to(BROADCAST) && frame.arp().is_some_and(is_own)
    })?;
    for host in [&lans.left, &lans.right] {
        ping::until_answered(host, address, SOON)?;
    }
    Ok(format!("request, reply; a host moved by gratuitous ARP alone; {}", wiretap.heard()?))
}

/// Left asks for right, and right answers, as seen on right's cable and on left's.
fn asked_and_answered(lans: &Lans) -> Result<()> {
    let captures = lans.captures()?;
    lans.forget_neighbours()?;
    ping::once(&lans.left, RIGHT4)?;
    let [left, right]: [Ipv4Addr; 2] = [LEFT4.parse()?, RIGHT4.parse()?];
    let question = Arp { asks: true, sender: left, target: right };
    let answer = Arp { asks: false, sender: right, target: left };
    let left_mac = port(&lans.left, "eth0").mac()?;
    for capture in captures {
        let seen = capture.stop()?;
        let asks = |frame: &Frame| frame.is_to(BROADCAST) && frame.arp() == Some(question);
        ensure_seen(&seen, "ARP request to everybody", asks)?;
        let answers = |frame: &Frame| frame.is_to(left_mac) && frame.arp() == Some(answer);
        ensure_seen(&seen, "ARP reply", answers)?;
    }
    Ok(())
}

/// The router is left, and right makes an address of its prefix.
fn discovery(lab: &Lab) -> Result<String> {
    let lans = Lans::new(lab, 1500)?;
    let wiretap = Wiretap::new(&lans, &[])?;
    neighbours(&lans)?;
    let _router = dnsmasq(&lans.left, &["--enable-ra", "--dhcp-range=2001:db8:18::,ra-only"])?;
    let captures = lans.captures()?;
    let end = port(&lans.right, "eth0");
    end.down()?;
    for (key, value) in [("accept_ra", "1"), ("router_solicitations", "3")] {
        lans.right.sysctl(&format!("ipv6/conf/eth0/{key}"), value)?;
    }
    end.up()?;
    let address = eventually("right has an address of its own making", SOON, || {
        let addresses = lans.right.run("ip -6 -o address show dev eth0 scope global dynamic")?;
        let address = addresses.split_whitespace().nth(3).with_context(|| addresses.clone())?;
        Ok(address.split('/').next().unwrap_or_default().to_owned())
    })?;
    ping::until_answered(&lans.left, &address, SOON)?;
    let route = lans.right.run("ip -6 route show default")?;
    ensure!(route.contains("proto ra"), "no router was learned: {route}");
    for capture in captures {
        let seen = capture.stop()?;
        ensure_seen(&seen, "router solicitation", |frame| frame.is_icmpv6(133))?;
        ensure_seen(&seen, "router advertisement", |frame| frame.is_icmpv6(134))?;
    }
    Ok(format!("solicited, advertised; right is {address} now; {}", wiretap.heard()?))
}

/// Left looks for right, by the group that right's address makes it join.
fn neighbours(lans: &Lans) -> Result<()> {
    let captures = lans.captures()?;
    lans.forget_neighbours()?;
    ping::once(&lans.left, RIGHT6)?;
    let group = "ff02::1:ff00:2".parse()?;
    for capture in captures {
        let seen = capture.stop()?;
        ensure_seen(&seen, "neighbour solicitation to the group", |frame| {
            let to_group = frame.is_to([0x33, 0x33, 0xff, 0, 0, 2]);
            to_group && frame.destination() == Some(group) && frame.is_icmpv6(135)
        })?;
        ensure_seen(&seen, "neighbour advertisement", |frame| frame.is_icmpv6(136))?;
    }
    Ok(())
}

fn jumbo(lab: &Lab) -> Result<String> {
    const JUMBO: u16 = 9000;
    let lans = Lans::of(lab, JUMBO, 1500)?;
    let capture = Capture::frames(&lans.right, "eth0")?;
    let wiretap = Wiretap::new(&lans, &[])?;
    for (address, headers) in [(RIGHT4, 28), (RIGHT6, 48)] {
        let size = JUMBO - headers;
        let pings = ping::with_size(&lans.left, address, 10, Duration::from_millis(20), size)?;
        ensure!(pings.answered == 10, "{JUMBO} bytes to {address}: {pings:?}");
        let lengths: Vec<_> = (0..=usize::from(size)).rev().step_by(100).collect();
        udp::one_of_each(&lans.left, &lans.right, address, &lengths)?;
    }
    let full = |frame: &Frame| frame.bytes().len() == usize::from(JUMBO) + 14;
    let seen = capture.stop()?;
    ensure_seen(&seen, "whole jumbo frame", |frame| full(frame) && frame.kind() == frame::IPV4)?;
    ensure_seen(&seen, "whole jumbo frame", |frame| full(frame) && frame.kind() == frame::IPV6)?;
    let heard = wiretap.heard()?;
    tcp::transfer(&lans.left, &lans.right, RIGHT4, 16 << 20)?;
    tcp::transfer(&lans.right, &lans.left, LEFT6, 16 << 20)?;
    lans.ensure_whole(JUMBO)?;
    Ok(format!("9000-byte pings and UDP with DF, TCP; br0 keeps its MTU; {heard}"))
}
