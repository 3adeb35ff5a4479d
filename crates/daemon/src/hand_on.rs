//! Hands the device, the sockets and the sessions on to the next process of the tunnel: through the store of descriptors of
//! systemd, which keeps them over a restart and a crash, or to a process that has asked for them (`vpnd run --take-over`).
//!
//! While the tunnel runs, systemd's store has the device, the UDP socket, the socket that our nftables table belongs to, and
//! the text of the configuration. The sessions are added in an orderly restart only, when no thread of this process seals or
//! opens any more. The next process removes them from the store before it reads them.
//!
//! A process that has asked receives everything but the sessions at once, and prepares, while this one runs the tunnel. When
//! it is ready, it says so: only then this process stops its threads and hands on the sessions. If it fails before, this
//! process goes on, and says that. A connection that is closed without a word means that this process has crashed.

mod asking;

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::memfd::{MFdFlags, memfd_create};
use vpnd_protocol::inheritance::Inheritance;
use vpnd_tun::Descriptors;

use crate::service;

pub(crate) use asking::{Asking, READY};

/// The number of bytes of a record that precedes a descriptor on the control socket.
pub(crate) const RECORD: usize = 16;

/// What a descriptor is; the store and the control socket name it so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// A queue of the device.
    Queue,
    /// The queue that is only written.
    Writer,
    /// The UDP socket.
    Socket,
    /// The socket that our nftables table belongs to.
    Firewall,
    /// The control socket.
    Control,
    /// The WireGuard socket.
    Uapi,
    /// The socket of the metrics.
    Metrics,
    /// The text of the configuration, in memory.
    Configuration,
    /// All that is known of the peer but the sessions, in memory.
    Outlook,
    /// The sessions, in memory.
    Sessions,
}

impl Kept {
    /// All of them.
    pub(crate) const ALL: [Self; 10] = [
        Self::Queue,
        Self::Writer,
        Self::Socket,
        Self::Firewall,
        Self::Control,
        Self::Uapi,
        Self::Metrics,
        Self::Configuration,
        Self::Outlook,
        Self::Sessions,
    ];

    /// The name: shorter than [`RECORD`], and valid for systemd.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Writer => "writer",
            Self::Socket => "socket",
            Self::Firewall => "firewall",
            Self::Control => "control",
            Self::Uapi => "uapi",
            Self::Metrics => "metrics",
            Self::Configuration => "configuration",
            Self::Outlook => "outlook",
            Self::Sessions => "sessions",
        }
    }

    /// The kind with this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kept| kept.name() == name)
    }
}

/// The descriptors of a running tunnel that another process can continue with.
pub(crate) struct Offer<'a> {
    pub(crate) device: Descriptors<'a>,
    pub(crate) socket: BorrowedFd<'a>,
    /// The socket that our nftables table belongs to.
    pub(crate) firewall: Option<OwnedFd>,
    /// Sockets with clients.
    pub(crate) listeners: Vec<(Kept, BorrowedFd<'a>)>,
}

impl Offer<'_> {
    fn descriptors(&self) -> impl Iterator<Item = (Kept, BorrowedFd<'_>)> {
        let queues = self.device.queues.iter().map(|queue| (Kept::Queue, *queue));
        let writer = self.device.writer.iter().map(|writer| (Kept::Writer, *writer));
        let firewall = self.firewall.iter().map(|socket| (Kept::Firewall, socket.as_fd()));
        let listeners = self.listeners.iter().copied();
        queues.chain(writer).chain([(Kept::Socket, self.socket)]).chain(firewall).chain(listeners)
    }
}

/// Gives systemd what it keeps while the tunnel runs.
pub(crate) fn keep(offer: &Offer<'_>) {
    for (kept, descriptor) in offer.descriptors() {
        service::keep(kept.name(), descriptor);
    }
}

/// Gives systemd the text of the configuration to keep, for a next process whose own file is not valid.
pub(crate) fn keep_configuration(source: &str) {
    match in_memory(source.as_bytes()) {
        Ok(file) => {
            // That of an earlier process.
            service::forget(Kept::Configuration.name());
            service::keep(Kept::Configuration.name(), file.as_fd());
        }
        Err(error) => tracing::debug!(%error, "the configuration is not kept for the next process"),
    }
}

/// Makes systemd close the device that it keeps, which the tunnel does not continue with.
pub(crate) fn forget_device() {
    [Kept::Queue, Kept::Writer].into_iter().for_each(|kept| service::forget(kept.name()));
}

/// Makes systemd close everything that it keeps: the tunnel ends.
pub(crate) fn forget() {
    Kept::ALL.into_iter().for_each(|kept| service::forget(kept.name()));
}

/// Who continues with the tunnel.
pub(crate) enum Successor {
    /// The process that systemd starts next.
    OfService,
    /// A process that has asked for it on the control socket, and is ready.
    Asking(Asking),
}

impl Successor {
    /// Hands on the sessions `left`.
    ///
    /// # Errors
    ///
    /// If there is no memory for them, or the process has left.
    pub(crate) fn receives(&self, binding: &[u8; 64], left: &Inheritance) -> io::Result<()> {
        match self {
            Self::OfService => {
                let sessions = bound_to(binding, left)?;
                service::keep(Kept::Sessions.name(), sessions.as_fd());
                Ok(())
            }
            Self::Asking(asking) => asking.receives(binding, left),
        }
    }
}

/// What is left, in memory. What it is bound to comes first: sessions under other keys or terms are of no use.
fn bound_to(binding: &[u8; 64], left: &Inheritance) -> io::Result<OwnedFd> {
    let encoded = left.encode();
    let mut file = File::from(in_memory(binding)?);
    file.write_all(&encoded)?;
    Ok(file.into())
}

/// A file that exists only in memory, with these bytes.
fn in_memory(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create(c"vpnd", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(bytes)?;
    file.seek(io::SeekFrom::End(0))?;
    Ok(file.into())
}
