//! The process that runs commands: vpnd, executed again before it has opened anything or dropped any privilege.
//! So the runner has none of vpnd's keys, and keeps the privileges that vpnd was started with. It reads a plan
//! from its standard input, and then runs commands of that plan on request, one at a time. When vpnd has ended,
//! it kills the running command and ends.

use std::ffi::CStr;
use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;

use anyhow::{Context, bail};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use tokio::net::UnixStream;

use super::exec::execute;
use super::talk::{Order, Report, split};
use crate::exit::Exit;
use crate::privilege;

/// The internal subcommand.
pub(crate) const WORD: &str = "hook-runner";

/// Runs commands until vpnd has ended.
///
/// # Errors
///
/// If vpnd did not start this process, or reading and writing fails.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    begin().context("the hook runner is started by vpnd itself, and by nobody else")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    runtime.block_on(async {
        let socket = std::os::unix::net::UnixStream::from(socket);
        socket.set_nonblocking(true)?;
        serve(UnixStream::from_std(socket)?).await
    })?;
    Ok(Exit::Success.into())
}

/// Drops everything that was inherited from vpnd's parent. Signals are blocked: a signal that asks vpnd to end
/// may be sent to the whole group or service, but the runner still has commands to run.
fn begin() -> io::Result<()> {
    isolate(c"vpnd-hooks")?;
    // vpnd may have been started with a high priority for its packets; hooks do not need it.
    privilege::yield_to_others();
    Ok(())
}

/// The first steps of a process that vpnd starts with a socket as its standard input. It closes all descriptors
/// that were inherited from vpnd's parent, blocks every signal except SIGCHLD, and gets a name.
///
/// # Errors
///
/// If there is no such socket.
pub(crate) fn isolate(name: &CStr) -> io::Result<()> {
    nix::sys::socket::getsockname::<nix::sys::socket::UnixAddr>(0)?;
    close_from(3)?;
    let mut signals = SigSet::all();
    signals.remove(Signal::SIGCHLD);
    signals.thread_block()?;
    prctl::set_name(name)?;
    Ok(())
}

/// Closes every descriptor from `first` on.
fn close_from(first: libc::c_uint) -> io::Result<()> {
    // SAFETY: the call takes three numbers, and no value owns a descriptor from `first` on, because the
    // process has only begun.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    if closed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Runs the requested commands until vpnd has closed its end.
async fn serve(socket: UnixStream) -> anyhow::Result<()> {
    let (mut receiver, mut sender) = split(socket);
    let Some(plan) = receiver.plan().await? else { return Ok(()) };
    while let Some(order) = receiver.next::<Order>().await? {
        let Some(planned) = plan.at(order.event).get(order.index) else {
            bail!("the plan has no command {} of {}", order.index, order.event.word());
        };
        if let Some(name) = order.changed.device.as_ref().filter(|name| !is_device_name(name)) {
            bail!("{name:?} is the name of no device");
        }
        let argv = order.changed.device.as_ref().map(|name| planned.with_device(name));
        let argv = argv.as_ref().unwrap_or(planned);
        let environment = plan.environment.iter().cloned().chain(event_variables(&order));
        let end = tokio::select! {
            end = execute(argv, environment, plan.limit, &mut sender) => end?,
            // vpnd sends nothing before it has the result, so this can only mean that vpnd has ended.
            _gone = receiver.next::<Order>() => return Ok(()),
        };
        sender.send(&Report::Ended(end)).await?;
    }
    Ok(())
}

fn event_variables(order: &Order) -> Vec<(String, String)> {
    let endpoint = order.endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default();
    let device = order.changed.device.iter().map(|name| ("VPND_DEVICE".to_owned(), name.clone()));
    let mtu = order.changed.mtu.iter().map(|mtu| ("VPND_MTU".to_owned(), mtu.to_string()));
    let told = [
        ("VPND_HOOK".to_owned(), order.event.word().to_owned()),
        ("VPND_ENDPOINT".to_owned(), endpoint),
    ];
    told.into_iter().chain(device).chain(mtu).collect()
}

/// Whether the kernel allows this name for a device, and no program parses it as an option.
fn is_device_name(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_graphic() && !"/:".contains(c);
    (1..libc::IFNAMSIZ).contains(&name.len())
        && name.chars().all(is_plain)
        && !name.starts_with(['-', '.'])
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    #[test]
    fn a_device_is_not_named_like_an_option_or_a_path() {
        assert!(["tun0", "site-a.7", "abcdefghijklmno"].into_iter().all(is_device_name));
        for name in ["", "-x", "..", "a/b", "a b", "a:1", "abcdefghijklmnop", "t\nn"] {
            assert!(!is_device_name(name), "{name}");
        }
    }

    /// Runs a runner in this process.
    pub(crate) fn pretend(socket: UnixStream) {
        tokio::spawn(async { serve(socket).await.unwrap() });
    }
}
