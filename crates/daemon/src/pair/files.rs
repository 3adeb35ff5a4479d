//! The files of a site: a configuration and its keys. They are checked as `vpnd check` does before the first is
//! written, and either all of them are written or none.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;
use zeroize::Zeroizing;

use super::plan::Name;
use crate::config::{self, Handed, Report};
use crate::keys::{self, HandedKeys, KeyFileError};
use crate::placing::ETC;
use crate::trust::{self, Untrusted};

/// Why files were not written.
#[derive(Debug, Error)]
pub(crate) enum FilesError {
    /// A directory could not be made.
    #[error("cannot make the directory {}: {error}", path.display())]
    Directory { path: PathBuf, error: io::Error },
    /// Others could replace the files.
    #[error("others could replace what is in {}: {why}; give --out a directory of your own", path.display())]
    Place { path: PathBuf, why: Untrusted },
    /// There is a file of this name.
    #[error("{} exists already, and is left as it is: delete it, or give --out another directory", path.display())]
    Exists { path: PathBuf },
    /// A configuration could not be written.
    #[error("cannot create {}: {error}", path.display())]
    Config { path: PathBuf, error: io::Error },
    /// A key could not be written.
    #[error(transparent)]
    Key(#[from] KeyFileError),
}

/// The contents of a site's files `NAME.toml`, `NAME.key` and `NAME.psk`. The configuration names both keys.
pub(crate) struct Files {
    /// The name of the site.
    pub(crate) name: Name,
    /// The configuration.
    pub(crate) config: String,
    /// The private key, as base64.
    pub(crate) key: Zeroizing<String>,
    /// The preshared key, as base64; `None` if the configuration names none.
    pub(crate) psk: Option<Zeroizing<String>>,
}

impl Files {
    /// Checks the configuration as `vpnd check` does, with the keys that are not in files yet. Returns what is rarely
    /// intended.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it.
    pub(crate) fn check(&self) -> Result<Report, Report> {
        let key = |named_by, text: &Zeroizing<String>| (named_by, text.clone());
        let psk = self.psk.iter().map(|psk| key("preshared_key_file", psk));
        let keys =
            HandedKeys([key("private_key_file", &self.key)].into_iter().chain(psk).collect());
        let file = Path::new(ETC).join(self.file("toml"));
        let handed = Handed { source: self.config.clone(), keys };
        config::load_handed(self.name.as_ref(), &file, handed).map(|loaded| loaded.warnings)
    }

    /// The same files with another configuration.
    pub(crate) fn with_config(&self, config: String) -> Self {
        Self { name: self.name.clone(), config, key: self.key.clone(), psk: self.psk.clone() }
    }

    /// The paths of all files in this directory.
    fn paths(&self, directory: &Path) -> Vec<PathBuf> {
        let psk = self.psk.is_some().then_some("psk");
        let kinds = ["key", "toml"].into_iter().chain(psk);
        kinds.map(|kind| directory.join(self.file(kind))).collect()
    }

    fn file(&self, kind: &str) -> String {
        format!("{}.{kind}", self.name)
    }
}

/// Writes all files, each site's to its own directory, which is made if it is missing. If one cannot be written, those
/// before it are removed.
///
/// # Errors
///
/// If a file exists, cannot be written, or could be replaced by others.
pub(crate) fn write(all: &[(PathBuf, &Files)]) -> Result<(), FilesError> {
    // This is checked before any file is made, so that an error leaves nothing behind.
    for (directory, files) in all {
        let trusted = trust::future_directory(directory, &[]);
        trusted.map_err(|why| FilesError::Place { path: directory.clone(), why })?;
        let exists = |path: &PathBuf| path.symlink_metadata().is_ok();
        if let Some(path) = files.paths(directory).into_iter().find(exists) {
            return Err(FilesError::Exists { path });
        }
    }
    let mut made = Made::default();
    all.iter().try_for_each(|(directory, files)| made.write(directory, files))?;
    made.0.clear();
    Ok(())
}

/// Files and directories that are removed again, the last one first, unless all are written.
#[derive(Default)]
struct Made(Vec<PathBuf>);

impl Made {
    fn write(&mut self, directory: &Path, files: &Files) -> Result<(), FilesError> {
        self.directory(directory)?;
        let path = |kind| directory.join(files.file(kind));
        self.key(path("key"), &files.key)?;
        files.psk.iter().try_for_each(|psk| self.key(path("psk"), psk))?;
        let path = path("toml");
        create(&path, &files.config)
            .map_err(|error| FilesError::Config { path: path.clone(), error })?;
        self.0.push(path);
        Ok(())
    }

