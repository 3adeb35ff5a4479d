//! The control socket, on which a running tunnel answers: one line of JSON each way, to root and
//! to whom the daemon belongs. It is bound while we may still make its directory.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::os::unix::net::UnixStream as Probe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::stat::{Mode, fchmod};
use nix::unistd::Uid;
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::status::{SCHEMA, Status};

/// A request with its newline is no longer.
const MAX_REQUEST: u64 = 4096;
/// Who has not sent a request and taken the answer by then is left.
const PATIENCE: Duration = Duration::from_secs(2);
/// So many are served at once; others wait.
const MAX_CONNECTIONS: usize = 8;
/// The kernel holds so many of those.
const BACKLOG: i32 = 16;

/// Why there is no control socket.
#[derive(Debug, Error)]
pub(crate) enum ControlError {
    /// Another daemon answers there.
    #[error("{} is in use: this tunnel is already running", .0.display())]
    Running(PathBuf),
    /// Something else has that name.
    #[error("{} is in the way: it is no socket, and vpnd will not remove it", .0.display())]
    InTheWay(PathBuf),
    /// The kernel refused.
    #[error("control socket {}: {what}: {error}; [service] control names another place", path.display())]
    Bind { path: PathBuf, what: &'static str, error: io::Error },
}

/// What somebody asks of the tunnel.
#[derive(Debug)]
pub(crate) enum Request {
    /// How it fares.
    Status(oneshot::Sender<Status>),
}

/// What the socket's two ends say to each other.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ask {
    /// Always [`SCHEMA`].
    pub(crate) schema: u32,
    /// What is wanted.
    pub(crate) command: String,
}

/// The answer when there is none.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Refusal {
    /// Always [`SCHEMA`].
    pub(crate) schema: u32,
    /// Why.
    pub(crate) error: String,
}

/// The bound socket, and those who talk to it.
pub(crate) struct Control {
    path: PathBuf,
    requests: mpsc::Receiver<Request>,
    accepting: JoinHandle<()>,
}

impl Control {
    /// Binds the socket at `path` and makes its directory; removes what a dead daemon left there.
    ///
    /// # Errors
    ///
    /// If a live one answers there, or the kernel refuses.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub(crate) fn bind(path: &Path) -> Result<Self, ControlError> {
        let refused = |what| move |error| ControlError::Bind { path: path.to_owned(), what, error };
        let directory = path.parent().unwrap_or_else(|| Path::new("/"));
        let made = DirBuilder::new().recursive(true).mode(0o755).create(directory);
        made.map_err(refused("making its directory"))?;
        remove_stale(path)?;
        let listener = listen(path).map_err(refused("binding it"))?;
        let (send, requests) = mpsc::channel(1);
        let accepting = tokio::spawn(accept(listener, Uid::current(), send));
        Ok(Self { path: path.to_owned(), requests, accepting })
    }

    /// The next request.
    pub(crate) async fn next(&mut self) -> Request {
        match self.requests.recv().await {
            Some(request) => request,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.accepting.abort();
        // Without privileges the directory may be closed to us; the next start removes the socket.
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, "{} stays", self.path.display());
        }
    }
}

fn remove_stale(path: &Path) -> Result<(), ControlError> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(ControlError::InTheWay(path.to_owned()));
    }
    match Probe::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        _ => return Err(ControlError::Running(path.to_owned())),
    }
    let refused =
        |error| ControlError::Bind { path: path.to_owned(), what: "removing an old one", error };
    fs::remove_file(path).map_err(refused)
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    // The kernel gives the path the socket's own mode: at no moment may others connect.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    UnixListener::from_std(socket.into())
}

async fn accept(listener: UnixListener, owner: Uid, requests: mpsc::Sender<Request>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((client, _)) => {
                let requests = requests.clone();
                tokio::spawn(async move {
                    let _left = timeout(PATIENCE, serve(client, owner, requests)).await;
                    drop(place);
                });
            }
            // Out of descriptors: those in use come back.
            Err(error) => {
                tracing::debug!(%error, "control socket");
                sleep(PATIENCE).await;
            }
        }
    }
}

async fn serve(
    mut client: UnixStream,
    owner: Uid,
    requests: mpsc::Sender<Request>,
) -> io::Result<()> {
    let uid = Uid::from_raw(client.peer_cred()?.uid());
    let answer = if uid.is_root() || uid == owner || uid == Uid::effective() {
        answer(&mut client, requests).await?
    } else {
        refusal(format!("uid {uid} may not ask this tunnel"))
    };
    client.write_all(answer.as_bytes()).await?;
    client.shutdown().await
}

