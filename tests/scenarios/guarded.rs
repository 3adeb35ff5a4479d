//! What the far end must not do to a host: configure it like a router or DHCP server, or use its address.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use vpnd_tests::capture::Capture;
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{INNER_A4, INNER_A6, INNER_B4, INNER_B6, Site};
use vpnd_tests::{Lab, nft};

use crate::tunnel::{SOON, Tunnel};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("guarded::routers over a TUN device", Cost::Works, routers),
        Scenario::new("guarded::routers and DHCP servers over a TAP device", Cost::Works, servers),
        Scenario::new("guarded::nobody speaks in our name", Cost::Works, names),
        Scenario::new("guarded::a network that nothing is routed to", Cost::Works, unrouted),
    ]
}

/// Link-local addresses at both ends, and everything let in: as a routing daemon wants it.
fn open(site: Site, link_local: &str, lines: &[&str]) -> Site {
    let mut site = site.speaking_vpnd(lines);
    site.addresses.push(format!("{link_local}/64"));
    site.remote.allowed_ips = vec!["0.0.0.0/0".to_owned(), "::/0".to_owned()];
    site
}

const ADVERTISEMENT: u8 = 134;
const REDIRECT: u8 = 137;
const SOLICITATION: u8 = 133;
const NEIGHBOUR: u8 = 136;

/// By default none passes, behind whatever headers; where the file says so all do.
fn routers(lab: &Lab) -> Result<String> {
    let tunnel = Tunnel::with(lab, |a, b| {
        let a = open(a.towards(vpnd_tests::Wire::B4), "fe80::1", &[]);
        (a, open(b, "fe80::2", &["guard = []"]))
    })?;
    let (a, b) = (&tunnel.wire.a, &tunnel.wire.b);
    for setting in ["accept_ra", "accept_redirects"] {
        let kept = a.run(&format!("cat /proc/sys/net/ipv6/conf/tun0/{setting}"))?;
        ensure!(kept.trim() == "0", "{setting} of a new device: {kept}");
    }
    let kinds = [ADVERTISEMENT, REDIRECT, SOLICITATION];
    let headers: [&[u8]; 4] = [&[], &[0], &[60], &[44]];
    for (from, to, source) in [(b, a, "fe80::2"), (a, b, "fe80::1")] {
        nft::count_arriving(to, &counters())?;
        let sender = Capture::start(from, "tun0", 0)?;
        for behind in headers {
            for kind in kinds {
                sender.send(&icmpv6(source, behind, kind)?)?;
            }
            sender.send(&icmpv6(source, behind, NEIGHBOUR)?)?;
        }
    }
    let sent = (headers.len() * kinds.len()) as u64;
    let heard = headers.len() as u64;
    tunnel.a.wait_for("the guard to have stopped them", SOON, |status| {
        status.drops().get("guarded") == Some(&sent)
    })?;
    vpnd_tests::eventually("neighbours are heard", SOON, || {
        let (at_a, at_b) = (nft::counts(a)?, nft::counts(b)?);
        ensure!(at_a == [0, 0, 0, heard], "a heard {at_a:?}");
        ensure!(at_b == [heard; 4], "b, which is not guarded, heard {at_b:?}");
        Ok(())
    })?;
    Ok(format!(
        "{sent} of {sent} messages stopped, {heard} of neighbours passed; without a guard all"
    ))
}

fn counters() -> Vec<String> {
    [ADVERTISEMENT, REDIRECT, SOLICITATION, NEIGHBOUR]
        .map(|kind| format!("meta l4proto icmpv6 icmpv6 type {kind}"))
        .to_vec()
}

