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
use super::talk::{End, Order, Receiver, Report, Sender, split};

/// The time that the runner has after a command's limit, to kill the command and report.
const REPORT_TIME: Duration = Duration::from_secs(5);
/// How long to wait until the runner ends.
const END_TIMEOUT: Duration = Duration::from_secs(3);

/// A runner that was started.
pub(super) struct Runner {
    receiver: Receiver,
    sender: Sender,
    process: Option<Child>,
}

impl Runner {
    /// Starts a runner. Its only connection to vpnd is the socket.
    ///
    /// # Errors
    ///
    /// If this process cannot execute itself.
    pub(super) fn start() -> io::Result<Self> {
        let (ours, theirs) = Pair::pair()?;
        let mut command = Command::new("/proc/self/exe");
        command.arg(runner::WORD).env_clear().current_dir("/");
        // Not in vpnd's process group, because a signal from the terminal must not end the runner; it ends with
        // vpnd.
        command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).process_group(0);
        let process = command.spawn()?;
        ours.set_nonblocking(true)?;
        Ok(Self { process: Some(process), ..Self::over(UnixStream::from_std(ours)?) })
    }

    /// A runner that is already connected to the other end of `stream`.
    pub(super) fn over(stream: UnixStream) -> Self {
        let (receiver, sender) = split(stream);
        Self { receiver, sender, process: None }
    }

    /// Sends the plan, which contains every command that the runner may run. Call this once, before all else.
    ///
    /// # Errors
    ///
    /// If the runner is gone.
    pub(super) async fn plan(&mut self, plan: &Plan) -> io::Result<()> {
        self.sender.send(plan).await
    }

    /// Runs one command of the plan, and logs its output and how it ends.
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
        let hook = order.event.word();
        tracing::debug!("hook {hook}: `{argv}` begins");
        self.sender.send(&order).await?;
        let gone = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let end = timeout(limit + REPORT_TIME, async {
            loop {
                match self.receiver.next().await?.ok_or_else(gone)? {
                    Report::Line(line) => tracing::info!("hook {hook}: {line}"),
                    Report::Ended(end) => return Ok::<_, io::Error>(end),
                }
            }
        });
        end.await?
    }

    /// Asks the runner to end, and waits until it has. No command outlives the runner.
    pub(super) async fn end(self) {
        let Self { receiver, sender, process } = self;
        drop((receiver, sender));
        if let Some(mut process) = process
            && timeout(END_TIMEOUT, process.wait()).await.is_err()
        {
            tracing::warn!("the hook runner does not end");
        }
    }
}
