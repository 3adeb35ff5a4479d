//! The client of the control socket: finds a tunnel, sends it a request and the files that follow it, and reads
//! the answer.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::unistd::Uid;
use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;

use crate::control::Ask;
use crate::exit::Exit;
use crate::terminal::Printable;
use crate::trust::{self, Untrusted};

/// The directory of the tunnels' control sockets, unless their configuration names another place.
pub(crate) const SOCKETS: &str = "/run/vpnd";
/// The time within which a daemon must have answered completely; otherwise it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(3);
/// The length of the longest answer.
const MAX_ANSWER: u64 = 64 << 10;

/// Why a tunnel does not answer, or does not give the expected answer.
#[derive(Debug, Error)]
pub(crate) enum AskError {
    /// No process listens at the socket.
    #[error("nobody answers at {}: that tunnel does not run, or its configuration names another `control`: give that path", .0.display())]
    NotRunning(PathBuf),
    /// This process may not open the socket.
    #[error("no permission to open {}: run this as root", .0.display())]
    Permission(PathBuf),
    /// Another user listens at the socket.
    #[error(
        "uid {uid} listens at {}, neither root, nor you, nor the user that the tunnel runs as: nothing was \
         handed over", path.display()
    )]
    Stranger { path: PathBuf, uid: u32 },
    /// Another user could listen at the socket.
    #[error("others could listen at {}: {why}; nothing was handed over", path.display())]
    Place { path: PathBuf, why: Untrusted },
    /// The daemon accepts the connection, but does not answer.
    #[error("the tunnel at {} does not answer: its `up` hooks are running, or it hangs", .0.display())]
    Silent(PathBuf),
    /// The connection failed for another reason.
    #[error("asking {}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    /// The daemon refused the request.
    #[error("{}: {reason}", path.display())]
    Refused { path: PathBuf, reason: String },
    /// The answer does not fit this request.
    #[error("{}: an answer in an unknown format: {error}", path.display())]
    Shape { path: PathBuf, error: serde_json::Error },
}

impl AskError {
    /// The exit code of `vpnd`.
    pub(crate) const fn exit(&self) -> Exit {
        match self {
            Self::NotRunning(_) | Self::Silent(_) => Exit::Unknown,
            Self::Permission(_) | Self::Stranger { .. } | Self::Place { .. } => Exit::Permission,
            Self::Io { .. } | Self::Refused { .. } | Self::Shape { .. } => Exit::Failure,
        }
    }
}

/// The path of a tunnel's socket: a name means the socket in the usual directory; a path is returned unchanged.
pub(crate) fn socket(name: &str) -> PathBuf {
    if name.contains('/') { name.into() } else { Path::new(SOCKETS).join(format!("{name}.sock")) }
}

/// Sends the request to the tunnel at `path`, and returns its answer, which may have fields that this release
/// does not know.
///
/// # Errors
///
/// If the tunnel does not answer, or refuses.
pub(crate) fn ask(path: &Path, ask: &Ask) -> Result<Value, AskError> {
    ask_within(path, ask, PATIENCE)
}

/// Like [`ask`], but waits at most this long for the answer.
///
/// # Errors
///
/// Like [`ask`].
pub(crate) fn ask_within(path: &Path, ask: &Ask, patience: Duration) -> Result<Value, AskError> {
    let stream = Conversation::begin_within(path, patience.min(PATIENCE));
    converse(path, stream.map_err(|error| explain(path, error))?, ask, &[])
}

/// A request that was sent; its answer is awaited with others of the caller's events.
pub(crate) struct Asked {
    path: PathBuf,
    stream: Conversation,
    /// Who refuses before having read the request may have closed the connection already, and has answered.
    sent: io::Result<()>,
}

