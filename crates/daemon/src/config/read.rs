//! Reads a file into a [`Config`] and its keys, or returns everything that is wrong with it.

use std::fs::File;
use std::io::Read;
use std::path;

use toml::de::DeTable;

use super::model::Config;
use super::problem::{Problem, Report};
use super::surroundings::Surroundings;
use super::tables;
use crate::keys::{HandedKeys, KeySource, Keys};

/// The maximum length of a configuration; a longer file is of another kind.
pub(crate) const MAX_LEN: usize = 1 << 20;

/// A configuration with which the daemon can start.
pub(crate) struct Loaded {
    /// The configuration.
    pub(crate) config: Config,
    /// The keys it names.
    pub(crate) keys: Keys,
    /// Values that are rarely intended; often empty.
    pub(crate) warnings: Report,
}

/// Reads a configuration and the key files it names.
///
/// # Errors
///
/// Everything that is wrong with it, and where.
pub(crate) fn load(file: &path::Path) -> Result<Loaded, Report> {
    load_from(file, true)
}

/// The same, for a tunnel that runs already: its sockets and directories may belong to the user that the service
/// manager has made up for it.
///
/// # Errors
///
/// As [`load`].
pub(crate) fn load_for_running(file: &path::Path) -> Result<Loaded, Report> {
    load_from(file, false)
}

fn load_from(file: &path::Path, starts: bool) -> Result<Loaded, Report> {
    let shown = file.display().to_string();
    let from = Surroundings::of(file).map(|from| Surroundings { starts, ..from });
    let read = from.and_then(|from| Ok((read_text(from.opened(file))?, from)));
    match read {
        Ok((source, surroundings)) => parse(shown, source, &surroundings),
        Err(problem) => Err(Report::new(shown, String::new(), vec![problem])),
    }
}

/// Loads the text `source` as if it were in `file`, with the key files that are there now.
///
/// # Errors
///
/// As [`load`].
pub(crate) fn load_text(file: &path::Path, source: String) -> Result<Loaded, Report> {
    let shown = file.display().to_string();
    match Surroundings::of(file) {
        Ok(from) => parse(shown, source, &from),
        Err(problem) => Err(Report::new(shown, String::new(), vec![problem])),
    }
}

/// A configuration and its keys, read by a process that may read them.
pub(crate) struct Handed {
    /// The file's text.
    pub(crate) source: String,
    /// The keys it names.
    pub(crate) keys: HandedKeys,
}

impl Loaded {
    /// Everything that [`load_handed`] needs to load the same configuration.
    pub(crate) fn hand_over(&self) -> Handed {
        let keys = HandedKeys::new(&self.keys, self.config.peer.preshared_key_file.is_some());
        Handed { source: self.warnings.source().to_owned(), keys }
    }
}

/// Loads a handed-over configuration as if it were in `file`, the configuration of the tunnel `name`.
///
/// # Errors
///
/// Everything that is wrong with it, and where.
pub(crate) fn load_handed(name: &str, file: &path::Path, handed: Handed) -> Result<Loaded, Report> {
    let keys = KeySource::Handed(handed.keys);
    let (name, file) = (name.to_owned(), file.to_owned());
    let from = Surroundings { name, trusted: Ok(file.clone()), file, keys, starts: false };
    // Only the process that handed it over knows its path.
    parse(format!("{}.toml", from.name), handed.source, &from)
}

fn read_text(file: &path::Path) -> Result<String, Problem> {
    let mut text = String::new();
    let limit = MAX_LEN as u64 + 1;
    let read = File::open(file).and_then(|file| file.take(limit).read_to_string(&mut text));
    match read {
        Ok(_) if text.len() > MAX_LEN => Err(Problem::error("longer than 1 MiB")),
        Ok(_) => Ok(text),
        Err(error) => Err(Problem::error(format!("cannot be read: {error}"))),
    }
}

fn parse(shown: String, source: String, from: &Surroundings) -> Result<Loaded, Report> {
    let (table, errors) = DeTable::parse_recoverable(&source);
    // The errors after the first one often follow from it, and so do keys missing from tables.
    let first = errors.into_iter().min_by_key(|error| error.span().map(|span| span.start));
    let (good, problems) = match first {
        None => tables::all(&table, from),
        Some(error) => (None, vec![Problem::error(error.message()).at(error.span())]),
    };
    let report = Report::new(shown, source, problems);
    match good {
        Some((config, keys)) if !report.is_fatal() => Ok(Loaded { config, keys, warnings: report }),
        _ => Err(report),
    }
}
