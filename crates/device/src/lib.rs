//! The network interface and its system settings, configured over netlink. The program `ip` is not needed.
//!
//! An [`Undo`] reverts the changes at the end, for a device that existed before and remains. A [`Journal`]
//! records them in case vpnd ends suddenly. A [`Keeper`] keeps all objects in place.

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
mod survey;
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
pub use controller::{DEFAULT_STP_COST, Kind};
pub use error::{Error, Step};
pub use heard::Heard;
pub use journal::{Journal, KILL_SWITCH_TABLE, Namespace};
pub use keep::{DeviceHold, DeviceLink, DeviceMtu, Held, Keeper, OwnState, OwnTraffic, PeerState};
pub use leftover::Leftover;
pub use lookup::{Found, Question};
pub use mark::Mark;
pub use missing::Missing;
pub use port::PortMemory;
pub use specific::SpecificRoutes;
pub use survey::Refusing;
pub use undo::{Stays, Undo};
pub use uplink::{Query, Shift, Uplink};
pub use watch::{Seen, Watch};

use link::Device;
use plan::Plan;
use undo::Change;

/// The origin of a route or a rule, as the kernel shows it (`proto`): a number without a name in iproute2.
pub const PROTOCOL: u8 = 118;
/// The origin of the blackholes that remain when everything with [`PROTOCOL`] has been flushed.
pub const GUARD_PROTOCOL: u8 = 119;

fn is_our_protocol(protocol: RouteProtocol) -> bool {
    [PROTOCOL, GUARD_PROTOCOL].map(RouteProtocol::Other).contains(&protocol)
}

/// The wanted state of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// The device's name.
    pub name: String,
    /// Our addresses, with host bits.
    pub addresses: Vec<IpNet>,
    /// The far ends of our addresses: the first one of a family belongs to our first address of that family,
    /// the second to the second.
    pub peer_addresses: Vec<IpAddr>,
    /// Unchanged if absent.
    pub mtu: Option<u32>,
    /// Unchanged if absent.
    pub txqueuelen: Option<u32>,
    /// Its hardware address; unchanged if absent.
    pub mac: Option<[u8; 6]>,
    /// The hardware address for a device that newly becomes a bridge port, if [`mac`](Self::mac) is absent.
    pub mac_as_port: Option<[u8; 6]>,
    /// Whether it accepts multicast; unchanged if absent.
    pub multicast: Option<bool>,
    /// The bridge it becomes a port of.
    pub bridge: Option<String>,
    /// Its path cost in the bridge's spanning tree. Absent: 200 for a device that newly joins the bridge.
    pub stp_cost: Option<u32>,
    /// The VRF it becomes a port of.
    pub vrf: Option<String>,
    /// The networks that are reached through the device.
    pub routes: Vec<Route>,
    /// The peer counts as alive from the beginning, because an earlier process has left it so: the routes that depend on
    /// it stay.
    pub alive: bool,
    /// How to recognise the tunnel's own datagrams. Absent: none of our routes can affect them.
    pub own: Option<Own>,
    /// The families for which the kernel ignores routes of a link without carrier, if this device's carrier
    /// depends on the peer: while the link has no carrier, packets for its networks are dropped.
    pub passed_over: Families,
    /// The packet filter's table of the kill switch, which the journal of a running tunnel names.
    pub guard_table: Option<String>,
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

/// The properties of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Present {
    /// The longest packet that it accepts.
    pub mtu: u32,
    /// Its hardware address, if it has one.
    pub mac: Option<[u8; 6]>,
}

/// How to recognise the tunnel's own datagrams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// Their mark.
    pub mark: Mark,
    /// Their source port; 0 while no port is known.
    pub port: u16,
    /// The addresses that the peer has or may have.
    pub peers: Vec<IpAddr>,
}

/// One route through a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The destination network.
    pub to: IpNet,
    /// A lower metric is preferred; absent: the kernel's default.
    pub metric: Option<u32>,
    /// The routing table. Absent: the table of the device's VRF. Without a VRF it is `main`, but a default
    /// route gets a separate table, with rules that lead all packets there except the tunnel's own datagrams
    /// ([`Link::own`]).
    pub table: Option<u32>,
    /// What happens to the route while the peer is dead.
    pub when_down: WhenDown,
}

impl Route {
    /// Whether it is a default route.
    pub fn is_default(&self) -> bool {
        self.to.prefix_len() == 0
    }
}

