//! The device's carrier shows whether the peer is alive: how soon it goes, and how soon it returns.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use vpnd_tests::peer::{Kind, Peer};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_A4, INNER_B4, INNER_B6, Site};
use vpnd_tests::traffic::ping;
use vpnd_tests::{Host, Lab, Vpnd, Wire, eventually, nft};

use crate::tunnel::SOON;

/// What is waited for beyond what should be enough, on a machine that does much else.
const SLACK: Duration = Duration::from_secs(8);
/// The time within which the kernel tells others of a carrier that went (`link_watch.c`).
const TOLD: Duration = Duration::from_secs(1);

pub(crate) fn scenarios() -> Vec<Scenario> {
    let waits =
        |name: &str, body: fn(&Lab) -> Result<String>| Scenario::new(name, Cost::Waits, body);
    let mut all = vec![
        waits("carrier::keepalives at both ends", |lab| killed_and_cut(lab, true)),
        waits("carrier::a keepalive at one end", |lab| killed_and_cut(lab, false)),
        waits("carrier::a stopped peer says so", stopped),
        waits("carrier::nobody sends, and the link comes up", comes_up_alone),
        waits("carrier::without a keepalive it is always on", always),
        waits("carrier::what brings the peer to life is not lost", first_packets),
        waits("carrier::a persistent device is left as it was", persistent_device),
    ];
    for (name, settings) in WIREGUARD {
        let name = format!("carrier::wireguard-go, {name}");
        all.push(Scenario::new(name, Cost::Waits, move |lab| wireguard_go(lab, settings)));
    }
    all
}

/// The link's own words.
fn link(host: &Host) -> Result<String> {
    host.run("ip -o link show dev tun0")
}

/// Waits for the link to have a carrier or none; says how long that took since `start`.
fn becomes(host: &Host, on: bool, start: Instant, limit: Duration) -> Result<Duration> {
    let (word, what) = if on { ("LOWER_UP", "a carrier") } else { ("NO-CARRIER", "no carrier") };
    eventually(&format!("{} has {what}", host.name()), limit + SLACK, || {
        let link = link(host)?;
        link.contains(word).then_some(()).with_context(|| format!("it is {link}"))
    })?;
    Ok(start.elapsed())
}

/// A series of spans, in words.
fn told(spans: &[(&str, Duration)]) -> String {
    let one = |(what, span): &(&str, Duration)| format!("{what} {:.2} s", span.as_secs_f64());
    spans.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// So much silence is death.
fn impatient(mut site: Site, seconds: u16) -> Site {
    site.remote.lines.push(format!("dead_after = \"{seconds}s\""));
    site
}

/// The peer is killed, it is back, the cable is cut and mended.
fn killed_and_cut(lab: &Lab, both: bool) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, b) = site::pair()?;
    let a = impatient(a.towards(Wire::B4).keepalive(1).speaking_vpnd(&[]), 3);
    let mut b = b.speaking_vpnd(&[]);
    if both {
        b = impatient(b.towards(Wire::A4).keepalive(1), 3);
    }
    let vpnd = Vpnd::start(&wire.a, &a)?;
    becomes(&wire.a, false, Instant::now(), TOLD).context("on before the peer is")?;
    let start = Instant::now();
    let mut peer = Vpnd::start(&wire.b, &b)?;
    let first = becomes(&wire.a, true, start, Duration::from_secs(6))?;
    reaches(&wire)?;
    peer.process().kill()?;
    let gone = becomes(&wire.a, false, Instant::now(), Duration::from_secs(3))?;
    let status = vpnd.status()?;
    ensure!(status.alive() == Some(false), "{status}");
    let start = Instant::now();
    let _peer = peer.restart()?;
    let back = becomes(&wire.a, true, start, Duration::from_secs(6))?;
    reaches(&wire)?;
    let (cut, mended) = cut_and_mend(&wire)?;
    Ok(told(&[
        ("started: on after", first),
        ("killed: off after", gone),
        ("restarted: on after", back),
        ("cable cut: off after", cut),
        ("mended: on after", mended),
    ]))
}

