//! WireGuard's own configuration protocol (its "cross-platform userspace implementation"), so that `wg` and programs
//! that use it can read a tunnel's state and change the little that may change while it runs. The socket is
//! `/var/run/wireguard/DEVICE.sock`, and only root and the user who started the daemon may use it.
//!
//! One connection is one request: lines of `key=value`, and an empty line at the end. `wg` connects twice for each
//! command, and closes the first connection without a byte.

mod answer;
mod hold;
mod judge;
mod lines;
mod refused;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::unistd::Uid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use vpnd_tunnel::clock;
use zeroize::Zeroizing;

use crate::config::UAPI_DIRECTORY;
use crate::logging::RateLimit;
use crate::socket_file::{self, OWNER_ONLY, Serving, SocketFile, SocketFileError};

pub(crate) use answer::Shown;
pub(crate) use hold::Hold;
pub(crate) use judge::{Changes, InForce, judge};
pub(crate) use lines::{PeerLines, Set};
pub(crate) use refused::Refused;

use lines::Parsed;

/// A request must have arrived completely within this time.
const ARRIVES_WITHIN: Duration = Duration::from_secs(1);
/// A client that has not read its answer within this time is disconnected. A start of the tunnel may have to finish
/// before `set` is answered.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest request, in bytes: room for about a thousand allowed addresses.
const MAX_REQUEST: usize = 1 << 16;

/// A request to the tunnel.
pub(crate) enum Asked {
    /// Report the state.
    Get(oneshot::Sender<Shown>),
    /// Change all of this, or nothing.
    Set(Box<Set>, oneshot::Sender<Result<(), Refused>>),
}

/// The bound socket, and its clients.
pub(crate) struct Uapi {
    serving: Serving,
    requests: mpsc::Receiver<Asked>,
}

/// The socket of this device.
pub(crate) fn path_of(device: &str) -> PathBuf {
    Path::new(UAPI_DIRECTORY).join(format!("{device}.sock"))
}

/// Binds the socket of `device`, which the daemon then serves.
///
/// # Errors
///
/// If another program serves that device, or the kernel refuses.
///
/// # Panics
///
/// Outside a tokio runtime.
pub(crate) fn bind(device: &str) -> Result<Uapi, SocketFileError> {
    let path = path_of(device);
    let bound = socket_file::bind(&path, OWNER_ONLY)?;
    let what = "serving it";
    Uapi::serve(bound).map_err(|error| SocketFileError::Refused { path, what, error })
}

impl Uapi {
    /// Serves the socket of `device`, which another process has bound.
    ///
    /// # Errors
    ///
    /// If it is no socket.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub(crate) fn inherited(device: &str, socket: OwnedFd) -> io::Result<Self> {
        let mut uapi = Self::later(device, socket.into())?;
        uapi.serving.begin();
        Ok(uapi)
    }

    /// Serves the socket of `device`, which an earlier process of the tunnel serves until [`begin`](Self::begin).
    ///
    /// # Errors
    ///
    /// As [`inherited`](Self::inherited).
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub(crate) fn later(device: &str, socket: StdUnixListener) -> io::Result<Self> {
        let (desk, requests) = Desk::new();
        Ok(Self { serving: Serving::later(socket, path_of(device), desk)?, requests })
    }

    fn serve(bound: (UnixListener, SocketFile)) -> io::Result<Self> {
        let (desk, requests) = Desk::new();
        Ok(Self { serving: Serving::now(bound, desk)?, requests })
    }

    /// Serves clients from now on.
    pub(crate) fn begin(&mut self) {
        self.serving.begin();
    }

    /// Leaves the socket to the next process.
    pub(crate) fn leave(&mut self) {
        self.serving.leave();
    }

    /// The next request.
    pub(crate) async fn next(&mut self) -> Asked {
        match self.requests.recv().await {
            Some(asked) => asked,
            None => std::future::pending().await,
        }
    }
}

impl AsFd for Uapi {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.serving.as_fd()
    }
}

/// The state needed to serve clients.
struct Desk {
    /// The user who started the daemon.
    owner: Uid,
    requests: mpsc::Sender<Asked>,
    refusals: Mutex<RateLimit<&'static str>>,
}

/// An answer, which may contain a preshared key.
type Answer = Zeroizing<String>;

