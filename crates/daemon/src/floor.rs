//! The timestamp floor on disk: the last stamp that went out under our key. After a restart with
//! a clock set back, the next stamp is newer all the same, so that the peer still listens.
//!
//! Written after the privilege drop, so the directory belongs to whom the daemon becomes.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::path::{Path, PathBuf};

use thiserror::Error;
use tokio::task;
use vpnd_protocol::timestamp::{NotATimestamp, Timestamp};

use crate::config::Account;

/// A stamp is 25 bytes and a line's end; what is longer is something else.
const MAX_LEN: u64 = 64;

/// Why the floor is not known or not kept. Neither stops a tunnel.
#[derive(Debug, Error)]
pub(crate) enum FloorError {
    /// It cannot be read.
    #[error("cannot read {}: {error}; handshakes rely on the clock alone", path.display())]
    Read { path: PathBuf, error: io::Error },
    /// What stands there is no stamp.
    #[error("{}: {error}; handshakes rely on the clock alone", path.display())]
    Content { path: PathBuf, error: NotATimestamp },
    /// It cannot be written.
    #[error(
        "cannot write {}: {error}; after a restart with the clock set back the peer will not \
         answer until the clock has caught up",
        path.display()
    )]
    Write { path: PathBuf, error: io::Error },
}

/// Where one tunnel's floor is kept.
#[derive(Clone, Debug)]
pub(crate) struct FloorFile {
    path: PathBuf,
}

impl FloorFile {
    /// The floor of tunnel `name` below `state_dir`, which is made and given to `owner` while we
    /// still can. What fails here shows when the floor is written.
    pub(crate) fn open(state_dir: &Path, name: &str, owner: Option<&Account>) -> Self {
        if let Err(error) = prepare(state_dir, owner) {
            tracing::debug!(%error, "preparing {}", state_dir.display());
        }
        Self { path: state_dir.join(format!("{name}.floor")) }
    }

    /// The floor, if one was ever kept.
    ///
    /// # Errors
    ///
    /// If there is a file that cannot be read or holds no stamp.
    pub(crate) fn read(&self) -> Result<Option<Timestamp>, FloorError> {
        let path = || self.path.clone();
        let mut text = String::new();
        let read = File::open(&self.path).and_then(|f| f.take(MAX_LEN).read_to_string(&mut text));
        match read {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(FloorError::Read { path: path(), error }),
        }
        let stamp = text.trim_end().parse();
        stamp.map(Some).map_err(|error| FloorError::Content { path: path(), error })
    }

    /// Keeps `stamp` where it outlives a power cut, on a thread of its own: a slow disk delays
    /// nobody else.
    ///
    /// # Errors
    ///
    /// If it could not be kept; the one before is still there.
    pub(crate) async fn write(&self, stamp: Timestamp) -> Result<(), FloorError> {
        let path = self.path.clone();
        let written = task::spawn_blocking(move || replace(&path, &format!("{stamp}\n"))).await;
        let written = written.unwrap_or_else(|error| Err(io::Error::other(error)));
        written.map_err(|error| FloorError::Write { path: self.path.clone(), error })
    }
}

/// The new content is whole on the disk before it takes the old one's name, and the name before
/// this returns.
fn replace(path: &Path, content: &str) -> io::Result<()> {
    let new = path.with_extension("floor.new");
    let mut file = File::create(&new)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(path.parent().unwrap_or_else(|| Path::new(".")))?.sync_all()
}

fn prepare(directory: &Path, owner: Option<&Account>) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    let Some(owner) = owner else { return Ok(()) };
    if fs::metadata(directory)?.uid() == owner.uid || !holds_only_floors(directory)? {
        return Ok(());
    }
    chown(directory, Some(owner.uid), Some(owner.gid))
}

/// Whether nobody else keeps anything here: a directory that others use is not given away.
fn holds_only_floors(directory: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let extension = Path::new(&name).extension().and_then(OsStr::to_str);
        if !matches!(extension, Some("floor" | "new")) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::Uid;
    use std::time::Duration;
    use vpnd_protocol::time::WallTime;

    fn stamp(seconds: u64) -> Timestamp {
        Timestamp::from_wall(WallTime::from_unix(Duration::from_secs(seconds)))
    }

    #[tokio::test]
    async fn what_was_written_is_read() {
        let state = tempfile::tempdir().unwrap();
        let floor = FloorFile::open(&state.path().join("deep/down"), "site-a", None);
        assert_eq!(floor.read().unwrap(), None);
        for seconds in [2_000_000_000, 1] {
            floor.write(stamp(seconds)).await.unwrap();
            assert_eq!(floor.read().unwrap(), Some(stamp(seconds)));
        }
        let names: Vec<_> = fs::read_dir(state.path().join("deep/down")).unwrap().collect();
        assert_eq!(names.len(), 1, "nothing but the floor stays");
    }

    #[tokio::test]
    async fn a_failure_names_the_file_and_leaves_the_old_floor() {
        let state = tempfile::tempdir().unwrap();
        let floor = FloorFile::open(state.path(), "site-a", None);
        floor.write(stamp(7)).await.unwrap();
        fs::create_dir(state.path().join("site-a.floor.new")).unwrap();
        let error = floor.write(stamp(8)).await.unwrap_err().to_string();
        assert!(error.contains("site-a.floor: Is a directory"), "{error}");
        assert_eq!(floor.read().unwrap(), Some(stamp(7)));
    }

    #[test]
    fn what_is_no_floor() {
        let state = tempfile::tempdir().unwrap();
        let floor = FloorFile::open(state.path(), "site-a", None);
        for content in [&b""[..], b"@40", b"\xff\xfe", &[b'@'; 100]] {
            fs::write(state.path().join("site-a.floor"), content).unwrap();
            assert!(floor.read().is_err());
        }
    }

    #[test]
    fn a_directory_of_ours_is_given_away_and_no_other() {
        if !Uid::effective().is_root() {
            return;
        }
        let owner = Account { name: "somebody".into(), uid: 12345, gid: 12345 };
        let state = tempfile::tempdir().unwrap();
        let uid = |path: &Path| fs::metadata(path).unwrap().uid();
        FloorFile::open(state.path(), "site-a", Some(&owner));
        assert_eq!(uid(state.path()), 12345);

        let shared = tempfile::tempdir().unwrap();
        fs::write(shared.path().join("shadow"), "").unwrap();
        FloorFile::open(shared.path(), "site-a", Some(&owner));
        assert_eq!(uid(shared.path()), 0);
    }
}
