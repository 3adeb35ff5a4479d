//! Processes beside vpnd, each for one task that remains when vpnd was killed or has ended. Each process is
//! vpnd executed again before the privileges are dropped. It is not a fork, so it has no key in its memory. It
//! has two descriptors: one end of a socket, which shows when vpnd has ended, and the object to work on.

use std::ffi::CStr;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use nix::unistd::setsid;

use crate::account::Account;
use crate::{hooks, privilege};

/// How long to wait for a helper to end, or to read a message.
const PATIENCE: Duration = Duration::from_secs(5);

/// vpnd's end of the connection to a helper. Dropping it asks the helper to end.
pub(crate) struct Helper {
    /// The helper's subcommand.
    word: &'static str,
    /// `None` once the helper continues without vpnd.
    process: Option<Child>,
    /// The helper's end is closed when the helper ends.
    socket: UnixStream,
}

/// The arguments of a helper's subcommand: the user that it runs as.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct RunAs {
    uid: Option<u32>,
    gid: Option<u32>,
}

impl RunAs {
    /// The user, if the arguments contain one.
    pub(crate) fn account(self) -> Option<Account> {
        let (uid, gid) = self.uid.zip(self.gid)?;
        Some(Account { name: uid.to_string(), uid, gid })
    }
}

impl Helper {
    /// Starts the subcommand `word` as `user`; `held` is the descriptor of the object to work on.
    ///
    /// # Errors
    ///
    /// If this process cannot execute itself.
    pub(crate) fn start(
        word: &'static str,
        user: Option<&Account>,
        held: OwnedFd,
    ) -> io::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        let mut command = Command::new("/proc/self/exe");
        command.arg(word).env_clear().current_dir("/");
        if let Some(user) = user {
            command.args([user.uid, user.gid].map(|id| id.to_string()));
        }
        command.stdin(OwnedFd::from(theirs)).stdout(held).stderr(Stdio::null());
        Ok(Self { word, process: Some(command.spawn()?), socket })
    }

    /// Sends `text`, and lets the helper continue without vpnd.
    ///
    /// # Errors
    ///
    /// If the helper has ended or does not read.
    pub(crate) fn leave(mut self, text: &[u8]) -> io::Result<()> {
        self.socket.set_write_timeout(Some(PATIENCE))?;
        self.socket.write_all(text)?;
        self.socket.shutdown(Shutdown::Write)?;
        // The kernel gives the helper another parent.
        self.process = None;
        Ok(())
    }

    /// Closes the socket and waits until the helper has ended and has closed its descriptor.
    fn end(&self, mut process: Child) -> io::Result<()> {
        // If this fails, the read also fails.
        let _closed = self.socket.shutdown(Shutdown::Write);
        self.socket.set_read_timeout(Some(PATIENCE))?;
        let _end_of_file = (&self.socket).read(&mut [0])?;
        process.wait().map(drop)
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let ended = self.process.take().map(|process| self.end(process));
        if let Some(Err(error)) = ended {
            tracing::warn!("the helper process {} does not end: {error}", self.word);
        }
    }
}

/// The first steps of a helper: it checks that vpnd started it, and leaves vpnd's session and priority.
///
/// # Errors
///
/// If another program started it.
pub(crate) fn begin(name: &CStr) -> anyhow::Result<()> {
    hooks::isolate(name).context("vpnd starts this subcommand itself, and nobody else can")?;
    // A terminal that is closed must not end the helper.
    setsid().context("cannot leave the session")?;
    // A helper handles no packets.
    privilege::yield_to_others();
    Ok(())
}
