//! The asking side: `vpnd status [NAME] [--json]`.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{SCHEMA, State, Status, text};
use crate::cli::StatusOptions;
use crate::control::Ask;
use crate::exit::Exit;

/// Where tunnels answer unless their configuration says otherwise.
const SOCKETS: &str = "/run/vpnd";
const PATIENCE: Duration = Duration::from_secs(3);

/// Asks one tunnel, or all that run, and prints what they say. The exit code is that of the
/// worst of them.
pub(crate) fn run(options: StatusOptions) -> Result<ExitCode> {
    let sockets = match &options.name {
        Some(name) => vec![socket(name)],
        None => all_sockets(),
    };
    if sockets.is_empty() {
        writeln!(io::stderr(), "vpnd: no tunnel runs here ({SOCKETS} has no sockets)")?;
        return Ok(Exit::Unknown.into());
    }
    let mut worst = Exit::Success;
    for path in sockets {
        let exit = report(&path, options.json)?;
        worst = if worst as u8 >= exit as u8 { worst } else { exit };
    }
    Ok(worst.into())
}

fn report(path: &Path, json: bool) -> Result<Exit> {
    let answer = match ask(path) {
        Ok(answer) => answer,
        Err(error) => {
            writeln!(io::stderr(), "vpnd: {error:#}")?;
            return Ok(Exit::Unknown);
        }
    };
    let status: Status =
        serde_json::from_value(answer.clone()).context("an answer of an unknown shape")?;
    if json {
        writeln!(io::stdout(), "{answer}")?;
    } else {
        write!(io::stdout(), "{}", text::render(&status))?;
    }
    Ok(if status.state == State::Up { Exit::Success } else { Exit::Down })
}

fn ask(path: &Path) -> Result<Value> {
    let place = || format!("asking {}", path.display());
    let mut stream = UnixStream::connect(path).with_context(|| {
        format!("{}: is the tunnel running, and may this user ask it?", place())
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_string(&Ask { schema: SCHEMA, command: "status".to_owned() })?;
    line.push('\n');
    stream.write_all(line.as_bytes()).with_context(place)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).with_context(place)?;
    let answer: Value = serde_json::from_str(&answer).with_context(place)?;
    if let Some(error) = answer.get("error").and_then(Value::as_str) {
        bail!("{}: {error}", path.display());
    }
    Ok(answer)
}

/// A name stands for its socket in the usual place; a path stands for itself.
fn socket(name: &str) -> PathBuf {
    if name.contains('/') { name.into() } else { Path::new(SOCKETS).join(format!("{name}.sock")) }
}

fn all_sockets() -> Vec<PathBuf> {
    let entries = fs::read_dir(SOCKETS).into_iter().flatten().flatten();
    let mut sockets: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sock"))
        .collect();
    sockets.sort();
    sockets
}
