//! The measured quantities, with every single value.

use std::time::Duration;

/// One thing that is measured of a contender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Figure {
    TcpOne,
    Retransmits,
    TcpFour,
    TcpReverse,
    TcpBoth,
    Udp64,
    Udp1300,
    UdpMixed,
    IdleMedian,
    IdleP99,
    LoadMedian,
    LoadP99,
    LoadRate,
    CpuDaemons,
    CpuMachine,
    Memory,
}

/// What a figure is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Megabits,
    /// Of so many bytes of UDP payload.
    Packets(u32),
    Milliseconds,
    SecondsPerGigabyte,
    Mebibytes,
    Segments,
}

impl Figure {
    /// Those of the tables and charts, in their order; the others explain them, in JSON.
    pub(crate) const SHOWN: [Self; 14] = [
        Self::TcpOne,
        Self::TcpFour,
        Self::TcpReverse,
        Self::TcpBoth,
        Self::Udp64,
        Self::Udp1300,
        Self::UdpMixed,
        Self::IdleMedian,
        Self::IdleP99,
        Self::LoadMedian,
        Self::LoadP99,
        Self::CpuDaemons,
        Self::CpuMachine,
        Self::Memory,
    ];

    /// For people.
    pub(crate) fn title(self) -> &'static str {
        self.facts().1
    }

    /// For programs.
    pub(crate) fn key(self) -> &'static str {
        self.facts().0
    }

    pub(crate) fn unit(self) -> Unit {
        self.facts().2
    }

    fn facts(self) -> (&'static str, &'static str, Unit) {
        use Unit::{Mebibytes, Megabits, Milliseconds, Packets, SecondsPerGigabyte, Segments};
        match self {
            Self::TcpOne => ("tcp_one", "TCP, one stream", Megabits),
            Self::Retransmits => ("tcp_one_retransmits", "TCP, one stream: sent again", Segments),
            Self::TcpFour => ("tcp_four", "TCP, four streams", Megabits),
            Self::TcpReverse => ("tcp_reverse", "TCP, reverse", Megabits),
            Self::TcpBoth => ("tcp_both", "TCP, both ways", Megabits),
            Self::Udp64 => ("udp_64", "UDP, 64 bytes", Packets(64)),
            Self::Udp1300 => ("udp_1300", "UDP, 1300 bytes", Packets(1300)),
            Self::UdpMixed => ("udp_mixed", "UDP, mixed sizes", Packets(326)),
            Self::IdleMedian => ("ping_idle_median", "ping, idle: median", Milliseconds),
            Self::IdleP99 => ("ping_idle_p99", "ping, idle: p99", Milliseconds),
            Self::LoadMedian => ("ping_loaded_median", "ping, loaded: median", Milliseconds),
            Self::LoadP99 => ("ping_loaded_p99", "ping, loaded: p99", Milliseconds),
            Self::LoadRate => ("ping_loaded_tcp", "TCP beside the ping", Megabits),
            Self::CpuDaemons => ("cpu_daemons", "CPU of both daemons", SecondsPerGigabyte),
            Self::CpuMachine => ("cpu_machine", "CPU of the machine", SecondsPerGigabyte),
            Self::Memory => ("memory_peak", "peak memory", Mebibytes),
        }
    }
}

impl Unit {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Megabits => "Mbit/s",
            Self::Packets(_) => "packets/s",
            Self::Milliseconds => "ms",
            Self::SecondsPerGigabyte => "s/GB",
            Self::Mebibytes => "MiB",
            Self::Segments => "segments",
        }
    }

    /// Whether more is better; else less is.
    pub(crate) fn more_is_better(self) -> bool {
        matches!(self, Self::Megabits | Self::Packets(_))
    }

    /// A value, with as many decimals as it deserves.
    pub(crate) fn show(self, value: f64) -> String {
        match self {
            Self::Megabits | Self::Packets(_) | Self::Segments => format!("{value:.0}"),
            Self::Milliseconds | Self::SecondsPerGigabyte => format!("{value:.3}"),
            Self::Mebibytes => format!("{value:.1}"),
        }
    }

    /// A value alone; packets also as the megabits of payload that they carry.
    pub(crate) fn cell(self, value: f64) -> String {
        let shown = self.show(value);
        match self.megabits(value) {
            Some(megabits) => format!("{shown} ({megabits:.0} Mbit/s)"),
            None => shown,
        }
    }

    /// A value with its unit.
    pub(crate) fn tell(self, value: f64) -> String {
        match self {
            Self::Packets(_) => self.cell(value).replacen(' ', " packets/s ", 1),
            _ => format!("{} {}", self.show(value), self.name()),
        }
    }

    /// Of packets, the payload in Mbit/s.
    pub(crate) fn megabits(self, value: f64) -> Option<f64> {
        let Self::Packets(bytes) = self else { return None };
        Some(value * f64::from(bytes) * 8.0 / 1e6)
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

    /// Every value there is, the least first.
    pub(crate) fn values(&self, contender: &str, figure: Figure) -> Vec<f64> {
        let all = self.of(contender, figure);
        let mut values: Vec<_> = all.filter_map(|record| record.value.clone().ok()).collect();
        values.sort_by(f64::total_cmp);
        values
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
    fn packets_are_told_as_megabits_too() {
        assert_eq!(Figure::Udp1300.unit().tell(100_000.0), "100000 packets/s (1040 Mbit/s)");
        assert_eq!(Figure::IdleP99.unit().tell(0.0421), "0.042 ms");
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
