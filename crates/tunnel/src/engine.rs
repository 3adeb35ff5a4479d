//! Starts and stops the data threads, and connects them with the control plane.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use vpnd_protocol::activity::Activity;
use vpnd_protocol::cookie::Mac1Key;
use vpnd_protocol::receive_order::Framed;
use vpnd_protocol::table::{Admitted, IDENTITIES, Table};
use vpnd_tun::{Device, Mode};

use crate::counters::Counters;
use crate::inbound::{Inbound, Queues};
use crate::pacing::Pacing;
pub use crate::refused::RefusedPackets;
use crate::refused::RefusedSources;
pub use crate::shared::is_gone;
use crate::shared::{Shared, Signal};
use crate::tap::Tap;
use crate::udp::{Refusal, Socket};
use crate::urgent::Urgent;
use crate::view::{Policy, Published};
use crate::watch::Watch;

/// The length of the queue of handshake messages for the control plane. A message for which there is no room is
/// dropped and counted.
pub const HANDSHAKE_QUEUE: usize = 512;
/// The length of the queue of control frames from the peer; a peer has no reason to send more at once.
pub const FRAME_QUEUE: usize = 64;
/// If at least this many handshake messages are queued, the daemon is under load.
pub const LOAD_THRESHOLD: usize = HANDSHAKE_QUEUE / 8;

/// How packets are treated.
pub struct Options {
    /// Whether packets or frames cross the device.
    pub mode: Mode,
    /// The settings that may change while the threads run.
    pub policy: Policy,
    /// Called by each data thread before its work, to give up rights.
    pub confine: Confine,
}

/// How long the threads may take to finish what they have read.
const FINISH_WITHIN: Duration = Duration::from_millis(300);

/// Confines the calling thread.
pub type Confine = Arc<dyn Fn() -> io::Result<()> + Send + Sync>;

/// The running data path.
pub struct Engine {
    shared: Arc<Shared>,
    watch: Arc<Watch>,
    threads: Vec<JoinHandle<()>>,
}

/// The messages of the data threads to the control plane.
pub struct Reports {
    /// Handshake messages that [`Table::admit`] has accepted.
    pub handshakes: mpsc::Receiver<Admitted>,
    /// Control frames, all of them authentic.
    pub frames: mpsc::Receiver<Framed>,
    /// Why a thread ended without being stopped: the device is gone.
    pub ended: mpsc::Receiver<io::Error>,
}

impl Engine {
    /// Starts an outbound thread for each queue of `device`, and one inbound thread.
    ///
    /// # Errors
    /// If the kernel can create no further thread or eventfd.
    pub fn start(
        device: Device,
        socket: Socket,
        activity: Arc<Activity>,
        table: Table,
        options: Options,
    ) -> io::Result<(Self, Reports)> {
        let shared = Arc::new(Shared {
            pacing: Pacing::new(device.queues.len()),
            device,
            socket,
            urgent: Urgent::default(),
            view: Published::new(table, options.policy),
            activity,
            counters: Counters::default(),
            tap: Tap::default(),
            refused_sources: RefusedSources::default(),
            marks_everything: AtomicBool::new(false),
            mode: options.mode,
            control: Signal::new()?,
            refused: AtomicI32::new(0),
        });
        let watch = Arc::new(Watch::new(Arc::clone(&shared))?);
        let (handshakes, handshake_queue) = mpsc::channel(HANDSHAKE_QUEUE);
        let (frames, frame_queue) = mpsc::channel(FRAME_QUEUE);
        let (ended, ended_queue) = mpsc::channel(2);
        let inbound =
            Inbound::new(Arc::clone(&shared), Arc::clone(&watch), Queues { handshakes, frames });
        let confine = options.confine;
        let first = Arc::clone(&confine);
        let inbound = move || first().and_then(|()| inbound.run());
        let mut threads = vec![spawn("inbound", ended.clone(), inbound)?];
        for queue in 0..shared.device.queues.len() {
            let (watch, confine) = (Arc::clone(&watch), Arc::clone(&confine));
            let run = move || confine().and_then(|()| watch.run(queue));
            threads.push(spawn(&outbound(queue), ended.clone(), run)?);
        }
        let reports =
            Reports { handshakes: handshake_queue, frames: frame_queue, ended: ended_queue };
        Ok((Self { shared, watch, threads }, reports))
    }

