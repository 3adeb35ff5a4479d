//! Echo requests of both families, counted.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::{Host, eventually, within};

/// An answer within this time is late, not lost.
const LATE: Duration = Duration::from_secs(1);

/// The result of a series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pings {
    /// Requests sent.
    pub sent: u32,
    /// Answers received.
    pub answered: u32,
}

/// Sends one and waits a second for its answer.
///
/// # Errors
/// When it does not come.
pub fn once(host: &Host, to: &str) -> Result<()> {
    let pings = series(host, to, 1, Duration::from_secs(1))?;
    ensure!(pings.answered == 1, "{}: no answer from {to}", host.name());
    Ok(())
}

/// Sends one request after another until an answer comes.
///
/// # Errors
/// When none has after `limit`.
pub fn until_answered(host: &Host, to: &str, limit: Duration) -> Result<()> {
    eventually(&format!("{} reaches {to}", host.name()), limit, || once(host, to))
}

/// Sends `count`, one in every `interval`, and waits a second for the last answer.
///
/// # Errors
/// When `ping` itself fails; silence is not an error.
pub fn series(host: &Host, to: &str, count: u32, interval: Duration) -> Result<Pings> {
    with_size(host, to, count, interval, 56)
}

/// As [`series`], with this many bytes after the ICMP header, and never fragmented.
///
/// # Errors
/// When `ping` itself fails.
pub fn with_size(
    host: &Host,
    to: &str,
    count: u32,
    interval: Duration,
    bytes: u16,
) -> Result<Pings> {
    run(host, to, count, interval, &["-M", "do", "-s", &bytes.to_string()])
}

/// Sends `count` whose IP header bears the TOS byte `tos`, and waits for their answers.
///
/// # Errors
/// When `ping` itself fails.
pub fn marked(host: &Host, to: &str, count: u32, tos: u8) -> Result<Pings> {
    run(host, to, count, Duration::from_millis(5), &["-Q", &tos.to_string()])
}

fn run(host: &Host, to: &str, count: u32, interval: Duration, more: &[&str]) -> Result<Pings> {
    let before = replies(host, to)?;
    let pings = ping(host, to, count, interval, more)?;
    if pings.answered == 0 || pings.answered == pings.sent {
        return Ok(pings);
    }
    // Once one answer has come, ping waits for others only twice as long as that took (schedule_exit); a late
    // one counts here all the same.
    let since = || Some(replies(host, to).ok()?.saturating_sub(before));
    within(LATE, || since().filter(|answered| *answered >= pings.sent));
    let answered = since().context("the kernel's counters are gone")?;
    Ok(Pings { answered: answered.clamp(pings.answered, pings.sent), ..pings })
}

/// Echo replies received by this host so far, in the family of `to`.
fn replies(host: &Host, to: &str) -> Result<u32> {
    let read = |file: &str| {
        let path = Path::new("/proc/thread-self/net").join(file);
        host.enter(|| fs::read_to_string(&path).with_context(|| format!("cannot read {path:?}")))
    };
    let count = if to.contains(':') {
        let table = read("snmp6")?;
        let line = table.lines().find_map(|line| line.strip_prefix("Icmp6InEchoReplies"));
        line.and_then(|value| value.trim().parse().ok())
    } else {
        counter(&read("snmp")?, "Icmp:", "InEchoReps")
    };
    count.context("the kernel counts no echo replies")
}

/// Reads a table of `/proc/net/snmp`: a line of names, and one of values.
fn counter(table: &str, protocol: &str, name: &str) -> Option<u32> {
    let mut lines = table.lines().filter(|line| line.starts_with(protocol));
    let (names, values) = lines.next().zip(lines.next())?;
    let place = names.split_whitespace().position(|one| one == name)?;
    values.split_whitespace().nth(place)?.parse().ok()
}

fn ping(host: &Host, to: &str, count: u32, interval: Duration, more: &[&str]) -> Result<Pings> {
    let mut command = host.command("ping");
    command.args(["-n", "-q", "-W", "1", "-c", &count.to_string()]);
    command.args(["-i", &interval.as_secs_f64().to_string()]).args(more).arg(to);
    let output = command.output().context("cannot run ping; install iputils-ping")?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse(&text).with_context(|| {
        format!("{}: ping {to}: {text}{}", host.name(), String::from_utf8_lossy(&output.stderr))
    })
}

/// Sends `count`, one in every `interval`, and returns the round-trip times of the answers.
///
/// # Errors
/// When none came, or `ping` cannot be run.
pub fn round_trips(host: &Host, to: &str, count: u32, interval: Duration) -> Result<Vec<Duration>> {
    let line = format!("ping -n -W 1 -c {count} -i {} {to}", interval.as_secs_f64());
    let text = host.run_within(&line, interval * count * 2 + Duration::from_secs(10))?;
    let times: Vec<Duration> = text.lines().filter_map(time).collect();
    ensure!(!times.is_empty(), "no times in what ping prints: {text}");
    Ok(times)
}

/// Reads `64 bytes from 192.0.2.2: icmp_seq=1 ttl=64 time=0.051 ms`.
fn time(line: &str) -> Option<Duration> {
    let (_, behind) = line.split_once(" time=")?;
    let milliseconds: f64 = behind.strip_suffix(" ms")?.parse().ok()?;
    Duration::try_from_secs_f64(milliseconds / 1000.0).ok()
}

/// Reads `10 packets transmitted, 7 received, 30% packet loss, time 9ms`.
fn parse(text: &str) -> Option<Pings> {
    let summary = text.lines().find(|line| line.contains("packets transmitted"))?;
    let mut parts = summary.split(", ");
    let mut number = |unit: &str| -> Option<u32> {
        parts.find(|part| part.contains(unit))?.split_whitespace().next()?.parse().ok()
    };
    Some(Pings { sent: number("transmitted")?, answered: number("received")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_found_by_its_name() {
        let table = "Ip: Forwarding\nIp: 1\nIcmp: InMsgs InEchoReps\nIcmp: 9 7\nIcmpMsg: In\n";
        assert_eq!(counter(table, "Icmp:", "InEchoReps"), Some(7));
        assert_eq!(counter(table, "Icmp:", "InRedirects"), None);
    }

    #[test]
    fn the_summary_is_read() {
        let text = "\n--- x ping statistics ---\n10 packets transmitted, 7 received, +1 errors, 30% packet loss, time 9ms\n";
        assert_eq!(parse(text), Some(Pings { sent: 10, answered: 7 }));
        assert_eq!(
            time("64 bytes from x: icmp_seq=1 ttl=64 time=0.051 ms"),
            Some(Duration::from_micros(51))
        );
        assert_eq!(time("From x icmp_seq=1 Destination Host Unreachable"), None);
        assert_eq!(parse("ping: connect: Network is unreachable"), None);
    }
}
