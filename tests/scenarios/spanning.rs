//! Two tunnels between the same two bridges: a loop, in which a broadcast would circulate for ever without
//! the bridges' spanning tree.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use vpnd_tests::capture::{Capture, Seen};
use vpnd_tests::frame::BROADCAST;
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, Site};
use vpnd_tests::traffic::ping;
use vpnd_tests::{Frame, Host, Lab, Vpnd, eventually, nft, within};

use crate::lans::{Lans, RIGHT4, bridged, count};
use crate::tunnel::SOON;

/// Where the second tunnel's ends listen.
const SECOND: u16 = 51821;
/// To all bridges, and no further than the next.
const ALL_BRIDGES: [u8; 6] = [0x01, 0x80, 0xc2, 0, 0, 0];
/// What the broadcasts of a scenario are.
const EXPERIMENTAL: u16 = 0x88b5;
/// Broadcasts sent into the loop.
const BROADCASTS: usize = 50;
/// Frames that a LAN may see of everything else meanwhile: bridges' greetings, neighbours.
const CHATTER: usize = 50;
/// So often one broadcast comes where it goes round, soon.
const STORM: usize = 500;
/// Kilobytes that a loop may move.
const QUOTA: u32 = 400;

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("spanning::without it one broadcast never ends", Cost::Alone, storm),
        Scenario::new("spanning::a double bridge, one end dies", Cost::Waits, end_dies),
        Scenario::new("spanning::a double bridge, one way dies", Cost::Waits, way_dies),
        Scenario::new("spanning::a double bridge whose carriers tell", Cost::Waits, link_tells),
    ]
}

/// How long a bridge knows of a host that is silent, in hundredths of a second. The kernel's forgets nobody
/// when its tree changes, until this is over (`br_fdb_cleanup` is not called before).
#[derive(Clone, Copy)]
struct Ageing(u32);

/// The kernel's own choice.
const MINUTES: Ageing = Ageing(30_000);
/// One with which hosts that are only spoken to are found again soon.
const SECONDS: Ageing = Ageing(400);

/// The LANs, and a second tunnel beside the first.
struct Double {
    lans: Lans,
    _second: [Vpnd; 2],
}

impl Double {
    /// With the shortest times that spanning tree allows, and A as the root.
    fn new(lab: &Lab, ageing: Ageing, change: fn(Site) -> Site) -> Result<Self> {
        let lans = Lans::with(lab, 1500, 1500, change)?;
        for (router, priority) in [(&lans.wire.a, 4096), (&lans.wire.b, 8192)] {
            let times = "forward_delay 200 hello_time 100 max_age 600";
            let tree = format!("stp_state 1 priority {priority} {times} ageing_time {}", ageing.0);
            router.run(&format!("ip link set br0 type bridge {tree}"))?;
        }
        let _second = start_second(&lans, change)?;
        let double = Self { lans, _second };
        double.settled("tap0", "tap1")?;
        ping::until_answered(&double.lans.left, RIGHT4, SOON)?;
        Ok(double)
    }

    /// Waits until B's bridge forwards by one tunnel and blocks the other, and the root by both.
    fn settled(&self, forwards: &str, blocks: &str) -> Result<()> {
        let (a, b) = (&self.lans.wire.a, &self.lans.wire.b);
        wait_for_port(b, forwards, "forwarding")?;
        wait_for_port(b, blocks, "blocking")?;
        wait_for_port(b, "lan", "forwarding")?;
        ["lan", "tap0", "tap1"].iter().try_for_each(|port| wait_for_port(a, port, "forwarding"))
    }

    /// Every broadcast comes once, and little else.
    fn is_calm(&self) -> Result<String> {
        let capture = Capture::frames(&self.lans.right, "eth0")?;
        for _ in 0..BROADCASTS {
            broadcast(&self.lans.left)?;
            thread::sleep(Duration::from_millis(20));
        }
        thread::sleep(Duration::from_secs(1));
        let seen = capture.stop()?;
        let broadcasts = count(&seen, is_ours);
        ensure!(broadcasts == BROADCASTS, "{BROADCASTS} broadcasts came {broadcasts} times");
        let others = seen.frames.len() - broadcasts;
        ensure!(others < CHATTER, "{others} other frames in two seconds");
        Ok(format!("{BROADCASTS} broadcasts came once each, beside {others} other frames"))
    }

    /// How long it takes until left reaches right again.
    fn recovers(&self, what: &str) -> Result<String> {
        let start = Instant::now();
        wait_for_port(&self.lans.wire.b, "tap1", "forwarding")?;
        ping::until_answered(&self.lans.left, RIGHT4, SOON)?;
        Ok(format!("{what}, the other carries on after {:.1} s", start.elapsed().as_secs_f64()))
    }
}

