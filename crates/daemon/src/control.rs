//! The control socket, on which a running tunnel answers root and the daemon's own user. It is bound while the
//! daemon still has the privilege to make the socket's directory.

mod feed;
mod read;
mod wire;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::unistd::Uid;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::config::{self, Config, Difference, Loaded, Report};
use crate::keys::Keys;
use crate::socket_file::{self, OWNER_ONLY, SocketFile, SocketFileError};
use crate::status::{SCHEMA, Status};
use crate::systemd;
use crate::terminal::Printable;
use crate::worker::Worker;

use read::{read_line, receive};
use wire::{Done, MAX_REQUEST, line};

pub(crate) use feed::{Ended, Feed};
pub(crate) use wire::{
    Announced, Ask, AskCapture, Begun, CONFIG, Differences, Ping, Refusal, STOPPING,
};

/// A client that has not sent its request and read the answer within this time is disconnected.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the peer's answer to a PING is waited for.
const PING_PATIENCE: Duration = Duration::from_secs(5);

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
    Reload(Box<(Config, Keys)>, oneshot::Sender<Result<(), String>>),
    /// Report which keys differ from this configuration and these keys.
    Compare(Box<(Config, Keys)>, oneshot::Sender<Vec<Difference>>),
    /// Hand the tunnel on to the process at the other end, and end.
    HandOn(std::os::unix::net::UnixStream),
    /// Drop all session keys: the host is about to be suspended.
    Forget(oneshot::Sender<Result<(), String>>),
    /// Use the next keys; the reply is an error if that fails.
    Rotate {
        /// Whether the previous keys are removed.
        finish: bool,
        reply: oneshot::Sender<Result<(), String>>,
    },
}

/// The bound socket, and its clients.
pub(crate) struct Control {
    _file: SocketFile,
    requests: mpsc::Receiver<Request>,
    accepting: JoinHandle<()>,
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
        let (listener, file) = socket_file::bind(&config.service.control, OWNER_ONLY)?;
        let (send, requests) = mpsc::channel(1);
        let desk = Desk {
            name: config.name.clone(),
            file: config.file.clone(),
            owner: Uid::current(),
            requests: send,
            lookups: OnceLock::new(),
        };
        let desk = Arc::new(desk);
        let accepting = tokio::spawn(socket_file::serve(listener, Arc::clone(&desk)));
        Ok(Self { _file: file, requests, accepting, desk })
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

impl Drop for Control {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// The state needed to serve clients.
struct Desk {
    /// The tunnel's name, and the file that it was started with.
    name: String,
    file: PathBuf,
    /// The user who started the daemon.
    owner: Uid,
    requests: mpsc::Sender<Request>,
    /// Starts the threads that load configurations.
    lookups: OnceLock<Worker>,
}

/// A client's permissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rights {
    /// All requests.
    Change,
    /// Only the request for the tunnel's state. Other programs may also run as the daemon's user.
    Read,
    Nothing,
}

impl Rights {
    fn of(uid: Uid, owner: Uid, daemon: Uid) -> Self {
        match uid {
            uid if uid.is_root() || uid == owner => Self::Change,
            uid if uid == daemon => Self::Read,
            _ => Self::Nothing,
        }
    }
}

/// The text of the answer, or the reason for the refusal.
type Answer = Result<String, String>;

/// What a request leads to.
enum Outcome {
    Answer(Answer),
    /// The answer depends on the peer, and may take longer than a client may.
    Ping(oneshot::Receiver<Result<Ping, String>>),
    /// Records follow the answer until the client leaves.
    Capture(Begun, Feed),
    /// The client continues with the tunnel.
    HandOn,
}

impl socket_file::Desk for Desk {
    async fn serve(&self, mut client: UnixStream) -> io::Result<()> {
        let mut more = [0];
        let answer = match timeout(PATIENCE, self.attend(&mut client)).await?? {
            Outcome::Answer(answer) => answer,
            Outcome::HandOn => {
                self.send(Request::HandOn(client.into_std()?)).await;
                return Ok(());
            }
            Outcome::Ping(replied) => tokio::select! {
                answer = pinged(replied) => answer,
                // A client that has left takes no place of others.
                _left = client.read(&mut more) => return Ok(()),
            },
            Outcome::Capture(begun, feed) => {
                write(&mut client, &line(&begun)).await?;
                return feed.serve(client).await;
            }
        };
        let answer = answer.unwrap_or_else(|error| line(&Refusal { schema: SCHEMA, error }));
        write(&mut client, &answer).await?;
        client.shutdown().await
    }
}

async fn write(client: &mut UnixStream, answer: &str) -> io::Result<()> {
    timeout(PATIENCE, client.write_all(answer.as_bytes())).await?
}

impl Desk {
    /// Reads a request, if the client may make one, and carries it out.
    async fn attend(&self, client: &mut UnixStream) -> io::Result<Outcome> {
        let uid = Uid::from_raw(client.peer_cred()?.uid());
        match Rights::of(uid, self.owner, Uid::effective()) {
            Rights::Nothing => {
                Ok(Outcome::Answer(Err(format!("uid {uid} may not ask this tunnel"))))
            }
            rights => self.answer(client, uid, rights).await,
        }
    }

