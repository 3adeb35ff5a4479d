//! UDP at a given rate: one packet per datagram, as most applications send, in small bursts.

use std::io::{IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::sys::prctl::set_timerslack;
use nix::sys::socket::{MsgFlags, MultiHeaders, recvmmsg, sendmmsg, setsockopt, sockopt};
use vpnd_tests::Host;

use crate::search::Trial;

/// Datagrams of one system call at most, on either side.
const BURST: usize = 64;
/// Between two bursts, unless the rate asks for more than `BURST` in it; and between two looks
/// of the receiver.
const INTERVAL: Duration = Duration::from_micros(100);
/// A sender that was kept waiting catches up with no more than these at once: the queue of a
/// tunnel's device holds 500.
const BACKLOG: f64 = 250.0;
/// How long the receiver stays after the last datagram that came.
const LINGER: Duration = Duration::from_millis(100);
/// Room for what is sent while the receiver waits for a processor.
const RECEIVE_BUFFER: usize = 32 << 20;

/// A sender and a receiver, one in each host.
#[derive(Debug)]
pub(crate) struct Generator {
    outbox: UdpSocket,
    inbox: UdpSocket,
    payloads: &'static [usize],
    trials: u64,
}

impl Generator {
    /// Makes both sockets; what is sent is as long as `payloads` say, in turn, and each of these is at
    /// least eight bytes.
    pub(crate) fn new(
        from: &Host,
        to: &Host,
        address: &str,
        payloads: &'static [usize],
    ) -> Result<Self> {
        let target = SocketAddr::new(address.parse()?, 0);
        let inbox = to.enter(|| Ok(UdpSocket::bind(target)?))?;
        inbox.set_read_timeout(Some(LINGER))?;
        setsockopt(&inbox, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
        let outbox = from.enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
        outbox.set_write_timeout(Some(LINGER))?;
        from.enter(|| Ok(outbox.connect(inbox.local_addr()?)?)).context("no route")?;
        Ok(Self { outbox, inbox, payloads, trials: 0 })
    }

    /// Sends so many packets a second for a while; answers when the last has arrived or is lost.
    pub(crate) fn attempt(&mut self, rate: f64, time: Duration) -> Result<Trial> {
        self.trials += 1;
        let (number, over) = (self.trials, AtomicBool::new(false));
        let datagrams = datagrams(number, self.payloads);
        let (sent, received) = thread::scope(|scope| {
            let receiver = scope.spawn(|| receive(&self.inbox, number, &over));
            let sender = scope.spawn(|| send(&self.outbox, &datagrams, rate, time));
            let sent = sender.join();
            over.store(true, Ordering::Relaxed);
            (sent, receiver.join())
        });
        let (sent, took) = sent.map_err(|_panic| anyhow!("the sender panicked"))??;
        let received = received.map_err(|_panic| anyhow!("the receiver panicked"))??;
        let per_second = |count: u64| count as f64 / took.as_secs_f64();
        Ok(Trial { sent: per_second(sent), received: per_second(received) })
    }
}

/// Tells the trials apart, so that what an earlier one left in a queue does not count.
fn datagrams(number: u64, payloads: &[usize]) -> Vec<Vec<u8>> {
    let datagram = |payload: &usize| {
        let mut bytes = number.to_be_bytes().to_vec();
        bytes.resize(*payload, 0);
        bytes
    };
    payloads.iter().map(datagram).collect()
}

/// Returns how many the kernel took, and in what time.
fn send(
    socket: &UdpSocket,
    datagrams: &[Vec<u8>],
    rate: f64,
    time: Duration,
) -> Result<(u64, Duration)> {
    // Sleeps of a tenth of a millisecond: the usual slack of 50 µs would be half of one.
    set_timerslack(1)?;
    let burst = burst(rate);
    let interval = Duration::from_secs_f64(burst as f64 / rate);
    let late = Duration::from_secs_f64(BACKLOG / rate);
    let mut headers = MultiHeaders::<()>::preallocate(burst, None);
    let start = Instant::now();
    let (mut due, mut sent) = (start, 0);
    let mut next = datagrams.iter().cycle().map(|datagram| [IoSlice::new(datagram)]);
    let mut slices = [[IoSlice::new(&[])]; BURST];
    while start.elapsed() < time {
        slices[..burst].iter_mut().zip(&mut next).for_each(|(slice, next)| *slice = next);
        sent += send_burst(socket, &mut headers, &slices[..burst])?;
        due += interval;
        let now = Instant::now();
        due = due.max(now.checked_sub(late).unwrap_or(now));
        if now < due {
            thread::sleep(due - now);
        }
    }
    Ok((sent, start.elapsed()))
}

/// As few as the interval allows.
fn burst(rate: f64) -> usize {
    let due = rate * INTERVAL.as_secs_f64();
    (1..BURST).find(|burst| *burst as f64 >= due).unwrap_or(BURST)
}

fn send_burst(
    socket: &UdpSocket,
    headers: &mut MultiHeaders<()>,
    slices: &[[IoSlice<'_>; 1]],
) -> Result<u64> {
    let nobody = [None::<()>; BURST];
    match sendmmsg(socket.as_raw_fd(), headers, slices, nobody, [], MsgFlags::empty()) {
        Ok(sent) => Ok(sent.count() as u64),
        // A full queue is loss of nobody's making: what was not taken was not sent. A refusal may
        // answer a datagram of an earlier trial.
        Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::ECONNREFUSED | Errno::EINTR) => Ok(0),
        Err(error) => Err(error).context("cannot send"),
    }
}

/// Counts this trial's datagrams until the sender is done and nothing has come for a while.
fn receive(socket: &UdpSocket, number: u64, over: &AtomicBool) -> Result<u64> {
    let mut buffers = vec![[0_u8; 2048]; BURST];
    let mut headers = MultiHeaders::<()>::preallocate(BURST, None);
    let mut received = 0;
    loop {
        match receive_burst(socket, &mut headers, &mut buffers) {
            Ok(arrived) => {
                let ours = |buffer: &&[u8; 2048]| buffer.starts_with(&number.to_be_bytes());
                received += buffers[..arrived].iter().filter(ours).count() as u64;
                // To be woken for each datagram costs the processor that the tunnel needs.
                if arrived < BURST {
                    thread::sleep(INTERVAL);
                }
            }
            Err(Errno::EAGAIN) if over.load(Ordering::Relaxed) => return Ok(received),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot receive"),
        }
    }
}

fn receive_burst(
    socket: &UdpSocket,
    headers: &mut MultiHeaders<()>,
    buffers: &mut [[u8; 2048]],
) -> nix::Result<usize> {
    let mut slices: Vec<_> = buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
    let arrived =
        recvmmsg(socket.as_raw_fd(), headers, &mut slices, MsgFlags::MSG_WAITFORONE, None)?;
    Ok(arrived.count())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vpnd_tests::Lab;

    #[test]
    fn bursts_are_small_and_bounded() {
        assert_eq!([1.0, 20_000.0, 315_000.0, 1e9].map(burst), [1, 2, 32, 64]);
    }

    #[test]
    fn datagrams_of_another_trial_do_not_count() {
        let generator = alone();
        for number in [1, 2, 2] {
            generator.outbox.send(&datagrams(number, &[64])[0]).unwrap();
        }
        assert_eq!(receive(&generator.inbox, 2, &AtomicBool::new(true)).unwrap(), 2);
    }

    #[test]
    fn no_more_is_sent_than_asked_and_no_more_received_than_sent() {
        let trial = alone().attempt(1000.0, Duration::from_millis(200)).unwrap();
        assert!(trial.sent > 0.0 && trial.sent < 1100.0, "{trial:?}");
        assert!(trial.received > 0.0 && trial.received <= trial.sent, "{trial:?}");
    }

    /// Within a namespace that has nothing but its loopback.
    fn alone() -> Generator {
        let lab = Lab::within(&std::env::temp_dir(), "generator").unwrap();
        let host = lab.host("alone").unwrap();
        Generator::new(&host, &host, "127.0.0.1", &[64]).unwrap()
    }
}
