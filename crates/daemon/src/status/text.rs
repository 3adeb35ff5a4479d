//! Formats a status for people, without the fields that are unknown.

use std::fmt::Write;

use vpnd_plane::Kind;

use crate::span::span;

use super::{Bypassed, Capture, Device, Path, State, Status};

/// The status, one line for each topic.
pub(crate) fn render(status: &Status) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _written = write_all(&mut text, status);
    text
}

fn write_all(text: &mut String, status: &Status) -> std::fmt::Result {
    let device = &status.device;
    writeln!(
        text,
        "{}  {}   {} ({})  mtu {}  port {}  running {}",
        status.name,
        status.state.word().to_uppercase(),
        device.name,
        kind(device),
        device.mtu,
        device.listen_port,
        span(status.uptime_s),
    )?;
    writeln!(text, "  peer     {}  {}", status.peer.public_key, endpoint(status))?;
    writeln!(text, "  session  {}", session(status))?;
    writeln!(text, "  state    {}", state(status))?;
    writeln!(text, "  alive    {}", alive(status))?;
    if let Some(path) = &status.path {
        writeln!(text, "  path     {}", describe(path))?;
    }
    if let Some(size) = &status.path_mtu {
        writeln!(text, "  packets  {}", size.text())?;
    }
    if let Some(recent) = status.recent.text() {
        writeln!(text, "  recent   {recent}")?;
    }
    let traffic = &status.traffic;
    writeln!(
        text,
        "  traffic  rx {} ({} packets)  tx {} ({} packets)",
        bytes(traffic.rx_bytes),
        traffic.rx_packets,
        bytes(traffic.tx_bytes),
        traffic.tx_packets,
    )?;
    write_drops(text, status)?;
    if let Some(sandbox) = &status.sandbox {
        writeln!(text, "  sandbox  {sandbox}")?;
    }
    if let Some(captured) = status.capture {
        writeln!(text, "  capture  {}", capture(captured))?;
    }
    if status.key_log_allowed {
        writeln!(text, "  key log  allowed: root can record the keys of this tunnel")?;
    }
    let mut missing = status.missing.iter();
    missing.try_for_each(|one| writeln!(text, "  missing  {}: {}", one.what, one.why))?;
    let mut bypassed = status.bypassed.iter();
    bypassed.try_for_each(|one| writeln!(text, "  bypass   {}", bypass(one)))?;
    status.hint.iter().try_for_each(|hint| writeln!(text, "  hint     {hint}"))
}

fn capture(Capture { inner, outer, keys }: Capture) -> String {
    let sides = match (inner, outer) {
        (true, true) => "inner packets and outer datagrams",
        (true, false) => "inner packets",
        (false, _) => "outer datagrams",
    };
    let keys = if keys { ", with the keys of each handshake" } else { "" };
    format!("{sides}{keys}")
}

fn bypass(Bypassed { what, by, part, into_tunnel }: &Bypassed) -> String {
    if *into_tunnel {
        return format!("{what}: {by} takes its packets");
    }
    let packets = if *part { "a part of its packets" } else { "its packets" };
    format!("{what}: {by} takes {packets} past the tunnel")
}

fn kind(device: &Device) -> String {
    match device.queues {
        1 => device.mode.clone(),
        queues => format!("{}, {queues} queues", device.mode),
    }
}

fn endpoint(status: &Status) -> String {
    match (&status.peer.endpoint, status.attempt) {
        (Some(endpoint), Some(attempt)) => format!("{endpoint}  (initiating, try {attempt})"),
        (Some(endpoint), None) => endpoint.clone(),
        (None, _) if status.state == State(Some(Kind::Connecting)) => {
            "endpoint not found yet".to_owned()
        }
        (None, _) => "endpoint unknown until the peer initiates".to_owned(),
    }
}