    /// Publishes `table`: the data threads use it from their next batch on.
    pub fn publish(&self, table: Table) {
        self.shared.view.set_table(&Arc::new(table));
        self.watch.raise();
    }

    /// Publishes `policy`, which replaces the previous one, in the same way.
    pub fn set_policy(&self, policy: &Policy) {
        self.shared.view.set_policy(policy);
        self.watch.raise();
    }

    /// Whether every data thread has noticed what was published last, and has wiped what keys that are gone have left on its
    /// stack. It notices when it has nothing to do.
    pub fn is_heeded(&self) -> bool {
        self.watch.is_heeded()
    }

    /// Sends one datagram of the control plane, or queues it until the socket has room; returns whether it was
    /// sent. This never blocks. Data threads send queued datagrams before their own; call [`Engine::send_kept`]
    /// when the socket has room.
    ///
    /// # Errors
    /// Like [`Socket::send`]; `WouldBlock` if too many datagrams are queued.
    pub fn send(&self, to: SocketAddr, from: Option<IpAddr>, datagram: &[u8]) -> io::Result<bool> {
        self.shared.urgent.send(&self.shared.socket, to, from, datagram)
    }

    /// Whether a datagram of the control plane is queued.
    pub fn keeps_any(&self) -> bool {
        self.shared.urgent.is_waiting()
    }

    /// Sends the queued datagrams, as far as the socket has room.
    pub fn send_kept(&self) {
        self.shared.send_urgent();
    }

    /// The socket, for waiting until it has room.
    pub fn socket_fd(&self) -> BorrowedFd<'_> {
        self.shared.socket.as_fd()
    }

    /// Over IPv6, sends larger packets in fragments of this size; `None` means the MTU of the first link.
    ///
    /// # Errors
    /// Like [`Socket::fragment_at`].
    pub fn fragment_at(&self, mtu: Option<u16>) -> io::Result<()> {
        self.shared.socket.fragment_at(mtu)
    }

    /// Sets the DF bit of IPv4 datagrams, or clears it.
    ///
    /// # Errors
    /// As [`Socket::set_dont_fragment`].
    pub fn set_dont_fragment(&self, set: bool) -> io::Result<()> {
        self.shared.socket.set_dont_fragment(set)
    }

    /// Captures a datagram of the control plane, if datagrams are captured. Call this before it is sent, or its answer
    /// may come first in the capture.
    pub fn capture(&self, to: SocketAddr, from: Option<IpAddr>, datagram: &[u8]) {
        if self.shared.tap.wanted().outer {
            self.shared.copy_datagram(to, from, datagram);
        }
    }

    /// Where packets are captured.
    pub fn tap(&self) -> &Tap {
        &self.shared.tap
    }

    /// The counters of all kinds of drops.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Packets of the peer that were dropped because `allowed_ips` lacks their source, if there were any.
    pub fn refused_sources(&self) -> Option<RefusedPackets> {
        self.shared.refused_sources.seen()
    }

    /// Whether the path marks everything with "congestion experienced", so that its marks are ignored.
    pub fn marks_everything(&self) -> bool {
        self.shared.marks_everything.load(Relaxed)
    }

    /// Whether the kernel refuses to segment what is sent to the peer, so that each datagram is sent by itself.
    pub fn sends_singly(&self) -> bool {
        let view = self.shared.view.load();
        let path = view.table.send.as_ref().map(|(_, path)| path);
        path.is_some_and(|path| self.shared.socket.sends_singly(path.to, path.source()))
    }

    /// The socket's port.
    pub fn local_port(&self) -> u16 {
        self.shared.socket.local_port()
    }

    /// Changes to another source port, if the kernel chooses the port, and returns it.
    ///
    /// # Errors
    /// Like [`Socket::change_port`].
    pub fn change_port(&self) -> io::Result<Option<u16>> {
        self.shared.socket.change_port()
    }

    /// The socket, to give it other settings.
    pub fn socket(&self) -> &Socket {
        &self.shared.socket
    }

    /// Changes the mark of all datagrams.
    ///
    /// # Errors
    /// Like [`Socket::set_mark`].
    pub fn set_mark(&self, mark: u32) -> io::Result<()> {
        self.shared.socket.set_mark(mark)
    }

    /// If another interface has the configured name now, binds the socket to that interface. Returns whether it
    /// has.
    ///
    /// # Errors
    /// Like [`Socket::follow_device`].
    pub fn follow_device(&self) -> io::Result<bool> {
        self.shared.socket.follow_device()
    }

    /// Why this host refused to send a data thread's datagram, if it has refused one since the last
    /// [`Engine::take_refusal`]. Only the first refusal wakes the control plane.
    pub fn refusal(&self) -> Option<Refusal> {
        Refusal::from_errno(self.shared.refused.load(Relaxed))
    }

    /// Like [`Engine::refusal`], and also resets it, so that the next refusal wakes the control plane again.
    pub fn take_refusal(&self) -> Option<Refusal> {
        Refusal::from_errno(self.shared.refused.swap(0, Relaxed))
    }

    /// Readable when a data thread wakes the control plane. Call [`Engine::drain`] before reading the changed
    /// state.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.shared.control.as_fd()
    }

    /// Acknowledges all wakes so far.
    pub fn drain(&self) {
        self.shared.control.drain();
    }

    /// Stops all threads and waits for them; afterwards they hold no keys. The device stays open.
    pub fn stop(&mut self) {
        let mac1 = self.shared.view.load().table.mac1.clone();
        self.publish(stopped(mac1));
        self.join();
    }

    /// Like [`Engine::stop`], but each thread first finishes what it has read: no packet is lost if another process reads
    /// the same device and socket from now on.
    pub fn finish(&mut self) {
        let last = finishing(&self.shared.view.load().table);
        self.publish(last);
        // A link that is stalled has no room for what a thread has read.
        let begun = Instant::now();
        while begun.elapsed() < FINISH_WITHIN && !self.threads.iter().all(JoinHandle::is_finished) {
            thread::sleep(Duration::from_millis(1));
        }
        self.stop();
    }

    /// The descriptors of the device.
    pub fn device(&self) -> vpnd_tun::Descriptors<'_> {
        self.shared.device.descriptors()
    }

    fn join(&mut self) {
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!(
                    "a data thread panicked; please report the log lines before this one"
                );
            }
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The name of the thread that reads a queue.
fn outbound(queue: usize) -> String {
    if queue == 0 { "outbound".to_owned() } else { format!("outbound-{}", queue + 1) }
}

