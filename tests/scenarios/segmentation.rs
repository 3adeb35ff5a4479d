//! Batches that something on the path segments wrongly: found, avoided, and never suspected where it is chance.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use vpnd_tests::relay::{Faults, Relay};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_B4, PORT};
use vpnd_tests::traffic::ping;
use vpnd_tests::traffic::tcp::Transfer;
use vpnd_tests::{Lab, Routed, Vpnd, eventually};

use crate::tunnel::SOON;

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("segmentation::batches are spoilt", Cost::Works, spoilt),
        Scenario::new("segmentation::chance is not suspected", Cost::Works, chance),
    ]
}

/// How soon it is found once data flows.
const FOUND: Duration = Duration::from_secs(10);
/// A measurement of the throughput.
const WHILE: Duration = Duration::from_secs(3);

/// Two sites, and the relay between them.
struct Path<'a> {
    net: &'a Routed,
    relay: &'a Relay,
    a: Vpnd,
    _b: Vpnd,
}

fn relay(net: &Routed) -> Result<Relay> {
    Relay::start(&net.router, &front(), Routed::B4, 1)
}

fn front() -> String {
    format!("{}:{PORT}", Routed::ROUTER_A4)
}

impl<'a> Path<'a> {
    fn new(net: &'a Routed, relay: &'a Relay, gso: &str) -> Result<Self> {
        relay.set(Faults::default());
        let (a, b) = site::pair()?;
        let b = Vpnd::start(&net.b, &b.speaking_vpnd(&[]))?;
        let mut a = a.towards(&front()).keepalive(1).speaking_vpnd(&[]);
        a.tables.push(format!("[path]\ngso = {gso}"));
        let a = Vpnd::start(&net.a, &a)?;
        ping::until_answered(&net.a, INNER_B4, SOON)?;
        Ok(Self { net, relay, a, _b: b })
    }

    fn set(&self, drop: f64, spoils_runs: bool) {
        self.relay.set(Faults { drop, spoils_runs, ..Faults::default() });
    }

    fn transfer(&self) -> Result<Transfer> {
        Transfer::start(&self.net.a, &self.net.b, INNER_B4, 1 << 40)
    }

    fn sends_singly(&self) -> Result<bool> {
        Ok(self.a.status()?.reasons().contains(&"segmentation"))
    }
}

/// What arrives in [`WHILE`], in megabits a second.
fn throughput(transfer: &Transfer) -> u64 {
    sleep(WHILE);
    let before = transfer.progress();
    sleep(WHILE);
    (transfer.progress() - before) / 125_000 / WHILE.as_secs()
}

/// The throughput through a relay that spoils batches.
fn with_gso(net: &Routed, relay: &Relay, gso: &str) -> Result<u64> {
    let path = Path::new(net, relay, gso)?;
    path.set(0.0, true);
    Ok(throughput(&path.transfer()?))
}

/// How long it takes to find, and the throughput then.
fn found(net: &Routed, relay: &Relay) -> Result<(Duration, u64)> {
    let path = Path::new(net, relay, "\"auto\"")?;
    path.set(0.0, true);
    let (begin, transfer) = (Instant::now(), path.transfer()?);
    eventually("batches are found to be spoilt", FOUND, || {
        ensure!(path.sends_singly()?, "{:?}", path.a.status()?.reasons());
        Ok(())
    })?;
    let (found, after) = (begin.elapsed(), throughput(&transfer));
    let log = path.a.as_process().log();
    ensure!(log.matches("datagrams in batches (GSO)").count() == 1, "{log}");
    Ok((found, after))
}

/// By turns, so that whatever else the machine does slows down both alike.
fn spoilt(lab: &Lab) -> Result<String> {
    let net = Routed::new(lab)?;
    let relay = relay(&net)?;
    let trusted = with_gso(&net, &relay, "true")?;
    let (mut times, mut after, mut without) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..if vpnd_tests::long() { 7 } else { 1 } {
        let (found, megabits) = found(&net, &relay)?;
        times.push(found.as_secs_f64());
        after.push(megabits);
        without.push(with_gso(&net, &relay, "false")?);
    }
    let told = format!(
        "found in {times:.1?} s; {after:?} Mbit/s then; gso = true {trusted} Mbit/s, false {without:?} Mbit/s"
    );
    let (one, after, without) = (after.len() == 1, median(after), median(without));
    // A single measurement varies by far more than the two differ.
    ensure!(after > 10 * trusted && (one || after * 10 > without * 8), "{told}");
    Ok(told)
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// The share that a path loses in the second scenario, batches or not.
const LOSS: f64 = 0.03;

fn chance(lab: &Lab) -> Result<String> {
    let net = Routed::new(lab)?;
    let relay = relay(&net)?;
    let path = Path::new(&net, &relay, "\"auto\"")?;
    path.set(LOSS, false);
    let transfer = path.transfer()?;
    let end = Instant::now() + if vpnd_tests::long() { FOUND * 60 } else { FOUND * 2 };
    let mut looks = 0;
    while Instant::now() < end {
        ensure!(!path.sends_singly()?, "suspected:\n{}", path.a.as_process().log());
        looks += 1;
        sleep(Duration::from_millis(100));
    }
    ensure!(transfer.progress() > 1 << 20, "too little was sent: {}", transfer.progress());
    Ok(format!("{looks} times looked: batches were used"))
}
