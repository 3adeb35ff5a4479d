//! `vpnd-wg`: takes the place of `wireguard-go`, with its command line and environment, so that
//! `WG_QUICK_USERSPACE_IMPLEMENTATION=vpnd-wg wg-quick up wg0` makes a tunnel of vpnd. It makes the device and the
//! WireGuard socket, and waits until `wg` has set a private key and one peer. Then it runs the tunnel. Addresses and
//! routes are those of `wg-quick`, whose deletion of the device ends it.

mod inherit;

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::Context;
use clap::Args;
use nix::unistd::setsid;
use tracing::level_filters::LevelFilter;
use vpnd_tun::{Adopt, Device, Mode, Options, Owner};

use crate::config::LogFormat;
use crate::exit::Exit;
use crate::logging;
use crate::run::{self, RunError};
use crate::shell::ShellError;
use crate::socket_file::{self, OWNER_ONLY};
use crate::{opening, privilege, uapi};

use inherit::{TUN, UAPI};

/// The internal subcommand.
pub(crate) const WORD: &str = "wireguard-go-compat";
/// The name of the link to `vpnd` that stands for the subcommand.
const LINK: &str = "vpnd-wg";
/// Makes `wireguard-go` stay in the foreground if it is 1.
const FOREGROUND: &str = "WG_PROCESS_FOREGROUND";

/// `wireguard-go`'s command line.
#[derive(Clone, Debug, Args)]
pub(crate) struct CompatOptions {
    /// Stays in the foreground
    #[arg(short, long)]
    pub(crate) foreground: bool,
    /// The device to make
    pub(crate) device: String,
}

/// The command line of this process. If it was started by the name of the link, the subcommand is added.
pub(crate) fn command_line(mut words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let program = words.next().unwrap_or_default();
    let is_link = Path::new(&program).file_name().is_some_and(is_link);
    let rest: Vec<_> = words.collect();
    // `wireguard-go --version` takes no device.
    let takes_over = is_link && rest.first().is_none_or(|word| word != "--version");
    let word = takes_over.then(|| OsString::from(WORD));
    [program].into_iter().chain(word).chain(rest).collect()
}

fn is_link(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.ends_with(LINK))
}

/// Takes `wireguard-go`'s place: goes to the background, unless told otherwise.
///
/// # Errors
///
/// If the device or its socket cannot be made, or the tunnel cannot start.
pub(crate) fn run(options: &CompatOptions) -> anyhow::Result<ExitCode> {
    logging::init_fixed(level(env::var("LOG_LEVEL").ok().as_deref()), LogFormat::Auto);
    if options.foreground || env::var_os(FOREGROUND).is_some_and(|value| value == "1") {
        serve(options)
    } else {
        background(options)
    }
}

/// `wireguard-go`'s words; without one, what vpnd logs by default.
fn level(word: Option<&str>) -> LevelFilter {
    match word {
        Some("verbose" | "debug") => LevelFilter::DEBUG,
        Some("error") => LevelFilter::ERROR,
        Some("silent") => LevelFilter::OFF,
        _ => LevelFilter::INFO,
    }
}

/// Makes the device and the socket, so that `wg` finds them as soon as this returns, and starts this program again in
/// the background, which inherits both.
fn background(options: &CompatOptions) -> anyhow::Result<ExitCode> {
    let device = device(&options.device)?;
    let socket = socket(&device.name)?;
    let mut command = Command::new("/proc/self/exe");
    command.args([WORD, "--foreground", &device.name]).stdin(Stdio::null());
    if !is_logged() {
        // Whoever reads the output of `wg-quick` would wait for the end of the tunnel.
        command.stdout(Stdio::null()).stderr(Stdio::null());
    }
    inherit::hand_down(&mut command, TUN, &device.queues[0])?;
    inherit::hand_down(&mut command, UAPI, &socket)?;
    command.spawn().context("cannot start vpnd again in the background")?;
    Ok(Exit::Success.into())
}

/// Whether there is a log in the background: `wireguard-go`'s variable asks for it, or the journal takes it.
fn is_logged() -> bool {
    let asked = env::var("LOG_LEVEL").is_ok_and(|word| word != "silent");
    asked || logging::to_journal()
}

fn serve(options: &CompatOptions) -> anyhow::Result<ExitCode> {
    // Before there is a key in it.
    privilege::protect_memory();
    let socket = inherit::take(UAPI)?;
    if socket.is_some() {
        // A terminal that is closed must not end the tunnel. This fails in a session of our own, which is as good.
        let _session = setsid();
    }
    let device = device(&options.device)?;
    let socket = match socket {
        Some(socket) => socket,
        None => self::socket(&device.name)?,
    };
    match run::run_given(device, socket) {
        Err(RunError::Plane(ShellError::DeviceGone { name })) => {
            tracing::info!("{name} was deleted: the tunnel ends");
            Ok(Exit::Success.into())
        }
        done => done.map(|()| Exit::Success.into()).map_err(Into::into),
    }
}

fn socket(device: &str) -> anyhow::Result<OwnedFd> {
    Ok(socket_file::bind_for_another(&uapi::path_of(device), OWNER_ONLY)?.into())
}

/// The device: made anew, or the one of an inherited descriptor.
fn device(name: &str) -> anyhow::Result<Device> {
    let options = |name: &str, adopt| Options {
        name: Some(name.to_owned()),
        mode: Mode::Tun,
        offload: true,
        queues: 1,
        adopt,
        owner: Owner::default(),
    };
    match inherit::take(TUN)? {
        None => Ok(vpnd_tun::open(&options(name, Adopt::Auto))?),
        Some(held) => {
            let taken = vpnd_tun::Taken::from(held)?;
            let options = options(taken.name(), Adopt::Require);
            let opened = opening::patiently(|| vpnd_tun::open(&options));
            Ok(taken.opened(opened)?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_link_is_the_subcommand() {
        let line = |words: &[&str]| command_line(words.iter().map(OsString::from));
        assert_eq!(line(&["/usr/bin/vpnd-wg", "wg0"]), ["/usr/bin/vpnd-wg", WORD, "wg0"]);
        assert_eq!(line(&["vpnd-wg", "-f", "wg0"]), ["vpnd-wg", WORD, "-f", "wg0"]);
        assert_eq!(line(&["vpnd-wg", "--version"]), ["vpnd-wg", "--version"]);
        assert_eq!(line(&["/opt/vpnd", "status"]), ["/opt/vpnd", "status"]);
        assert_eq!(line(&[]), [""]);
    }

    #[test]
    fn the_words_of_wireguard_go() {
        assert_eq!(level(Some("verbose")), LevelFilter::DEBUG);
        assert_eq!(level(Some("silent")), LevelFilter::OFF);
        assert_eq!(level(None), LevelFilter::INFO);
    }
}
