//! `iperf3` between two hosts: its figures are printed, never asserted.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{Host, Process, eventually};

/// The port of the server, which is alone in its namespace.
const PORT: u16 = 5201;
/// The time that a run may take beyond its duration: connecting, and exchanging results.
const GRACE: Duration = Duration::from_secs(15);

/// The direction of the bytes, seen from the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Client to server.
    Forward,
    /// Server to client.
    Reverse,
    /// Both at once.
    Both,
}

/// A run of TCP.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// Connections in each direction.
    pub streams: u32,
    /// The direction.
    pub direction: Direction,
    /// Seconds that are measured.
    pub seconds: u32,
    /// Seconds before them, in which TCP reaches its rate.
    pub omit: u32,
}

/// The result of one run of TCP.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure {
    /// Received, in megabits a second; of both directions together.
    pub megabits: f64,
    /// Segments the senders sent again.
    pub retransmits: u64,
    /// Gigabytes (10⁹) in the whole run, including the omitted seconds.
    pub gigabytes: f64,
}

impl Run {
    /// One stream, client to server.
    pub fn one_stream(seconds: u32) -> Self {
        Self { streams: 1, direction: Direction::Forward, seconds, omit: 0 }
    }

    fn line(self, address: &str) -> String {
        let Self { streams, seconds, omit, .. } = self;
        let direction = match self.direction {
            Direction::Forward => "",
            Direction::Reverse => "--reverse",
            Direction::Both => "--bidir",
        };
        format!(
            "iperf3 --client {address} --time {seconds} --omit {omit} --parallel {streams} \
             --congestion cubic --connect-timeout 5000 --json {direction}"
        )
    }

    fn limit(self) -> Duration {
        Duration::from_secs((self.seconds + self.omit).into()) + GRACE
    }
}

/// Sends TCP from one host to an address of another for some seconds.
///
/// # Errors
/// When `iperf3` cannot be run or does not finish.
pub fn tcp(from: &Host, to: &Host, address: &str, seconds: u32) -> Result<Figure> {
    run(from, to, address, Run::one_stream(seconds))
}

/// Runs TCP between one host, the client, and an address of another.
///
/// # Errors
/// When `iperf3` cannot be run or does not finish.
pub fn run(from: &Host, to: &Host, address: &str, run: Run) -> Result<Figure> {
    let _server = serve(to, address)?;
    let report: Value = serde_json::from_str(&from.run_within(&run.line(address), run.limit())?)?;
    figure(&report).context("iperf3 prints no sums")
}

/// Starts to send for at least `seconds`, in parallel with a measurement; it ends when dropped.
///
/// # Errors
/// When `iperf3` cannot be run.
pub fn load(from: &Host, to: &Host, address: &str, seconds: u32) -> Result<Load> {
    let server = serve(to, address)?;
    let run = Run::one_stream(seconds);
    let line = run.line(address);
    let mut words = line.split_whitespace();
    let mut command = from.command(words.next().context("no program")?);
    command.args(words);
    let client = from.spawn("iperf3-load", command)?;
    Ok(Load { client, _server: server, limit: run.limit() })
}

/// A run in the background.
#[derive(Debug)]
pub struct Load {
    client: Process,
    _server: Process,
    limit: Duration,
}

impl Load {
    /// Waits for its end.
    ///
    /// # Errors
    /// When it failed, or does not end.
    pub fn finish(mut self) -> Result<Figure> {
        self.client.wait(self.limit)?;
        let log = self.client.log();
        // An earlier run may have written to the same log.
        let reports = serde_json::Deserializer::from_str(&log).into_iter::<Value>();
        let last = reports.map_while(Result::ok).last().context("iperf3 printed nothing")?;
        figure(&last).with_context(|| format!("iperf3: {}", last["error"]))
    }
}

fn serve(to: &Host, address: &str) -> Result<Process> {
    let mut command = to.command("iperf3");
    command.args(["--server", "--one-off", "--bind", address]);
    let server = to.spawn("iperf3-server", command)?;
    eventually("the iperf3 server listens", Duration::from_secs(5), || listening(to))?;
    Ok(server)
}

fn listening(host: &Host) -> Result<()> {
    // Connecting would use the one connection up, so ask the kernel.
    let sockets = host.run(&format!("ss -Hltn sport = {PORT}"))?;
    (!sockets.trim().is_empty()).then_some(()).context("no socket listens yet")
}

fn figure(report: &Value) -> Option<Figure> {
    let number = |pointer: &str| report.pointer(pointer).and_then(Value::as_f64);
    let count = |pointer: &str| report.pointer(pointer).and_then(Value::as_u64);
    let back = number("/end/sum_received_bidir_reverse/bits_per_second").unwrap_or(0.0);
    let again_back = count("/end/sum_sent_bidir_reverse/retransmits").unwrap_or(0);
    Some(Figure {
        megabits: (number("/end/sum_received/bits_per_second")? + back) / 1e6,
        retransmits: count("/end/sum_sent/retransmits")? + again_back,
        gigabytes: bytes(report)? / 1e9,
    })
}

fn bytes(report: &Value) -> Option<f64> {
    let sums = report.get("intervals")?.as_array()?.iter();
    Some(sums.filter_map(|interval| interval.pointer("/sum/bytes")?.as_f64()).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_directions_are_added_and_omitted_bytes_counted() {
        let report = json!({
            "intervals": [{"sum": {"bytes": 5e8}}, {"sum": {"bytes": 2.5e9}}],
            "end": {
                "sum_sent": {"retransmits": 2},
                "sum_received": {"bits_per_second": 4e9},
                "sum_sent_bidir_reverse": {"retransmits": 3},
                "sum_received_bidir_reverse": {"bits_per_second": 1e9},
            },
        });
        let expected = Figure { megabits: 5000.0, retransmits: 5, gigabytes: 3.0 };
        assert_eq!(figure(&report), Some(expected));
        assert_eq!(figure(&json!({"error": "refused"})), None);
    }

    #[test]
    fn a_run_says_which_way() {
        let run = Run { streams: 4, direction: Direction::Both, seconds: 5, omit: 1 };
        let line = run.line("192.0.2.2");
        assert!(line.contains("--time 5 --omit 1 --parallel 4") && line.ends_with("--bidir"));
    }
}
