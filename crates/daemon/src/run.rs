//! Runs one tunnel. The order of a start is the order of the lines in [`run`]: what needs
//! privileges first, threads last.

mod error;

use std::cell::Cell;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use clap::Args;
use futures_util::FutureExt;
use rand::rand_core::UnwrapErr;
use rand::rngs::SysRng;
use tokio::sync::watch;
use vpnd_crypto::PublicKey;
use vpnd_device::{
    Bypass, DeviceMtu, Heard, Link, Mark, Missing, Netlink, Own, PeerState, SpecificRoutes, Stays,
    Undo, Uplink,
};
use vpnd_plane::{Plane, Settings};
use vpnd_protocol::activity::Activity;
use vpnd_protocol::peer::Peer;
use vpnd_protocol::timestamp::Timestamp;
use vpnd_tun::Carrier;
use vpnd_tunnel::clock;
use vpnd_tunnel::engine::Engine;
use vpnd_tunnel::udp::{Socket, Way};

use crate::changes::{self, Changes, HandedOn};
use crate::config::{Config, Endpoint, Service};
use crate::control::Control;
use crate::firewall::{self, Tunnel};
use crate::floor::{FloorFile, FloorWriter};
use crate::hooks::{self, Facts, Following, Hooks, News};
use crate::keys::Keys;
use crate::life::Life;
use crate::linger::{self, AfterStop, Opener};
use crate::loops::Loops;
use crate::netns::Netns;
use crate::panics::Panics;
use crate::presence::Presence;
use crate::privilege;
use crate::shell::{Shell, Surroundings};
use crate::status::{About, Device};
use crate::stop::{Asked, Stop};
use crate::telling::Telling;
use crate::tenancy::Tenancy;
use crate::{opening, options, resolve, service};

pub(crate) use error::RunError;

/// Options of `run`.
#[derive(Clone, Debug, Args)]
pub(crate) struct RunOptions {
    /// The tunnel's configuration
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: PathBuf,
}

/// Runs until it is told to stop.
///
/// # Errors
///
/// If it cannot start, or cannot go on.
pub(crate) fn run(config: Config, keys: Keys) -> Result<(), RunError> {
    changes::announce_start(&config.service.control);
    // One thread, this one; tokio starts others only for blocking work.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(start_to_stop(&config, keys));
    // A name being looked up, or a disk that hangs, does not keep the process from ending.
    runtime.shutdown_background();
    if let Some((handed_on, opener)) = result? {
        linger::open_later(handed_on, opener);
    }
    Ok(())
}

/// A kill switch that opens later, and what opens it.
type Later = (HandedOn, Option<Opener>);

async fn start_to_stop(config: &Config, keys: Keys) -> Result<Option<Later>, RunError> {
    // Before there is anything that a command must not inherit: descriptors, or our place in the queue.
    let hooks = Hooks::start(config.runs_programs())?;
    privilege::share_processor(config.service.nice);
    let stop = Stop::new()?;
    // Until all is put back, it stays open.
    let Prepared { host, changes, tenancy: _tenancy, opener } =
        Host::prepare(config, &keys.secret.public()).await?;
    let asked = stop.asked_by();
    let run = AssertUnwindSafe(host.run(config, keys, stop, hooks));
    // What was changed in the system is put back then, too.
    let result = run.catch_unwind().await.unwrap_or(Err(RunError::Panicked));
    let device = config.interface.persist;
    let guards = match &result {
        Ok(()) if config.has_kill_switch() => linger::after_stop(asked.get()).await,
        Ok(()) => AfterStop::Open,
        // Whoever fails keeps packets in, before it was up as well as after.
        Err(_) => {
            stays_shut(config);
            AfterStop::Shut
        }
    };
    let handed_on = match guards {
        AfterStop::OpenLater => changes.hand_on(device).await,
        AfterStop::Shut | AfterStop::Open => {
            let guards = guards == AfterStop::Shut;
            changes.put_back(Stays { device, guards }).await;
            None
        }
    };
    result.map(|()| handed_on.map(|handed_on| (handed_on, opener)))
}

/// Says what the network does not: that it is vpnd who keeps packets in.
fn stays_shut(config: &Config) {
    if config.has_kill_switch() {
        tracing::warn!(
            "the kill switch stays shut until a start succeeds; `vpnd release {}` opens it",
            config.name
        );
    }
}