    /// Reads a request and carries it out.
    async fn answer(
        &self,
        client: &mut UnixStream,
        uid: Uid,
        rights: Rights,
    ) -> io::Result<Outcome> {
        // Bytes after the line may have arrived together with it. They may contain keys.
        let mut came = Zeroizing::new([0; MAX_REQUEST]);
        let (line, early) = read_line(client, &mut *came).await?;
        let ask = match parse(line) {
            Ok(ask) => ask,
            Err(refused) => return Ok(Outcome::Answer(Err(refused))),
        };
        Ok(Outcome::Answer(match ask.command.as_str() {
            "status" => self.status().await,
            "ping" => return Ok(self.ping().await),
            "capture" if !uid.is_root() => {
                Err(format!("only root may capture the tunnel's packets, and uid {uid} asks"))
            }
            "capture" => match self.capture(ask.capture).await {
                Ok((begun, feed)) => return Ok(Outcome::Capture(begun, feed)),
                Err(refused) => Err(refused),
            },
            "take-over" if rights == Rights::Change && may_take_over(client) => {
                return Ok(Outcome::HandOn);
            }
            "take-over" => Err("only root may take the tunnel over".to_owned()),
            "reload" | "compare" | "rotate" | "forget" if rights != Rights::Change => {
                Err("only root and the user who started the tunnel may change it".to_owned())
            }
            "reload" => self.reload(early.chain(client), &ask.files).await,
            "compare" => self.compare(early.chain(client), &ask.files).await,
            "rotate" => self.rotate(ask.finish).await,
            "forget" => self.forget().await,
            _ => Err(format!("command {:?} is not known here", ask.command)),
        }))
    }

    async fn ping(&self) -> Outcome {
        let (reply, replied) = oneshot::channel();
        self.send(Request::Ping(reply)).await;
        Outcome::Ping(replied)
    }

    async fn capture(&self, wanted: Option<AskCapture>) -> Result<(Begun, Feed), String> {
        let wanted = wanted.ok_or("a capture of nothing")?;
        let (reply, replied) = oneshot::channel();
        self.send(Request::Capture(wanted, reply)).await;
        replied.await.map_err(|_| STOPPING.to_owned())?
    }

    async fn status(&self) -> Answer {
        let (reply, replied) = oneshot::channel();
        self.send(Request::Status(reply)).await;
        replied.await.map(|status| line(&status)).map_err(|_| STOPPING.to_owned())
    }

    async fn reload(&self, from: impl AsyncRead + Unpin, files: &[Announced]) -> Answer {
        let handed = receive(from, files).await?;
        let (name, file) = (self.name.clone(), self.file.clone());
        self.take_up(move || config::load_handed(&name, &file, handed)).await
    }

