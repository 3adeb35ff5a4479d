//! vpnd's end of the connection to its runner.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as Pair;
use std::process::Stdio;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::plan::{Argv, Plan};
use super::runner;
use super::talk::{End, Heard, Order, Report, Way, both};

/// How much longer than a command's limit the runner may take to kill it and say so.
const SLACK: Duration = Duration::from_secs(5);
/// How long its end is waited for.
const FAREWELL: Duration = Duration::from_secs(3);

/// A running runner.
pub(super) struct Runner {
    heard: Heard,
    way: Way,
    process: Option<Child>,
}

impl Runner {
    /// Starts one. The descriptor is its only tie to us.
    ///
    /// # Errors
    ///
    /// If the kernel does not let us execute ourselves.
    pub(super) fn start() -> io::Result<Self> {
        let (ours, theirs) = Pair::pair()?;
        let mut command = Command::new("/proc/self/exe");
        command.arg(runner::WORD).env_clear().current_dir("/");
        // Not in our process group: it goes when we go, not when a terminal says so.
        command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).process_group(0);
        let process = command.spawn()?;
        ours.set_nonblocking(true)?;
        Ok(Self { process: Some(process), ..Self::over(UnixStream::from_std(ours)?) })
    }

    /// One at the other end of `stream`.
    pub(super) fn over(stream: UnixStream) -> Self {
        let (heard, way) = both(stream);
        Self { heard, way, process: None }
    }

    /// Hands over what it may ever be told to run; once, and first.
    ///
    /// # Errors
    ///
    /// If it is gone.
    pub(super) async fn plan(&mut self, plan: &Plan) -> io::Result<()> {
        self.way.say(plan).await
    }

    /// Has one command run, and puts into the log what it prints and how it ends.
    ///
    /// # Errors
    ///
    /// If the runner is gone.
    pub(super) async fn run(
        &mut self,
        order: Order,
        argv: &Argv,
        limit: Duration,
    ) -> io::Result<End> {
        let hook = order.moment.word();
        tracing::debug!("hook {hook}: `{argv}` begins");
        self.way.say(&order).await?;
        let gone = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let end = timeout(limit + SLACK, async {
            loop {
                match self.heard.next().await?.ok_or_else(gone)? {
                    Report::Said(line) => tracing::info!("hook {hook}: {line}"),
                    Report::Ended(end) => return Ok::<_, io::Error>(end),
                }
            }
        });
        end.await?
    }

    /// Lets it end, and waits for that: nothing that it runs outlives it.
    pub(super) async fn end(self) {
        let Self { heard, way, process } = self;
        drop((heard, way));
        if let Some(mut process) = process
            && timeout(FAREWELL, process.wait()).await.is_err()
        {
            tracing::warn!("the hook runner does not end");
        }
    }
}
