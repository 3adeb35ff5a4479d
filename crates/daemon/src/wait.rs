//! `vpnd wait NAME --up`: for scripts that need the tunnel.

use std::path::Path;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Args;
use thiserror::Error;

use crate::ask::{self, AskError, socket};
use crate::control::Ask;
use crate::exit::Exit;
use crate::span;
use crate::status::Status;
use crate::terminal::Printable;

/// How often the tunnel is asked.
const POLL: Duration = Duration::from_millis(100);

/// Options of `wait`.
#[derive(Debug, Args)]
pub(crate) struct WaitOptions {
    /// The tunnel, or the path of its control socket
    pub(crate) name: String,
    /// Waits until packets get through: the state is up or degraded. This is the default
    #[arg(long)]
    pub(crate) up: bool,
    /// How long to wait: "30s", "2m", or a number of seconds
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = span::parse)]
    pub(crate) timeout: Duration,
}

/// Why the wait was in vain.
#[derive(Debug, Error)]
pub(crate) enum WaitError {
    /// The tunnel is in another state.
    #[error("{name} is not up after {}: it is {state}{}", humantime::format_duration(*after), because(hint.as_deref()))]
    NotUp { name: String, after: Duration, state: &'static str, hint: Option<String> },
    /// No daemon answers.
    #[error("{name} is not up after {}: {error}", humantime::format_duration(*after))]
    NotThere { name: String, after: Duration, error: AskError },
}

impl WaitError {
    /// The exit code of `vpnd`.
    pub(crate) const fn exit(&self) -> Exit {
        match self {
            Self::NotUp { .. } => Exit::Down,
            Self::NotThere { error, .. } => error.exit(),
        }
    }
}

/// Waits until the tunnel is up.
pub(crate) fn run(options: &WaitOptions) -> anyhow::Result<ExitCode> {
    let path = socket(&options.name);
    // The only thing to wait for so far; the flag keeps the meaning of scripts if there will be others.
    let _default = options.up;
    let begun = Instant::now();
    loop {
        let left = options.timeout.saturating_sub(begun.elapsed());
        let seen = status(&path, left);
        match &seen {
            Ok(status) if status.state.works() => return Ok(Exit::Success.into()),
            Err(error) if !may_pass(error) => {}
            _ if left > Duration::ZERO => {
                sleep(POLL.min(left));
                continue;
            }
            _ => {}
        }
        return Err(in_vain(options, seen).into());
    }
}

/// Whether a daemon that is started later answers better.
const fn may_pass(error: &AskError) -> bool {
    matches!(error, AskError::NotRunning(_) | AskError::Silent(_) | AskError::Io { .. })
}

fn status(path: &Path, left: Duration) -> Result<Status, AskError> {
    // A last request, when no time is left, gets an instant for its answer.
    let patience = left.max(POLL);
    let answer = ask::ask_within(path, &Ask::new("status"), patience)?;
    serde_json::from_value(answer).map_err(|error| ask::shape(path, error))
}

fn in_vain(options: &WaitOptions, seen: Result<Status, AskError>) -> WaitError {
    let (name, after) = (Printable(&options.name).to_string(), options.timeout);
    match seen {
        Ok(Status { state, hint, .. }) => {
            WaitError::NotUp { name, after, state: state.word(), hint }
        }
        Err(error) => WaitError::NotThere { name, after, error },
    }
}

fn because(hint: Option<&str>) -> String {
    hint.map_or_else(String::new, |hint| format!("; {}", Printable(hint)))
}
