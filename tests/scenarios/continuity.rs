//! Restarts that nobody notices: the next process continues with the device, the socket and the sessions.

mod changed;
mod failed;

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use vpnd_tests::capture::{Capture, Datagram};
use vpnd_tests::link::port;
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_A4, INNER_B4, Site};
use vpnd_tests::traffic::ping;
use vpnd_tests::traffic::stream::{Pace, Stream, Tally};
use vpnd_tests::traffic::tcp::{Transfer, Trickle};
use vpnd_tests::vpnd::Launch;
use vpnd_tests::{Lab, Manager, Vpnd, Wire};

use crate::tunnel::SOON;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let all = [("wireguard", By::Process), ("vpnd", By::Process), ("vpnd", By::Service)];
    let orderly = all.into_iter().map(|(protocol, by)| {
        let name = format!("continuity::{} again and again, {protocol}", by.name());
        Scenario::new(&name, Cost::Works, move |lab| orderly(lab, protocol, by))
    });
    let mut scenarios: Vec<_> = orderly.collect();
    scenarios.extend([
        Scenario::new("continuity::no counter is used twice", Cost::Works, counters),
        Scenario::new("continuity::nothing on the host is touched", Cost::Works, untouched),
        Scenario::new("continuity::one thread handles signals", Cost::Works, one_handles),
        Scenario::new("continuity::a crash under a service manager", Cost::Works, crash),
        Scenario::new("continuity::several queues", Cost::Works, queues),
        Scenario::new("continuity::a restart with a typing error", Cost::Works, invalid),
    ]);
    for by in [By::Process, By::Service] {
        let name = format!("continuity::another device, {}", by.name());
        scenarios.push(Scenario::new(name, Cost::Works, move |lab| another_device(lab, by)));
    }
    scenarios.extend(changed::scenarios());
    scenarios.extend(failed::scenarios());
    scenarios
}

/// Who starts the next process.
#[derive(Clone, Copy, PartialEq)]
enum By {
    Process,
    Service,
}

impl By {
    const fn name(self) -> &'static str {
        match self {
            Self::Process => "a process takes over",
            Self::Service => "the service is restarted",
        }
    }

    /// Ends `vpnd`, and lets the next process continue.
    fn restart(self, mut vpnd: Vpnd) -> Result<Vpnd> {
        self.next(&mut vpnd).map(|()| vpnd)
    }

    fn next(self, vpnd: &mut Vpnd) -> Result<()> {
        match self {
            Self::Process => vpnd.take_over(),
            Self::Service => vpnd.restart_service(),
        }
    }
}

const PACE: Pace = Pace { per_second: 1000, payload: 200 };
/// Between two restarts.
const APART: Duration = Duration::from_millis(700);

fn times() -> u32 {
    if std::env::var("VPND_TESTS").is_ok_and(|size| size == "long") { 100 } else { 8 }
}

struct Ends {
    wire: Wire,
    a: Vpnd,
    _b: Vpnd,
    manager: Option<Arc<Manager>>,
}

fn ends(lab: &Lab, by: By, change: impl Fn(&mut Site)) -> Result<Ends> {
    let wire = Wire::new(lab)?;
    let (mut a, mut b) = site::pair()?;
    change(&mut a);
    change(&mut b);
    let b = Vpnd::start(&wire.b, &b)?;
    let manager = match by {
        By::Process => None,
        By::Service => Some(Arc::new(Manager::new(&wire.a)?)),
    };
    let launch = Launch { manager: manager.clone(), ..Launch::to_test()? };
    let a = Vpnd::start_as(&launch, &wire.a, &a.towards(Wire::B4).keepalive(5))?;
    ping::until_answered(&wire.a, INNER_B4, SOON)?;
    Ok(Ends { wire, a, _b: b, manager })
}

/// Both directions.
struct Streams([Stream; 2]);

impl Streams {
    fn start(wire: &Wire) -> Result<Self> {
        Ok(Self([
            Stream::start(&wire.a, &wire.b, INNER_B4, PACE)?,
            Stream::start(&wire.b, &wire.a, INNER_A4, PACE)?,
        ]))
    }

    fn stop(self) -> Result<[Tally; 2]> {
        let [there, back] = self.0;
        Ok([there.stop()?, back.stop()?])
    }
}

