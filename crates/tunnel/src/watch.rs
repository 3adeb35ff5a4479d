//! Decides which thread reads the device.
//!
//! While the device delivers few packets, the inbound thread reads it together with the socket: the kernel's
//! reply to a packet that was just written is then sent at once by the same thread, and no other thread has to
//! be woken. If the device delivers more than the inbound thread handles in passing, the inbound thread wakes
//! the outbound thread, which reads the device until several polls in a row have found little.
//!
//! If the device has several queues, each queue has an outbound thread that always reads it, because the single
//! inbound thread already has enough work.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use nix::poll::PollFlags;

use crate::outbound::{Load, Outbound};
use crate::shared::{Shared, Signal, wait, wait_for_either};

/// After this many light polls in a row, the outbound thread hands the device over to the inbound thread.
const LIGHT_TURNS: u32 = 8;
/// The maximum number of reads that the inbound thread does in passing.
const IN_PASSING: usize = 8;

/// The outbound workers, and which thread reads a device with a single queue.
pub(crate) struct Watch {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
    /// Whether the inbound thread reads the device. The thread that sets this flag wakes the inbound thread.
    inbound_watches: AtomicBool,
    /// Wakes the inbound thread after a publication, or when it has to read the device.
    inbound: Signal,
}

/// The worker of one device queue.
struct Worker {
    outbound: Mutex<Outbound>,
    /// Wakes the outbound thread after a publication, or when the inbound thread hands the device over.
    signal: Signal,
}

impl Worker {
    fn new(shared: &Arc<Shared>, queue: usize) -> io::Result<Self> {
        let outbound = Mutex::new(Outbound::new(Arc::clone(shared), queue));
        Ok(Self { outbound, signal: Signal::new()? })
    }
}

impl Watch {
    /// At first the outbound threads read the device.
    pub(crate) fn new(shared: Arc<Shared>) -> io::Result<Self> {
        let workers = (0..shared.device.queues.len()).map(|queue| Worker::new(&shared, queue));
        let (workers, inbound) = (workers.collect::<Result<_, _>>()?, Signal::new()?);
        Ok(Self { shared, workers, inbound_watches: AtomicBool::new(false), inbound })
    }

    /// Wakes all threads.
    pub(crate) fn raise(&self) {
        self.workers.iter().for_each(|worker| worker.signal.raise());
        self.inbound.raise();
    }

    /// Whether all threads have noticed the last [`raise`](Self::raise).
    pub(crate) fn is_heeded(&self) -> bool {
        let signals = self.workers.iter().map(|worker| &worker.signal).chain([&self.inbound]);
        !signals.into_iter().any(Signal::is_raised)
    }

    /// Runs the outbound thread of a queue: sends the queue's packets until the table tells it to stop.
    ///
    /// # Errors
    /// If the device is gone.
    pub(crate) fn run(&self, queue: usize) -> io::Result<()> {
        let (worker, alone) = (&self.workers[queue], self.workers.len() == 1);
        let mut light = 0;
        while !self.shared.view.load().table.stop {
            if self.shared.view.load().table.holds {
                worker.signal.wait()?;
                continue;
            }
            self.inbound_watches.store(false, Relaxed);
            let load = {
                let mut outbound = worker.outbound.lock().unwrap_or_else(PoisonError::into_inner);
                outbound.poll(usize::MAX)?
            };
            light = if load == Load::Light && alone { light + 1 } else { 0 };
            if light < LIGHT_TURNS {
                wait(self.shared.device.queues[queue].as_fd(), PollFlags::POLLIN, &worker.signal)?;
            } else {
                self.inbound_watches.store(true, Relaxed);
                self.inbound.raise();
                worker.signal.wait()?;
                light = 0;
            }
        }
        Ok(())
    }

    /// The inbound thread calls this after it has written to the device or found it readable. Forwards a few
    /// packets if the inbound thread reads the device.
    ///
    /// # Errors
    /// If the device is gone.
    pub(crate) fn answer(&self) -> io::Result<()> {
        if !self.inbound_watches.load(Relaxed) {
            return Ok(());
        }
        let worker = &self.workers[0];
        let mut outbound = match worker.outbound.try_lock() {
            Ok(outbound) => outbound,
            Err(TryLockError::Poisoned(outbound)) => outbound.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(()),
        };
        if outbound.poll(IN_PASSING)? == Load::Heavy && self.inbound_watches.swap(false, Relaxed) {
            worker.signal.raise();
        }
        Ok(())
    }

    /// The inbound thread calls this when nothing has arrived. Sleeps until a datagram arrives or, if the
    /// inbound thread reads the device, until the device is readable.
    ///
    /// # Errors
    /// If the device is gone, or the kernel has no memory for the wait.
    pub(crate) fn wait_inbound(&self) -> io::Result<()> {
        let socket = self.shared.socket.as_fd();
        if !self.inbound_watches.load(Relaxed) {
            return wait(socket, PollFlags::POLLIN, &self.inbound);
        }
        if wait_for_either(socket, self.shared.device.queues[0].as_fd(), &self.inbound)? {
            self.answer()?;
        }
        Ok(())
    }
}
