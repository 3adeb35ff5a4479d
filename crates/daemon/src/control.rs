//! The control socket, on which a running tunnel answers root and the daemon's own user. It is bound while the
//! daemon still has the privilege to make the socket's directory.

mod desk;
mod feed;
mod read;
mod wire;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use crate::config::{Config, Difference};
use crate::keys::Keys;
use crate::socket_file::{self, OWNER_ONLY, Serving, SocketFileError};
use crate::status::Status;
use crate::terminal::Printable;
use crate::worker::Worker;

use desk::Desk;

pub(crate) use feed::{Ended, Feed};
pub(crate) use wire::{
    Announced, Ask, AskCapture, Begun, CONFIG, Differences, Ping, Refusal, STOPPING,
};

/// Why the control socket could not be bound.
#[derive(Debug, Error)]
pub(crate) enum ControlError {
    /// Another daemon listens there.
    #[error("{} is in use: this tunnel is already running", .0.display())]
    Running(PathBuf),
    /// A file is in the way, or the kernel refused.
    #[error("control socket {0}; [service] control names another place")]
    Bind(SocketFileError),
}

impl From<SocketFileError> for ControlError {
    fn from(error: SocketFileError) -> Self {
        match error {
            SocketFileError::InUse(path) => Self::Running(path),
            error => Self::Bind(error),
        }
    }
}

/// A request to the tunnel.
pub(crate) enum Request {
    /// Report the tunnel's state.
    Status(oneshot::Sender<Status>),
    /// Send a PING to the peer; the reply comes with its answer. The reply is an error if the peer answers none.
    Ping(oneshot::Sender<Result<Ping, String>>),
    /// Capture packets; the reply is an error if that is not possible.
    Capture(AskCapture, oneshot::Sender<Result<(Begun, Feed), String>>),
    /// Use this configuration and these keys; the reply is an error if that fails.
    Reload(Box<Wanted>, oneshot::Sender<Result<(), String>>),
    /// Report which keys differ from this configuration and these keys.
    Compare(Box<Wanted>, oneshot::Sender<Vec<Difference>>),
    /// Hand the tunnel on to the process at the other end, and end.
    HandOn(UnixStream),
    /// Drop all session keys: the host is about to be suspended.
    Forget(oneshot::Sender<Result<(), String>>),
    /// Use the next keys; the reply is an error if that fails.
    Rotate {
        /// Whether the previous keys are removed.
        finish: bool,
        reply: oneshot::Sender<Result<(), String>>,
    },
}

/// A configuration for the tunnel.
pub(crate) struct Wanted {
    pub(crate) config: Config,
    pub(crate) keys: Keys,
    /// The text of the file.
    pub(crate) source: String,
}

/// The bound socket, and its clients.
pub(crate) struct Control {
    serving: Serving,
    requests: mpsc::Receiver<Request>,
    desk: Arc<Desk>,
}

impl Control {
    /// Binds the socket of `config` and creates its directory; replaces the socket of a daemon that has ended.
    ///
    /// # Errors
    ///
    /// If a running daemon listens there, or the kernel refuses.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub(crate) fn bind(config: &Config) -> Result<Self, ControlError> {
        let path = &config.service.control;
        let bound = socket_file::bind(path, OWNER_ONLY)?;
        let (desk, requests) = Desk::of(config);
        let serving = Serving::now(bound, Arc::clone(&desk));
        Ok(Self { serving: serving.map_err(|error| cannot_serve(path, error))?, requests, desk })
    }

    /// The socket of the earlier process of the tunnel, which serves it until [`begin`](Self::begin).
    ///
    /// # Errors
    ///
    /// If the process has no descriptor left.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub(crate) fn later(config: &Config, listener: UnixListener) -> Result<Self, ControlError> {
        let path = &config.service.control;
        let (desk, requests) = Desk::of(config);
        let serving = Serving::later(listener, path.clone(), Arc::clone(&desk));
        Ok(Self { serving: serving.map_err(|error| cannot_serve(path, error))?, requests, desk })
    }

    /// Serves clients from now on.
    pub(crate) fn begin(&mut self) {
        self.serving.begin();
    }

    /// Leaves the socket to the next process.
    pub(crate) fn leave(&mut self) {
        self.serving.leave();
    }

    /// From now on, configurations are loaded by threads that this one starts: the main thread is confined.
    pub(crate) fn load_with(&self, lookups: &Worker) {
        let _set_before = self.desk.lookups.set(lookups.clone());
    }

    /// A function that makes the tunnel read its own files again and use them. If the daemon's user may not
    /// read them, it logs a warning: then only root can reload, with `vpnd reload`, which sends the files.
    pub(crate) fn rereads(&self) -> impl Fn() + use<> {
        let desk = Arc::clone(&self.desk);
        move || {
            let desk = Arc::clone(&desk);
            tokio::spawn(async move {
                if let Err(error) = desk.reread().await {
                    let name = Printable(&desk.name);
                    tracing::warn!("cannot reload: {error}; root may use `vpnd reload {name}`");
                }
            });
        }
    }

    /// The next request.
    pub(crate) async fn next(&mut self) -> Request {
        match self.requests.recv().await {
            Some(request) => request,
            None => std::future::pending().await,
        }
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.serving.as_fd()
    }
}

