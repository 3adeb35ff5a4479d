//! The path's MTU: found by probes, followed by the device under a TCP connection, with ICMP and without.

use std::cell::OnceCell;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vpnd_tests::link::port;
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_A4, INNER_A6, INNER_B4, INNER_B6, Site};
use vpnd_tests::traffic::tcp::Transfer;
use vpnd_tests::traffic::{ping, tcp, udp};
use vpnd_tests::{Host, Lab, Routed, Vpnd, eventually, nft};

use crate::tunnel::SOON;

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("path_mtu::routers that report, IPv4", Cost::Works, |lab| {
            changes(lab, V4, Router::Reports)
        }),
        Scenario::new("path_mtu::routers that report, IPv6", Cost::Works, |lab| {
            changes(lab, V6, Router::Reports)
        }),
        Scenario::new("path_mtu::a black hole, IPv4", Cost::Works, |lab| {
            changes(lab, V4, Router::Silent)
        }),
        Scenario::new("path_mtu::a black hole, IPv6", Cost::Works, |lab| {
            changes(lab, V6, Router::Silent)
        }),
        Scenario::new("path_mtu::jumbo frames", Cost::Works, jumbo),
        Scenario::new("path_mtu::a device with an MTU of its own", Cost::Works, pinned),
    ]
}

/// Where B is, and the bytes of a full packet that are not the inner packet's.
#[derive(Clone, Copy)]
struct Outside {
    endpoint: &'static str,
    overhead: u16,
}

const V4: Outside = Outside { endpoint: Routed::B4, overhead: 20 + 8 + 32 };
const V6: Outside = Outside { endpoint: "[2001:db8:b::1]:51820", overhead: 40 + 8 + 32 };

#[derive(Clone, Copy, PartialEq)]
enum Router {
    /// Sends ICMP.
    Reports,
    /// Drops in silence.
    Silent,
}

/// How long a transfer may stand still at a change: TCP waits longer each time.
const STALL: Duration = Duration::from_secs(10);
/// How long the search may take.
const FOUND: Duration = Duration::from_secs(20);
/// How soon after that a connection sends packets of the new size. It notices with the next one that it sends; the rest of the
/// time is for a busy machine.
const ADAPTED: Duration = Duration::from_secs(1);

fn start(path: &Routed, outside: Outside) -> Result<[Vpnd; 2]> {
    let (a, b) = site::pair()?;
    let speaking = |mut site: Site| {
        site.mtu = 0;
        site.tables.push("[path]\nraise_every = \"2s\"".to_owned());
        site.speaking_vpnd(&[])
    };
    let b = Vpnd::start(&path.b, &speaking(b))?;
    let a = Vpnd::start(&path.a, &speaking(a).towards(outside.endpoint).keepalive(1))?;
    ping::until_answered(&path.a, INNER_B4, SOON)?;
    Ok([a, b])
}

/// The link between router and B carries so much from now on.
fn narrow(path: &Routed, mtu: u16, router: Router) -> Result<()> {
    match router {
        Router::Reports => {
            for link in [port(&path.router, "b"), port(&path.b, "eth0")] {
                link.mtu(mtu)?;
            }
            Ok(())
        }
        Router::Silent => {
            nft::clear(&path.router)?;
            if mtu < 1500 { nft::black_hole(&path.router, mtu) } else { Ok(()) }
        }
    }
}

fn ensure_mtu(path: &Routed, ends: &[Vpnd; 2], expected: u16) -> Result<()> {
    eventually("the device's MTU", FOUND, || {
        for end in ends {
            let mtu = end.status()?.device_mtu();
            ensure!(mtu == Some(expected.into()), "{mtu:?}, not {expected}");
        }
        Ok(())
    })?;
    let link = path.a.run("ip -o link show tun0")?;
    ensure!(link.contains(&format!("mtu {expected} ")), "{link}");
    Ok(())
}

/// The kernel tells programs on both hosts what the device takes, for both families.
fn ensure_told(path: &Routed, expected: u16) -> Result<()> {
    let asked: [(&Host, _); 2] = [(&path.a, [INNER_B4, INNER_B6]), (&path.b, [INNER_A4, INNER_A6])];
    for (host, addresses) in asked {
        for to in addresses {
            let told = udp::mtu_towards(host, to)?;
            ensure!(told == expected, "{}: {told} to {to}, not {expected}", host.name());
        }
    }
    Ok(())
}

/// The largest packet of the connection from A, and its largest segment.
fn connection(path: &Routed) -> Result<[u16; 2]> {
    let told = path.a.run(&format!("ss -Htin dst {INNER_B4}"))?;
    let value = |name: &str| {
        let word = told.split_whitespace().find_map(|word| word.strip_prefix(name));
        let value = word.with_context(|| format!("no {name} in {told}"))?;
        Ok::<u16, anyhow::Error>(value.parse()?)
    };
    Ok([value("pmtu:")?, value("mss:")?])
}

