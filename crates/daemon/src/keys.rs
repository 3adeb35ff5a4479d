//! Key files: their permissions are checked when they are read, and new key files are readable by their owner
//! only. A daemon without privileges receives the contents from another process.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::Uid;
use thiserror::Error;
use vpnd_crypto::{KeyError, PresharedKey, SecretKey};
use zeroize::Zeroizing;

use crate::trust::{self, Untrusted};

/// The secrets of one tunnel. They are separate from its [`Config`](crate::config::Config), which may be shown.
pub(crate) struct Keys {
    /// Our private key.
    pub(crate) secret: SecretKey,
    /// Our next private key.
    pub(crate) next_secret: Option<SecretKey>,
    /// The preshared key, which is mixed into each handshake; all zeros if the tunnel has none.
    pub(crate) preshared: PresharedKey,
    /// The next preshared key.
    pub(crate) next_preshared: Option<PresharedKey>,
}

/// The configuration keys that name key files.
pub(crate) const KEY_FILES: [&str; 4] =
    ["private_key_file", "next_private_key_file", "preshared_key_file", "next_preshared_key_file"];

/// Where the key files of a configuration are read from.
pub(crate) enum KeySource {
    /// From the files. Files in this directory may belong to other users, because systemd controls it.
    Files { credentials: Option<PathBuf> },
    /// From a process that may read the files, which has sent them together with the configuration.
    Handed(HandedKeys),
}

impl KeySource {
    /// The files, which this process reads.
    pub(crate) fn files() -> Self {
        Self::Files { credentials: credentials_directory() }
    }

    /// Finds the key of the file at `path`. The configuration key `named_by`, one of [`KEY_FILES`], contains
    /// that path.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, is accessible to others, was not sent, or contains no key.
    pub(crate) fn find<K>(
        &self,
        named_by: &str,
        path: &Path,
        parse: fn(&str) -> Result<K, KeyError>,
    ) -> Result<K, KeyFileError> {
        let key = |text: &str| parse(text.trim()).map_err(|error| content(path, error));
        match self {
            Self::Files { credentials } => key(&read(path, credentials.as_deref())?),
            Self::Handed(keys) => match keys.text(named_by) {
                Some(text) => key(text),
                None => Err(KeyFileError::Withheld { path: path.to_owned() }),
            },
        }
    }
}

/// The texts of keys, each with the configuration key (one of [`KEY_FILES`]) of its file.
pub(crate) struct HandedKeys(pub(crate) Vec<(&'static str, Zeroizing<String>)>);

impl HandedKeys {
    /// The texts of `keys`; `preshared` is whether the preshared key comes from a file.
    pub(crate) fn new(keys: &Keys, preshared: bool) -> Self {
        let preshared = preshared.then(|| keys.preshared.to_base64());
        let texts = [
            Some(keys.secret.to_base64()),
            keys.next_secret.as_ref().map(SecretKey::to_base64),
            preshared,
            keys.next_preshared.as_ref().map(PresharedKey::to_base64),
        ];
        let named = KEY_FILES.into_iter().zip(texts);
        Self(named.filter_map(|(named_by, text)| Some((named_by, text?))).collect())
    }

    fn text(&self, named_by: &str) -> Option<&str> {
        let mut all = self.0.iter();
        all.find(|(known, _)| *known == named_by).map(|(_, text)| text.as_str())
    }
}

/// Why a key file cannot be used. Each message explains how to correct it.
#[derive(Debug, Error)]
pub(crate) enum KeyFileError {
    /// The file cannot be opened or read.
    #[error("cannot read {}: {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    /// The path leads to a directory, a pipe or a device.
    #[error("{} is not a file", path.display())]
    Kind { path: PathBuf },
    /// Other users may read or write the file.
    #[error("{} has mode {mode:04o}, open to others than its owner: run `chmod 600 {}`", path.display(), path.display())]
    Mode { path: PathBuf, mode: u32 },
    /// The file's owner could replace the key.
    #[error("{} belongs to uid {uid}, neither to root nor to us: run `chown {} {}`", path.display(), Uid::effective(), path.display())]
    Owner { path: PathBuf, uid: u32 },
    /// Other users could replace the file.
    #[error(
        "others could replace {}: {why}; keep keys in a directory that only root or you may write to",
        path.display()
    )]
    Place { path: PathBuf, why: Untrusted },
    /// The file's contents are not a key.
    #[error("{} holds no key: {error}", path.display())]
    Content { path: PathBuf, error: KeyError },
    /// The process that sent the configuration did not send this file.
    #[error("the contents of {} were not handed over", path.display())]
    Withheld { path: PathBuf },
    /// The file cannot be created.
    #[error("cannot create {}: {error}", path.display())]
    Create { path: PathBuf, error: io::Error },
}