/// What happens to a route while the peer is dead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenDown {
    /// The route stays.
    #[default]
    Keep,
    /// The route is removed: packets take the next best route.
    Remove,
    /// The route is removed, and packets meet a blackhole route, which always exists with the next higher
    /// metric.
    Blackhole,
}

/// A configured device, and how to revert its configuration.
#[derive(Debug)]
#[must_use = "what was changed stays so unless it is undone"]
pub struct Setup {
    link: Link,
    plan: Plan,
    undo: Undo,
}

impl Setup {
    /// Deletes the packet filter's table of the kill switch with `delete`. The journal names the table until
    /// `delete` succeeds.
    pub fn delete_table(&mut self, delete: impl FnOnce(&str) -> io::Result<()>) {
        self.undo.try_delete_table(delete);
    }
}

/// A connection to the kernel's routing subsystem, in the network namespace in which it was opened.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: Handle,
    namespace: Namespace,
    /// For the remaining work after the runtime has ended.
    last: Arc<Socket>,
}

impl Netlink {
    /// Connects. Requires a tokio runtime, whose thread then handles the messages: no other thread is started.
    ///
    /// # Errors
    ///
    /// If the kernel refuses a netlink socket.
    pub fn connect() -> Result<Self, Error> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Connect)?;
        tokio::spawn(connection);
        let last = Arc::new(connected().map_err(Error::Connect)?);
        Ok(Self { handle, namespace: Namespace::current(), last })
    }

    /// The network namespace in which it was opened.
    pub const fn namespace(&self) -> Namespace {
        self.namespace
    }

    /// Watches a device by the kernel's messages.
    ///
    /// # Errors
    ///
    /// If there is no such device.
    pub async fn watch(&self, name: &str, heard: Heard) -> Result<Watch, Error> {
        Ok(Watch::new(heard, &link::find(&self.handle, name).await?))
    }

    /// A mark for the tunnel's own datagrams that only rules of vpnd match.
    pub async fn free_mark(&self) -> Mark {
        rule::free_mark(&self.handle).await
    }

    /// Adds the blackhole routes, and the rules that lead to them, before the device exists, so that a later
    /// step that fails leaves no kill switch open. It uses the routes, the VRF, and the mark of [`Link::own`]
    /// in `link`.
    ///
    /// # Errors
    ///
    /// The kernel's error. The objects that were added stay, and [`configure`](Self::configure) takes them
    /// over.
    pub async fn guard(&self, link: &Link, undo: &mut Undo) -> Result<(), Error> {
        let vrf = match controller::table(&self.handle, link).await {
            Ok(vrf) => vrf,
            // Without its VRF no packet is routed into the tunnel, so there is nothing to guard.
            Err(Error::NoController { .. } | Error::NotA { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut plan = Plan::new(Device { name: &link.name, index: 0 }, link);
        plan.guard_all(&self.handle, link, vrf, undo).await
    }

    /// Gives the device its addresses, MTU, queue length, rules and routes, and sets it up. Leftovers of an
    /// earlier run, which `undo` contains, are taken over if they are still wanted, and removed if not. A
    /// process without `CAP_NET_ADMIN` succeeds if everything is already as wanted.
    ///
    /// # Errors
    ///
    /// The kernel's first error; earlier changes are then reverted.
    pub async fn configure(&self, link: &Link, mut undo: Undo) -> Result<Setup, Error> {
        undo.forget_strangers(&self.handle).await;
        let mut left = undo.len();
        let mut result = self.apply(link, &mut undo).await;
        if left > 0 && !undo.is_shared() && result.as_ref().is_err_and(Error::is_in_the_way) {
            undo.back_to(left, &self.handle).await;
            // Packets that must not take another route stay blocked during the second attempt, and if it fails.
            undo.only(|change| guards(change, link), &self.handle).await;
            left = undo.len();
            result = self.apply(link, &mut undo).await;
        }
        match result {
            Ok(plan) => {
                undo.forget(|change| plan.has_replaced(change));
                undo.only(|change| plan.wants(change), &self.handle).await;
                Ok(Setup { link: link.clone(), plan, undo })
            }
            Err(error) => {
                undo.back_to(left, &self.handle).await;
                Err(error)
            }
        }
    }

    /// Reverts the changes, the last one first, except for those that `stays` names. Objects that are already
    /// gone are fine; other failures are logged. [`Setup::delete_table`] deletes the packet filter's table.
    pub async fn undo(&self, setup: Setup, stays: Stays) {
        setup.undo.run(&self.handle, stays).await;
    }

    /// The device's current MTU and hardware address.
    ///
    /// # Errors
    ///
    /// If there is no such device.
    pub async fn present(&self, name: &str) -> Result<Present, Error> {
        let found = link::find(&self.handle, name).await?;
        Ok(Present { mtu: link::mtu(&found), mac: link::mac(&found) })
    }

    /// Like [`undo`](Self::undo), but blackhole routes and rules are handed on to the next start. Returns
    /// `None` if there are none, or they cannot be handed on. Then everything is reverted except for the parts
    /// of the device that stay, and `delete` has to delete the packet filter's table of the kill switch.
    pub async fn hand_on(
        &self,
        setup: Setup,
        device: bool,
        delete: impl FnOnce(&str) -> io::Result<()>,
    ) -> Option<Leftover> {
        let Setup { mut undo, .. } = setup;
        if undo.guards() && undo.can_be_handed_on() {
            return undo.hand_on(&self.handle, &self.last, device).await;
        }
        undo.try_delete_table(delete);
        undo.run(&self.handle, Stays { device, guards: false }).await;
        None
    }

    /// Removes the blackhole routes, and the rules that lead to them, of a vpnd that has ended, according to
    /// the journal at `path`; returns the number of objects. `delete` has to remove the packet filter's table
    /// of the kill switch, and returns whether it existed. It is also called with the name `usual`, in case the
    /// journal does not name the table. All other entries stay in the journal for the next start.
    ///
    /// # Errors
    ///
    /// If the journal cannot be read, its vpnd is running, or `delete` fails.
    pub async fn release(
        &self,
        path: &Path,
        usual: &str,
        mut delete: impl FnMut(&str) -> io::Result<bool>,
    ) -> io::Result<usize> {
        let mut undo = Undo::resume(Journal::open_left(path, self.namespace)?);
        let before = undo.len();
        undo.only(|change| !change.is_guard(), &self.handle).await;
        let mut gone = before - undo.len();
        undo.delete_table(|table| {
            gone += usize::from(delete(table)?);
            Ok(())
        })?;
        gone += usize::from(delete(usual)?);
        Ok(gone)
    }

    /// The MTU of a bridge. A port with this MTU never lowers the bridge's MTU.
    ///
    /// # Errors
    ///
    /// If there is no such bridge.
    pub async fn bridge_mtu(&self, name: &str) -> Result<u32, Error> {
        let bridge = controller::find(&self.handle, name, Kind::Bridge).await?;
        Ok(link::mtu(&bridge))
    }

    /// The VRF comes first: the kernel moves the device's addresses and routes to it, and drops the IPv6 ones.
    /// Routes come last: the kernel accepts none for a device that is down. If an IPv6 address is added while
    /// the device is down, the kernel does not add the route to its far end, not even when the device is set
    /// up.
    async fn apply(&self, link: &Link, undo: &mut Undo) -> Result<Plan, Error> {
        let pairs = address::pairs(&link.addresses, &link.peer_addresses)?;
        let device = link::set(&self.handle, link, undo).await?;
        let vrf = controller::join(&self.handle, device, link, undo).await?;
        let mut plan = Plan::new(device, link);
        plan.silent =
            link::up(&self.handle, device, undo).await? || undo.has_silenced(device.index);
        add_all(&self.handle, link, (&pairs, vrf), &mut plan, undo).await?;
        Ok(plan)
    }
}

/// Our addresses, with their far ends, and the table of the VRF.
type Inside<'a> = (&'a [(IpNet, Option<IpAddr>)], Option<u32>);

/// Adds the addresses, rules and routes of a device that is up.
async fn add_all(
    handle: &Handle,
    link: &Link,
    (pairs, vrf): Inside<'_>,
    plan: &mut Plan,
    undo: &mut Undo,
) -> Result<(), Error> {
    let device = Device { name: &link.name, index: plan.index };
    let broadcasts = link::broadcasts(handle, device).await?;
    for &(ours, peer) in pairs {
        let message = address::message(device.index, ours, peer, broadcasts);
        let added = plan.address(handle, message, undo).await;
        added.map_err(|error| Error::refused(Step::Address(ours, peer), device.name, &error))?;
    }
    let connected = pairs.iter().filter_map(|(ours, peer)| address::connected(*ours, *peer));
    let connected: Vec<_> = connected.collect();
    plan.route_all(handle, link, vrf, &connected, undo).await
}

/// A socket for messages to the kernel that needs no runtime.
pub(crate) fn connected() -> io::Result<Socket> {
    let socket = Socket::new(NETLINK_ROUTE)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// Whether a leftover of an earlier run stops packets from taking another route, and does not block a new
/// route.
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
