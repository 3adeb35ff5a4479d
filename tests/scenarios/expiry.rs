//! Keys expire: after three idle minutes a tunnel makes a new session.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use vpnd_tests::capture::Capture;
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::INNER_B4;
use vpnd_tests::traffic::ping;
use vpnd_tests::{Lab, long};

use crate::tunnel::Tunnel;

/// A little past REJECT_AFTER_TIME.
const IDLE: Duration = Duration::from_secs(183);
/// A little past three times of it, when nothing of a session may be left.
const LONG_IDLE: Duration = Duration::from_secs(545);

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = vec![Scenario::new("expiry::after idle", Cost::Waits, |lab| idle(lab, IDLE))];
    if long() {
        let body = |lab: &Lab| idle(lab, LONG_IDLE);
        all.push(Scenario::new("expiry::after long idle", Cost::Waits, body));
    }
    all
}

fn idle(lab: &Lab, time: Duration) -> Result<String> {
    let tunnel = Tunnel::new(lab)?;
    // The passive keepalive, and whatever the kernel says on a new device.
    thread::sleep(Duration::from_secs(15));
    let quiet = Capture::start(&tunnel.wire.b, "eth0", 4)?;
    thread::sleep(time);
    let idle = quiet.stop()?.datagrams;
    ensure!(idle.is_empty(), "not silent when idle: {idle:?}");
    let wakes = Capture::start(&tunnel.wire.b, "eth0", 4)?;
    ping::once(&tunnel.wire.a, INNER_B4)?;
    let kinds: Vec<_> = wakes.stop()?.datagrams.iter().map(|datagram| datagram.kind()).collect();
    ensure!(kinds.starts_with(&[Some(1), Some(2), Some(4)]), "woke up with {kinds:?}");
    let status = tunnel.a.status()?;
    ensure!(status.handshakes() == 2, "A says {status}");
    Ok(format!("silent for {time:?}, then a new handshake carried the first packet"))
}
