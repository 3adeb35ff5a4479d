//! A peer at several addresses: the one that answers is used, a dead path is left in time, and the preferred one is
//! used again when it is good.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vpnd_tests::peer::{Kind, Peer};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_A4, INNER_B4, PORT, Site};
use vpnd_tests::traffic::ping;
use vpnd_tests::traffic::stream::{Pace, Stream};
use vpnd_tests::{Host, Lab, Vpnd, Wire, nft, within};

use crate::reach::replace_file;
use crate::socket::{SECOND4, Uplinks};

/// The first address of the end with two.
const FIRST4: &str = "192.0.2.1";
const PACE: Pace = Pace { per_second: 100, payload: 200 };
/// How long a switch may take on a busy machine; it is printed how long it took.
const SWITCHED_WITHIN: Duration = Duration::from_secs(15);
/// How long nothing may flap.
const QUICK: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(600);
const RETURNED_WITHIN: Duration = Duration::from_secs(60);

pub(crate) fn scenarios() -> Vec<Scenario> {
    let with = |peer: Option<Kind>| move |lab: &Lab| there_and_back(lab, peer);
    let to_go = format!("failover::to the second address and back, {}", Kind::WireguardGo);
    vec![
        Scenario::new("failover::to the second address and back", Cost::Waits, with(None)),
        Scenario::new("failover::a dead AAAA beside a good A", Cost::Works, dead_family),
        Scenario::new(to_go, Cost::Waits, with(Some(Kind::WireguardGo))),
        Scenario::new("failover::no flap under loss, with traffic", Cost::Waits, |lab| {
            no_flap(lab, true)
        }),
        Scenario::new("failover::no flap under loss, idle", Cost::Waits, |lab| no_flap(lab, false)),
    ]
}

