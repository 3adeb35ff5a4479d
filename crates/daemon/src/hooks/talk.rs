//! What vpnd and its runner say to each other: one line of JSON each, over a socket pair. The
//! first line is the [`Plan`]; then an [`Order`], any number of lines said, the end
//! of the command, and the next order.

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

use super::plan::{Moment, Plan};

/// No order and no report is longer, in bytes.
const MAX_LINE: usize = 64 << 10;
/// No plan is: what the kernel hands to one program is less.
const MAX_PLAN: usize = 4 << 20;

/// Which command of the plan is due.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) moment: Moment,
    pub(super) index: usize,
    /// Where the peer is, once it is known.
    pub(super) endpoint: Option<SocketAddr>,
    #[serde(default)]
    pub(super) changed: Changed,
}

/// What of the device is other than the plan says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Changed {
    /// Its name.
    pub(super) device: Option<String>,
    /// Its MTU.
    pub(super) mtu: Option<u16>,
}

/// What the runner says of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Report {
    /// It printed a line.
    Said(String),
    /// It is over.
    Ended(End),
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum End {
    /// By itself, with this status.
    Exited(i32),
    /// By a signal.
    Killed(i32),
    /// It was killed when this time was over.
    TooLong(Duration),
    /// It did not begin.
    NotStarted(String),
}

impl End {
    /// Whether it did what it was to do, as far as anybody knows.
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

/// What one end hears of the other.
pub(super) struct Heard {
    from: BufReader<OwnedReadHalf>,
    /// What has come of a line that has not ended.
    line: Vec<u8>,
}

/// The way to the other end.
pub(super) struct Way(OwnedWriteHalf);

/// Both directions of a connection.
pub(super) fn both(stream: UnixStream) -> (Heard, Way) {
    let (from, to) = stream.into_split();
    (Heard { from: BufReader::new(from), line: Vec::new() }, Way(to))
}

impl Heard {
    /// The next line; none when the other end is gone. Nothing is lost if it is not awaited to its end.
    ///
    /// # Errors
    ///
    /// If that line is none of ours, or has no end.
    pub(super) async fn next<T: for<'a> Deserialize<'a>>(&mut self) -> io::Result<Option<T>> {
        self.next_within(MAX_LINE).await
    }

    /// The plan, which is longer than what follows it.
    ///
    /// # Errors
    ///
    /// If there is none, though the other end is there.
    pub(super) async fn plan(&mut self) -> io::Result<Option<Plan>> {
        self.next_within(MAX_PLAN).await
    }

    /// Whoever takes vpnd over is not to fill the runner's memory, nor a runner vpnd's.
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

impl Way {
    /// Says one thing.
    ///
    /// # Errors
    ///
    /// If the other end is gone.
    pub(super) async fn say(&mut self, what: &impl Serialize) -> io::Result<()> {
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
            let ((mut heard, _keep), (_, mut way)) = (both(ours), both(theirs));
            let report = Report::Said("x".repeat(len));
            let sent = report.clone();
            tokio::spawn(async move { way.say(&sent).await });
            match heard.next::<Report>().await {
                Ok(said) => assert!(good && said == Some(report), "{len}"),
                Err(error) => assert!(!good && error.to_string().contains("longer"), "{error}"),
            }
        }
    }

    #[tokio::test]
    async fn a_plan_may_be_longer_and_has_an_end_too() {
        for (len, good) in [(MAX_LINE, true), (MAX_PLAN, false)] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let ((mut heard, _keep), (_, mut way)) = (both(ours), both(theirs));
            let argv = Argv::new(["true".to_owned(), "x".repeat(len)]).unwrap();
            let plan = Plan { commands: [(Moment::Up, vec![argv])].into(), ..Plan::default() };
            tokio::spawn(async move { way.say(&plan).await });
            assert_eq!(heard.plan().await.is_ok_and(|plan| plan.is_some()), good, "{len}");
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
