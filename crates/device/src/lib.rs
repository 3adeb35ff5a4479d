//! The network interface as the system sees it, configured over netlink: never by calling `ip`, so it
//! works where there is none.
//!
//! What is changed is remembered in an [`Undo`], for a device that was there before us and stays, and in a
//! [`Journal`], for an end that leaves no time. What is there is kept by a [`Keeper`].

#![forbid(unsafe_code)]

mod address;
mod controller;
mod error;
mod heard;
mod journal;
mod keep;
mod link;
mod plan;
mod route;
mod rule;
mod table;
mod undo;
mod uplink;
mod watch;

use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::Handle;

pub use controller::Kind;
pub use error::{Error, Step};
pub use heard::Heard;
pub use journal::{Journal, Namespace};
pub use keep::{Keeper, PeerState};
pub use undo::{Stays, Undo};
pub use uplink::{Query, Shift, Uplink};
pub use watch::{Seen, Watch};

use plan::Plan;
use undo::Change;

/// Who set a route or a rule, as the kernel shows it (`proto`): a number that iproute2 gives nobody else.
pub const PROTOCOL: u8 = 118;

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
    /// What tells the tunnel's own datagrams. Absent, they leave where no route of ours is.
    pub own: Option<Own>,
}

/// What tells the tunnel's own datagrams from those that go through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Own {
    /// Their mark.
    pub mark: u32,
    /// The UDP port they leave from.
    pub port: u16,
}

/// One route through a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The network behind it.
    pub to: IpNet,
    /// Lower is preferred; the kernel's default when absent.
    pub metric: Option<u32>,
    /// The routing table. Absent, it is that of the device's VRF. Without a VRF it is `main`, but for a
    /// default route one of its own, with the rules that lead everything there but the tunnel's own
    /// datagrams ([`Link::own`]).
    pub table: Option<u32>,
    /// What becomes of it while the peer is dead.
    pub when_down: WhenDown,
}

impl Route {
    /// Whether it leads everywhere.
    pub fn is_default(&self) -> bool {
        self.to.prefix_len() == 0
    }
}

/// What becomes of a route while the peer is dead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenDown {
    /// It stays.
    #[default]
    Keep,
    /// It is taken away: packets take the next best way.
    Remove,
    /// It gives way to one that drops, which is there all the time, right behind it.
    Blackhole,
}

/// A device as it should be, and the way back.
#[derive(Debug)]
#[must_use = "what was changed stays so unless it is undone"]
pub struct Setup {
    plan: Plan,
    undo: Undo,
}

/// A connection to the kernel's routing subsystem, in the network namespace that it was opened in.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: Handle,
    namespace: Namespace,
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
        Ok(Self { handle, namespace: Namespace::current() })
    }

    /// The namespace that it was opened in.
    pub const fn namespace(&self) -> Namespace {
        self.namespace
    }

    /// Watches a device by what is heard.
    ///
    /// # Errors
    ///
    /// If there is no such device.
    pub async fn watch(&self, name: &str, heard: Heard) -> Result<Watch, Error> {
        Ok(Watch::new(heard, &link::find(&self.handle, name).await?))
    }

    /// A mark for the tunnel's own datagrams that no program's rule but vpnd's looks at.
    pub async fn free_mark(&self) -> u32 {
        rule::free_mark(&self.handle).await
    }

    /// Gives the device its addresses, MTU, queue length, rules and routes, and sets it up. What an earlier
    /// run left behind, as `undo` knows, is taken over where it is still wanted, and
    /// goes where not. Who may not change anything may find it done: then nothing is changed.
    ///
    /// # Errors
    ///
    /// At the first thing that the kernel refuses; what was done before is then undone.
    pub async fn configure(&self, link: &Link, mut undo: Undo) -> Result<Setup, Error> {
        undo.forget_strangers(&self.handle).await;
        let mut left = undo.len();
        let mut result = self.apply(link, &mut undo).await;
        if left > 0 && result.as_ref().is_err_and(Error::is_in_the_way) {
            undo.back_to(left, &self.handle).await;
            // Packets that must not take another way find none meanwhile, nor if this does not help.
            undo.only(|change| guards(change, link), &self.handle).await;
            left = undo.len();
            result = self.apply(link, &mut undo).await;
        }
        match result {
            Ok(plan) => {
                undo.only(|change| plan.wants(change), &self.handle).await;
                Ok(Setup { plan, undo })
            }
            Err(error) => {
                undo.back_to(left, &self.handle).await;
                Err(error)
            }
        }
    }

    /// Puts back what was changed, the last change first, but for what `stays`. What is gone already is no
    /// concern; what cannot be put back is logged.
    pub async fn undo(&self, setup: Setup, stays: Stays) {
        setup.undo.run(&self.handle, stays).await;
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
    async fn apply(&self, link: &Link, undo: &mut Undo) -> Result<Plan, Error> {
        let pairs = address::pairs(&link.addresses, &link.peer_addresses)?;
        let device = link::set(&self.handle, link, undo).await?;
        let vrf = controller::join(&self.handle, device, link, undo).await?;
        let mut plan = Plan::new(device, link);
        for (ours, peer) in pairs {
            let message = address::message(device.index, ours, peer);
            let added = plan.address(&self.handle, message, undo).await;
            added
                .map_err(|error| Error::refused(Step::Address(ours, peer), device.name, &error))?;
        }
        link::up(&self.handle, device, undo).await?;
        plan.route_all(&self.handle, link, vrf, undo).await?;
        Ok(plan)
    }
}

/// Whether what an earlier run left keeps packets from another way, and is not itself in the way.
fn guards(change: &Change, link: &Link) -> bool {
    match change {
        Change::Rule(_) => true,
        Change::Route(guard) if change.drops() => {
            !link.routes.iter().any(|wanted| route::takes_place(guard, wanted))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
