//! The listening socket: a TCP port, or a socket in the file system.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
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
    Unix { listener: UnixListener, _file: SocketFile },
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
                Ok(Self::Unix { listener, _file: file })
            }
        }
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
