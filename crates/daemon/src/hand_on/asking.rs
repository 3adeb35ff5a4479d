//! A process that has asked for the tunnel.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::Duration;

use nix::errno::Errno;
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

    /// Tells the process why it must not continue with the tunnel; it may have left.
    pub(crate) fn refuse(self, why: &str) {
        let refusal = Refusal { schema: SCHEMA, error: why.to_owned() };
        let line = serde_json::to_string(&refusal).unwrap_or_default() + "\n";
        let words = [IoSlice::new(line.as_bytes())];
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        match sendmsg::<()>(self.stream.as_raw_fd(), &words, &[], flags, None) {
            Ok(_) | Err(Errno::EPIPE | Errno::ECONNRESET) => {}
            // If it were closed now, the process would take this one for crashed. So it stays open until this one ends.
            Err(_) => std::mem::forget(self.stream),
        }
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

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};

    use super::*;

    /// A process that has asked, and its end of the connection, which never waits.
    fn asking() -> (Asking, StdUnixStream) {
        let (ours, theirs) = StdUnixStream::pair().unwrap();
        [&ours, &theirs].into_iter().for_each(|end| end.set_nonblocking(true).unwrap());
        let stream = UnixStream::from_std(ours).unwrap();
        (Asking { stream, until: Instant::now(), line: Vec::new() }, theirs)
    }

    #[tokio::test]
    async fn a_refusal_is_heard_by_who_was_ready_too_late() {
        let (mut asking, mut theirs) = asking();
        assert_eq!(asking.ready().await.unwrap_err().kind(), ErrorKind::TimedOut);
        theirs.write_all(b"ready\n").unwrap();
        asking.refuse("it takes too long");
        let mut heard = [0; 256];
        let len = theirs.read(&mut heard).unwrap();
        assert!(String::from_utf8_lossy(&heard[..len]).contains("it takes too long"));
        assert_eq!(theirs.read(&mut heard).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_connection_is_not_closed_without_a_word() {
        let (asking, mut theirs) = asking();
        while sendmsg::<()>(
            asking.stream.as_raw_fd(),
            &[IoSlice::new(&[0; 1024])],
            &[],
            MsgFlags::MSG_DONTWAIT,
            None,
        )
        .is_ok()
        {}
        asking.refuse("there is no room for this");
        let ended = std::iter::repeat_with(|| theirs.read(&mut [0; 4096]))
            .find(|read| !matches!(read, Ok(1..)))
            .unwrap();
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}
