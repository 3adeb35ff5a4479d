//! The state that the data threads and the control plane share, and how a thread sleeps.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::Relaxed};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use vpnd_protocol::activity::Activity;
use vpnd_protocol::drop_reason::DropReason;
use vpnd_protocol::edge::Wake;
use vpnd_tun::{Device, Mode};

use crate::abreast::Abreast;
use crate::counters::Counters;
use crate::guard::Guard;
use crate::nested::Datagram;
use crate::refused::RefusedSources;
use crate::udp::{Refusal, Socket};
use crate::urgent::Urgent;
use crate::view::Published;

/// One tunnel, as all its threads see it: the fixed settings, the signals and counters, and the published
/// view, which may change.
pub(crate) struct Shared {
    /// Each of its queues has a worker.
    pub(crate) device: Device,
    pub(crate) abreast: Abreast,
    pub(crate) socket: Socket,
    /// The control plane's datagrams that wait for room in it.
    pub(crate) urgent: Urgent,
    pub(crate) view: Published,
    pub(crate) activity: Arc<Activity>,
    pub(crate) counters: Counters,
    /// Packets refused by the filter that another configuration would let pass.
    pub(crate) refused_sources: RefusedSources,
    /// Which messages of routers and DHCP servers are stopped.
    pub(crate) guard: Guard,
    /// The path sets the congestion mark on everything, so its marks are ignored.
    pub(crate) marks_everything: AtomicBool,
    /// What crosses the device.
    pub(crate) mode: Mode,
    /// Wakes the control plane.
    pub(crate) control: Signal,
    /// The error number of the first send that this host refused, until the control plane takes it.
    pub(crate) refused: AtomicI32,
}

impl Shared {
    /// Notes that this host refused to send. Only the first refusal wakes the control plane.
    pub(crate) fn refuse(&self, error: &io::Error) {
        let errno = error.raw_os_error().unwrap_or_default();
        if Refusal::from_errno(errno).is_some()
            && self.refused.load(Relaxed) == 0
            && self.refused.swap(errno, Relaxed) == 0
        {
            self.control.raise();
        }
    }

    /// Sends the control plane's datagrams that wait, as far as there is room.
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

    /// The next counter to be taken; 0 if no key can seal.
    pub(crate) fn next_counter(&self) -> u64 {
        self.view.load().table.send.as_ref().map_or(0, |(key, _)| key.used())
    }

    /// Whether a datagram that came from the device was sent by this very tunnel.
    pub(crate) fn sent(&self, datagram: &Datagram<'_>) -> bool {
        let Datagram { from, to, payload } = *datagram;
        self.view.load().table.sent(self.socket.local_port(), from, to, payload)
    }
}

/// An eventfd: raised by one thread, waited for by another.
pub(crate) struct Signal(EventFd);

impl Signal {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        Ok(Self(EventFd::from_value_and_flags(0, flags)?))
    }

    pub(crate) fn raise(&self) {
        // Full means raised 2⁶⁴ − 1 times and not yet drained: it is raised all the same.
        let _full = self.0.write(1);
    }

    pub(crate) fn drain(&self) {
        // Empty means that it was not raised since.
        let _empty = self.0.read();
    }

    /// Sleeps until it is raised, and drains it.
    pub(crate) fn wait(&self) -> io::Result<()> {
        poll_all(&mut [PollFd::new(self.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
        self.drain();
        Ok(())
    }
}

impl AsFd for Signal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Sleeps until `fd` is ready for `flags` or `signal` is raised. The signal is drained, so that the next
/// publication raises it anew.
pub(crate) fn wait(fd: BorrowedFd<'_>, flags: PollFlags, signal: &Signal) -> io::Result<()> {
    let mut fds = [PollFd::new(fd, flags), PollFd::new(signal.as_fd(), PollFlags::POLLIN)];
    poll_all(&mut fds, PollTimeout::NONE)?;
    if fds[1].any() == Some(true) {
        signal.drain();
    }
    Ok(())
}

/// As [`wait`], for either of two descriptors to be readable; returns whether the second is.
pub(crate) fn wait_for_either(
    first: BorrowedFd<'_>,
    second: BorrowedFd<'_>,
    signal: &Signal,
) -> io::Result<bool> {
    let mut fds = [first, second, signal.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    poll_all(&mut fds, PollTimeout::NONE)?;
    if fds[2].any() == Some(true) {
        signal.drain();
    }
    Ok(fds[1].any() == Some(true))
}

/// A signal to the process is no error: the next poll shows what is ready.
fn poll_all(fds: &mut [PollFd<'_>], timeout: PollTimeout) -> io::Result<()> {
    match poll(fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Waits up to 100 ms for room to send.
pub(crate) fn await_room(fd: BorrowedFd<'_>) -> io::Result<()> {
    const MILLISECONDS: u8 = 100;
    poll_all(&mut [PollFd::new(fd, PollFlags::POLLOUT)], MILLISECONDS.into())
}

/// Whether a device error means that the device is gone for good.
pub fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::EBADF | libc::ENODEV | libc::ENXIO))
}
