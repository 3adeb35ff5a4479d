//! From a file to a [`Config`] and its keys, or to everything that is wrong with it.

use std::fs::File;
use std::io::{self, Read};
use std::path::{self, PathBuf};

use toml::de::DeTable;
use vpnd_crypto::PresharedKey;

use super::problem::{Problem, Report};
use super::value::TextResult;
use super::{Config, tables};
use crate::keys::{HandedKeys, KeySource, Keys};
use crate::trust::{self, Untrusted};

/// No configuration is longer; what is, is another file.
pub(crate) const MAX_LEN: usize = 1 << 20;

/// A configuration with which the daemon can start.
pub(crate) struct Loaded {
    /// What it says.
    pub(crate) config: Config,
    /// The keys it names.
    pub(crate) keys: Keys,
    /// What in it is rarely meant; often empty.
    pub(crate) warnings: Report,
}

/// Reads a configuration and the key files it names.
///
/// # Errors
///
/// Everything that is wrong with it, and where.
pub(crate) fn load(file: &path::Path) -> Result<Loaded, Report> {
    let shown = file.display().to_string();
    let read = Surroundings::of(file).and_then(|from| Ok((read_text(from.opened(file))?, from)));
    match read {
        Ok((source, surroundings)) => parse(shown, source, &surroundings),
        Err(problem) => Err(Report::new(shown, String::new(), vec![problem])),
    }
}

/// A configuration and its keys, read by somebody who may read them.
pub(crate) struct Handed {
    /// The file's text.
    pub(crate) source: String,
    /// The keys it names.
    pub(crate) keys: HandedKeys,
}

impl Loaded {
    /// All that [`load_handed`] needs to come to the same.
    pub(crate) fn hand_over(&self) -> Handed {
        let keys = HandedKeys::new(&self.keys, self.config.peer.preshared_key_file.is_some());
        Handed { source: self.warnings.source().to_owned(), keys }
    }
}

/// Reads what was handed over as if it stood in `file`, the configuration of the tunnel `name`.
///
/// # Errors
///
/// Everything that is wrong with it, and where.
pub(crate) fn load_handed(name: &str, file: &path::Path, handed: Handed) -> Result<Loaded, Report> {
    let keys = KeySource::Handed(handed.keys);
    let (name, file) = (name.to_owned(), file.to_owned());
    let from = Surroundings { name, trusted: Ok(file.clone()), file, keys };
    // Where it was read from, only who handed it over knows.
    parse(format!("{}.toml", from.name), handed.source, &from)
}

/// What a configuration takes from where it stands.
pub(super) struct Surroundings {
    /// The tunnel's name.
    pub(super) name: String,
    /// The file, from the root.
    pub(super) file: PathBuf,
    /// Where the keys are that it names.
    pub(super) keys: KeySource,
    /// The real path of the file, or who else could change it. Nobody could, of one that was handed over.
    pub(super) trusted: Result<PathBuf, Untrusted>,
}

impl Surroundings {
    fn of(file: &path::Path) -> Result<Self, Problem> {
        let unreadable = |e: io::Error| Problem::error(format!("this directory is lost: {e}"));
        let file = path::absolute(file).map_err(unreadable)?;
        let stem = file.file_stem().and_then(|stem| stem.to_str());
        let stem = stem.filter(|stem| !stem.starts_with('.') && !stem.contains(char::is_control));
        let nameless = || Problem::error("the file's name names the tunnel, and cannot name one");
        let name = stem.ok_or_else(nameless)?.to_owned();
        let trusted = match trust::file(&file) {
            // A pipe that whoever started vpnd has opened for it has no path that could be walked.
            Err(Untrusted::Unreachable { .. }) if is_descriptor(&file) => Ok(file.clone()),
            trusted => trusted,
        };
        Ok(Self { name, file, keys: KeySource::files(), trusted })
    }

    /// What to open: the file that was looked at. One that is not trusted is read all the same, to be named.
    fn opened<'a>(&'a self, file: &'a path::Path) -> &'a path::Path {
        self.trusted.as_deref().unwrap_or(file)
    }

    /// A path of the file, which counts from the file's directory.
    pub(super) fn path(&self, text: &str) -> TextResult<PathBuf> {
        if text.is_empty() || text.contains('\0') {
            return Err(Problem::error("expected a path"));
        }
        Ok(self.file.with_file_name("").join(text))
    }

    /// A path as [`Self::path`], or `cred:NAME`.
    pub(super) fn key_path(&self, text: &str) -> TextResult<PathBuf> {
        if PresharedKey::from_base64(text.trim()).is_ok() {
            let help = "keep it in a file of its own, mode 0600, and name the file here";
            return Err(Problem::error("this is a key, not the name of its file")
                .help(help)
                .secret());
        }
        let Some(name) = text.strip_prefix("cred:") else { return self.path(text) };
        if name.is_empty() || name.contains(['/', '\0']) || name.starts_with('.') {
            return Err(Problem::error(format!("`{name}` cannot name a credential")));
        }
        let help = "in the unit: LoadCredential=NAME:/path/of/the/key";
        let missing = || Problem::error("$CREDENTIALS_DIRECTORY is not set").help(help);
        match &self.keys {
            KeySource::Files { credentials } => {
                Ok(credentials.as_ref().ok_or_else(missing)?.join(name))
            }
            // Who handed it over knew where it is.
            KeySource::Handed(_) => Ok(text.into()),
        }
    }
}

/// Whether a path names a descriptor of ours.
fn is_descriptor(file: &path::Path) -> bool {
    let descriptors = ["/dev/fd", "/proc/self/fd"].map(path::Path::new).map(Some);
    file == path::Path::new("/dev/stdin") || descriptors.contains(&file.parent())
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
    // The errors after the first are often its echo, and so is what the tables lack.
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
