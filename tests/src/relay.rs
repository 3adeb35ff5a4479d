//! A hostile internet: a relay of UDP datagrams in user space that drops, delays, reorders,
//! duplicates, flips, truncates, records, replays and changes its port, all from one seed.
//!
//! ```text
//!   client ── front [relay] back ── target
//! ```
//!
//! The client is the last sender to the front; the target is fixed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{SocketAddr, UdpSocket};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::{Host, sys};

/// How often a waiting thread checks whether to stop.
const LOOK: Duration = Duration::from_millis(1);

/// The faults; shares are between 0 and 1.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Share that is dropped.
    pub drop: f64,
    /// Share that is delivered twice.
    pub duplicate: f64,
    /// Share with one bit flipped.
    pub flip: f64,
    /// Share cut to a random length.
    pub truncate: f64,
    /// Share that is delayed by `delay`; all others pass at once, and so overtake it.
    pub late: f64,
    /// The delay.
    pub delay: Range<Duration>,
    /// Longer ones are dropped; none means no limit.
    pub longest: Option<usize>,
    /// The last datagram of a run of equal ones is dropped, as by a host that segments wrongly.
    pub spoils_runs: bool,
}

/// The direction of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client.
    ToTarget,
    /// From the target.
    ToClient,
}

/// A datagram as the relay received it, before any fault.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Its direction.
    pub direction: Direction,
    /// Its contents.
    pub datagram: Vec<u8>,
}

/// A running relay.
#[derive(Debug)]
pub struct Relay {
    host: Host,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Relay {
    /// Starts one on a host of both networks, without faults: datagrams to `front` are forwarded to `target`
    /// from another port.
    ///
    /// # Errors
    /// When `front` cannot be bound there.
    pub fn start(host: &Host, front: &str, target: &str, seed: u64) -> Result<Self> {
        let front: SocketAddr = front.parse()?;
        let target: SocketAddr = target.parse()?;
        let shared = Arc::new(Shared {
            front: bind(host, front)?,
            back: Mutex::new(bind(host, any_of(target))?),
            second: Mutex::new(None),
            target,
            client: Mutex::new(None),
            faults: Mutex::new(Faults::default()),
            recorded: Mutex::new(None),
            passed: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        });
        let threads = [Direction::ToTarget, Direction::ToClient]
            .map(|direction| (direction, Arc::clone(&shared)))
            .map(|(direction, shared)| {
                thread::spawn(move || Forwarder::new(direction, shared, seed).run())
            });
        Ok(Self { host: host.clone(), shared, threads: threads.into() })
    }

    /// Changes the faults from now on, in both directions.
    pub fn set(&self, faults: Faults) {
        *lock(&self.shared.faults) = faults;
    }

    /// Uses a new port towards the target, as a NAT does after it forgot the mapping.
    ///
    /// # Errors
    /// When no socket can be made.
    pub fn rebind(&self) -> Result<()> {
        *lock(&self.shared.back) = bind(&self.host, any_of(self.shared.target))?;
        // The thread that still waits at the old port closes it once it gets a processor.
        thread::sleep(100 * LOOK);
        Ok(())
    }

    /// From now on every other datagram for the target leaves from a second port. Answers to that port are
    /// lost.
    ///
    /// # Errors
    /// When no socket can be made.
    pub fn flap(&self) -> Result<()> {
        *lock(&self.shared.second) = Some(bind(&self.host, any_of(self.shared.target))?);
        Ok(())
    }

    /// All datagrams leave from one port again.
    pub fn stop_flapping(&self) {
        *lock(&self.shared.second) = None;
    }

    /// The port the target sees.
    ///
    /// # Errors
    /// When the socket is broken.
    pub fn back_port(&self) -> Result<u16> {
        Ok(lock(&self.shared.back).local_addr()?.port())
    }

    /// Records all datagrams from now on.
    pub fn record(&self) {
        *lock(&self.shared.recorded) = Some(Vec::new());
    }

    /// The datagrams recorded so far.
    pub fn recorded(&self) -> Vec<Recorded> {
        lock(&self.shared.recorded).clone().unwrap_or_default()
    }

    /// Sends a datagram of the test as if it had been relayed.
    ///
    /// # Errors
    /// When it cannot be sent, or no client is known yet.
    pub fn inject(&self, direction: Direction, datagram: &[u8]) -> Result<()> {
        self.shared.send(direction, datagram).map(drop).context("cannot inject")
    }

    /// Datagrams delivered so far, injected ones included.
    pub fn passed(&self) -> u64 {
        self.shared.passed.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that panicked has failed its scenario already.
            let _ = thread.join();
        }
    }
}

#[derive(Debug)]
struct Shared {
    front: Arc<UdpSocket>,
    back: Mutex<Arc<UdpSocket>>,
    /// The socket of every other datagram, while there is one.
    second: Mutex<Option<Arc<UdpSocket>>>,
    target: SocketAddr,
    client: Mutex<Option<SocketAddr>>,
    faults: Mutex<Faults>,
    recorded: Mutex<Option<Vec<Recorded>>>,
    passed: AtomicU64,
    stop: AtomicBool,
}

