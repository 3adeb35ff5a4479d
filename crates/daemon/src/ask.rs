//! The asking end of the control socket: finds a tunnel, sends it a line, and reads the answer.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use thiserror::Error;

use crate::control::Ask;

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
    #[error("the tunnel at {} runs and does not answer", .0.display())]
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

/// A name stands for its socket in the usual place; a path stands for itself.
pub(crate) fn socket(name: &str) -> PathBuf {
    if name.contains('/') { name.into() } else { Path::new(SOCKETS).join(format!("{name}.sock")) }
}

/// Asks the tunnel at `path`, and returns its own words, which may be more than this release knows.
///
/// # Errors
///
/// If it does not answer, or refuses.
pub(crate) fn ask(path: &Path, ask: &Ask) -> Result<Value, AskError> {
    let line = exchange(path, ask).map_err(|error| explain(path, error))?;
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

fn exchange(path: &Path, ask: &Ask) -> io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_string(ask)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream.take(MAX_ANSWER)).read_line(&mut answer)?;
    Ok(answer)
}

fn explain(path: &Path, error: io::Error) -> AskError {
    let path = path.to_owned();
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => AskError::NotRunning(path),
        ErrorKind::PermissionDenied => AskError::Permission(path),
        ErrorKind::WouldBlock | ErrorKind::TimedOut => AskError::Silent(path),
        _ => AskError::Io { path, error },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_is_found_by_name_or_path() {
        assert_eq!(socket("site-a"), Path::new("/run/vpnd/site-a.sock"));
        assert_eq!(socket("./x.sock"), Path::new("./x.sock"));
    }
}
