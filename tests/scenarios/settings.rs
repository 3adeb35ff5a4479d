//! Settings of the data path that a reload changes under numbered streams and a TCP connection: allowed
//! sources, the segment size, the MTU.

use std::time::Duration;

use anyhow::{Result, ensure};
use vpnd_tests::capture::Capture;
use vpnd_tests::link::port;
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{INNER_A4, INNER_A6, INNER_B4, INNER_B6, Site, pair};
use vpnd_tests::traffic::{ping, tcp};
use vpnd_tests::{Host, Lab, Vpnd, Wire, nft};

use crate::change::Flow;
use crate::tunnel::{SOON, Tunnel};

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = vec![
        Scenario::new("settings::allowed_ips, more and less", Cost::Waits, networks),
        Scenario::new("settings::allowed_macs, others and any", Cost::Works, stations),
        Scenario::new("settings::mss_clamp", Cost::Waits, segments),
    ];
    for mode in ["tun", "tap"] {
        let name = format!("settings::mtu of a {mode} device, lowered and raised");
        all.push(Scenario::new(name, Cost::Waits, move |lab| mtu(lab, mode)));
    }
    all
}

/// Datagrams dropped for this reason.
fn dropped(end: &Vpnd, reason: &str) -> Result<u64> {
    Ok(end.status()?.drops().get(reason).copied().unwrap_or(0))
}

fn networks(lab: &Lab) -> Result<String> {
    const OTHER: &str = "198.51.100.7";
    const NETWORK: &str = "198.51.100.0/24";
    let (a, b) = pair()?;
    let flow = Flow::start(lab, &a.towards(Wire::B4), &b)?;
    let (wire, end) = (flow.wire(), flow.ends()[1]);
    wire.a.run(&format!("ip address add {OTHER}/32 dev lo"))?;
    wire.b.run(&format!("ip route add {NETWORK} dev tun0"))?;
    let ask = || wire.a.run(&format!("ping -c 1 -W 1 -I {OTHER} {INNER_B4}")).is_ok();
    let mut wider = b.clone();
    wider.remote.allowed_ips.push(NETWORK.to_owned());
    for round in 1..=2 {
        ensure!(!ask(), "let in, and nobody said so");
        let refused = dropped(end, "source_not_allowed")?;
        ensure!(refused >= round, "{refused} packets refused in {round} rounds");
        flow.after(|| end.reload(&wider))?;
        ensure!(ask() && dropped(end, "source_not_allowed")? == refused, "not let in");
        flow.after(|| end.reload(&b))?;
    }
    ensure!(!ask(), "let in still");
    flow.ensure_whole()
}

fn stations(lab: &Lab) -> Result<String> {
    let frames = |site: Site| {
        let mut site = site.speaking_vpnd(&[]);
        site.interface.push("mode = \"tap\"".to_owned());
        site
    };
    let with = |site: &Site, mac: &str| {
        let mut site = site.clone();
        site.remote.lines.push(format!("allowed_macs = [{mac:?}]"));
        site
    };
    let (a, b) = pair()?;
    let (a, b) = (frames(a.towards(Wire::B4)), frames(b));
    let tunnel = Tunnel::with(lab, |_, _| (a, b.clone()))?;
    let (asks, end) = (&tunnel.wire.a, &tunnel.b);
    let mac = port(asks, "tun0").mac()?.map(|byte| format!("{byte:02x}")).join(":");
    for (site, answered) in
        [(with(&b, "02:00:00:00:00:77"), 0), (with(&b, &mac), 3), (b.clone(), 3)]
    {
        end.reload(&site)?;
        let pings = ping::series(asks, INNER_B4, 3, Duration::from_millis(20))?;
        ensure!(pings.answered == answered, "{pings:?}, and not {answered}");
    }
    let refused = dropped(end, "source_mac_not_allowed")?;
    ensure!(refused >= 3, "{refused} frames refused");
    Ok(format!("{refused} frames of another station refused, its own and any let in"))
}