    async fn compare(&self, from: impl AsyncRead + Unpin, files: &[Announced]) -> Answer {
        let handed = receive(from, files).await?;
        let (name, file) = (self.name.clone(), self.file.clone());
        let wanted = self.load(move || config::load_handed(&name, &file, handed)).await?;
        let (reply, replied) = oneshot::channel();
        self.send(Request::Compare(wanted, reply)).await;
        let differences = replied.await.map_err(|_| STOPPING.to_owned())?;
        Ok(line(&Differences::of(differences)))
    }

    /// Reads the tunnel's own files again, and reloads.
    async fn reread(&self) -> Answer {
        let file = self.file.clone();
        self.take_up(move || config::load_for_running(&file)).await
    }

    /// A thread that loads a configuration, and ends after that. Until the tunnel runs there is none: a thread that is
    /// started earlier would have all privileges.
    async fn reader(&self) -> Result<Worker, String> {
        let lookups = self.lookups.get().ok_or("the tunnel is still starting; try again")?;
        lookups
            .another("reload")
            .await
            .map_err(|error| format!("no thread to read it with: {error}; try again"))
    }

    /// Loads a configuration and sends it to the tunnel. Only the tunnel knows its running configuration, so
    /// the tunnel compares the two, and changes or refuses.
    async fn take_up(
        &self,
        load: impl FnOnce() -> Result<Loaded, Report> + Send + 'static,
    ) -> Answer {
        let wanted = self.load(load).await?;
        let (reply, replied) = oneshot::channel();
        self.send(Request::Reload(wanted, reply)).await;
        done(replied).await
    }

    async fn load(
        &self,
        load: impl FnOnce() -> Result<Loaded, Report> + Send + 'static,
    ) -> Result<Box<(Config, Keys)>, String> {
        // Loading may look up a user, which can take a long time.
        let load = move || load().map(|Loaded { config, keys, .. }| Box::new((config, keys)));
        let reader = self.reader().await?;
        let wanted = reader.run(load).await.map_err(|_panicked| STOPPING.to_owned())?;
        wanted.map_err(|report| report.lines().collect::<Vec<_>>().join("; "))
    }

    async fn forget(&self) -> Answer {
        let (reply, replied) = oneshot::channel();
        self.send(Request::Forget(reply)).await;
        done(replied).await
    }

    async fn rotate(&self, finish: bool) -> Answer {
        let (reply, replied) = oneshot::channel();
        self.send(Request::Rotate { finish, reply }).await;
        done(replied).await
    }

    /// Sends the request to the tunnel. If the tunnel is about to stop, no reply arrives.
    async fn send(&self, request: Request) {
        let _stopping = self.requests.send(request).await;
    }
}

/// Under systemd all tunnels run as one user. None of them may take another one.
fn may_take_over(client: &UnixStream) -> bool {
    let is_root = || client.peer_cred().is_ok_and(|from| from.uid() == 0);
    !systemd::started_us() || is_root()
}

fn parse(line: &[u8]) -> Result<Ask, String> {
    let ask: Ask = serde_json::from_slice(line).map_err(|error| match line.len() {
        MAX_REQUEST => format!("a request has at most {MAX_REQUEST} bytes"),
        _ => format!("this is no request: {error}"),
    })?;
    match ask.schema {
        SCHEMA => Ok(ask),
        other => Err(format!("schema {other} is not known here")),
    }
}

async fn pinged(replied: oneshot::Receiver<Result<Ping, String>>) -> Answer {
    match timeout(PING_PATIENCE, replied).await {
        Ok(Ok(pinged)) => pinged.map(|ping| line(&ping)),
        Ok(Err(_)) => Err(STOPPING.to_owned()),
        Err(_) => Ok(line(&Ping::UNANSWERED)),
    }
}

async fn done(replied: oneshot::Receiver<Result<(), String>>) -> Answer {
    match replied.await {
        Ok(Ok(())) => Ok(line(&Done::OK)),
        Ok(Err(refused)) => Err(refused),
        Err(_) => Err(STOPPING.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::site;
    use crate::socket_file::MAX_CONNECTIONS;
    use crate::status::tests::sample;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::path::Path;
    use tempfile::TempDir;
    use tokio::time::sleep;

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
        drop(std::os::unix::net::UnixListener::bind(path).unwrap());
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
