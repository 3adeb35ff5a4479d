//! A TCP stream from one site to the other, up to a number of bytes or a time, with a checksum at both ends.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::common::on_thread;
use super::netns::Namespace;

/// The limits of a transfer; it ends when one of them is reached.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    /// The maximum number of bytes.
    pub(super) bytes: u64,
    /// The maximum time.
    pub(super) time: Duration,
}

/// The result of a transfer.
#[derive(Debug)]
pub(super) struct Transfer {
    /// The number of bytes that arrived.
    pub(super) bytes: u64,
    /// The time from the connection to the last byte, as measured by the receiver.
    pub(super) time: Duration,
    /// The checksum of the sent bytes.
    pub(super) sent: Checksum,
    /// The checksum of the received bytes.
    pub(super) received: Checksum,
}

impl Transfer {
    /// Checks that the received bytes equal the sent bytes.
    ///
    /// # Errors
    ///
    /// If they differ.
    pub(super) fn verify(&self) -> anyhow::Result<()> {
        ensure!(self.sent == self.received, "what arrived is not what was sent");
        Ok(())
    }

    /// The transfer rate.
    pub(super) fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.time.as_secs_f64()
    }
}

/// Sends `text` repeatedly until a limit is reached; `progress` counts the bytes that arrive.
///
/// # Errors
///
/// If the connection fails, or one end waits too long for the other.
pub(super) async fn run(
    from: &Namespace,
    to: &Namespace,
    address: IpAddr,
    limit: Limit,
    text: &'static [u8],
    progress: Arc<AtomicU64>,
) -> anyhow::Result<Transfer> {
    let what = || format!("a TCP stream to {address}");
    let listener = to.enter(|| TcpListener::bind((address, 0)))?.with_context(what)?;
    let target = listener.local_addr()?;
    let stream = from.enter(|| connect(target))?.with_context(what)?;
    let sender = on_thread(move || send(stream, limit, text));
    let receiver = on_thread(move || receive(&listener, &progress));
    let (sent, received) = tokio::try_join!(sender, receiver)?;
    let (sent, (received, time)) = (sent.with_context(what)?, received.with_context(what)?);
    Ok(Transfer { bytes: received.bytes, time, sent, received })
}

/// A checksum of whole blocks, which changes if any byte or the order of the blocks changes. It is so cheap
/// that it does not slow the transfer down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Checksum {
    bytes: u64,
    lanes: [u64; 4],
}

impl Checksum {
    fn add(&mut self, block: &[u8; BLOCK]) {
        self.bytes += BLOCK as u64;
        let (words, _) = block.as_chunks::<8>();
        let (rows, _) = words.as_chunks::<4>();
        for row in rows {
            for (lane, word) in self.lanes.iter_mut().zip(row) {
                *lane = (lane.rotate_left(5) ^ u64::from_le_bytes(*word)).wrapping_mul(MULTIPLIER);
            }
        }
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mix = |sum: u64, lane: &u64| (sum.rotate_left(5) ^ lane).wrapping_mul(MULTIPLIER);
        write!(f, "{:016x}", self.lanes.iter().fold(self.bytes, mix))
    }
}

fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends blocks until a limit is reached. Each block begins with its number, so that no two blocks are equal.
fn send(mut stream: TcpStream, limit: Limit, text: &[u8]) -> io::Result<Checksum> {
    let mut block = Box::new([0; BLOCK]);
    for (byte, letter) in block.iter_mut().zip(text.iter().cycle()) {
        *byte = *letter;
    }
    let (start, mut sum) = (Instant::now(), Checksum::default());
    while sum.bytes < limit.bytes && start.elapsed() < limit.time {
        block[..8].copy_from_slice(&sum.bytes.to_le_bytes());
        stream.write_all(&block[..])?;
        sum.add(&block);
    }
    Ok(sum)
}

fn receive(listener: &TcpListener, progress: &AtomicU64) -> io::Result<(Checksum, Duration)> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let (start, mut sum) = (Instant::now(), Checksum::default());
    let mut block = Box::new([0; BLOCK]);
    while fill(&mut stream, &mut block[..])? {
        sum.add(&block);
        progress.store(sum.bytes, Ordering::Relaxed);
    }
    Ok((sum, start.elapsed()))
}

/// Reads a whole block; false at the end of the stream.
fn fill(stream: &mut impl Read, block: &mut [u8]) -> io::Result<bool> {
    let mut len = 0;
    while len < block.len() {
        match stream.read(&mut block[len..]) {
            Ok(0) if len == 0 => return Ok(false),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => len += read,
            // After a signal, the kernel does not restart a read that has a timeout.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// The size of one write.
const BLOCK: usize = 64 << 10;
/// How long either end waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);
/// The number is odd, so that multiplying loses no bit, and has no pattern: 2^64 divided by the golden ratio.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(blocks: &[&[u8; BLOCK]]) -> Checksum {
        let mut sum = Checksum::default();
        blocks.iter().for_each(|block| sum.add(block));
        sum
    }

    #[test]
    fn every_change_changes_the_sum() {
        let (zero, mut one) = ([0; BLOCK], [0; BLOCK]);
        one[BLOCK - 1] = 1;
        let sums = [&[][..], &[&zero], &[&one], &[&zero, &one], &[&one, &zero], &[&one, &one]];
        let shown: std::collections::HashSet<_> =
            sums.iter().map(|blocks| sum(blocks).to_string()).collect();
        assert_eq!(shown.len(), sums.len());
        assert_eq!(sum(&[&zero, &one]), sum(&[&zero, &one]));
    }

    #[test]
    fn half_a_block_is_no_end() {
        let mut block = [0; 4];
        let mut stream = &[1, 2, 3, 4, 5, 6][..];
        assert!(fill(&mut stream, &mut block).unwrap());
        assert_eq!(fill(&mut stream, &mut block).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(!fill(&mut &[][..], &mut block).unwrap());
    }
}
