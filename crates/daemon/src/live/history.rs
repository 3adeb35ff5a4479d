//! What the last answers of each tunnel have shown: rates, and events.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::ask::AskError;
use crate::status::Status;
use crate::terminal::Printable;

/// Events that are kept.
const MAX_EVENTS: usize = 8;

/// All tunnels that are watched, by their sockets.
#[derive(Debug, Default)]
pub(super) struct History(BTreeMap<PathBuf, Tunnel>);

/// One tunnel.
#[derive(Debug, Default)]
pub(super) struct Tunnel {
    /// The last answer, and when it came.
    pub(super) last: Option<(Instant, Status)>,
    /// Whether the last request was answered.
    pub(super) answers: bool,
    pub(super) rates: Option<Rates>,
    /// The newest first.
    pub(super) events: VecDeque<(Instant, String)>,
}

/// How fast counters rise, per second.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) rx_bytes: f64,
    pub(super) rx_packets: f64,
    pub(super) tx_bytes: f64,
    pub(super) tx_packets: f64,
    pub(super) drops: BTreeMap<String, f64>,
}

impl History {
    /// A tunnel has answered.
    pub(super) fn seen(&mut self, path: &Path, at: Instant, status: Status) {
        self.0.entry(path.to_owned()).or_default().seen(at, status);
    }

    /// A tunnel has not answered.
    pub(super) fn missed(&mut self, path: &Path, at: Instant, error: &AskError) {
        self.0.entry(path.to_owned()).or_default().missed(at, error);
    }

    /// The sockets of the tunnels.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.keys().map(PathBuf::as_path)
    }

    /// The tunnels, in the order of their sockets.
    pub(super) fn tunnels(&self) -> impl Iterator<Item = (&Path, &Tunnel)> {
        self.0.iter().map(|(path, tunnel)| (path.as_path(), tunnel))
    }
}

impl Tunnel {
    fn seen(&mut self, at: Instant, status: Status) {
        if let Some((before, last)) = self.last.take() {
            let events = events(&last, &status);
            events.into_iter().for_each(|event| self.happened(at, event));
            self.rates = Rates::between(&last, &status, at.saturating_duration_since(before));
        }
        if !self.answers {
            self.happened(at, format!("vpnd answers; the tunnel is {}", shown(&status)));
        }
        (self.answers, self.last) = (true, Some((at, status)));
    }

    fn missed(&mut self, at: Instant, error: &AskError) {
        if self.answers || self.events.is_empty() {
            let what = match error {
                AskError::Silent(_) => "vpnd does not answer".to_owned(),
                AskError::NotRunning(_) => "vpnd does not run".to_owned(),
                error => Printable(error).to_string(),
            };
            self.happened(at, what);
        }
        (self.answers, self.rates) = (false, None);
    }

    fn happened(&mut self, at: Instant, event: String) {
        self.events.truncate(MAX_EVENTS - 1);
        self.events.push_front((at, event));
    }
}