impl Shared {
    /// Receives a run of datagrams, as long as the sender made it.
    fn receive(&self, direction: Direction, buffer: &mut [u8]) -> Option<sys::Run> {
        match direction {
            Direction::ToTarget => {
                let run = sys::receive_run(&self.front, buffer).ok()?;
                if run.from.is_some() {
                    *lock(&self.client) = run.from;
                }
                Some(run)
            }
            Direction::ToClient => {
                let back = Arc::clone(&lock(&self.back));
                sys::receive_run(&back, buffer).ok()
            }
        }
    }

    fn keep(&self, direction: Direction, datagram: &[u8]) {
        if let Some(recorded) = &mut *lock(&self.recorded) {
            recorded.push(Recorded { direction, datagram: datagram.to_vec() });
        }
    }

    fn send(&self, direction: Direction, datagram: &[u8]) -> Result<usize> {
        let odd = self.passed.fetch_add(1, Ordering::Relaxed) % 2 == 1;
        let second = lock(&self.second).clone().filter(|_| odd);
        let client = *lock(&self.client);
        Ok(match direction {
            Direction::ToTarget => {
                let socket = second.unwrap_or_else(|| Arc::clone(&lock(&self.back)));
                socket.send_to(datagram, self.target)?
            }
            Direction::ToClient => {
                self.front.send_to(datagram, client.context("no client yet")?)?
            }
        })
    }
}

/// One direction, on its own thread, with its own random numbers.
struct Forwarder {
    direction: Direction,
    shared: Arc<Shared>,
    rng: StdRng,
    late: BinaryHeap<Reverse<(Instant, Vec<u8>)>>,
}

impl Forwarder {
    fn new(direction: Direction, shared: Arc<Shared>, seed: u64) -> Self {
        let rng = StdRng::seed_from_u64(seed ^ u64::from(direction == Direction::ToClient));
        Self { direction, shared, rng, late: BinaryHeap::new() }
    }

    fn run(&mut self) {
        let mut buffer = vec![0; 65_536];
        while !self.shared.stop.load(Ordering::Relaxed) {
            if let Some(run) = self.shared.receive(self.direction, &mut buffer) {
                self.pass_run(&buffer[..run.len], run.stride);
            }
            self.release();
        }
    }

    fn pass_run(&mut self, run: &[u8], stride: usize) {
        let spoils = lock(&self.shared.faults).spoils_runs;
        let is_equal = run.len() > stride && run.len().is_multiple_of(stride);
        let passes = if spoils && is_equal { run.len() - stride } else { run.len() };
        for datagram in run[..passes].chunks(stride) {
            self.shared.keep(self.direction, datagram);
            self.pass(datagram.to_vec());
        }
    }

    /// Every fault draws its random number even if it is off, so that changing one fault does not change the
    /// effects of the others.
    fn pass(&mut self, mut datagram: Vec<u8>) {
        let faults = lock(&self.shared.faults).clone();
        let [drop, twice, flip, cut, late] =
            [faults.drop, faults.duplicate, faults.flip, faults.truncate, faults.late]
                .map(|share| self.rng.random::<f64>() < share);
        let too_long = faults.longest.is_some_and(|longest| datagram.len() > longest);
        if drop || too_long || datagram.is_empty() {
            return;
        }
        if flip {
            let bit = self.rng.random_range(0..datagram.len() * 8);
            datagram[bit / 8] ^= 1 << (bit % 8);
        }
        if cut {
            datagram.truncate(self.rng.random_range(0..datagram.len()));
        }
        if twice {
            self.send(&datagram);
        }
        if late && !faults.delay.is_empty() {
            let due = Instant::now() + self.rng.random_range(faults.delay);
            return self.late.push(Reverse((due, datagram)));
        }
        self.send(&datagram);
    }

    fn release(&mut self) {
        while self.late.peek().is_some_and(|Reverse((due, _))| *due <= Instant::now()) {
            if let Some(Reverse((_, datagram))) = self.late.pop() {
                self.send(&datagram);
            }
        }
    }

    fn send(&self, datagram: &[u8]) {
        // A missing target is just another fault.
        let _ = self.shared.send(self.direction, datagram);
    }
}

fn bind(host: &Host, address: SocketAddr) -> Result<Arc<UdpSocket>> {
    let socket = host.enter(|| {
        UdpSocket::bind(address).with_context(|| format!("cannot bind the relay to {address}"))
    })?;
    socket.set_read_timeout(Some(LOOK))?;
    sys::receive_buffer(&socket, 16 << 20)?;
    sys::receive_runs(&socket)?;
    Ok(Arc::new(socket))
}

fn any_of(target: SocketAddr) -> SocketAddr {
    match target {
        SocketAddr::V4(_) => ([0; 4], 0).into(),
        SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
    }
}

/// A thread that panicked leaves plain data behind, which is still valid.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
