//! One TCP connection that carries pseudo-random bytes, hashed at both ends.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use socket2::{Domain, SockRef, Socket, Type};

use crate::{Host, sys, within};

/// A connection without progress for this long has failed.
const STALLED: Duration = Duration::from_secs(100);
/// The same algorithm on every machine, whatever its default.
const CONGESTION_CONTROL: &[u8] = b"cubic";
/// Bytes written at once.
const BLOCK: usize = 64 * 1024;

/// The size of each write of a trickle, and the time between them.
const DROP: usize = 1000;
const PAUSE: Duration = Duration::from_millis(5);

/// What arrived, and the time it took.
#[derive(Debug, Clone, Copy)]
pub struct Transferred {
    /// Bytes, the same at both ends.
    pub bytes: u64,
    /// From the first byte written to the last byte read.
    pub elapsed: Duration,
}

impl Transferred {
    /// The rate in megabits a second.
    pub fn megabits(&self) -> f64 {
        let bits = u32::try_from(self.bytes / 125).map_or(f64::INFINITY, f64::from);
        bits / 1000.0 / self.elapsed.as_secs_f64()
    }
}

/// A running transfer.
#[derive(Debug)]
pub struct Transfer {
    total: u64,
    start: Instant,
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    connection: Connection,
    sender: JoinHandle<Result<u64>>,
    receiver: JoinHandle<Result<u64>>,
}

impl Transfer {
    /// Connects to an address of `to` and starts to send.
    ///
    /// # Errors
    /// When the connection is not made in two minutes.
    pub fn start(from: &Host, to: &Host, address: &str, bytes: u64) -> Result<Self> {
        let (client, server) = pair(from, to, address)?;
        let (stop, received) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, progress) = (Arc::clone(&stop), Arc::clone(&received));
        let connection = Connection([client.try_clone()?, server.try_clone()?]);
        Ok(Self {
            total: bytes,
            start: Instant::now(),
            stop,
            received,
            connection,
            sender: thread::spawn(move || send(client, bytes, &stopped)),
            receiver: thread::spawn(move || receive(server, &progress)),
        })
    }

    /// Bytes that arrived so far.
    pub fn progress(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Whether both ends are done, well or badly.
    pub fn is_over(&self) -> bool {
        self.sender.is_finished() && self.receiver.is_finished()
    }

    /// Waits until `bytes` arrived, which must not be all of them.
    ///
    /// # Errors
    /// When they do not arrive in a minute, or the transfer is over already.
    pub fn reach(&self, bytes: u64) -> Result<()> {
        within(Duration::from_secs(60), || (self.progress() >= bytes).then_some(()))
            .with_context(|| format!("{} bytes arrived, not {bytes}", self.progress()))?;
        ensure!(self.progress() < self.total, "over too soon: this must happen in its middle");
        Ok(())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When the connection broke or stalled, or the two ends' hashes differ.
    pub fn finish(self) -> Result<Transferred> {
        let total = self.total;
        let done = self.join()?;
        ensure!(done.bytes == total, "{} of {total} bytes arrived", done.bytes);
        Ok(done)
    }

    /// Sends no more, and waits until everything that was sent has arrived.
    ///
    /// # Errors
    /// As [`Transfer::finish`].
    pub fn stop(self) -> Result<Transferred> {
        self.stop.store(true, Ordering::Relaxed);
        self.join()
    }

    fn join(self) -> Result<Transferred> {
        let sent = self.sender.join().map_err(|_panic| anyhow!("the sender panicked"))?;
        let received = self.receiver.join().map_err(|_panic| anyhow!("the receiver panicked"))?;
        drop(self.connection);
        let bytes = self.received.load(Ordering::Relaxed);
        let sent = sent.with_context(|| format!("sending broke, {bytes} bytes had arrived"))?;
        let received = received.with_context(|| format!("broke after {bytes} bytes"))?;
        ensure!(sent == received, "the hashes of both ends differ");
        Ok(Transferred { bytes, elapsed: self.start.elapsed() })
    }
}

/// A connection that carries a few bytes all the time, until it is stopped.
#[derive(Debug)]
pub struct Trickle {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    connection: Connection,
    sender: JoinHandle<Result<u64>>,
    receiver: JoinHandle<Result<u64>>,
}

impl Trickle {
    /// Connects to an address of `to` and starts to send.
    ///
    /// # Errors
    /// As [`Transfer::start`].
    pub fn start(from: &Host, to: &Host, address: &str) -> Result<Self> {
        let (client, server) = pair(from, to, address)?;
        let (stop, received) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, progress) = (Arc::clone(&stop), Arc::clone(&received));
        let connection = Connection([client.try_clone()?, server.try_clone()?]);
        Ok(Self {
            stop,
            received,
            connection,
            sender: thread::spawn(move || drip(client, &stopped)),
            receiver: thread::spawn(move || receive(server, &progress)),
        })
    }

    /// Waits until more bytes arrive.
    ///
    /// # Errors
    /// When nothing has after `limit`.
    pub fn advances(&self, limit: Duration) -> Result<()> {
        let before = self.received.load(Ordering::Relaxed);
        let more = || (self.received.load(Ordering::Relaxed) > before).then_some(());
        within(limit, more).with_context(|| format!("after {before} bytes nothing for {limit:?}"))
    }

    /// Ends it, and returns the number of bytes that arrived.
    ///
    /// # Errors
    /// As [`Transfer::finish`].
    pub fn finish(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().map_err(|_panic| anyhow!("the sender panicked"))??;
        let received =
            self.receiver.join().map_err(|_panic| anyhow!("the receiver panicked"))??;
        drop(self.connection);
        ensure!(sent == received, "the hashes of both ends differ");
        Ok(self.received.load(Ordering::Relaxed))
    }
}

