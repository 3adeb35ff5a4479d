//! A device with several queues: the order within every flow, and devices created beforehand.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use vpnd_tests::long;
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_A4, INNER_A6, INNER_B4, INNER_B6, Site};
use vpnd_tests::traffic::iperf::{self, Direction, Run};
use vpnd_tests::traffic::ping;
use vpnd_tests::traffic::stream::{Pace, Stream, Tally};
use vpnd_tests::tun::{Intruder, Tun};
use vpnd_tests::{Host, Lab, Vpnd, Wire, vpnd};

use crate::tunnel::{SOON, Tunnel, carries_everything};

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    for mode in ["tun", "tap"] {
        for queues in ["4", "\"auto\""] {
            let name = format!("queues::mode {mode}, queues = {queues}");
            let body = move |lab: &Lab| keeps_order(lab, mode, queues);
            all.push(Scenario::new(name, Cost::Works, body));
        }
    }
    for queues in [1, 3] {
        let name = format!("queues::{queues} of a device made beforehand");
        all.push(Scenario::new(name, Cost::Works, move |lab| adopted(lab, queues)));
    }
    for mode in ["tun", "tap"] {
        let name = format!("queues::none for another user, {mode}");
        all.push(Scenario::new(name, Cost::Works, move |lab| no_intruder(lab, mode)));
    }
    all.push(Scenario::new("queues::of a device that somebody holds", Cost::Works, held));
    all.push(Scenario::new("queues::more than a device has", Cost::Works, single));
    all.push(Scenario::new("queues::the device is deleted", Cost::Works, deleted));
    all
}

fn with(mut site: Site, mode: &str, queues: &str) -> Site {
    site.interface.push(format!("mode = {mode:?}\nqueues = {queues}"));
    site.speaking_vpnd(&[]).keepalive(25)
}

/// Numbered datagrams of many flows both ways at once, then TCP both ways at once.
fn keeps_order(lab: &Lab, mode: &str, queues: &str) -> Result<String> {
    let Tunnel { wire, a, b } =
        Tunnel::with(lab, |a, b| (with(a.towards(Wire::B4), mode, queues), with(b, mode, queues)))?;
    let wanted = queues.parse().unwrap_or_else(|_auto| processors().min(8));
    for (host, end) in [(&wire.a, &a), (&wire.b, &b)] {
        has_queues(host, end, wanted)?;
    }
    let datagrams = streams(&wire)?;
    let run = Run { streams: 4, direction: Direction::Both, seconds: 2, omit: 0 };
    let figure = iperf::run(&wire.a, &wire.b, INNER_B4, run)?;
    carries_everything(&wire, true)?;
    let turns = turns(&a)?;
    ensure!(
        turns.iter().filter(|turns| **turns > 10).count() > usize::from(wanted > 1),
        "{turns:?}"
    );
    for end in [&a, &b] {
        let status = end.status()?;
        ensure!(!status.drops().contains_key("replayed"), "{status}");
    }
    Ok(format!(
        "{wanted} queues, {datagrams} datagrams of 12 flows in order, {:.0} Mbit/s, wakes {turns:?}",
        figure.megabits
    ))
}

/// How many processors this test, and so vpnd, may run on.
fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// What vpnd says, and what the kernel does: one more, detached, is for what vpnd writes.
fn has_queues(host: &Host, end: &Vpnd, wanted: usize) -> Result<()> {
    let status = end.status()?;
    ensure!(status.queues() == wanted as u64, "{status}");
    let link = host.run("ip -d link show dev tun0")?;
    let expected = match wanted {
        1 => String::new(),
        _ => format!("multi_queue numqueues {wanted} numdisabled 1 "),
    };
    ensure!(link.contains(&expected), "not {expected}: {link}");
    Ok(())
}

/// Three flows each way in each family. Says how many datagrams arrived.
fn streams(wire: &Wire) -> Result<u64> {
    let ways = [
        (&wire.a, &wire.b, INNER_B4),
        (&wire.b, &wire.a, INNER_A4),
        (&wire.a, &wire.b, INNER_B6),
        (&wire.b, &wire.a, INNER_A6),
    ];
    let drops = || Ok::<u64, anyhow::Error>(wire.a.queue_drops()? + wire.b.queue_drops()?);
    let before = drops()?;
    let mut running = Vec::new();
    for (from, to, address) in ways.into_iter().cycle().take(12) {
        let pace = Pace { per_second: 1000, payload: 900 };
        running.push(Stream::start(from, to, address, pace)?);
    }
    thread::sleep(Duration::from_secs(2));
    let tallies = stop(running)?;
    let sum = |of: fn(&Tally) -> u64| tallies.iter().map(of).sum();
    let disorder: u64 = sum(|tally| tally.reordered + tally.duplicated + tally.corrupted);
    let (sent, received): (u64, u64) = (sum(|tally| tally.sent), sum(|tally| tally.received));
    let overflowed = drops()? - before;
    ensure!(disorder == 0 && received + overflowed >= sent, "not perfect: {tallies:?}");
    ensure!(tallies.iter().all(|tally| tally.received > 100), "hardly a stream: {tallies:?}");
    Ok(received)
}

/// At once: each waits for what may still be on its way.
fn stop(streams: Vec<Stream>) -> Result<Vec<Tally>> {
    let stopping: Vec<_> =
        streams.into_iter().map(|stream| thread::spawn(move || stream.stop())).collect();
    let joined = stopping
        .into_iter()
        .map(|thread| thread.join().map_err(|_panic| anyhow!("stopping a stream panicked"))?);
    joined.collect()
}

