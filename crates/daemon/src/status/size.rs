//! How large packets on the path may be, and how that is known.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vpnd_protocol::peer::{Known, PathSize, Probed};
use vpnd_protocol::session::OVERHEAD;
use vpnd_tunnel::udp::packet_around;

use crate::span::span;

/// Sizes of packets between the two ends, in bytes with IP and UDP headers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PathMtu {
    /// The largest packet that is sent.
    pub(crate) packet: u16,
    /// The longest packet of the device that fits into it.
    pub(crate) inner: u16,
    /// How that is known: `assumed`, `route`, `reported`, `configured` or `probed`.
    pub(crate) known: String,
    pub(crate) since_s: f64,
    /// The largest packet that is probed.
    pub(crate) most: u16,
    /// The smallest packet that did not arrive.
    pub(crate) too_large: Option<u16>,
    /// Whether a larger size is being probed, and when one is probed next.
    pub(crate) searching: bool,
    pub(crate) next_search_s: Option<f64>,
    /// Whether the device's MTU follows.
    pub(crate) device_follows: bool,
    /// The last probes, the newest first.
    pub(crate) probes: Vec<Probe>,
}

/// One probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Probe {
    pub(crate) packet: u16,
    pub(crate) age_s: f64,
    /// How often it was sent.
    pub(crate) sent: u32,
    pub(crate) answered: bool,
}

impl PathMtu {
    pub(crate) fn new(size: &PathSize, device_follows: bool) -> Self {
        let packet = |payload| packet_around(payload, size.to);
        let probe = |(age, one): &(Duration, Probed)| Probe {
            packet: packet(one.size),
            age_s: age.as_secs_f64(),
            sent: one.sent,
            answered: one.answered,
        };
        Self {
            packet: packet(size.payload),
            inner: size.payload.saturating_sub(u16::try_from(OVERHEAD).unwrap_or(u16::MAX)),
            known: name(size.known).to_owned(),
            since_s: size.age.as_secs_f64(),
            most: packet(size.most),
            too_large: size.too_large.map(packet),
            searching: size.looks_for_more,
            next_search_s: size.next_search.map(|wait| wait.as_secs_f64()),
            device_follows,
            probes: size.probes.iter().map(probe).collect(),
        }
    }

    /// One line of `vpnd status`.
    pub(crate) fn text(&self) -> String {
        format!(
            "{} bytes, {} inside; {}, for {}",
            self.packet,
            self.inner,
            self.known,
            span(self.since_s)
        )
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let result = if self.answered { "answered" } else { "not answered" };
        write!(f, "{} bytes, {} ago, sent {}×, {result}", self.packet, span(self.age_s), self.sent)
    }
}

const fn name(known: Known) -> &'static str {
    match known {
        Known::Assumed => "assumed",
        Known::Route => "route",
        Known::Reported => "reported",
        Known::Configured => "configured",
        Known::Probed => "probed",
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use vpnd_protocol::time::BootTime;

    /// A path of 1400 bytes, found by probes.
    pub(crate) fn probed() -> PathMtu {
        let at = BootTime::from_nanos(0);
        let size = PathSize {
            to: "198.51.100.7:51820".parse().unwrap(),
            payload: 1372,
            known: Known::Probed,
            age: Duration::from_secs(180),
            most: 1472,
            too_large: Some(1373),
            looks_for_more: false,
            next_search: Some(Duration::from_secs(540)),
            probes: vec![
                (Duration::from_secs(3), Probed { size: 1373, at, sent: 3, answered: false }),
                (Duration::from_secs(5), Probed { size: 1372, at, sent: 1, answered: true }),
            ],
        };
        PathMtu::new(&size, true)
    }

    #[test]
    fn the_schema_stands() {
        let shown = serde_json::to_value(probed()).unwrap();
        let expected = serde_json::json!({
            "packet": 1400, "inner": 1340, "known": "probed", "since_s": 180.0, "most": 1500,
            "too_large": 1401, "searching": false, "next_search_s": 540.0, "device_follows": true,
            "probes": [
                { "packet": 1401, "age_s": 3.0, "sent": 3, "answered": false },
                { "packet": 1400, "age_s": 5.0, "sent": 1, "answered": true },
            ],
        });
        assert_eq!(shown, expected);
        assert_eq!(probed().text(), "1400 bytes, 1340 inside; probed, for 3m");
    }
}
