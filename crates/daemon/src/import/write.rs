//! Writes an end of a tunnel: its configuration and its keys. Nothing is overwritten.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;
use vpnd_import::Tunnel;

use crate::keys::{self, KeyFileError};
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

    /// The files, for people.
    pub(super) fn listed(&self, tunnel: &Tunnel) -> String {
        let psk = tunnel
            .preshared_key
            .as_ref()
            .map_or_else(String::new, |_| format!(" and {}.psk", self.name));
        format!(
            "{}, with {}.key{psk}, which only their owner may read",
            self.path("toml").display(),
            self.name
        )
    }

    /// The command that puts the files in their place, unless they are there.
    pub(super) fn copy(&self) -> String {
        if self.directory == Path::new("/etc/vpnd") {
            return String::new();
        }
        let files = self.directory.join(&self.name);
        format!("  install -d -m 700 /etc/vpnd && cp -p {}.* /etc/vpnd/\n", files.display())
    }

    pub(super) fn write(&self, text: &str, tunnel: &Tunnel) -> Result<(), WriteError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.directory);
        made.map_err(|error| WriteError::Directory { path: self.directory.clone(), error })?;
        keys::create(&self.path("key"), &tunnel.private_key)?;
        if let Some(key) = &tunnel.preshared_key {
            keys::create(&self.path("psk"), key)?;
        }
        let path = self.path("toml");
        let file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path);
        let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|error| WriteError::Config { path, error })
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
