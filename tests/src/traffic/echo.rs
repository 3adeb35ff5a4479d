//! Questions over UDP and their answers: the time from an event until traffic flows both ways again.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::Host;

/// The time between two questions, and so the error of a measurement.
const APART: Duration = Duration::from_millis(10);
/// How often the answering end checks whether to stop.
const LOOK: Duration = Duration::from_millis(50);

/// One end asks, the other one answers, until this is dropped.
#[derive(Debug)]
pub struct Echo {
    socket: UdpSocket,
    to: SocketAddr,
    began: Instant,
    stop: Arc<AtomicBool>,
    answering: Option<JoinHandle<()>>,
}

impl Echo {
    /// Opens a socket at each end: `to` answers at `address`, and `from` asks when it is told to.
    ///
    /// # Errors
    /// When a socket cannot be made.
    pub fn start(from: &Host, to: &Host, address: &str) -> Result<Self> {
        let address: SocketAddr = format!("{address}:0").parse()?;
        let answers = to.enter(|| Ok(UdpSocket::bind(address)?))?;
        answers.set_read_timeout(Some(LOOK))?;
        let socket = from.enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
        socket.set_read_timeout(Some(APART))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (to, stopped) = (answers.local_addr()?, Arc::clone(&stop));
        let answering = Some(thread::spawn(move || answer(&answers, &stopped)));
        Ok(Self { socket, to, began: Instant::now(), stop, answering })
    }

    /// Asks all the time from now on, and returns the time from `since` to the first answer to a question that was
    /// asked after it; none if there is no such answer within `limit`.
    pub fn flows(&self, since: Instant, limit: Duration) -> Option<Duration> {
        let earliest = self.micros(since);
        while since.elapsed() < limit {
            if self.ask().is_some_and(|asked| asked >= earliest) {
                return Some(since.elapsed());
            }
        }
        None
    }

    /// Asks for `span`, and returns the longest time without an answer.
    pub fn longest_silence(&self, span: Duration) -> Duration {
        let (start, mut heard, mut longest) = (Instant::now(), Instant::now(), Duration::ZERO);
        while start.elapsed() < span {
            let answered = self.ask().is_some();
            longest = longest.max(heard.elapsed());
            if answered {
                heard = Instant::now();
            }
        }
        longest
    }

    /// One question. The answer, which may be to an earlier one, contains when that was asked.
    fn ask(&self) -> Option<u64> {
        let asked = Instant::now();
        // What this host refuses to send has no answer either.
        let _ = self.socket.send_to(&self.micros(asked).to_be_bytes(), self.to);
        let mut answer = [0; 8];
        let read = self.socket.recv(&mut answer).ok();
        thread::sleep(APART.saturating_sub(asked.elapsed()));
        read.filter(|len| *len == answer.len()).map(|_| u64::from_be_bytes(answer))
    }

    fn micros(&self, at: Instant) -> u64 {
        let span = at.saturating_duration_since(self.began);
        u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.answering.take() {
            // A thread that panicked answers nothing, which the scenario notices.
            let _ = thread.join();
        }
    }
}

fn answer(socket: &UdpSocket, stop: &AtomicBool) {
    let mut question = [0; 8];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((len, from)) = socket.recv_from(&mut question) {
            // An answer that cannot be sent is lost.
            let _ = socket.send_to(&question[..len], from);
        }
    }
}
