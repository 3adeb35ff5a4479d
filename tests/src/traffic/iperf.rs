//! `iperf3` between two hosts: figures to print, never to assert.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{Host, eventually};

/// The port of the server, which is alone in its namespace.
const PORT: u16 = 5201;

/// What one run of TCP measured.
#[derive(Debug, Clone, Copy)]
pub struct Figure {
    /// Received, in megabits a second.
    pub megabits: f64,
    /// Segments the sender sent again.
    pub retransmits: u64,
}

/// Sends TCP from one host to an address of another for some seconds.
///
/// # Errors
/// When `iperf3` cannot be run or does not finish.
pub fn tcp(from: &Host, to: &Host, address: &str, seconds: u32) -> Result<Figure> {
    let mut command = to.command("iperf3");
    command.args(["--server", "--one-off", "--bind", address]);
    let _server = to.spawn("iperf3-server", command)?;
    eventually("the iperf3 server listens", Duration::from_secs(5), || listening(to))?;
    let line = format!("iperf3 --client {address} --time {seconds} --congestion cubic --json");
    let report: Value = serde_json::from_str(&from.run(&line)?)?;
    figure(&report).context("iperf3 prints no sums")
}

fn listening(host: &Host) -> Result<()> {
    // Connecting would use the one connection up, so ask the kernel.
    let sockets = host.run(&format!("ss -Hltn sport = {PORT}"))?;
    (!sockets.trim().is_empty()).then_some(()).context("no socket listens yet")
}

fn figure(report: &Value) -> Option<Figure> {
    let end = report.get("end")?;
    let bits = end.get("sum_received")?.get("bits_per_second")?.as_f64()?;
    let retransmits = end.get("sum_sent")?.get("retransmits")?.as_u64()?;
    Some(Figure { megabits: bits / 1e6, retransmits })
}