impl socket_file::Desk for Desk {
    async fn serve(&self, client: UnixStream) -> io::Result<()> {
        timeout(PATIENCE, self.attend(client)).await?
    }
}

impl Desk {
    fn new() -> (Arc<Self>, mpsc::Receiver<Asked>) {
        let (requests, received) = mpsc::channel(1);
        let refusals = Mutex::default();
        (Arc::new(Self { owner: Uid::current(), requests, refusals }), received)
    }

    async fn attend(&self, mut client: UnixStream) -> io::Result<()> {
        let uid = Uid::from_raw(client.peer_cred()?.uid());
        if let Some(answer) = self.answer(&mut client, uid).await {
            client.write_all(answer.as_bytes()).await?;
        }
        client.shutdown().await
    }

    /// The answer; `None` for a client that has asked nothing.
    async fn answer(&self, client: &mut UnixStream, uid: Uid) -> Option<Answer> {
        // The full size is reserved at the start, because a growing buffer would leave copies of keys behind.
        let mut came = Zeroizing::new(vec![0; MAX_REQUEST]);
        let arrived = timeout(ARRIVES_WITHIN, read(client, &mut came)).await;
        if !uid.is_root() && uid != self.owner {
            // Of what others send, only the word that decides the sign of the answer is looked at.
            return Some(answer::failed(came.starts_with(b"get=1\n"), libc::EPERM));
        }
        let parsed = match arrived {
            Ok(0) => return None,
            Ok(len) => lines::parse(&came[..len]),
            Err(_) => Err(Refused::endless()),
        };
        drop(came);
        Some(match parsed {
            Ok(Parsed::Get) => self.get(uid).await,
            Ok(Parsed::Set(set)) => self.set(set).await,
            Err(refused) => self.refuse(&refused),
        })
    }

    async fn get(&self, uid: Uid) -> Answer {
        let (reply, replied) = oneshot::channel();
        let _stopping = self.requests.send(Asked::Get(reply)).await;
        match replied.await {
            Ok(shown) => shown.answer(uid.is_root()),
            Err(_) => answer::failed(true, libc::EIO),
        }
    }

    async fn set(&self, set: Box<Set>) -> Answer {
        let (reply, replied) = oneshot::channel();
        let _stopping = self.requests.send(Asked::Set(set, reply)).await;
        match replied.await {
            Ok(Ok(())) => answer::done(),
            Ok(Err(refused)) => self.refuse(&refused),
            Err(_) => answer::failed(false, libc::EIO),
        }
    }

    /// Logs why a request is refused, which its number alone does not say.
    fn refuse(&self, refused: &Refused) -> Answer {
        let mut limit = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(more) = limit.allow(refused.about, clock::boot()) {
            tracing::warn!("refused a request on the WireGuard socket: {}{more}", refused.why);
        }
        answer::failed(false, refused.errno)
    }
}

/// Reads until the empty line that ends a request, or the end; returns the number of bytes read.
async fn read(client: &mut UnixStream, buffer: &mut [u8]) -> usize {
    let mut len = 0;
    while len < buffer.len() && !buffer[..len].ends_with(b"\n\n") {
        match client.read(&mut buffer[len..]).await {
            Ok(more) if more > 0 => len += more,
            _ => break,
        }
    }
    len
}