/// On a LAN only what comes from the side of servers is stopped, and only where the file says so.
fn servers(lab: &Lab) -> Result<String> {
    let tap = |site: Site, lines: &[&str]| {
        let mut site = site.speaking_vpnd(lines);
        site.interface.push("mode = \"tap\"".to_owned());
        site
    };
    let tunnel = Tunnel::with(lab, |a, b| {
        let a = tap(a.towards(vpnd_tests::Wire::B4), &["guard = [\"ra\", \"dhcp\"]"]);
        (a, tap(b, &[]))
    })?;
    let (a, b) = (&tunnel.wire.a, &tunnel.wire.b);
    let accept = a.run("cat /proc/sys/net/ipv6/conf/tun0/accept_ra")?;
    ensure!(accept.trim() == "0", "accept_ra of a new device: {accept}");
    let sender = Capture::start(b, "tun0", 0)?;
    let receiver = Capture::frames(a, "tun0")?;
    let stopped = [
        icmpv6("fe80::2", &[], ADVERTISEMENT)?,
        icmpv6("fe80::2", &[60, 44], REDIRECT)?,
        udp4(67, 68)?,
        udp4(4011, 68)?,
    ];
    let passed = [icmpv6("fe80::2", &[], SOLICITATION)?, udp4(68, 67)?];
    let tags: [&[u8]; 3] = [&[], &[0x81, 0, 0, 7], &[0x88, 0xa8, 0, 9, 0x81, 0, 0, 7]];
    for (number, tag) in (0u8..).zip(tags) {
        for packet in stopped.iter().chain(&passed) {
            sender.send(&frame(number, tag, packet))?;
        }
    }
    let expected = (stopped.len() * tags.len()) as u64;
    let heard = passed.len() * tags.len();
    let ours = |frame: &vpnd_tests::Frame| frame.bytes()[6..11] == FROM;
    vpnd_tests::eventually("the others pass", SOON, || {
        let count = receiver.count_frames(ours);
        ensure!(count == heard, "{count} frames of {heard} passed");
        Ok(())
    })?;
    let drops = tunnel.a.status()?.drops().get("guarded").copied();
    ensure!(drops == Some(expected), "stopped {drops:?}, not {expected}");
    Ok(format!("{expected} of {expected} stopped, tagged or not; {heard} of clients passed"))
}

const FROM: [u8; 5] = [2, 0, 0x5e, 0, 0x53];

fn frame(number: u8, tag: &[u8], packet: &[u8]) -> Vec<u8> {
    let kind = if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
    [&[0xff; 6][..], &FROM, &[number], tag, &kind, packet].concat()
}

/// With everything let in: our own addresses, those of no host, and the peer's, which alone pass.
fn names(lab: &Lab) -> Result<String> {
    let everything = |mut site: Site| {
        site.remote.allowed_ips = vec!["0.0.0.0/0".to_owned(), "::/0".to_owned()];
        site
    };
    let tunnel =
        Tunnel::with(lab, |a, b| (everything(a.towards(vpnd_tests::Wire::B4)), everything(b)))?;
    let (a, b) = (&tunnel.wire.a, &tunnel.wire.b);
    let from = |address| format!("udp dport 7 ip saddr {address}");
    nft::count_arriving(a, &[from(INNER_B4), "udp dport 7".to_owned()])?;
    let sender = Capture::start(b, "tun0", 0)?;
    let lies = [
        INNER_A4,
        "10.99.0.0",
        "10.99.0.3",
        "0.0.0.0",
        "127.0.0.1",
        "224.0.0.5",
        "255.255.255.255",
        INNER_A6,
        "2001:db8:99::",
        "::",
        "::1",
        "::ffff:192.0.2.7",
        "fe80::2",
        "ff02::1",
    ];
    for source in lies.into_iter().chain([INNER_B4, INNER_B6, "198.51.100.9"]) {
        sender.send(&udp_from(source.parse()?)?)?;
    }
    vpnd_tests::eventually("the others arrive", SOON, || {
        let seen = nft::counts(a)?;
        ensure!(seen == [1, 3], "{seen:?} arrived, not the 3 honest ones");
        Ok(())
    })?;
    let drops = tunnel.a.status()?.drops().get("source_not_allowed").copied().unwrap_or(0);
    ensure!(drops >= lies.len() as u64, "{drops} dropped, not {}", lies.len());
    Ok(format!("{} of {} sources refused though everything is let in", lies.len(), lies.len()))
}