fn orderly(lab: &Lab, protocol: &'static str, by: By) -> Result<String> {
    let mut ends = ends(lab, by, |site| site.remote.protocol = protocol)?;
    let streams = Streams::start(&ends.wire)?;
    let transfer = Transfer::start(&ends.wire.a, &ends.wire.b, INNER_B4, 1 << 42)?;
    transfer.reach(1 << 20)?;
    let mut longest = Duration::ZERO;
    for _ in 0..times() {
        let (begin, before) = (Instant::now(), transfer.progress());
        ends.a = by.restart(ends.a)?;
        transfer.reach(before + (4 << 20))?;
        longest = longest.max(begin.elapsed());
        std::thread::sleep(APART.saturating_sub(begin.elapsed()));
    }
    let moved = transfer.progress();
    drop(transfer);
    let [there, back] = streams.stop()?;
    let lost = [there.lost() + there.overflowed, back.lost() + back.overflowed];
    ensure!(lost == [0, 0], "{there:?} {back:?}");
    ensure!(there.refused.0 + back.refused.0 == 0, "{there:?} {back:?}");
    Ok(format!(
        "{} times: 0 of {} and 0 of {} datagrams lost, the same TCP stream moved {} MiB; the longest restart took {longest:.1?}",
        times(),
        there.sent,
        back.sent,
        moved >> 20
    ))
}

/// What is seen on the cable: no two datagrams of one session have the same counter, whichever process sent them. And none of
/// a session that an earlier process sealed on is sent by a later one.
fn counters(lab: &Lab) -> Result<String> {
    let mut ends = ends(lab, By::Process, |site| site.remote.protocol = "vpnd")?;
    for host in [&ends.wire.a, &ends.wire.b] {
        port(host, "eth0").no_offload()?;
    }
    let capture = Capture::start(&ends.wire.b, "eth0", 16)?;
    let streams = Streams::start(&ends.wire)?;
    for _ in 0..5 {
        ends.a.take_over()?;
        ping::until_answered(&ends.wire.a, INNER_B4, SOON)?;
        std::thread::sleep(APART);
    }
    streams.stop()?;
    let seen = capture.stop()?;
    let named = |datagram: &Datagram| {
        let session = datagram.head.get(4..8)?.try_into().ok().map(u32::from_le_bytes)?;
        let counter = datagram.head.get(8..16)?.try_into().ok().map(u64::from_le_bytes)?;
        Some((datagram.from, session, counter))
    };
    let data = seen.datagrams.iter().filter(|datagram| datagram.kind() == Some(4));
    let mut used = BTreeSet::new();
    let mut count = 0;
    for one in data.filter_map(named) {
        ensure!(used.insert(one), "sent twice: {one:?}");
        count += 1;
    }
    let of_a = used.iter().filter(|(from, ..)| from.to_string() == Wire::A4);
    let sessions = of_a.map(|(_, session, _)| *session).collect::<BTreeSet<_>>().len();
    ensure!(sessions >= 6, "{sessions} sessions of A: a process sealed on another's");
    Ok(format!("{count} datagrams of {sessions} sessions of A and those of B: no counter twice"))
}

/// Addresses, routes, rules, the device and its carrier: not even a message says that one was touched.
fn untouched(lab: &Lab) -> Result<String> {
    let mut ends = ends(lab, By::Process, |site| {
        site.remote.protocol = "vpnd";
        if site.name == "site-a" {
            site.remote.allowed_ips.push("198.18.7.0/24".to_owned());
            site.interface.push("carrier = \"peer\"".to_owned());
            site.tables
                .push("[[route]]\nto = \"198.18.7.0/24\"\nwhen_down = \"blackhole\"".to_owned());
        }
    })?;
    let state = |ends: &Ends| -> Result<String> {
        let lines =
            ["ip -d link show tun0", "ip addr show dev tun0", "ip route show table all", "ip rule"];
        lines.into_iter().map(|line| ends.wire.a.run(line)).collect()
    };
    let monitor = ends.wire.a.spawn("monitor", {
        let mut command = ends.wire.a.command("ip");
        command.args(["monitor", "link", "address", "route", "rule"]);
        command
    })?;
    std::thread::sleep(Duration::from_millis(300));
    let before = state(&ends)?;
    for _ in 0..3 {
        ends.a.take_over()?;
        ping::until_answered(&ends.wire.a, INNER_B4, SOON)?;
    }
    std::thread::sleep(Duration::from_millis(1500));
    let said = monitor.log();
    ensure!(said.is_empty(), "{said}");
    ensure!(before == state(&ends)?, "{before}\nis now\n{}", state(&ends)?);
    Ok("the kernel reports no change".to_owned())
}

