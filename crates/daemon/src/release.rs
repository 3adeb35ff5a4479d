//! `release`: removes the kill switch of a tunnel that does not run, according to its journal.

use std::io;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use vpnd_device::Netlink;

use crate::ask::socket;
use crate::changes::JOURNAL;
use crate::exit::Exit;
use crate::{firewall, nft, terminal};

/// Options of `release`.
#[derive(Debug, Args)]
pub(crate) struct ReleaseOptions {
    /// The tunnel's name, or the path of its control socket
    pub(crate) name: String,
}

/// Removes the kill switch that a vpnd that no longer runs has left behind.
pub(crate) fn run(options: &ReleaseOptions) -> anyhow::Result<ExitCode> {
    let path = socket(&options.name).with_extension(JOURNAL);
    let tunnel = path.file_stem().unwrap_or_default().to_string_lossy();
    let usual = firewall::usual_table(&tunnel);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let released = runtime.block_on(async {
        let netlink = Netlink::connect()?;
        let released = netlink.release(&path, &usual, nft::delete).await;
        let released = match released {
            // Somebody has deleted the journal, but the table may still drop packets.
            Err(error) if error.kind() == io::ErrorKind::NotFound => match nft::delete(&usual)? {
                true => Ok(1),
                false => Err(error),
            },
            released => released,
        };
        released.with_context(|| format!("cannot release {}", path.display()))
    })?;
    if released == 0 {
        bail!("{} lists no kill switch of this network namespace", path.display());
    }
    terminal::print(format_args!(
        "removed {released} rules, routes and tables that dropped packets\n"
    ))?;
    Ok(Exit::Success.into())
}
