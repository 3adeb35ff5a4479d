//! The exit codes of `vpnd`, in one place. A code of `sysexits.h` is used if one fits.

use std::process::ExitCode;

/// The result of a command, for scripts and systemd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// The command succeeded.
    Success = 0,
    /// The command failed while it was running; `check --online`, `doctor`: something was found.
    Failure = 1,
    /// The command line is wrong.
    Usage = 2,
    /// `status`, `wait`: the tunnel is in no state in which packets get through.
    Down = 3,
    /// `status`, `doctor`, `wait`, `ping`, `reload`, `rotate`: no vpnd answers for this tunnel.
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
