//! The records that the daemon sends.

use std::io::{self, ErrorKind, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};

use socket2::Socket;
use vpnd_tunnel::tap::Header;

/// More than one packet has.
const MAX_KEPT: usize = 1 << 20;
/// How much is read at once.
const READ: usize = 256 << 10;

/// Reads records from a connection.
pub(super) struct Records {
    socket: Socket,
    buffer: Vec<u8>,
    /// Up to here, records have been taken.
    taken: usize,
}

impl Records {
    pub(super) fn of(socket: Socket) -> Self {
        Self { socket, buffer: Vec::new(), taken: 0 }
    }

    /// Reads what has arrived; returns whether there may be more. Once the descriptor is readable, this does not wait.
    ///
    /// # Errors
    /// Like `read(2)`.
    pub(super) fn read(&mut self) -> io::Result<bool> {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        let len = self.buffer.len();
        self.buffer.resize(len + READ, 0);
        let read = self.socket.read(&mut self.buffer[len..]);
        self.buffer.truncate(len + read.as_ref().map_or(0, |read| *read));
        Ok(read? > 0)
    }

    /// The next complete record, with what is kept of the packet.
    ///
    /// # Errors
    /// If it is none.
    pub(super) fn next(&mut self) -> io::Result<Option<(Header, &[u8])>> {
        let rest = &self.buffer[self.taken..];
        let Some((header, rest)) = rest.split_first_chunk() else { return Ok(None) };
        let header = Header::decode(header).filter(|header| header.kept as usize <= MAX_KEPT);
        let header = header.ok_or_else(|| {
            io::Error::new(ErrorKind::InvalidData, "a vpnd of another release sends it")
        })?;
        let Some(kept) = rest.get(..header.kept as usize) else { return Ok(None) };
        self.taken += Header::LEN + kept.len();
        Ok(Some((header, kept)))
    }

    /// Asks the daemon for the rest.
    ///
    /// # Errors
    /// Like `shutdown(2)`.
    pub(super) fn end(&self) -> io::Result<()> {
        self.socket.shutdown(Shutdown::Write)
    }
}

impl AsFd for Records {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Type};
    use std::io::Write;
    use vpnd_tunnel::tap::{Counts, Lost};

    fn pair() -> (Socket, Records) {
        let (daemon, client) = Socket::pair(Domain::UNIX, Type::STREAM, None).unwrap();
        (daemon, Records::of(client))
    }

    #[test]
    fn a_record_may_come_in_parts() {
        let (mut daemon, mut records) = pair();
        let counts = Counts { inner: Lost { seen: 1, lost: 0 }, outer: Lost { seen: 2, lost: 1 } };
        let two = [counts.record(), counts.record()].concat();
        for part in [&two[..10], &two[10..Header::LEN + 5], &two[Header::LEN + 5..Counts::LEN + 1]]
        {
            assert!(records.next().unwrap().is_none());
            daemon.write_all(part).unwrap();
            assert!(records.read().unwrap());
        }
        let (_, kept) = records.next().unwrap().unwrap();
        assert_eq!(Counts::decode(kept), counts);
        assert!(records.next().unwrap().is_none());
        daemon.write_all(&two[Counts::LEN + 1..]).unwrap();
        drop(daemon);
        assert!(records.read().unwrap() && records.next().unwrap().is_some());
        assert!(!records.read().unwrap());
    }

    #[test]
    fn what_is_no_record_is_an_error() {
        let (mut daemon, mut records) = pair();
        daemon.write_all(&[0xff; Header::LEN]).unwrap();
        records.read().unwrap();
        assert!(records.next().is_err());
    }
}
