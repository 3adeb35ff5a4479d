//! Standard error as an output for the log: writing never blocks and never fails, whatever the reader does. A
//! line that cannot be written is dropped and counted; the number of dropped lines is logged once writing works
//! again.
//!
//! This module uses no thread: capabilities belong to a thread, so there must not be a second thread before
//! they are dropped.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};

/// The maximum length of a write that does not block on a pipe that `poll` reports as writable (`PIPE_BUF`).
const AT_ONCE: usize = 4096;
/// How long vpnd waits for a slow reader before it ends.
const PATIENCE: Duration = Duration::from_secs(1);

/// The log's output. A reference to this value is a writer.
#[derive(Debug)]
pub(crate) struct Output {
    sink: Sink,
    state: Mutex<State>,
    /// Formats the line that reports how many lines were lost.
    note: fn(u64) -> String,
}

/// The result of the writes so far.
#[derive(Debug, Default)]
struct State {
    lost: u64,
    /// Whether only a part of the last line was written.
    cut: bool,
    /// Whether there was no room for the last line; the reader may make some.
    blocked: bool,
}

/// A write that was not completed.
struct Failed {
    written: usize,
    would_block: bool,
}

/// The method that prevents a write to standard error from blocking.
#[derive(Debug)]
enum Sink {
    /// A pipe or a terminal, opened again in non-blocking mode. Setting that mode on the descriptor itself
    /// would also set it for other processes that share the descriptor.
    Opened(File),
    /// A socket, such as that of systemd's journal.
    Socket(BorrowedFd<'static>),
    /// A file.
    File(BorrowedFd<'static>),
    /// An output that cannot be opened again: it is polled before each write.
    Polled(BorrowedFd<'static>),
}

impl Output {
    /// The log's output to this descriptor; `note` formats the line that reports how many lines were lost.
    pub(crate) fn new(to: BorrowedFd<'static>, note: fn(u64) -> String) -> Self {
        Self { sink: Sink::of(to), state: Mutex::default(), note }
    }

    /// Reports the number of lost lines, and waits a short time for a slow reader.
    pub(crate) fn finish(&self) {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if self.report_lost(&mut state) || !state.blocked {
                return;
            }
            drop(state);
            std::thread::sleep(PATIENCE / 20);
        }
    }

    fn put(&self, line: &[u8]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.report_lost(&mut state) || !self.put_whole(line, &mut state) {
            state.lost += 1;
        }
    }

    /// Logs the number of lost lines, if there are any. Returns whether no lost line is left to report.
    fn report_lost(&self, state: &mut State) -> bool {
        if state.lost == 0 || self.put_whole((self.note)(state.lost).as_bytes(), state) {
            state.lost = 0;
        }
        state.lost == 0
    }

    fn put_whole(&self, line: &[u8], state: &mut State) -> bool {
        if state.cut && self.sink.write_all(b"\n").is_ok() {
            state.cut = false;
        }
        match self.sink.write_all(line) {
            Ok(()) => true,
            Err(failed) => {
                state.cut |= failed.written > 0;
                state.blocked = failed.would_block;
                false
            }
        }
    }
}

impl Write for &Output {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink {
    fn of(to: BorrowedFd<'static>) -> Self {
        let kind = to.try_clone_to_owned().and_then(|copy| File::from(copy).metadata());
        let Ok(kind) = kind.map(|metadata| metadata.file_type()) else { return Self::Polled(to) };
        if kind.is_socket() {
            Self::Socket(to)
        } else if kind.is_fifo() || kind.is_char_device() {
            open_again(to).map_or(Self::Polled(to), Self::Opened)
        } else {
            Self::File(to)
        }
    }

    fn write_all(&self, bytes: &[u8]) -> Result<(), Failed> {
        let mut written = 0;
        while written < bytes.len() {
            match self.write(&bytes[written..]) {
                Ok(0) => return Err(Failed { written, would_block: false }),
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    let would_block = error.kind() == ErrorKind::WouldBlock;
                    return Err(Failed { written, would_block });
                }
            }
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Opened(file) => (&mut &*file).write(bytes),
            Self::Socket(to) => {
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                Ok(send(to.as_raw_fd(), bytes, flags)?)
            }
            Self::File(to) => Ok(nix::unistd::write(to, bytes)?),
            Self::Polled(to) if is_writable(*to, Duration::ZERO) => {
                Ok(nix::unistd::write(to, &bytes[..bytes.len().min(AT_ONCE)])?)
            }
            Self::Polled(_) => Err(ErrorKind::WouldBlock.into()),
        }
    }
}

fn open_again(to: BorrowedFd<'_>) -> io::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let path = format!("/proc/self/fd/{}", to.as_raw_fd());
    OpenOptions::new().write(true).custom_flags(flags).open(path)
}

/// Whether a write would not block: it would succeed or fail at once.
fn is_writable(to: BorrowedFd<'_>, wait: Duration) -> bool {
    let mut asked = [PollFd::new(to, PollFlags::POLLOUT)];
    let wait = PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO);
    poll(&mut asked, wait).is_ok_and(|ready| ready > 0)
}

/// Whether standard error accepts the last message of the process. Waits at most a second.
pub(crate) fn takes_last_words() -> bool {
    is_writable(io::stderr().as_fd(), PATIENCE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    fn note(count: u64) -> String {
        format!("{count} lost\n")
    }

    /// An output to a descriptor that the test keeps open.
    fn output(to: impl Into<OwnedFd>) -> Output {
        let to: &'static OwnedFd = Box::leak(Box::new(to.into()));
        Output::new(to.as_fd(), note)
    }

    fn say(mut output: &Output, line: &str) {
        output.write_all(line.as_bytes()).unwrap();
    }

    /// Writes until lines are lost, reads everything, and returns what follows the lost lines.
    fn overflow(output: &Output, mut reader: impl Read) -> String {
        let line = format!("{}\n", "x".repeat(999));
        (0..2000).for_each(|_| say(output, &line));
        let lost = output.state.lock().unwrap().lost;
        assert!(lost > 1000, "{lost} lost");
        let mut read = vec![0; 1 << 22];
        let mut len = 0;
        while let Ok(count @ 1..) = reader.read(&mut read[len..]) {
            len += count;
        }
        say(output, "after\n");
        let count = reader.read(&mut read).unwrap();
        let text = String::from_utf8_lossy(&read[..count]).into_owned();
        text.replace(&lost.to_string(), "N")
    }

    #[test]
    fn a_pipe_that_nobody_reads_loses_lines_and_says_how_many() {
        let (reader, writer) = io::pipe().unwrap();
        let output = output(writer);
        assert!(matches!(output.sink, Sink::Opened(_)));
        let flags = nix::fcntl::OFlag::O_NONBLOCK;
        nix::fcntl::fcntl(&reader, nix::fcntl::FcntlArg::F_SETFL(flags)).unwrap();
        assert_eq!(overflow(&output, reader).trim_start(), "N lost\nafter\n");
    }

    #[test]
    fn a_pipe_that_cannot_be_opened_again_is_asked_first() {
        let (reader, writer) = io::pipe().unwrap();
        let output = output(writer);
        let Sink::Opened(file) = output.sink else { panic!("{:?}", output.sink) };
        // Only the second file description is non-blocking.
        let file: &'static File = Box::leak(Box::new(file));
        nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty())).unwrap();
        let output = Output { sink: Sink::Polled(file.as_fd()), state: Mutex::default(), note };
        let flags = nix::fcntl::OFlag::O_NONBLOCK;
        nix::fcntl::fcntl(&reader, nix::fcntl::FcntlArg::F_SETFL(flags)).unwrap();
        assert_eq!(overflow(&output, reader).trim_start(), "N lost\nafter\n");
    }