/// Both families, once there is a carrier.
fn reaches(wire: &Wire) -> Result<()> {
    [INNER_B4, INNER_B6].into_iter().try_for_each(|to| ping::until_answered(&wire.a, to, SLACK))
}

/// No datagram of a tunnel arrives any more.
fn cut_off(host: &Host) -> Result<()> {
    nft::drop_arriving(host, &format!("udp dport {}", site::PORT))
}

fn cut_and_mend(wire: &Wire) -> Result<(Duration, Duration)> {
    [&wire.a, &wire.b].into_iter().try_for_each(cut_off)?;
    let cut = becomes(&wire.a, false, Instant::now(), Duration::from_secs(3))?;
    [&wire.a, &wire.b].into_iter().try_for_each(nft::clear)?;
    let mended = becomes(&wire.a, true, Instant::now(), Duration::from_secs(6))?;
    reaches(wire)?;
    Ok((cut, mended))
}

fn stopped(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, b) = site::pair()?;
    let mut peer = Vpnd::start(&wire.b, &b.speaking_vpnd(&[]))?;
    let _a = Vpnd::start(&wire.a, &a.towards(Wire::B4).keepalive(25).speaking_vpnd(&[]))?;
    becomes(&wire.a, true, Instant::now(), TOLD)?;
    peer.process().terminate()?;
    let off = becomes(&wire.a, false, Instant::now(), TOLD)?;
    Ok(told(&[("off after", off)]))
}

/// With nobody there to send anything: B has no endpoint, and is there late.
fn comes_up_alone(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, b) = site::pair()?;
    let vpnd = Vpnd::start(&wire.a, &a.towards(Wire::B4).keepalive(25))?;
    std::thread::sleep(Duration::from_secs(12));
    let status = vpnd.status()?;
    ensure!(status.alive() == Some(false), "{status}");
    becomes(&wire.a, false, Instant::now(), TOLD)?;
    let start = Instant::now();
    let _b = Vpnd::start(&wire.b, &b)?;
    let on = becomes(&wire.a, true, start, Duration::from_secs(6))?;
    reaches(&wire)?;
    Ok(format!("12 s without a peer; {}", told(&[("then on after", on)])))
}

fn always(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, b) = site::pair()?;
    let mut peer = Vpnd::start(&wire.b, &b)?;
    let vpnd = Vpnd::start(&wire.a, &impatient(a.towards(Wire::B4), 1))?;
    ensure!(link(&wire.a)?.contains("LOWER_UP"), "{}", link(&wire.a)?);
    ping::until_answered(&wire.a, INNER_B4, SOON)?;
    peer.process().kill()?;
    let unanswered = ping::series(&wire.a, INNER_B4, 20, Duration::from_millis(200))?;
    ensure!(unanswered.answered == 0, "{unanswered:?}");
    let status = vpnd.status()?;
    ensure!(status.alive() == Some(false) && link(&wire.a)?.contains("LOWER_UP"), "{status}");
    Ok("the peer is dead, which status says and the link does not".to_owned())
}

/// The packets wait at B for a session and leave right after the handshake, when A's device has no carrier yet. The
/// network between may deliver them in another order, and may lose a handshake message on a machine that does much
/// else, but each packet has to arrive.
fn first_packets(lab: &Lab) -> Result<String> {
    const PACKETS: u8 = 100;
    let wire = Wire::new(lab)?;
    let (a, b) = site::pair()?;
    let a = Vpnd::start(&wire.a, &a.keepalive(25))?;
    cut_off(&wire.a)?;
    let b = Vpnd::start(&wire.b, &b.towards(Wire::A4))?;
    let receiver = wire.a.enter(|| Ok(UdpSocket::bind((INNER_A4, 4000))?))?;
    let sender = wire.b.enter(|| Ok(UdpSocket::bind((INNER_B4, 0))?))?;
    for number in 0..PACKETS {
        sender.send_to(&[number], (INNER_A4, 4000))?;
    }
    becomes(&wire.a, false, Instant::now(), TOLD)?;
    nft::clear(&wire.a)?;
    let start = Instant::now();
    let missing = missing_of(&receiver, (0..PACKETS).collect(), RETRIES + SLACK)?;
    let arrived = start.elapsed();
    if !missing.is_empty() {
        let (at_a, at_b) = (a.status()?, b.status()?);
        bail!("after {arrived:.1?} packets {missing:?} are missing; A: {at_a}; B: {at_b}");
    }
    becomes(&wire.a, true, Instant::now(), TOLD)?;
    Ok(format!(
        "{PACKETS} of {PACKETS} packets arrive within {:.2} s in a device that had no carrier",
        arrived.as_secs_f64()
    ))
}

