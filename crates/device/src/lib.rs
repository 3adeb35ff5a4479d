//! The network interface as the system sees it, configured over netlink: never by calling `ip`, so it
//! works where there is none.
//!
//! What is changed is remembered in an [`Undo`], for a device that was there before us and stays.

#![forbid(unsafe_code)]

mod address;
mod controller;
mod error;
mod link;
mod route;
mod undo;
mod watch;

use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::{Handle, MulticastGroup};

pub use controller::Kind;
pub use error::{Error, Step};
pub use undo::Undo;
pub use watch::{Heard, Seen, Watch};

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
    /// Its hardware address; left as it is when absent.
    pub mac: Option<[u8; 6]>,
    /// Whether it takes multicast; left as it is when absent.
    pub multicast: Option<bool>,
    /// The bridge it becomes a port of.
    pub bridge: Option<String>,
    /// The VRF it becomes a port of.
    pub vrf: Option<String>,
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
    /// The routing table; when absent that of the device's VRF, or else `main`.
    pub table: Option<u32>,
}

/// A connection to the kernel's routing subsystem, in the network namespace that it was opened in.
#[derive(Clone, Debug)]
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

    /// As [`connect`](Self::connect), and hears from now on what becomes of devices.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    pub fn connect_and_listen() -> Result<(Self, Heard), Error> {
        let opened = rtnetlink::new_multicast_connection(&[MulticastGroup::Link]);
        let (connection, handle, messages) = opened.map_err(Error::Connect)?;
        tokio::spawn(connection);
        Ok((Self { handle }, Heard::new(messages)))
    }

    /// Watches a device by what is heard.
    ///
    /// # Errors
    ///
    /// If there is no such device.
    pub async fn watch(&self, name: &str, heard: Heard) -> Result<Watch, Error> {
        Ok(Watch::new(heard, &link::find(&self.handle, name).await?))
    }

    /// Gives the device its addresses, MTU, queue length and routes, and sets it up. Who may not do so
    /// may find it done: then nothing is changed.
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

    /// Does once more what [`configure`](Self::configure) did, as far as others have undone it. Nothing
    /// needs to be remembered anew.
    ///
    /// # Errors
    ///
    /// At the first thing that the kernel refuses.
    pub async fn repair(&self, link: &Link) -> Result<(), Error> {
        self.apply(link, &mut Undo::default()).await
    }

    /// The MTU of a bridge: as long as that is its ports' too, joining it never lowers it.
    ///
    /// # Errors
    ///
    /// If there is no such bridge.
    pub async fn bridge_mtu(&self, name: &str) -> Result<u32, Error> {
        let bridge = controller::find(&self.handle, name, Kind::Bridge).await?;
        Ok(link::mtu(&bridge))
    }

    /// A VRF takes the device's addresses and routes along, and drops those of IPv6: it comes first.
    /// Routes come last: the kernel takes none for a device that is down.
    async fn apply(&self, link: &Link, undo: &mut Undo) -> Result<(), Error> {
        let pairs = address::pairs(&link.addresses, &link.peer_addresses)?;
        let device = link::set(&self.handle, link, undo).await?;
        let table = controller::join(&self.handle, device, link, undo).await?;
        for (ours, peer) in pairs {
            address::add(&self.handle, device, ours, peer, undo).await?;
        }
        link::up(&self.handle, device, undo).await?;
        for route in &link.routes {
            let table = route.table.or(table).unwrap_or(MAIN_TABLE);
            route::add(&self.handle, device, route, table, undo).await?;
        }
        Ok(())
    }
}

/// The kernel's number of the table `main`.
const MAIN_TABLE: u32 = 254;

#[cfg(test)]
mod tests;
