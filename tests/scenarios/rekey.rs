//! The real 120 s timer under a stream of numbered datagrams: a new session, and no loss.

use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use vpnd_tests::capture::{Capture, Seen};
use vpnd_tests::peer::{Kind, Peer};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{INNER_A4, INNER_B4};
use vpnd_tests::traffic::ping;
use vpnd_tests::traffic::stream::{Pace, Stream};
use vpnd_tests::{Lab, Vpnd, Wire, eventually, site};

use crate::tunnel::{SOON, Tunnel};

/// REKEY_AFTER_TIME, less what passed before the streams began.
const NOT_BEFORE: Duration = Duration::from_secs(110);
/// REKEY_AFTER_TIME, the pause between two initiations, and a busy machine.
const REKEYED: Duration = Duration::from_secs(140);
/// How long the streams go on after it.
const AFTER: Duration = Duration::from_secs(5);
/// A's stream, whose datagrams no other message equals in length.
const FROM_A: Pace = Pace { per_second: 250, payload: 1000 };
/// B's.
const FROM_B: Pace = Pace { per_second: 250, payload: 900 };

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all: Vec<Scenario> = Kind::ALL
        .into_iter()
        .flat_map(|kind| [(kind, true, "vpnd initiates"), (kind, false, "vpnd responds")])
        .map(|(kind, initiates, role)| {
            let name = format!("rekey::{kind}, {role}");
            Scenario::new(name, Cost::Waits, move |lab| with_a_peer(lab, kind, initiates))
        })
        .collect();
    all.push(Scenario::new("rekey::two vpnd under load", Cost::Waits, two_vpnd));
    all
}

/// A is vpnd, B the peer.
fn with_a_peer(lab: &Lab, kind: Kind, initiates: bool) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, b) = site::pair()?;
    let (a, b) = if initiates { (a.towards(Wire::B4), b) } else { (a, b.towards(Wire::A4)) };
    let peer = Peer::start(kind, &wire.b, &b)?;
    let vpnd = Vpnd::start(&wire.a, &a)?;
    let (first, address) = if initiates { (&wire.a, INNER_B4) } else { (&wire.b, INNER_A4) };
    ping::until_answered(first, address, SOON)?;
    let told = peer.handshakes();
    let streams = Streams::start(&wire)?;
    let took = rekeyed(&vpnd)?;
    eventually("the peer logs one more session", SOON, || {
        ensure!(peer.handshakes() > told, "it logs {} and no more", peer.handshakes());
        Ok(())
    })?;
    thread::sleep(AFTER);
    let losses = streams.stop()?;
    let Losses { sent, queues, by_a, by_b, gaps } = losses;
    ensure!(by_a == 0, "vpnd lost {by_a}, gaps {gaps:?}; it says {}", vpnd.status()?);
    let others = format!("{kind} lost {by_b}, full queues {queues}, gaps {gaps:?}");
    Ok(format!("after {took:.1?}; vpnd lost 0 of {sent} both ways; {others}"))
}

/// Waits for one more session, and says how long it took.
fn rekeyed(vpnd: &Vpnd) -> Result<Duration> {
    let start = Instant::now();
    let before = vpnd.status()?.handshakes();
    vpnd.wait_for("vpnd has one more session", REKEYED, |status| status.handshakes() > before)?;
    let took = start.elapsed();
    ensure!(took >= NOT_BEFORE, "not by the timer, after {took:.1?} already");
    Ok(took)
}

/// What the kernel's queue in front of a daemon that gets no processor drops, it drops before
/// vpnd can read it: shown apart.
fn two_vpnd(lab: &Lab) -> Result<String> {
    let Tunnel { wire, a, b } = Tunnel::new(lab)?;
    let pace = Pace { per_second: 2000, payload: 800 };
    let there = Stream::start(&wire.a, &wire.b, INNER_B4, pace)?;
    let back = Stream::start(&wire.b, &wire.a, INNER_A4, pace)?;
    let before = b.status()?.handshakes();
    let took = rekeyed(&a)?;
    b.wait_for("B has one more session", SOON, |status| status.handshakes() > before)?;
    thread::sleep(AFTER);
    let (there, back) = (there.stop()?, back.stop()?);
    there.ensure_perfect()?;
    back.ensure_perfect()?;
    let (sent, queues) = (there.sent + back.sent, there.overflowed + back.overflowed);
    let all = format!("{sent} datagrams in order; {queues} dropped before vpnd, none by it");
    Ok(format!("after {took:.1?}; {all}"))
}

/// A stream each way, and the cable between that tells whose loss a loss is.
pub(crate) struct Streams {
    cable: Capture,
    from_a: Stream,
    from_b: Stream,
}

/// What became of both.
pub(crate) struct Losses {
    pub(crate) sent: u64,
    /// Before either end could read it.
    queues: u64,
    pub(crate) by_a: u64,
    pub(crate) by_b: u64,
    /// From A, and from B.
    pub(crate) gaps: [Vec<Range<u64>>; 2],
}

impl Streams {
    pub(crate) fn start(wire: &Wire) -> Result<Self> {
        Ok(Self {
            cable: Capture::start(&wire.b, "eth0", 4)?,
            from_a: Stream::start(&wire.a, &wire.b, INNER_B4, FROM_A)?,
            from_b: Stream::start(&wire.b, &wire.a, INNER_A4, FROM_B)?,
        })
    }

    pub(crate) fn stop(self) -> Result<Losses> {
        let (a, b) = (self.from_a.stop()?, self.from_b.stop()?);
        let seen = self.cable.stop()?;
        let (left_a, left_b) = (crossed(&seen, Wire::A4, FROM_A), crossed(&seen, Wire::B4, FROM_B));
        Ok(Losses {
            sent: a.sent + b.sent,
            queues: a.overflowed + b.overflowed,
            by_a: a.left().abs_diff(left_a) + left_b.abs_diff(b.received),
            by_b: b.left().abs_diff(left_b) + left_a.abs_diff(a.received),
            gaps: [a.gaps, b.gaps],
        })
    }
}

/// Datagrams of one stream on the cable, told by their length: header, IP and UDP headers with
/// the payload padded to 16, tag.
fn crossed(seen: &Seen, from: &str, pace: Pace) -> u64 {
    let len = 16 + (28 + pace.payload).next_multiple_of(16) + 16;
    let own = |from_address: String| from_address == from;
    let count = seen.count(|datagram| datagram.len == len && own(datagram.from.to_string()));
    u64::try_from(count).unwrap_or(u64::MAX)
}
