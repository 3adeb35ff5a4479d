//! A stream of numbered UDP datagrams, and which of them arrived.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::{Host, sys};

/// How long the receiver waits after the last datagram.
const LINGER: Duration = Duration::from_millis(1500);
/// How often it checks whether to end.
const LOOK: Duration = Duration::from_millis(50);

/// The rate and the size.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Datagrams a second.
    pub per_second: u32,
    /// UDP payload of each, at least 8 bytes.
    pub payload: usize,
}

/// The result of a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Datagrams accepted by the kernel for sending.
    pub sent: u64,
    /// Datagrams that the kernel refused to send, and its last reason. Their numbers are used again.
    pub refused: (u64, Option<String>),
    /// Those of them that were dropped because a device's queue was full.
    pub overflowed: u64,
    /// Different datagrams that arrived.
    pub received: u64,
    /// Arrivals of a datagram that had arrived before.
    pub duplicated: u64,
    /// Arrivals after one with a higher number.
    pub reordered: u64,
    /// Arrivals with wrong contents.
    pub corrupted: u64,
    /// The numbers that never arrived.
    pub gaps: Vec<Range<u64>>,
}

impl Tally {
    /// The number of datagrams that left and never arrived.
    pub fn lost(&self) -> u64 {
        self.left().saturating_sub(self.received)
    }

    /// The number of datagrams that the reader of the queue had to carry.
    pub fn left(&self) -> u64 {
        self.sent.saturating_sub(self.overflowed)
    }

    /// # Errors
    /// Unless all datagrams that left arrived once, in order and unchanged.
    pub fn ensure_perfect(&self) -> Result<()> {
        let bad = self.lost() + self.duplicated + self.reordered + self.corrupted;
        ensure!(bad == 0 && self.sent > 0, "not a perfect stream: {self:?}");
        Ok(())
    }
}

/// A running stream.
#[derive(Debug)]
pub struct Stream {
    from: Host,
    drops_before: u64,
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Sent>,
    receiver: JoinHandle<Arrivals>,
}

impl Stream {
    /// Starts to send from one host to an address of another.
    ///
    /// # Errors
    /// When a socket cannot be made.
    pub fn start(from: &Host, to: &Host, address: &str, pace: Pace) -> Result<Self> {
        let address: IpAddr = address.parse()?;
        let inbox = to.enter(|| receiving_socket(address))?;
        let target = inbox.local_addr()?;
        let outbox = from.enter(|| Ok(UdpSocket::bind(any_of(address))?))?;
        let drops_before = from.queue_drops()?;
        let stop = Arc::new(AtomicBool::new(false));
        let sending = Arc::clone(&stop);
        let sender = thread::spawn(move || send(&outbox, target, pace, &sending));
        let receiving = Arc::clone(&stop);
        let receiver = thread::spawn(move || receive(&inbox, pace.payload, &receiving));
        Ok(Self { from: from.clone(), drops_before, stop, sender, receiver })
    }

    /// Stops sending, waits for datagrams in flight, and counts.
    ///
    /// # Errors
    /// When a thread panicked.
    pub fn stop(self) -> Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().map_err(|_panic| anyhow!("the sender panicked"))?;
        let arrivals = self.receiver.join().map_err(|_panic| anyhow!("the receiver panicked"))?;
        let overflowed = self.from.queue_drops()?.saturating_sub(self.drops_before);
        Ok(Tally { overflowed, refused: sent.refused, ..arrivals.tally(sent.number) })
    }
}

#[derive(Debug, Default)]
struct Arrivals {
    seen: Vec<bool>,
    highest: u64,
    counts: Tally,
}

impl Arrivals {
    fn record(&mut self, datagram: &[u8], expected: usize) {
        let Some(number) = number_of(datagram).filter(|_| intact(datagram, expected)) else {
            self.counts.corrupted += 1;
            return;
        };
        let Ok(index) = usize::try_from(number) else { return };
        if self.seen.len() <= index {
            self.seen.resize(index + 1, false);
        }
        if std::mem::replace(&mut self.seen[index], true) {
            self.counts.duplicated += 1;
            return;
        }
        self.counts.received += 1;
        self.counts.reordered += u64::from(number < self.highest);
        self.highest = self.highest.max(number);
    }

