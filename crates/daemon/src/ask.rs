//! The asking end of the control socket: finds a tunnel, sends it a line and what follows it, and
//! reads the answer.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use thiserror::Error;

use crate::control::Ask;
use crate::exit::Exit;

/// Where tunnels answer unless their configuration says otherwise.
pub(crate) const SOCKETS: &str = "/run/vpnd";
/// A daemon that has not answered by then hangs.
const PATIENCE: Duration = Duration::from_secs(3);
/// No answer is longer.
const MAX_ANSWER: u64 = 64 << 10;

/// Why a tunnel does not answer, or not as it was asked.
#[derive(Debug, Error)]
pub(crate) enum AskError {
    /// Nobody listens.
    #[error("nobody answers at {}: that tunnel does not run", .0.display())]
    NotRunning(PathBuf),
    /// The socket is closed to us.
    #[error("{} is closed to us: ask as root", .0.display())]
    Permission(PathBuf),
    /// The daemon is stuck.
    #[error("the tunnel at {} does not answer: its `up` hooks are running, or it hangs", .0.display())]
    Silent(PathBuf),
    /// The conversation failed otherwise.
    #[error("asking {}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    /// The daemon would not.
    #[error("{}: {reason}", path.display())]
    Refused { path: PathBuf, reason: String },
    /// What came is no answer to this.
    #[error("{}: an answer of an unknown shape: {error}", path.display())]
    Shape { path: PathBuf, error: serde_json::Error },
}

impl AskError {
    /// The code that `vpnd` ends with.
    pub(crate) const fn exit(&self) -> Exit {
        match self {
            Self::NotRunning(_) | Self::Silent(_) => Exit::Unknown,
            Self::Permission(_) => Exit::Permission,
            Self::Io { .. } | Self::Refused { .. } | Self::Shape { .. } => Exit::Failure,
        }
    }
}

/// A name stands for its socket in the usual place; a path stands for itself.
pub(crate) fn socket(name: &str) -> PathBuf {
    if name.contains('/') { name.into() } else { Path::new(SOCKETS).join(format!("{name}.sock")) }
}

/// Asks the tunnel at `path`, hands it `files`, and returns its own words, which may be more than
/// this release knows.
///
/// # Errors
///
/// If it does not answer, or refuses.
pub(crate) fn ask(path: &Path, ask: &Ask, files: &[&str]) -> Result<Value, AskError> {
    let line = exchange(path, ask, files).map_err(|error| explain(path, error))?;
    let answer: Value = serde_json::from_str(&line).map_err(|error| shape(path, error))?;
    match answer.get("error").and_then(Value::as_str) {
        Some(reason) => Err(AskError::Refused { path: path.to_owned(), reason: reason.to_owned() }),
        None => Ok(answer),
    }
}

/// What the tunnel at `path` said is not what was asked for.
pub(crate) fn shape(path: &Path, error: serde_json::Error) -> AskError {
    AskError::Shape { path: path.to_owned(), error }
}

fn exchange(path: &Path, ask: &Ask, files: &[&str]) -> io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let sent = send(&mut stream, ask, files);
    let mut answer = String::new();
    let heard = BufReader::new(stream.take(MAX_ANSWER)).read_line(&mut answer);
    // Who refuses may hang up before it has heard everything, and has said why.
    match answer.is_empty() {
        true => Err(sent.and(heard).err().unwrap_or_else(|| ErrorKind::UnexpectedEof.into())),
        false => Ok(answer),
    }
}

fn send(stream: &mut UnixStream, ask: &Ask, files: &[&str]) -> io::Result<()> {
    let mut line = serde_json::to_string(ask)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    files.iter().try_for_each(|file| stream.write_all(file.as_bytes()))
}

fn explain(path: &Path, error: io::Error) -> AskError {
    let path = path.to_owned();
    match error.kind() {
        // Some end while they are asked.
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

    /// A daemon of an earlier release reads a line, and no more.
    #[test]
    fn who_hangs_up_early_has_said_why() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("site-a.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let daemon = thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            client.read_exact(&mut [0; 20]).unwrap();
            client.write_all(b"{\"schema\":1,\"error\":\"not known here\"}\n").unwrap();
        });
        let long = "x".repeat(1 << 20);
        let error = ask(&path, &Ask::new("reload"), &[&long]).unwrap_err();
        assert_eq!(error.to_string(), format!("{}: not known here", path.display()));
        daemon.join().unwrap();
    }

    #[test]
    fn who_says_nothing_is_silent_or_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("site-a.sock");
        let error = ask(&path, &Ask::new("rotate"), &[]).unwrap_err();
        assert_eq!(error.exit(), Exit::Unknown);
        let listener = UnixListener::bind(&path).unwrap();
        let daemon = thread::spawn(move || drop(listener.accept().unwrap()));
        let error = ask(&path, &Ask::new("rotate"), &[]).unwrap_err();
        assert_eq!(error.exit(), Exit::Failure, "{error}");
        daemon.join().unwrap();
    }

    #[test]
    fn a_tunnel_is_found_by_name_or_path() {
        assert_eq!(socket("site-a"), Path::new("/run/vpnd/site-a.sock"));
        assert_eq!(socket("./x.sock"), Path::new("./x.sock"));
    }
}
