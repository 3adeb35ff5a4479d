//! Hands the device, the socket and the sessions on to the next process of the tunnel: through the store of descriptors of
//! systemd, which keeps them over a restart and a crash, or to a process that has asked for them (`vpnd run --take-over`).
//!
//! While the tunnel runs, systemd's store has the device, the socket and the text of the configuration. The sessions are
//! added in an orderly restart only, when no thread of this process seals or opens any more. The next process removes them
//! from the store before it reads them.

use std::fs::File;
use std::io::{self, IoSlice, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use vpnd_protocol::inheritance::Inheritance;
use vpnd_tun::Descriptors;

use crate::config::Config;
use crate::service;

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
    /// The text of the configuration, in memory.
    Configuration,
    /// The sessions, in memory.
    Sessions,
}

impl Kept {
    /// All of them.
    pub(crate) const ALL: [Self; 5] =
        [Self::Queue, Self::Writer, Self::Socket, Self::Configuration, Self::Sessions];

    /// The name: shorter than [`RECORD`], and valid for systemd.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Writer => "writer",
            Self::Socket => "socket",
            Self::Configuration => "configuration",
            Self::Sessions => "sessions",
        }
    }

    /// The kind with this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kept| kept.name() == name)
    }
}

/// Gives systemd the device and the socket to keep.
pub(crate) fn keep(device: &Descriptors<'_>, socket: BorrowedFd<'_>) {
    for (kept, descriptor) in of_tunnel(device, socket) {
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

/// Makes systemd close everything that it keeps: the tunnel ends.
pub(crate) fn forget() {
    Kept::ALL.into_iter().for_each(|kept| service::forget(kept.name()));
}

/// Who continues with the tunnel.
pub(crate) enum Successor {
    /// The process that systemd starts next.
    OfService,
    /// A process that has asked for it on the control socket.
    Asking(UnixStream),
}

impl Successor {
    /// Sends the device and the socket to the process that has asked. The tunnel still runs, and continues to run if this
    /// fails. It never waits: what is sent fits the buffer of a new connection.
    ///
    /// # Errors
    ///
    /// If the process has left.
    pub(crate) fn asking(
        stream: UnixStream,
        device: &Descriptors<'_>,
        socket: BorrowedFd<'_>,
    ) -> io::Result<Self> {
        for (kept, descriptor) in of_tunnel(device, socket) {
            send(&stream, kept, descriptor)?;
        }
        Ok(Self::Asking(stream))
    }

    /// Hands on the sessions `left`.
    ///
    /// # Errors
    ///
    /// If there is no memory for them, or the process has left.
    pub(crate) fn receives(&self, config: &Config, left: &Inheritance) -> io::Result<()> {
        let sessions = sessions(config, left)?;
        match self {
            Self::OfService => service::keep(Kept::Sessions.name(), sessions.as_fd()),
            Self::Asking(stream) => send(stream, Kept::Sessions, sessions.as_fd())?,
        }
        Ok(())
    }
}

fn of_tunnel<'a>(
    device: &'a Descriptors<'a>,
    socket: BorrowedFd<'a>,
) -> impl Iterator<Item = (Kept, BorrowedFd<'a>)> {
    let queues = device.queues.iter().map(|queue| (Kept::Queue, *queue));
    let writer = device.writer.iter().map(|writer| (Kept::Writer, *writer));
    queues.chain(writer).chain([(Kept::Socket, socket)])
}

fn send(stream: &UnixStream, kept: Kept, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let mut record = [0; RECORD];
    record[..kept.name().len()].copy_from_slice(kept.name().as_bytes());
    let descriptors = [descriptor.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let sent = sendmsg::<()>(
        stream.as_raw_fd(),
        &[IoSlice::new(&record)],
        &rights,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    if sent == RECORD { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// The keys that identify the two ends come first: sessions with another peer are of no use.
fn sessions(config: &Config, left: &Inheritance) -> io::Result<OwnedFd> {
    let encoded = left.encode();
    let mut file = File::from(in_memory(config.peer.public_key.as_bytes())?);
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