/// Everything that needs privileges, made and open.
struct Host {
    device: vpnd_tun::Device,
    /// The device's.
    mtu: u16,
    /// Who sets another one.
    device_mtu: DeviceMtu,
    /// The device's, where frames cross it.
    mac: Option<[u8; 6]>,
    life: Life,
    /// Where it is the peer's to say.
    carrier: Option<Carrier>,
    socket: Socket,
    way: Way,
    uplink: Option<Uplink>,
    /// Where the socket is, and routes are asked for.
    outside: Netns,
    routes: PeerState,
    missing: watch::Receiver<Vec<Missing>>,
    bypassed: watch::Receiver<Vec<Bypass>>,
    loops: Loops,
    floor: FloorFile,
    control: Option<Control>,
    panics: Panics,
}

/// A tunnel that is ready to run.
struct Prepared {
    host: Host,
    changes: Changes,
    /// The device's, until everything is put back.
    tenancy: Option<Tenancy>,
    opener: Option<Opener>,
}

/// What a start has when nothing leaves beside the tunnel any more that should not.
struct Begun {
    control: Option<Control>,
    inside: Netns,
    netlink: Netlink,
    heard: Heard,
    news: Heard,
    outside: Netns,
    way: Way,
    undo: Undo,
    opener: Option<Opener>,
}

impl Host {
    async fn prepare(config: &Config, public_key: &PublicKey) -> Result<Prepared, RunError> {
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
        let mut undo =
            changes::guard(config, &netlink, would_loop.then(|| changes::mark(config, &way)))
                .await?;
        guard_output(config, &inside, &way, &mut undo).await.inspect_err(|_| stays_shut(config))?;
        let opener = Opener::start(config, &undo, &inside)?;
        let outside = outside?;
        let begun = Begun { control, inside, netlink, heard, news, outside, way, undo, opener };
        Self::go_on(config, public_key, begun, would_loop).await.inspect_err(|_| stays_shut(config))
    }

    async fn go_on(
        config: &Config,
        public_key: &PublicKey,
        begun: Begun,
        would_loop: bool,
    ) -> Result<Prepared, RunError> {
        let Begun { control, inside, netlink, heard, news, outside, way, undo, opener } = begun;
        let device = inside.within(|| opening::device(config))??;
        let tenancy = Tenancy::begin(config, &device);
        let carrier = opening::carrier(config, &device);
        let (socket, uplink) =
            outside.within(|| (opening::socket(config, &way), opening::uplink()))?;
        let socket = socket?;
        let Service { state_dir, user, .. } = &config.service;
        let floor = FloorFile::open(state_dir, &config.name, user.as_ref());
        let mtu = opening::mtu(&config.interface, &device, &netlink).await?;
        let own = Own {
            mark: changes::mark(config, &way),
            port: socket.local_port(),
            peers: config.peer.endpoints.iter().filter_map(Endpoint::address).collect(),
        };
        let passed_over =
            inside.within(|| opening::passed_over(&device.name, carrier.is_some()))?;
        let own = would_loop.then_some(own);
        let mark = own.as_ref().map(|own| own.mark);
        let mut link = Link { passed_over, ..options::link(config, &device.name, mtu, own) };
        options::choose_mac(&mut link, config, &device, public_key);
        let presence = Presence::of(&device.queues[0])?;
        let watch = netlink.watch(&device.name, heard).await?;
        let life = Life::new(&device.name, watch, presence);
        // Before there are addresses that somebody could send to.
        let tunnel = Tunnel { index: life.index(), mark, borne: borne(config, &way) };
        let specific = specific_routes(config, &inside, tunnel.index).await?;
        let firewall = inside.within(|| firewall::set(config, tunnel, specific))??;
        let (changes, mac) = Changes::make(netlink, news, &link, undo).await?;
        let changes = changes.with(firewall);
        let (routes, missing) = (changes.peer(), changes.missing());
        let bypassed = changes.bypassed();
        let asking =
            outside.within(|| Ok::<_, RunError>((Netlink::connect()?, Heard::routes()?)))??;
        let index = inside.is(&outside).then(|| life.index());
        let loops = Loops::new(asking, way.clone(), index, changes.own());
        let host = Self {
            device,
            carrier,
            mtu,
            device_mtu: changes.mtu(),
            mac,
            life,
            socket,
            way,
            uplink,
            outside,
            routes,
            missing,
            bypassed,
            loops,
            floor,
            control,
            panics: Panics::watch(),
        };
        Ok(Prepared { host, changes, tenancy, opener })
    }

