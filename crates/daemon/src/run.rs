//! Runs one tunnel. The order of a start is the order of the lines in [`run`]: what needs
//! privileges first, threads last.

mod error;
mod open;

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
use vpnd_device::{Bypass, DeviceMtu, Heard, Missing, Netlink, PeerState, Stays, Uplink};
use vpnd_plane::{Plane, Settings};
use vpnd_protocol::activity::Activity;
use vpnd_protocol::peer::Peer;
use vpnd_protocol::timestamp::Timestamp;
use vpnd_tun::Carrier;
use vpnd_tunnel::clock;
use vpnd_tunnel::engine::Engine;
use vpnd_tunnel::udp::{Socket, Way};

use crate::changes::{self, Changes, HandedOn};
use crate::config::Config;
use crate::control::Control;
use crate::diagnostics::Diagnostics;
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
use crate::tenancy::Tenancy;
use crate::{options, resolve, service};

use open::{Guarded, Opened, own_mark, specific_routes};

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

impl Host {
    async fn prepare(config: &Config, public_key: &PublicKey) -> Result<Prepared, RunError> {
        let guarded = Guarded::begin(config).await?;
        Self::configure(config, public_key, guarded).await.inspect_err(|_| stays_shut(config))
    }

    /// Opens everything first, then changes the system.
    async fn configure(
        config: &Config,
        public_key: &PublicKey,
        guarded: Guarded,
    ) -> Result<Prepared, RunError> {
        let opened = Opened::open(config, &guarded).await?;
        let link = opened.wanted(config, public_key, &guarded)?;
        let Guarded { control, inside, netlink, heard, news, outside, way, undo, opener, .. } =
            guarded;
        let Opened { device, tenancy, carrier, socket, uplink, floor, mtu } = opened;
        let presence = Presence::of(&device.queues[0])?;
        let life = Life::new(&device.name, netlink.watch(&device.name, heard).await?, presence);
        // Before there are addresses that somebody could send to.
        let mark = link.own.as_ref().map(|own| own.mark);
        let tunnel = Tunnel { index: life.index(), mark, borne: own_mark(config, &way) };
        let specific = specific_routes(config, &inside, tunnel.index).await?;
        let firewall = inside.within(|| firewall::set(config, tunnel, specific))??;
        let (changes, mac) = Changes::make(netlink, news, &link, undo).await?;
        let changes = changes.with(firewall);
        let asking = outside.within(routes_of_datagrams)??;
        let index = inside.is(&outside).then(|| life.index());
        let host = Self {
            loops: Loops::new(asking, way.clone(), index, changes.own()),
            device_mtu: changes.mtu(),
            routes: changes.peer(),
            missing: changes.missing(),
            bypassed: changes.bypassed(),
            panics: Panics::watch(),
            device,
            carrier,
            mtu,
            mac,
            life,
            socket,
            way,
            uplink,
            outside,
            floor,
            control,
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
        let diagnostics = Diagnostics::new(config.peer.public_key);
        let settings =
            Settings { mtu_max: config.path.mtu_max, carrier_follows: around.carrier.is_some() };
        let plane = Plane::new(peer, policy, settings);
        Ok(Shell::new(plane, diagnostics, engine, reports, around)?)
    }
}

fn routes_of_datagrams() -> Result<(Netlink, Heard), vpnd_device::Error> {
    Ok((Netlink::connect()?, Heard::routes()?))
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
            mode: config.interface.mode.word().to_owned(),
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
