//! One measurement of a tunnel.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use vpnd_tests::traffic::iperf::{self, Direction, Run};
use vpnd_tests::traffic::ping;

use crate::contender::Tunnel;
use crate::figure::{Figure, percentile};
use crate::generator::Generator;
use crate::search::{self, Length};

/// Seconds in which TCP finds its pace; they do not count.
const OMIT: u32 = 1;
/// Between two echo requests.
const PING_INTERVAL: Duration = Duration::from_millis(5);
/// Echo requests with no load.
const IDLE_PINGS: u32 = 400;

/// What is run at once, and gives one figure or several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Probe {
    TcpOne,
    TcpFour,
    TcpReverse,
    TcpBoth,
    Udp64,
    Udp1300,
    Idle,
    Loaded,
}

type Values = Vec<(Figure, f64)>;

impl Probe {
    /// In the order they run: what leaves a tunnel hot comes last.
    pub(crate) const ALL: [Self; 8] = [
        Self::Idle,
        Self::TcpOne,
        Self::TcpFour,
        Self::TcpReverse,
        Self::TcpBoth,
        Self::Loaded,
        Self::Udp64,
        Self::Udp1300,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::TcpOne => "tcp-1",
            Self::TcpFour => "tcp-4",
            Self::TcpReverse => "tcp-reverse",
            Self::TcpBoth => "tcp-both",
            Self::Udp64 => "udp-64",
            Self::Udp1300 => "udp-1300",
            Self::Idle => "ping-idle",
            Self::Loaded => "ping-loaded",
        }
    }

    /// To its own name and to that of its group, before the dash.
    pub(crate) fn answers_to(self, name: &str) -> bool {
        let group = self.name().split('-').next();
        self.name() == name || group == Some(name)
    }

    /// What it measures.
    pub(crate) fn figures(self) -> &'static [Figure] {
        match self {
            Self::TcpOne => &[Figure::TcpOne],
            Self::TcpFour => &[Figure::TcpFour],
            Self::TcpReverse => &[Figure::TcpReverse],
            Self::TcpBoth => &[Figure::TcpBoth],
            Self::Udp64 => &[Figure::Udp64],
            Self::Udp1300 => &[Figure::Udp1300],
            Self::Idle => &[Figure::IdleMedian, Figure::IdleP99],
            Self::Loaded => &[Figure::LoadMedian, Figure::LoadP99],
        }
    }

    /// Runs it.
    ///
    /// # Errors
    /// When what it runs fails, or carries nothing.
    pub(crate) fn run(self, tunnel: &Tunnel, seconds: u32) -> Result<Values> {
        let values = match self {
            Self::TcpOne => vec![tcp(tunnel, 1, Direction::Forward, seconds)?],
            Self::TcpFour => vec![tcp(tunnel, 4, Direction::Forward, seconds)?],
            Self::TcpReverse => vec![tcp(tunnel, 1, Direction::Reverse, seconds)?],
            Self::TcpBoth => vec![tcp(tunnel, 1, Direction::Both, seconds)?],
            Self::Udp64 => vec![udp(tunnel, 64)?],
            Self::Udp1300 => vec![udp(tunnel, 1300)?],
            Self::Idle => idle(tunnel)?,
            Self::Loaded => loaded(tunnel, seconds)?,
        };
        Ok(self.figures().iter().copied().zip(values).collect())
    }
}

fn tcp(tunnel: &Tunnel, streams: u32, direction: Direction, seconds: u32) -> Result<f64> {
    let run = Run { streams, direction, seconds, omit: OMIT };
    let figure = iperf::run(&tunnel.wire.a, &tunnel.wire.b, tunnel.address, run)?;
    Ok(figure.megabits)
}

fn udp(tunnel: &Tunnel, payload: usize) -> Result<f64> {
    let mut generator = Generator::new(&tunnel.wire.a, &tunnel.wire.b, tunnel.address, payload)?;
    search::highest(|rate, length| {
        let time = match length {
            Length::Short => Duration::from_millis(400),
            Length::Full => Duration::from_secs(1),
        };
        generator.attempt(rate, time)
    })
}

fn idle(tunnel: &Tunnel) -> Result<Vec<f64>> {
    let times = ping::round_trips(&tunnel.wire.a, tunnel.address, IDLE_PINGS, PING_INTERVAL)?;
    median_and_p99(&times)
}

/// Echo requests among a stream that takes all it gets, from a second after its start.
fn loaded(tunnel: &Tunnel, seconds: u32) -> Result<Vec<f64>> {
    let (a, b) = (&tunnel.wire.a, &tunnel.wire.b);
    let load = iperf::load(a, b, tunnel.address, seconds + 2 * OMIT)?;
    thread::sleep(Duration::from_secs(OMIT.into()));
    let count = seconds * 1000 / 5;
    let times = ping::round_trips(a, tunnel.address, count, PING_INTERVAL)?;
    load.finish().context("the load")?;
    median_and_p99(&times)
}

fn median_and_p99(times: &[Duration]) -> Result<Vec<f64>> {
    let at = |share| percentile(times, share).map(|time| time.as_secs_f64() * 1000.0);
    Ok(vec![at(0.5).context("no answers")?, at(0.99).context("no answers")?])
}
