//! The network interface as the system sees it, configured over netlink: never by calling `ip`, so it
//! works where there is none.
//!
//! What is changed is remembered in an [`Undo`], for a device that was there before us and stays, and in a
//! [`Journal`], for an end that leaves no time. What is there is kept by a [`Keeper`].

#![forbid(unsafe_code)]

mod address;
mod bypass;
mod controller;
mod error;
mod guard;
mod heard;
mod journal;
mod keep;
mod leftover;
mod link;
mod lookup;
mod mark;
mod missing;
mod plan;
mod port;
mod recent;
mod removals;
mod restore;
mod route;
mod rule;
mod specific;
mod table;
mod undo;
mod uplink;
mod watch;

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use ipnet::IpNet;
use rtnetlink::Handle;
use rtnetlink::packet_route::route::RouteProtocol;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};

pub use bypass::Bypass;
pub use controller::Kind;
pub use error::{Error, Step};
pub use heard::Heard;
pub use journal::{Journal, Namespace};
pub use keep::{DeviceMtu, Keeper, OwnState, OwnTraffic, PeerState};
pub use leftover::Leftover;
pub use lookup::{Found, Question};
pub use mark::Mark;
pub use missing::Missing;
pub use port::PortMemory;
pub use specific::SpecificRoutes;
pub use undo::{Stays, Undo};
pub use uplink::{Query, Shift, Uplink};
pub use watch::{Seen, Watch};

use link::Device;
use plan::Plan;
use undo::Change;

/// Who set a route or a rule, as the kernel shows it (`proto`): a number that iproute2 gives nobody else.
pub const PROTOCOL: u8 = 118;
/// Who set what still drops when everything of [`PROTOCOL`] has been flushed.
pub const GUARD_PROTOCOL: u8 = 119;

fn is_our_protocol(protocol: RouteProtocol) -> bool {
    [PROTOCOL, GUARD_PROTOCOL].map(RouteProtocol::Other).contains(&protocol)
}

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
    /// The hardware address of one that becomes the port of a bridge it was not a port of, where
    /// [`mac`](Self::mac) says none.
    pub mac_as_port: Option<[u8; 6]>,
    /// Whether it takes multicast; left as it is when absent.
    pub multicast: Option<bool>,
    /// The bridge it becomes a port of.
    pub bridge: Option<String>,
    /// What a path through it costs in the bridge's spanning tree. Absent, 200 for one that joins the bridge.
    pub stp_cost: Option<u32>,
    /// The VRF it becomes a port of.
    pub vrf: Option<String>,
    /// What is reached through the device.
    pub routes: Vec<Route>,
    /// What tells the tunnel's own datagrams. Absent, they leave where no route of ours is.
    pub own: Option<Own>,
    /// For which families the kernel passes over routes of a link without carrier, and this one's comes and goes: what
    /// is for its networks is then dropped while there is none.
    pub passed_over: Families,
}

/// IPv4, IPv6, both or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Families {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

impl Families {
    fn has(self, net: IpNet) -> bool {
        if net.addr().is_ipv4() { self.v4 } else { self.v6 }
    }
}

/// How a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Present {
    /// The longest packet that it takes.
    pub mtu: u32,
    /// Its hardware address, if it has one.
    pub mac: Option<[u8; 6]>,
}

