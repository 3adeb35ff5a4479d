//! The capture that runs, until its client leaves.

use tokio::sync::oneshot::error::TryRecvError;

use crate::control::Ended;
use crate::status::Capture;

/// A capture that runs.
pub(super) struct Running {
    what: Capture,
    ended: Ended,
}

impl Running {
    pub(super) fn new(what: Capture, ended: Ended) -> Self {
        Self { what, ended }
    }

    /// What is captured.
    pub(super) fn what(&self) -> Capture {
        self.what
    }

    /// Whether its client has left.
    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.ended.try_recv(), Err(TryRecvError::Empty))
    }
}

/// Waits until the client of a capture has left.
pub(super) async fn ended(capture: &mut Option<Running>) {
    match capture {
        Some(running) => drop((&mut running.ended).await),
        None => std::future::pending().await,
    }
}
