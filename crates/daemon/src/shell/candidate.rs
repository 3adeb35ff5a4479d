//! A process that prepares to continue with the tunnel.

use std::io;

use vpnd_device::Held;

use crate::firewall::Paused;
use crate::hand_on::{Asking, Kept};

/// A process that prepares to continue with the tunnel. Until it is ready, it alone changes the device and the packet filter.
pub(super) struct Candidate {
    pub(super) asking: Asking,
    /// They go on when these are dropped.
    pub(super) device: Held,
    pub(super) rules: Option<Paused>,
}

impl Candidate {
    /// Waits until the process is ready or has failed; forever if there is none.
    pub(super) async fn ready(candidate: &mut Option<Self>) -> io::Result<Vec<Kept>> {
        match candidate {
            Some(candidate) => candidate.asking.ready().await,
            None => std::future::pending().await,
        }
    }
}

/// The answer to what may not be asked while another process prepares.
pub(super) const ABOUT_TO_CHANGE: &str =
    "another process is about to continue with this tunnel; try again";
