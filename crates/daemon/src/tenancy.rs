//! A device that outlives vpnd is left as the next program expects it: without the offloads that vpnd asked
//! for, which the kernel keeps with the device and which would hand that program super-packets.
//!
//! Whoever is killed cannot do that, so a second process waits for vpnd's end: vpnd, executed once more. It
//! holds no key and no privilege, only a descriptor of the device and one end of a socket, and ends when vpnd
//! does.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::Context;

use crate::config::Config;
use crate::exit::Exit;
use crate::{hooks, privilege};

/// The subcommand that nobody types.
pub(crate) const WORD: &str = "device-caretaker";

/// How long the caretaker's end is waited for.
const FAREWELL: Duration = Duration::from_secs(5);

/// The time for which a device that stays is vpnd's. It ends when this is dropped.
pub(crate) struct Tenancy {
    device: vpnd_tun::Queue,
    caretaker: Option<Caretaker>,
}

struct Caretaker {
    process: Child,
    /// Whose other end is closed when the process ends.
    socket: UnixStream,
}

impl Tenancy {
    /// Begins, for a device that stays. Belongs before the privileges are dropped: with them goes the right to
    /// execute ourselves.
    pub(crate) fn begin(config: &Config, device: &vpnd_tun::Device) -> Option<Self> {
        if !device.adopted && !config.interface.persist {
            return None;
        }
        let queue = &device.queues[0];
        // Nothing is left behind where nothing was asked for.
        let caretaker = config.path.offload.then(|| Caretaker::start(queue));
        let caretaker = caretaker.transpose().unwrap_or_else(|error| {
            tracing::warn!(
                "cannot start a process beside vpnd: {error}; if vpnd is killed, {} keeps its \
                 offloads until vpnd has run again",
                device.name
            );
            None
        });
        Some(Self { device: queue.clone(), caretaker })
    }
}

impl Drop for Tenancy {
    fn drop(&mut self) {
        // Of a device that was deleted nothing is left.
        if let Err(error) = vpnd_tun::release(&self.device) {
            tracing::debug!(%error, "the device keeps its offloads");
        }
        if let Some(caretaker) = self.caretaker.take() {
            caretaker.end();
        }
    }
}

impl Caretaker {
    fn start(device: &vpnd_tun::Queue) -> io::Result<Self> {
        let device = device.as_fd().try_clone_to_owned()?;
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = Command::new("/proc/self/exe");
        command.arg(WORD).env_clear().current_dir("/").process_group(0);
        command.stdin(OwnedFd::from(theirs)).stdout(device).stderr(Stdio::null());
        Ok(Self { process: command.spawn()?, socket: ours })
    }

    /// Lets it end, and waits for that: the next program finds a device that nobody holds.
    fn end(mut self) {
        // What fails here shows in the next line at the latest.
        let _told = self.socket.shutdown(Shutdown::Write);
        let limited = self.socket.set_read_timeout(Some(FAREWELL));
        let ended = limited.and_then(|()| self.socket.read(&mut [0]));
        match ended.and_then(|_closed| self.process.wait()) {
            Ok(_) => {}
            Err(error) => tracing::warn!("the device's caretaker does not end: {error}"),
        }
    }
}

/// The caretaker: waits until vpnd is gone, and releases the device.
///
/// # Errors
///
/// If vpnd did not start it.
pub(crate) fn care() -> anyhow::Result<ExitCode> {
    hooks::stand_apart(c"vpnd-device")
        .context("the caretaker is started by vpnd itself, and by nobody else")?;
    privilege::drop_all()?;
    let mut told = [0];
    while io::stdin().read(&mut told)? > 0 {}
    vpnd_tun::release(io::stdout()).context("the device keeps its offloads")?;
    Ok(Exit::Success.into())
}
