//! Debian's routing daemon, BIRD 2, running in a host.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use crate::{Host, Process, binaries};

/// A running `bird`; it ends when dropped.
#[derive(Debug)]
pub struct Bird {
    host: Host,
    socket: PathBuf,
    process: Process,
}

impl Bird {
    /// Starts it with this configuration; its log goes to standard error.
    ///
    /// # Errors
    /// When it is not installed, or its files cannot be written.
    pub fn start(host: &Host, config: &str) -> Result<Self> {
        let (file, socket) =
            (host.directory().join("bird.conf"), host.directory().join("bird.ctl"));
        fs::write(&file, format!("log stderr all;\n{config}"))?;
        let mut command = host.command(binaries::installed("bird")?);
        command.arg("-f").arg("-c").arg(&file).arg("-s").arg(&socket);
        command.arg("-P").arg(host.directory().join("bird.pid"));
        let process = host.spawn("bird", command)?;
        Ok(Self { host: host.clone(), socket, process })
    }

    /// The output of `birdc` for this line.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn ask(&self, line: &str) -> Result<String> {
        self.host.run(&format!("birdc -s {} {line}", self.socket.display()))
    }

    /// Everything it logged.
    pub fn log(&self) -> String {
        self.process.log()
    }
}
