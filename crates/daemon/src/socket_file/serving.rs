//! The service of a bound socket, which may go over to the next process of the tunnel.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::socket::{Backlog, listen};
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::{BACKLOG, Desk, SocketFile, serve};

/// A socket in the file system whose clients are served. Its name is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Serving {
    file: SocketFile,
    listener: OwnedFd,
    accepting: JoinHandle<()>,
    begin: Option<oneshot::Sender<()>>,
}

impl Serving {
    /// Serves the clients of a bound socket.
    ///
    /// # Errors
    ///
    /// If the process has no descriptor left.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub(crate) fn now<D: Desk>(
        (listener, file): (UnixListener, SocketFile),
        desk: Arc<D>,
    ) -> io::Result<Self> {
        let kept = listener.as_fd().try_clone_to_owned()?;
        let accepting = tokio::spawn(serve(listener, desk));
        Ok(Self { file, listener: kept, accepting, begin: None })
    }

    /// Serves the clients of a socket of the earlier process, as soon as [`begin`](Self::begin) is called: until then that
    /// process serves them.
    ///
    /// # Errors
    ///
    /// As [`now`](Self::now).
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub(crate) fn later<D: Desk>(
        listener: StdUnixListener,
        path: PathBuf,
        desk: Arc<D>,
    ) -> io::Result<Self> {
        let kept = listener.as_fd().try_clone_to_owned()?;
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        let (begin, begun) = oneshot::channel();
        let accepting = tokio::spawn(async move {
            if begun.await.is_ok() {
                serve(listener, desk).await;
            }
        });
        let file = SocketFile::inherited(path);
        Ok(Self { file, listener: kept, accepting, begin: Some(begin) })
    }

    /// Serves the clients from now on, because the earlier process has ended.
    pub(crate) fn begin(&mut self) {
        let Some(begin) = self.begin.take() else { return };
        // Clients ask the kernel who listens: the process that has last called this.
        let listens = Backlog::new(BACKLOG).and_then(|backlog| listen(&self.listener, backlog));
        if let Err(error) = listens {
            tracing::debug!(%error, "clients take the earlier process for the one that listens");
        }
        let _ended = begin.send(());
    }

    /// Leaves the socket and its name to the next process.
    pub(crate) fn leave(&mut self) {
        self.accepting.abort();
        self.file.leave();
    }
}

impl AsFd for Serving {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // A socket of the earlier process that was never served is still that process's.
        if self.begin.is_some() {
            self.file.leave();
        }
        self.accepting.abort();
    }
}

/// Whether this is a listening socket with this name.
pub(crate) fn is_at(listener: &StdUnixListener, path: &Path) -> bool {
    listener.local_addr().is_ok_and(|address| address.as_pathname() == Some(path))
}
