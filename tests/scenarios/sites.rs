//! Networks behind both ends of a TUN, and hosts that know nothing of a tunnel.

use std::time::Duration;

use anyhow::{Result, ensure};
use vpnd_tests::capture::Capture;
use vpnd_tests::frame::Frame;
use vpnd_tests::link::{cable, port};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site;
use vpnd_tests::traffic::{ping, tcp, udp};
use vpnd_tests::{Host, Lab, Vpnd, Wire};

use crate::lans::ensure_seen;
use crate::tunnel::SOON;

/// Of the tunnel.
const MTU: u16 = 1420;
/// What left reaches right by.
const RIGHT: [&str; 2] = ["198.18.2.7", "2001:db8:2::7"];
/// What right reaches left by.
const LEFT: [&str; 2] = ["198.18.1.7", "2001:db8:1::7"];

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("sites::a network behind each end", Cost::Works, routed)]
}

/// A router at each site, with a network behind it:
///
/// ```text
///   left 198.18.1.7 [eth0] ── 198.18.1.1 [lan] a ══ tunnel ══ b [lan] 198.18.2.1 ── [eth0] 198.18.2.7 right
/// ```
///
/// and 2001:db8:1::/64 and 2001:db8:2::/64 beside them.
struct Sites {
    left: Host,
    right: Host,
    _wire: Wire,
    ends: [Vpnd; 2],
}

impl Sites {
    fn new(lab: &Lab) -> Result<Self> {
        let wire = Wire::new(lab)?;
        let (left, right) = (lab.host("left")?, lab.host("right")?);
        for (host, router, number) in [(&left, &wire.a, 1), (&right, &wire.b, 2)] {
            let (v4, v6) = (format!("198.18.{number}"), format!("2001:db8:{number}"));
            cable(port(host, "eth0"), port(router, "lan"))?;
            port(host, "eth0").address(&[&format!("{v4}.7/24"), &format!("{v6}::7/64")])?;
            port(router, "lan").address(&[&format!("{v4}.1/24"), &format!("{v6}::1/64")])?;
            host.run(&format!("ip route add default via {v4}.1"))?;
            host.run(&format!("ip -6 route add default via {v6}::1"))?;
            router.sysctl("ipv4/ip_forward", "1")?;
            router.sysctl("ipv6/conf/all/forwarding", "1")?;
        }
        let (a, b) = site::pair()?;
        let b = b.route("198.18.1.0/24").route("2001:db8:1::/64");
        let a = a.route("198.18.2.0/24").route("2001:db8:2::/64");
        let b = Vpnd::start(&wire.b, &b)?;
        let a = Vpnd::start(&wire.a, &a.towards(Wire::B4))?;
        ping::until_answered(&left, RIGHT[0], SOON)?;
        ping::until_answered(&left, RIGHT[1], SOON)?;
        Ok(Self { left, right, _wire: wire, ends: [a, b] })
    }
}

fn routed(lab: &Lab) -> Result<String> {
    let sites = Sites::new(lab)?;
    let (left, right) = (&sites.left, &sites.right);
    let seen = Capture::frames(left, "eth0")?;
    for (address, headers) in RIGHT.into_iter().zip([28, 48]) {
        too_large(left, address, headers)?;
        let pings = ping::with_size(left, address, 10, Duration::from_millis(20), MTU - headers)?;
        ensure!(pings.answered == 10, "{MTU} bytes to {address}: {pings:?}");
        let lengths: Vec<_> = (0..=usize::from(MTU - headers)).rev().step_by(7).collect();
        udp::one_of_each(left, right, address, &lengths)?;
    }
    let seen = seen.stop()?;
    for (name, is_v4) in [("fragmentation needed", true), ("packet too big", false)] {
        ensure_seen(&seen, name, |frame: &Frame| {
            let told = frame.next_mtu() == Some(MTU.into());
            told && frame.destination().is_some_and(|address| address.is_ipv4() == is_v4)
        })?;
    }
    for (from, to, addresses) in [(left, right, RIGHT), (right, left, LEFT)] {
        for address in addresses {
            ping::until_answered(from, address, SOON)?;
            tcp::transfer(from, to, address, 8 << 20)?;
        }
    }
    for end in &sites.ends {
        ensure!(end.status()?.is_up(), "{}", end.status()?);
    }
    let told = "1500 bytes with DF: the router tells left 1420, by ICMP and by ICMPv6";
    Ok(format!("{told}; 1420 bytes, UDP of every kind of length, TCP both ways, both families"))
}

/// A packet of the LAN's MTU is not answered, and left knows the tunnel's MTU for that address then.
fn too_large(left: &Host, address: &str, headers: u16) -> Result<()> {
    let pings = ping::with_size(left, address, 2, Duration::from_millis(50), 1500 - headers)?;
    ensure!(pings.answered == 0, "1500 bytes to {address} through {MTU}: {pings:?}");
    let route = left.run(&format!("ip route get {address}"))?;
    ensure!(route.contains(&format!("mtu {MTU}")), "left does not know the MTU: {route}");
    Ok(())
}
