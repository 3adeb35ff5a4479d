//! Serves the tunnel's metrics over HTTP, in the formats that Prometheus reads. The socket is bound while the daemon
//! still has its privileges; the control thread serves it, for a limited number of clients and a limited time each.
//!
//! What is served is the status and nothing else, so it has no secrets.

mod families;
mod format;
mod http;
mod listener;

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::config::{Config, MetricsListen, Problem};
use crate::status::Status;

use families::Snapshot;
use format::Format;
use http::{Refused, Wanted};
use listener::{Listener, Stream};

pub(crate) use listener::MetricsError;

/// A client that has not sent its request and read the answer within this time is disconnected.
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections that are served at once; further ones wait in the backlog.
const MAX_CONNECTIONS: usize = 8;
/// The longest request, in bytes. hyper allows no smaller limit.
const MAX_REQUEST: usize = 8192;

/// The bound socket, and its clients.
pub(crate) struct Metrics {
    scrapes: mpsc::Receiver<Scrape>,
    serving: JoinHandle<()>,
    socket: Arc<Listener>,
}

/// What clients are served from.
#[derive(Clone)]
struct Tunnel {
    scrapes: mpsc::Sender<Scrape>,
    /// When it was started. It is not computed anew for each client, because then it would change with each.
    started: SystemTime,
}

/// A client waits for the tunnel's state.
pub(crate) type Scrape = oneshot::Sender<Status>;

impl Metrics {
    /// Binds the socket of `config`, if it has one.
    ///
    /// # Errors
    ///
    /// If another process listens there, or the kernel refuses.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub(crate) fn bind(config: &Config) -> Result<Option<Bound>, MetricsError> {
        let Some(listen) = &config.metrics.listen else { return Ok(None) };
        Listener::bind(listen).map(|listener| Some(Bound(listener)))
    }

    /// Like [`bind`](Self::bind), but does not wait for an address that is in use.
    ///
    /// # Errors
    ///
    /// As [`bind`](Self::bind).
    pub(crate) fn bind_now(config: &Config) -> Result<Option<Bound>, MetricsError> {
        let Some(listen) = &config.metrics.listen else { return Ok(None) };
        Listener::bind_now(listen).map(|listener| Some(Bound(listener)))
    }

    /// The socket of the earlier process, if it is the one of `config`; that process serves it until [`Bound::serve`].
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub(crate) fn later(config: &Config, socket: OwnedFd) -> Option<Bound> {
        Listener::inherited(config.metrics.listen.as_ref()?, socket).map(Bound)
    }

    /// Leaves the socket to the next process.
    pub(crate) fn leave(&self) {
        self.serving.abort();
        self.socket.leave();
    }

    /// The next request for the tunnel's state.
    pub(crate) async fn next(&mut self) -> Scrape {
        match self.scrapes.recv().await {
            Some(scrape) => scrape,
            None => std::future::pending().await,
        }
    }
}

/// A bound socket, of which nothing is read yet: clients wait until this process has given up its privileges.
pub(crate) struct Bound(Listener);

impl Bound {
    /// Serves the metrics from now on.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub(crate) fn serve(self) -> Metrics {
        self.0.keep();
        let (send, scrapes) = mpsc::channel(1);
        let tunnel = Tunnel { scrapes: send, started: SystemTime::now() };
        let socket = Arc::new(self.0);
        let serving = tokio::spawn(accept(Arc::clone(&socket), tunnel));
        Metrics { scrapes, serving, socket }
    }
}

impl AsFd for Metrics {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A note if hosts of a network can read the metrics.
pub(crate) fn seen_by_others(config: &Config) -> Option<Problem> {
    let Some(MetricsListen::Address(address)) = &config.metrics.listen else { return None };
    let note = || {
        Problem::note(format!(
            "[metrics] listen: whoever reaches {address} can read the metrics, which are neither encrypted nor protected \
             by a password"
        ))
        .help("let a firewall accept the hosts that collect them, or listen at 127.0.0.1")
    };
    (!address.ip().is_loopback()).then(note)
}

/// Accepts connections. When all places are taken, further ones wait in the kernel's queue.
async fn accept(listener: Arc<Listener>, tunnel: Tunnel) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok(client) => {
                let tunnel = tunnel.clone();
                tokio::spawn(async move {
                    serve(client, &tunnel).await;
                    drop(place);
                });
            }
            // No descriptor is free: try again when others have been closed.
            Err(error) => {
                tracing::debug!(%error, "metrics socket");
                sleep(PATIENCE).await;
            }
        }
    }
}

/// Answers one request, and closes the connection.
async fn serve(client: Box<dyn Stream>, tunnel: &Tunnel) {
    let service = service_fn(|request| answer(request, tunnel));
    let mut server = http1::Builder::new();
    // One limit for the whole connection takes the place of hyper's limit for the headers.
    server.keep_alive(false).max_buf_size(MAX_REQUEST).header_read_timeout(None);
    let connection = server.serve_connection(TokioIo::new(client), service);
    if let Ok(Err(error)) = timeout(PATIENCE, connection).await {
        tracing::trace!(%error, "a client of the metrics socket");
    }
}

async fn answer(
    request: Request<Incoming>,
    tunnel: &Tunnel,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let format = match Wanted::of(&request) {
        Ok(Wanted(format)) => format,
        Err(refused) => return Ok(refused.response()),
    };
    Ok(match tunnel.status().await {
        Some(status) => http::page(format, render(format, status, tunnel.started)),
        None => Refused::Stopping.response(),
    })
}

impl Tunnel {
    /// Its state; `None` if it is about to stop.
    async fn status(&self) -> Option<Status> {
        let (reply, replied) = oneshot::channel();
        self.scrapes.send(reply).await.ok()?;
        replied.await.ok()
    }
}

fn render(format: Format, status: Status, started: SystemTime) -> String {
    let text = families::encode(Snapshot { status, started, now: SystemTime::now() });
    match format {
        Format::OpenMetrics => text,
        Format::Text => format::as_text(&text),
    }
}

#[cfg(test)]
mod tests;
