//! A process that has asked for the tunnel.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};
use vpnd_protocol::inheritance::Inheritance;

use super::{Kept, Offer, RECORD, bound_to};
use crate::control::Refusal;
use crate::status::SCHEMA;

/// The first word of the line with which the process says that it is ready; the names of the sockets with clients that it
/// continues with follow.
pub(crate) const READY: &str = "ready";
/// How long it may prepare.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest line.
const MAX_LINE: usize = 64;

/// A process that has received what it needs to prepare. Until it is ready, this one runs the tunnel.
#[derive(Debug)]
pub(crate) struct Asking {
    stream: UnixStream,
    until: Instant,
    line: Vec<u8>,
}

impl Asking {
    /// Sends everything but the sessions to the process at the other end. This never waits: what is sent fits the buffer of a
    /// new connection.
    ///
    /// # Errors
    ///
    /// If the process has left.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub(crate) fn offer(
        stream: StdUnixStream,
        offer: &Offer<'_>,
        (binding, outlook): (&[u8; 64], &Inheritance),
    ) -> io::Result<Self> {
        for (kept, descriptor) in offer.descriptors() {
            send(&stream, kept, descriptor)?;
        }
        send(&stream, Kept::Outlook, bound_to(binding, outlook)?.as_fd())?;
        let (stream, until) = (UnixStream::from_std(stream)?, Instant::now() + PATIENCE);
        Ok(Self { stream, until, line: Vec::new() })
    }

    /// Waits until the process is ready, and returns the sockets with clients that it continues with.
    ///
    /// # Errors
    ///
    /// If it has left, or takes too long.
    pub(crate) async fn ready(&mut self) -> io::Result<Vec<Kept>> {
        let until = self.until;
        timeout_at(until, self.read_line()).await??;
        let line = String::from_utf8_lossy(&self.line);
        match line.trim_end().split(' ').collect::<Vec<_>>().as_slice() {
            [READY, taken @ ..] => Ok(taken.iter().filter_map(|name| Kept::named(name)).collect()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// If this is cancelled, nothing that was read is lost.
    async fn read_line(&mut self) -> io::Result<()> {
        while !self.line.ends_with(b"\n") && self.line.len() < MAX_LINE {
            self.stream.readable().await?;
            match self.stream.try_read_buf(&mut self.line) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Tells the process why this one goes on with the tunnel; it may have left.
    pub(crate) fn refuse(self, why: &str) {
        let refusal = Refusal { schema: SCHEMA, error: why.to_owned() };
        let line = serde_json::to_string(&refusal).unwrap_or_default() + "\n";
        let _left = self.stream.try_write(line.as_bytes());
    }

    pub(super) fn receives(&self, binding: &[u8; 64], left: &Inheritance) -> io::Result<()> {
        send(&self.stream, Kept::Sessions, bound_to(binding, left)?.as_fd())
    }
}

fn send(stream: &impl AsRawFd, kept: Kept, descriptor: BorrowedFd<'_>) -> io::Result<()> {
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
