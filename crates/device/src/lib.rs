//! The network interface as the system sees it, configured over netlink: never by calling `ip`, so it
//! works where there is none.
//!
//! What is changed is remembered in an [`Undo`], for a device that was there before us and stays.

#![forbid(unsafe_code)]

mod address;
mod error;
mod link;
mod route;
mod undo;

use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::Handle;

pub use error::{Error, Step};
pub use undo::Undo;

/// How a device should look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// The device's name.
    pub name: String,
    /// Our addresses, host bits kept.
    pub addresses: Vec<IpNet>,
    /// The far ends of our addresses: the first of a family belongs to our first address of that
    /// family, the second to the second.
    pub peer_addresses: Vec<IpAddr>,
    /// Left as it is when absent.
    pub mtu: Option<u32>,
    /// Left as it is when absent.
    pub txqueuelen: Option<u32>,
    /// The bridge it becomes a port of.
    pub bridge: Option<String>,
    /// What is reached through the device.
    pub routes: Vec<Route>,
}

/// One route through a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The network behind it.
    pub to: IpNet,
    /// Lower is preferred; the kernel's default when absent.
    pub metric: Option<u32>,
    /// The routing table; 254 is `main`.
    pub table: u32,
}

/// A connection to the kernel's routing subsystem.
#[derive(Debug)]
pub struct Netlink {
    handle: Handle,
}

impl Netlink {
    /// Connects. Belongs inside a tokio runtime, whose own thread then does the work: no other is started.
    ///
    /// # Errors
    ///
    /// If the kernel gives no netlink socket.
    pub fn connect() -> Result<Self, Error> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Connect)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Gives the device its addresses, MTU, queue length and routes, and sets it up.
    ///
    /// # Errors
    ///
    /// At the first thing that the kernel refuses; what was done before is then undone.
    pub async fn configure(&self, link: &Link) -> Result<Undo, Error> {
        let mut undo = Undo::default();
        match self.apply(link, &mut undo).await {
            Ok(()) => Ok(undo),
            Err(error) => {
                self.undo(undo).await;
                Err(error)
            }
        }
    }

    /// Puts back what was changed, the last change first. What is gone already is no concern; what
    /// cannot be put back is logged.
    pub async fn undo(&self, undo: Undo) {
        undo.run(&self.handle).await;
    }

    /// Routes come last: the kernel takes none for a device that is down.
    async fn apply(&self, link: &Link, undo: &mut Undo) -> Result<(), Error> {
        let pairs = address::pairs(&link.addresses, &link.peer_addresses)?;
        let device = link::set(&self.handle, link, undo).await?;
        for (ours, peer) in pairs {
            address::add(&self.handle, device, ours, peer, undo).await?;
        }
        if let Some(bridge) = &link.bridge {
            link::join(&self.handle, device, bridge, undo).await?;
        }
        link::up(&self.handle, device, undo).await?;
        for route in &link.routes {
            route::add(&self.handle, device, route, undo).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
