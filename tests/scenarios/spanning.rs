//! Two tunnels between the same two bridges: a loop, in which one broadcast would go round for ever, but
//! for the bridges' spanning tree.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use vpnd_tests::capture::{Capture, Seen};
use vpnd_tests::frame::BROADCAST;
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, Site};
use vpnd_tests::traffic::ping;
use vpnd_tests::{Frame, Host, Lab, Vpnd, eventually, nft};

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

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("spanning::a double bridge, one end dies", Cost::Waits, end_dies),
        Scenario::new("spanning::a double bridge, one way dies", Cost::Waits, way_dies),
    ]
}

/// The LANs, and a second tunnel beside the first.
struct Double {
    lans: Lans,
    _second: [Vpnd; 2],
}

impl Double {
    /// With the shortest times that spanning tree allows, and A as the root. The kernel's bridge forgets no
    /// host when its tree changes, until its own time for that is over (gc_timer, br_fdb.c).
    fn new(lab: &Lab) -> Result<Self> {
        let lans = Lans::new(lab, 1500)?;
        for (router, priority) in [(&lans.wire.a, 4096), (&lans.wire.b, 8192)] {
            // Hundredths of a second.
            let times = "forward_delay 200 hello_time 100 max_age 600 ageing_time 400";
            let tree =
                format!("ip link set br0 type bridge stp_state 1 priority {priority} {times}");
            router.run(&tree)?;
        }
        let (a, b) = site::pair()?;
        let a = a.towards(&format!("192.0.2.2:{SECOND}"));
        let b = Vpnd::start(&lans.wire.b, &second(bridged(b, 1500)))?;
        let a = Vpnd::start(&lans.wire.a, &second(bridged(a, 1500)))?;
        let double = Self { lans, _second: [a, b] };
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
        let sender = Capture::start(&self.lans.left, "eth0", 0)?;
        let kind = EXPERIMENTAL.to_be_bytes();
        let from = [0x02, 0, 0, 0, 0, 0x77];
        for _ in 0..BROADCASTS {
            sender.send(&[&BROADCAST[..], &from, &kind, &[7; 46]].concat())?;
            thread::sleep(Duration::from_millis(20));
        }
        thread::sleep(Duration::from_secs(1));
        let seen = capture.stop()?;
        let broadcasts = count(&seen, |frame| frame.kind() == EXPERIMENTAL);
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

/// The program of the tunnel that carries everything is killed at B.
fn end_dies(lab: &Lab) -> Result<String> {
    let mut double = Double::new(lab)?;
    let crossing = ["tap0", "tap1"].map(|port| Capture::frames(&double.lans.wire.b, port));
    let calm = double.is_calm()?;
    for capture in crossing {
        greetings(&capture?.stop()?)?;
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
    let double = Double::new(lab)?;
    for router in [&double.lans.wire.a, &double.lans.wire.b] {
        nft::drop_arriving(router, &format!("udp dport {}", site::PORT))?;
    }
    double.recovers("its way cut")
}
