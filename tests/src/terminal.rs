//! A terminal, for programs that show a page: a pseudoterminal and what the program has written to it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, ensure};
use nix::pty::{Winsize, openpty};

use crate::{Host, Process};

/// A terminal and the program in it.
pub struct Terminal {
    host: Host,
    master: File,
    slave: OwnedFd,
    written: Arc<Mutex<Vec<u8>>>,
    /// The program.
    pub process: Process,
}

impl Terminal {
    /// Runs a program with arguments as the foreground of a terminal of this size.
    ///
    /// # Errors
    /// If the terminal cannot be made, or the program not started.
    pub fn run(host: &Host, columns: u16, lines: u16, words: &[&str]) -> Result<Self> {
        let size = Winsize { ws_row: lines, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None)?;
        // A session of its own, with this terminal: so Ctrl-C and changes of the size are its signals.
        let mut command = host.command("setsid");
        command.args(["--ctty", "--wait"]).args(words).stdin(pty.slave.try_clone()?);
        let process = host.spawn_writing_to("terminal", command, &pty.slave)?;
        let master = File::from(pty.master);
        let written = Arc::new(Mutex::new(Vec::new()));
        collect(master.try_clone()?, Arc::clone(&written));
        Ok(Self { host: host.clone(), master, slave: pty.slave, written, process })
    }

    /// All that was written so far.
    pub fn written(&self) -> String {
        let bytes = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The last complete page: the lines since the cursor was last at the first one, without escape sequences.
    pub fn page(&self) -> Option<Vec<String>> {
        let written = self.written();
        let complete = written.rsplit_once("\x1b[J")?.0;
        let page = complete.rsplit_once("\x1b[H")?.1;
        // The terminal puts a carriage return before each line feed, also behind the program's own.
        let lines = page.split("\r\n").map(|line| line.replace("\x1b[K", ""));
        Some(lines.map(|line| line.trim_end_matches('\r').to_owned()).collect())
    }

    /// Presses keys.
    ///
    /// # Errors
    /// If the terminal is gone.
    pub fn press(&mut self, keys: &str) -> Result<()> {
        Ok(self.master.write_all(keys.as_bytes())?)
    }

    /// Changes the size.
    ///
    /// # Errors
    /// If `stty` fails.
    pub fn resize(&self, columns: u16, lines: u16) -> Result<()> {
        let mut command: Command = self.host.command("stty");
        command.args(["cols", &columns.to_string(), "rows", &lines.to_string()]);
        let status = command.stdin(self.slave.try_clone()?).status().context("cannot run stty")?;
        ensure!(status.success(), "stty: {status}");
        Ok(())
    }
}

/// Reads on a thread of its own, until the terminal is gone.
fn collect(mut master: File, into: Arc<Mutex<Vec<u8>>>) {
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(len @ 1..) = master.read(&mut buffer) {
            into.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..len]);
        }
    });
}
