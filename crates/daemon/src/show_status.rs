//! The client side of the status: `vpnd status [NAME] [--json]`.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use crate::ask::{self, AskError, Conversation, SOCKETS, socket};
use crate::control::Ask;
use crate::exit::Exit;
use crate::live;
use crate::show_mtu::{self, MtuOptions};
use crate::status::{Status, text};
use crate::terminal::{self, Printable};

/// Options of `status`.
#[derive(Debug, Args)]
pub(crate) struct StatusOptions {
    /// The tunnel, or the path of its control socket [default: every tunnel that runs]
    pub(crate) name: Option<String>,
    /// Prints one JSON object a tunnel
    #[arg(long)]
    pub(crate) json: bool,
    /// Shows the state, rates and losses as they change, until Ctrl-C
    #[arg(long, conflicts_with = "json")]
    pub(crate) watch: bool,
}

/// What is printed for each tunnel.
#[derive(Clone, Copy, Debug)]
enum Form {
    Text,
    Json,
    PathMtu,
}

/// Asks one tunnel, or all that run, and prints their status. The exit code is the worst one of them.
pub(crate) fn run(options: &StatusOptions) -> anyhow::Result<ExitCode> {
    if options.watch {
        return live::run(options.name.as_deref());
    }
    print(options.name.as_deref(), if options.json { Form::Json } else { Form::Text })
}

/// Like [`run`], for the size of packets on the path.
pub(crate) fn mtu(options: &MtuOptions) -> anyhow::Result<ExitCode> {
    print(options.name.as_deref(), Form::PathMtu)
}

fn print(name: Option<&str>, form: Form) -> anyhow::Result<ExitCode> {
    let sockets = match name {
        Some(name) => vec![socket(name)],
        None => live_sockets(Path::new(SOCKETS)),
    };
    match show(&sockets, form, &mut io::stdout()) {
        Ok(exit) => Ok(exit.into()),
        // The reader has closed the pipe, which is not an error.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Exit::Success.into()),
        Err(error) => Err(error.into()),
    }
}

/// Sockets of running tunnels; a daemon that was killed leaves its socket behind.
pub(crate) fn live_sockets(directory: &Path) -> Vec<PathBuf> {
    let mut sockets = sockets(directory);
    sockets.retain(|path| !is_dead(path));
    sockets
}

/// Sockets of tunnels, running or not.
pub(crate) fn sockets(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut sockets: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sock"))
        .collect();
    sockets.sort();
    sockets
}

