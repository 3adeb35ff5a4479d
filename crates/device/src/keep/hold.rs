//! A pause, in which another process of the tunnel gives the device the state that it wants.
//!
//! The keeper must not take back what that process changes, and that process needs the journal. If it fails, it leaves
//! everything as it is, and the keeper goes on as a start does: from what the journal then names.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use super::Keeping;
use crate::error::Error;

/// How often to try to lock the journal, which the process that has failed may still hold, …
const TRIES: u32 = 100;
/// … and the time between.
const BETWEEN: Duration = Duration::from_millis(50);

/// Makes a running [`Keeper`](super::Keeper) pause.
#[derive(Clone, Debug)]
pub struct DeviceHold(pub(super) mpsc::Sender<NewHold>);

/// A keeper that does nothing. It goes on when this is dropped.
#[derive(Debug)]
#[must_use = "the keeper goes on when this is dropped"]
pub struct Held {
    _release: oneshot::Sender<()>,
}

/// A request to pause, and the channel for the answer.
#[derive(Debug)]
pub(super) struct NewHold(oneshot::Sender<Held>);

impl DeviceHold {
    /// Returns when the keeper has paused, and has released the journal.
    ///
    /// # Errors
    ///
    /// If the keeper has stopped.
    pub async fn begin(&self) -> Result<Held, Error> {
        let (done, answer) = oneshot::channel();
        self.0.send(NewHold(done)).await.map_err(|_stopped| Error::NotKept)?;
        answer.await.map_err(|_stopped| Error::NotKept)
    }
}

impl Keeping {
    /// Pauses until the holder goes, or the keeper is `stopped`: then nothing more is changed.
    pub(super) async fn hold(
        &mut self,
        NewHold(done): NewHold,
        stopped: &mut oneshot::Receiver<()>,
    ) -> Paused {
        self.undo.release();
        let (release, mut released) = oneshot::channel();
        if done.send(Held { _release: release }).is_err() {
            // The requester has left, and with it the only holder.
            tracing::debug!("nobody waits for the pause");
        }
        loop {
            tokio::select! {
                biased;
                _ = &mut *stopped => return Paused::Stopped,
                _ = &mut released => break,
                // The control plane waits for the answer.
                Some(new) = self.new_mtus.recv() => self.set_mtu(new).await,
            }
        }
        self.go_on().await;
        Paused::Over
    }

    async fn go_on(&mut self) {
        for _ in 0..TRIES {
            if self.undo.retake() {
                break;
            }
            sleep(BETWEEN).await;
        }
        if let Err(error) = self.become_new(self.link.clone()).await {
            tracing::warn!("{error}; vpnd keeps trying");
        }
    }
}

/// How a pause ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Paused {
    Over,
    Stopped,
}