/// What tells the tunnel's own datagrams from those that go through it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// Their mark.
    pub mark: Mark,
    /// The UDP port they leave from; 0 as long as there is none.
    pub port: u16,
    /// Where the peer is, or may be.
    pub peers: Vec<IpAddr>,
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
    /// For what is left to do when there is no runtime any more.
    last: Arc<Socket>,
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
        let last = Arc::new(connected().map_err(Error::Connect)?);
        Ok(Self { handle, namespace: Namespace::current(), last })
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
    pub async fn free_mark(&self) -> Mark {
        rule::free_mark(&self.handle).await
    }

    /// Adds what is to drop, and the rules that lead there, before there is a device: from here on nothing that may fail
    /// leaves a kill switch open. It takes of `link` the routes, the VRF, and the mark of [`Link::own`].
    ///
    /// # Errors
    ///
    /// What the kernel refuses. What was added stays, and [`configure`](Self::configure) takes it over.
    pub async fn guard(&self, link: &Link, undo: &mut Undo) -> Result<(), Error> {
        let vrf = match controller::table(&self.handle, link).await {
            Ok(vrf) => vrf,
            // Without its VRF no packet is led into the tunnel either.
            Err(Error::NoController { .. } | Error::NotA { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut plan = Plan::new(Device { name: &link.name, index: 0 }, link);
        plan.guard_all(&self.handle, link, vrf, undo).await
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
    pub async fn undo(&self, mut setup: Setup, stays: Stays) {
        if !stays.guards {
            setup.undo.set_table(None);
        }
        setup.undo.run(&self.handle, stays).await;
    }

    /// What the device has already: its MTU and its hardware address.
    ///
    /// # Errors
    ///
    /// If there is no such device.
    pub async fn present(&self, name: &str) -> Result<Present, Error> {
        let found = link::find(&self.handle, name).await?;
        Ok(Present { mtu: link::mtu(&found), mac: link::mac(&found) })
    }

    /// As [`undo`](Self::undo), but what drops is handed on to the next start. None if that cannot be, or there is
    /// nothing that drops: then all is put back, but for what is to stay of the device, and no table of the packet filter
    /// may drop any more.
    pub async fn hand_on(&self, setup: Setup, device: bool) -> Option<Leftover> {
        let Setup { mut undo, .. } = setup;
        if undo.guards() && undo.can_be_handed_on() {
            return undo.hand_on(&self.handle, &self.last, device).await;
        }
        undo.set_table(None);
        undo.run(&self.handle, Stays { device, guards: false }).await;
        None
    }

    /// Takes away what drops, and the rules that lead there, as the journal at `path` says of a vpnd that has ended;
    /// says how much that was. The packet filter's table that drops is for `delete` to take away. What else stands there
    /// is left to the next start.
    ///
    /// # Errors
    ///
    /// If the journal cannot be read, its vpnd runs, or `delete` fails.
    pub async fn release(
        &self,
        path: &Path,
        delete: impl FnOnce(&str) -> io::Result<()>,
    ) -> io::Result<usize> {
        let mut undo = Undo::resume(Journal::open_left(path, self.namespace)?);
        let before = undo.len();
        undo.only(|change| !change.is_guard(), &self.handle).await;
        let mut gone = before - undo.len();
        if let Some(table) = undo.table() {
            delete(table)?;
            undo.set_table(None);
            gone += 1;
        }
        Ok(gone)
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
    /// Routes come last: the kernel takes none for a device that is down. Nor does it give an IPv6 address the route
    /// to its far end then, and it does not make up for that when the device is set up.
    async fn apply(&self, link: &Link, undo: &mut Undo) -> Result<Plan, Error> {
        let pairs = address::pairs(&link.addresses, &link.peer_addresses)?;
        let device = link::set(&self.handle, link, undo).await?;
        let broadcasts = link::broadcasts(&self.handle, device).await?;
        let vrf = controller::join(&self.handle, device, link, undo).await?;
        let mut plan = Plan::new(device, link);
        plan.silent = link::up(&self.handle, device, undo).await?;
        for &(ours, peer) in &pairs {
            let message = address::message(device.index, ours, peer, broadcasts);
            let added = plan.address(&self.handle, message, undo).await;
            added
                .map_err(|error| Error::refused(Step::Address(ours, peer), device.name, &error))?;
        }
        let connected = pairs.iter().filter_map(|(ours, peer)| address::connected(*ours, *peer));
        let connected: Vec<_> = connected.collect();
        plan.route_all(&self.handle, link, vrf, &connected, undo).await?;
        Ok(plan)
    }
}

/// A socket for messages to the kernel, which needs no runtime.
pub(crate) fn connected() -> io::Result<Socket> {
    let socket = Socket::new(NETLINK_ROUTE)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
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