impl Asked {
    /// Sends the request to the tunnel at `path`, whose answer may take this long.
    ///
    /// # Errors
    ///
    /// If nobody listens there.
    pub(crate) fn send(path: &Path, ask: &Ask, patience: Duration) -> Result<Self, AskError> {
        let begun = Conversation::begin_within(path, patience);
        let mut stream = begun.map_err(|error| explain(path, error))?;
        let sent = send(&mut stream, ask, &[]);
        Ok(Self { path: path.to_owned(), stream, sent })
    }

    /// The answer. Once the descriptor is readable, this does not wait.
    ///
    /// # Errors
    ///
    /// Like [`ask`].
    pub(crate) fn answer(self) -> Result<Value, AskError> {
        let line = heard(self.stream, self.sent).map_err(|error| explain(&self.path, error))?;
        read(&self.path, &line)
    }

    /// The answer, and the connection, on which more follows.
    ///
    /// # Errors
    ///
    /// Like [`ask`].
    pub(crate) fn stream(mut self) -> Result<(Value, Socket), AskError> {
        let line = first_line(&mut self.stream).map_err(|heard| self.sent.err().unwrap_or(heard));
        let line = line.map_err(|error| explain(&self.path, error))?;
        let answer = read(&self.path, &line)?;
        let socket = self.stream.socket;
        let unlimited = socket.set_read_timeout(None).and_then(|()| socket.set_write_timeout(None));
        unlimited.map_err(|error| explain(&self.path, error))?;
        Ok((answer, socket))
    }
}

/// The bytes up to the end of the line, and none after it.
fn first_line(stream: &mut Conversation) -> io::Result<String> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while byte != [b'\n'] && (line.len() as u64) < MAX_ANSWER {
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    String::from_utf8(line).map_err(io::Error::other)
}

impl AsFd for Asked {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.socket.as_fd()
    }
}

/// Like [`ask`], and sends `files`, but only if the listening user is root, this user, or one of `users`.
///
/// # Errors
///
/// Like [`ask`], or if another user listens there, or could.
pub(crate) fn hand_over(
    path: &Path,
    ask: &Ask,
    files: &[&str],
    users: &[u32],
) -> Result<Value, AskError> {
    trust::place_among(path, users).map_err(|why| match why {
        Untrusted::Unreachable { error, .. } => explain(path, error),
        why => AskError::Place { path: path.to_owned(), why },
    })?;
    let stream = Conversation::begin(path).map_err(|error| explain(path, error))?;
    let listener = stream.listener().map_err(|error| explain(path, error))?;
    let known = listener == 0 || listener == Uid::effective().as_raw() || users.contains(&listener);
    if !known {
        return Err(AskError::Stranger { path: path.to_owned(), uid: listener });
    }
    converse(path, stream, ask, files)
}

/// The process that listens at `path`; `None` if it is in another process namespace.
///
/// # Errors
///
/// Like [`ask`].
pub(crate) fn listener(path: &Path) -> Result<Option<u32>, AskError> {
    let asked = Conversation::begin(path)
        .and_then(|stream| Ok(getsockopt(&stream.socket, PeerCredentials)?.pid()));
    let pid = asked.map_err(|error| explain(path, error))?;
    Ok(u32::try_from(pid).ok().filter(|pid| *pid != 0))
}

fn converse(
    path: &Path,
    stream: Conversation,
    ask: &Ask,
    files: &[&str],
) -> Result<Value, AskError> {
    let line = exchange(stream, ask, files).map_err(|error| explain(path, error))?;
    read(path, &line)
}

/// Reads an answer, or the reason for a refusal.
fn read(path: &Path, line: &str) -> Result<Value, AskError> {
    let answer: Value = serde_json::from_str(line).map_err(|error| shape(path, error))?;
    match answer.get("error").and_then(Value::as_str) {
        Some(reason) => {
            let reason = Printable(reason).to_string();
            Err(AskError::Refused { path: path.to_owned(), reason })
        }
        None => Ok(answer),
    }
}

