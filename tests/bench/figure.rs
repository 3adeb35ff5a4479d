//! What is measured, and every value that was.

use std::time::Duration;

/// One thing that is measured of a contender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Figure {
    TcpOne,
    TcpFour,
    TcpReverse,
    TcpBoth,
    Udp64,
    Udp1300,
    IdleMedian,
    IdleP99,
    LoadMedian,
    LoadP99,
}

impl Figure {
    /// In the order of every table.
    pub(crate) const ALL: [Self; 10] = [
        Self::TcpOne,
        Self::TcpFour,
        Self::TcpReverse,
        Self::TcpBoth,
        Self::Udp64,
        Self::Udp1300,
        Self::IdleMedian,
        Self::IdleP99,
        Self::LoadMedian,
        Self::LoadP99,
    ];

    /// For people.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::TcpOne => "TCP, one stream",
            Self::TcpFour => "TCP, four streams",
            Self::TcpReverse => "TCP, reverse",
            Self::TcpBoth => "TCP, both ways",
            Self::Udp64 => "UDP, 64 bytes",
            Self::Udp1300 => "UDP, 1300 bytes",
            Self::IdleMedian => "ping, idle: median",
            Self::IdleP99 => "ping, idle: p99",
            Self::LoadMedian => "ping, loaded: median",
            Self::LoadP99 => "ping, loaded: p99",
        }
    }

    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::TcpOne | Self::TcpFour | Self::TcpReverse | Self::TcpBoth => "Mbit/s",
            Self::Udp64 | Self::Udp1300 => "packets/s",
            Self::IdleMedian | Self::IdleP99 | Self::LoadMedian | Self::LoadP99 => "ms",
        }
    }

    /// Whether more is better; else less is.
    pub(crate) fn more_is_better(self) -> bool {
        matches!(self.unit(), "Mbit/s" | "packets/s")
    }

    /// A value as tables show it.
    pub(crate) fn show(self, value: f64) -> String {
        let decimals = if self.unit() == "ms" { 3 } else { 0 };
        format!("{value:.decimals$}")
    }
}

/// One value of one round, or why there is none.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) round: u32,
    pub(crate) contender: String,
    pub(crate) figure: Figure,
    pub(crate) value: Result<f64, String>,
}

/// Everything measured so far.
#[derive(Debug, Default)]
pub(crate) struct Records(pub(crate) Vec<Record>);

impl Records {
    /// The middle of the rounds that have a value.
    pub(crate) fn median(&self, contender: &str, figure: Figure) -> Option<f64> {
        let all = self.of(contender, figure);
        median(all.filter_map(|record| record.value.clone().ok()).collect())
    }

    /// Whether it was measured at all, well or badly.
    pub(crate) fn tried(&self, contender: &str, figure: Figure) -> bool {
        self.of(contender, figure).next().is_some()
    }

    /// Those without a value.
    pub(crate) fn failures(&self) -> impl Iterator<Item = (&Record, &str)> {
        let failed = |record| Some((record, Record::reason(record)?));
        self.0.iter().filter_map(failed)
    }

    fn of(&self, contender: &str, figure: Figure) -> impl Iterator<Item = &Record> {
        let wanted =
            move |record: &&Record| record.contender == contender && record.figure == figure;
        self.0.iter().filter(wanted)
    }
}

impl Record {
    fn reason(&self) -> Option<&str> {
        self.value.as_ref().err().map(String::as_str)
    }
}

/// The middle; of an even number, the mean of the two there.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let (upper, lower) = (values.len() / 2, values.len().checked_sub(1)? / 2);
    Some(f64::midpoint(values[lower], values[upper]))
}

/// The smallest value that at least `share` of all do not exceed (the nearest-rank percentile).
pub(crate) fn percentile(times: &[Duration], share: f64) -> Option<Duration> {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let rank = |(place, _): &(usize, &Duration)| (place + 1) as f64 >= share * sorted.len() as f64;
    sorted.iter().enumerate().find(rank).map(|(_, time)| *time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0]), Some(2.5));
        assert_eq!(median(vec![]), None);
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let times: Vec<_> = (1..=200).rev().map(Duration::from_millis).collect();
        assert_eq!(percentile(&times, 0.99), Some(Duration::from_millis(198)));
        assert_eq!(percentile(&times, 0.5), Some(Duration::from_millis(100)));
        assert_eq!(percentile(&times[..1], 0.99), Some(Duration::from_millis(200)));
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn rounds_without_a_value_do_not_count() {
        let record = |round, value| Record {
            round,
            contender: "x".to_owned(),
            figure: Figure::TcpOne,
            value,
        };
        let failed = Err("broke".to_owned());
        let records = Records(vec![record(1, Ok(5.0)), record(2, failed), record(3, Ok(7.0))]);
        assert_eq!(records.median("x", Figure::TcpOne), Some(6.0));
        assert_eq!(
            records.failures().map(|(record, why)| (record.round, why)).next(),
            Some((2, "broke"))
        );
        assert!(records.tried("x", Figure::TcpOne) && !records.tried("x", Figure::Udp64));
    }
}