/// Both ends of a second tunnel, beside the first.
fn start_second(lans: &Lans, change: fn(Site) -> Site) -> Result<[Vpnd; 2]> {
    let (a, b) = site::pair()?;
    let a = a.towards(&format!("192.0.2.2:{SECOND}"));
    let b = Vpnd::start(&lans.wire.b, &change(second(bridged(b, 1500))))?;
    Ok([Vpnd::start(&lans.wire.a, &change(second(bridged(a, 1500))))?, b])
}

fn second(site: Site) -> Site {
    let name = format!("{}-second", site.name);
    Site { name, device: "tap1".to_owned(), listen: Some(SECOND), ..site }
}

fn wait_for_port(bridge: &Host, port: &str, state: &str) -> Result<()> {
    let what = format!("{}: {port} is {state}", bridge.name());
    eventually(&what, Duration::from_secs(15), || {
        let ports = bridge.run("bridge link show")?;
        // A cable's line names its other end too: `4: lan@eth0: …`.
        let is_so = |line: &str| {
            let name = line.split([' ', ':', '@']).nth(2);
            name == Some(port) && line.contains(state)
        };
        ensure!(ports.lines().any(is_so), "ports:\n{ports}");
        Ok(())
    })
}

fn broadcast(host: &Host) -> Result<()> {
    let sender = Capture::start(host, "eth0", 0)?;
    let from = [0x02, 0, 0, 0, 0, 0x77];
    sender.send(&[&BROADCAST[..], &from, &EXPERIMENTAL.to_be_bytes(), &[7; 46]].concat())
}

fn is_ours(frame: &Frame) -> bool {
    frame.kind() == EXPERIMENTAL
}

/// What the tree is there for. The loop leads through a bridge that soon forwards nothing more, so that it ends by
/// itself whatever becomes of this program.
fn storm(lab: &Lab) -> Result<String> {
    let lans = Lans::new(lab, 1500)?;
    nft::limit_bridges(&lans.wire.a, QUOTA)?;
    let capture = Capture::frames(&lans.right, "eth0")?;
    let _second = start_second(&lans, |site| site)?;
    let start = Instant::now();
    broadcast(&lans.left)?;
    let often = || (capture.count_frames(is_ours) >= STORM).then_some(());
    within(Duration::from_secs(5), often)
        .context("the second tunnel makes no loop: the other scenarios show nothing")?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(format!("without a tree 1 broadcast came {STORM} times in {seconds:.2} s"))
}

/// The program of the tunnel that carries everything is killed at B.
fn end_dies(lab: &Lab) -> Result<String> {
    let mut double = Double::new(lab, SECONDS, |site| site)?;
    let b = &double.lans.wire.b;
    let crossing = [Capture::frames(b, "tap0")?, Capture::frames(b, "tap1")?];
    let calm = double.is_calm()?;
    for capture in crossing {
        greetings(&capture.stop()?)?;
    }
    double.lans.vpnds[1].process().signal(Signal::SIGKILL)?;
    let recovered = double.recovers("its end killed")?;
    Ok(format!("one tunnel blocked; BPDUs cross both; {calm}; {recovered}"))
}

/// What came out of a tunnel has the root's greetings.
fn greetings(seen: &Seen) -> Result<()> {
    let is_greeting = |frame: &Frame| frame.is_to(ALL_BRIDGES);
    let greetings = count(seen, is_greeting);
    ensure!(greetings > 0, "no BPDU among {} frames", seen.frames.len());
    Ok(())
}

/// Nothing of the first tunnel arrives any more, and both its devices stay: the tree has to notice.
fn way_dies(lab: &Lab) -> Result<String> {
    let double = Double::new(lab, SECONDS, |site| site)?;
    cut(&double)?;
    double.recovers("its way cut")
}

/// The same, but the devices' links tell of it, and each bridge forgets at once who was behind that port.
fn link_tells(lab: &Lab) -> Result<String> {
    let double = Double::new(lab, MINUTES, kept_alive)?;
    cut(&double)?;
    double.recovers("its way cut, its carrier lost")
}

fn kept_alive(site: Site) -> Site {
    let mut site = site.keepalive(1);
    site.remote.lines.push("dead_after = \"2s\"".to_owned());
    site
}

fn cut(double: &Double) -> Result<()> {
    for router in [&double.lans.wire.a, &double.lans.wire.b] {
        nft::drop_arriving(router, &format!("udp dport {}", site::PORT))?;
    }
    Ok(())
}
