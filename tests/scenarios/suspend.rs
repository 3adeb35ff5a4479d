//! A host that is suspended while the network around it changes. The daemon is stopped and continued, and its clocks are
//! shown to it an hour ahead ([`CLOCK`]); wireguard-go, beside it, is stopped and continued.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use vpnd_tests::link::port;
use vpnd_tests::peer::{Kind, Peer};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_B4, PORT, Site};
use vpnd_tests::traffic::echo::Echo;
use vpnd_tests::vpnd::{Launch, is_static};
use vpnd_tests::{Host, Lab, Process, Vpnd, nft};

use crate::moves::strict;
use crate::socket::{B4, Uplinks};
use crate::tunnel::SOON;

/// The source of the library that shows the daemon another clock.
const CLOCK: &str = include_str!("suspend/clock.c");
/// The clocks' advance, beyond the time for which the daemon is stopped.
const HOUR: Duration = Duration::from_secs(3600);
/// The time for which it is stopped.
const STOPPED: Duration = Duration::from_secs(4);
/// How soon traffic has to flow again, and the path's MTU and round trip have to be known again.
const BACK_WITHIN: Duration = Duration::from_secs(3);
const KNOWN_WITHIN: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(40);
/// An answer that waited through the suspend would seem to have taken an hour.
const ROUND_TRIP_MS: f64 = 500.0;
/// What the path carries before and after.
const WIDE: u16 = 1500;
const NARROW: u16 = 1400;
/// The outer headers of a full packet, over IPv4.
const OVERHEAD: u16 = 20 + 8 + 32;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let moves = |lab: &Lab| compared(lab, Meanwhile::Moves);
    let stays = |lab: &Lab| compared(lab, Meanwhile::Stays);
    vec![
        Scenario::new("suspend::the host wakes up in another network", Cost::Waits, moves),
        Scenario::new("suspend::the host wakes up where it was", Cost::Waits, stays),
    ]
}

/// What A's own network does while A is suspended. In either case the path is narrower afterwards, which only large
/// datagrams would show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meanwhile {
    /// Its address is gone, and another uplink is there.
    Moves,
    /// Nothing: the kernel reports no change that would make anybody look.
    Stays,
}

fn compared(lab: &Lab, meanwhile: Meanwhile) -> Result<String> {
    if is_static()? {
        return Ok("not run: without a loader the binary cannot be shown another clock".to_owned());
    }
    let seen = vpnd(lab, meanwhile)?;
    let beside = wireguard_go(&Lab::within(lab.path(), "wireguard-go")?, meanwhile)?;
    let beside =
        beside.map_or_else(|| format!("not in {PATIENCE:?}"), |took| format!("{took:.2?}"));
    Ok(format!("traffic flows after: {seen}; wireguard-go {beside}"))
}

/// Two uplinks, by which full datagrams arrive at the router as they are.
fn network(lab: &Lab) -> Result<Uplinks> {
    let net = Uplinks::new(lab)?;
    strict(&net)?;
    net.a.run("ip route add default via 198.51.100.254 metric 100")?;
    for device in [port(&net.a, "one"), port(&net.a, "two"), port(&net.b, "eth0")] {
        device.no_offload()?;
    }
    Ok(net)
}

impl Meanwhile {
    fn happens(self, net: &Uplinks) -> Result<()> {
        nft::black_hole(&net.router, NARROW)?;
        match self {
            Self::Moves => port(&net.a, "one").remove_address("192.0.2.1/24"),
            Self::Stays => Ok(()),
        }
    }
}

/// A's clock, and the library that shows it.
struct Clock {
    file: std::path::PathBuf,
    library: std::path::PathBuf,
}

