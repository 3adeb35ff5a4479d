//! `vpnd man`, `vpnd help` and `vpnd completions`. Nothing here is written twice: the pages come from the command line's
//! own definition and from `docs/`, which the program contains.

mod completions;
mod keys;
mod page;
mod table;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::error::ErrorKind;
use clap::{Args, Command};

use crate::exit::Exit;
use crate::terminal::{self, Printable};

pub(crate) use completions::{CompletionsOptions, answer, completions};

/// The first word of `vpnd help config KEY`.
const CONFIG: &str = "config";

/// Options of `man`.
#[derive(Debug, Args)]
pub(crate) struct ManOptions {
    /// The page's file name, such as vpnd.toml.5, vpnd-status.8 or vpnd.7
    #[arg(default_value = "vpnd.8")]
    pub(crate) page: String,
    /// Writes all pages into this directory instead
    #[arg(long, value_name = "DIR", conflicts_with = "page")]
    pub(crate) out: Option<PathBuf>,
}

/// Options of `help`.
#[derive(Debug, Args)]
pub(crate) struct HelpOptions {
    /// A command; or `config` and a key of the configuration, such as `config keepalive`
    #[arg(value_name = "WORD")]
    pub(crate) topic: Vec<String>,
}

/// Prints a manual page of the program `command`, or writes all of them.
pub(crate) fn man(options: &ManOptions, command: &Command) -> anyhow::Result<ExitCode> {
    let pages = page::all(command)?;
    if let Some(directory) = &options.out {
        for (name, text) in pages {
            let path = directory.join(name);
            std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        }
        return Ok(Exit::Success.into());
    }
    let Some((_, text)) = pages.iter().find(|(name, _)| *name == options.page) else {
        let names: Vec<_> = pages.iter().map(|(name, _)| name.as_str()).collect();
        anyhow::bail!("no manual page {:?}; there are {}", options.page, names.join(", "));
    };
    terminal::print(text)?;
    Ok(Exit::Success.into())
}

/// Explains a command of the program `command`, or keys of the configuration.
///
/// An unknown one ends the process with the usual message about a command line.
pub(crate) fn help(options: &HelpOptions, mut command: Command) -> anyhow::Result<ExitCode> {
    command.build();
    let words: Vec<_> = options.topic.iter().map(String::as_str).collect();
    let text = match words.as_slice() {
        [CONFIG] => Ok(keys::list()),
        [CONFIG, key @ ..] => keys::describe(&key.join(" ")),
        words => subcommand(&command, words).map(|mut found| found.render_long_help().to_string()),
    };
    let text = text.unwrap_or_else(|unknown| {
        command.error(ErrorKind::InvalidValue, format_args!("{unknown}")).exit()
    });
    terminal::print(text)?;
    Ok(Exit::Success.into())
}

fn subcommand(command: &Command, words: &[&str]) -> anyhow::Result<Command> {
    let mut found = command;
    for word in words {
        let name = found.get_bin_name().unwrap_or_else(|| found.get_name());
        found = found
            .find_subcommand(word)
            .with_context(|| format!("`{name}` has no command `{}`", Printable(word)))?;
    }
    Ok(found.clone())
}
