//! Round trip and loss of the last minutes.

use serde::{Deserialize, Serialize};
use vpnd_protocol::peer::{self, BothDirections, Loss};

/// The measurements. A value without any measurement is null, never zero.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Recent {
    /// The smoothed round trip time.
    pub(crate) round_trip_ms: Option<f64>,
    /// The mean difference between consecutive round trips.
    pub(crate) jitter_ms: Option<f64>,
    pub(crate) minute: Lost,
    pub(crate) ten_minutes: Lost,
}

/// How many datagrams were sent in each direction, and how many of them have not arrived.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lost {
    pub(crate) tx_sent: Option<u64>,
    pub(crate) tx_lost: Option<u64>,
    pub(crate) rx_sent: Option<u64>,
    pub(crate) rx_lost: Option<u64>,
}

impl From<peer::Recent> for Recent {
    fn from(recent: peer::Recent) -> Self {
        let millis = |span: std::time::Duration| span.as_secs_f64() * 1000.0;
        Self {
            round_trip_ms: recent.round_trip.map(|trip| millis(trip.smoothed)),
            jitter_ms: recent.round_trip.map(|trip| millis(trip.jitter)),
            minute: recent.minute.into(),
            ten_minutes: recent.ten_minutes.into(),
        }
    }
}

impl From<BothDirections> for Lost {
    fn from(BothDirections { outward, inward }: BothDirections) -> Self {
        Self {
            tx_sent: outward.map(|loss| loss.sent),
            tx_lost: outward.map(Loss::missing),
            rx_sent: inward.map(|loss| loss.sent),
            rx_lost: inward.map(Loss::missing),
        }
    }
}

impl Recent {
    /// For people; `None` if nothing was measured.
    pub(super) fn text(&self) -> Option<String> {
        let trip = self.round_trip_ms.zip(self.jitter_ms);
        let trip =
            trip.map(|(trip, jitter)| format!("round trip {trip:.1} ms, jitter {jitter:.1} ms"));
        let lost = self.lost_text().map(|lost| format!("lost {lost}"));
        let all: Vec<_> = [trip, lost].into_iter().flatten().collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// The losses alone.
    pub(crate) fn lost_text(&self) -> Option<String> {
        let minute = self.minute.text().map(|lost| format!("in 1 min: {lost}"));
        let ten = self.ten_minutes.text().map(|lost| format!("in 10 min: {lost}"));
        let all: Vec<_> = [minute, ten].into_iter().flatten().collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}

impl Lost {
    fn text(&self) -> Option<String> {
        let sent =
            share(self.tx_sent, self.tx_lost).map(|share| format!("{share} of what we sent"));
        let to_us = share(self.rx_sent, self.rx_lost).map(|share| format!("{share} of what came"));
        let both: Vec<_> = [sent, to_us].into_iter().flatten().collect();
        (!both.is_empty()).then(|| both.join(", "))
    }
}

#[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
fn share(sent: Option<u64>, lost: Option<u64>) -> Option<String> {
    let (sent, lost) = sent.zip(lost).filter(|(sent, _)| *sent > 0)?;
    Some(format!("{:.1} %", 100.0 * lost as f64 / sent as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_not_shown() {
        assert_eq!(Recent::default().text(), None);
        let minute = Lost { tx_sent: Some(200), tx_lost: Some(5), ..Lost::default() };
        let recent = Recent { minute, ..Recent::default() };
        assert_eq!(recent.text().unwrap(), "lost in 1 min: 2.5 % of what we sent");
    }
}
