//! `vpnd ping NAME`: the round trip to the peer's vpnd, inside the tunnel's session but without its devices.

mod tally;

use std::io::{self, ErrorKind, Write};
use std::num::NonZeroU32;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;

use crate::ask::{self, AskError, Asked, socket};
use crate::control::{Ask, Ping};
use crate::exit::Exit;
use crate::interrupt::{Interrupt, Woken};
use crate::show_status;
use crate::span;
use crate::terminal::Printable;

use tally::Tally;

/// Options of `ping`.
#[derive(Debug, Args)]
pub(crate) struct PingOptions {
    /// The tunnel, or the path of its control socket
    pub(crate) name: String,
    /// Ends after this number of pings [default: at Ctrl-C]
    #[arg(short, long)]
    pub(crate) count: Option<NonZeroU32>,
    /// The time between two pings, at least 10ms: "1s", "200ms", or a number of seconds
    #[arg(short, long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    pub(crate) interval: Duration,
    /// How long an answer is waited for, at most 5s
    #[arg(short = 'W', long, value_name = "TIME", default_value = "2s", value_parser = timeout)]
    pub(crate) timeout: Duration,
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = span::parse(text)?;
    let fits = interval >= Duration::from_millis(10);
    fits.then_some(interval).ok_or_else(|| "at least 10ms".to_owned())
}

fn timeout(text: &str) -> Result<Duration, String> {
    let timeout = span::parse(text)?;
    let fits = (Duration::from_millis(1)..=Duration::from_secs(5)).contains(&timeout);
    fits.then_some(timeout).ok_or_else(|| "1ms to 5s".to_owned())
}

/// Pings the peer's vpnd until Ctrl-C, or until the count is reached. The exit code is 0 if any ping was answered.
pub(crate) fn run(options: &PingOptions) -> anyhow::Result<ExitCode> {
    let pinger = Pinger { path: socket(&options.name), options, interrupt: Interrupt::new()? };
    let answered = match pinger.run(&mut io::stdout()) {
        Err(error) if is_broken_pipe(&error) => return Ok(Exit::Success.into()),
        ended => ended?,
    };
    Ok(if answered { Exit::Success } else { Exit::Failure }.into())
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

struct Pinger<'o> {
    path: PathBuf,
    options: &'o PingOptions,
    interrupt: Interrupt,
}

/// What became of one ping.
enum Outcome {
    /// The peer has answered.
    Answer { round_trip_ms: f64, from: String },
    /// No answer came in time.
    Silence,
    /// The peer was not asked.
    NotAsked(String),
    /// Ctrl-C came first.
    Ended,
}

impl From<Ping> for Outcome {
    fn from(Ping { round_trip_ms, endpoint, not_asked, .. }: Ping) -> Self {
        match (round_trip_ms, not_asked) {
            (Some(round_trip_ms), _) => {
                Self::Answer { round_trip_ms, from: endpoint.unwrap_or_default() }
            }
            (None, Some(why)) => Self::NotAsked(why),
            (None, None) => Self::Silence,
        }
    }
}

impl Pinger<'_> {
    /// Returns whether any ping was answered.
    fn run(&self, out: &mut impl Write) -> anyhow::Result<bool> {
        writeln!(out, "PING {}: {}", self.name(), whom(&self.path)?)?;
        let begun = Instant::now();
        let mut tally = Tally::default();
        for sequence in 1..=self.options.count.map_or(u32::MAX, NonZeroU32::get) {
            let next = Instant::now() + self.options.interval;
            let Some(line) = self.one(sequence, &mut tally)? else { break };
            writeln!(out, "{line}")?;
            let is_last = self.options.count.is_some_and(|count| count.get() == sequence);
            if is_last || self.pause(next)? {
                break;
            }
        }
        write!(out, "\n--- {} ping statistics ---\n{}", self.name(), tally.text(begun.elapsed()))?;
        Ok(tally.answered() > 0)
    }

    /// The line about one ping; `None` if Ctrl-C came first.
    fn one(&self, sequence: u32, tally: &mut Tally) -> anyhow::Result<Option<String>> {
        let outcome = self.ping()?;
        tally.take(match &outcome {
            Outcome::Answer { round_trip_ms, .. } => Some(*round_trip_ms),
            Outcome::Silence | Outcome::NotAsked(_) => None,
            Outcome::Ended => return Ok(None),
        });
        Ok(Some(match outcome {
            Outcome::Answer { round_trip_ms, from } => {
                format!(
                    "answer from {}: seq={sequence} time={round_trip_ms:.3} ms",
                    Printable(from)
                )
            }
            Outcome::NotAsked(why) => format!("not asked: seq={sequence}: {}", Printable(why)),
            Outcome::Silence | Outcome::Ended => format!("no answer: seq={sequence}"),
        }))
    }

    /// A daemon that is being restarted ends nothing.
    fn ping(&self) -> anyhow::Result<Outcome> {
        match self.ask() {
            Err(error) => match error.downcast_ref::<AskError>() {
                Some(AskError::Silent(_)) => Ok(Outcome::Silence),
                Some(AskError::NotRunning(_) | AskError::Io { .. }) => {
                    Ok(Outcome::NotAsked("no daemon answers".to_owned()))
                }
                _ => Err(error),
            },
            outcome => outcome,
        }
    }

    fn ask(&self) -> anyhow::Result<Outcome> {
        let until = Instant::now() + self.options.timeout;
        let asked = Asked::send(&self.path, &Ask::new("ping"), self.options.timeout)?;
        loop {
            match self.interrupt.readable(asked.as_fd(), until)? {
                Woken::Resized => {}
                Woken::Due => return Ok(Outcome::Silence),
                Woken::Ended => return Ok(Outcome::Ended),
                Woken::Readable => break,
            }
        }
        let ping = serde_json::from_value::<Ping>(asked.answer()?);
        Ok(ping.map_err(|error| ask::shape(&self.path, error))?.into())
    }

    /// Waits for the next ping; returns whether Ctrl-C came first.
    fn pause(&self, next: Instant) -> io::Result<bool> {
        loop {
            match self.interrupt.until(next)? {
                Woken::Due => return Ok(false),
                Woken::Ended => return Ok(true),
                Woken::Readable | Woken::Resized => {}
            }
        }
    }

    fn name(&self) -> impl std::fmt::Display {
        Printable(&self.options.name)
    }
}

/// The peer, as the tunnel's status has it.
fn whom(path: &Path) -> Result<String, AskError> {
    let (_, status) = show_status::ask(path)?;
    let release = status.peer.release.map_or_else(String::new, |release| format!(" ({release})"));
    Ok(match status.peer.endpoint {
        Some(endpoint) => format!("the peer at {endpoint}{release}"),
        None => "the peer, whose address is not known yet".to_owned(),
    })
}