/// How often each outbound thread went to sleep, and so was woken.
fn turns(end: &Vpnd) -> Result<Vec<u64>> {
    let mut turns = Vec::new();
    for thread in fs::read_dir(format!("/proc/{}/task", end.as_process().id()))? {
        let thread = thread?.path();
        if fs::read_to_string(thread.join("comm"))?.starts_with("outbound") {
            let status = fs::read_to_string(thread.join("status"))?;
            let line = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
            turns.push(line.context("no count of switches")?.trim().parse()?);
        }
    }
    Ok(turns)
}

/// A device that somebody made with many queues takes whatever number is asked for, and stays.
fn adopted(lab: &Lab, queues: usize) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, b) = site::pair()?;
    add(&wire.a, "mode tun multi_queue")?;
    let _b = Vpnd::start(&wire.b, &with(b, "tun", "1"))?;
    let mut a = Vpnd::start(&wire.a, &with(a.towards(Wire::B4), "tun", &queues.to_string()))?;
    carries_everything(&wire, true)?;
    let status = a.status()?;
    ensure!(status.queues() == queues as u64, "{status}");
    let attached = wire.a.run("ip -d link show dev tun0")?;
    ensure!(attached.contains(&format!("numqueues {queues} ")), "{attached}");
    ensure!(a.process().terminate()?.success(), "{}", a.as_process().log());
    let left = wire.a.run("ip -d link show dev tun0")?;
    ensure!(left.contains("persist on"), "{left}");
    Ok(format!("{queues} attached"))
}

/// A user without privileges tries to get a queue of the device while it is made: of that one, or of
/// whichever it hears.
fn no_intruder(lab: &Lab, mode: &str) -> Result<String> {
    let host = lab.host("a")?;
    let (a, _b) = site::pair()?;
    let site = with(a.towards(Wire::B4), mode, "3");
    let (rounds, mut caught) = (if long() { 100 } else { 4 }, 0);
    for _ in 0..rounds {
        let intruder = Intruder::start(&host, "tun0", flag(mode))?;
        let mut vpnd = Vpnd::start(&host, &site)?;
        has_queues(&host, &vpnd, 3)?;
        vpnd.process().terminate()?;
        caught += intruder.stop()?;
    }
    Ok(format!("{rounds} starts, no queue for uid 12345; {caught} devices made anew over it"))
}

fn flag(mode: &str) -> i32 {
    if mode == "tap" { libc::IFF_TAP } else { libc::IFF_TUN }
}

/// Whoever holds a queue, even one that is detached for now, may get packets; and the packets' header stays as
/// that program wants it. Nothing of its device is changed.
fn held(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, b) = site::pair()?;
    let _b = Vpnd::start(&wire.b, &with(b, "tun", "1"))?;
    let site = |queues| with(a.clone().towards(Wire::B4), "tun", queues);
    add(&wire.a, "mode tun multi_queue")?;
    for (header, detached) in [(0, true), (0, false), (libc::IFF_VNET_HDR, true)] {
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE | header;
        let holder = Tun::attach(&wire.a, "tun0", flags)?;
        holder.number(libc::TUNSETVNETHDRSZ, 12)?;
        if detached {
            holder.detach()?;
        }
        for queues in ["1", "2"] {
            let said = refused(&wire.a, &site(queues))?;
            ensure!(
                said.contains("would get a share of its packets")
                    && said.contains("(attached: perhaps "),
                "{said}"
            );
        }
        ensure!(holder.number(libc::TUNGETVNETHDRSZ, 0)? == 12, "the holder's header");
    }
    let _a = Vpnd::start(&wire.a, &site("2"))?;
    carries_everything(&wire, true)?;
    Ok("refused while it is held, and taken after".into())
}

/// What a start says that ends with code 1.
fn refused(host: &Host, site: &Site) -> Result<String> {
    let config = vpnd::write_files(host, site)?;
    let config = config.to_str().context("a path of our own making")?;
    let (code, said) = vpnd::run(host, &["run", "--config", config])?;
    ensure!(code == 1, "{code}: {said}");
    Ok(said)
}

/// One queue is one queue; where the number is vpnd's to choose, it takes that.
fn single(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, b) = site::pair()?;
    let a = a.towards(Wire::B4);
    add(&wire.a, "mode tun")?;
    let said = refused(&wire.a, &with(a.clone(), "tun", "2"))?;
    ensure!(said.contains("was made with one queue"), "{said}");
    let _b = Vpnd::start(&wire.b, &with(b, "tun", "1"))?;
    let a = Vpnd::start(&wire.a, &with(a, "tun", "\"auto\""))?;
    ping::until_answered(&wire.a, INNER_B4, SOON)?;
    ensure!(a.status()?.queues() == 1, "{}", a.status()?);
    Ok(said.lines().last().unwrap_or_default().to_owned())
}

/// Every thread finds out, and it is said once.
fn deleted(lab: &Lab) -> Result<String> {
    let mut tunnel =
        Tunnel::with(lab, |a, b| (with(a.towards(Wire::B4), "tun", "4"), with(b, "tun", "4")))?;
    tunnel.wire.a.run("ip link delete tun0")?;
    let status = tunnel.a.process().wait(Duration::from_secs(1))?;
    let log = tunnel.a.process().log();
    ensure!(log.matches("device tun0 is gone").count() == 1, "{log}");
    Ok(format!("{status}"))
}

fn add(host: &Host, words: &str) -> Result<()> {
    let words: Vec<&str> =
        ["tuntap", "add", "dev", "tun0"].into_iter().chain(words.split(' ')).collect();
    let (code, said) = vpnd::run(host, &words)?;
    ensure!(code == 0, "{words:?}: {said}");
    Ok(())
}