/// Reads a request, has it answered and returns the line to send.
async fn answer(client: &mut UnixStream, requests: mpsc::Sender<Request>) -> io::Result<String> {
    let mut line = Vec::new();
    let read = BufReader::new(client.take(MAX_REQUEST)).read_until(b'\n', &mut line).await?;
    let ask: Ask = match serde_json::from_slice(&line) {
        Ok(ask) => ask,
        Err(_) if read as u64 == MAX_REQUEST => {
            return Ok(refusal(format!("a request has at most {MAX_REQUEST} bytes")));
        }
        Err(error) => return Ok(refusal(format!("this is no request: {error}"))),
    };
    if ask.schema != SCHEMA {
        return Ok(refusal(format!("schema {} is not known here", ask.schema)));
    }
    match ask.command.as_str() {
        "status" => Ok(status(requests).await),
        _ => Ok(refusal(format!("command {:?} is not known here", ask.command))),
    }
}

async fn status(requests: mpsc::Sender<Request>) -> String {
    let (reply, replied) = oneshot::channel();
    let _gone = requests.send(Request::Status(reply)).await;
    match replied.await {
        Ok(status) => line(&status),
        Err(_) => refusal("the tunnel is about to stop".to_owned()),
    }
}

fn refusal(error: String) -> String {
    line(&Refusal { schema: SCHEMA, error })
}

/// One line of JSON. What is sent here has text for keys, and no number that JSON lacks.
fn line(message: &impl Serialize) -> String {
    let mut line = serde_json::to_string(message).unwrap_or_default();
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::sample;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use tempfile::TempDir;

    fn bound() -> (TempDir, PathBuf, Control) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/site-a.sock");
        let control = Control::bind(&path).unwrap();
        (directory, path, control)
    }

    /// Sends `request`, and returns what comes back.
    async fn exchange(path: &Path, request: &[u8]) -> String {
        let mut client = UnixStream::connect(path).await.unwrap();
        client.write_all(request).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn error_of(path: &Path, request: &[u8]) -> String {
        let answer = exchange(path, request).await;
        serde_json::from_str::<Refusal>(&answer).unwrap().error
    }

    #[tokio::test]
    async fn a_status_crosses() {
        let (_directory, path, mut control) = bound();
        let request = b"{\"schema\":1,\"command\":\"status\",\"later\":true}\n";
        let asking = tokio::spawn(async move { exchange(&path, request).await });
        let Request::Status(reply) = control.next().await;
        reply.send(sample()).unwrap();
        let answer = asking.await.unwrap();
        assert_eq!(serde_json::from_str::<Status>(&answer).unwrap(), sample());
        assert_eq!(answer.matches('\n').count(), 1);
    }

    #[tokio::test]
    async fn what_is_no_request_is_refused_with_a_reason() {
        let (_directory, path, _control) = bound();
        let unknown = error_of(&path, b"{\"schema\":1,\"command\":\"dance\"}\n").await;
        assert_eq!(unknown, "command \"dance\" is not known here");
        let newer = error_of(&path, b"{\"schema\":2,\"command\":\"status\"}\n").await;
        assert_eq!(newer, "schema 2 is not known here");
        assert!(error_of(&path, b"\xff\xfe\n").await.starts_with("this is no request"));
        assert!(error_of(&path, &[b'x'; 4096]).await.contains("4096 bytes"));
    }

    #[tokio::test]
    async fn who_says_nothing_is_left_and_keeps_nobody_out() {
        let (_directory, path, _control) = bound();
        let mut silent = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            silent.push(UnixStream::connect(&path).await.unwrap());
        }
        assert!(error_of(&path, b"\n").await.starts_with("this is no request"));
        for mut client in silent {
            assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        }
    }

    #[tokio::test]
    async fn only_the_owner_can_connect_and_the_socket_goes_with_the_daemon() {
        let (_directory, path, control) = bound();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let directory = fs::metadata(path.parent().unwrap()).unwrap();
        assert_eq!(directory.mode() & 0o777, 0o755);
        drop(control);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_live_daemon_is_left_alone_and_a_dead_one_replaced() {
        let (_directory, path, control) = bound();
        assert!(matches!(Control::bind(&path), Err(ControlError::Running(_))));
        drop(control);
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a dead daemon's socket");
        let _control = Control::bind(&path).unwrap();
    }

    #[tokio::test]
    async fn a_file_in_the_way_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        fs::write(&path, "data").unwrap();
        assert!(matches!(Control::bind(&path), Err(ControlError::InTheWay(_))));
        assert!(path.exists());
    }
}
