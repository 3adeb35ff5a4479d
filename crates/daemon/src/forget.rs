//! `forget`: makes running tunnels drop their session keys, before the host is suspended.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Args;

use crate::ask::{SOCKETS, ask, socket};
use crate::control::Ask;
use crate::exit::Exit;
use crate::show_status::live_sockets;
use crate::terminal::Printable;

/// Options of `forget`.
#[derive(Debug, Args)]
pub(crate) struct ForgetOptions {
    /// The tunnel, or the path of its control socket [default: every tunnel that runs]
    pub(crate) name: Option<String>,
}

/// Asks one tunnel, or all that run. A tunnel that does not answer keeps no other one from forgetting. If no tunnel runs,
/// there is nothing to forget.
pub(crate) fn run(options: &ForgetOptions) -> anyhow::Result<ExitCode> {
    if let Some(name) = &options.name {
        ask(&socket(name), &Ask::new("forget"))?;
        return Ok(Exit::Success.into());
    }
    let mut worst = Exit::Success;
    for path in live_sockets(Path::new(SOCKETS)) {
        if let Err(error) = ask(&path, &Ask::new("forget")) {
            writeln!(io::stderr(), "vpnd: {}", Printable(&error))?;
            worst = error.exit();
        }
    }
    Ok(worst.into())
}