fn segments(lab: &Lab) -> Result<String> {
    let (a, b) = pair()?;
    let flow = Flow::start(lab, &a.towards(Wire::B4), &b)?;
    let (wire, end) = (flow.wire(), flow.ends()[1]);
    let with = |clamp: &str| {
        let mut site = b.clone();
        site.tables.push(format!("[path]\nmss_clamp = {clamp}"));
        site
    };
    for (site, clamped) in [(with("1000"), 1000), (with("900"), 900), (b.clone(), 1380)] {
        flow.after(|| end.reload(&site))?;
        let size =
            |test: &str| format!("iif tun0 tcp flags & syn == syn tcp option maxseg size {test}");
        nft::clear(&wire.b)?;
        nft::count_arriving(
            &wire.b,
            &[size(&clamped.to_string()), size(&format!("!= {clamped}"))],
        )?;
        tcp::transfer(&wire.a, &wire.b, INNER_B4, 1 << 20)?;
        let counts = nft::counts(&wire.b)?;
        ensure!(counts[0] > 0 && counts[1] == 0, "{counts:?} SYNs of {clamped} and of others");
    }
    nft::clear(&wire.b)?;
    flow.ensure_whole()
}

fn mtu(lab: &Lab, mode: &str) -> Result<String> {
    let with = |site: &Site, mtu: u16| {
        let mut site = Site { mtu, ..site.clone().speaking_vpnd(&[]) };
        site.interface.push(format!("mode = {mode:?}"));
        site
    };
    let (a, b) = pair()?;
    let a = a.towards(Wire::B4);
    let flow = Flow::start(lab, &with(&a, 1420), &with(&b, 1420))?;
    let (wire, [at_a, at_b]) = (flow.wire(), flow.ends());
    for mtu in [1280, 9000, 1300, 1420] {
        for (end, site, other) in [(at_a, &a, at_b), (at_b, &b, at_a)] {
            flow.after(|| end.reload(&with(site, mtu)))?;
            end.wait_for("its own MTU", SOON, |status| status.device_mtu() == Some(mtu.into()))?;
            other
                .wait_for("the peer's MTU", SOON, |status| status.peer_mtu() == Some(mtu.into()))?;
        }
        ensure_mtu(wire, mode, mtu)?;
    }
    flow.ensure_whole()
}

/// The payload that the first link carries, and so the length of a probe of the path's MTU.
const PROBE: usize = 1472;

/// Both devices have it, packets as long as that cross, and no datagram is longer than it makes them.
fn ensure_mtu(wire: &Wire, mode: &str, mtu: u16) -> Result<()> {
    let shown = |host: &Host| host.run("ip link show dev tun0");
    for host in [&wire.a, &wire.b] {
        let shown = shown(host)?;
        ensure!(shown.contains(&format!(" mtu {mtu} ")), "{shown}");
    }
    let seen = Capture::start(&wire.b, "eth0", 0)?;
    for (from, address, headers) in [
        (&wire.a, INNER_B4, 28),
        (&wire.a, INNER_B6, 48),
        (&wire.b, INNER_A4, 28),
        (&wire.b, INNER_A6, 48),
    ] {
        let pings = ping::with_size(from, address, 5, Duration::from_millis(20), mtu - headers)?;
        ensure!(pings.answered == 5, "{mtu} bytes to {address}: {pings:?}");
    }
    tcp::transfer(&wire.a, &wire.b, INNER_B4, 4 << 20)?;
    // A frame has a header of 14 bytes and an envelope of two before it, and is padded to 16.
    let envelope = if mode == "tap" { 14 + 2 + 15 } else { 0 };
    let most = (usize::from(mtu) + envelope + 32).min(PROBE);
    // Streams cross all the time, so that the capture never runs dry: it is asked while it goes on.
    let larger = |than: usize| seen.count(|datagram| datagram.len > than);
    let wrong = seen.count(|datagram| datagram.len > most && datagram.len != PROBE);
    ensure!(wrong == 0, "{wrong} datagrams have more than {most} bytes");
    ensure!(mtu > 1420 || larger(mtu.into()) > 0, "no datagram has {mtu} bytes");
    Ok(())
}
