//! Handles signals, most of which ask for a stop.

use std::cell::Cell;
use std::io;
use std::rc::Rc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::systemd;

/// The signals that ask for a clean stop, and the signals that modify it.
pub(crate) struct Stop {
    terminate: Signal,
    interrupt: Signal,
    /// Announces that the next stop is part of a restart.
    restart: Signal,
    /// SIGHUP: the terminal was closed, or a service has to read its configuration again.
    hangup: Signal,
    /// Reads the configuration again; set once there is a tunnel that can be reloaded.
    reload: Option<Box<dyn Fn()>>,
    by: Rc<Cell<Option<Asked>>>,
}

/// Who asked for the stop.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Usually the service manager, which may start vpnd again at once.
    Terminate,
    /// The service manager, which has announced a restart.
    Restart,
    /// A user at the terminal.
    Interrupt,
}

impl Stop {
    /// Installs the handlers. From now on these signals do not end the process.
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

    /// Makes a service read its configuration again after SIGHUP, from now on.
    pub(crate) fn on_reload(&mut self, reload: impl Fn() + 'static) {
        self.reload = Some(Box::new(reload));
    }

    /// Waits for a signal that asks for a stop.
    pub(crate) async fn asked(&mut self) {
        let mut restarts = false;
        let by = loop {
            tokio::select! {
                // The order matters: a restart is announced before the stop is requested.
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

    /// Who asked for the stop; `None` before the request.
    pub(crate) fn asked_by(&self) -> Rc<Cell<Option<Asked>>> {
        Rc::clone(&self.by)
    }
}
