//! The messages between vpnd and its runner, one line of JSON each, over a socket pair. vpnd sends the [`Plan`]
//! first. For each [`Order`] that follows, the runner sends any number of output lines and the end of the
//! command.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::plan::{Event, Plan};

/// The maximum length of an order or a report, in bytes.
const MAX_LINE: usize = 64 << 10;
/// The maximum length of a plan. The kernel's limit for the arguments of one program is lower.
const MAX_PLAN: usize = 4 << 20;

/// An order to run one command of the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) event: Event,
    pub(super) index: usize,
    /// The peer's address, once it is known.
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) changed: Changed,
}

/// The properties of the device that have changed since the plan was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Changed {
    /// Its name.
    pub(super) device: Option<String>,
    /// Its MTU.
    pub(super) mtu: Option<u16>,
}

/// The runner's report about a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Report {
    /// The command printed this line.
    Line(String),
    /// The command has ended.
    Ended(End),
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum End {
    /// It exited with this status.
    Exited(i32),
    /// It was killed by a signal.
    Killed(i32),
    /// It was killed because it took longer than this.
    TooLong(Duration),
    /// It could not be started.
    NotStarted(String),
}

impl End {
    /// Whether it reported success.
    pub(crate) const fn is_good(&self) -> bool {
        matches!(self, Self::Exited(0))
    }
}

impl From<ExitStatus> for End {
    fn from(status: ExitStatus) -> Self {
        let killed = || Self::Killed(status.signal().unwrap_or_default());
        status.code().map_or_else(killed, Self::Exited)
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "ended with status {code}"),
            Self::Killed(number) => match Signal::try_from(*number) {
                Ok(signal) => write!(f, "was ended by {signal}"),
                Err(_) => write!(f, "was ended by signal {number}"),
            },
            Self::TooLong(limit) => {
                let limit = humantime::format_duration(*limit);
                write!(f, "was not done after {limit} and has been killed")
            }
            Self::NotStarted(why) => write!(f, "could not be started: {why}"),
        }
    }
}

/// The receiving half of the connection.
pub(super) struct Receiver {
    from: BufReader<OwnedReadHalf>,
    /// The beginning of an incomplete line.
    line: Vec<u8>,
}

/// The sending half of the connection.
pub(super) struct Sender(OwnedWriteHalf);

/// Splits a connection into its two halves.
pub(super) fn split(stream: UnixStream) -> (Receiver, Sender) {
    let (from, to) = stream.into_split();
    (Receiver { from: BufReader::new(from), line: Vec::new() }, Sender(to))
}

impl Receiver {
    /// The next message; `None` if the other end is closed. This is cancel-safe.
    ///
    /// # Errors
    ///
    /// If the line is malformed or too long.
    pub(super) async fn next<T: for<'a> Deserialize<'a>>(&mut self) -> io::Result<Option<T>> {
        self.next_within(MAX_LINE).await
    }

    /// The plan, which may be longer than other messages.
    ///
    /// # Errors
    ///
    /// If the line is malformed or too long.
    pub(super) async fn plan(&mut self) -> io::Result<Option<Plan>> {
        self.next_within(MAX_PLAN).await
    }

    /// The limit prevents a compromised vpnd from filling the runner's memory, and a compromised runner from
    /// filling vpnd's.
    async fn next_within<T: for<'a> Deserialize<'a>>(
        &mut self,
        most: usize,
    ) -> io::Result<Option<T>> {
        loop {
            let came = self.from.fill_buf().await?;
            if came.is_empty() {
                return Ok(None);
            }
            let end = came.iter().position(|byte| *byte == b'\n');
            let piece = &came[..end.unwrap_or(came.len())];
            if self.line.len() + piece.len() > most {
                let why = format!("a line is longer than {most} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
            self.line.extend_from_slice(piece);
            let used = piece.len() + usize::from(end.is_some());
            self.from.consume(used);
            if end.is_some() {
                return Ok(Some(serde_json::from_slice(&std::mem::take(&mut self.line))?));
            }
        }
    }
}

impl Sender {
    /// Sends one message.
    ///
    /// # Errors
    ///
    /// If the other end is closed.
    pub(super) async fn send(&mut self, what: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(what)?;
        line.push(b'\n');
        self.0.write_all(&line).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hooks::plan::Argv;

    #[tokio::test]
    async fn a_line_has_an_end() {
        for (len, good) in [(1 << 10, true), (MAX_LINE - 20, true), (MAX_LINE, false)] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let ((mut receiver, _keep), (_, mut sender)) = (split(ours), split(theirs));
            let report = Report::Line("x".repeat(len));
            let sent = report.clone();
            tokio::spawn(async move { sender.send(&sent).await });
            match receiver.next::<Report>().await {
                Ok(said) => assert!(good && said == Some(report), "{len}"),
                Err(error) => assert!(!good && error.to_string().contains("longer"), "{error}"),
            }
        }
    }

    #[tokio::test]
    async fn a_plan_may_be_longer_and_has_an_end_too() {
        for (len, good) in [(MAX_LINE, true), (MAX_PLAN, false)] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let ((mut receiver, _keep), (_, mut sender)) = (split(ours), split(theirs));
            let argv = Argv::new(["true".to_owned(), "x".repeat(len)]).unwrap();
            let plan = Plan { commands: [(Event::Up, vec![argv])].into(), ..Plan::default() };
            tokio::spawn(async move { sender.send(&plan).await });
            assert_eq!(receiver.plan().await.is_ok_and(|plan| plan.is_some()), good, "{len}");
        }
    }

    #[test]
    fn ends_in_words() {
        for (status, words) in [
            (0x0300, "ended with status 3"),
            (11, "was ended by SIGSEGV"),
            (40, "was ended by signal 40"),
        ] {
            assert_eq!(End::from(ExitStatus::from_raw(status)).to_string(), words);
        }
        let long = End::TooLong(Duration::from_secs(10)).to_string();
        assert_eq!(long, "was not done after 10s and has been killed");
        assert!(End::from(ExitStatus::from_raw(0)).is_good());
    }
}
