//! New tunnels over a path that loses three of ten datagrams in each direction.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use vpnd_tests::relay::{Faults, Relay};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, PORT};
use vpnd_tests::{Lab, Routed, Vpnd, within};

use crate::uplinks::numbered;

/// The share that is lost each way.
const LOSS: f64 = 0.3;
/// Tunnels that connect at once.
const TUNNELS: u16 = 10;
/// How soon a tunnel has to be connected, and how long it is waited for.
const CONNECTED: Duration = Duration::from_secs(40);
/// Of a hundred, so many may take longer; and of a few, this many, which is chance.
const LATE_PERCENT: usize = 3;
const LATE_OF_FEW: usize = 1;

pub(crate) fn scenarios() -> Vec<Scenario> {
    ["wireguard", "vpnd"].map(scenario).into()
}

fn scenario(protocol: &'static str) -> Scenario {
    let name = format!("lossy::new tunnels with 30 % loss each way, {protocol}");
    Scenario::new(name, Cost::Waits, move |lab| connect(lab, protocol))
}

/// Ten at a time, of which each is started anew, at both ends, as often as needed.
fn connect(lab: &Lab, protocol: &'static str) -> Result<String> {
    let net = Routed::new(lab)?;
    let rounds = if vpnd_tests::long() { 10 } else { 1 };
    let results = thread::scope(|scope| {
        let one = |slot| {
            let net = &net;
            scope.spawn(move || in_turn(net, slot, rounds, protocol))
        };
        let begun: Vec<_> = (0..TUNNELS).map(one).collect();
        let ended = begun.into_iter().map(|one| one.join().map_err(|_panic| anyhow!("panicked")));
        ended.map(Result::flatten).collect::<Result<Vec<_>>>()
    })?;
    let all: Vec<Option<Duration>> = results.into_iter().flatten().collect();
    let mut in_time: Vec<Duration> = all.iter().copied().flatten().collect();
    in_time.sort();
    let late = all.len() - in_time.len();
    ensure!(late <= (all.len() * LATE_PERCENT / 100).max(LATE_OF_FEW), "{late} are late: {all:?}");
    let told = |took: Option<&Duration>| took.map_or(f64::NAN, Duration::as_secs_f64);
    Ok(format!(
        "{} of {} connected within 40 s: median {:.1} s, worst of these {:.1} s",
        in_time.len(),
        all.len(),
        told(in_time.get(all.len() / 2)),
        told(in_time.last())
    ))
}

/// One after the other over the same relay, and how long each took.
fn in_turn(
    net: &Routed,
    slot: u16,
    rounds: u16,
    protocol: &'static str,
) -> Result<Vec<Option<Duration>>> {
    let [front, target] =
        [Routed::ROUTER_A4, "198.51.100.1"].map(|at| format!("{at}:{}", PORT + slot));
    // The relay's second direction has the next seed.
    let relay = Relay::start(&net.router, &front, &target, u64::from(slot) * 2)?;
    relay.set(Faults { drop: LOSS, ..Faults::default() });
    let connect = |round| once(net, slot, round, &front, protocol);
    (0..rounds).map(connect).collect()
}

fn once(
    net: &Routed,
    slot: u16,
    round: u16,
    front: &str,
    protocol: &'static str,
) -> Result<Option<Duration>> {
    let (a, b) = site::pair()?;
    let [a, b] = [(a, 1), (b, 2)].map(|(site, last)| {
        let mut site = numbered(site, slot, last);
        site.name = format!("{}-{round}", site.name);
        site.remote.protocol = protocol;
        site
    });
    let b = Vpnd::start(&net.b, &b)?;
    let start = Instant::now();
    let a = Vpnd::start(&net.a, &a.towards(front).keepalive(1))?;
    let connected = || [&a, &b].into_iter().all(has_session).then(|| start.elapsed());
    Ok(within(CONNECTED, connected).filter(|took| *took <= CONNECTED))
}

/// By its log, because to ask ten daemons all the time would keep the machine busy.
fn has_session(vpnd: &Vpnd) -> bool {
    let log = vpnd.as_process().log();
    ["the tunnel is up", "the tunnel is degraded"].iter().any(|words| log.contains(words))
}