/// Both ends of a connection; an unfinished transfer ends when this is dropped.
#[derive(Debug)]
struct Connection([TcpStream; 2]);

impl Drop for Connection {
    fn drop(&mut self) {
        for end in &self.0 {
            // It may be closed already.
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

/// Transfers `bytes` and waits for the end.
///
/// # Errors
/// As [`Transfer::start`] and [`Transfer::finish`].
pub fn transfer(from: &Host, to: &Host, address: &str, bytes: u64) -> Result<Transferred> {
    Transfer::start(from, to, address, bytes)?.finish()
}

/// Opens and closes a connection over IPv6; all packets from `from` have hop-by-hop options.
///
/// # Errors
/// When the connection is not made within `limit`.
pub fn connect_with_options(from: &Host, to: &Host, address: &str, limit: Duration) -> Result<()> {
    let address: IpAddr = address.parse()?;
    let listener = to.enter(|| Ok(TcpListener::bind((address, 0))?))?;
    let target = listener.local_addr()?;
    from.enter(|| {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
        sys::hop_by_hop(&socket)?;
        let connected = socket.connect_timeout(&target.into(), limit);
        connected.with_context(|| format!("cannot connect to {target}"))
    })
}

/// Both ends of a new connection.
fn pair(from: &Host, to: &Host, address: &str) -> Result<(TcpStream, TcpStream)> {
    let address: IpAddr = address.parse()?;
    let listener = to.enter(|| Ok(TcpListener::bind((address, 0))?))?;
    let target = listener.local_addr()?;
    let client = from.enter(|| connect(target))?;
    let (server, _) = listener.accept()?;
    Ok((client, server))
}

fn connect(target: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, Duration::from_secs(120))
        .with_context(|| format!("cannot connect to {target}"))?;
    SockRef::from(&stream).set_tcp_congestion(CONGESTION_CONTROL)?;
    Ok(stream)
}

fn send(mut stream: TcpStream, bytes: u64, stop: &AtomicBool) -> Result<u64> {
    stream.set_write_timeout(Some(STALLED))?;
    let mut rng = StdRng::seed_from_u64(bytes);
    let mut block = vec![0; BLOCK];
    let mut hash = Fnv::default();
    let mut left = usize::try_from(bytes)?;
    while left > 0 && !stop.load(Ordering::Relaxed) {
        let part = &mut block[..left.min(BLOCK)];
        rng.fill_bytes(part);
        hash.add(part);
        stream.write_all(part)?;
        left -= part.len();
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(hash.0)
}

fn drip(mut stream: TcpStream, stop: &AtomicBool) -> Result<u64> {
    stream.set_write_timeout(Some(STALLED))?;
    let mut rng = StdRng::seed_from_u64(0);
    let (mut drop, mut hash) = ([0; DROP], Fnv::default());
    while !stop.load(Ordering::Relaxed) {
        rng.fill_bytes(&mut drop);
        hash.add(&drop);
        stream.write_all(&drop)?;
        thread::sleep(PAUSE);
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(hash.0)
}

fn receive(mut stream: TcpStream, progress: &AtomicU64) -> Result<u64> {
    stream.set_read_timeout(Some(STALLED))?;
    let mut block = vec![0; BLOCK];
    let mut hash = Fnv::default();
    loop {
        let len = stream.read(&mut block)?;
        if len == 0 {
            return Ok(hash.0);
        }
        hash.add(&block[..len]);
        progress.fetch_add(u64::try_from(len)?, Ordering::Relaxed);
    }
}

/// FNV-1a: enough to see one wrong byte, and independent of what is under test.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fnv_1a() {
        let mut hash = Fnv::default();
        hash.add(b"foo");
        hash.add(b"bar");
        assert_eq!(hash.0, 0x8594_4171_f739_67e8);
    }
}
