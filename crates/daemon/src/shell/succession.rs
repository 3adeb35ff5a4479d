//! Lets another process continue with the tunnel.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use vpnd_tunnel::clock;

use super::candidate::Candidate;
use super::{Ending, Shell, ShellError};
use crate::firewall::Rules;
use crate::hand_on::{Asking, Kept, Offer, Successor};

impl Shell {
    /// Hands everything but the sessions to the process at the other end, if it is still there.
    pub(super) async fn offer(&mut self, stream: UnixStream) {
        if self.candidate.is_some() {
            // That the connection is closed without a word says enough.
            tracing::warn!("a second process asks for the tunnel while another one prepares");
            return;
        }
        let alter = &self.around.alter;
        let rules = alter.rules.clone();
        let Ok(device) = alter.hold.begin().await else { return };
        let paused = match &rules {
            Some(rules) => rules.pause().await,
            None => None,
        };
        let binding = alter.keys.binding(&self.around.running);
        let outlook = self.plane.outlook();
        match Asking::offer(stream, &self.offered(rules.as_ref()), (&binding, &outlook)) {
            Ok(asking) => {
                tracing::info!("another process prepares to continue with this tunnel");
                self.candidate = Some(Candidate { asking, device, rules: paused });
            }
            Err(error) => tracing::warn!("the process that asked for the tunnel has left: {error}"),
        }
    }

    fn offered(&self, rules: Option<&Rules>) -> Offer<'_> {
        let around = &self.around;
        let control = around.control.as_ref().map(|control| (Kept::Control, control.as_fd()));
        let uapi = around.hold.socket().map(|socket| (Kept::Uapi, socket));
        let metrics = around.metrics.as_ref().map(|metrics| (Kept::Metrics, metrics.as_fd()));
        Offer {
            device: self.engine.device(),
            socket: self.engine.socket_fd(),
            firewall: rules.and_then(|rules| rules.socket().ok()),
            listeners: [control, uapi, metrics].into_iter().flatten().collect(),
        }
    }

    /// The process is ready, or has failed: then this one goes on, and sets again what the other may have changed.
    ///
    /// # Errors
    /// If nobody continues.
    pub(super) fn decided(
        &mut self,
        ready: io::Result<Vec<Kept>>,
    ) -> Result<Option<Ending>, ShellError> {
        let Some(Candidate { asking, device, rules }) = self.candidate.take() else {
            return Ok(None);
        };
        match ready {
            Ok(taken) => {
                // Nothing of this process changes the device or the packet filter any more.
                std::mem::forget((device, rules));
                self.leave(&taken);
                self.hand_on(Successor::Asking(asking)).map(Some)
            }
            Err(error) => {
                let why = match error.kind() {
                    io::ErrorKind::UnexpectedEof => "it has ended".to_owned(),
                    io::ErrorKind::TimedOut => "it takes too long".to_owned(),
                    _ => error.to_string(),
                };
                tracing::warn!(
                    "the process that was to continue with this tunnel has failed: {why}; the tunnel goes on"
                );
                asking.refuse(&format!("{why}; the tunnel goes on as before"));
                self.set_socket_again();
                Ok(None)
            }
        }
    }

    /// Both processes have the same socket.
    fn set_socket_again(&self) {
        let (socket, wanted) = (self.engine.socket(), &self.around.running.socket);
        let set = socket
            .set_egress(&self.around.egress)
            .and_then(|()| socket.set_buffers(wanted.rcvbuf, wanted.sndbuf));
        if let Err(error) = set {
            tracing::warn!("{error}");
        }
    }

    /// Leaves these sockets to the next process, with their clients.
    fn leave(&mut self, taken: &[Kept]) {
        for kept in taken {
            match kept {
                Kept::Control => {
                    self.around.control.iter_mut().for_each(crate::control::Control::leave)
                }
                Kept::Uapi => self.around.hold.leave(),
                Kept::Metrics => {
                    self.around.metrics.iter().for_each(crate::metrics::Metrics::leave)
                }
                _ => {}
            }
        }
    }

    /// Lets another process continue with the tunnel. The peer is told nothing. No thread seals or opens any more when the
    /// sessions are handed on.
    ///
    /// # Errors
    /// If nobody continues.
    pub(super) fn hand_on(&mut self, to: Successor) -> Result<Ending, ShellError> {
        tracing::info!("another process of this tunnel continues with it");
        self.around.service.stopping();
        self.engine.finish();
        let left = self.plane.hand_on(clock::now());
        let binding = self.around.alter.keys.binding(&self.around.running);
        match to.receives(&binding, &left) {
            // A process that has asked waits until the connection is closed.
            Ok(()) => drop(to),
            Err(error) if matches!(to, Successor::Asking(_)) => {
                return Err(ShellError::NoSuccessor(error));
            }
            Err(error) => {
                tracing::warn!("the next process has to begin with a handshake: {error}");
            }
        }
        Ok(Ending::HandedOn)
    }
}