impl Rates {
    /// `None` if it is another process that counts, or if no time has passed.
    fn between(last: &Status, now: &Status, time: Duration) -> Option<Self> {
        if last.pid != now.pid || time.is_zero() {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
        let rate =
            |before: u64, after: u64| after.saturating_sub(before) as f64 / time.as_secs_f64();
        let (then, traffic) = (&last.traffic, &now.traffic);
        let drops = now.drops.iter().map(|(reason, count)| {
            let before = last.drops.get(reason).copied().unwrap_or(0);
            (reason.clone(), rate(before, *count))
        });
        Some(Self {
            rx_bytes: rate(then.rx_bytes, traffic.rx_bytes),
            rx_packets: rate(then.rx_packets, traffic.rx_packets),
            tx_bytes: rate(then.tx_bytes, traffic.tx_bytes),
            tx_packets: rate(then.tx_packets, traffic.tx_packets),
            drops: drops.filter(|(_, rate)| *rate > 0.0).collect(),
        })
    }
}

/// What has happened between two answers.
fn events(last: &Status, now: &Status) -> Vec<String> {
    let mut events = Vec::new();
    if last.pid != now.pid {
        events.push(format!("vpnd was restarted; the tunnel is {}", shown(now)));
        return events;
    }
    if (last.state, &last.reasons) != (now.state, &now.reasons) {
        events.push(format!("{} → {}", shown(last), shown(now)));
    }
    if last.peer.endpoint != now.peer.endpoint {
        let endpoint = now.peer.endpoint.as_deref().unwrap_or("no known address");
        events.push(format!("the peer is at {endpoint}"));
    }
    if last.peer.handshakes < now.peer.handshakes {
        events.push(format!("session {} established", now.peer.handshakes));
    }
    if last.device.mtu != now.device.mtu {
        events.push(format!("the device's MTU is {}, was {}", now.device.mtu, last.device.mtu));
    }
    let risen = now.drops.iter().filter(|(reason, count)| {
        **count > 0 && last.drops.get(*reason).copied().unwrap_or(0) == 0
    });
    events.extend(risen.map(|(reason, count)| format!("first drops: {reason} {count}")));
    events
}

/// A state with its reasons.
fn shown(status: &Status) -> String {
    match status.reasons.as_slice() {
        [] => status.state.word().to_owned(),
        reasons => format!("{} ({})", status.state.word(), reasons.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::State;
    use crate::status::tests::sample;
    use vpnd_plane::Kind;

    const PATH: &str = "/run/vpnd/site-a.sock";

    fn tunnel(history: &History) -> &Tunnel {
        history.tunnels().next().unwrap().1
    }

    fn told(history: &History) -> Vec<&str> {
        tunnel(history).events.iter().map(|(_, event)| event.as_str()).collect()
    }

    #[test]
    fn rates_are_per_second_and_of_one_process() {
        let (mut history, begin) = (History::default(), Instant::now());
        let mut status = sample();
        history.seen(Path::new(PATH), begin, status.clone());
        assert_eq!(tunnel(&history).rates, None);
        status.traffic.rx_bytes += 3000;
        *status.drops.get_mut("replayed").unwrap() += 1;
        history.seen(Path::new(PATH), begin + Duration::from_secs(2), status.clone());
        let rates = tunnel(&history).rates.clone().unwrap();
        assert_eq!((rates.rx_bytes, rates.tx_bytes), (1500.0, 0.0));
        assert_eq!(rates.drops, BTreeMap::from([("replayed".to_owned(), 0.5)]));
        status.pid += 1;
        status.traffic.rx_bytes = 0;
        history.seen(Path::new(PATH), begin + Duration::from_secs(3), status);
        assert_eq!(tunnel(&history).rates, None);
        assert_eq!(told(&history)[0], "vpnd was restarted; the tunnel is up");
    }

    #[test]
    fn events_come_from_differences() {
        let (mut history, at) = (History::default(), Instant::now());
        let path = Path::new(PATH);
        let error = AskError::NotRunning(path.to_owned());
        history.missed(path, at, &error);
        history.missed(path, at, &error);
        let mut status = sample();
        history.seen(path, at, status.clone());
        history.seen(path, at, status.clone());
        status.state = State(Some(Kind::Degraded));
        status.reasons = vec!["loss".to_owned()];
        status.peer.endpoint = Some("203.0.113.1:1".to_owned());
        status.peer.handshakes += 1;
        status.drops.insert("forged".to_owned(), 7);
        history.seen(path, at, status);
        history.missed(path, at, &AskError::Silent(path.to_owned()));
        let expected = [
            "vpnd does not answer",
            "first drops: forged 7",
            "session 98 established",
            "the peer is at 203.0.113.1:1",
            "up → degraded (loss)",
            "vpnd answers; the tunnel is up",
            "vpnd does not run",
        ];
        assert_eq!(told(&history), expected);
        (0..20).for_each(|number| {
            let status = Status { pid: number, ..sample() };
            history.seen(path, at, status);
        });
        assert_eq!(told(&history).len(), MAX_EVENTS);
    }
}
