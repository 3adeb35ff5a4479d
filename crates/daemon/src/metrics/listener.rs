//! The listening socket: a TCP port, or a socket in the file system.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;
use socket2::{Domain, Socket, Type};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

use crate::config::MetricsListen;
use crate::socket_file::{self, BACKLOG, SocketFile, SocketFileError};

/// How long a start waits for the port, which an earlier run that is ending may still have.
const HANDOVER: Duration = Duration::from_secs(1);
/// How often it tries.
const TRY_EVERY: Duration = Duration::from_millis(50);

/// Why metrics cannot be served.
#[derive(Debug, Error)]
pub(crate) enum MetricsError {
    /// Another process listens there.
    #[error(
        "[metrics] listen: another program listens at {0}; each tunnel needs an address of its own: name another, or \
         end that program (`ss -ltnp` shows it)"
    )]
    InUse(SocketAddr),
    /// The port needs a privilege.
    #[error("[metrics] listen: binding {0} requires CAP_NET_BIND_SERVICE: take a port above 1023")]
    Privilege(SocketAddr),
    /// The kernel refused.
    #[error("[metrics] listen: binding {address}: {error}")]
    Bind { address: SocketAddr, error: io::Error },
    /// The socket in the file system cannot be bound.
    #[error("[metrics] listen: {0}; name another path")]
    File(#[from] SocketFileError),
}

/// A connection of either kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// The bound socket.
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix { listener: UnixListener, file: Name },
}

impl Listener {
    /// Binds the socket.
    ///
    /// # Errors
    /// If another process listens there, or the kernel refuses.
    pub(super) fn bind(listen: &MetricsListen) -> Result<Self, MetricsError> {
        match listen {
            MetricsListen::Address(address) => patiently(*address).map(Self::Tcp),
            MetricsListen::Path(_) => Self::bind_now(listen),
        }
    }

    /// Like [`bind`](Self::bind), but tries only once.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub(super) fn bind_now(listen: &MetricsListen) -> Result<Self, MetricsError> {
        match listen {
            MetricsListen::Address(address) => tcp(*address).map(Self::Tcp),
            MetricsListen::Path(path) => {
                // Its directory decides who may connect, as with a port, where everybody may.
                let everybody = Mode::from_bits_truncate(0o666);
                let (listener, file) = socket_file::bind(path, everybody)?;
                Ok(Self::Unix { listener, file: Name(Mutex::new(Some(file))) })
            }
        }
    }

    /// A socket that the earlier process of the tunnel has bound; `None` if it is another one.
    pub(super) fn inherited(listen: &MetricsListen, socket: OwnedFd) -> Option<Self> {
        match listen {
            MetricsListen::Address(address) => {
                let socket = StdTcpListener::from(socket);
                let is_same = socket.local_addr().is_ok_and(|local| local == *address);
                is_same.then(|| TcpListener::from_std(socket).ok().map(Self::Tcp)).flatten()
            }
            MetricsListen::Path(path) => {
                let socket = StdUnixListener::from(socket);
                let listener = socket_file::is_at(&socket, path)
                    .then(|| UnixListener::from_std(socket).ok())
                    .flatten()?;
                Some(Self::Unix { listener, file: Name(Mutex::default()) })
            }
        }
    }

    /// The name in the file system is this process's, which removes it at the end.
    pub(super) fn keep(&self) {
        let Self::Unix { listener, file } = self else { return };
        let path = listener.local_addr().ok().and_then(|at| at.as_pathname().map(Path::to_owned));
        file.lock().get_or_insert_with(|| SocketFile::inherited(path.unwrap_or_default()));
    }

    /// The name in the file system is the next process's.
    pub(super) fn leave(&self) {
        let Self::Unix { file, .. } = self else { return };
        file.lock().iter_mut().for_each(SocketFile::leave);
    }

    /// The next connection.
    ///
    /// # Errors
    /// As accept(2).
    pub(super) async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Tcp(listener) => Box::new(listener.accept().await?.0),
            Self::Unix { listener, .. } => Box::new(listener.accept().await?.0),
        })
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix { listener, .. } => listener.as_fd(),
        }
    }
}

/// The name of the socket in the file system; absent while it is another process's.
pub(super) struct Name(Mutex<Option<SocketFile>>);

impl Name {
    fn lock(&self) -> MutexGuard<'_, Option<SocketFile>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn patiently(address: SocketAddr) -> Result<TcpListener, MetricsError> {
    let begun = Instant::now();
    loop {
        match tcp(address) {
            Err(MetricsError::InUse(_)) if begun.elapsed() < HANDOVER => sleep(TRY_EVERY),
            bound => return bound,
        }
    }
}

/// An address that no interface has yet is bound all the same: at boot, vpnd may be started before the network.
fn tcp(address: SocketAddr) -> Result<TcpListener, MetricsError> {
    let bound = listen(address, false).or_else(|error| match error.kind() {
        ErrorKind::AddrNotAvailable => {
            tracing::info!("[metrics] listen: no interface has the address of {address} yet");
            listen(address, true)
        }
        _ => Err(error),
    });
    bound.map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => MetricsError::InUse(address),
        ErrorKind::PermissionDenied => MetricsError::Privilege(address),
        _ => MetricsError::Bind { address, error },
    })
}

fn listen(address: SocketAddr, anywhere: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
    // Connections of an earlier run may still be in TIME_WAIT.
    socket.set_reuse_address(true)?;
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(anywhere)?,
        SocketAddr::V6(_) => socket.set_freebind_v6(anywhere)?,
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}
