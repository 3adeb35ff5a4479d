//! Leaves a persistent device in the state that the next program expects: without the offloads that vpnd
//! requested. The kernel keeps the offloads with the device, and the next program would get super-packets.
//!
//! A vpnd that was killed cannot do that, so a second process, the caretaker, waits until vpnd has ended. The
//! caretaker runs as the same user, without keys and capabilities. It has only a descriptor of the device and
//! one end of a socket.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::process::ExitCode;

use anyhow::Context;

use crate::config::Config;
use crate::exit::Exit;
use crate::helper::{self, Helper, RunAs};
use crate::privilege;

/// The internal subcommand.
pub(crate) const WORD: &str = "device-caretaker";

/// Tells the caretaker that another process continues with the device.
const HANDED_ON: &[u8] = b"handed on";

/// vpnd's use of a persistent device. Dropping this value releases the device.
pub(crate) struct Tenancy {
    device: vpnd_tun::Queue,
    /// Dropping it also ends the caretaker, so that no process is attached to the device when the next program
    /// opens it.
    caretaker: Option<Helper>,
}

impl Tenancy {
    /// Starts the caretaker of a persistent device. Call this before the privileges are dropped, because vpnd
    /// may be unable to execute itself afterwards.
    pub(crate) fn begin(config: &Config, device: &vpnd_tun::Device) -> Option<Self> {
        if !device.adopted && !config.interface.persist {
            return None;
        }
        let queue = &device.queues[0];
        // Without offloads the caretaker has nothing to reset.
        let caretaker = config.path.offload.then(|| {
            let device = queue.as_fd().try_clone_to_owned()?;
            Helper::start(WORD, config.service.user.as_ref(), device)
        });
        let caretaker = caretaker.transpose().unwrap_or_else(|error| {
            tracing::warn!(
                "cannot start the helper process {WORD}: {error}; if vpnd is killed, {} keeps its \
                 offloads until vpnd has run again",
                device.name
            );
            None
        });
        Some(Self { device: queue.clone(), caretaker })
    }
}

impl Tenancy {
    /// Another process continues with the device as it is.
    pub(crate) fn hand_on(self) {
        let Self { device: _device, caretaker } = &mut *std::mem::ManuallyDrop::new(self);
        let left = caretaker.take().map(|caretaker| caretaker.leave(HANDED_ON));
        if let Some(Err(error)) = left {
            tracing::debug!(%error, "the helper process {WORD} may take the offloads from the next process");
        }
    }
}

impl Drop for Tenancy {
    fn drop(&mut self) {
        // A device that was deleted does not need to be released.
        if let Err(error) = vpnd_tun::release(&self.device) {
            tracing::debug!(%error, "the device keeps its offloads");
        }
    }
}

/// Runs the caretaker: waits until vpnd has ended, and releases the device.
///
/// # Errors
///
/// If vpnd did not start this process.
pub(crate) fn care(user: RunAs) -> anyhow::Result<ExitCode> {
    helper::begin(c"vpnd-device")?;
    privilege::drop_all(user.account().as_ref())?;
    let mut told = Vec::new();
    io::stdin().read_to_end(&mut told)?;
    if told == HANDED_ON {
        return Ok(Exit::Success.into());
    }
    vpnd_tun::release(io::stdout()).context("the device keeps its offloads")?;
    Ok(Exit::Success.into())
}