/// Time for three initiations, each of which follows the one before after 5 s and a random third of a second.
const RETRIES: Duration = Duration::from_secs(16);

/// Receives until each of `awaited` has come, and returns what has not come by the limit.
fn missing_of(
    receiver: &UdpSocket,
    mut awaited: BTreeSet<u8>,
    limit: Duration,
) -> Result<BTreeSet<u8>> {
    let until = Instant::now() + limit;
    receiver.set_read_timeout(Some(Duration::from_millis(100)))?;
    while !awaited.is_empty() && Instant::now() < until {
        let mut packet = [0; 1];
        match receiver.recv(&mut packet) {
            Ok(_) => ensure!(awaited.remove(&packet[0]), "packet {packet:?} came twice"),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(awaited)
}

/// Nobody is attached to it any more: then the kernel has it without a carrier.
fn persistent_device(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    wire.a.run("ip tuntap add dev tun0 mode tun")?;
    wire.a.run("ip link set tun0 up")?;
    let before = link(&wire.a)?;
    let (a, b) = site::pair()?;
    let _b = Vpnd::start(&wire.b, &b)?;
    let mut vpnd = Vpnd::start(&wire.a, &a.towards(Wire::B4).keepalive(25))?;
    becomes(&wire.a, true, Instant::now(), Duration::from_secs(6))?;
    vpnd.process().terminate()?;
    becomes(&wire.a, false, Instant::now(), TOLD)?;
    let after = link(&wire.a)?;
    ensure!(before == after, "before {before}after {after}");
    Ok("NO-CARRIER before and after, LOWER_UP between".to_owned())
}

/// Our keepalive, the peer's and our patience, in seconds.
#[derive(Clone, Copy)]
struct Settings {
    ours: u16,
    theirs: Option<u16>,
    dead_after: u16,
}

/// WireGuard answers no keepalive. Either the peer speaks by itself, and before we do, or it is asked
/// by a handshake, for which there has to be time.
const WIREGUARD: [(&str, Settings); 2] = [
    ("whose keepalive is the shorter", Settings { ours: 2, theirs: Some(1), dead_after: 3 }),
    ("which says nothing by itself", Settings { ours: 5, theirs: None, dead_after: 15 }),
];

fn wireguard_go(lab: &Lab, settings: Settings) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, mut b) = site::pair()?;
    let a = impatient(a.towards(Wire::B4).keepalive(settings.ours), settings.dead_after);
    b.remote.keepalive = settings.theirs;
    if settings.theirs.is_some() {
        b = b.towards(Wire::A4);
    }
    let start = || Peer::start(Kind::WireguardGo, &wire.b, &b);
    let mut peer = start()?;
    let vpnd = Vpnd::start(&wire.a, &a)?;
    becomes(&wire.a, true, Instant::now(), Duration::from_secs(6))?;
    // Alive it is, however little it says.
    std::thread::sleep(Duration::from_secs(40));
    let log = vpnd.as_process().log();
    ensure!(!log.contains("the peer is dead"), "a living peer is called dead: {log}");
    let handshakes = vpnd.status()?.handshakes();
    peer.process().kill()?;
    let gone =
        becomes(&wire.a, false, Instant::now(), Duration::from_secs(settings.dead_after.into()))?;
    drop(peer);
    let restarted = Instant::now();
    let _peer = start()?;
    let back = becomes(&wire.a, true, restarted, Duration::from_secs(6))?;
    reaches(&wire)?;
    let spans = told(&[("killed: off after", gone), ("restarted: on after", back)]);
    Ok(format!("idle for 40 s with {handshakes} handshakes, never dead; {spans}"))
}
