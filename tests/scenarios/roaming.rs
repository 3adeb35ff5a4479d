//! Ends that change their address, and NATs that forget mappings.

use std::net::UdpSocket;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use vpnd_tests::link::port;
use vpnd_tests::relay::{Direction, Faults, Relay};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_A4, INNER_B4, PORT, Site};
use vpnd_tests::traffic::ping;
use vpnd_tests::traffic::stream::{Pace, Stream};
use vpnd_tests::vpnd::Launch;
use vpnd_tests::{Host, Lab, Routed, Vpnd, nft};

use crate::tunnel::{SOON, Tunnel};

/// How long the address translation remembers, and a pause that outlives it.
const FORGETS: u16 = 2;
const PAUSE: Duration = Duration::from_secs(6);

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("roaming::A moves", Cost::Alone, initiator_moves),
        Scenario::new("roaming::B moves", Cost::Alone, responder_moves),
        Scenario::new("roaming::a port that changes", Cost::Waits, rebound),
        Scenario::new("roaming::not when told not to", Cost::Waits, not_wanted),
        Scenario::new("roaming::keepalives hold a NAT open", Cost::Waits, nat_held_open),
        Scenario::new("roaming::a NAT that forgot", Cost::Waits, nat_forgot),
        Scenario::new("roaming::two ports in turn", Cost::Works, flapping),
        Scenario::new("roaming::a forged source", Cost::Works, forged),
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

/// Every other datagram of A comes from another port; the service manager of B hears of that now and then.
fn flapping(lab: &Lab) -> Result<String> {
    let net = Routed::new(lab)?;
    let front = format!("{}:{PORT}", Routed::ROUTER_A4);
    let relay = Relay::start(&net.router, &front, Routed::B4, 1)?;
    let manager = SocketAddr::from_abstract_name(b"vpnd-tests-manager")?;
    let heard = net.b.enter(|| Ok(UnixDatagram::bind_addr(&manager)?))?;
    heard.set_nonblocking(true)?;
    let mut launch = Launch::to_test()?;
    launch.environment.push(("NOTIFY_SOCKET", "@vpnd-tests-manager".to_owned()));
    let (a, b) = site::pair()?;
    let b = Vpnd::start_as(&launch, &net.b, &b)?;
    let _a = Vpnd::start(&net.a, &a.towards(&front))?;
    ping::until_answered(&net.a, INNER_B4, SOON)?;
    let messages = || (0..).take_while(|_| heard.recv(&mut [0; 256]).is_ok()).count();
    ensure!(messages() > 0, "B told its service manager nothing");

    let start = Instant::now();
    relay.flap()?;
    let pace = Pace { per_second: 5000, payload: 64 };
    let stream = Stream::start(&net.a, &net.b, INNER_B4, pace)?;
    thread::sleep(Duration::from_secs(3));
    let tally = stream.stop()?;
    let (told, took) = (messages(), start.elapsed());
    ensure!(told as u64 <= took.as_secs() + 1, "{told} messages in {took:.1?}");
    relay.stop_flapping();
    ping::until_answered(&net.a, INNER_B4, SOON)?;
    b.wait_for("the newest port wins", SOON, |status| {
        let back = relay.back_port().map(|port| format!("{}:{port}", Routed::ROUTER_B4));
        status.endpoint().map(str::to_owned) == back.ok()
    })?;
    Ok(format!("{} datagrams from two ports; {told} messages in {took:.1?}", tally.received))
}

/// What A sends comes to B from elsewhere, before the genuine datagram.
fn forged(lab: &Lab) -> Result<String> {
    let net = Routed::new(lab)?;
    let front = format!("{}:{PORT}", Routed::ROUTER_A4);
    let relay = Relay::start(&net.router, &front, Routed::B4, 1)?;
    let (a, b) = site::pair()?;
    let b = Vpnd::start(&net.b, &b.speaking_vpnd(&[]))?;
    let _a = Vpnd::start(&net.a, &a.speaking_vpnd(&[]).towards(&front))?;
    ping::until_answered(&net.a, INNER_B4, SOON)?;
    let before = b.status()?;
    relay.record();
    relay.set(Faults { drop: 1.0, ..Faults::default() });
    ensure!(ping::once(&net.a, INNER_B4).is_err(), "nothing passes");
    let third = net.router.enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    third.set_read_timeout(Some(SOON))?;
    let captured = relay.recorded().into_iter().filter(|one| one.direction == Direction::ToTarget);
    let mut sent = 0;
    for one in captured {
        sent += third.send_to(&one.datagram, Routed::B4)?;
    }
    // Anything newer from A would be the newest, and B would not ask here.
    let first = third.recv(&mut [0; 2048])?;
    relay.set(Faults::default());
    let pings = ping::series(&net.b, INNER_A4, 20, Duration::from_millis(50))?;
    ensure!(pings.answered == 20, "data went elsewhere: {pings:?}");
    third.set_nonblocking(true)?;
    let more: usize = std::iter::from_fn(|| third.recv(&mut [0; 2048]).ok()).sum();
    let got = first + more;
    ensure!(sent > 0 && got > 0 && got <= 3 * sent, "{sent} bytes were answered by {got}");
    ensure!(b.status()?.endpoint() == before.endpoint(), "B followed");
    Ok(format!("{sent} bytes from elsewhere, {got} went there; 20 of 20 pings answered"))
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
