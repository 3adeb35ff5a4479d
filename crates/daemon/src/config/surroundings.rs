//! The location of a configuration: the base of its relative paths, and who could change it.

use std::io;
use std::path::{self, PathBuf};

use vpnd_crypto::PresharedKey;

use super::problem::Problem;
use super::value::TextResult;
use crate::keys::KeySource;
use crate::trust::{self, Untrusted};

/// The facts that a configuration takes from its location.
pub(super) struct Surroundings {
    /// The tunnel's name.
    pub(super) name: String,
    /// The absolute path of the file.
    pub(super) file: PathBuf,
    /// Where its keys are read from.
    pub(super) keys: KeySource,
    /// The real path of the file, or who else could change it. A handed-over file counts as trusted.
    pub(super) trusted: Result<PathBuf, Untrusted>,
    /// Whether this process makes the tunnel's files and sockets, or sends the configuration to a tunnel that has
    /// them.
    pub(super) starts: bool,
}

impl Surroundings {
    pub(super) fn of(file: &path::Path) -> Result<Self, Problem> {
        let unreadable =
            |e: io::Error| Problem::error(format!("the current directory cannot be found: {e}"));
        let file = path::absolute(file).map_err(unreadable)?;
        let stem = file.file_stem().and_then(|stem| stem.to_str());
        let stem = stem.filter(|stem| !stem.starts_with('.') && !stem.contains(char::is_control));
        let nameless =
            || Problem::error("the file's name is the tunnel's name, and is not a valid one");
        let name = stem.ok_or_else(nameless)?.to_owned();
        let trusted = match trust::file(&file) {
            // A pipe that was opened by the process that started vpnd has no path that could be walked.
            Err(Untrusted::Unreachable { .. }) if is_descriptor(&file) => Ok(file.clone()),
            trusted => trusted,
        };
        Ok(Self { name, file, keys: KeySource::files(), trusted, starts: true })
    }

    /// The path to open: that of the checked file. An untrusted file is read all the same, so that it can be
    /// reported.
    pub(super) fn opened<'a>(&'a self, file: &'a path::Path) -> &'a path::Path {
        self.trusted.as_deref().unwrap_or(file)
    }

    /// A path in the file; a relative one starts at the file's directory.
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
            // The process that handed it over has resolved the path.
            KeySource::Handed(_) => Ok(text.into()),
        }
    }
}

/// Whether a path is that of a descriptor of ours.
fn is_descriptor(file: &path::Path) -> bool {
    let descriptors = ["/dev/fd", "/proc/self/fd"].map(path::Path::new).map(Some);
    file == path::Path::new("/dev/stdin") || descriptors.contains(&file.parent())
}
