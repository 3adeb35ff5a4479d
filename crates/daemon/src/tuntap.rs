//! `tuntap`: makes, deletes and lists devices for other programs, with the syntax of `ip tuntap`.

mod holders;
mod list;
mod words;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;
use thiserror::Error;
use vpnd_tun::{OpenError, PersistError};

use crate::exit::Exit;
use crate::terminal::{self, PrintableLines};
use holders::{Holders, in_words};
use list::{ListError, Listing};
use words::{Arguments, WordError};

pub(crate) use words::WORDS;

/// Options of `tuntap`.
#[derive(Debug, Args)]
pub(crate) struct TuntapOptions {
    #[command(subcommand)]
    pub(crate) command: Option<TuntapCommand>,
    /// Prints one JSON object
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// The commands of `tuntap`; without one it lists.
#[derive(Debug, Subcommand)]
pub(crate) enum TuntapCommand {
    /// Makes a device that stays until it is deleted
    #[command(after_help = WORDS)]
    Add(Words),
    /// Deletes a device; its name is enough, and a mode must be the right one
    #[command(visible_alias = "delete", after_help = WORDS)]
    Del(Words),
    /// Shows devices: flags, owner, group, and the processes that are attached
    #[command(visible_aliases = ["show", "lst"])]
    List(Words),
}

/// Arguments in any order, as `ip` accepts them.
#[derive(Debug, Args)]
pub(crate) struct Words {
    /// Such as: dev tun7 mode tun user alice multi_queue
    #[arg(value_name = "WORD")]
    pub(crate) words: Vec<String>,
}

/// Why `tuntap` failed.
#[derive(Debug, Error)]
pub(crate) enum TuntapError {
    /// The arguments are invalid.
    #[error(transparent)]
    Words(#[from] WordError),
    /// The device could not be made or deleted.
    #[error(transparent)]
    Persist(#[from] PersistError),
    /// The devices could not be listed.
    #[error(transparent)]
    List(#[from] ListError),
}

impl TuntapError {
    /// The exit code for this error.
    pub(crate) const fn exit(&self) -> Exit {
        match self {
            Self::Words(_) | Self::Persist(PersistError::Open(OpenError::Name { .. })) => {
                Exit::Usage
            }
            Self::Persist(PersistError::Open(OpenError::NoDevice)) => Exit::Unavailable,
            Self::Persist(PersistError::Open(OpenError::Permission { .. })) => Exit::Permission,
            Self::Persist(_) | Self::List(_) => Exit::Failure,
        }
    }
}

/// Runs the command, and prints its result.
pub(crate) fn run(options: &TuntapOptions) -> anyhow::Result<ExitCode> {
    let text = match &options.command {
        Some(TuntapCommand::Add(line)) => add(&line.words, options.json),
        Some(TuntapCommand::Del(line)) => delete(&line.words, options.json),
        Some(TuntapCommand::List(line)) => list(&line.words, options.json),
        None => list(&[], options.json),
    }?;
    terminal::print(text)?;
    Ok(Exit::Success.into())
}

/// Describes the processes that are attached to the device `name`.
pub(crate) fn attached_to(name: &str) -> String {
    let mut holders = Holders::find();
    in_words(&holders.take(name), holders.hidden)
}

/// The first process of this network namespace that is attached to the device `name`.
pub(crate) fn holder(name: &str) -> Option<u32> {
    let holders = Holders::find().take(name);
    holders.iter().find(|holder| !holder.elsewhere).map(|holder| holder.pid)
}

/// Makes a device. Prints its name only if the kernel chose it, and nothing otherwise, as `ip` does.
fn add(words: &[String], json: bool) -> Result<String, TuntapError> {
    let device = Arguments::parse(words)?.into_device()?;
    let name = device.create()?;
    let chosen = device.name.as_ref() != Some(&name);
    Ok(match (json, chosen) {
        (true, _) => as_json(&Named { schema: 1, name: &name }),
        (false, true) => format!("{name}\n"),
        (false, false) => String::new(),
    })
}

fn delete(words: &[String], json: bool) -> Result<String, TuntapError> {
    let (name, kind) = Arguments::parse(words)?.into_target()?;
    vpnd_tun::remove(&name, kind)?;
    Ok(if json { as_json(&Named { schema: 1, name: &name }) } else { String::new() })
}

fn list(words: &[String], json: bool) -> Result<String, TuntapError> {
    let listing = match Arguments::parse(words)?.into_filter()? {
        Some(name) => Listing::of(&name)?,
        None => Listing::all()?,
    };
    Ok(if json { as_json(&listing) } else { PrintableLines(listing).to_string() })
}

/// The output of `add --json` and `del --json`; keys may be added to it, but are never renamed.
#[derive(Serialize)]
struct Named<'a> {
    schema: u32,
    name: &'a str,
}

/// Converts to JSON. This cannot fail, because JSON only requires that all keys are text, which they are.
fn as_json(value: &impl Serialize) -> String {
    terminal::pretty_json(value).map(|text| text + "\n").unwrap_or_default()
}
