//! Ends that move, and address translation that forgets.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use vpnd_tests::link::port;
use vpnd_tests::relay::Relay;
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_A4, INNER_B4, PORT, Site};
use vpnd_tests::traffic::ping;
use vpnd_tests::traffic::stream::{Pace, Stream};
use vpnd_tests::{Host, Lab, Routed, Vpnd, nft};

use crate::tunnel::{SOON, Tunnel};

/// How long the address translation remembers, and a pause that outlives it.
const FORGETS: u16 = 2;
const PAUSE: Duration = Duration::from_secs(6);

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("roaming::A moves", Cost::Works, initiator_moves),
        Scenario::new("roaming::B moves", Cost::Works, responder_moves),
        Scenario::new("roaming::a port that changes", Cost::Waits, rebound),
        Scenario::new("roaming::not when told not to", Cost::Waits, not_wanted),
        Scenario::new("roaming::keepalives hold a NAT open", Cost::Waits, nat_held_open),
        Scenario::new("roaming::a NAT that forgot", Cost::Waits, nat_forgot),
    ]
}

fn initiator_moves(lab: &Lab) -> Result<String> {
    let tunnel = Tunnel::new(lab)?;
    let device = port(&tunnel.wire.a, "eth0");
    // In this order: with a first address its second ones go too.
    device.remove_address("192.0.2.1/24")?;
    device.address(&["192.0.2.11/24"])?;
    let lost = lost_of_five(&tunnel.wire.a, INNER_B4)?;
    ping::once(&tunnel.wire.b, INNER_A4)?;
    tunnel.b.wait_for("B follows", SOON, |status| status.endpoint() == Some("192.0.2.11:51820"))?;
    Ok(format!("the first packet moved B's endpoint; {lost} of 5 answers lost"))
}

fn responder_moves(lab: &Lab) -> Result<String> {
    let tunnel = Tunnel::new(lab)?;
    let device = port(&tunnel.wire.b, "eth0");
    device.remove_address("192.0.2.2/24")?;
    device.address(&["192.0.2.12/24"])?;
    let lost = lost_of_five(&tunnel.wire.b, INNER_A4)?;
    ping::once(&tunnel.wire.a, INNER_B4)?;
    tunnel.a.wait_for("A follows", SOON, |status| status.endpoint() == Some("192.0.2.12:51820"))?;
    Ok(format!("the first packet moved A's endpoint; {lost} of 5 answers lost"))
}

/// The answer to the very first packet may leave for the old address, no other.
fn lost_of_five(host: &Host, to: &str) -> Result<u32> {
    let pings = ping::series(host, to, 5, Duration::from_millis(100))?;
    ensure!(pings.answered >= 4, "more than one was lost: {pings:?}");
    Ok(pings.sent - pings.answered)
}

/// A's datagrams come from another port every second, as behind a NAT that is pressed for ports.
fn rebound(lab: &Lab) -> Result<String> {
    let (net, relay, _ends) = through_a_relay(lab, |b, _back| b)?;
    let pace = Pace { per_second: 200, payload: 400 };
    let there = Stream::start(&net.a, &net.b, INNER_B4, pace)?;
    let back = Stream::start(&net.b, &net.a, INNER_A4, pace)?;
    for _ in 0..5 {
        thread::sleep(Duration::from_secs(1));
        relay.rebind()?;
    }
    thread::sleep(Duration::from_secs(1));
    let (there, back) = (there.stop()?, back.stop()?);
    there.ensure_perfect()?;
    // What B sent to the old port before it heard from the new one has no way back. How much that
    // is depends on how busy the machine is; that B follows each time does not.
    ensure!(back.gaps.len() <= 5, "B lost more than its peer's moves explain: {back:?}");
    ensure!(back.gaps.last().is_none_or(|gap| gap.end < back.sent), "B follows no more: {back:?}");
    Ok(format!("5 ports; towards B 0 lost of {}, towards A {}", there.sent, back.lost()))
}

fn not_wanted(lab: &Lab) -> Result<String> {
    let (net, relay, ends) = through_a_relay(lab, |mut b, back| {
        b.remote.roam = Some("off".to_owned());
        b.towards(back)
    })?;
    let before = ends.1.status()?;
    relay.rebind()?;
    let pings = ping::series(&net.a, INNER_B4, 10, Duration::from_millis(100))?;
    ensure!(pings.answered == 0, "the answers found their way: {pings:?}");
    let after = ends.1.status()?;
    ensure!(before.endpoint() == after.endpoint(), "B moved: {after}");
    Ok("roam = \"off\": the endpoint stayed".to_owned())
}

/// A reaches B through a relay, which stands for all address translation; B's settings may
/// depend on where it sees A.
fn through_a_relay(
    lab: &Lab,
    change: impl FnOnce(Site, &str) -> Site,
) -> Result<(Routed, Relay, (Vpnd, Vpnd))> {
    let net = Routed::new(lab)?;
    let front = format!("{}:{PORT}", Routed::ROUTER_A4);
    let relay = Relay::start(&net.router, &front, Routed::B4, 1)?;
    let back = format!("{}:{}", Routed::ROUTER_B4, relay.back_port()?);
    let (a, b) = site::pair()?;
    let b = Vpnd::start(&net.b, &change(b, &back))?;
    let a = Vpnd::start(&net.a, &a.towards(&front))?;
    ping::until_answered(&net.a, INNER_B4, SOON)?;
    Ok((net, relay, (a, b)))
}

fn nat_held_open(lab: &Lab) -> Result<String> {
    let (net, _ends) = behind_nat(lab, Some(1))?;
    thread::sleep(PAUSE);
    ping::once(&net.b, INNER_A4)?;
    Ok(format!("after {PAUSE:?} of nothing but keepalives B reaches A"))
}

fn nat_forgot(lab: &Lab) -> Result<String> {
    let (net, (_a, b)) = behind_nat(lab, None)?;
    // The passive keepalive, due ten seconds after the last data, would keep the mapping.
    thread::sleep(Duration::from_secs(12) + PAUSE);
    let before = b.status()?;
    ensure!(ping::once(&net.b, INNER_A4).is_err(), "the mapping lives on");
    ping::until_answered(&net.a, INNER_B4, SOON)?;
    ping::once(&net.b, INNER_A4)?;
    let after = b.status()?;
    ensure!(before.endpoint() != after.endpoint(), "no new port: {after}");
    Ok(format!("{:?} became {:?}", before.endpoint(), after.endpoint()))
}

/// A is behind the router's address translation and knows where B is.
fn behind_nat(lab: &Lab, keepalive: Option<u16>) -> Result<(Routed, (Vpnd, Vpnd))> {
    let net = Routed::new(lab)?;
    nft::masquerade(&net.router, "b", FORGETS)?;
    let (mut a, b) = site::pair()?;
    a.remote.keepalive = keepalive;
    let b = Vpnd::start(&net.b, &b)?;
    let a = Vpnd::start(&net.a, &a.towards(Routed::B4))?;
    ping::until_answered(&net.a, INNER_B4, SOON)?;
    Ok((net, (a, b)))
}
