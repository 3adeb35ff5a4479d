//! What the WireGuard socket of a running tunnel needs beside the configuration.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use vpnd_crypto::PresharedKey;

use super::{Asked, Uapi};

/// The socket, and what was set through it.
pub(crate) struct Hold {
    uapi: Option<Uapi>,
    /// The preshared key in force, which only root is shown; all zeros if there is none, or no socket.
    pub(crate) preshared: PresharedKey,
    /// The interval of keepalives in force.
    pub(crate) keepalive: Option<Duration>,
    /// The address that replaces the configured endpoints.
    pub(crate) endpoint: Option<SocketAddr>,
}

impl Hold {
    /// The socket, if there is one, of a tunnel that starts with these.
    pub(crate) fn new(
        uapi: Option<Uapi>,
        preshared: &PresharedKey,
        keepalive: Option<Duration>,
    ) -> Self {
        let mut hold = Self { uapi, preshared: PresharedKey::default(), keepalive, endpoint: None };
        hold.keep(preshared);
        hold
    }

    /// Another preshared key is in force. Without a socket nobody can ask for it, and there is no copy.
    pub(crate) fn keep(&mut self, preshared: &PresharedKey) {
        if self.uapi.is_some() {
            self.preshared = preshared.copy();
        }
    }

    /// The socket, for the next process of the tunnel.
    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.uapi.as_ref().map(AsFd::as_fd)
    }

    /// Serves clients from now on.
    pub(crate) fn begin(&mut self) {
        self.uapi.iter_mut().for_each(Uapi::begin);
    }

    /// Leaves the socket to the next process.
    pub(crate) fn leave(&mut self) {
        self.uapi.iter_mut().for_each(Uapi::leave);
    }

    /// The next request.
    pub(crate) async fn next(&mut self) -> Asked {
        match &mut self.uapi {
            Some(uapi) => uapi.next().await,
            None => std::future::pending().await,
        }
    }
}
