//! Listening sockets in the file system. One is bound in place of another whose process has ended, while the daemon
//! still has the privilege to make its directory, and is removed at the end.

mod clients;
mod serving;

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as Probe};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::Uid;
use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;
use tokio::net::UnixListener;

pub(crate) use clients::Desk;
#[cfg(test)]
pub(crate) use clients::MAX_CONNECTIONS;
pub(crate) use serving::{Serving, is_at};

use clients::serve;

use crate::trust;

/// Connections that the kernel queues until they are accepted.
pub(crate) const BACKLOG: i32 = 16;
/// The mode of a socket to which only its owner and root may connect.
pub(crate) const OWNER_ONLY: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);

/// Why a socket could not be bound.
#[derive(Debug, Error)]
pub(crate) enum SocketFileError {
    /// Another process listens there.
    #[error("{} is in use", .0.display())]
    InUse(PathBuf),
    /// A file of another kind has that name.
    #[error("{} exists and is not a socket; vpnd does not remove it", .0.display())]
    InTheWay(PathBuf),
    /// The kernel refused.
    #[error("{}: {what}: {error}", path.display())]
    Refused { path: PathBuf, what: &'static str, error: io::Error },
}

/// The name of a bound socket in the file system, which is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct SocketFile(Option<PathBuf>);

impl SocketFile {
    /// The name of a socket that an earlier process has bound.
    pub(crate) fn inherited(path: PathBuf) -> Self {
        Self(Some(path))
    }

    /// Leaves the name to the next process.
    pub(crate) fn leave(&mut self) {
        self.0 = None;
    }
}

/// Binds a socket at `path` with this mode, and creates its directory.
///
/// # Errors
///
/// If another process listens there, or the kernel refuses.
///
/// # Panics
///
/// Outside a tokio runtime.
pub(crate) fn bind(path: &Path, mode: Mode) -> Result<(UnixListener, SocketFile), SocketFileError> {
    let listener = bind_for_another(path, mode)?;
    let file = SocketFile(Some(path.to_owned()));
    let refused = |error| refused(path, "serving it", error);
    Ok((UnixListener::from_std(listener).map_err(refused)?, file))
}

/// The same for a process that leaves the socket to another, which also removes it.
///
/// # Errors
///
/// As [`bind`].
pub(crate) fn bind_for_another(
    path: &Path,
    mode: Mode,
) -> Result<StdUnixListener, SocketFileError> {
    let directory = path.parent().unwrap_or_else(|| Path::new("/"));
    let made = DirBuilder::new().recursive(true).mode(0o755).create(directory);
    made.map_err(|error| refused(path, "making its directory", error))?;
    remove_stale(path)?;
    listen(path, mode).map_err(|error| refused(path, "binding it", error))
}

fn refused(path: &Path, what: &'static str, error: io::Error) -> SocketFileError {
    SocketFileError::Refused { path: path.to_owned(), what, error }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let Some(path) = &self.0 else { return };
        // This process may have no access to the directory any more; the next start removes the socket.
        if let Err(error) = fs::remove_file(path) {
            tracing::debug!(%error, "{} stays", path.display());
        }
    }
}

fn remove_stale(path: &Path) -> Result<(), SocketFileError> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(SocketFileError::InTheWay(path.to_owned()));
    }
    match Probe::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        // The socket belongs to another user, whether a daemon is running or not.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(refused(path, "it belongs to another user", error));
        }
        _ => return Err(SocketFileError::InUse(path.to_owned())),
    }
    fs::remove_file(path).map_err(|error| refused(path, "removing an old one", error))
}

fn listen(path: &Path, mode: Mode) -> io::Result<StdUnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    // The kernel gives the path the mode of the socket, so at no time may others connect.
    fchmod(&socket, mode)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    if mode != OWNER_ONLY {
        give_mode(path, mode)?;
    }
    Ok(socket.into())
}

/// The umask has taken from the mode what others may.
fn give_mode(path: &Path, mode: Mode) -> io::Result<()> {
    let opened = open_own(path)?;
    // By the descriptor, since the path may be another file by now.
    let path = format!("/proc/self/fd/{}", opened.as_raw_fd());
    fs::set_permissions(path, Permissions::from_mode(mode.bits()))
}

/// The socket of this name as a mere path, if it is ours and has no other name: any user who may write to the directory can have
/// replaced it.
///
/// # Errors
///
/// If it is not, or cannot be opened.
pub(crate) fn open_own(path: &Path) -> io::Result<File> {
    let opened = trust::open_no_link(path, OFlag::O_PATH)?;
    let found = opened.metadata()?;
    let is_ours = found.uid() == Uid::effective().as_raw();
    if !found.file_type().is_socket() || found.nlink() != 1 || !is_ours {
        return Err(io::Error::other("it is not the socket that was bound"));
    }
    Ok(opened)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With any umask that tests are run with: that of users takes the right to write.
    #[tokio::test]
    async fn everybody_may_connect_where_everybody_should() {
        let directory = tempfile::tempdir().unwrap();
        for (name, mode) in [("all", Mode::from_bits_truncate(0o666)), ("owner", OWNER_ONLY)] {
            let path = directory.path().join(name);
            let (_listener, _file) = bind(&path, mode).unwrap();
            let found = fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o777;
            assert_eq!(found, mode.bits(), "{name}: {found:o}");
        }
    }
}