    #[test]
    fn a_journal_that_reads_no_more_loses_lines_and_says_how_many() {
        let (reader, writer) = UnixStream::pair().unwrap();
        let output = output(writer);
        assert!(matches!(output.sink, Sink::Socket(_)));
        reader.set_nonblocking(true).unwrap();
        assert_eq!(overflow(&output, reader).trim_start(), "N lost\nafter\n");
    }

    #[test]
    fn a_reader_that_is_gone_and_a_disk_that_is_full_are_no_errors() {
        let (reader, writer) = io::pipe().unwrap();
        let pipe = output(writer);
        drop(reader);
        let full = output(File::options().write(true).open("/dev/full").unwrap());
        for output in [pipe, full] {
            say(&output, "one\n");
            say(&output, "two\n");
            assert_eq!(output.state.lock().unwrap().lost, 2);
        }
    }

    #[test]
    fn the_end_waits_for_a_slow_reader_but_not_for_long() {
        let (reader, writer) = io::pipe().unwrap();
        let output = output(writer);
        let took = || {
            let began = Instant::now();
            output.finish();
            began.elapsed()
        };
        assert!(took() < PATIENCE, "nothing is lost");
        (0..100).for_each(|_| say(&output, &"x".repeat(AT_ONCE)));
        assert!((PATIENCE..PATIENCE * 3).contains(&took()));
        drop(reader);
        assert!(took() < PATIENCE, "nobody will read");
    }
}