fn session(status: &Status) -> String {
    let psk = if status.peer.preshared_key { ", preshared key" } else { "" };
    let age = |seconds: Option<f64>| seconds.map_or_else(|| "never".to_owned(), ago);
    match &status.session {
        Some(session) => format!(
            "{} as {}{psk}{}; heard {}",
            ago(session.age_s),
            session.role,
            session.protocol.as_ref().map_or(String::new(), |protocol| format!(", {protocol}")),
            age(status.last_received_s)
        ),
        None => format!("none; last handshake {}", age(status.last_handshake_s)),
    }
}

/// The state, with its reasons and its age.
pub(crate) fn state(status: &Status) -> String {
    let (word, span) = (status.state.word(), span(status.state_changed_s));
    match status.reasons.as_slice() {
        [] => format!("{word}, for {span}"),
        reasons => format!("{word}, for {span}: {}", reasons.join(", ")),
    }
}

fn alive(status: &Status) -> String {
    let since = span(status.alive_changed_s);
    if status.alive {
        return format!("yes, for {since}");
    }
    format!("no, for {since} (dead_after {})", span(status.dead_after_s))
}

fn describe(path: &Path) -> String {
    format!(
        "round trip {:.1} ms; lost {} of {} sent, {} of {} to us",
        path.round_trip_ms, path.tx_lost, path.tx_sent, path.rx_lost, path.rx_sent
    )
}

fn write_drops(text: &mut String, status: &Status) -> std::fmt::Result {
    let drops: Vec<_> = status
        .drops
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    if status.traffic.too_big > 0 {
        writeln!(text, "  path     {} batches with too large datagrams", status.traffic.too_big)?;
    }
    if drops.is_empty() { Ok(()) } else { writeln!(text, "  drops    {}", drops.join("  ")) }
}

fn ago(seconds: f64) -> String {
    format!("{} ago", span(seconds))
}

/// A number of bytes, in a unit that makes it short.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (count as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_has_its_reasons() {
        let status = super::super::tests::sample();
        assert_eq!(state(&status), "up, for 2h 30m");
        let reasons = vec!["loss".to_owned(), "ecn".to_owned()];
        let degraded = Status { state: State(Some(Kind::Degraded)), reasons, ..status };
        assert_eq!(state(&degraded), "degraded, for 2h 30m: loss, ecn");
        let line = "\n  recent   round trip 12.0 ms, jitter 0.5 ms; lost in 1 min: 1.4 % of what we sent, \
                    0.0 % of what came; in 10 min: 0.4 % of what we sent\n";
        assert!(render(&degraded).contains(line), "{}", render(&degraded));
    }

    #[test]
    fn alive_or_not_and_since_when() {
        let status = super::super::tests::sample();
        assert_eq!(alive(&status), "yes, for 2h 30m");
        let dead = Status { alive: false, ..status };
        assert_eq!(alive(&dead), "no, for 2h 30m (dead_after 1m)");
    }

    #[test]
    fn what_is_missing_has_a_line_each() {
        let missing = vpnd_device::Missing {
            what: "route ::/0".to_owned(),
            why: "IPv6 is switched off".to_owned(),
        };
        let status = super::super::tests::sample().lacking(&[missing]);
        let text = render(&status);
        assert!(text.contains("\n  missing  route ::/0: IPv6 is switched off\n"), "{text}");
    }

    #[test]
    fn a_route_past_the_tunnel_has_a_line() {
        let bypass = vpnd_device::Bypass {
            what: "route 198.18.5.0/24".to_owned(),
            by: "route 198.18.5.0/24 via 192.0.2.254 dev eth0 metric 10".to_owned(),
            is_part: false,
            is_wide: false,
            into_tunnel: false,
        };
        let text = render(&super::super::tests::sample().bypassed_by(&[bypass]));
        let line = "\n  bypass   route 198.18.5.0/24: route 198.18.5.0/24 via 192.0.2.254 dev eth0 metric 10 \
                    takes its packets past the tunnel\n";
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn sizes_and_spans_read_well() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
        assert_eq!(ago(3725.9), "1h 2m 5s ago");
        assert_eq!(span(f64::NAN), "0s");
    }
}
