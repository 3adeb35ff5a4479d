//! The MTU of the running device: set when the configuration changes it, and compared when others may have
//! changed it.

use rtnetlink::packet_route::link::LinkMessage;
use tokio::sync::{mpsc, oneshot};

use super::Keeping;
use crate::error::{Error, Step};
use crate::link::{self, Device};
use crate::undo::Change;

/// Sets the MTU of the device of a running [`Keeper`](super::Keeper).
#[derive(Clone, Debug)]
pub struct DeviceMtu(pub(super) mpsc::Sender<NewMtu>);

/// A request to set the MTU, and the channel for the answer.
#[derive(Debug)]
pub(super) struct NewMtu {
    mtu: u32,
    done: oneshot::Sender<Result<(), Error>>,
}

impl DeviceMtu {
    /// Returns when the kernel has confirmed the change. At the end the device gets the MTU again that it had
    /// at the start.
    ///
    /// # Errors
    ///
    /// The kernel's error, or that the keeper has stopped. In both cases the MTU is unchanged.
    pub async fn set(&self, mtu: u32) -> Result<(), Error> {
        let (done, answer) = oneshot::channel();
        self.0.send(NewMtu { mtu, done }).await.map_err(|_stopped| Error::NotKept)?;
        answer.await.map_err(|_stopped| Error::NotKept)?
    }
}

impl Keeping {
    pub(super) async fn set_mtu(&mut self, NewMtu { mtu, done }: NewMtu) {
        let result = self.change_mtu(mtu).await;
        // The requester may no longer wait for the result.
        let _gone = done.send(result);
    }

    async fn change_mtu(&mut self, mtu: u32) -> Result<(), Error> {
        let found = self.device().await;
        let gone = || Error::NoDevice { device: self.plan.device.clone() };
        let before = link::mtu(&found.ok_or_else(gone)?);
        let device = Device { name: &self.plan.device, index: self.plan.index };
        if before != mtu {
            link::change(&self.handle, device, Step::Mtu(mtu)).await?;
            let is_of_mtu = |change: &Change| match change {
                Change::Link(before) => {
                    before.header.index == device.index && link::mtu(before) != 0
                }
                _ => false,
            };
            // Only the first change records the MTU that has to be restored.
            if !self.undo.changes().iter().any(is_of_mtu) {
                self.undo.extend([Change::Link(link::message(device.index, Step::Mtu(before)))]);
            }
        }
        (self.plan.mtu, self.mtu) = (Some(mtu), Some(mtu));
        Ok(())
    }

    /// If others set another MTU, vpnd assumes that it is intended: logs it once and does not change it.
    pub(super) fn compare_mtu(&mut self, link: &LinkMessage) {
        let Some(configured) = self.plan.mtu else { return };
        let (device, mtu) = (&self.plan.device, link::mtu(link));
        if self.mtu.replace(mtu).unwrap_or(configured) == mtu {
            return;
        }
        if mtu == configured {
            tracing::info!("the MTU of {device} is {mtu} again, as configured");
            return;
        }
        tracing::warn!(
            "the MTU of {device} was changed from {configured} to {mtu}; vpnd does not change it back, but the \
             tunnel still uses the configured MTU"
        );
    }
}
