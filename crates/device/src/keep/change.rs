//! Another wanted state for the device of a running tunnel.
//!
//! What is new is added first; what is no longer wanted is removed after that, and what stays is not touched. So a kill
//! switch that both states have never opens, and the journal names at any time what a crash would leave behind. If the
//! kernel refuses a step, what was added is removed again.

use tokio::sync::{mpsc, oneshot};

use super::Keeping;
use crate::error::Error;
use crate::link::{self, Device};
use crate::plan::Plan;
use crate::{Link, address, controller, route};

/// Gives the device of a running [`Keeper`](super::Keeper) another wanted state.
#[derive(Clone, Debug)]
pub struct DeviceLink(pub(super) mpsc::Sender<NewLink>);

/// A wanted state, and the channel for the answer.
#[derive(Debug)]
pub(super) struct NewLink {
    link: Box<Link>,
    done: oneshot::Sender<Result<(), Error>>,
}

impl DeviceLink {
    /// Returns when the device has its new state. Its name and its MTU are left as they are.
    ///
    /// # Errors
    ///
    /// The kernel's first error, or that the keeper has stopped. In both cases the state is the former one.
    pub async fn become_new(&self, link: Link) -> Result<(), Error> {
        let (done, answer) = oneshot::channel();
        let link = Box::new(link);
        self.0.send(NewLink { link, done }).await.map_err(|_stopped| Error::NotKept)?;
        answer.await.map_err(|_stopped| Error::NotKept)?
    }
}

impl Keeping {
    pub(super) async fn set_link(&mut self, NewLink { link, done }: NewLink) {
        let result = self.become_new(*link).await;
        // The requester may no longer wait for the result.
        let _gone = done.send(result);
    }

    pub(super) async fn become_new(&mut self, mut link: Link) -> Result<(), Error> {
        if self.device().await.is_none() {
            return Err(Error::NoDevice { device: self.plan.device.clone() });
        }
        link.name.clone_from(&self.plan.device);
        link.mtu = None;
        self.know_own(&mut link);
        let before = self.undo.len();
        if link.guard_table.is_some() {
            self.undo.set_table(link.guard_table.as_deref());
        }
        match self.add(&link).await {
            Ok(plan) => {
                self.take(link, plan).await;
                Ok(())
            }
            Err(error) => {
                self.go_back(before).await;
                Err(error)
            }
        }
    }

    /// The rules are made for the port and the addresses in use.
    fn know_own(&self, link: &mut Link) {
        let traffic = self.traffic.borrow();
        if let Some(own) = link.own.as_mut().filter(|_| traffic.port != 0) {
            (own.port, own.peers) = (traffic.port, traffic.peers.clone());
        }
    }

    /// Adds everything that is new.
    async fn add(&mut self, link: &Link) -> Result<Plan, Error> {
        let pairs = address::pairs(&link.addresses, &link.peer_addresses)?;
        let device = link::set(&self.handle, link, &mut self.undo).await?;
        let vrf = controller::join(&self.handle, device, link, &mut self.undo).await?;
        let mut plan = Plan::new(device, link);
        plan.alive = self.following.alive;
        (plan.silent, plan.mtu) = (self.plan.silent, self.plan.mtu);
        crate::add_all(&self.handle, link, (&pairs, vrf), &mut plan, &mut self.undo).await?;
        Ok(plan)
    }

    /// Removes what is no longer wanted. The kernel may have removed more: secondary addresses with their primary one,
    /// and routes with the last address.
    async fn take(&mut self, link: Link, plan: Plan) {
        if plan.port_of != self.plan.port_of {
            self.port.forget();
        }
        (self.link, self.plan) = (link, plan);
        self.undo.set_table(self.link.guard_table.as_deref());
        let plan = &self.plan;
        self.undo.forget(|change| plan.has_replaced(change));
        self.undo.only(|change| plan.wants(change), &self.handle).await;
        self.undo.keep_first_of_link();
        self.bypasses.follow(&self.handle, &self.plan, self.own.subscribe());
        self.restore().await;
    }

    /// Removes what was added, and restores what was removed to make way.
    async fn go_back(&mut self, before: usize) {
        self.undo.back_to(before, &self.handle).await;
        self.undo.set_table(self.link.guard_table.as_deref());
        self.follow_again().await;
        let device = Device { name: &self.plan.device, index: self.plan.index };
        let joined = controller::join(&self.handle, device, &self.link, &mut self.undo).await;
        if let Err(error) = joined {
            tracing::warn!("{error}");
        }
        self.restore().await;
    }

    /// Removes routes that wait for the peer: the refused state may have wanted them without it.
    async fn follow_again(&self) {
        let waiting = self.plan.routes.iter().filter(|held| held.by_peer && !self.following.alive);
        for held in waiting {
            if let Err(error) = route::remove(&self.handle, &held.route).await {
                tracing::warn!(%error, "{} stays, although the peer is not alive", route::text(&held.route));
            }
        }
    }

    async fn restore(&mut self) {
        self.kernel.dropped = true;
        self.look().await;
    }
}
