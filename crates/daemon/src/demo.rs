//! `demo`: a tunnel at work between two network namespaces of this machine.

use std::process::ExitCode;

use clap::Args;

/// Options of `demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoOptions {}

/// Shows it.
pub(crate) fn run(_options: DemoOptions) -> anyhow::Result<ExitCode> {
    anyhow::bail!("this build has no demonstration")
}
