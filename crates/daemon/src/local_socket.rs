//! Sockets in the file system on which a running tunnel answers. Each has the mode 0600, and limits on the number of
//! its clients and on their time. A socket is bound while the daemon still has the privilege to make its directory.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as Probe};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};

/// Connections that are served at once, for root and as many for all other users; further ones wait.
pub(crate) const MAX_CONNECTIONS: usize = 8;
/// Connections that wait, for root and as many for all other users; a further one is closed.
pub(crate) const MAX_WAITING: usize = 16;
/// Connections that the kernel queues until they are accepted.
const BACKLOG: i32 = 16;
/// How long to wait until a descriptor may be free again.
const NO_DESCRIPTOR: Duration = Duration::from_secs(2);

/// Why a socket could not be bound.
#[derive(Debug, Error)]
pub(crate) enum LocalError {
    /// Another daemon listens there.
    #[error("{} is in use", .0.display())]
    InUse(PathBuf),
    /// A file of another kind has that name.
    #[error("{} exists and is not a socket; vpnd does not remove it", .0.display())]
    InTheWay(PathBuf),
    /// The kernel refused.
    #[error("socket {}: {what}: {error}", path.display())]
    Refused { path: PathBuf, what: &'static str, error: io::Error },
}

/// Serves the clients of a socket.
pub(crate) trait Desk: Send + Sync + 'static {
    /// A client that was not served within this time is disconnected.
    const PATIENCE: Duration;

    /// Serves one client, to the end of its connection.
    fn serve(&self, client: UnixStream) -> impl Future<Output = io::Result<()>> + Send;
}

/// Binds a socket and creates its directory with this mode; replaces the socket of a daemon that has ended.
///
/// # Errors
///
/// If a running daemon listens there, or the kernel refuses.
///
/// # Panics
///
/// Outside a tokio runtime.
pub(crate) fn bind(path: &Path, directory_mode: u32) -> Result<UnixListener, LocalError> {
    let socket = bind_unserved(path, directory_mode)?;
    let refused = |error| LocalError::Refused { path: path.to_owned(), what: "serving it", error };
    UnixListener::from_std(socket).map_err(refused)
}

/// The same for a process that does not serve it itself.
///
/// # Errors
///
/// As [`bind`].
pub(crate) fn bind_unserved(
    path: &Path,
    directory_mode: u32,
) -> Result<StdUnixListener, LocalError> {
    let refused = |what| move |error| LocalError::Refused { path: path.to_owned(), what, error };
    let directory = path.parent().unwrap_or_else(|| Path::new("/"));
    let made = DirBuilder::new().recursive(true).mode(directory_mode).create(directory);
    made.map_err(refused("making its directory"))?;
    remove_stale(path)?;
    listen(path).map_err(refused("binding it"))
}

fn remove_stale(path: &Path) -> Result<(), LocalError> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(LocalError::InTheWay(path.to_owned()));
    }
    let refused = |what| move |error| LocalError::Refused { path: path.to_owned(), what, error };
    match Probe::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        // The socket belongs to another user, whether a daemon is running or not.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(refused("it belongs to another user")(error));
        }
        _ => return Err(LocalError::InUse(path.to_owned())),
    }
    fs::remove_file(path).map_err(refused("removing an old one"))
}

fn listen(path: &Path) -> io::Result<StdUnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    // The kernel gives the path the mode of the socket, so at no time may others connect.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Removes a socket at the end. This process may have no access to the directory any more; the next start removes the
/// socket then.
pub(crate) fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::debug!(%error, "{} stays", path.display());
    }
}

/// Accepts connections. Those of root have a separate queue, so other users cannot make root wait.
pub(crate) async fn accept<D: Desk>(listener: UnixListener, desk: Arc<D>) {
    let (root, others) = (queue(Arc::clone(&desk)), queue(desk));
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                let is_root = client.peer_cred().is_ok_and(|from| from.uid() == 0);
                // If the queue is full, the connection is closed.
                let _full = if is_root { &root } else { &others }.try_send(client);
            }
            // No descriptor is free: try again when others have been closed.
            Err(error) => {
                tracing::debug!(%error, "a local socket");
                sleep(NO_DESCRIPTOR).await;
            }
        }
    }
}

/// Starts to serve clients in the order of their connections.
fn queue<D: Desk>(desk: Arc<D>) -> mpsc::Sender<UnixStream> {
    let (send, mut clients) = mpsc::channel(MAX_WAITING);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    tokio::spawn(async move {
        while let Some(client) = clients.recv().await {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let desk = Arc::clone(&desk);
            tokio::spawn(async move {
                let _left = timeout(D::PATIENCE, desk.serve(client)).await;
                drop(place);
            });
        }
    });
    send
}
