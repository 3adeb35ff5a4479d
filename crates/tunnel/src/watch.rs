//! Who watches the device.
//!
//! While little comes out of it the inbound thread does, beside the socket: so that what the kernel
//! answers to a packet just written leaves at once, from the thread that wrote it, and nobody has to be
//! woken. Once more comes than it takes along in passing, it calls the outbound thread, which watches the
//! device until it has found little there several times in a row.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use nix::poll::PollFlags;

use crate::outbound::{Load, Outbound};
use crate::shared::{Shared, Signal, wait, wait_for_either};

/// So many light turns in a row, and the outbound thread lets the inbound one watch.
const LIGHT_TURNS: u32 = 8;
/// So many reads the inbound thread takes along.
const IN_PASSING: usize = 8;

/// The outbound line, and whose turn it is to look after it.
pub(crate) struct Watch {
    shared: Arc<Shared>,
    line: Mutex<Outbound>,
    /// The inbound thread watches the device; whoever sets it wakes that thread.
    inbound_watches: AtomicBool,
    /// Wakes the outbound thread: a publication, or a call.
    outbound: Signal,
    /// Wakes the inbound thread: a publication, or the device is its to watch.
    inbound: Signal,
}

impl Watch {
    /// The outbound thread begins.
    pub(crate) fn new(shared: Arc<Shared>) -> io::Result<Self> {
        let line = Mutex::new(Outbound::new(Arc::clone(&shared)));
        let (outbound, inbound) = (Signal::new()?, Signal::new()?);
        Ok(Self { shared, line, inbound_watches: AtomicBool::new(false), outbound, inbound })
    }

    /// Wakes both threads.
    pub(crate) fn raise(&self) {
        self.outbound.raise();
        self.inbound.raise();
    }

    /// The outbound thread: takes what comes out of the device, until the table says stop.
    ///
    /// # Errors
    /// When the device is gone.
    pub(crate) fn run(&self) -> io::Result<()> {
        let mut light = 0;
        while !self.shared.table.load().stop {
            self.inbound_watches.store(false, Relaxed);
            let load = {
                let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
                line.turn(usize::MAX)?
            };
            light = if load == Load::Light { light + 1 } else { 0 };
            if light < LIGHT_TURNS {
                wait(self.shared.queue.as_fd(), PollFlags::POLLIN, &self.outbound)?;
            } else {
                self.inbound_watches.store(true, Relaxed);
                self.inbound.raise();
                self.outbound.wait()?;
                light = 0;
            }
        }
        Ok(())
    }

    /// The inbound thread, whenever it has written to the device or found it readable: takes along what
    /// there is, if the device is its to watch.
    ///
    /// # Errors
    /// When the device is gone.
    pub(crate) fn answer(&self) -> io::Result<()> {
        if !self.inbound_watches.load(Relaxed) {
            return Ok(());
        }
        let mut line = match self.line.try_lock() {
            Ok(line) => line,
            Err(TryLockError::Poisoned(line)) => line.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(()),
        };
        if line.turn(IN_PASSING)? == Load::Heavy && self.inbound_watches.swap(false, Relaxed) {
            self.outbound.raise();
        }
        Ok(())
    }

    /// The inbound thread, when nothing has arrived: sleeps until something does, or, if the device is its
    /// to watch, until there is something to answer.
    ///
    /// # Errors
    /// When the device is gone, or the kernel has no memory to wait with.
    pub(crate) fn wait_inbound(&self) -> io::Result<()> {
        let socket = self.shared.socket.as_fd();
        if !self.inbound_watches.load(Relaxed) {
            return wait(socket, PollFlags::POLLIN, &self.inbound);
        }
        if wait_for_either(socket, self.shared.queue.as_fd(), &self.inbound)? {
            self.answer()?;
        }
        Ok(())
    }
}