    /// Runs from the hooks of the start to those of the end.
    async fn run(
        self,
        config: &Config,
        keys: Keys,
        mut stop: Stop,
        hooks: Hooks,
    ) -> Result<(), RunError> {
        let plan = hooks::plan(config, self.facts());
        let Some(mut hooks) = hooks.up(plan, stop.asked()).await? else {
            tracing::info!("stopping, as asked, before it was up");
            return Ok(());
        };
        let result = self.run_without_privileges(config, keys, stop, &mut hooks).await;
        hooks.end().await;
        result
    }

    /// All threads have ended when this returns. The device is open until then, so that what was
    /// changed can be put back.
    async fn run_without_privileges(
        self,
        config: &Config,
        keys: Keys,
        mut stop: Stop,
        hooks: &mut Following,
    ) -> Result<(), RunError> {
        // Names are looked up, and routes, where datagrams leave.
        self.outside.enter()?;
        privilege::drop_to(config.service.user.as_ref())?;
        if config.interface.persist {
            vpnd_tun::keep(&self.device.queues[0], &self.device.name)?;
        }
        if let Some(control) = &self.control {
            stop.on_reload(control.rereads());
        }
        let mut shell = self.start(config, keys, hooks.news(), stop.asked_by())?;
        // Packets move on while the hooks of the end are run.
        let stop = async {
            stop.asked().await;
            hooks.end().await;
        };
        Ok(shell.run(stop).await?)
    }

    fn facts(&self) -> Facts<'_> {
        Facts { device: &self.device.name, mtu: self.mtu, listen_port: self.socket.local_port() }
    }

    fn start(
        self,
        config: &Config,
        keys: Keys,
        hooks: News,
        stop: Rc<Cell<Option<Asked>>>,
    ) -> Result<Shell, RunError> {
        let about = about(config, &keys, &self);
        let (name, mtu) = (self.device.name.clone(), self.mtu);
        let activity = Arc::new(Activity::default());
        let peer = Peer::new(
            options::peer(config, keys, (mtu, self.mac), last_stamp(&self.floor)),
            Arc::clone(&activity),
            // The kernel's, each time: a generator of our own would hold the key to every
            // ephemeral secret it ever gave out.
            Box::new(UnwrapErr(SysRng)),
            clock::now(),
        );
        let (table, options) = (peer.table(), options::engine(config, mtu));
        let policy = options.policy.clone();
        let (engine, reports) = Engine::start(self.device, self.socket, activity, table, options)?;
        // What is started from here on goes no sooner than other programs do.
        privilege::yield_to_others();
        tracing::info!("{name} is up, listening on port {}", engine.local_port());
        let around = Surroundings {
            running: config.clone(),
            about,
            device_mtu: self.device_mtu,
            life: self.life,
            way: self.way,
            uplink: self.uplink,
            routes: self.routes,
            missing: self.missing,
            bypassed: self.bypassed,
            loops: self.loops,
            floor: FloorWriter::start(self.floor)?,
            carrier: self.carrier,
            resolver: resolve::spawn(config.peer.endpoints.clone())?,
            control: self.control,
            service: service::Service::default(),
            hooks,
            panics: self.panics,
            stop,
        };
        let telling = Telling::new(config.peer.public_key);
        let settings =
            Settings { mtu_max: config.path.mtu_max, carrier_follows: around.carrier.is_some() };
        let plane = Plane::new(peer, policy, settings);
        Ok(Shell::new(plane, telling, engine, reports, around)?)
    }
}

/// The mark of the tunnel's own datagrams, whoever looks for it.
fn borne(config: &Config, way: &Way) -> Option<Mark> {
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
    let own = borne(config, way);
    Ok(inside.within(|| firewall::guard(config, own, specific.as_ref(), undo))??)
}

/// The routes that a kill switch leaves alone, where the packet filter's table keeps one.
async fn specific_routes(
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

fn last_stamp(floor: &FloorFile) -> Option<Timestamp> {
    floor.read(clock::now().wall).unwrap_or_else(|error| {
        tracing::warn!("{error}");
        None
    })
}

fn about(config: &Config, keys: &Keys, host: &Host) -> About {
    About {
        name: config.name.clone(),
        device: Device {
            name: host.device.name.clone(),
            mode: options::mode(config).word().to_owned(),
            mtu: host.mtu,
            queues: host.device.queues.len(),
            listen_port: host.socket.local_port(),
            public_key: keys.secret.public().to_string(),
        },
        protocol: config.peer.protocol.to_string(),
        preshared_key: config.peer.preshared_key_file.is_some(),
        endpoints: config.peer.endpoints.iter().map(ToString::to_string).collect(),
        dead_after: config.peer.dead_after,
    }
}
