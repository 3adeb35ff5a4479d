//! A bad internet between two vpnd: loss, duplicates, disorder, flipped bits, replays.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use vpnd_tests::link::port;
use vpnd_tests::relay::{Direction, Faults, Relay};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_A4, INNER_B4, PORT};
use vpnd_tests::traffic::stream::{Pace, Stream};
use vpnd_tests::traffic::{ping, tcp};
use vpnd_tests::{Lab, Routed, Vpnd, Wire, nft, within};

use crate::tunnel::SOON;

/// Eight tries at a handshake, of which one in two succeeds.
const UNDER_LOSS: Duration = Duration::from_secs(60);

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("hostile::30 % loss each way", Cost::Waits, loss),
        Scenario::new("hostile::duplicates and disorder", Cost::Works, disorder),
        Scenario::new("hostile::flipped bits", Cost::Works, flipped),
        Scenario::new("hostile::replay of a whole session", Cost::Works, replay),
    ]
}

fn loss(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    for host in [&wire.a, &wire.b] {
        port(host, "eth0").no_offload()?;
        nft::lose(host, PORT, 30)?;
    }
    let (a, b) = site::pair()?;
    let _b = Vpnd::start(&wire.b, &b)?;
    let _a = Vpnd::start(&wire.a, &a.towards(Wire::B4))?;
    let start = Instant::now();
    ping::until_answered(&wire.a, INNER_B4, UNDER_LOSS)?;
    let up = start.elapsed();
    let pings = ping::series(&wire.a, INNER_B4, 300, Duration::from_millis(20))?;
    ensure!((90..210).contains(&pings.answered), "half should come back: {pings:?}");
    let transfer = tcp::Transfer::start(&wire.a, &wire.b, INNER_B4, 100_000)?;
    Ok(format!("up after {up:.1?}; {pings:?}; {}", survives(transfer)?))
}

/// TCP may back off for minutes when half of what it sends has no answer; it must not break.
fn survives(transfer: tcp::Transfer) -> Result<String> {
    let start = Instant::now();
    let over = within(UNDER_LOSS, || transfer.is_over().then_some(())).is_some();
    let arrived = transfer.progress();
    if over {
        transfer.finish()?;
    }
    ensure!(arrived > 0, "no byte of TCP arrived");
    Ok(format!("{arrived} of 100000 bytes of TCP in {:.1?}", start.elapsed()))
}

fn disorder(lab: &Lab) -> Result<String> {
    let bad = Bad::new(lab)?;
    let delay = Duration::from_millis(1)..Duration::from_millis(300);
    bad.relay.set(Faults { duplicate: 0.2, late: 0.3, delay, ..Faults::default() });
    let pace = Pace { per_second: 3000, payload: 300 };
    let stream = Stream::start(&bad.net.a, &bad.net.b, INNER_B4, pace)?;
    thread::sleep(Duration::from_secs(4));
    let tally = stream.stop()?;
    ensure!(tally.lost() == 0 && tally.duplicated == 0 && tally.corrupted == 0, "{tally:?}");
    ensure!(tally.reordered > 100, "the relay did nothing: {tally:?}");
    Ok(format!(
        "{} sent, 20 % twice, {} out of order; each delivered once",
        tally.sent, tally.reordered
    ))
}

fn flipped(lab: &Lab) -> Result<String> {
    let bad = Bad::new(lab)?;
    bad.relay.set(Faults { flip: 0.01, truncate: 0.01, ..Faults::default() });
    let done = tcp::transfer(&bad.net.a, &bad.net.b, INNER_B4, 2 << 20)?;
    let back = tcp::transfer(&bad.net.b, &bad.net.a, INNER_A4, 2 << 20)?;
    let status = bad.b.status()?;
    ensure!(status.dropped() > 0, "nothing was dropped: {status}");
    Ok(format!("{} bytes unchanged; B dropped {:?}", done.bytes + back.bytes, status.drops()))
}

/// Everything A ever sent comes once more, from where A is: not one packet passes twice, and no
/// new handshake begins.
fn replay(lab: &Lab) -> Result<String> {
    let bad = Bad::recording(lab)?;
    let pace = Pace { per_second: 1000, payload: 300 };
    let stream = Stream::start(&bad.net.a, &bad.net.b, INNER_B4, pace)?;
    thread::sleep(Duration::from_secs(1));
    let recorded = bad.relay.recorded();
    let before = bad.b.status()?;
    let own = recorded.iter().filter(|one| one.direction == Direction::ToTarget);
    let replayed =
        own.map(|one| bad.relay.inject(one.direction, &one.datagram)).filter(Result::is_ok).count();
    let tally = stream.stop()?;
    tally.ensure_perfect()?;
    ping::once(&bad.net.b, INNER_A4)?;
    let after = bad.b.status()?;
    ensure!(before.handshakes() == after.handshakes(), "a replay made a session: {after}");
    let dropped = after.dropped() - before.dropped();
    let expected = u64::try_from(replayed)?;
    ensure!(dropped >= expected, "{replayed} replayed, {dropped} dropped: {after}");
    Ok(format!("{replayed} replayed, {dropped} dropped, none delivered"))
}

/// A reaches B through the relay.
struct Bad {
    net: Routed,
    relay: Relay,
    b: Vpnd,
    _a: Vpnd,
}

impl Bad {
    fn new(lab: &Lab) -> Result<Self> {
        Self::begin(lab, |_| {})
    }

    fn recording(lab: &Lab) -> Result<Self> {
        Self::begin(lab, Relay::record)
    }

    fn begin(lab: &Lab, prepare: impl FnOnce(&Relay)) -> Result<Self> {
        let net = Routed::new(lab)?;
        let front = format!("{}:{PORT}", Routed::ROUTER_A4);
        let relay = Relay::start(&net.router, &front, Routed::B4, 1)?;
        prepare(&relay);
        let (a, b) = site::pair()?;
        let b = Vpnd::start(&net.b, &b)?;
        let a = Vpnd::start(&net.a, &a.towards(&front))?;
        ping::until_answered(&net.a, INNER_B4, SOON)?;
        Ok(Self { net, relay, b, _a: a })
    }
}
