//! The exit codes of `vpnd`, in one place: those of `sysexits.h` where one fits.

use std::process::ExitCode;

/// The result of a command, as scripts and systemd see it.
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
    /// `status`, `reload`, `rotate`: no vpnd answers for that tunnel.
    Unknown = 4,
    /// No TUN device is available.
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