/// The end with two uplinks and addresses: vpnd, or an independent program.
enum Far {
    Vpnd(#[expect(dead_code, reason = "it runs until it is dropped")] Vpnd),
    Peer(#[expect(dead_code, reason = "it runs until it is dropped")] Peer),
}

/// B knows both addresses of A. The first one dies in silence, at the router, and comes back.
fn there_and_back(lab: &Lab, peer: Option<Kind>) -> Result<String> {
    let net = Uplinks::new(lab)?;
    net.a.run(&format!("ip rule add from {SECOND4} lookup 100"))?;
    let (a, b) = site::pair()?;
    let (a, b) = (a.keepalive(1), b.keepalive(1));
    let (a, b) = match peer {
        None => (watching(a).speaking_vpnd(&[]), watching(b).speaking_vpnd(&[])),
        Some(_) => (a, watching(b)),
    };
    let _a = match peer {
        None => Far::Vpnd(Vpnd::start(&net.a, &a)?),
        Some(kind) => Far::Peer(Peer::start(kind, &net.a, &a)?),
    };
    let b = Vpnd::start(&net.b, &towards_both(b))?;
    ping::until_answered(&net.b, INNER_A4, SWITCHED_WITHIN)?;
    until_at(&b, FIRST4, SWITCHED_WITHIN)?;
    let there = Stream::start(&net.b, &net.a, INNER_A4, PACE)?;
    let back = Stream::start(&net.a, &net.b, INNER_B4, PACE)?;
    thread::sleep(Duration::from_secs(2));
    silence(&net.router, FIRST4)?;
    let switched = until_at(&b, SECOND4, SWITCHED_WITHIN)?;
    thread::sleep(Duration::from_secs(2));
    let (there, back) = (there.stop()?, back.stop()?);
    let (there_again, back_again) = (
        Stream::start(&net.b, &net.a, INNER_A4, PACE)?,
        Stream::start(&net.a, &net.b, INNER_B4, PACE)?,
    );
    nft::clear(&net.router)?;
    let returned = until_at(&b, FIRST4, RETURNED_WITHIN)?;
    thread::sleep(Duration::from_secs(1));
    let (there_again, back_again) = (there_again.stop()?, back_again.stop()?);
    ensure!(there_again.lost() <= 50, "the return: {there_again:?}");
    Ok(format!(
        "dead_after 3 s: switched after {} ms, lost {} there and {} back of 100/s; return_after 5 s: back after \
         {} ms, lost {} and {}",
        switched.as_millis(),
        there.lost(),
        back.lost(),
        returned.as_millis(),
        there_again.lost(),
        back_again.lost(),
    ))
}

/// Both paths to A lose one datagram in ten, in each direction: no reason to leave the first one.
fn no_flap(lab: &Lab, busy: bool) -> Result<String> {
    let net = Uplinks::new(lab)?;
    net.a.run(&format!("ip rule add from {SECOND4} lookup 100"))?;
    let (a, b) = site::pair()?;
    let [a, b] = [a, b].map(|site| watching(site.keepalive(1)).speaking_vpnd(&[]));
    let a = Vpnd::start(&net.a, &a)?;
    let b = Vpnd::start(&net.b, &towards_both(b))?;
    ping::until_answered(&net.b, INNER_A4, SWITCHED_WITHIN)?;
    until_at(&b, FIRST4, SWITCHED_WITHIN)?;
    nft::lose(&net.router, PORT, 10)?;
    let stream = busy.then(|| Stream::start(&net.b, &net.a, INNER_A4, PACE)).transpose()?;
    let (span, at) = (if vpnd_tests::long() { LONG } else { QUICK }, format!("{FIRST4}:{PORT}"));
    let start = Instant::now();
    while start.elapsed() < span {
        let status = b.status()?;
        ensure!(status.endpoint() == Some(&at), "after {:?}: {status}", start.elapsed());
        thread::sleep(Duration::from_millis(250));
    }
    // A short stay elsewhere may be missed by the looks, but not by the log.
    let [of_a, of_b] = [&a, &b].map(|vpnd| vpnd.as_process().log());
    ensure!(!of_b.contains("using that one") && !of_b.contains("the peer is dead"), "B: {of_b}");
    ensure!(!of_a.contains("the peer is dead"), "A: {of_a}");
    let lost = stream.map(Stream::stop).transpose()?.map(|tally| (tally.lost(), tally.sent));
    Ok(format!(
        "{span:?}: always at {at}; (lost, sent) {lost:?}, {} dropped",
        nft::dropped(&net.router)?
    ))
}

fn watching(mut site: Site) -> Site {
    site.remote.lines.push("dead_after = \"3s\"\nreturn_after = \"5s\"".to_owned());
    site
}

fn towards_both(mut site: Site) -> Site {
    let both = [FIRST4, SECOND4].map(|address| format!("{address}:{PORT}"));
    site.remote.lines.push(format!("endpoint = {both:?}"));
    site
}

/// Drops what goes to this address and what comes from there.
fn silence(router: &Host, address: &str) -> Result<()> {
    nft::drop_arriving(router, &format!("ip saddr {address}"))?;
    nft::drop_arriving(router, &format!("ip daddr {address}"))
}

/// Waits until vpnd sends to this address, and returns how long that took.
fn until_at(vpnd: &Vpnd, address: &str, limit: Duration) -> Result<Duration> {
    let (began, at) = (Instant::now(), format!("{address}:{PORT}"));
    vpnd.wait_for(&format!("the path leads to {at}"), limit, |status| {
        status.is_up() && status.endpoint() == Some(&at)
    })?;
    Ok(began.elapsed())
}

/// A name has an address of each family, and nothing that goes to the one of IPv6 arrives.
fn dead_family(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let [v4, v6] = [Wire::B4, Wire::B6].map(|at| at.parse::<SocketAddr>().map(|at| at.ip()));
    let hosts = format!("{} b.vpn.example\n{} b.vpn.example\n", v6?, v4?);
    replace_file(&wire.a, "/etc/hosts", &hosts)?;
    nft::drop_arriving(&wire.b, &format!("meta nfproto ipv6 udp dport {PORT}"))?;
    let (a, b) = site::pair()?;
    let _b = Vpnd::start(&wire.b, &b)?;
    let began = Instant::now();
    let a = Vpnd::start(&wire.a, &a.towards(&format!("b.vpn.example:{PORT}")).keepalive(1))?;
    let up = within(Duration::from_secs(20), || {
        a.status().ok().filter(|status| status.is_up() && status.endpoint() == Some(Wire::B4))
    });
    let took = began.elapsed();
    up.context("A has no session with the address that works")?;
    ensure!(nft::dropped(&wire.b)? >= 1, "the address of IPv6 was not tried");
    ensure!(took < Duration::from_secs(4), "as long as a second try: {took:?}");
    Ok(format!("connected {} ms after the start of vpnd", took.as_millis()))
}