/// The device and the socket survive a `kill -9`: addresses and routes stay, and packets wait.
fn crash(lab: &Lab) -> Result<String> {
    let mut ends = ends(lab, By::Service, |site| site.remote.protocol = "vpnd")?;
    let link = ends.wire.a.run("ip -o link show tun0")?;
    let streams = Streams::start(&ends.wire)?;
    let trickle = Trickle::start(&ends.wire.a, &ends.wire.b, INNER_B4)?;
    let mut longest = Duration::ZERO;
    for _ in 0..5 {
        let begin = Instant::now();
        ends.a = ends.a.restart()?;
        trickle.advances(Duration::from_secs(5))?;
        longest = longest.max(begin.elapsed());
        std::thread::sleep(APART);
    }
    trickle.finish()?;
    let [there, back] = streams.stop()?;
    ensure!(link == ends.wire.a.run("ip -o link show tun0")?, "another device than {link}");
    let most = u64::from(PACE.per_second);
    ensure!(there.lost() < most && back.lost() < 2 * most, "{there:?} {back:?}");
    Ok(format!(
        "5 crashes: the same device, {} of {} and {} of {} datagrams lost, TCP goes on within {longest:.1?}",
        there.lost(),
        there.sent,
        back.lost(),
        back.sent
    ))
}

/// Or a stop could be handled before the signal that announces it as a restart.
fn one_handles(lab: &Lab) -> Result<String> {
    const BOTH: u64 = 1 << (Signal::SIGUSR1 as u64 - 1) | 1 << (Signal::SIGTERM as u64 - 1);
    let ends = ends(lab, By::Process, |site| site.interface.push("queues = 2".to_owned()))?;
    let process = ends.a.as_process().id();
    let (mut threads, mut handling) = (0, Vec::new());
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let status = fs::read_to_string(thread?.path().join("status"))?;
        let line =
            |key| status.lines().find_map(|line| line.strip_prefix(key)).context("no such line");
        let blocked = u64::from_str_radix(line("SigBlk:")?.trim(), 16)?;
        threads += 1;
        if blocked & BOTH != BOTH {
            handling.push(line("Pid:")?.trim().to_owned());
        }
    }
    ensure!(threads > 3 && handling == [process.to_string()], "{handling:?} of {threads}");
    Ok(format!("the main one of {threads} threads"))
}

fn queues(lab: &Lab) -> Result<String> {
    let mut ends = ends(lab, By::Service, |site| {
        site.remote.protocol = "vpnd";
        site.interface.push("queues = 3".to_owned());
    })?;
    let streams = Streams::start(&ends.wire)?;
    for _ in 0..3 {
        ends.a = By::Service.restart(ends.a)?;
        ping::until_answered(&ends.wire.a, INNER_B4, SOON)?;
    }
    let [there, back] = streams.stop()?;
    ensure!(there.lost() + back.lost() == 0, "{there:?} {back:?}");
    let kept = ends.manager.as_ref().context("there is one")?.kept()?;
    let queues = kept.iter().filter(|name| *name == "queue").count();
    // What another process has stored is stored no more.
    ensure!(queues == 3 && kept.len() == 6, "{kept:?}");
    Ok(format!("0 of {} and 0 of {} lost", there.sent, back.sent))
}

/// The file is not valid any more: the next process runs on with what the earlier one had.
fn invalid(lab: &Lab) -> Result<String> {
    let mut ends = ends(lab, By::Service, |_site| ())?;
    let file = ends.a.config().to_owned();
    let text = fs::read_to_string(&file)?;
    fs::write(&file, format!("{text}\nnonsense = true\n"))?;
    let streams = Streams::start(&ends.wire)?;
    ends.a = By::Service.restart(ends.a)?;
    ping::until_answered(&ends.wire.a, INNER_B4, SOON)?;
    let [there, back] = streams.stop()?;
    ensure!(there.lost() + back.lost() == 0, "{there:?} {back:?}");
    let log = ends.a.as_process().log();
    ensure!(log.contains("continues with that of the earlier process"), "{log}");
    Ok("the tunnel continues, and says why".to_owned())
}

/// A device of another name is another device: the earlier one is gone, and the tunnel works.
fn another_device(lab: &Lab, by: By) -> Result<String> {
    let mut ends = ends(lab, by, |_site| ())?;
    let file = ends.a.config().to_owned();
    let text = fs::read_to_string(&file)?;
    fs::write(&file, text.replace("name = \"tun0\"", "name = \"tun7\""))?;
    ends.a = by.restart(ends.a)?;
    ping::until_answered(&ends.wire.a, INNER_B4, SOON)?;
    let links = ends.wire.a.run("ip -o link")?;
    ensure!(links.contains("tun7") && !links.contains("tun0"), "{links}");
    Ok("the new one works, the old one is gone".to_owned())
}