/// Whether the daemon of this socket was killed.
pub(crate) fn is_dead(path: &Path) -> bool {
    Conversation::begin(path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

fn show(sockets: &[PathBuf], form: Form, out: &mut impl Write) -> io::Result<Exit> {
    if sockets.is_empty() {
        writeln!(io::stderr(), "vpnd: no tunnel runs here (nobody answers in {SOCKETS})")?;
        return Ok(Exit::Unknown);
    }
    let mut worst = Exit::Success;
    for path in sockets {
        let exit = match ask(path) {
            Ok((answer, status)) => {
                match form {
                    Form::Json => writeln!(out, "{}", terminal::json(&answer)?)?,
                    Form::Text => write!(out, "{}", text::render(&status))?,
                    Form::PathMtu => write!(out, "{}", show_mtu::render(&status))?,
                }
                if status.state.works() { Exit::Success } else { Exit::Down }
            }
            Err(error) => {
                writeln!(io::stderr(), "vpnd: {}", Printable(error))?;
                Exit::Unknown
            }
        };
        worst = if worst as u8 >= exit as u8 { worst } else { exit };
    }
    Ok(worst)
}

/// The daemon's answer: as it was sent, for JSON, and as far as this release understands it.
pub(crate) fn ask(path: &Path) -> Result<(Value, Status), AskError> {
    let answer = ask::ask(path, &Ask::new("status"))?;
    let mut shown = answer.clone();
    terminal::escape_within(&mut shown);
    let status = serde_json::from_value(shown);
    let status = status.map_err(|error| ask::shape(path, error))?;
    Ok((answer, status))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::State;
    use crate::status::tests::sample;
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;
    use std::thread::{self, JoinHandle};
    use vpnd_plane::Kind;

    /// A daemon that gives this number of clients the same answer.
    fn daemon(path: &Path, answer: String, clients: usize) -> JoinHandle<()> {
        let listener = UnixListener::bind(path).unwrap();
        thread::spawn(move || {
            for _ in 0..clients {
                let (mut client, _) = listener.accept().unwrap();
                let mut request = String::new();
                BufReader::new(&client).read_line(&mut request).unwrap();
                // A client that only checks whether somebody listens does not wait for the answer.
                let _gone = client.write_all(answer.as_bytes());
            }
        })
    }

    fn line(status: &Status) -> String {
        serde_json::to_value(status).unwrap().to_string() + "\n"
    }

    fn shown(sockets: &[PathBuf]) -> (Exit, String) {
        let mut out = Vec::new();
        let exit = show(sockets, Form::Json, &mut out).unwrap();
        (exit, String::from_utf8(out).unwrap())
    }

    #[test]
    fn all_that_run_are_asked_and_the_worst_decides() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let down = Status { name: "site-b".into(), state: State(Some(Kind::Idle)), ..sample() };
        let daemons = [
            daemon(&at("site-a.sock"), line(&sample()), 2),
            daemon(&at("site-b.sock"), line(&down), 2),
        ];
        drop(UnixListener::bind(at("killed.sock")).unwrap());
        let sockets = live_sockets(directory.path());
        assert_eq!(shown(&sockets), (Exit::Down, line(&sample()) + &line(&down)));
        daemons.into_iter().for_each(|daemon| daemon.join().unwrap());
    }

    #[test]
    fn exit_codes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("site-a.sock");
        assert_eq!(shown(&[]).0, Exit::Unknown);
        assert_eq!(shown(std::slice::from_ref(&path)).0, Exit::Unknown);
        let later = line(&sample()).replace("\"up\"", "\"asleep\"");
        for (answer, expected) in [
            (line(&sample()), Exit::Success),
            (line(&Status { state: State(Some(Kind::Degraded)), ..sample() }), Exit::Success),
            (line(&Status { state: State(Some(Kind::Down)), ..sample() }), Exit::Down),
            (later, Exit::Down),
            ("{\"schema\":3,\"error\":\"no\"}\n".to_owned(), Exit::Unknown),
            ("nonsense\n".to_owned(), Exit::Unknown),
            (String::new(), Exit::Unknown),
        ] {
            let daemon = daemon(&path, answer, 1);
            assert_eq!(shown(std::slice::from_ref(&path)).0, expected);
            daemon.join().unwrap();
            fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn what_a_socket_answers_is_shown_and_not_obeyed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("site-a.sock");
        let hint = Some("\x1b[2J\u{202e}\nsite-a  UP".to_owned());
        let name = "\x1b[2J".to_owned();
        let status = Status { hint: hint.clone(), name, ..sample() };
        for form in [Form::Text, Form::Json, Form::PathMtu] {
            let daemon = daemon(&path, line(&status), 1);
            let mut out = Vec::new();
            show(std::slice::from_ref(&path), form, &mut out).unwrap();
            let out = String::from_utf8(out).unwrap();
            assert!(!out.contains(|c| terminal::is_unfit(c) && c != '\n'), "{out:?}");
            match form {
                Form::Json => {
                    let read: Status = serde_json::from_str(&out).unwrap();
                    assert_eq!(read.hint, hint);
                }
                Form::Text => assert!(out.contains(r"\u{1b}[2J\u{202e}\nsite-a  UP"), "{out}"),
                Form::PathMtu => assert!(out.contains(r"\u{1b}[2J"), "{out}"),
            }
            daemon.join().unwrap();
            fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn what_went_wrong_is_said() {
        let error = ask(Path::new("/nowhere/site-a.sock")).unwrap_err();
        let expected = "nobody answers at /nowhere/site-a.sock: that tunnel does not run, or its configuration \
                    names another `control`: give that path";
        assert_eq!(error.to_string(), expected);
    }
}
