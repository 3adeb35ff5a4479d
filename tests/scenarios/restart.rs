//! Ends that stop, crash and come back, with a TCP connection through them.

use std::time::{Duration, Instant};

use anyhow::Result;
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{INNER_A4, INNER_B4};
use vpnd_tests::traffic::{ping, tcp};
use vpnd_tests::{Lab, Wire};

use crate::tunnel::Tunnel;

/// Bytes of a transfer that is interrupted, and how many have arrived by then.
const BYTES: u64 = 256 << 20;
const MIDDLE: u64 = 8 << 20;
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
    ]
}

fn initiator(lab: &Lab) -> Result<String> {
    let mut tunnel = Tunnel::new(lab)?;
    let status = tunnel.a.process().terminate()?;
    anyhow::ensure!(status.success(), "SIGTERM is a clean stop, not {status}");
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