    fn directory(&mut self, path: &Path) -> Result<(), FilesError> {
        let missing = path.ancestors().take_while(|it| !it.as_os_str().is_empty() && !it.exists());
        let missing: Vec<_> = missing.map(Path::to_owned).collect();
        self.0.extend(missing.into_iter().rev());
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|error| FilesError::Directory { path: path.to_owned(), error })?;
        trust::directory(path).map_err(|why| FilesError::Place { path: path.to_owned(), why })?;
        Ok(())
    }

    fn key(&mut self, path: PathBuf, key: &str) -> Result<(), FilesError> {
        keys::create(&path, key)?;
        self.0.push(path);
        Ok(())
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in self.0.drain(..).rev() {
            // A directory that was not made, or that others have used since, stays.
            let _removed = fs::remove_file(&path).or_else(|_| fs::remove_dir(&path));
        }
    }
}

/// Creates a file that only its owner may write.
fn create(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).inspect_err(|_half| {
        let _removed = fs::remove_file(path);
    })
}

/// Replaces a configuration at once: whoever reads it finds the former text or the new one.
///
/// # Errors
///
/// If it cannot be written.
pub(crate) fn replace(path: &Path, text: &str) -> Result<(), FilesError> {
    let next = path.with_extension("toml.new");
    let failed = |error| FilesError::Config { path: next.clone(), error };
    create(&next, text).map_err(failed)?;
    fs::rename(&next, path).map_err(|error| {
        // What is left would be in the way of the next try.
        let _removed = fs::remove_file(&next);
        failed(error)
    })
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::super::keys::Pair;
    use super::super::tests::{both_families, bridged, road_warrior};
    use super::*;

    fn count(directory: &Path) -> usize {
        fs::read_dir(directory).unwrap().count()
    }

    #[test]
    fn what_is_written_is_what_was_checked() {
        for plan in [both_families(), bridged(), road_warrior()] {
            let out = tempfile::tempdir().unwrap();
            for files in &Pair::generate().files(&plan) {
                assert!(files.check().unwrap().is_empty());
                write(&[(out.path().join(files.name.as_ref()), files)]).unwrap();
                let path = out.path().join(format!("{0}/{0}.toml", files.name));
                let loaded = config::load(&path).unwrap_or_else(|report| panic!("{report}"));
                assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
                assert_eq!(*loaded.keys.secret.to_base64(), *files.key);
            }
        }
    }

    #[test]
    fn nothing_is_left_where_others_could_replace_it() {
        let out = tempfile::tempdir().unwrap();
        fs::set_permissions(out.path(), Permissions::from_mode(0o777)).unwrap();
        let [files, _] = Pair::generate().files(&bridged());
        let refused = write(&[(out.path().join("deep/er"), &files)]);
        assert!(matches!(refused, Err(FilesError::Place { .. })));
        assert_eq!(count(out.path()), 0);
    }

    #[test]
    fn nothing_is_overwritten_and_nothing_is_left_beside_it() {
        let out = tempfile::tempdir().unwrap();
        let [a, b] = Pair::generate().files(&bridged());
        let at = |name: &str| out.path().join(name);
        write(&[(at("b"), &b)]).unwrap();
        let before = fs::read(at("b").join("site-b.key")).unwrap();
        let [_, other] = Pair::generate().files(&bridged());
        let refused = write(&[(at("a"), &a), (at("b"), &other)]);
        assert!(matches!(refused, Err(FilesError::Exists { .. })));
        assert!(!at("a").exists());
        assert_eq!(fs::read(at("b").join("site-b.key")).unwrap(), before);
    }

    #[test]
    fn what_is_written_half_is_removed() {
        let out = tempfile::tempdir().unwrap();
        fs::write(out.path().join("file"), "").unwrap();
        let [a, b] = Pair::generate().files(&bridged());
        // The second directory cannot be made.
        let failed = write(&[(out.path().join("new/a"), &a), (out.path().join("file/b"), &b)]);
        assert!(failed.is_err());
        assert_eq!(count(out.path()), 1);
    }

    #[test]
    fn a_configuration_is_replaced_as_a_whole() {
        let out = tempfile::tempdir().unwrap();
        let path = out.path().join("a.toml");
        fs::write(&path, "before").unwrap();
        replace(&path, "after").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "after");
        assert_eq!(count(out.path()), 1);
    }
}
