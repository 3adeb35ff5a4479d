//! Two vpnd: each family inside each family, networks behind both, a preshared key, and what an
//! eavesdropper learns.

use std::time::Duration;

use anyhow::{Result, ensure};
use vpnd_tests::capture::Capture;
use vpnd_tests::link::{cable, port};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{INNER_A4, INNER_B4, INNER_B6};
use vpnd_tests::traffic::stream::{Pace, Stream};
use vpnd_tests::traffic::{ping, tcp};
use vpnd_tests::{Host, Key, Lab, Wire};

use crate::tunnel::{Tunnel, carries_everything};

pub(crate) fn scenarios() -> Vec<Scenario> {
    let works =
        |name: &str, body: fn(&Lab) -> Result<String>| Scenario::new(name, Cost::Works, body);
    vec![
        works("pair::v4 outside", |lab| inside_of(lab, Wire::B4)),
        works("pair::v6 outside", |lab| inside_of(lab, Wire::B6)),
        works("pair::preshared key", preshared),
        works("pair::networks behind both", networks_behind_both),
        works("pair::an eavesdropper", eavesdropper),
    ]
}

fn inside_of(lab: &Lab, endpoint: &str) -> Result<String> {
    let tunnel = Tunnel::with(lab, |a, b| (a.towards(endpoint), b))?;
    carries_everything(&tunnel.wire, true)?;
    let mut seen = Vec::new();
    for address in [INNER_B4, INNER_B6] {
        let pace = Pace { per_second: 1000, payload: 1200 };
        let stream = Stream::start(&tunnel.wire.a, &tunnel.wire.b, address, pace)?;
        std::thread::sleep(Duration::from_secs(1));
        let tally = stream.stop()?;
        tally.ensure_perfect()?;
        seen.push(tally.sent);
    }
    let status = tunnel.a.status()?;
    ensure!(status.endpoint() == Some(endpoint), "A says {status}");
    Ok(format!("ping, TCP both ways; {seen:?} numbered datagrams over v4 and v6, none lost"))
}

fn preshared(lab: &Lab) -> Result<String> {
    let key = Key::preshared()?;
    let tunnel = Tunnel::with(lab, |a, b| {
        (a.towards(Wire::B4).with_preshared(&key), b.with_preshared(&key))
    })?;
    carries_everything(&tunnel.wire, true)?;
    Ok("ping and TCP both ways".to_owned())
}

/// ```text
///   x 198.18.1.2 ── 198.18.1.1 a ═══ b 198.18.2.1 ── 198.18.2.2 y
/// ```
fn networks_behind_both(lab: &Lab) -> Result<String> {
    let tunnel = Tunnel::with(lab, |a, b| {
        let a = a.towards(Wire::B4).route("198.18.2.0/24").route("2001:db8:2::/64");
        (a, b.route("198.18.1.0/24").route("2001:db8:1::/64"))
    })?;
    let x = behind(lab, &tunnel.wire.a, "x", 1)?;
    let y = behind(lab, &tunnel.wire.b, "y", 2)?;
    for (from, to, address) in [(&x, &y, "198.18.2.2"), (&y, &x, "2001:db8:1::2")] {
        ping::once(from, address)?;
        tcp::transfer(from, to, address, 4 << 20)?;
    }
    let refused = foreign_source_is_refused(&tunnel, &x, &y)?;
    Ok(format!("TCP both ways; {refused} packets from a source that is not allowed refused"))
}

/// Y speaks from an address that B was never allowed to use.
fn foreign_source_is_refused(tunnel: &Tunnel, x: &Host, y: &Host) -> Result<u64> {
    let before = tunnel.a.status()?.dropped();
    port(y, "eth0").address(&["198.18.3.9/32"])?;
    let output =
        y.command("ping").args(["-c3", "-i0.1", "-W1", "-I198.18.3.9", "198.18.1.2"]).output()?;
    ensure!(!output.status.success(), "answered: {}", String::from_utf8_lossy(&output.stdout));
    ping::once(x, "198.18.2.2")?;
    let status = tunnel.a.status()?;
    let refused = status.dropped() - before;
    // B's kernel may say something of its own on the new device.
    ensure!(refused >= 3, "three were sent; A says {status}");
    Ok(refused)
}

/// A host in the network `198.18.N.0/24` of a gateway.
fn behind(lab: &Lab, gateway: &Host, name: &str, net: u8) -> Result<Host> {
    let host = lab.host(name)?;
    cable(port(&host, "eth0"), port(gateway, "lan"))?;
    let (own, theirs) = (format!("198.18.{net}.2/24"), format!("198.18.{net}.1/24"));
    let (own6, theirs6) = (format!("2001:db8:{net}::2/64"), format!("2001:db8:{net}::1/64"));
    port(&host, "eth0").address(&[&own, &own6])?;
    port(gateway, "lan").address(&[&theirs, &theirs6])?;
    host.run(&format!("ip route add default via 198.18.{net}.1"))?;
    host.run(&format!("ip -6 route add default via 2001:db8:{net}::1"))?;
    gateway.sysctl("ipv4/ip_forward", "1")?;
    gateway.sysctl("ipv6/conf/all/forwarding", "1")?;
    Ok(host)
}

/// What crosses in the clear inside must not be found outside, nor keys in any log.
fn eavesdropper(lab: &Lab) -> Result<String> {
    let key = Key::preshared()?;
    let mut secrets = vec![key.clone()];
    let tunnel = Tunnel::with(lab, |a, b| {
        secrets.extend([a.keys.private.clone(), b.keys.private.clone()]);
        (a.towards(Wire::B4).with_preshared(&key), b.with_preshared(&key))
    })?;
    let (inside, outside) = (
        Capture::start(&tunnel.wire.a, "eth0", 2000)?,
        Capture::start(&tunnel.wire.b, "eth0", 2000)?,
    );
    let pattern = "7365637265742d7061747465726e3031";
    let line = format!("ping -q -c20 -i0.01 -p {pattern} {INNER_B4}");
    tunnel.wire.a.run(&line)?;
    tcp::transfer(&tunnel.wire.b, &tunnel.wire.a, INNER_A4, 1 << 20)?;
    let seen = [inside.stop()?, outside.stop()?];
    ensure!(!seen.iter().any(|seen| seen.contains(b"secret-pattern01")), "readable on the cable");
    let logs = lab.log_tails() + &tunnel.a.as_process().log() + &tunnel.b.as_process().log();
    ensure!(!secrets.iter().any(|key| logs.contains(key.as_str())), "a log has a key");
    let others = seen[0].others.len();
    Ok(format!("{} datagrams, ciphertext only; {others} other frames", seen[0].datagrams.len()))
}
