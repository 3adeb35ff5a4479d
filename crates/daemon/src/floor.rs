//! The high-water mark of our timestamps, on disk: the last timestamp that was sent with our key. It makes the
//! next timestamp newer even after a restart with a clock that was set back, so that the peer accepts it.
//!
//! The file is written after the privileges are dropped, so its directory belongs to the user whom the daemon
//! becomes.

use std::ffi::{CStr, CString, OsStr};
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::dir::Dir;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::Uid;
use thiserror::Error;
use tokio::sync::mpsc;
use vpnd_protocol::time::WallTime;
use vpnd_protocol::timestamp::{NotATimestamp, Timestamp};

use crate::account::Account;
use crate::sandbox::{Role, Sandbox};
use crate::trust;
use crate::worker::Worker;

/// A timestamp is 25 bytes and a newline; a longer file is invalid.
const MAX_LEN: u64 = 64;

/// The time at which this code was written, 2026-01-01. An earlier clock is certainly wrong, and does not show
/// how late it really is.
pub(crate) const KNOWN_PAST: Duration = Duration::from_secs(1_767_225_600);
/// If our clock may be right, no clock of this machine was ever further ahead of it than this time.
const FAR_AHEAD: Duration = Duration::from_secs(5 * 366 * 86_400);
/// The same limit for a wrong clock, as on machines whose clock stops while they are off.
const FAR_AHEAD_OF_NOTHING: Duration = Duration::from_secs(30 * 366 * 86_400);

/// Why the mark is unknown, or could not be stored. Neither error stops a tunnel.
#[derive(Debug, Error)]
pub(crate) enum FloorError {
    /// The file cannot be read.
    #[error("cannot read {}: {error}; handshakes rely on the clock alone", path.display())]
    Read { path: PathBuf, error: io::Error },
    /// The file's contents are not a timestamp.
    #[error("{}: {error}; handshakes rely on the clock alone", path.display())]
    Content { path: PathBuf, error: NotATimestamp },
    /// Another user may have put the file there.
    #[error(
        "{} is no file that belongs to us alone: it is ignored, and handshakes rely on the clock alone",
        path.display()
    )]
    NotOurs { path: PathBuf },
    /// No clock of this machine has ever shown this time: the file is damaged or forged. A peer that receives
    /// such a timestamp never accepts an earlier one again.
    #[error(
        "{} holds {stamp}, years ahead of the clock: it is ignored, and handshakes rely on the clock alone",
        path.display()
    )]
    FarAhead { path: PathBuf, stamp: Timestamp },
    /// The file cannot be written.
    #[error(
        "cannot write {}: {error}; after a restart with the clock set back the peer will not \
         answer until the clock has caught up",
        path.display()
    )]
    Write { path: PathBuf, error: io::Error },
}

/// The place of one tunnel's mark.
#[derive(Clone, Debug)]
pub(crate) struct FloorFile {
    path: PathBuf,
}

impl FloorFile {
    /// The mark of tunnel `name` below `state_dir`. The directory is created and given to `owner` while this
    /// process still has the privilege. If that fails, writing the mark reports the error.
    pub(crate) fn open(state_dir: &Path, name: &str, owner: Option<&Account>) -> Self {
        if let Err(error) = prepare(state_dir, owner) {
            tracing::debug!(%error, "cannot prepare the state directory {}", state_dir.display());
        }
        Self::of(state_dir, name)
    }