impl Clock {
    fn new(host: &Host) -> Result<Self> {
        let at = |name: &str| host.directory().join(name);
        let (source, library, file) = (at("clock.c"), at("clock.so"), at("slept"));
        fs::write(&source, CLOCK)?;
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]).args([&library, &source]);
        let built = compiler.output().context("cc")?;
        ensure!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        fs::write(&file, 0_i64.to_ne_bytes())?;
        Ok(Self { file, library })
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        let text = |path: &std::path::Path| path.display().to_string();
        vec![("LD_PRELOAD", text(&self.library)), ("SLEPT_FILE", text(&self.file))]
    }

    /// In place, because the daemon has mapped the file.
    fn advance(&self) -> Result<()> {
        let file = fs::File::options().write(true).open(&self.file)?;
        let seconds = i64::try_from(HOUR.as_secs())?;
        Ok(std::os::unix::fs::FileExt::write_all_at(&file, &seconds.to_ne_bytes(), 0)?)
    }
}

fn speaking(mut site: Site) -> Site {
    site.mtu = 0;
    site.keepalive(1).speaking_vpnd(&["dead_after = \"3s\""])
}

fn vpnd(lab: &Lab, meanwhile: Meanwhile) -> Result<String> {
    let net = network(lab)?;
    let (a, b) = site::pair()?;
    let b = Vpnd::start(&net.b, &speaking(b))?;
    let clock = Clock::new(&net.a)?;
    let launch = Launch { environment: clock.environment(), ..Launch::to_test()? };
    // The library makes calls that no thread of vpnd needs.
    let service = vec!["sandbox = \"off\"".to_owned()];
    let site = Site { listen: None, service, ..speaking(a).towards(&format!("{B4}:{PORT}")) };
    let a = Vpnd::start_as(&launch, &net.a, &site)?;
    let echo = flowing(&net)?;
    ensure_mtu(&a, WIDE)?;

    // An answer that has been on its way all the time: B sends it when A is stopped already.
    b.as_process().signal(Signal::SIGSTOP)?;
    thread::sleep(Duration::from_millis(1200));
    a.as_process().signal(Signal::SIGSTOP)?;
    b.as_process().signal(Signal::SIGCONT)?;
    thread::sleep(STOPPED);
    meanwhile.happens(&net)?;
    clock.advance()?;
    let woken = Instant::now();
    a.as_process().signal(Signal::SIGCONT)?;
    let flows = echo.flows(woken, PATIENCE).context("no traffic after the suspend")?;
    ensure!(flows <= BACK_WITHIN, "traffic only after {flows:?}");
    a.wait_for_log("the host was suspended for 3", SOON)?;
    ensure_mtu(&a, NARROW)?;
    let found = woken.elapsed();
    let measured = |ms: Option<f64>| ms.is_some_and(|ms| ms < ROUND_TRIP_MS);
    a.wait_for("a new round trip", KNOWN_WITHIN, |status| measured(status.round_trip_ms()))?;
    Ok(format!("vpnd {flows:.2?}, and the new MTU of the path is known after {found:.1?}"))
}

/// The device follows the path.
fn ensure_mtu(end: &Vpnd, path: u16) -> Result<()> {
    let expected = Some(u64::from(path - OVERHEAD));
    end.wait_for("the path's MTU", KNOWN_WITHIN, |status| status.device_mtu() == expected).map(drop)
}

fn flowing(net: &Uplinks) -> Result<Echo> {
    let echo = Echo::start(&net.a, &net.b, INNER_B4)?;
    echo.flows(Instant::now(), SOON).context("no traffic at first")?;
    Ok(echo)
}

fn wireguard_go(lab: &Lab, meanwhile: Meanwhile) -> Result<Option<Duration>> {
    let net = network(lab)?;
    let (a, b) = site::pair()?;
    let start = |host, site: Site| Peer::start_quiet(Kind::WireguardGo, host, &site.keepalive(1));
    let _b = start(&net.b, b)?;
    let mut a = start(&net.a, Site { listen: None, ..a.towards(&format!("{B4}:{PORT}")) })?;
    let echo = flowing(&net)?;
    let process: &Process = a.process();
    process.signal(Signal::SIGSTOP)?;
    thread::sleep(STOPPED);
    meanwhile.happens(&net)?;
    let woken = Instant::now();
    process.signal(Signal::SIGCONT)?;
    Ok(echo.flows(woken, PATIENCE))
}
