//! Who watches the device.
//!
//! While little comes out of it the inbound thread does, beside the socket: so that what the kernel
//! answers to a packet just written leaves at once, from the thread that wrote it, and nobody has to be
//! woken. Once more comes than it takes along in passing, it calls the outbound thread, which watches the
//! device until it has found little there several times in a row.
//!
//! Each queue of several has an outbound thread that always watches it: the inbound thread, of which
//! there is one, has enough to do.

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

/// The outbound lines, and whose turn it is to look after the only one.
pub(crate) struct Watch {
    shared: Arc<Shared>,
    lines: Vec<Line>,
    /// The inbound thread watches the device; whoever sets it wakes that thread.
    inbound_watches: AtomicBool,
    /// Wakes the inbound thread: a publication, or the device is its to watch.
    inbound: Signal,
}

/// An outbound line, out of one of the device's queues.
struct Line {
    outbound: Mutex<Outbound>,
    /// Wakes its outbound thread: a publication, or a call.
    signal: Signal,
}

impl Line {
    fn new(shared: &Arc<Shared>, queue: usize) -> io::Result<Self> {
        let outbound = Mutex::new(Outbound::new(Arc::clone(shared), queue));
        Ok(Self { outbound, signal: Signal::new()? })
    }
}

impl Watch {
    /// The outbound threads begin.
    pub(crate) fn new(shared: Arc<Shared>) -> io::Result<Self> {
        let lines = (0..shared.device.queues.len()).map(|queue| Line::new(&shared, queue));
        let (lines, inbound) = (lines.collect::<Result<_, _>>()?, Signal::new()?);
        Ok(Self { shared, lines, inbound_watches: AtomicBool::new(false), inbound })
    }

    /// Wakes all threads.
    pub(crate) fn raise(&self) {
        self.lines.iter().for_each(|line| line.signal.raise());
        self.inbound.raise();
    }

    /// The outbound thread of a queue: takes what comes out of that, until the table says stop.
    ///
    /// # Errors
    /// When the device is gone.
    pub(crate) fn run(&self, queue: usize) -> io::Result<()> {
        let (line, alone) = (&self.lines[queue], self.lines.len() == 1);
        let mut light = 0;
        while !self.shared.view.load().table.stop {
            self.inbound_watches.store(false, Relaxed);
            let load = {
                let mut outbound = line.outbound.lock().unwrap_or_else(PoisonError::into_inner);
                outbound.turn(usize::MAX)?
            };
            light = if load == Load::Light && alone { light + 1 } else { 0 };
            if light < LIGHT_TURNS {
                wait(self.shared.device.queues[queue].as_fd(), PollFlags::POLLIN, &line.signal)?;
            } else {
                self.inbound_watches.store(true, Relaxed);
                self.inbound.raise();
                line.signal.wait()?;
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
        let line = &self.lines[0];
        let mut outbound = match line.outbound.try_lock() {
            Ok(outbound) => outbound,
            Err(TryLockError::Poisoned(outbound)) => outbound.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(()),
        };
        if outbound.turn(IN_PASSING)? == Load::Heavy && self.inbound_watches.swap(false, Relaxed) {
            line.signal.raise();
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
        if wait_for_either(socket, self.shared.device.queues[0].as_fd(), &self.inbound)? {
            self.answer()?;
        }
        Ok(())
    }
}
