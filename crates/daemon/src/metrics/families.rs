//! The metrics of one tunnel, from its status. What is not known has no sample.
//!
//! A point in time is a gauge of seconds since 1970, as Prometheus's own metrics have it: an alert compares it with
//! `time()`. Every sample has the labels `tunnel` and `device`.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use vpnd_plane::{Kind, Reason};

use crate::status::{Lost, Status};

const PREFIX: &str = "vpnd";

/// The metrics as OpenMetrics.
pub(super) fn encode(snapshot: Snapshot) -> String {
    let status = &snapshot.status;
    let labels = [("tunnel", status.name.clone()), ("device", status.device.name.clone())];
    let labels = labels.map(|(name, value)| (name.into(), value.into()));
    let mut registry = Registry::with_prefix_and_labels(PREFIX, labels.into_iter());
    registry.register_collector(Box::new(snapshot));
    let mut text = String::new();
    // Writing to a string does not fail.
    let _written = prometheus_client::encoding::text::encode(&mut text, &registry);
    text
}

/// A status, and when it was taken.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) status: Status,
    /// When the daemon was started.
    pub(super) started: SystemTime,
    pub(super) now: SystemTime,
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        self.identity(&mut page)?;
        self.state(&mut page)?;
        self.session(&mut page)?;
        self.path(&mut page)?;
        self.traffic(&mut page)?;
        self.faults(&mut page)
    }
}

impl Snapshot {
    fn identity(&self, page: &mut Page<'_>) -> fmt::Result {
        let Status { version, peer, device, .. } = &self.status;
        page.info("build", "The release of vpnd", &[("version", version)])?;
        let labels = [("mode", device.mode.as_str()), ("protocol", &peer.protocol)];
        page.info("tunnel", "What the tunnel carries and speaks", &labels)?;
        page.instant("start", "When the daemon was started", since_1970(self.started))
    }

    fn state(&self, page: &mut Page<'_>) -> fmt::Result {
        let Status { state, reasons, alive, state_changed_s, alive_changed_s, .. } = &self.status;
        let states = Kind::ALL.map(|kind| (kind.name(), truth(state.0 == Some(kind))));
        page.set("state", "Which state the tunnel is in: 1 for one of them", "state", &states)?;
        let since = self.ago(Some(*state_changed_s));
        page.instant("state_changed", "When this state began", since)?;
        let is_one = |reason: Reason| truth(reasons.iter().any(|name| name == reason.name()));
        let all = Reason::ALL.map(|reason| (reason.name(), is_one(reason)));
        page.set("degraded", "Why the tunnel is degraded: 1 for each reason", "reason", &all)?;
        page.gauge("peer_alive", "Whether the peer is alive", None, Some(truth(*alive)))?;
        let since = self.ago(Some(*alive_changed_s));
        page.instant("peer_alive_changed", "When the peer became alive, or dead", since)
    }

    fn session(&self, page: &mut Page<'_>) -> fmt::Result {
        let Status { peer, session, attempt, unconfirmed_answers, .. } = &self.status;
        page.counter("handshakes", "Sessions that were established", None, peer.handshakes)?;
        let age = session.as_ref().map(|session| session.age_s);
        page.gauge("session_age", "The age of the session", Some(Unit::Seconds), age)?;
        let last = self.ago(self.status.last_handshake_s);
        page.instant("last_handshake", "When the last session was established", last)?;
        let last = self.ago(self.status.last_received_s);
        page.instant("last_received", "When something of the peer was last received", last)?;
        let tries = f64::from(attempt.unwrap_or(0));
        let help = "The number of the present try of a handshake; 0 if there is none";
        page.gauge("handshake_try", help, None, Some(tries))?;
        let help = "Consecutive responses of ours to a handshake that the peer did not use";
        page.gauge("unconfirmed_responses", help, None, Some(f64::from(*unconfirmed_answers)))
    }

    fn path(&self, page: &mut Page<'_>) -> fmt::Result {
        let Status { recent, path_mtu, device, peer, .. } = &self.status;
        let seconds = |millis: f64| millis / 1000.0;
        let unit = || Some(Unit::Seconds);
        let trip = recent.round_trip_ms.map(seconds);
        page.gauge("round_trip", "The smoothed round trip time to the peer", unit(), trip)?;
        let help = "The mean difference between consecutive round trips";
        page.gauge("round_trip_jitter", help, unit(), recent.jitter_ms.map(seconds))?;
        self.loss(page)?;
        let bytes = || Some(Unit::Bytes);
        let (packet, inner) = path_mtu.as_ref().map(|size| (size.packet, size.inner)).unzip();
        let help = "The largest packet that is sent to the peer, with IP and UDP headers";
        page.gauge("path_mtu", help, bytes(), packet.map(f64::from))?;
        let help = "The longest packet of the device that fits into the largest packet to the peer";
        page.gauge("path_mtu_inner", help, bytes(), inner.map(f64::from))?;
        page.gauge("device_mtu", "The MTU of the device", bytes(), Some(device.mtu.into()))?;
        let help = "The MTU of the peer's device, if it announces one";
        page.gauge("peer_device_mtu", help, bytes(), peer.mtu.map(f64::from))
    }

    /// The share of lost datagrams, of each direction and in each window.
    fn loss(&self, page: &mut Page<'_>) -> fmt::Result {
        let recent = &self.status.recent;
        let mut samples = Vec::new();
        for (window, lost) in [("1m", &recent.minute), ("10m", &recent.ten_minutes)] {
            for (direction, ratio) in [(TRANSMIT, transmit(lost)), (RECEIVE, receive(lost))] {
                let labels = [("direction", direction), ("window", window)];
                samples.extend(ratio.map(|ratio| (labels, ratio)));
            }
        }
        let help = "The share of the datagrams of this window that were lost on the path";
        page.gauges("loss_ratio", help, &samples)
    }

