//! The page: some lines for each tunnel. What matters most comes first in each line, as narrow terminals cut it.

use std::path::Path;
use std::time::Instant;

use crate::span::span;
use crate::status::{Status, text};
use crate::terminal::Printable;

use super::history::{History, Rates, Tunnel};

/// The lines, as they are at `now`.
pub(super) fn lines(history: &History, now: Instant) -> Vec<String> {
    let mut lines = vec!["vpnd status --watch: every second; Ctrl-C ends".to_owned()];
    for (path, tunnel) in history.tunnels() {
        lines.push(String::new());
        lines.extend(tunnel_lines(path, tunnel, now));
    }
    if history.tunnels().next().is_none() {
        lines.extend([String::new(), "no tunnel runs here".to_owned()]);
    }
    lines
}

fn tunnel_lines(path: &Path, tunnel: &Tunnel, now: Instant) -> Vec<String> {
    let mut lines = match &tunnel.last {
        Some((_, status)) => vec![head(status, tunnel.answers)],
        None => vec![format!("{}  NO DAEMON", Printable(path.display()))],
    };
    if let Some((_, status)) = tunnel.last.as_ref().filter(|_| tunnel.answers) {
        lines.extend(body(status, tunnel.rates.as_ref()));
    }
    let events = tunnel.events.iter().enumerate().map(|(index, (at, event))| {
        let title = if index == 0 { "events" } else { "" };
        let ago = span(now.saturating_duration_since(*at).as_secs_f64());
        format!("  {title:<8} {ago} ago: {event}")
    });
    lines.extend(events);
    lines
}

fn head(status: &Status, answers: bool) -> String {
    let state = if answers { status.state.word().to_uppercase() } else { "NO DAEMON".to_owned() };
    let endpoint = status.peer.endpoint.as_deref().unwrap_or("peer's address unknown");
    let device = &status.device;
    format!("{}  {state}  {endpoint}  {} mtu {}", status.name, device.name, device.mtu)
}

fn body(status: &Status, rates: Option<&Rates>) -> Vec<String> {
    let traffic = &status.traffic;
    let [rx, tx] = [
        (traffic.rx_bytes, rates.map(|rates| (rates.rx_bytes, rates.rx_packets))),
        (traffic.tx_bytes, rates.map(|rates| (rates.tx_bytes, rates.tx_packets))),
    ]
    .map(|(total, rate)| flow(rate, total));
    let recent = &status.recent;
    let trip = recent.round_trip_ms.zip(recent.jitter_ms);
    let trip = trip.map(|(trip, jitter)| format!("{trip:.1} ms, jitter {jitter:.1} ms"));
    let titled = [
        ("state", Some(text::state(status))),
        ("rx", Some(rx)),
        ("tx", Some(tx)),
        ("rtt", trip),
        ("lost", recent.lost_text()),
        ("drops", drops(status, rates)),
        ("hint", status.hint.clone()),
    ];
    let line = |(title, text): (&str, Option<String>)| Some(format!("  {title:<8} {}", text?));
    titled.into_iter().filter_map(line).collect()
}

/// A rate, once there are two answers, and the total.
fn flow(rate: Option<(f64, f64)>, total: u64) -> String {
    let total = text::bytes(total);
    match rate {
        Some((bytes, packets)) => {
            format!("{}  {packets:.0} packets/s  ({total} in all)", bits(bytes * 8.0))
        }
        None => format!("…  ({total} in all)"),
    }
}

/// Drops that rise come first, with their rate.
fn drops(status: &Status, rates: Option<&Rates>) -> Option<String> {
    let rate = |reason: &String| rates.and_then(|rates| rates.drops.get(reason)).copied();
    let counted = status.drops.iter().filter(|(_, count)| **count > 0);
    let (rising, others): (Vec<_>, Vec<_>) =
        counted.partition(|(reason, _)| rate(reason).is_some());
    let all: Vec<_> = rising
        .into_iter()
        .chain(others)
        .map(|(reason, count)| match rate(reason) {
            Some(rate) => format!("{reason} {count} (+{rate:.0}/s)"),
            None => format!("{reason} {count}"),
        })
        .collect();
    (!all.is_empty()).then(|| all.join("  "))
}

fn bits(rate: f64) -> String {
    const UNITS: [&str; 4] = ["bit/s", "kbit/s", "Mbit/s", "Gbit/s"];
    let (mut rate, mut unit) = (rate, 0);
    while rate >= 1000.0 && unit + 1 < UNITS.len() {
        rate /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{rate:.0} bit/s") } else { format!("{rate:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::sample;
    use std::time::Duration;

    #[test]
    fn the_page_of_a_tunnel() {
        let (mut history, begin) = (History::default(), Instant::now());
        let path = Path::new("/run/vpnd/site-a.sock");
        history.seen(path, begin, sample());
        let mut status = sample();
        status.traffic.rx_bytes += 1_250_000;
        status.traffic.rx_packets += 1000;
        *status.drops.get_mut("replayed").unwrap() += 3;
        status.drops.insert("a_first".to_owned(), 1);
        history.seen(path, begin + Duration::from_secs(1), status);
        let shown = lines(&history, begin + Duration::from_secs(6));
        let expected = [
            "vpnd status --watch: every second; Ctrl-C ends",
            "",
            "site-a  UP  198.51.100.7:51820  vpn-site-a mtu 1420",
            "  state    up, for 2h 30m",
            "  rx       10.0 Mbit/s  1000 packets/s  (1.0 GiB in all)",
            "  tx       0 bit/s  0 packets/s  (1.5 KiB in all)",
            "  rtt      12.0 ms, jitter 0.5 ms",
            "  lost     in 1 min: 1.4 % of what we sent, 0.0 % of what came; in 10 min: 0.4 % of what we sent",
            "  drops    a_first 1 (+1/s)  replayed 5 (+3/s)",
            "  events   5s ago: first drops: a_first 1",
            "           6s ago: vpnd answers; the tunnel is up",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn what_does_not_run_is_shown_as_such() {
        let (mut history, begin) = (History::default(), Instant::now());
        assert_eq!(lines(&history, begin)[2], "no tunnel runs here");
        let path = Path::new("/run/vpnd/site-a.sock");
        let error = crate::ask::AskError::NotRunning(path.to_owned());
        history.missed(path, begin, &error);
        let shown = lines(&history, begin);
        assert_eq!(shown[2], "/run/vpnd/site-a.sock  NO DAEMON");
        assert_eq!(shown[3], "  events   0s ago: vpnd does not run");
        history.seen(path, begin, sample());
        history.missed(path, begin, &error);
        assert!(lines(&history, begin)[2].starts_with("site-a  NO DAEMON  "));
    }
}
