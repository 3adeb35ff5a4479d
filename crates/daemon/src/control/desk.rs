//! Serves the clients of the control socket.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::unistd::Uid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::feed::Feed;
use super::read::{read_line, receive};
use super::wire::{
    Announced, Ask, AskCapture, Begun, Differences, Done, MAX_REQUEST, Ping, Refusal, STOPPING,
    line,
};
use super::{Request, Wanted};
use crate::config::{self, Config, Loaded, Report};
use crate::socket_file;
use crate::status::SCHEMA;
use crate::systemd;
use crate::worker::Worker;

/// A client that has not sent its request and read the answer within this time is disconnected.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// How long the peer's answer to a PING is waited for.
const PING_PATIENCE: Duration = Duration::from_secs(5);

/// The state needed to serve clients.
pub(super) struct Desk {
    /// The tunnel's name, and the file that it was started with.
    pub(super) name: String,
    file: PathBuf,
    /// The user who started the daemon.
    owner: Uid,
    requests: mpsc::Sender<Request>,
    /// Starts the threads that load configurations.
    pub(super) lookups: OnceLock<Worker>,
}

/// A client's permissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rights {
    /// All requests.
    Change,
    /// Only the request for the tunnel's state. Other programs may also run as the daemon's user.
    Read,
    Nothing,
}

impl Rights {
    pub(super) fn of(uid: Uid, owner: Uid, daemon: Uid) -> Self {
        match uid {
            uid if uid.is_root() || uid == owner => Self::Change,
            uid if uid == daemon => Self::Read,
            _ => Self::Nothing,
        }
    }
}

/// The text of the answer, or the reason for the refusal.
pub(super) type Answer = Result<String, String>;

/// What a request leads to.
pub(super) enum Outcome {
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
    /// Serves clients of the tunnel of `config`; returns their requests, too.
    pub(super) fn of(config: &Config) -> (Arc<Self>, mpsc::Receiver<Request>) {
        let (send, requests) = mpsc::channel(1);
        let desk = Self {
            name: config.name.clone(),
            file: config.file.clone(),
            owner: Uid::current(),
            requests: send,
            lookups: OnceLock::new(),
        };
        (Arc::new(desk), requests)
    }

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
    pub(super) async fn answer(
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
    pub(super) async fn reread(&self) -> Answer {
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
    ) -> Result<Box<Wanted>, String> {
        // Loading may look up a user, which can take a long time.
        let load = move || {
            let Loaded { config, keys, warnings } = load()?;
            let source = warnings.source().to_owned();
            Ok::<_, Report>(Box::new(Wanted { config, keys, source }))
        };
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