/// The settings in these lines of a request.
#[cfg(test)]
pub(crate) fn parse_set(text: &str) -> Result<Set, Refused> {
    match lines::parse(format!("set=1\n{text}\n").as_bytes())? {
        Parsed::Set(set) => Ok(*set),
        Parsed::Get => Err(Refused::invalid("it is no set")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vpnd_crypto::{PresharedKey, PublicKey};

    fn served() -> (tempfile::TempDir, PathBuf, Uapi) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("wireguard/wg0.sock");
        let uapi = Uapi::serve(socket_file::bind(&path, OWNER_ONLY).unwrap()).unwrap();
        (directory, path, uapi)
    }

    async fn exchange(path: &Path, request: &[u8], ends: bool) -> String {
        let mut client = UnixStream::connect(path).await.unwrap();
        client.write_all(request).await.unwrap();
        if ends {
            client.shutdown().await.unwrap();
        }
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    }

    fn shown() -> Shown {
        Shown {
            listen_port: 51820,
            fwmark: 0,
            peer: Some(PublicKey::from_bytes([1; 32])),
            preshared: PresharedKey::from_bytes([2; 32]),
            endpoint: Some("192.0.2.2:51820".to_owned()),
            handshake: Some(Duration::new(1_700_000_000, 5)),
            sent: 7,
            received: 8,
            keepalive: 25,
            allowed_ips: vec!["10.0.0.0/24".parse().unwrap(), "2001:db8::/64".parse().unwrap()],
        }
    }

    #[tokio::test]
    async fn the_state_crosses_and_no_private_key() {
        let (_directory, path, mut uapi) = served();
        let asking = tokio::spawn(async move { exchange(&path, b"get=1\n\n", false).await });
        let Asked::Get(reply) = uapi.next().await else { panic!("another request") };
        reply.send(shown()).ok().unwrap();
        let secret = if Uid::current().is_root() {
            format!("preshared_key={}\n", "02".repeat(32))
        } else {
            String::new()
        };
        let expected = format!(
            "listen_port=51820\npublic_key={}\n{secret}protocol_version=1\nendpoint=192.0.2.2:51820\n\
             last_handshake_time_sec=1700000000\nlast_handshake_time_nsec=5\ntx_bytes=7\nrx_bytes=8\n\
             persistent_keepalive_interval=25\nallowed_ip=10.0.0.0/24\nallowed_ip=2001:db8::/64\nerrno=0\n\n",
            "01".repeat(32)
        );
        assert_eq!(asking.await.unwrap(), expected);
    }

    #[tokio::test]
    async fn a_set_is_answered_by_its_errno() {
        let (_directory, path, mut uapi) = served();
        for (reply, expected) in [
            (Ok(()), "errno=0\n\n"),
            (Err(Refused::unsupported("", "")), "errno=-95\n\n"),
            (Err(Refused::invalid("")), "errno=-22\n\n"),
        ] {
            let path = path.clone();
            let asking =
                tokio::spawn(async move { exchange(&path, b"set=1\nfwmark=0\n\n", false).await });
            let Asked::Set(set, answer) = uapi.next().await else { panic!("another request") };
            assert_eq!(set.fwmark, Some(0));
            answer.send(reply).unwrap();
            assert_eq!(asking.await.unwrap(), expected);
        }
    }

    #[tokio::test]
    async fn what_is_no_request_gets_an_errno_and_nothing_else_none() {
        let (_directory, path, _uapi) = served();
        assert_eq!(exchange(&path, b"", true).await, "");
        for half in [&b"get=1\n"[..], b"set=1\npublic_key=", b"x", b"\n\n", b"set=1\nfwmark=0\n"] {
            assert_eq!(exchange(&path, half, true).await, "errno=-22\n\n");
        }
        assert_eq!(exchange(&path, b"get=1", false).await, "errno=-110\n\n");
        let long = [b"set=1\n", vec![b'x'; MAX_REQUEST - 6].as_slice()].concat();
        assert_eq!(exchange(&path, &long, false).await, "errno=-22\n\n");
    }

    /// Whatever they send, they learn nothing, and the log says nothing of it.
    #[tokio::test]
    async fn what_others_send_is_not_read() {
        let (send, mut requests) = mpsc::channel(1);
        let [owner, other] = [1000, 1001].map(Uid::from_raw);
        let desk = Desk { owner, requests: send, refusals: Mutex::default() };
        for (sent, answered) in [
            ("get=1\n\n", "errno=1\n\n"),
            ("set=1\nfwmark=1\n\n", "errno=-1\n\n"),
            ("nonsense\n\n", "errno=-1\n\n"),
            ("get=1", "errno=-1\n\n"),
        ] {
            let (mut client, mut served) = UnixStream::pair().unwrap();
            client.write_all(sent.as_bytes()).await.unwrap();
            assert_eq!(*desk.answer(&mut served, other).await.unwrap(), answered);
        }
        assert!(requests.try_recv().is_err());
        let limit = desk.refusals.lock().unwrap().allow("lines", clock::boot());
        assert_eq!(limit.map(|more| more.to_string()).as_deref(), Some(""), "nothing was logged");
    }

    #[tokio::test]
    async fn the_socket_is_its_owners_and_goes_at_the_end() {
        use std::os::unix::fs::PermissionsExt;
        let (_directory, path, uapi) = served();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        drop(uapi);
        assert!(!path.exists());
    }
}
