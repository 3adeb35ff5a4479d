//! The process that runs commands: vpnd, executed once more before it has opened or given up anything,
//! so that it holds none of vpnd's keys and keeps the privileges that vpnd was started with. It reads
//! a plan from its standard input, then runs of that plan what it is told to, one command at a time.
//! When vpnd is gone it kills what runs, and ends.

use std::ffi::CStr;
use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;

use anyhow::{Context, bail};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use tokio::net::UnixStream;

use super::exec::execute;
use super::talk::{Order, Report, both};
use crate::exit::Exit;
use crate::privilege;

/// The subcommand that nobody types.
pub(crate) const WORD: &str = "hook-runner";

/// Runs until vpnd is gone.
///
/// # Errors
///
/// If vpnd did not start it.
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

/// Leaves behind what vpnd's own parent may have handed down. What asks vpnd to end goes to the runner
/// too, where a whole group or service is meant; but commands are still to come.
fn begin() -> io::Result<()> {
    stand_apart(c"vpnd-hooks")?;
    // Whoever started vpnd may have put it before other programs, for its packets; hooks move none.
    privilege::yield_to_others();
    Ok(())
}

/// What a process of vpnd's begins with whose standard input is a socket from there: it has nothing else of
/// vpnd's parent, hears no signal but that of its own children, and has a name.
///
/// # Errors
///
/// If there is no such socket.
pub(crate) fn stand_apart(name: &CStr) -> io::Result<()> {
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
    // SAFETY: the call takes three numbers, and no descriptor from `first` on has an owner here: the
    // process has only begun.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    if closed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Runs what it is told to until there is nobody to tell.
async fn serve(socket: UnixStream) -> anyhow::Result<()> {
    let (mut heard, mut way) = both(socket);
    let Some(plan) = heard.plan().await? else { return Ok(()) };
    while let Some(order) = heard.next::<Order>().await? {
        let Some(planned) = plan.at(order.moment).get(order.index) else {
            bail!("the plan has no command {} of {}", order.index, order.moment.word());
        };
        if let Some(name) = order.changed.device.as_ref().filter(|name| !is_device_name(name)) {
            bail!("{name:?} is the name of no device");
        }
        let argv = order.changed.device.as_ref().map(|name| planned.with_device(name));
        let argv = argv.as_ref().unwrap_or(planned);
        let environment = plan.environment.iter().cloned().chain(of_the_moment(&order));
        let end = tokio::select! {
            end = execute(argv, environment, plan.limit, &mut way) => end?,
            // Until it has the answer vpnd says nothing, so this is its end.
            _gone = heard.next::<Order>() => return Ok(()),
        };
        way.say(&Report::Ended(end)).await?;
    }
    Ok(())
}

fn of_the_moment(order: &Order) -> Vec<(String, String)> {
    let endpoint = order.endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default();
    let device = order.changed.device.iter().map(|name| ("VPND_DEVICE".to_owned(), name.clone()));
    let mtu = order.changed.mtu.iter().map(|mtu| ("VPND_MTU".to_owned(), mtu.to_string()));
    let told = [
        ("VPND_HOOK".to_owned(), order.moment.word().to_owned()),
        ("VPND_ENDPOINT".to_owned(), endpoint),
    ];
    told.into_iter().chain(device).chain(mtu).collect()
}

/// Whether the kernel lets a device have this name, and a program does not take it for an option.
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

    /// A runner in this process.
    pub(crate) fn pretend(socket: UnixStream) {
        tokio::spawn(async { serve(socket).await.unwrap() });
    }
}
