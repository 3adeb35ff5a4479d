//! The state that the data threads and the control plane share, and functions to wait for events.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::Relaxed};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use vpnd_crypto::stack;
use vpnd_protocol::activity::Activity;
use vpnd_protocol::drop_reason::DropReason;
use vpnd_protocol::wake_flag::Wake;
use vpnd_tun::{Device, Mode};

use crate::counters::Counters;
use crate::nested::Datagram;
use crate::pacing::Pacing;
use crate::refused::RefusedSources;
use crate::tap::Tap;
use crate::udp::{Refusal, Socket};
use crate::urgent::Urgent;
use crate::view::Published;

/// The state of one tunnel for all its threads: the fixed settings, the signals and counters, and the published
/// view, which may change.
pub(crate) struct Shared {
    /// The device; each of its queues has a worker.
    pub(crate) device: Device,
    pub(crate) pacing: Pacing,
    pub(crate) socket: Socket,
    /// The control plane's datagrams that wait until the socket has room.
    pub(crate) urgent: Urgent,
    pub(crate) view: Published,
    pub(crate) activity: Arc<Activity>,
    pub(crate) counters: Counters,
    /// Copies packets while a capture runs.
    pub(crate) tap: Tap,
    /// Packets that the filter has refused, and that another configuration would allow.
    pub(crate) refused_sources: RefusedSources,
    /// Whether the path marks everything with "congestion experienced", so that its marks are ignored.
    pub(crate) marks_everything: AtomicBool,
    /// Whether packets or frames cross the device.
    pub(crate) mode: Mode,
    /// Wakes the control plane.
    pub(crate) control: Signal,
    /// The error number of the first send that this host refused; the control plane resets it.
    pub(crate) refused: AtomicI32,
}

impl Shared {
    /// Records that this host refused to send. Only the first refusal wakes the control plane.
    pub(crate) fn refuse(&self, error: &io::Error) {
        let errno = error.raw_os_error().unwrap_or_default();
        if Refusal::from_errno(errno).is_some()
            && self.refused.load(Relaxed) == 0
            && self.refused.swap(errno, Relaxed) == 0
        {
            self.control.raise();
        }
    }

    /// Sends the control plane's datagrams that wait, as far as the socket has room.
    pub(crate) fn send_urgent(&self) {
        self.urgent.flush(&self.socket, |error| {
            self.counters.count(DropReason::SendFailed, 1);
            self.refuse(error);
        });
    }

    pub(crate) fn wake(&self, wake: Wake) {
        if wake.is_due() {
            self.control.raise();
        }
    }

    /// The next counter of the key; 0 if no key can seal.
    pub(crate) fn next_counter(&self) -> u64 {
        self.view.load().table.send.as_ref().map_or(0, |(key, _)| key.used())
    }

    /// Whether this tunnel itself has sent a datagram that came from the device.
    pub(crate) fn sent(&self, datagram: &Datagram<'_>) -> bool {
        let Datagram { from, to, payload } = *datagram;
        self.view.load().table.sent(self.socket.local_port(), from, to, payload)
    }
}

/// An eventfd: one thread raises it, and another thread waits for it.
pub(crate) struct Signal(EventFd);

impl Signal {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        Ok(Self(EventFd::from_value_and_flags(0, flags)?))
    }

    pub(crate) fn raise(&self) {
        // The counter is full if the signal was raised 2⁶⁴ − 1 times since it was drained; then it is raised
        // anyway.
        let _full = self.0.write(1);
    }

    pub(crate) fn drain(&self) {
        // The counter is empty if the signal was not raised.
        let _empty = self.0.read();
    }

    /// Whether it was raised since the waiting thread has last noticed it. The waiting thread must not have ended.
    pub(crate) fn is_raised(&self) -> bool {
        let mut fds = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        // If the kernel cannot say, nobody relies on it.
        poll_all(&mut fds, PollTimeout::ZERO).is_err() || fds[0].any() == Some(true)
    }

    /// Drains it. Something was published: keys that this thread has used may be gone, so what they have left on its stack
    /// is wiped, before anybody sees that it has noticed. It uses no key in between.
    fn attend(&self) {
        stack::wipe();
        self.drain();
    }

    /// Sleeps until the signal is raised, and drains it.
    pub(crate) fn wait(&self) -> io::Result<()> {
        poll_all(&mut [PollFd::new(self.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
        self.attend();
        Ok(())
    }
}

impl AsFd for Signal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Sleeps until `fd` is ready for `flags` or `signal` is raised. Drains the signal, so that the next
/// publication raises it again.
pub(crate) fn wait(fd: BorrowedFd<'_>, flags: PollFlags, signal: &Signal) -> io::Result<()> {
    let mut fds = [PollFd::new(fd, flags), PollFd::new(signal.as_fd(), PollFlags::POLLIN)];
    poll_all(&mut fds, PollTimeout::NONE)?;
    if fds[1].any() == Some(true) {
        signal.attend();
    }
    Ok(())
}

/// Like [`wait`], until one of two descriptors is readable; returns whether the second one is.
pub(crate) fn wait_for_either(
    first: BorrowedFd<'_>,
    second: BorrowedFd<'_>,
    signal: &Signal,
) -> io::Result<bool> {
    let mut fds = [first, second, signal.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    poll_all(&mut fds, PollTimeout::NONE)?;
    if fds[2].any() == Some(true) {
        signal.attend();
    }
    Ok(fds[1].any() == Some(true))
}

/// Polls the descriptors. A signal to the process is not an error: the next poll shows which ones are ready.
fn poll_all(fds: &mut [PollFd<'_>], timeout: PollTimeout) -> io::Result<()> {
    match poll(fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Waits up to 100 ms until the socket has room to send.
pub(crate) fn await_room(fd: BorrowedFd<'_>) -> io::Result<()> {
    const MILLISECONDS: u8 = 100;
    poll_all(&mut [PollFd::new(fd, PollFlags::POLLOUT)], MILLISECONDS.into())
}

/// Whether a device error means that the device is gone for good.
pub fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::EBADF | libc::ENODEV | libc::ENXIO))
}
