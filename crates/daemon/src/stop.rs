//! The signals: most ask for a stop.

use std::cell::Cell;
use std::io;
use std::rc::Rc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::systemd;

/// The signals that ask for a clean stop, and those that go with them.
pub(crate) struct Stop {
    terminate: Signal,
    interrupt: Signal,
    /// Says that the stop to come is half of a restart.
    restart: Signal,
    /// The terminal is gone, or a service is to read its files again.
    hangup: Signal,
    /// Reads the configuration again, once there is a tunnel that could take it.
    reload: Option<Box<dyn Fn()>>,
    by: Rc<Cell<Option<Asked>>>,
}

/// Who asked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Whoever started vpnd, as a rule: a service manager, which may start it anew at once.
    Terminate,
    /// The same, which has said that it will.
    Restart,
    /// Somebody at the terminal.
    Interrupt,
}

impl Stop {
    /// From now on they do not end the process.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            restart: signal(SignalKind::user_defined1())?,
            hangup: signal(SignalKind::hangup())?,
            reload: None,
            by: Rc::default(),
        })
    }

    /// From now on a service reads its files again at SIGHUP.
    pub(crate) fn on_reload(&mut self, reload: impl Fn() + 'static) {
        self.reload = Some(Box::new(reload));
    }

    /// Waits for one that asks for a stop.
    pub(crate) async fn asked(&mut self) {
        let mut restarts = false;
        let by = loop {
            tokio::select! {
                // In this order: who announces a restart does so before it asks for the stop.
                biased;
                _ = self.restart.recv() => restarts = true,
                _ = self.terminate.recv() => {
                    break if restarts { Asked::Restart } else { Asked::Terminate };
                }
                _ = self.interrupt.recv() => break Asked::Interrupt,
                _ = self.hangup.recv() => {
                    if !systemd::started_us() {
                        break Asked::Interrupt;
                    }
                    self.reload.iter().for_each(|reload| reload());
                }
            }
        };
        self.by.set(Some(by));
    }

    /// By whom, once it is.
    pub(crate) fn asked_by(&self) -> Rc<Cell<Option<Asked>>> {
        Rc::clone(&self.by)
    }
}