/// Reads a private key. Files in `credentials` may belong to other users, because systemd controls that
/// directory.
///
/// # Errors
///
/// If the file cannot be read, is accessible to others, or contains no key.
pub(crate) fn read_secret(
    path: &Path,
    credentials: Option<&Path>,
) -> Result<SecretKey, KeyFileError> {
    let text = read(path, credentials)?;
    SecretKey::from_base64(text.trim()).map_err(|error| content(path, error))
}

/// Writes a key to a new file that only its owner may read.
///
/// # Errors
///
/// If the file exists, even if it is empty; if it cannot be written; or if others could replace it.
pub(crate) fn create(path: &Path, key: &str) -> Result<(), KeyFileError> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    match trust::directory(directory.unwrap_or_else(|| Path::new("."))) {
        Ok(_) => {}
        Err(Untrusted::Unreachable { error, .. }) => {
            return Err(KeyFileError::Create { path: path.to_owned(), error });
        }
        Err(why) => return Err(KeyFileError::Place { path: path.to_owned(), why }),
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| {
        writeln!(file, "{key}")?;
        file.sync_all()
    });
    written.map_err(|error| KeyFileError::Create { path: path.to_owned(), error })
}

/// The directory in which systemd puts the credentials of this service.
pub(crate) fn credentials_directory() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from)
}

/// The maximum length of a key file: enough for a key and white space around it.
pub(crate) const MAX_LEN: usize = 256;

fn read(path: &Path, credentials: Option<&Path>) -> Result<Zeroizing<String>, KeyFileError> {
    let unreadable = |error| KeyFileError::Read { path: path.to_owned(), error };
    let real = trust::place(path).map_err(|why| match why {
        Untrusted::Unreachable { error, .. } => unreadable(error),
        why => KeyFileError::Place { path: path.to_owned(), why },
    })?;
    // Opened without blocking, so that a pipe in place of a key file is an error instead of a wait.
    let file = trust::open_no_link(&real, OFlag::empty()).map_err(unreadable)?;
    let exempt = credentials.is_some_and(|directory| lies_in(&real, directory));
    check(path, &file.metadata().map_err(unreadable)?, exempt)?;
    // The full capacity is reserved at the start, because a growing text would leave copies behind.
    let mut text = Zeroizing::new(String::with_capacity(MAX_LEN));
    file.take(MAX_LEN as u64).read_to_string(&mut text).map_err(unreadable)?;
    Ok(text)
}

fn check(path: &Path, found: &std::fs::Metadata, exempt: bool) -> Result<(), KeyFileError> {
    let (path, mode, uid) = (path.to_owned(), found.mode() & 0o7777, found.uid());
    if !found.is_file() {
        return Err(KeyFileError::Kind { path });
    }
    if exempt {
        return Ok(());
    }
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Mode { path, mode });
    }
    if uid != 0 && uid != Uid::effective().as_raw() {
        return Err(KeyFileError::Owner { path, uid });
    }
    Ok(())
}