    fn traffic(&self, page: &mut Page<'_>) -> fmt::Result {
        let traffic = &self.status.traffic;
        let bytes = [(RECEIVE, traffic.rx_bytes), (TRANSMIT, traffic.tx_bytes)];
        let help = "UDP payload received from the peer, and sent to it";
        page.counters("traffic", help, Some(Unit::Bytes), "direction", &bytes)?;
        let packets = [(RECEIVE, traffic.rx_packets), (TRANSMIT, traffic.tx_packets)];
        let help = "Packets inside that were received from the peer, and sent to it";
        page.counters("traffic_packets", help, None, "direction", &packets)?;
        let help = "Batches that had to be sent one datagram at a time, because one was too large";
        page.counter("too_big_batches", help, None, traffic.too_big)?;
        let drops: Vec<_> =
            self.status.drops.iter().map(|(reason, count)| (reason.as_str(), *count)).collect();
        let help = "Datagrams and packets that were dropped, by reason";
        page.counters("drops", help, None, "reason", &drops)
    }

    #[expect(clippy::cast_precision_loss, reason = "these numbers are small")]
    fn faults(&self, page: &mut Page<'_>) -> fmt::Result {
        let Status { missing, bypassed, .. } = &self.status;
        let help = "Addresses, rules and routes that the device should have and does not have";
        page.gauge("missing_settings", help, None, Some(missing.len() as f64))?;
        let help = "Routes of other programs through which packets bypass the tunnel";
        let bypassed = bypassed.iter().filter(|one| !one.into_tunnel).count();
        page.gauge("bypassing_routes", help, None, Some(bypassed as f64))
    }

    /// The point in time this many seconds before the status was taken, in seconds since 1970.
    fn ago(&self, seconds: Option<f64>) -> Option<f64> {
        let age = Duration::try_from_secs_f64(seconds?).ok()?;
        since_1970(self.now.checked_sub(age)?)
    }
}

/// To a millisecond; two clocks that are read one after the other are no more exact.
fn since_1970(at: SystemTime) -> Option<f64> {
    let since = at.duration_since(UNIX_EPOCH).ok()?;
    Some((since.as_secs_f64() * 1000.0).round() / 1000.0)
}

const RECEIVE: &str = "receive";
const TRANSMIT: &str = "transmit";

fn transmit(lost: &Lost) -> Option<f64> {
    ratio(lost.tx_lost, lost.tx_sent)
}

fn receive(lost: &Lost) -> Option<f64> {
    ratio(lost.rx_lost, lost.rx_sent)
}

#[expect(clippy::cast_precision_loss, reason = "a ratio")]
fn ratio(lost: Option<u64>, sent: Option<u64>) -> Option<f64> {
    let (lost, sent) = lost.zip(sent).filter(|(_, sent)| *sent > 0)?;
    Some(lost as f64 / sent as f64)
}

fn truth(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}

/// The families, one after the other.
struct Page<'e>(DescriptorEncoder<'e>);

impl Page<'_> {
    fn info(&mut self, name: &str, help: &str, labels: &[(&str, &str)]) -> fmt::Result {
        let labels: Vec<_> =
            labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let info = Info::new(labels);
        info.encode(self.0.encode_descriptor(name, help, None, info.metric_type())?)
    }

    fn counter(&mut self, name: &str, help: &str, unit: Option<Unit>, value: u64) -> fmt::Result {
        let counter = ConstCounter::new(value);
        let kind = counter.metric_type();
        counter.encode(self.0.encode_descriptor(name, help, unit.as_ref(), kind)?)
    }

    /// A counter for each value of a label.
    fn counters(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        label: &str,
        samples: &[(&str, u64)],
    ) -> fmt::Result {
        let kind = ConstCounter::new(0_u64).metric_type();
        let mut family = self.0.encode_descriptor(name, help, unit.as_ref(), kind)?;
        samples.iter().try_for_each(|(value, count)| {
            ConstCounter::new(*count).encode(family.encode_family(&[(label, *value)])?)
        })
    }

    /// Without a value there is no family.
    fn gauge(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        value: Option<f64>,
    ) -> fmt::Result {
        let Some(value) = value else { return Ok(()) };
        let gauge = ConstGauge::new(value);
        let kind = gauge.metric_type();
        gauge.encode(self.0.encode_descriptor(name, help, unit.as_ref(), kind)?)
    }

    /// A point in time, in seconds since 1970.
    fn instant(&mut self, name: &str, help: &str, at: Option<f64>) -> fmt::Result {
        self.gauge(&format!("{name}_timestamp"), help, Some(Unit::Seconds), at)
    }

    /// A gauge for each set of labels.
    fn gauges<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: &[([(&str, &str); N], f64)],
    ) -> fmt::Result {
        if samples.is_empty() {
            return Ok(());
        }
        let kind = ConstGauge::new(0.0).metric_type();
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        samples.iter().try_for_each(|(labels, value)| {
            ConstGauge::new(*value).encode(family.encode_family(labels)?)
        })
    }

    /// A gauge for each value of a label.
    fn set(&mut self, name: &str, help: &str, label: &str, samples: &[(&str, f64)]) -> fmt::Result {
        let samples: Vec<_> =
            samples.iter().map(|(value, holds)| ([(label, *value)], *holds)).collect();
        self.gauges(name, help, &samples)
    }
}
