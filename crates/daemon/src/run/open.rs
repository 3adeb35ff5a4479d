//! Opens the objects that a start needs, before the start changes anything except the kill switch. All
//! descriptors are in one value, and the wanted state of the device in another.

use vpnd_crypto::PublicKey;
use vpnd_device::{Families, Heard, Link, Mark, Netlink, Own, SpecificRoutes, Undo, Uplink};
use vpnd_protocol::inheritance::Inheritance;
use vpnd_tun::{Carrier, Device};
use vpnd_tunnel::udp::{Egress, Socket};

use super::{RunError, stays_shut};
use crate::changes;
use crate::config::{Config, Endpoint, Service};
use crate::control::Control;
use crate::firewall;
use crate::floor::FloorFile;
use crate::inherited::{Earlier, Inherited};
use crate::linger::Opener;
use crate::metrics::Bound;
use crate::netns::Netns;
use crate::nft::Connection;
use crate::tenancy::Tenancy;
use crate::uapi::Uapi;
use crate::{opening, options};

/// A start whose kill switch is in place, if it has one: from here on no packet leaves outside the tunnel
/// against the configuration.
pub(super) struct Guarded {
    pub(super) control: Option<Control>,
    /// The network namespace of the device.
    pub(super) inside: Netns,
    pub(super) netlink: Netlink,
    /// The kernel's messages about devices, and about everything.
    pub(super) heard: Heard,
    pub(super) news: Heard,
    /// The network namespace of the socket.
    pub(super) outside: Netns,
    pub(super) egress: Egress,
    /// Whether the tunnel's routes would lead its own datagrams into the tunnel.
    pub(super) would_loop: bool,
    pub(super) undo: Undo,
    pub(super) opener: Option<Opener>,
}

impl Guarded {
    /// Sets up the kill switch.
    ///
    /// # Errors
    /// If the tunnel is already running, or the kernel refuses.
    pub(super) async fn begin(
        config: &Config,
        inherited: &mut Inherited,
    ) -> Result<Self, RunError> {
        // This comes first, so that a second start of the same tunnel changes nothing.
        let control = opening::control(config, inherited)?;
        let inside = Netns::open(config.interface.netns.as_deref())?;
        let (netlink, heard, news) = inside.within(opening::netlink)??;
        let outside = Netns::open(config.socket.netns.as_deref());
        // A route in another namespace does not affect our datagrams.
        let would_loop =
            config.leads_everywhere() && outside.as_ref().is_ok_and(|outside| inside.is(outside));
        let egress = changes::egress(config, &netlink, would_loop).await;
        // This comes before any step that may fail: the kill switch stays in place even if the start fails.
        let mark = would_loop.then(|| changes::mark(config, &egress));
        let mut undo = changes::guard(config, &netlink, mark).await?;
        guard_output(config, &inside, &egress, &mut undo)
            .await
            .inspect_err(|_| stays_shut(config, config.has_kill_switch()))?;
        let opener = Opener::start(config, &undo, &inside)?;
        let outside = outside?;
        Ok(Self {
            control,
            inside,
            netlink,
            heard,
            news,
            outside,
            egress,
            would_loop,
            undo,
            opener,
        })
    }
}

/// The objects that a tunnel works with, all of them open. Nothing is configured yet.
pub(super) struct Opened {
    pub(super) device: Device,
    /// Kept until everything is reverted.
    pub(super) tenancy: Option<Tenancy>,
    /// The device's carrier, if it can be set.
    pub(super) carrier: Option<Carrier>,
    /// The families whose routes the kernel ignores while the device has no carrier.
    pub(super) passed_over: Families,
    pub(super) socket: Socket,
    pub(super) uplink: Option<Uplink>,
    pub(super) floor: FloorFile,
    pub(super) metrics: Option<Bound>,
    /// The MTU that the device will get.
    pub(super) mtu: u16,
    /// What an earlier process has left, if its device is continued with.
    pub(super) left: Option<Inheritance>,
    /// The WireGuard socket.
    pub(super) uapi: Option<Uapi>,
    /// The connection that our nftables table belongs to.
    pub(super) firewall: Option<Connection>,
    /// The process that runs the tunnel until this one is ready.
    pub(super) earlier: Option<Earlier>,
}