/// Whether a real path is a credential. systemd puts credentials directly into that directory, and no other
/// user can write to it. A wrong directory in the environment does not exempt files elsewhere.
fn lies_in(real: &Path, credentials: &Path) -> bool {
    trust::directory(credentials).is_ok_and(|directory| real.parent() == Some(&directory))
}

fn content(path: &Path, error: KeyError) -> KeyFileError {
    KeyFileError::Content { path: path.to_owned(), error }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use nix::sys::stat::Mode;
    use nix::unistd::{chown, mkfifo};
    use tempfile::TempDir;

    use super::*;

    /// A directory with a key in `site.key`, a file with this mode.
    fn key_of_mode(mode: u32) -> (TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("site.key");
        create(&path, &SecretKey::from_bytes([1; 32]).to_base64()).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        (directory, path)
    }

    fn error(path: &Path) -> KeyFileError {
        read_secret(path, None).err().unwrap()
    }

    #[test]
    fn a_new_key_file_is_ours_alone_and_never_replaces_one() {
        let (_directory, path) = key_of_mode(0o600);
        let other = path.with_file_name("other.key");
        create(&other, "x").unwrap();
        assert_eq!(other.metadata().unwrap().mode() & 0o7777, 0o600);
        assert!(matches!(create(&path, "x"), Err(KeyFileError::Create { .. })));
        assert!(read_secret(&path, None).is_ok());
    }

    #[test]
    fn a_dangling_link_is_not_written_through() {
        let (directory, path) = key_of_mode(0o600);
        let link = directory.path().join("link");
        symlink(path.with_file_name("target"), &link).unwrap();
        assert!(create(&link, "x").is_err());
    }

    #[test]
    fn open_modes_are_refused_with_the_remedy() {
        for mode in [0o640, 0o604, 0o620, 0o602, 0o610, 0o777] {
            let (_directory, path) = key_of_mode(mode);
            let text = error(&path).to_string();
            assert!(text.ends_with(&format!("run `chmod 600 {}`", path.display())), "{text}");
        }
        for mode in [0o600, 0o400, 0o700] {
            let (_directory, path) = key_of_mode(mode);
            assert!(read_secret(&path, None).is_ok(), "{mode:o}");
        }
    }

    #[test]
    fn foreign_keys_are_refused_to_root_too() {
        let (_directory, path) = key_of_mode(0o600);
        // Only root can give a file away.
        if Uid::effective().is_root() {
            chown(&path, Some(Uid::from_raw(65534)), None).unwrap();
            assert!(matches!(error(&path), KeyFileError::Owner { uid: 65534, .. }));
        }
    }

    #[test]
    fn credentials_are_systemds_to_guard() {
        let (directory, path) = key_of_mode(0o644);
        let inside = Some(directory.path());
        assert!(read_secret(&path, inside).is_ok());
        assert!(read_secret(&path, Some(&directory.path().join("elsewhere"))).is_err());
    }

    #[test]
    fn the_way_out_of_the_credentials_is_no_credential() {
        let (_directory, path) = key_of_mode(0o644);
        let credentials = tempfile::tempdir().unwrap();
        let link = credentials.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(read_secret(&link, Some(credentials.path())).is_err());
    }

    #[test]
    fn what_is_no_key_file() {
        let (directory, path) = key_of_mode(0o600);
        assert!(matches!(error(directory.path()), KeyFileError::Kind { .. }));
        assert!(matches!(error(&path.with_file_name("none")), KeyFileError::Read { .. }));
        let pipe = path.with_file_name("pipe");
        mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        assert!(matches!(error(&pipe), KeyFileError::Kind { .. }));
        fs::write(&path, [b'A'; 1 << 16]).unwrap();
        assert!(matches!(error(&path), KeyFileError::Content { .. }));
        fs::write(&path, b"\xff\n").unwrap();
        assert!(matches!(error(&path), KeyFileError::Read { .. }));
    }
}