/// An error for an answer of the tunnel at `path` that does not fit the request.
pub(crate) fn shape(path: &Path, error: serde_json::Error) -> AskError {
    AskError::Shape { path: path.to_owned(), error }
}

/// A connection with a limit for the total time, even if bytes arrive slowly.
pub(crate) struct Conversation {
    socket: Socket,
    until: Instant,
}

impl Conversation {
    /// Connects to the process that listens at `path`.
    ///
    /// # Errors
    ///
    /// Like `connect(2)`, or if the connection was not accepted in time.
    pub(crate) fn begin(path: &Path) -> io::Result<Self> {
        Self::begin_within(path, PATIENCE)
    }

    fn begin_within(path: &Path, patience: Duration) -> io::Result<Self> {
        let (socket, until) =
            (Socket::new(Domain::UNIX, Type::STREAM, None)?, Instant::now() + patience);
        // The kernel also applies this timeout to `connect`. Zero would mean none.
        socket.set_write_timeout(Some(patience.max(Duration::from_millis(1))))?;
        socket.connect(&SockAddr::unix(path)?)?;
        Ok(Self { socket, until })
    }

    /// The user who created the listening socket.
    fn listener(&self) -> io::Result<u32> {
        Ok(getsockopt(&self.socket, PeerCredentials)?.uid())
    }

    fn left(&self) -> io::Result<Option<Duration>> {
        match self.until.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(ErrorKind::TimedOut.into()),
            left => Ok(Some(left)),
        }
    }
}

impl Read for Conversation {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(self.left()?)?;
        self.socket.read(into)
    }
}

impl Write for Conversation {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(self.left()?)?;
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn exchange(mut stream: Conversation, ask: &Ask, files: &[&str]) -> io::Result<String> {
    let sent = send(&mut stream, ask, files);
    heard(stream, sent)
}

/// The answer to what was sent.
fn heard(stream: Conversation, sent: io::Result<()>) -> io::Result<String> {
    let mut answer = String::new();
    let heard = BufReader::new(stream.take(MAX_ANSWER)).read_line(&mut answer);
    // A daemon that refuses may close the connection before it has read everything; then its reason has
    // arrived.
    match answer.ends_with('\n') {
        false => Err(sent.and(heard).err().unwrap_or_else(|| ErrorKind::UnexpectedEof.into())),
        true => Ok(answer),
    }
}

fn send(stream: &mut Conversation, ask: &Ask, files: &[&str]) -> io::Result<()> {
    let mut line = serde_json::to_string(ask)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    files.iter().try_for_each(|file| stream.write_all(file.as_bytes()))
}

pub(crate) fn explain(path: &Path, error: io::Error) -> AskError {
    let path = path.to_owned();
    match error.kind() {
        // Some daemons end while a request is being sent.
        ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::UnexpectedEof => {
            AskError::NotRunning(path)
        }
        ErrorKind::PermissionDenied => AskError::Permission(path),
        ErrorKind::WouldBlock | ErrorKind::TimedOut => AskError::Silent(path),
        _ => AskError::Io { path, error },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::thread;

    /// A daemon that refuses a request closes the connection before it has read the files that follow.
    #[test]
    fn who_hangs_up_early_has_said_why() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("site-a.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let daemon = thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            client.read_exact(&mut [0; 20]).unwrap();
            client.write_all(b"{\"schema\":3,\"error\":\"not known here\"}\n").unwrap();
        });
        let long = "x".repeat(1 << 20);
        let error = hand_over(&path, &Ask::new("reload"), &[&long], &[]).unwrap_err();
        assert_eq!(error.to_string(), format!("{}: not known here", path.display()));
        daemon.join().unwrap();
    }