    /// The same, for a look from outside: the directory stays as it is.
    pub(crate) fn of(state_dir: &Path, name: &str) -> Self {
        Self { path: state_dir.join(format!("{name}.floor")) }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The mark, if one was ever stored.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, may be another user's, or contains no plausible timestamp.
    pub(crate) fn read(&self, clock: WallTime) -> Result<Option<Timestamp>, FloorError> {
        self.read_among(clock, Uid::effective().as_raw())
    }

    /// Like [`read`](Self::read), for root: the user to whom the directory belongs may have stored the mark.
    ///
    /// # Errors
    ///
    /// Like [`read`](Self::read).
    pub(crate) fn read_of_another(&self, clock: WallTime) -> Result<Option<Timestamp>, FloorError> {
        let directory = self.path.parent().and_then(|parent| fs::metadata(parent).ok());
        let owner = directory.map_or(0, |directory| directory.uid());
        self.read_among(clock, owner)
    }

    /// Stores a mark for the user to whom the directory belongs. Without a directory no tunnel has run, and
    /// nothing is stored.
    ///
    /// # Errors
    ///
    /// If it cannot be stored.
    pub(crate) fn store_for_another(&self, stamp: Timestamp) -> Result<(), FloorError> {
        let write = || match self.path.parent().map(|parent| (parent, fs::metadata(parent))) {
            Some((parent, Ok(directory))) => {
                replace(&self.path, &format!("{stamp}\n"))?;
                give_away(parent, &self.path, &directory)
            }
            _ => Ok(()),
        };
        write().map_err(|error| FloorError::Write { path: self.path.clone(), error })
    }

    fn read_among(&self, clock: WallTime, user: u32) -> Result<Option<Timestamp>, FloorError> {
        let path = || self.path.clone();
        let file = match trust::open_no_link(&self.path, OFlag::empty()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file,
        };
        let read = file.and_then(|file| Ok((file.metadata()?, read(file)?)));
        let (found, text) = read.map_err(|error| FloorError::Read { path: path(), error })?;
        if !is_of(&found, user) {
            return Err(FloorError::NotOurs { path: path() });
        }
        let stamp = text.trim_end().parse();
        match stamp.map_err(|error| FloorError::Content { path: path(), error })? {
            stamp if stamp > latest(clock) => Err(FloorError::FarAhead { path: path(), stamp }),
            stamp => Ok(Some(stamp)),
        }
    }

    /// Stores `stamp` so that it survives a power failure. A separate thread writes it, so a slow disk delays
    /// nothing else.
    ///
    /// # Errors
    ///
    /// If the timestamp could not be stored; then the file still contains the previous one.
    pub(crate) async fn write(&self, files: &Worker, stamp: Timestamp) -> Result<(), FloorError> {
        let path = self.path.clone();
        let written = files.run(move || replace(&path, &format!("{stamp}\n"))).await;
        written.flatten().map_err(|error| FloorError::Write { path: self.path.clone(), error })
    }
}

/// Stores the mark of a running tunnel, with one write at a time. Of the timestamps that arrive during a write,
/// only the newest is written.
#[derive(Debug)]
pub(crate) struct FloorWriter {
    file: FloorFile,
    files: Worker,
    written: (mpsc::Sender<Written>, mpsc::Receiver<Written>),
    is_writing: bool,
    /// The timestamp to write next.
    next: Option<Timestamp>,
    /// Whether the last write failed, and was logged.
    fails: bool,
}

/// A timestamp, and whether it was stored.
type Written = (Timestamp, Result<(), FloorError>);

impl FloorWriter {
    /// Starts the writing thread.
    ///
    /// # Errors
    ///
    /// If the kernel cannot start a thread, or confine it.
    pub(crate) fn start(file: FloorFile, sandbox: &Sandbox) -> io::Result<Self> {
        let (files, written) = (sandbox.worker("files", Role::Disk)?, mpsc::channel(1));
        Ok(Self { file, files, written, is_writing: false, next: None, fails: false })
    }

    /// Stores `stamp`, now or after the write in progress.
    pub(crate) fn keep(&mut self, stamp: Timestamp) {
        if self.is_writing {
            self.next = Some(stamp);
            return;
        }
        self.is_writing = true;
        let (file, files) = (self.file.clone(), self.files.clone());
        let written = self.written.0.clone();
        tokio::spawn(async move {
            let result = file.write(&files, stamp).await;
            // The receiver is dropped when the tunnel stops.
            let _stopped = written.send((stamp, result)).await;
        });
    }

    /// The next timestamp whose write has ended, successfully or not; a failure never stops a tunnel. The
    /// future is cancel-safe.
    pub(crate) async fn kept(&mut self) -> Timestamp {
        let Some((stamp, result)) = self.written.1.recv().await else {
            // This does not happen, because `self` has a sender.
            return std::future::pending().await;
        };
        self.note(result);
        self.is_writing = false;
        if let Some(next) = self.next.take() {
            self.keep(next);
        }
        stamp
    }