fn stopped(mac1: [Option<Mac1Key>; IDENTITIES]) -> Table {
    Table {
        send: None,
        path: None,
        open: Default::default(),
        mac1,
        awaiting_cookie: [None; 2],
        roam: Default::default(),
        left: None,
        holds: false,
        stop: true,
    }
}

/// The same table, with which the threads finish what they have read, and stop.
fn finishing(table: &Table) -> Table {
    Table {
        send: table.send.clone(),
        path: table.path,
        open: table.open.clone(),
        mac1: table.mac1.clone(),
        awaiting_cookie: table.awaiting_cookie,
        roam: table.roam,
        left: table.left,
        holds: table.holds,
        stop: true,
    }
}

/// Runs one worker on a thread. If the thread ends without being stopped, or panics, the control plane receives
/// the reason.
fn spawn(
    name: &str,
    ended: mpsc::Sender<io::Error>,
    run: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let last_words = LastWords { name: name.to_owned(), ended };
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        if let Err(error) = run() {
            last_words.say(error);
        }
    })
}

/// Reports when its thread unwinds, so that no worker ends unnoticed.
struct LastWords {
    name: String,
    ended: mpsc::Sender<io::Error>,
}

impl LastWords {
    fn say(&self, error: io::Error) {
        // If the queue is full, other threads have already reported.
        let _said = self.ended.try_send(error);
    }
}

impl Drop for LastWords {
    fn drop(&mut self) {
        if thread::panicking() {
            self.say(io::Error::other(format!("the {} thread panicked", self.name)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_panics_is_missed_at_once() {
        let (ended, mut said) = mpsc::channel(2);
        let thread = spawn("inbound", ended, || panic!("for the test")).unwrap();
        assert!(thread.join().is_err());
        assert!(said.try_recv().unwrap().to_string().contains("inbound thread panicked"));
    }

    #[test]
    fn a_thread_that_fails_says_why_and_one_that_stops_says_nothing() {
        let (ended, mut said) = mpsc::channel(2);
        spawn("outbound", ended.clone(), || Ok(())).unwrap().join().unwrap();
        assert!(said.try_recv().is_err());
        let fail = || Err(io::Error::from_raw_os_error(libc::EBADFD));
        spawn("outbound", ended, fail).unwrap().join().unwrap();
        assert_eq!(said.try_recv().unwrap().raw_os_error(), Some(libc::EBADFD));
    }
}