    /// It may also refuse whoever has connected, before anything is sent.
    #[test]
    fn who_hangs_up_at_once_has_said_why_too() {
        let asked = || {
            let (socket, mut daemon) = Socket::pair(Domain::UNIX, Type::STREAM, None).unwrap();
            daemon.write_all(b"{\"schema\":3,\"error\":\"not for you\"}\n").unwrap();
            drop(daemon);
            let mut stream = Conversation { socket, until: Instant::now() + PATIENCE };
            let sent = send(&mut stream, &Ask::new("capture"), &[]);
            assert_eq!(sent.as_ref().unwrap_err().kind(), ErrorKind::BrokenPipe);
            Asked { path: "/x.sock".into(), stream, sent }
        };
        let errors = [asked().answer().unwrap_err(), asked().stream().err().unwrap()];
        assert_eq!(errors.map(|error| error.to_string()), ["/x.sock: not for you"; 2]);
    }

    #[test]
    fn who_says_nothing_is_silent_or_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("site-a.sock");
        let error = ask(&path, &Ask::new("rotate")).unwrap_err();
        assert_eq!(error.exit(), Exit::Unknown);
        let listener = UnixListener::bind(&path).unwrap();
        let daemon = thread::spawn(move || drop(listener.accept().unwrap()));
        let error = ask(&path, &Ask::new("rotate")).unwrap_err();
        assert_eq!(error.exit(), Exit::Failure, "{error}");
        daemon.join().unwrap();
    }

    #[test]
    fn who_answers_a_byte_at_a_time_has_no_more_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("site-a.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let daemon = thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            while client.write_all(b" ").is_ok() {
                thread::sleep(Duration::from_millis(100));
            }
        });
        let error = ask(&path, &Ask::new("status")).unwrap_err();
        assert!(matches!(error, AskError::Silent(_)), "{error}");
        daemon.join().unwrap();
    }

    #[test]
    fn who_never_accepts_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("site-a.sock");
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        listener.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        listener.listen(0).unwrap();
        let _waits = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let error = ask(&path, &Ask::new("status")).unwrap_err();
        assert!(matches!(error, AskError::Silent(_)), "{error}");
    }

    #[test]
    fn keys_are_handed_to_nobody_else() {
        // Only root can become another user.
        if !Uid::effective().is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("site-a.sock");
        let hand = |users: &[u32]| hand_over(&path, &Ask::new("reload"), &["secret"], users);
        let listener = thread::spawn({
            let path = path.clone();
            move || {
                // The change affects only this thread.
                // SAFETY: the call takes three numbers.
                let became = unsafe { libc::syscall(libc::SYS_setresuid, -1, 12345, -1) };
                assert_eq!(became, 0);
                let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
                // SAFETY: as above.
                unsafe { libc::syscall(libc::SYS_setresuid, -1, 0, -1) };
                socket.bind(&SockAddr::unix(&path).unwrap()).unwrap();
                // SAFETY: as above.
                unsafe { libc::syscall(libc::SYS_setresuid, -1, 12345, -1) };
                socket.listen(5).unwrap();
                // SAFETY: as above.
                unsafe { libc::syscall(libc::SYS_setresuid, -1, 0, -1) };
                UnixListener::from(socket)
            }
        });
        let listener = listener.join().unwrap();
        let error = hand(&[]).unwrap_err();
        assert!(matches!(error, AskError::Stranger { uid: 12345, .. }), "{error}");
        let (mut client, _) = listener.accept().unwrap();
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).unwrap();
        assert!(heard.is_empty(), "not a byte");

        let answering = thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            client.write_all(b"{\"schema\":3,\"ok\":true}\n").unwrap();
            client.read_to_end(&mut Vec::new()).unwrap();
        });
        hand(&[12345]).unwrap();
        answering.join().unwrap();

        std::os::unix::fs::chown(directory.path(), Some(12345), None).unwrap();
        assert!(matches!(hand(&[]).unwrap_err(), AskError::Place { .. }));
    }

    #[test]
    fn a_tunnel_is_found_by_name_or_path() {
        assert_eq!(socket("site-a"), Path::new("/run/vpnd/site-a.sock"));
        assert_eq!(socket("./x.sock"), Path::new("./x.sock"));
    }
}
