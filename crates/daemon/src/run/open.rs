//! What a start opens, before it changes anything but what keeps packets in: descriptors in one value, and how the
//! device is to look in another.

use vpnd_crypto::PublicKey;
use vpnd_device::{Heard, Link, Mark, Netlink, Own, SpecificRoutes, Undo, Uplink};
use vpnd_tun::{Carrier, Device};
use vpnd_tunnel::udp::{Socket, Way};

use super::{RunError, stays_shut};
use crate::changes;
use crate::config::{Config, Endpoint, Service};
use crate::control::Control;
use crate::firewall;
use crate::floor::FloorFile;
use crate::linger::Opener;
use crate::netns::Netns;
use crate::tenancy::Tenancy;
use crate::{opening, options};

/// A start whose kill switch is shut, if it has one: nothing leaves beside the tunnel any more that should not.
pub(super) struct Guarded {
    pub(super) control: Option<Control>,
    /// Where the device is.
    pub(super) inside: Netns,
    pub(super) netlink: Netlink,
    /// What is heard of devices, and of everything.
    pub(super) heard: Heard,
    pub(super) news: Heard,
    /// Where the socket is.
    pub(super) outside: Netns,
    pub(super) way: Way,
    /// Whether the tunnel's own datagrams would be led into it.
    would_loop: bool,
    pub(super) undo: Undo,
    pub(super) opener: Option<Opener>,
}

impl Guarded {
    /// Shuts the kill switch.
    ///
    /// # Errors
    /// If the tunnel runs already, or what the kernel refuses.
    pub(super) async fn begin(config: &Config) -> Result<Self, RunError> {
        // First, so that a second start of the same tunnel touches nothing.
        let control = opening::control(config)?;
        let inside = Netns::open(config.interface.netns.as_deref())?;
        let (netlink, heard, news) = inside.within(opening::netlink)??;
        let outside = Netns::open(config.socket.netns.as_deref());
        // A route of another namespace leads no datagram of ours anywhere.
        let would_loop =
            config.leads_everywhere() && outside.as_ref().is_ok_and(|outside| inside.is(outside));
        let way = changes::way(config, &netlink, would_loop).await;
        // Before anything that may fail: a kill switch is not open until a start succeeds.
        let mark = would_loop.then(|| changes::mark(config, &way));
        let mut undo = changes::guard(config, &netlink, mark).await?;
        guard_output(config, &inside, &way, &mut undo).await.inspect_err(|_| stays_shut(config))?;
        let opener = Opener::start(config, &undo, &inside)?;
        let outside = outside?;
        Ok(Self { control, inside, netlink, heard, news, outside, way, would_loop, undo, opener })
    }
}

/// Everything that a tunnel works through, open. Nothing of it is configured yet.
pub(super) struct Opened {
    pub(super) device: Device,
    /// Held until everything is put back.
    pub(super) tenancy: Option<Tenancy>,
    /// The device's, if it follows the peer.
    pub(super) carrier: Option<Carrier>,
    pub(super) socket: Socket,
    pub(super) uplink: Option<Uplink>,
    pub(super) floor: FloorFile,
    /// The MTU that the device is to have.
    pub(super) mtu: u16,
}

impl Opened {
    /// Opens it all.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub(super) async fn open(config: &Config, guarded: &Guarded) -> Result<Self, RunError> {
        let Guarded { inside, outside, netlink, way, .. } = guarded;
        let device = inside.within(|| opening::device(config))??;
        let tenancy = Tenancy::begin(config, &device);
        let carrier = opening::carrier(config, &device);
        let (socket, uplink) =
            outside.within(|| (opening::socket(config, way), opening::uplink()))?;
        let socket = socket?;
        let Service { state_dir, user, .. } = &config.service;
        let floor = FloorFile::open(state_dir, &config.name, user.as_ref());
        let mtu = opening::mtu(&config.interface, &device, netlink).await?;
        Ok(Self { device, tenancy, carrier, socket, uplink, floor, mtu })
    }

    /// How the device is to look.
    ///
    /// # Errors
    /// If its network namespace cannot be entered.
    pub(super) fn wanted(
        &self,
        config: &Config,
        public_key: &PublicKey,
        guarded: &Guarded,
    ) -> Result<Link, RunError> {
        let Guarded { inside, way, would_loop, .. } = guarded;
        let own = || Own {
            mark: changes::mark(config, way),
            port: self.socket.local_port(),
            peers: config.peer.endpoints.iter().filter_map(Endpoint::address).collect(),
        };
        let (name, follows) = (&self.device.name, self.carrier.is_some());
        let passed_over = inside.within(|| opening::passed_over(name, follows))?;
        let link = options::link(config, name, self.mtu, would_loop.then(own));
        let mut link = Link { passed_over, ..link };
        options::choose_mac(&mut link, config, &self.device, public_key);
        Ok(link)
    }
}

/// The mark of the tunnel's own datagrams, if they have one.
pub(super) fn own_mark(config: &Config, way: &Way) -> Option<Mark> {
    (way.mark != 0).then(|| changes::mark(config, way))
}

/// Has the packet filter drop what a kill switch covers, as far as no route does.
async fn guard_output(
    config: &Config,
    inside: &Netns,
    way: &Way,
    undo: &mut Undo,
) -> Result<(), RunError> {
    const NO_DEVICE: u32 = 0;
    let specific = specific_routes(config, inside, NO_DEVICE).await?;
    let own = own_mark(config, way);
    Ok(inside.within(|| firewall::guard(config, own, specific.as_ref(), undo))??)
}

/// The routes that a kill switch leaves alone, where the packet filter's table keeps one.
pub(super) async fn specific_routes(
    config: &Config,
    inside: &Netns,
    index: u32,
) -> Result<Option<SpecificRoutes>, RunError> {
    if !firewall::keeps_in(config) {
        return Ok(None);
    }
    let (netlink, heard) = inside
        .within(|| Ok::<_, vpnd_device::Error>((Netlink::connect()?, Heard::routes()?)))??;
    Ok(Some(SpecificRoutes::read(netlink, heard, index).await))
}
