//! The exit codes of `vpnd`, in one place: `sysexits.h` where it has a word for it.

use std::process::ExitCode;

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
