//! Writes an end of a tunnel: its configuration and its keys. Nothing is overwritten.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{self, Path, PathBuf};

use thiserror::Error;
use vpnd_import::Tunnel;

use crate::keys::{self, KeyFileError};
use crate::placing::{ETC, MAKE_ETC, copy_to};
use crate::terminal::Printable;
use crate::trust::{self, Untrusted};

/// Why a file was not written.
#[derive(Debug, Error)]
pub(crate) enum WriteError {
    /// A file is there already.
    #[error("{} exists, and nothing is overwritten: give another --name or --out, or move it away", path.display())]
    Exists { path: PathBuf },
    /// Both ends would have the same files.
    #[error("both ends would be {}: give another --out, --peer-out or --name", path.display())]
    Both { path: PathBuf },
    /// Others could replace the files.
    #[error("others could replace what is in {}: {why}; give a directory of your own", path.display())]
    Place { path: PathBuf, why: Untrusted },
    /// A directory could not be made.
    #[error("cannot make the directory {}: {error}", path.display())]
    Directory { path: PathBuf, error: io::Error },
    /// The configuration could not be written.
    #[error("cannot create {}: {error}", path.display())]
    Config { path: PathBuf, error: io::Error },
    /// A key could not be written.
    #[error(transparent)]
    Key(#[from] KeyFileError),
}

/// The directory and name of an end's files.
pub(super) struct Place {
    directory: PathBuf,
    name: String,
}

impl Place {
    pub(super) fn new(directory: &Path, name: &str) -> Self {
        Self { directory: directory.to_owned(), name: name.to_owned() }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The file with this extension.
    pub(super) fn path(&self, extension: &str) -> PathBuf {
        self.directory.join(format!("{}.{extension}", self.name))
    }

    /// The files that this tunnel has.
    fn files(&self, tunnel: &Tunnel) -> Vec<PathBuf> {
        let psk = tunnel.preshared_key.as_ref().map(|_| "psk");
        ["toml", "key"].into_iter().chain(psk).map(|extension| self.path(extension)).collect()
    }

    /// The files, for people.
    pub(super) fn listed(&self, tunnel: &Tunnel) -> String {
        let psk = tunnel
            .preshared_key
            .as_ref()
            .map_or_else(String::new, |_| format!(" and {}.psk", self.name));
        format!(
            "{}, with {}.key{psk}, which only their owner may read",
            Printable(self.path("toml").display()),
            self.name
        )
    }

    /// The command that puts the files in their place, unless they are there. It overwrites nothing.
    pub(super) fn copy(&self, tunnel: &Tunnel) -> String {
        let files = self.files(tunnel);
        let whole = path::absolute(&self.directory).unwrap_or_else(|_| self.directory.clone());
        if whole == Path::new(ETC) {
            return String::new();
        }
        format!("  {MAKE_ETC}\n  {}\n", copy_to(ETC, &files))
    }

    /// Writes the files, and adds them to those that go again if a later one cannot be written.
    pub(super) fn write(
        &self,
        text: &str,
        tunnel: &Tunnel,
        written: &mut Written,
    ) -> Result<(), WriteError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.directory);
        made.map_err(|error| WriteError::Directory { path: self.directory.clone(), error })?;
        let mut key = |extension: &str, key: &str| {
            let path = self.path(extension);
            keys::create(&path, key).map(|()| written.0.push(path))
        };
        key("key", &tunnel.private_key)?;
        tunnel.preshared_key.as_ref().map_or(Ok(()), |preshared| key("psk", preshared))?;
        let path = self.path("toml");
        let failed = |error| WriteError::Config { path: path.clone(), error };
        // The commands of a file that others may not read can contain secrets.
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let mut file = file.map_err(failed)?;
        written.0.push(path.clone());
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
    }
}

/// The files that were written so far; they are removed again unless all are kept.
#[derive(Default)]
pub(super) struct Written(Vec<PathBuf>);

impl Written {
    pub(super) fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        for path in &self.0 {
            // The error that is on its way says what went wrong; a file that stays is named by the next import.
            let _removed = fs::remove_file(path);
        }
    }
}

/// Checks that no file exists yet, and that no other user could replace them.
pub(super) fn check(places: &[&Place]) -> Result<(), WriteError> {
    for (index, place) in places.iter().enumerate() {
        if places[..index].iter().any(|other| other.path("toml") == place.path("toml")) {
            return Err(WriteError::Both { path: place.path("toml") });
        }
        let directory = &place.directory;
        let trusted = trust::future_directory(directory, &[]);
        trusted.map_err(|why| WriteError::Place { path: directory.clone(), why })?;
        let files = ["toml", "key", "psk"].map(|extension| place.path(extension));
        if let Some(path) = files.into_iter().find(|path| path.symlink_metadata().is_ok()) {
            return Err(WriteError::Exists { path });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_written_whole_is_not_there() {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::new(directory.path(), "a");
        let tunnel = Tunnel { preshared_key: Some("psk".to_owned().into()), ..Tunnel::default() };
        fs::write(place.path("toml"), "mine").unwrap();
        let mut written = Written::default();
        assert!(matches!(place.write("", &tunnel, &mut written), Err(WriteError::Config { .. })));
        assert_eq!(written.0.len(), 2);
        drop(written);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(place.path("toml")).unwrap(), "mine");
    }
}
