//! Ends that stop, crash and return, with a TCP connection through them.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sendto, socket,
};
use vpnd_tests::relay::{Direction, Relay};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_A4, INNER_B4, PORT};
use vpnd_tests::traffic::{ping, tcp};
use vpnd_tests::{Lab, Routed, Vpnd, Wire, eventually};

use crate::tunnel::Tunnel;

/// Bytes of a transfer that is interrupted, and how many have arrived by then.
const BYTES: u64 = 256 << 20;
const MIDDLE: u64 = 8 << 20;
/// Initiations that somebody recorded.
const RECORDINGS: usize = 8;
/// 15 s until silence is noticed, and one retry.
const NOTICED: Duration = Duration::from_secs(25);

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("restart::A is restarted and speaks", Cost::Works, initiator),
        Scenario::new("restart::B is restarted and waits", Cost::Waits, responder),
        Scenario::new("restart::kill -9 of A in mid-transfer", Cost::Works, |lab| crash(lab, true)),
        Scenario::new("restart::kill -9 of B in mid-transfer", Cost::Works, |lab| {
            crash(lab, false)
        }),
        Scenario::new("restart::kill -9 of A again and again", Cost::Works, |lab| {
            crashes(lab, true)
        }),
        Scenario::new("restart::kill -9 of B again and again", Cost::Works, |lab| {
            crashes(lab, false)
        }),
        Scenario::new("restart::recorded initiations", Cost::Works, replayed),
        Scenario::new("restart::a virtual machine is copied", Cost::Works, copied),
    ]
}

fn initiator(lab: &Lab) -> Result<String> {
    let mut tunnel = Tunnel::new(lab)?;
    let status = tunnel.a.process().terminate()?;
    ensure!(status.success(), "SIGTERM is a clean stop, not {status}");
    let a = tunnel.a.restart()?;
    let start = Instant::now();
    ping::until_answered(&tunnel.wire.a, INNER_B4, Duration::from_secs(5))?;
    let took = start.elapsed();
    ping::once(&tunnel.wire.b, INNER_A4)?;
    Ok(format!("traffic after {took:.1?}; A says {:?} handshakes", a.status()?.handshakes()))
}

/// B comes back without knowing where A is; A has to notice the silence.
fn responder(lab: &Lab) -> Result<String> {
    let mut tunnel = Tunnel::new(lab)?;
    tunnel.b.process().terminate()?;
    let _b = tunnel.b.restart()?;
    let start = Instant::now();
    ping::until_answered(&tunnel.wire.a, INNER_B4, NOTICED)?;
    let took = start.elapsed();
    ping::once(&tunnel.wire.b, INNER_A4)?;
    Ok(format!("traffic after {took:.1?}"))
}

/// The kernel reports a new generation ID of A's machine, as after a snapshot.
fn copied(lab: &Lab) -> Result<String> {
    let tunnel = Tunnel::new(lab)?;
    ping::until_answered(&tunnel.wire.a, INNER_B4, NOTICED)?;
    let before = tunnel.a.status()?.handshakes();
    tunnel.wire.a.enter(|| uevent(b"change@/devices/LNXSYSTM:00/VMGENCTR:00\0NEW_VMGENID=1\0"))?;
    let start = Instant::now();
    eventually("another session", NOTICED, || {
        let handshakes = tunnel.a.status()?.handshakes();
        ensure!(handshakes > before, "{handshakes} handshakes");
        Ok(())
    })?;
    ping::until_answered(&tunnel.wire.a, INNER_B4, NOTICED)?;
    let took = start.elapsed();
    let log = tunnel.a.as_process().log();
    ensure!(log.matches("was copied").count() == 1, "{log}");
    Ok(format!("traffic on another session after {took:.1?}"))
}

/// Sends a uevent to the listeners of this network namespace.
fn uevent(text: &[u8]) -> Result<()> {
    const GROUP: u32 = 1;
    let protocol = SockProtocol::NetlinkKObjectUEvent;
    let sender = socket(AddressFamily::Netlink, SockType::Datagram, SockFlag::empty(), protocol)?;
    sendto(sender.as_raw_fd(), text, &NetlinkAddr::new(0, GROUP), MsgFlags::empty())?;
    Ok(())
}