    /// Logs the first of several failures in a row.
    fn note(&mut self, result: Result<(), FloorError>) {
        if let Err(error) = &result
            && !self.fails
        {
            tracing::warn!("{error}");
        }
        self.fails = result.is_err();
    }
}

/// Reads the file. A pipe or a device in its place is not read.
fn read(file: File) -> io::Result<String> {
    let mut text = String::new();
    if file.metadata()?.is_file() {
        file.take(MAX_LEN).read_to_string(&mut text)?;
    }
    Ok(text)
}

/// Whether only root and this user can have written the file.
fn is_of(found: &Metadata, user: u32) -> bool {
    let owner = found.uid() == 0 || found.uid() == user;
    found.is_file() && owner && found.mode() & 0o022 == 0
}

/// The latest credible timestamp.
fn latest(clock: WallTime) -> Timestamp {
    let clock = clock.since_unix();
    let latest = if clock < KNOWN_PAST {
        KNOWN_PAST + FAR_AHEAD_OF_NOTHING
    } else {
        clock.saturating_add(FAR_AHEAD)
    };
    Timestamp::from_wall(WallTime::from_unix(latest))
}

/// Replaces the file. The new contents are stored on the disk before they replace the old file, and the new
/// directory entry before this returns.
fn replace(path: &Path, content: &str) -> io::Result<()> {
    let new = path.with_extension("floor.new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // A new file, so that nothing is written through a link, or into a file that another user has opened.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(path.parent().unwrap_or_else(|| Path::new(".")))?.sync_all()
}

/// Makes the directory and gives it to `owner`. No other user can have put another directory, or a link, at the
/// real path. All owners are changed by descriptor.
fn prepare(directory: &Path, owner: Option<&Account>) -> io::Result<()> {
    if !Uid::effective().is_root() {
        return DirBuilder::new().recursive(true).mode(0o755).create(directory);
    }
    let real = trust::make_directory(directory).map_err(io::Error::other)?;
    let Some(owner) = owner else { return Ok(()) };
    let opened = trust::open_no_link(&real, OFlag::O_DIRECTORY)?;
    let found = opened.metadata()?;
    if found.uid() == owner.uid || found.mode() & 0o022 != 0 || !holds_only_floors(&opened)? {
        return Ok(());
    }
    fchown(&opened, Some(owner.uid), Some(owner.gid))?;
    for name in names(&opened)? {
        hand_on(&opened, &name, found.uid(), owner)?;
    }
    Ok(())
}

/// Gives a file that this process has stored to the owner of its directory.
fn give_away(parent: &Path, file: &Path, directory: &Metadata) -> io::Result<()> {
    let (Some(name), us) = (file.file_name(), Uid::effective().as_raw()) else { return Ok(()) };
    if directory.uid() == us {
        return Ok(());
    }
    let (uid, gid) = (directory.uid(), directory.gid());
    let owner = Account { name: String::new(), uid, gid };
    let opened = File::open(parent)?;
    hand_on(&opened, &CString::new(name.as_bytes())?, us, &owner)
}

/// Gives the files that an earlier start's user stored to the user of this start. A file with a second name is
/// left alone, because it may belong to another user.
fn hand_on(directory: &File, name: &CStr, former: u32, owner: &Account) -> io::Result<()> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = File::from(openat(directory, name, flags, Mode::empty())?);
    let found = file.metadata()?;
    if found.is_file() && found.nlink() == 1 && found.uid() == former {
        fchown(&file, Some(owner.uid), Some(owner.gid))?;
    }
    Ok(())
}

/// Whether the directory contains only files of vpnd. A directory that others use, too, is not given away.
fn holds_only_floors(directory: &File) -> io::Result<bool> {
    let is_ours = |name: &CString| {
        let extension = Path::new(OsStr::from_bytes(name.to_bytes())).extension();
        matches!(extension.and_then(OsStr::to_str), Some("floor" | "new"))
    };
    Ok(names(directory)?.iter().all(is_ours))
}

fn names(directory: &File) -> io::Result<Vec<CString>> {
    let mut opened =
        Dir::openat(directory, ".", OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let names = opened.iter().map(|entry| Ok(entry?.file_name().to_owned()));
    let mut names: Vec<CString> = names.collect::<io::Result<_>>()?;
    names.retain(|name| !matches!(name.to_bytes(), b"." | b".."));
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::mkfifo;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    use std::time::Instant;

    const NOW: u64 = 1_800_000_000;

    fn clock(seconds: u64) -> WallTime {
        WallTime::from_unix(Duration::from_secs(seconds))
    }

    fn stamp(seconds: u64) -> Timestamp {
        Timestamp::from_wall(clock(seconds))
    }

    #[tokio::test]
    async fn what_was_written_is_read() {
        let files = Worker::start("files", || Ok(())).unwrap();
        let state = tempfile::tempdir().unwrap();
        let floor = FloorFile::open(&state.path().join("deep/down"), "site-a", None);
        assert_eq!(floor.read(clock(NOW)).unwrap(), None);
        for seconds in [NOW, 1] {
            floor.write(&files, stamp(seconds)).await.unwrap();
            assert_eq!(floor.read(clock(NOW)).unwrap(), Some(stamp(seconds)));
        }
        let names: Vec<_> = fs::read_dir(state.path().join("deep/down")).unwrap().collect();
        assert_eq!(names.len(), 1, "nothing but the floor stays");
    }

    #[test]
    fn root_reads_and_stores_what_belongs_to_the_daemons_user() {
        let state = tempfile::tempdir().unwrap();
        let floor = FloorFile::of(state.path(), "site-a");
        if chown(state.path(), Some(12345), Some(12345)).is_err() {
            return;
        }
        floor.store_for_another(stamp(NOW)).unwrap();
        assert_eq!(fs::metadata(floor.path()).unwrap().uid(), 12345);
        assert!(floor.read(clock(NOW)).is_err(), "the daemon is that user, not root");
        assert_eq!(floor.read_of_another(clock(NOW)).unwrap(), Some(stamp(NOW)));
        let nowhere = FloorFile::of(&state.path().join("never"), "site-a");
        nowhere.store_for_another(stamp(NOW)).unwrap();
        assert_eq!(nowhere.read_of_another(clock(NOW)).unwrap(), None);
    }

    #[tokio::test]
    async fn of_the_stamps_that_wait_only_the_newest_is_written() {
        let state = tempfile::tempdir().unwrap();
        let file = FloorFile::open(state.path(), "site-a", None);
        let mut writer = FloorWriter::start(file.clone(), &Sandbox::off()).unwrap();
        for seconds in [NOW, NOW + 1, NOW + 2] {
            writer.keep(stamp(seconds));
        }
        assert_eq!(writer.kept().await, stamp(NOW));
        assert_eq!(writer.kept().await, stamp(NOW + 2));
        assert_eq!(file.read(clock(NOW)).unwrap(), Some(stamp(NOW + 2)));
    }

    #[tokio::test]
    async fn a_floor_that_cannot_be_written_holds_nothing_up() {
        let state = tempfile::tempdir().unwrap();
        let file = FloorFile::open(state.path(), "site-a", None);
        fs::create_dir(state.path().join("site-a.floor.new")).unwrap();
        let mut writer = FloorWriter::start(file, &Sandbox::off()).unwrap();
        writer.keep(stamp(NOW));
        assert_eq!(writer.kept().await, stamp(NOW));
        assert!(writer.fails);
    }

    #[tokio::test]
    async fn a_failure_names_the_file_and_leaves_the_old_floor() {
        let files = Worker::start("files", || Ok(())).unwrap();
        let state = tempfile::tempdir().unwrap();
        let floor = FloorFile::open(state.path(), "site-a", None);
        floor.write(&files, stamp(7)).await.unwrap();
        fs::create_dir(state.path().join("site-a.floor.new")).unwrap();
        let error = floor.write(&files, stamp(8)).await.unwrap_err().to_string();
        assert!(error.contains("site-a.floor: Is a directory"), "{error}");
        assert_eq!(floor.read(clock(NOW)).unwrap(), Some(stamp(7)));
    }

    #[test]
    fn what_is_no_floor() {
        let state = tempfile::tempdir().unwrap();
        let floor = FloorFile::open(state.path(), "site-a", None);
        for content in [&b""[..], b"@40", b"\xff\xfe", &[b'@'; 100]] {
            fs::write(state.path().join("site-a.floor"), content).unwrap();
            assert!(floor.read(clock(NOW)).is_err());
        }
    }

    #[test]
    fn what_may_be_somebody_elses_is_not_believed() {
        let state = tempfile::tempdir().unwrap();
        let floor = FloorFile::open(state.path(), "site-a", None);
        let path = state.path().join("site-a.floor");
        let error = || floor.read(clock(NOW)).unwrap_err().to_string();
        let other = state.path().join("other");
        fs::write(&other, stamp(NOW).to_string()).unwrap();

        symlink(&other, &path).unwrap();
        assert!(error().contains("cannot read"), "a link: {}", error());
        fs::remove_file(&path).unwrap();

        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let begin = Instant::now();
        assert!(error().contains("is no file that belongs to us alone"), "{}", error());
        assert!(begin.elapsed() < Duration::from_secs(30), "nobody waits for a pipe");
        fs::remove_file(&path).unwrap();

        fs::rename(&other, &path).unwrap();
        assert_eq!(floor.read(clock(NOW)).unwrap(), Some(stamp(NOW)));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(error().contains("is no file that belongs to us alone"), "{}", error());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        if Uid::effective().is_root() {
            chown(&path, Some(12345), None).unwrap();
            assert!(error().contains("is no file that belongs to us alone"), "{}", error());
        }
    }

    #[test]
    fn a_stamp_far_ahead_of_the_clock_is_ignored_and_one_of_a_clock_set_back_is_not() {
        const YEAR: u64 = 365 * 86_400;
        let state = tempfile::tempdir().unwrap();
        let floor = FloorFile::open(state.path(), "site-a", None);
        let path = state.path().join("site-a.floor");
        let end = "@7fffffffffffffff3b000000".parse().unwrap();
        for (now, last, believed) in [
            (NOW, stamp(NOW + YEAR), true),
            (NOW, stamp(NOW + 10 * YEAR), false),
            (NOW, end, false),
            // The clock did not run while the machine was off.
            (0, stamp(NOW), true),
            (0, stamp(NOW + 20 * YEAR), true),
            (0, end, false),
        ] {
            fs::write(&path, last.to_string()).unwrap();
            match floor.read(clock(now)) {
                Ok(read) => assert!(believed && read == Some(last), "{now} {last}"),
                Err(error) => {
                    assert!(
                        !believed && error.to_string().contains("ahead of the clock"),
                        "{error}"
                    );
                }
            }
        }
    }

    #[tokio::test]
    async fn nothing_is_written_through_a_link() {
        let files = Worker::start("files", || Ok(())).unwrap();
        let state = tempfile::tempdir().unwrap();
        let floor = FloorFile::open(state.path(), "site-a", None);
        let other = state.path().join("other");
        fs::write(&other, "mine").unwrap();
        symlink(&other, state.path().join("site-a.floor.new")).unwrap();
        floor.write(&files, stamp(7)).await.unwrap();
        assert_eq!(fs::read_to_string(&other).unwrap(), "mine");
        assert_eq!(floor.read(clock(NOW)).unwrap(), Some(stamp(7)));
    }

    #[test]
    fn a_directory_of_ours_is_given_away_and_no_other() {
        if !Uid::effective().is_root() {
            return;
        }
        let owner = Account { name: "somebody".into(), uid: 12345, gid: 12345 };
        let state = tempfile::tempdir().unwrap();
        let uid = |path: &Path| fs::metadata(path).unwrap().uid();
        fs::write(state.path().join("site-a.floor"), stamp(7).to_string()).unwrap();
        FloorFile::open(state.path(), "site-a", Some(&owner));
        assert_eq!(uid(state.path()), 12345);
        assert_eq!(uid(&state.path().join("site-a.floor")), 12345, "with what is in it");

        let shared = tempfile::tempdir().unwrap();
        fs::write(shared.path().join("shadow"), "").unwrap();
        FloorFile::open(shared.path(), "site-a", Some(&owner));
        assert_eq!(uid(shared.path()), 0);
    }

    #[test]
    fn no_directory_is_given_away_through_a_link_of_somebody_elses() {
        if !Uid::effective().is_root() {
            return;
        }
        let owner = Account { name: "somebody".into(), uid: 12345, gid: 12345 };
        let state = tempfile::tempdir().unwrap();
        let (shared, victim) = (state.path().join("shared"), state.path().join("victim"));
        fs::create_dir(&shared).unwrap();
        fs::create_dir(&victim).unwrap();
        symlink(&victim, shared.join("state")).unwrap();
        chown(&shared, Some(54399), None).unwrap();
        FloorFile::open(&shared.join("state"), "site-a", Some(&owner));
        assert_eq!(fs::metadata(&victim).unwrap().uid(), 0);
        FloorFile::open(&shared.join("new/state"), "site-a", Some(&owner));
        assert!(!shared.join("new").exists());
    }

    #[test]
    fn neither_a_directory_of_everybody_nor_a_file_with_two_names_is_given_away() {
        if !Uid::effective().is_root() {
            return;
        }
        let owner = Account { name: "somebody".into(), uid: 12345, gid: 12345 };
        let state = tempfile::tempdir().unwrap();
        let (open, closed) = (state.path().join("open"), state.path().join("closed"));
        for directory in [&open, &closed] {
            fs::create_dir(directory).unwrap();
        }
        fs::set_permissions(&open, fs::Permissions::from_mode(0o1777)).unwrap();
        FloorFile::open(&open, "site-a", Some(&owner));
        assert_eq!(fs::metadata(&open).unwrap().uid(), 0);
        let secret = state.path().join("secret");
        fs::write(&secret, "root's").unwrap();
        fs::hard_link(&secret, closed.join("site-a.floor")).unwrap();
        FloorFile::open(&closed, "site-a", Some(&owner));
        assert_eq!(fs::metadata(&secret).unwrap().uid(), 0);
    }
}