/// Only packets from hosts that another configuration would let in are hinted at.
fn unrouted(lab: &Lab) -> Result<String> {
    let tunnel = Tunnel::with(lab, |a, b| (a.towards(vpnd_tests::Wire::B4), b))?;
    let sender = Capture::start(&tunnel.wire.b, "tun0", 0)?;
    let dropped = |at_least: u64| {
        tunnel.a.wait_for("they are dropped", SOON, |status| {
            status.drops().get("source_not_allowed").is_some_and(|count| *count >= at_least)
        })
    };
    for source in ["::", "fe80::2", INNER_A4, "127.0.0.1"] {
        for _ in 0..5 {
            sender.send(&udp_from(source.parse()?)?)?;
        }
    }
    let hint = dropped(20)?.hint().map(str::to_owned);
    ensure!(hint.is_none(), "a hint at what no configuration lets in: {hint:?}");
    for _ in 0..12 {
        sender.send(&udp_from("192.168.30.7".parse()?)?)?;
    }
    let said = "dropped 12 packets of the peer from addresses that allowed_ips does not contain";
    let status = tunnel.a.wait_for("it hints at the network", SOON, |status| {
        status.hint().is_some_and(|hint| hint.contains(said) && hint.contains("192.168.30.7"))
    })?;
    ensure!(status.is_up(), "{status}");
    let logged =
        || tunnel.a.as_process().log().matches("that allowed_ips does not contain").count();
    ensure!(logged() == 1, "logged {} times", logged());
    Ok("named with an address once, and nothing else is".to_owned())
}

fn udp_from(source: IpAddr) -> Result<Vec<u8>> {
    let upper = [0x1b, 0x58, 0, 7, 0, 8, 0, 0];
    match source {
        IpAddr::V4(source) => {
            ipv4(source.octets(), INNER_A4.parse::<std::net::Ipv4Addr>()?.octets(), &upper)
        }
        IpAddr::V6(source) => ipv6(&source.to_string(), INNER_A6, &[], 17, &upper),
    }
}

/// Of a DHCP server or client to everybody.
fn udp4(from: u16, to: u16) -> Result<Vec<u8>> {
    let upper = [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0, 8, 0, 0]].concat();
    ipv4([192, 0, 2, 77], [255; 4], &upper)
}

fn ipv4(source: [u8; 4], to: [u8; 4], upper: &[u8]) -> Result<Vec<u8>> {
    let len = u16::try_from(20 + upper.len())?;
    let mut header = [&[0x45, 0][..], &len.to_be_bytes(), &[0, 0, 0, 0, 64, 17, 0, 0]].concat();
    header.extend([source, to].concat());
    let words = header.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let checksum = !u16::try_from((sum & 0xffff) + (sum >> 16))?;
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    Ok([&header, upper].concat())
}

/// To all hosts, behind these extension headers, each of eight bytes.
fn icmpv6(source: &str, behind: &[u8], kind: u8) -> Result<Vec<u8>> {
    let body = [&[kind, 0, 0, 0][..], &[0; 36]].concat();
    ipv6(source, "ff02::1", behind, 58, &body)
}

fn ipv6(source: &str, to: &str, behind: &[u8], protocol: u8, upper: &[u8]) -> Result<Vec<u8>> {
    let addresses = [source, to].map(|a| a.parse::<std::net::Ipv6Addr>().map(|a| a.octets()));
    let [source, to] = addresses;
    let len = u16::try_from(behind.len() * 8 + upper.len())?;
    let mut next = behind.iter().copied().chain([protocol]);
    let first = next.next().unwrap_or(protocol);
    let mut packet = [&[0x60, 0, 0, 0][..], &len.to_be_bytes(), &[first, 255]].concat();
    packet.extend([source?, to?].concat());
    for (header, next) in behind.iter().zip(next) {
        // Options that are padding; a fragment header of zeros is an atomic one.
        let options = if *header == 44 { [0; 6] } else { [1, 4, 0, 0, 0, 0] };
        packet.extend([next, 0]);
        packet.extend(options);
    }
    packet.extend(upper);
    Ok(packet)
}