    fn tally(mut self, sent: u64) -> Tally {
        self.seen.resize(usize::try_from(sent).unwrap_or(usize::MAX), false);
        Tally { sent, gaps: gaps(&self.seen), ..self.counts }
    }
}

fn gaps(seen: &[bool]) -> Vec<Range<u64>> {
    let mut gaps: Vec<Range<u64>> = Vec::new();
    for (number, _) in (0_u64..).zip(seen).filter(|(_, arrived)| !**arrived) {
        match gaps.last_mut() {
            Some(gap) if gap.end == number => gap.end += 1,
            _ => gaps.push(number..number + 1),
        }
    }
    gaps
}

#[derive(Debug, Default)]
struct Sent {
    number: u64,
    refused: (u64, Option<String>),
}

fn send(socket: &UdpSocket, target: SocketAddr, pace: Pace, stop: &AtomicBool) -> Sent {
    let interval = Duration::from_secs(1) / pace.per_second;
    let mut due = Instant::now();
    let mut sent = Sent::default();
    while !stop.load(Ordering::Relaxed) {
        match socket.send_to(&datagram(sent.number, pace.payload), target) {
            Ok(_) => sent.number += 1,
            // It was not sent: its number is used again.
            Err(error) => sent.refused = (sent.refused.0 + 1, Some(error.to_string())),
        }
        due += interval;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    sent
}

/// Until the sender has stopped and no datagram has come for a while.
fn receive(socket: &UdpSocket, expected: usize, stop: &AtomicBool) -> Arrivals {
    let mut arrivals = Arrivals::default();
    let mut buffer = vec![0; 65_536];
    let mut last = Instant::now();
    while !stop.load(Ordering::Relaxed) || last.elapsed() < LINGER {
        match socket.recv(&mut buffer) {
            Ok(len) => arrivals.record(&buffer[..len], expected),
            Err(_) if stop.load(Ordering::Relaxed) => continue,
            Err(_) => {}
        }
        last = Instant::now();
    }
    arrivals
}

fn datagram(number: u64, payload: usize) -> Vec<u8> {
    let mut bytes = number.to_be_bytes().to_vec();
    bytes.resize(payload, filler(number));
    bytes
}

fn number_of(datagram: &[u8]) -> Option<u64> {
    datagram.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

fn intact(datagram: &[u8], expected: usize) -> bool {
    let Some(number) = number_of(datagram) else { return false };
    datagram.len() == expected && datagram[8..].iter().all(|byte| *byte == filler(number))
}

fn filler(number: u64) -> u8 {
    number.to_le_bytes()[0] ^ 0xa5
}

fn receiving_socket(address: IpAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((address, 0)).context("cannot bind the receiver")?;
    socket.set_read_timeout(Some(LOOK))?;
    sys::receive_buffer(&socket, 16 << 20)?;
    Ok(socket)
}

fn any_of(address: IpAddr) -> SocketAddr {
    match address {
        IpAddr::V4(_) => ([0; 4], 0).into(),
        IpAddr::V6(_) => ([0_u16; 8], 0).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fate_of_a_datagram_is_counted() {
        let mut arrivals = Arrivals::default();
        for number in [0, 1, 3, 2, 3, 7] {
            arrivals.record(&datagram(number, 20), 20);
        }
        arrivals.record(&datagram(8, 19), 20);
        let tally = arrivals.tally(10);
        assert_eq!((tally.received, tally.lost()), (5, 5));
        assert_eq!((tally.duplicated, tally.reordered, tally.corrupted), (1, 1, 1));
        assert_eq!(tally.gaps, [4..7, 8..10]);
        assert!(tally.ensure_perfect().is_err());
    }
}