/// The headers and options of a segment of TCP over IPv4.
const TCP_HEADERS: u16 = 20 + 20 + 12;

/// The connection sends packets that the device takes. Returns how long that took.
fn ensure_adapted(path: &Routed, expected: u16) -> Result<Duration> {
    let begin = Instant::now();
    eventually("the connection's packets", ADAPTED, || {
        let now = connection(path)?;
        ensure!(now == [expected, expected - TCP_HEADERS], "{now:?}, not {expected}");
        Ok(())
    })?;
    Ok(begin.elapsed())
}

/// The longest time without progress, until `done` has been true for a while.
fn stall(transfer: &Transfer, until: impl Fn() -> Result<()>) -> Result<Duration> {
    let (mut longest, mut since, mut last) = (Duration::ZERO, Instant::now(), transfer.progress());
    let begin = Instant::now();
    let mut done = None;
    while done.is_none_or(|at: Instant| at.elapsed() < Duration::from_secs(1)) {
        sleep(Duration::from_millis(5));
        let now = transfer.progress();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        longest = longest.max(since.elapsed());
        if done.is_none() && begin.elapsed().as_millis() % 200 < 10 && until().is_ok() {
            done = Some(Instant::now());
        }
        ensure!(begin.elapsed() < FOUND + STALL, "the MTU is not found: {:?}", until());
        ensure!(!transfer.is_over(), "over too soon: this must happen in its middle");
    }
    Ok(longest)
}

/// A path on which the router sees the datagrams themselves, not batches of them.
fn path(lab: &Lab) -> Result<Routed> {
    let path = Routed::new(lab)?;
    port(&path.a, "eth0").no_offload()?;
    port(&path.b, "eth0").no_offload()?;
    Ok(path)
}

fn changes(lab: &Lab, outside: Outside, router: Router) -> Result<String> {
    let path = path(lab)?;
    let ends = start(&path, outside)?;
    ensure_mtu(&path, &ends, 1500 - outside.overhead)?;
    let transfer = Transfer::start(&path.a, &path.b, INNER_B4, 1 << 40)?;
    transfer.reach(1 << 20)?;
    let mut told = Vec::new();
    for mtu in [1280, 1500, 1400] {
        narrow(&path, mtu, router)?;
        let expected = (mtu - outside.overhead).max(1280);
        let begin = Instant::now();
        let adapted = OnceCell::new();
        let stall = stall(&transfer, || {
            for end in &ends {
                let mtu = end.status()?.device_mtu();
                ensure!(mtu == Some(expected.into()), "{mtu:?}, not {expected}");
            }
            adapted.get_or_init(|| ensure_adapted(&path, expected));
            Ok(())
        })?;
        let adapted = adapted.into_inner().context("it was never looked at")??;
        ensure_told(&path, expected)?;
        ensure!(stall < STALL, "path of {mtu}: the connection stood still for {stall:?}");
        ensure_mtu(&path, &ends, expected)?;
        let found = begin.elapsed().saturating_sub(Duration::from_secs(1));
        told.push(format!(
            "{mtu}: stall {stall:.1?}, found within {found:.1?}, TCP follows within {adapted:.0?}"
        ));
    }
    drop(transfer);
    Ok(told.join("; "))
}

fn jumbo(lab: &Lab) -> Result<String> {
    let path = Routed::new(lab)?;
    for link in [
        port(&path.a, "eth0"),
        port(&path.router, "a"),
        port(&path.router, "b"),
        port(&path.b, "eth0"),
    ] {
        link.mtu(9000)?;
    }
    let ends = start(&path, V4)?;
    ensure_mtu(&path, &ends, 9000 - V4.overhead)?;
    tcp::transfer(&path.a, &path.b, INNER_B4, 16 << 20)?;
    Ok(format!("the devices take {} bytes", 9000 - V4.overhead))
}

/// Packets as long as the device takes them cross in fragments of the size that the path carries.
fn pinned(lab: &Lab) -> Result<String> {
    let path = path(lab)?;
    nft::black_hole(&path.router, 1300)?;
    let (a, b) = site::pair()?;
    let _b = Vpnd::start(&path.b, &b.speaking_vpnd(&[]))?;
    let a = Vpnd::start(&path.a, &a.speaking_vpnd(&[]).towards(Routed::B4).keepalive(1))?;
    ping::until_answered(&path.a, INNER_B4, SOON)?;
    let full = ping::with_size(&path.a, INNER_B4, 20, Duration::from_millis(100), 1420 - 28)?;
    ensure!(full.answered == 20, "{full:?}");
    ensure!(a.status()?.device_mtu() == Some(1420), "the MTU changed");
    Ok("20 of 20 full pings over a path of 1300 bytes; the device keeps its 1420".to_owned())
}
