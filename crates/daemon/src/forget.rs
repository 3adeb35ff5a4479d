//! `forget`: makes running tunnels drop their session keys, before the host is suspended.

use std::io::{self, Write};
use std::panic::resume_unwind;
use std::path::Path;
use std::process::ExitCode;
use std::thread;

use anyhow::Context;
use clap::Args;

use crate::ask::{AskError, SOCKETS, ask, socket};
use crate::control::Ask;
use crate::exit::Exit;
use crate::show_status::{is_dead, sockets};
use crate::terminal::Printable;

/// Options of `forget`.
#[derive(Debug, Args)]
pub(crate) struct ForgetOptions {
    /// The tunnel, or the path of its control socket [default: every tunnel that runs]
    pub(crate) name: Option<String>,
}

/// Asks one tunnel, or all that run. If no tunnel runs, there is nothing to forget.
pub(crate) fn run(options: &ForgetOptions) -> anyhow::Result<ExitCode> {
    if let Some(name) = &options.name {
        forget(&socket(name))?;
        return Ok(Exit::Success.into());
    }
    let mut worst = Exit::Success;
    for error in forget_all(Path::new(SOCKETS))? {
        writeln!(io::stderr(), "vpnd: {}", Printable(&error))?;
        worst = error.exit();
    }
    Ok(worst.into())
}

fn forget(path: &Path) -> Result<(), AskError> {
    ask(path, &Ask::new("forget")).map(drop)
}

fn forget_if_runs(path: &Path) -> Result<(), AskError> {
    if is_dead(path) { Ok(()) } else { forget(path) }
}

/// Asks all tunnels that run, at the same time: one that hangs takes no time from the others. Returns what has failed.
fn forget_all(directory: &Path) -> anyhow::Result<Vec<AskError>> {
    let sockets = sockets(directory);
    thread::scope(|scope| {
        let asked: io::Result<Vec<_>> = sockets
            .iter()
            .map(|path| thread::Builder::new().spawn_scoped(scope, || forget_if_runs(path)))
            .collect();
        let asked = asked.context("cannot ask all tunnels: no thread can be started")?;
        let results = asked.into_iter().map(|one| one.join().unwrap_or_else(|p| resume_unwind(p)));
        Ok(results.filter_map(Result::err).collect())
    })
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;
    use std::sync::{Arc, Barrier};

    use super::*;

    /// A tunnel that answers when `all` were asked.
    fn tunnel(directory: &Path, name: &str, all: &Arc<Barrier>) -> thread::JoinHandle<()> {
        let listener = UnixListener::bind(directory.join(name)).unwrap();
        let all = Arc::clone(all);
        thread::spawn(move || {
            let asked = |client: &std::os::unix::net::UnixStream| {
                let mut line = String::new();
                BufReader::new(client).read_line(&mut line).unwrap();
                line.contains("forget")
            };
            // Who only looks whether somebody is there says nothing.
            let client = listener.incoming().map(Result::unwrap).find(asked);
            all.wait();
            client.unwrap().write_all(b"{\"schema\":3,\"ok\":true}\n").unwrap();
        })
    }

    #[test]
    fn all_are_asked_at_the_same_time_and_who_is_gone_has_nothing_to_forget() {
        let directory = tempfile::tempdir().unwrap();
        drop(UnixListener::bind(directory.path().join("b.sock")).unwrap());
        let all = Arc::new(Barrier::new(2));
        let tunnels = ["a.sock", "c.sock"].map(|name| tunnel(directory.path(), name, &all));
        let failed = forget_all(directory.path()).unwrap();
        assert!(failed.is_empty(), "{failed:?}");
        tunnels.into_iter().for_each(|tunnel| tunnel.join().unwrap());
    }

    #[test]
    fn a_tunnel_that_hangs_is_reported() {
        let directory = tempfile::tempdir().unwrap();
        let _hangs = UnixListener::bind(directory.path().join("a.sock")).unwrap();
        let failed = forget_all(directory.path()).unwrap();
        assert!(matches!(failed[..], [AskError::Silent(_)]), "{failed:?}");
    }
}
