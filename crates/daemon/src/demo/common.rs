//! Addresses, names, errors and threads that the parts of the demonstration share.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::ExitStatus;

use anyhow::Context;
use thiserror::Error;
use tokio::sync::oneshot;

use crate::exit::Exit;

/// The names of the sites.
pub(super) const NAMES: [&str; 2] = ["site-a", "site-b"];
/// Addresses of the wire's ends, from a range for documentation (RFC 5737).
pub(super) const OUTER_A: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
pub(super) const OUTER_B: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
/// The tunnel's networks, and the addresses of the tunnel's ends in them.
pub(super) const INNER: [&str; 2] = ["10.99.0.0/30", "fd99::/64"];
pub(super) const INNER_A: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 99, 0, 1));
pub(super) const INNER_B: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 99, 0, 2));
pub(super) const INNER6_A: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 1));
pub(super) const INNER6_B: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 2));

/// Why the demonstration failed.
#[derive(Debug, Error)]
pub(crate) enum DemoError {
    /// There is no privilege for namespaces, and user namespaces are not allowed.
    #[error(
        "{step} is refused: {error}; run it as root, or allow user namespaces: the sysctls \
         user.max_user_namespaces, user.max_net_namespaces, kernel.unprivileged_userns_clone and \
         kernel.apparmor_restrict_unprivileged_userns decide, in a container its own rules too"
    )]
    Forbidden { step: &'static str, error: io::Error },
    /// A daemon ended without being stopped.
    #[error("the daemon of {name} ended ({status}); its log:\n{log}")]
    Ended { name: String, status: ExitStatus, log: String },
}

impl DemoError {
    /// The exit code for this error.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Forbidden { .. } => Exit::Permission,
            Self::Ended { .. } => Exit::Failure,
        }
    }
}

/// Runs blocking work on a separate thread, so that a signal is handled without waiting for the work.
pub(super) async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<T> {
    let (done, result) = oneshot::channel();
    // After a signal nobody waits for the result.
    std::thread::spawn(move || drop(done.send(work())));
    result.await.context("a thread of the demonstration panicked")
}