impl Opened {
    /// Opens all objects.
    ///
    /// # Errors
    /// The kernel's error.
    pub(super) async fn open(
        config: &Config,
        guarded: &Guarded,
        (device, uapi, mut inherited): (Option<Device>, Option<Uapi>, Inherited),
    ) -> Result<Self, RunError> {
        let Guarded { inside, outside, netlink, egress, .. } = guarded;
        // This comes before the device is created: another program may have the port.
        let metrics = opening::metrics(config, &mut inherited)?;
        let earlier = inside.within(|| opening::inherited_device(config, &mut inherited))?;
        let (device, left) = match (device, earlier) {
            (Some(given), _) => (opening::prepared(given)?, None),
            (None, Some(device)) => {
                let left = inside.within(|| opening::left(config, &device, &mut inherited))?;
                (device, Some(left))
            }
            (None, None) => (inside.within(|| opening::device(config))??, None),
        };
        let is_alive = left.as_ref().is_some_and(Inheritance::is_alive);
        let tenancy = Tenancy::begin(config, &device);
        let carrier = opening::carrier(config, &device, is_alive);
        let passed_over = inside.within(|| opening::passed_over(&device.name))?;
        let earlier = inherited.socket();
        let (socket, uplink) =
            outside.within(|| (opening::socket(config, egress, earlier), opening::uplink()))?;
        let socket = socket?;
        let Service { state_dir, user, .. } = &config.service;
        let floor = FloorFile::open(state_dir, &config.name, user.as_ref());
        let mtu = opening::mtu(&config.interface, &device, netlink, left.is_some()).await?;
        let uapi = uapi.or_else(|| opening::uapi(config, &device.name, &mut inherited));
        let firewall = opening::firewall(config, &mut inherited);
        Ok(Self {
            device,
            tenancy,
            carrier,
            passed_over,
            socket,
            uplink,
            floor,
            metrics,
            mtu,
            uapi,
            left,
            firewall,
            earlier: inherited.earlier(),
        })
    }

    /// The wanted state of the device.
    pub(super) fn wanted(
        &self,
        config: &Config,
        public_key: &PublicKey,
        guarded: &Guarded,
    ) -> Link {
        let Guarded { egress, would_loop, .. } = guarded;
        let own = || Own {
            mark: changes::mark(config, egress),
            port: self.socket.local_port(),
            peers: config.peer.endpoints.iter().filter_map(Endpoint::address).collect(),
        };
        let name = &self.device.name;
        let mut link = options::link(config, name, self.mtu, would_loop.then(own));
        link.alive = self.left.as_ref().is_some_and(Inheritance::is_alive);
        if options::carrier_follows(config, self.carrier.as_ref()) {
            link.passed_over = self.passed_over;
        }
        options::choose_mac(&mut link, config, &self.device, public_key);
        link
    }
}

/// The mark of the tunnel's own datagrams, if they have one.
pub(super) fn own_mark(config: &Config, egress: &Egress) -> Option<Mark> {
    (egress.mark != 0).then(|| changes::mark(config, egress))
}

/// Makes the packet filter drop the packets that a kill switch must block and no route blocks.
async fn guard_output(
    config: &Config,
    inside: &Netns,
    egress: &Egress,
    undo: &mut Undo,
) -> Result<(), RunError> {
    const NO_DEVICE: u32 = 0;
    let specific = specific_routes(firewall::keeps_in(config), inside, NO_DEVICE).await?;
    let own = own_mark(config, egress);
    Ok(inside.within(|| firewall::guard(config, own, specific.as_ref(), undo))??)
}

/// The routes that a kill switch does not cover, if the packet filter's tables need them, or may need them later.
pub(super) async fn specific_routes(
    needed: bool,
    inside: &Netns,
    index: u32,
) -> Result<Option<SpecificRoutes>, RunError> {
    if !needed {
        return Ok(None);
    }
    let (netlink, heard) = inside
        .within(|| Ok::<_, vpnd_device::Error>((Netlink::connect()?, Heard::routes()?)))??;
    Ok(Some(SpecificRoutes::read(netlink, heard, index).await))
}
