//! Descriptors that one process leaves to the next, named in the environment as `wireguard-go` does.

use std::env;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::process::Command;

use anyhow::{Context, bail};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// The variable that names the descriptor of the device ...
pub(super) const TUN: &str = "WG_TUN_FD";
/// ... and of the socket.
pub(super) const UAPI: &str = "WG_UAPI_FD";

/// Makes `command` inherit `held`, named in `variable`. This process keeps it until it ends.
pub(super) fn hand_down(
    command: &mut Command,
    variable: &str,
    held: &impl AsFd,
) -> anyhow::Result<()> {
    let held = held.as_fd();
    set_inherited(held, true)?;
    command.env(variable, held.as_raw_fd().to_string());
    Ok(())
}

fn set_inherited(held: BorrowedFd<'_>, inherited: bool) -> anyhow::Result<()> {
    let flags = if inherited { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
    fcntl(held, FcntlArg::F_SETFD(flags)).context("cannot set the flags of a descriptor")?;
    Ok(())
}

/// The descriptor that `variable` names, if it is set. Processes that this one starts do not inherit it.
pub(super) fn take(variable: &str) -> anyhow::Result<Option<OwnedFd>> {
    let Some(value) = env::var_os(variable) else { return Ok(None) };
    let number = value.to_str().and_then(|text| text.parse::<RawFd>().ok());
    let Some(number) = number.filter(|number| *number > 2) else {
        bail!("{variable}={value:?} is no descriptor above 2");
    };
    // SAFETY: nothing in this process owns a descriptor that was inherited: it is taken before any other is opened,
    // and each variable once. The call below checks that it is open.
    let held = unsafe { OwnedFd::from_raw_fd(number) };
    match set_inherited(held.as_fd(), false) {
        Ok(()) => Ok(Some(held)),
        Err(error) => {
            // It is not open, so it must not be closed.
            std::mem::forget(held);
            Err(error.context(format!("{variable}={number} is not open")))
        }
    }
}
