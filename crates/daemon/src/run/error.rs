//! Why a tunnel does not run, with the exit code for each reason.

use std::io;

use thiserror::Error;
use vpnd_tun::{OpenError, PersistError};
use vpnd_tunnel::udp::BindError;

use crate::control::ControlError;
use crate::exit::Exit;
use crate::firewall::FirewallError;
use crate::hooks::HookError;
use crate::metrics::MetricsError;
use crate::netns::NetnsError;
use crate::privilege::PrivilegeError;
use crate::sandbox::SandboxError;
use crate::shell::ShellError;

/// Why a tunnel did not start, or ended without a request.
#[derive(Debug, Error)]
pub(crate) enum RunError {
    /// The device cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Another process has the device open.
    #[error("{error} (attached: {holders})")]
    Held { error: OpenError, holders: String },
    /// The device cannot be configured.
    #[error(transparent)]
    Device(#[from] vpnd_device::Error),
    /// The port is not available.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The device cannot be made persistent.
    #[error(transparent)]
    Persist(#[from] PersistError),
    /// The packet filter's table cannot be set.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    /// A network namespace cannot be used.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A thread cannot be confined.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A privilege is missing, or cannot be given up.
    #[error(transparent)]
    Privilege(#[from] PrivilegeError),
    /// The same tunnel is already running.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Metrics cannot be served.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// A command that had to run failed.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The tunnel was running, but cannot continue.
    #[error(transparent)]
    Plane(#[from] ShellError),
    /// The earlier process does not wait for this one any more.
    #[error("cannot take the running tunnel over: {0}")]
    NotHandedOn(io::Error),
    /// The control plane itself panicked.
    #[error(
        "a part of vpnd has failed, which is a bug; please report what was logged, and start vpnd again"
    )]
    Panicked,
    /// The kernel provides no further descriptors, threads or random numbers.
    #[error("cannot start: {error}{}", at_the_limit(error))]
    Start { error: io::Error },
}

impl RunError {
    /// The exit code of `vpnd`.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Open(OpenError::NoDevice) => Exit::Unavailable,
            Self::Open(OpenError::Permission { .. } | OpenError::MayNotMake { .. }) => {
                Exit::Permission
            }
            Self::Netns(error) if error.is_permission() => Exit::Permission,
            Self::Privilege(error) if error.is_permission() => Exit::Permission,
            Self::Bind(BindError::Privilege { .. }) => Exit::Permission,
            Self::Metrics(MetricsError::Privilege(_)) => Exit::Permission,
            // Another start would fail as well.
            Self::Metrics(_) => Exit::Config,
            Self::Firewall(error) if error.is_permission() => Exit::Permission,
            Self::Device(error) if error.is_permission() => Exit::Permission,
            _ => Exit::Failure,
        }
    }
}

impl From<io::Error> for RunError {
    fn from(error: io::Error) -> Self {
        Self::Start { error }
    }
}

/// An explanation if the kernel returns EAGAIN instead of creating a thread.
fn at_the_limit(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EAGAIN) => {
            "; there is no room for another thread: raise the limit of processes (`ulimit -u`, TasksMax= of \
             the service, pids.max of the container)"
        }
        _ => "",
    }
}
