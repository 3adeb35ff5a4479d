//! The exit codes of `vpnd`, in one place: `sysexits.h` where it has a word for it.

use std::io::{self, Write};
use std::process::ExitCode;

use crate::ask::AskError;
use crate::config::Report;
use crate::demo::DemoError;
use crate::log_output;
use crate::pair::PairError;
use crate::run::RunError;
use crate::terminal::PrintableLines;
use crate::tuntap::TuntapError;

/// How a command ended, as scripts and systemd see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// All went well.
    Success = 0,
    /// It failed while running.
    Failure = 1,
    /// The command line is wrong.
    Usage = 2,
    /// `status`: the tunnel is down.
    Down = 3,
    /// `status`, `reload`, `rotate`: nobody answers for that tunnel.
    Unknown = 4,
    /// No TUN device is to be had.
    Unavailable = 69,
    /// A privilege is missing.
    Permission = 77,
    /// The configuration or a key file is wrong.
    Config = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Says what went wrong on standard error, and which code says so too.
pub(crate) fn explain(error: &anyhow::Error) -> Exit {
    // Where standard error is closed or nobody reads it, there is only the code.
    if log_output::takes_last_words() {
        let _said = match error.downcast_ref::<Report>() {
            Some(report) => writeln!(io::stderr(), "{report}"),
            None => writeln!(io::stderr(), "vpnd: {}", PrintableLines(format_args!("{error:#}"))),
        };
    }
    code(error)
}

fn code(error: &anyhow::Error) -> Exit {
    if error.is::<Report>() {
        Exit::Config
    } else if let Some(error) = error.downcast_ref::<RunError>() {
        error.exit()
    } else if let Some(error) = error.downcast_ref::<PairError>() {
        error.exit()
    } else if let Some(error) = error.downcast_ref::<AskError>() {
        error.exit()
    } else if let Some(error) = error.downcast_ref::<DemoError>() {
        error.exit()
    } else if let Some(error) = error.downcast_ref::<TuntapError>() {
        error.exit()
    } else {
        Exit::Failure
    }
}