fn cannot_serve(path: &Path, error: io::Error) -> ControlError {
    let path = path.to_owned();
    SocketFileError::Refused { path, what: "serving it", error }.into()
}

#[cfg(test)]
mod tests {
    use super::desk::{Outcome, PATIENCE, Rights};
    use super::wire::{MAX_REQUEST, line};
    use super::*;
    use crate::config;
    use crate::config::tests::site;
    use crate::socket_file::MAX_CONNECTIONS;
    use crate::status::tests::sample;
    use nix::unistd::Uid;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::time::Duration;
    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;
    use tokio::time::{sleep, timeout};

    fn configured() -> (TempDir, Config) {
        let (directory, file) = site("preshared_key_file = 'site.psk'");
        (directory, config::load(&file).unwrap().config)
    }

    fn bound() -> (TempDir, PathBuf, Control) {
        let (directory, config) = configured();
        let control = Control::bind(&config).unwrap();
        control.load_with(&Worker::start("lookups", || Ok(())).unwrap());
        (directory, config.service.control, control)
    }

    /// Sends `request`, and returns the answer.
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
        let request = b"{\"schema\":3,\"command\":\"status\",\"later\":true}\n";
        let asking = tokio::spawn(async move { exchange(&path, request).await });
        let Request::Status(reply) = control.next().await else { panic!("another request") };
        reply.send(sample()).unwrap();
        let answer = asking.await.unwrap();
        assert_eq!(serde_json::from_str::<Status>(&answer).unwrap(), sample());
        assert_eq!(answer.matches('\n').count(), 1);
    }

    #[tokio::test]
    async fn what_is_no_request_is_refused_with_a_reason() {
        let (_directory, path, _control) = bound();
        let unknown = error_of(&path, b"{\"schema\":3,\"command\":\"dance\"}\n").await;
        assert_eq!(unknown, "command \"dance\" is not known here");
        let newer = error_of(&path, b"{\"schema\":4,\"command\":\"status\"}\n").await;
        assert_eq!(newer, "schema 4 is not known here");
        assert!(error_of(&path, b"\xff\xfe\n").await.starts_with("this is no request"));
        assert!(error_of(&path, &[b'x'; 4096]).await.contains("4096 bytes"));
    }

    #[tokio::test]
    async fn a_rotation_crosses() {
        let (_directory, path, mut control) = bound();
        for (request, expected) in [
            (&b"{\"schema\":3,\"command\":\"rotate\"}\n"[..], false),
            (b"{\"schema\":3,\"command\":\"rotate\",\"finish\":true}\n", true),
        ] {
            let path = path.clone();
            let asking = tokio::spawn(async move { exchange(&path, request).await });
            let Request::Rotate { finish, reply } = control.next().await else { panic!() };
            assert_eq!(finish, expected);
            reply.send(Ok(())).unwrap();
            assert_eq!(asking.await.unwrap(), "{\"schema\":3,\"ok\":true}\n");
        }
    }

    #[tokio::test]
    async fn a_ping_crosses_even_if_the_peer_takes_longer_than_a_client_may() {
        let (_directory, path, mut control) = bound();
        let request = b"{\"schema\":3,\"command\":\"ping\"}\n";
        let asking = tokio::spawn(async move { exchange(&path, request).await });
        let Request::Ping(reply) = control.next().await else { panic!("another request") };
        sleep(PATIENCE + Duration::from_millis(200)).await;
        let pinged = Ping { round_trip_ms: Some(2200.0), ..Ping::UNANSWERED };
        reply.send(Ok(pinged.clone())).unwrap();
        assert_eq!(serde_json::from_str::<Ping>(&asking.await.unwrap()).unwrap(), pinged);
    }

    #[tokio::test]
    async fn who_leaves_before_the_peer_has_answered_takes_no_place() {
        let (_directory, path, mut control) = bound();
        for _ in 0..2 * MAX_CONNECTIONS {
            let mut client = UnixStream::connect(&path).await.unwrap();
            client.write_all(b"{\"schema\":3,\"command\":\"ping\"}\n").await.unwrap();
            let next = timeout(PATIENCE, control.next()).await.unwrap();
            let Request::Ping(mut reply) = next else { panic!("another request") };
            drop(client);
            timeout(PATIENCE, reply.closed()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn whoever_started_the_tunnel_may_not_capture_unless_it_is_root() {
        let (_directory, _path, control) = bound();
        let capture = AskCapture { inner: true, outer: false, keys: false, snaplen: 96 };
        let ask = Ask { capture: Some(capture), ..Ask::new("capture") };
        let (mut client, mut served) = UnixStream::pair().unwrap();
        client.write_all(line(&ask).as_bytes()).await.unwrap();
        let owner = Uid::from_raw(1000);
        let outcome = control.desk.answer(&mut served, owner, Rights::Change).await.unwrap();
        let Outcome::Answer(Err(refused)) = outcome else { panic!("it was not refused") };
        assert_eq!(refused, "only root may capture the tunnel's packets, and uid 1000 asks");
    }

    /// A request to reload with these announced files, followed by `behind`.
    fn reload(files: &str, behind: &[u8]) -> Vec<u8> {
        let line = format!("{{\"schema\":3,\"command\":\"reload\",\"files\":[{files}]}}\n");
        [line.as_bytes(), behind].concat()
    }

    /// The announcement of one file.
    fn file(name: &str, bytes: impl std::fmt::Display) -> String {
        format!("{{\"name\":\"{name}\",\"bytes\":{bytes}}}")
    }

    #[tokio::test]
    async fn what_is_handed_over_has_a_size_and_a_name() {
        let (_directory, path, _control) = bound();
        let key = "private_key_file";
        for (files, expected) in [
            (file("config", 1_048_577), "config: it has at most 1048576 bytes, this 1048577"),
            (file("config", u64::MAX), "config: it has at most 1048576 bytes, this 184467"),
            (file("config", "1e3"), "this is no request: "),
            (file("config", -1), "this is no request: "),
            (file(key, 257), "private_key_file: it has at most 256 bytes, this 257"),
            (file("public_key", 1), "\"public_key\" is no file to hand over"),
            (file("/etc/shadow", 1), "\"/etc/shadow\" is no file to hand over"),
            ([file(key, 0), file(key, 0)].join(","), "\"private_key_file\" is no file to hand"),
            ([file("config", 0), file("config", 0)].join(","), "\"config\" is no file to hand"),
            (file(key, 0), "the configuration was not handed over"),
            (String::new(), "the configuration was not handed over"),
        ] {
            let said = error_of(&path, &reload(&files, b"")).await;
            assert!(said.starts_with(expected), "{files}: {said}");
        }
        let many = reload(&vec![file(key, 0); 150].join(","), b"");
        let said = error_of(&path, &many[..MAX_REQUEST]).await;
        assert_eq!(said, "a request has at most 4096 bytes");
    }

    #[tokio::test]
    async fn what_is_handed_over_is_all_there_and_good() {
        let (_directory, path, _control) = bound();
        let said = error_of(&path, &reload(&file("config", 2), b"\xff\xfe")).await;
        assert_eq!(said, "config is no text");
        let said = error_of(&path, &reload(&file("config", 7), b"mtu = 1")).await;
        assert!(said.starts_with("site.toml: [interface] private_key_file: missing; "), "{said}");
        assert!(
            said.ends_with(
                "; site.toml:1:1: unknown key `mtu` in the file; `mtu` belongs in \
                                [interface]"
            ),
            "{said}"
        );

        let mut client = UnixStream::connect(&path).await.unwrap();
        client.write_all(&reload(&file("config", 7), b"mtu")).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("config: early eof"), "{answer}");
    }

    #[test]
    fn only_root_and_who_started_it_may_change_a_tunnel() {
        let [root, owner, daemon, other] = [0, 1000, 65534, 1001].map(Uid::from_raw);
        assert_eq!(Rights::of(root, owner, daemon), Rights::Change);
        assert_eq!(Rights::of(owner, owner, daemon), Rights::Change);
        assert_eq!(Rights::of(daemon, owner, daemon), Rights::Read);
        assert_eq!(Rights::of(other, owner, daemon), Rights::Nothing);
        assert_eq!(Rights::of(daemon, daemon, daemon), Rights::Change);
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
        let (_directory, config) = configured();
        let control = Control::bind(&config).unwrap();
        assert!(matches!(Control::bind(&config), Err(ControlError::Running(_))));
        drop(control);
        let path = &config.service.control;
        drop(UnixListener::bind(path).unwrap());
        assert!(path.exists(), "a dead daemon's socket");
        let _control = Control::bind(&config).unwrap();
    }

    #[tokio::test]
    async fn a_file_in_the_way_is_kept() {
        let (directory, mut config) = configured();
        config.service.control = directory.path().join("site.psk");
        assert!(matches!(
            Control::bind(&config),
            Err(ControlError::Bind(SocketFileError::InTheWay(_)))
        ));
        assert!(config.service.control.exists());
    }
}
