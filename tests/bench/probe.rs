//! One measurement of a tunnel.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use vpnd_tests::Process;
use vpnd_tests::traffic::iperf::{self, Direction, Run};
use vpnd_tests::traffic::ping;

use crate::contender::Tunnel;
use crate::figure::{Figure, percentile};
use crate::generator::Generator;
use crate::machine;
use crate::search::{self, Length};

/// Seconds in which TCP finds its pace; they do not count.
const OMIT: u32 = 1;
/// Between two echo requests.
const PING_INTERVAL: Duration = Duration::from_millis(5);
/// Echo requests with no load.
const IDLE_PINGS: u32 = 400;

/// Seven small datagrams, four middling ones and a large one, as the traffic of a site is mixed.
const MIXED: [usize; 12] = [64, 540, 64, 64, 540, 64, 1300, 64, 540, 64, 540, 64];

/// What is run at once, and gives one figure or several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Probe {
    TcpOne,
    TcpFour,
    TcpReverse,
    TcpBoth,
    Udp64,
    Udp1300,
    UdpMixed,
    Idle,
    Loaded,
    /// How the length of the device's queue trades delay for rate; of vpnd alone.
    Queue,
    Memory,
}

type Values = Vec<(Figure, f64)>;

impl Probe {
    /// In the order they run: what leaves a tunnel hot comes last.
    pub(crate) const ALL: [Self; 11] = [
        Self::Idle,
        Self::TcpOne,
        Self::TcpFour,
        Self::TcpReverse,
        Self::TcpBoth,
        Self::Loaded,
        Self::Queue,
        Self::Udp64,
        Self::Udp1300,
        Self::UdpMixed,
        Self::Memory,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::TcpOne => "tcp-1",
            Self::TcpFour => "tcp-4",
            Self::TcpReverse => "tcp-reverse",
            Self::TcpBoth => "tcp-both",
            Self::Udp64 => "udp-64",
            Self::Udp1300 => "udp-1300",
            Self::UdpMixed => "udp-mixed",
            Self::Idle => "ping-idle",
            Self::Loaded => "ping-loaded",
            Self::Queue => "ping-queue",
            Self::Memory => "memory",
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
            Self::TcpOne => {
                &[Figure::TcpOne, Figure::Retransmits, Figure::CpuDaemons, Figure::CpuMachine]
            }
            Self::TcpFour => &[Figure::TcpFour],
            Self::TcpReverse => &[Figure::TcpReverse],
            Self::TcpBoth => &[Figure::TcpBoth],
            Self::Udp64 => &[Figure::Udp64],
            Self::Udp1300 => &[Figure::Udp1300],
            Self::UdpMixed => &[Figure::UdpMixed],
            Self::Idle => &[Figure::IdleMedian, Figure::IdleP99],
            Self::Loaded | Self::Queue => &[Figure::LoadMedian, Figure::LoadP99, Figure::LoadRate],
            Self::Memory => &[Figure::Memory],
        }
    }

    /// Runs it. The bare cable has no daemon, and so no figures of one.
    ///
    /// # Errors
    /// When what it runs fails, or carries nothing.
    pub(crate) fn run(self, tunnel: &Tunnel, seconds: u32) -> Result<Values> {
        let tcp = |figure, streams, direction| {
            let run = Run { streams, direction, seconds, omit: OMIT };
            Ok(vec![(figure, through(tunnel, run)?.megabits)])
        };
        match self {
            Self::TcpOne => one_stream(tunnel, seconds),
            Self::TcpFour => tcp(Figure::TcpFour, 4, Direction::Forward),
            Self::TcpReverse => tcp(Figure::TcpReverse, 1, Direction::Reverse),
            Self::TcpBoth => tcp(Figure::TcpBoth, 1, Direction::Both),
            Self::Udp64 => Ok(vec![(Figure::Udp64, udp(tunnel, &[64])?)]),
            Self::Udp1300 => Ok(vec![(Figure::Udp1300, udp(tunnel, &[1300])?)]),
            Self::UdpMixed => Ok(vec![(Figure::UdpMixed, udp(tunnel, &MIXED)?)]),
            Self::Idle => idle(tunnel),
            Self::Loaded | Self::Queue => loaded(tunnel, seconds),
            Self::Memory => memory(tunnel),
        }
    }
}

fn through(tunnel: &Tunnel, run: Run) -> Result<iperf::Figure> {
    iperf::run(&tunnel.wire.a, &tunnel.wire.b, tunnel.address, run)
}

/// The rate, and what it costs: the daemons' own time, and that of the whole machine, which has
/// the kernel's work for them too.
fn one_stream(tunnel: &Tunnel, seconds: u32) -> Result<Values> {
    let before = (tunnel.processor_time()?, machine::busy()?);
    let run = Run { omit: OMIT, ..Run::one_stream(seconds) };
    let seen = through(tunnel, run)?;
    let after = (tunnel.processor_time()?, machine::busy()?);
    let cost = |time: Duration| time.as_secs_f64() / seen.gigabytes;
    let mut values = vec![
        (Figure::TcpOne, seen.megabits),
        (Figure::Retransmits, seen.retransmits as f64),
        (Figure::CpuMachine, cost(after.1.saturating_sub(before.1))),
    ];
    if !tunnel.daemons.is_empty() {
        values.push((Figure::CpuDaemons, cost(after.0.saturating_sub(before.0))));
    }
    Ok(values)
}

fn udp(tunnel: &Tunnel, payloads: &'static [usize]) -> Result<f64> {
    let mut generator = Generator::new(&tunnel.wire.a, &tunnel.wire.b, tunnel.address, payloads)?;
    search::highest(|rate, length| {
        let time = match length {
            Length::Short => Duration::from_millis(400),
            Length::Full => Duration::from_secs(1),
        };
        generator.attempt(rate, time)
    })
}

fn idle(tunnel: &Tunnel) -> Result<Values> {
    let times = ping::round_trips(&tunnel.wire.a, tunnel.address, IDLE_PINGS, PING_INTERVAL)?;
    Ok(vec![(Figure::IdleMedian, at(&times, 0.5)?), (Figure::IdleP99, at(&times, 0.99)?)])
}

/// Echo requests among a stream that takes all it gets, from a second after its start.
fn loaded(tunnel: &Tunnel, seconds: u32) -> Result<Values> {
    let (a, b) = (&tunnel.wire.a, &tunnel.wire.b);
    let load = iperf::load(a, b, tunnel.address, seconds + 2 * OMIT)?;
    thread::sleep(Duration::from_secs(OMIT.into()));
    let count = seconds * 1000 / 5;
    let times = ping::round_trips(a, tunnel.address, count, PING_INTERVAL)?;
    let load = load.finish().context("the load")?;
    Ok(vec![
        (Figure::LoadMedian, at(&times, 0.5)?),
        (Figure::LoadP99, at(&times, 0.99)?),
        (Figure::LoadRate, load.megabits),
    ])
}

/// Of the larger daemon, since its start: so it is asked for last.
fn memory(tunnel: &Tunnel) -> Result<Values> {
    let peaks: Result<Vec<u64>> = tunnel.daemons.iter().map(Process::peak_resident).collect();
    let largest = peaks?.into_iter().max();
    Ok(largest.map(|bytes| (Figure::Memory, bytes as f64 / 1_048_576.0)).into_iter().collect())
}

/// A percentile, in milliseconds.
fn at(times: &[Duration], share: f64) -> Result<f64> {
    Ok(percentile(times, share).context("no answers")?.as_secs_f64() * 1000.0)
}
