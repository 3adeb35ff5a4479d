//! `vpnd status --watch`: the tunnels' state, rates and losses as they change, until Ctrl-C.

mod history;
mod page;
mod screen;

use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::ask::{AskError, SOCKETS, socket};
use crate::exit::Exit;
use crate::interrupt::{Interrupt, Woken};
use crate::show_status::{ask, live_sockets};

use history::History;
use screen::Screen;

/// How often the page is renewed.
const PERIOD: Duration = Duration::from_secs(1);

/// Shows one tunnel, or all that run. The exit code is 0 when the user ends it, or nobody reads any more.
pub(crate) fn run(name: Option<&str>) -> anyhow::Result<ExitCode> {
    match watch(name.map(socket).as_deref()) {
        Ok(()) => Ok(Exit::Success.into()),
        Err(error) if is_broken_pipe(&error) => Ok(Exit::Success.into()),
        Err(error) => Err(error),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    // A terminal that was closed gives EIO.
    let gone = |error: &io::Error| {
        error.kind() == ErrorKind::BrokenPipe || error.raw_os_error() == Some(libc::EIO)
    };
    error.downcast_ref::<io::Error>().is_some_and(gone)
}

fn watch(wanted: Option<&Path>) -> anyhow::Result<()> {
    let interrupt = Interrupt::new()?;
    let mut history = History::default();
    // Before the screen is changed: what is wrong now is told like any other error.
    look(&mut history, wanted)?;
    let mut screen = Screen::begin(io::stdout())?;
    loop {
        let next = Instant::now() + PERIOD;
        draw(&mut screen, &history)?;
        loop {
            match interrupt.until(next)? {
                Woken::Ended => return Ok(()),
                Woken::Resized => draw(&mut screen, &history)?,
                Woken::Due | Woken::Readable => break,
            }
        }
        look(&mut history, wanted)?;
    }
}

/// Asks all tunnels. A tunnel that does not run, or not yet, is shown as such.
fn look(history: &mut History, wanted: Option<&Path>) -> Result<(), AskError> {
    let sockets = match wanted {
        Some(path) => vec![path.to_owned()],
        None => with_former(live_sockets(Path::new(SOCKETS)), history),
    };
    for path in sockets {
        match ask(&path) {
            Ok((_, status)) => history.seen(&path, Instant::now(), status),
            Err(error @ (AskError::Permission(_) | AskError::Shape { .. })) => return Err(error),
            Err(error) => history.missed(&path, Instant::now(), &error),
        }
    }
    Ok(())
}

/// A tunnel that has ended is shown on.
fn with_former(mut sockets: Vec<PathBuf>, history: &History) -> Vec<PathBuf> {
    sockets.extend(history.paths().map(Path::to_owned));
    sockets.sort();
    sockets.dedup();
    sockets
}

fn draw(screen: &mut Screen<impl Write>, history: &History) -> io::Result<()> {
    screen.show(&page::lines(history, Instant::now()))
}
