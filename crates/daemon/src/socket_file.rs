//! Listening sockets in the file system. One is bound in place of another whose process has ended, and is removed at
//! the end.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::os::unix::net::UnixStream as Probe;
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;
use tokio::net::UnixListener;

/// Connections that the kernel queues until they are accepted.
pub(crate) const BACKLOG: i32 = 16;

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
pub(crate) struct SocketFile(PathBuf);

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
    let refused =
        |what| move |error| SocketFileError::Refused { path: path.to_owned(), what, error };
    let directory = path.parent().unwrap_or_else(|| Path::new("/"));
    let made = DirBuilder::new().recursive(true).mode(0o755).create(directory);
    made.map_err(refused("making its directory"))?;
    remove_stale(path)?;
    let listener = listen(path, mode).map_err(refused("binding it"))?;
    Ok((listener, SocketFile(path.to_owned())))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // This process may have no access to the directory any more; the next start removes the socket.
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::debug!(%error, "{} stays", self.0.display());
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
            let what = "it belongs to another user";
            return Err(SocketFileError::Refused { path: path.to_owned(), what, error });
        }
        _ => return Err(SocketFileError::InUse(path.to_owned())),
    }
    let refused = |error| SocketFileError::Refused {
        path: path.to_owned(),
        what: "removing an old one",
        error,
    };
    fs::remove_file(path).map_err(refused)
}

fn listen(path: &Path, mode: Mode) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    // The kernel gives the path the mode of the socket, so at no time may others connect.
    fchmod(&socket, mode)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    UnixListener::from_std(socket.into())
}