/// Whoever has recorded A's initiations plays them to a B that has just started, and wants to call A.
fn replayed(lab: &Lab) -> Result<String> {
    let net = Routed::new(lab)?;
    let front = format!("{}:{PORT}", Routed::ROUTER_A4);
    let relay = Relay::start(&net.router, &front, Routed::B4, 1)?;
    relay.record();
    let (a, b) = site::pair()?;
    let (a, b) =
        (a.towards(&front), b.towards(&format!("{}:{}", Routed::ROUTER_B4, relay.back_port()?)));
    let b = Vpnd::start(&net.b, &b)?;
    let mut running = Vpnd::start(&net.a, &a)?;
    for _ in 1..RECORDINGS {
        ping::until_answered(&net.a, INNER_B4, NOTICED)?;
        running = running.restart()?;
    }
    ping::until_answered(&net.a, INNER_B4, NOTICED)?;
    let all = relay.recorded().into_iter().filter(|one| one.direction == Direction::ToTarget);
    let recorded: Vec<_> =
        all.map(|one| one.datagram).filter(|datagram| datagram[0] == 1).collect();
    ensure!(recorded.len() >= RECORDINGS, "only {} initiations", recorded.len());
    let calm = AtomicBool::new(false);
    let took = thread::scope(|scope| -> Result<Duration> {
        scope.spawn(|| play(&relay, &recorded, &calm));
        let result = b.restart().and_then(|_b| {
            let start = Instant::now();
            ping::until_answered(&net.b, INNER_A4, NOTICED).map(|()| start.elapsed())
        });
        calm.store(true, Ordering::Relaxed);
        result
    })?;
    // One wait of five seconds at most; each recording used to begin another.
    ensure!(took < Duration::from_secs(8), "traffic only after {took:.1?}");
    Ok(format!("{} recordings, one a second; traffic after {took:.1?}", recorded.len()))
}

/// Each for a second, so that one is there before B calls.
fn play(relay: &Relay, recorded: &[Vec<u8>], calm: &AtomicBool) {
    for datagram in recorded {
        for _ in 0..100 {
            if calm.load(Ordering::Relaxed) {
                return;
            }
            // A target that is not there hears the next.
            let _ = relay.inject(Direction::ToTarget, datagram);
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Both know where the other is. The end that was killed has data to send or to acknowledge.
fn crash(lab: &Lab, of_a: bool) -> Result<String> {
    let mut tunnel = Tunnel::with(lab, |a, b| (a.towards(Wire::B4), b.towards(Wire::A4)))?;
    let transfer = tcp::Transfer::start(&tunnel.wire.a, &tunnel.wire.b, INNER_B4, BYTES)?;
    transfer.reach(MIDDLE)?;
    let arrived = transfer.progress();
    let killed = if of_a { &mut tunnel.a } else { &mut tunnel.b };
    killed.process().kill()?;
    let killed = if of_a { tunnel.a } else { tunnel.b };
    let _restarted = killed.restart()?;
    let done = transfer.finish()?;
    Ok(format!("killed after {arrived} bytes; all {} arrived, {:.1?}", done.bytes, done.elapsed))
}

/// The same end is killed many times under one connection, at other moments of it each time.
fn crashes(lab: &Lab, of_a: bool) -> Result<String> {
    let Tunnel { wire, a, b } = Tunnel::with(lab, |a, b| {
        (a.towards(Wire::B4).speaking_vpnd(&[]), b.towards(Wire::A4).speaking_vpnd(&[]))
    })?;
    let (killed, _other) = if of_a { (a, b) } else { (b, a) };
    let mut killed = Some(killed);
    let transfer = tcp::Transfer::start(&wire.a, &wire.b, INNER_B4, 1 << 40)?;
    let times = if vpnd_tests::long() { 50 } else { 5 };
    let watch = Watch::default();
    let gaps = thread::scope(|scope| -> Result<Vec<Duration>> {
        scope.spawn(|| watch.look_at(&transfer));
        let gaps = (0..times).map(|n| watch.kill(&transfer, &mut killed, n)).collect();
        watch.over.store(true, Ordering::Relaxed);
        gaps
    })?;
    let done = transfer.stop()?;
    let mut sorted = gaps;
    sorted.sort();
    Ok(format!(
        "{times} kills, {} MB in {:.0} s arrived whole; without progress at worst {} ms, median {} ms",
        done.bytes >> 20,
        done.elapsed.as_secs_f64(),
        sorted.last().map_or(0, Duration::as_millis),
        sorted[sorted.len() / 2].as_millis()
    ))
}

/// The longest time without progress of a transfer, in milliseconds.
#[derive(Default)]
struct Watch {
    longest: AtomicU64,
    over: AtomicBool,
}

impl Watch {
    fn look_at(&self, transfer: &tcp::Transfer) {
        let (mut moved, mut before) = (Instant::now(), 0);
        while !self.over.load(Ordering::Relaxed) {
            let now = transfer.progress();
            if now != before {
                (moved, before) = (Instant::now(), now);
            }
            let gap = u64::try_from(moved.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.longest.fetch_max(gap, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Kills one end for the `n`th time, and returns how long nothing arrived.
    fn kill(&self, transfer: &tcp::Transfer, end: &mut Option<Vpnd>, n: u64) -> Result<Duration> {
        let goes_on =
            || transfer.reach(transfer.progress() + MIDDLE).with_context(|| format!("kill {n}"));
        goes_on()?;
        thread::sleep(Duration::from_millis(n * 37 % 200));
        self.take();
        *end = end.take().map(Vpnd::restart).transpose()?;
        goes_on()?;
        Ok(self.take())
    }

    /// The longest since this was called last.
    fn take(&self) -> Duration {
        Duration::from_millis(self.longest.swap(0, Ordering::Relaxed))
    }
}
