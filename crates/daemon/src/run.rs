//! Runs one tunnel. A start happens in the order of the lines in [`run`]: first the steps that need privileges,
//! and the threads last.

mod draft;
mod error;
mod open;
mod waiting;

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use futures_util::FutureExt;
use rand::rand_core::UnwrapErr;
use rand::rngs::SysRng;
use tokio::sync::{oneshot, watch};
use vpnd_device::{Bypass, DeviceMtu, Heard, Missing, Netlink, PeerState, Stays, Uplink};
use vpnd_plane::Plane;
use vpnd_protocol::activity::Activity;
use vpnd_protocol::inheritance::Inheritance;
use vpnd_protocol::peer::Peer;
use vpnd_protocol::timestamp::Timestamp;
use vpnd_tun::Carrier;
use vpnd_tunnel::clock;
use vpnd_tunnel::engine::Engine;
use vpnd_tunnel::udp::{Egress, Socket};

use crate::changes::{self, Changes, HandedOn};
use crate::config::{Config, Loaded, Running};
use crate::control::Control;
use crate::device_watch::DeviceWatch;
use crate::diagnostics::Diagnostics;
use crate::fingerprint::Fingerprints;
use crate::firewall::{self, Tunnel};
use crate::floor::{FloorFile, FloorWriter};
use crate::hand_on::{self, Offer};
use crate::hooks::{self, Facts, Following, Hooks, News};
use crate::inherited::{self, Earlier, Inherited};
use crate::keys::Keys;
use crate::linger::{self, AfterStop, Opener};
use crate::loops::Loops;
use crate::metrics;
use crate::netns::Netns;
use crate::panics::Panics;
use crate::presence::Presence;
use crate::privilege;
use crate::sandbox::{Confined, Role, Sandbox};
use crate::shell::{Alterable, Ending, Shell, Surroundings};
use crate::status::{About, Device};
use crate::stop::{Asked, Stop};
use crate::tenancy::Tenancy;
use crate::uapi::{Hold, Refused, Uapi};
use crate::{options, resolve, service};

use open::{Guarded, Opened, own_mark, specific_routes};

pub(crate) use error::RunError;

/// Options of `run`.
#[derive(Clone, Debug, Args)]
pub(crate) struct RunOptions {
    /// The tunnel's configuration
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Continues with the tunnel of this configuration that is running: no packet is lost, and that process ends
    #[arg(long)]
    pub(crate) take_over: bool,
}

/// Runs the tunnel until it is asked to stop.
///
/// # Errors
///
/// If the tunnel cannot start, or cannot continue.
pub(crate) fn run(config: Config, keys: Keys, inherited: Inherited) -> Result<(), RunError> {
    changes::announce_start(&config.service.control);
    // The runtime has a single thread, this one; tokio starts others only for blocking work.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result =
        runtime.block_on(start_to_stop(&config, keys, Given { inherited, ..Given::default() }));
    finish(runtime, result)
}

/// Waits on the WireGuard socket until there is a configuration, and then runs the tunnel with this device.
///
/// # Errors
///
/// If the tunnel cannot start, or cannot continue.
pub(crate) fn run_given(device: vpnd_tun::Device, socket: OwnedFd) -> Result<(), RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let mut uapi = Uapi::inherited(&device.name, socket)?;
        let Some((Loaded { config, keys, warnings }, started)) =
            waiting::wait(&device, &mut uapi).await?
        else {
            return Ok(None);
        };
        warnings.lines().for_each(|warning| tracing::warn!("{warning}"));
        changes::announce_start(&config.service.control);
        let (device, uapi, started) = (Some(device), Some(uapi), Some(started));
        let given = Given { device, uapi, started, ..Given::default() };
        let result = start_to_stop(&config, keys, given).await;
        if result.is_err() {
            // The answer to the last request says that it failed.
            tokio::time::sleep(LAST_ANSWER).await;
        }
        result
    });
    finish(runtime, result)
}

/// What a tunnel is given by an earlier process, or by the one that has waited for its configuration.
#[derive(Default)]
struct Given {
    inherited: Inherited,
    device: Option<vpnd_tun::Device>,
    uapi: Option<Uapi>,
    /// Told once the tunnel runs.
    started: Option<oneshot::Sender<Result<(), Refused>>>,
}

/// How long an answer may take to leave.
const LAST_ANSWER: Duration = Duration::from_millis(50);

fn finish(
    runtime: tokio::runtime::Runtime,
    result: Result<Option<Later>, RunError>,
) -> Result<(), RunError> {
    // The end of the process does not wait for a name lookup or a hanging disk.
    runtime.shutdown_background();
    if let Some((handed_on, opener)) = result? {
        linger::open_later(handed_on, opener);
    }
    Ok(())
}

/// A kill switch that is removed later, and the process that removes it.
type Later = (HandedOn, Option<Opener>);

async fn start_to_stop(
    config: &Config,
    keys: Keys,
    mut given: Given,
) -> Result<Option<Later>, RunError> {
    given.inherited.open_sessions(config, &keys);
    // Until this process is ready, another one runs the tunnel.
    let shared = Rc::new(Cell::new(given.inherited.is_asked_for()));
    // First, because a command must inherit neither descriptors nor vpnd's scheduling priority.
    let hooks = Hooks::start(config.runs_programs())?;
    privilege::share_processor(config.service.nice);
    let stop = Stop::new()?;
    // The tenancy is dropped after everything is reverted.
    let Prepared { host, changes, tenancy, opener } =
        Host::prepare(config, &keys, given, &shared).await?;
    let asked = stop.asked_by();
    // A reload may change it.
    let kill_switch = Rc::clone(&host.kill_switch);
    let run = AssertUnwindSafe(host.run(config, keys, stop, hooks));
    // After a panic, the changes to the system are reverted, too.
    let result = run.catch_unwind().await.unwrap_or(Err(RunError::Panicked));
    if shared.get() || matches!(result, Ok(Ending::HandedOn)) {
        // Another process goes on with everything.
        tenancy.into_iter().for_each(Tenancy::hand_on);
        changes.leave().await;
        return result.map(|_ending| None);
    }
    // What follows is reverted, so that no later process may continue with it.
    hand_on::forget();
    let device = config.interface.persist;
    let guards = match &result {
        Ok(_over) if kill_switch.get() => linger::after_stop(asked.get()).await,
        Ok(_over) => AfterStop::Open,
        // After a failure the kill switch stays, during the start as well as afterwards.
        Err(_) => {
            stays_shut(config, kill_switch.get());
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
    drop(tenancy);
    result.map(|_over| handed_on.map(|handed_on| (handed_on, opener)))
}

/// Logs that vpnd blocks packets, because the network does not show the reason.
fn stays_shut(config: &Config, kill_switch: bool) {
    if kill_switch {
        tracing::warn!(
            "the kill switch stays in place until vpnd starts successfully; `vpnd release {}` removes it",
            config.name
        );
    }
}

/// All objects that need privileges, created and opened.
struct Host {
    device: vpnd_tun::Device,
    /// The device's MTU.
    mtu: u16,
    /// The handle that sets another MTU.
    device_mtu: DeviceMtu,
    /// The device's hardware address, if it is an Ethernet device.
    mac: Option<[u8; 6]>,
    device_watch: DeviceWatch,
    /// The device's carrier, if it can be set.
    carrier: Option<Carrier>,
    socket: Socket,
    egress: Egress,
    uplink: Option<Uplink>,
    /// The network namespace of the socket, where routes are looked up.
    outside: Netns,
    routes: PeerState,
    missing: watch::Receiver<Vec<Missing>>,
    bypassed: watch::Receiver<Vec<Bypass>>,
    loops: Loops,
    floor: FloorFile,
    control: Option<Control>,
    uapi: Option<Uapi>,
    started: Option<oneshot::Sender<Result<(), Refused>>>,
    metrics: Option<metrics::Bound>,
    panics: Panics,
    alter: Alterable,
    kill_switch: Rc<Cell<bool>>,
    /// What an earlier process has left, if its device is continued with.
    left: Option<Inheritance>,
    /// The process that runs the tunnel until this one is ready, and whether it still does.
    earlier: Option<Earlier>,
    shared: Rc<Cell<bool>>,
}

/// A tunnel that is ready to run.
struct Prepared {
    host: Host,
    changes: Changes,
    /// The use of the device, until everything is reverted.
    tenancy: Option<Tenancy>,
    opener: Option<Opener>,
}

impl Host {
    async fn prepare(
        config: &Config,
        keys: &Keys,
        mut given: Given,
        shared: &Rc<Cell<bool>>,
    ) -> Result<Prepared, RunError> {
        let guarded = Guarded::begin(config, &mut given.inherited).await?;
        Self::configure(config, keys, guarded, given, Rc::clone(shared))
            .await
            .inspect_err(|_| stays_shut(config, config.has_kill_switch()))
    }

    /// Opens all objects first, and then changes the system.
    async fn configure(
        config: &Config,
        keys: &Keys,
        guarded: Guarded,
        Given { device, uapi, started, inherited }: Given,
        shared: Rc<Cell<bool>>,
    ) -> Result<Prepared, RunError> {
        let opened = Opened::open(config, &guarded, (device, uapi, inherited)).await?;
        let link = opened.wanted(config, &keys.secret.public(), &guarded);
        let Guarded {
            control,
            inside,
            netlink,
            heard,
            news,
            outside,
            egress,
            mut undo,
            opener,
            ..
        } = guarded;
        let Opened {
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
            earlier,
        } = opened;
        let presence = Presence::of(&device.queues[0])?;
        let watch = netlink.watch(&device.name, heard).await?;
        let device_watch = DeviceWatch::new(&device.name, watch, presence);
        // This comes before there are addresses that packets could be sent to.
        let mark = link.own.as_ref().map(|own| own.mark);
        let tunnel = Tunnel { index: device_watch.index(), mark, borne: own_mark(config, &egress) };
        let specific = specific_routes(config.service.firewall, &inside, tunnel.index).await?;
        let firewall = inside.within(|| firewall::set(config, tunnel, specific, firewall))??;
        if left.is_some() && earlier.is_some() {
            undo.share();
        }
        let (changes, mac) = Changes::make(netlink, news, &link, undo).await?;
        let changes = changes.with(firewall);
        let asking = outside.within(routes_of_datagrams)??;
        let one_place = inside.is(&outside);
        let index = one_place.then(|| device_watch.index());
        let kill_switch = Rc::new(Cell::new(config.has_kill_switch()));
        let running = Running { adopted: device.adopted, has_runner: config.runs_programs() };
        let alter = Alterable {
            link: changes.link(),
            hold: changes.hold(),
            rules: changes.rules(),
            netlink: changes.netlink(),
            first: link,
            passed_over,
            one_place,
            running,
            keys: Fingerprints::of(keys).map_err(io::Error::other)?,
            kill_switch: Rc::clone(&kill_switch),
        };
        let host = Self {
            loops: Loops::new(asking, egress.clone(), index, changes.own()),
            device_mtu: changes.mtu(),
            routes: changes.peer(),
            missing: changes.missing(),
            bypassed: changes.bypassed(),
            panics: Panics::watch(),
            device,
            carrier,
            mtu,
            mac,
            device_watch,
            socket,
            egress,
            uplink,
            outside,
            floor,
            control,
            uapi,
            started,
            metrics,
            alter,
            kill_switch,
            left,
            earlier,
            shared,
        };
        Ok(Prepared { host, changes, tenancy, opener })
    }

    /// Runs the hooks of the start, the tunnel, and the hooks of the end.
    async fn run(
        self,
        config: &Config,
        keys: Keys,
        mut stop: Stop,
        hooks: Hooks,
    ) -> Result<Ending, RunError> {
        let plan = hooks::plan(config, self.facts());
        let up = match &self.left {
            Some(left) => hooks.continue_with(plan, left.is_alive()).await.map(Some),
            None => hooks.up(plan, stop.asked()).await,
        };
        let Some(mut hooks) = up? else {
            tracing::info!("stopping on request, before the tunnel was up");
            return Ok(Ending::Over);
        };
        let shared = Rc::clone(&self.shared);
        let result = self.run_without_privileges(config, keys, stop, &mut hooks).await;
        match result {
            // The next process runs the tunnel already, but must not cut a command short.
            Ok(Ending::HandedOn) => hooks.hand_on().await,
            _ if shared.get() => {}
            _ => hooks.end().await,
        }
        result
    }

    /// All threads have ended when this returns. The device is open until then, so that changes can be
    /// reverted.
    async fn run_without_privileges(
        mut self,
        config: &Config,
        keys: Keys,
        mut stop: Stop,
        hooks: &mut Following,
    ) -> Result<Ending, RunError> {
        // Names and routes are looked up in the namespace in which datagrams leave.
        self.outside.enter()?;
        privilege::drop_to(config.service.user.as_ref())?;
        if config.interface.persist {
            vpnd_tun::keep(&self.device.queues[0], &self.device.name)?;
        }
        if let Some(control) = &self.control {
            stop.on_reload(control.rereads());
        }
        let started = self.started.take();
        let mut shell = self.start(config, keys, hooks.news(), stop.asked_by()).await?;
        if let Some(started) = started {
            // Whoever asked may have left.
            let _left = started.send(Ok(()));
        }
        // Packets still pass while the `down` hooks run.
        let asked = stop.asked_by();
        let stop = async {
            stop.asked().await;
            match asked.get() {
                // The next process continues with the tunnel. It must not cut a command short.
                Some(Asked::Restart) => hooks.hand_on().await,
                _ => hooks.end().await,
            }
        };
        Ok(shell.run(stop).await?)
    }

    fn facts(&self) -> Facts<'_> {
        Facts { device: &self.device.name, mtu: self.mtu, listen_port: self.socket.local_port() }
    }

    fn peer(
        &self,
        config: &Config,
        keys: Keys,
        last_stamp: Option<Timestamp>,
        activity: &Arc<Activity>,
    ) -> Peer {
        let options = options::peer(config, keys, (self.mtu, self.mac), last_stamp);
        // The kernel's generator is used each time. If vpnd had its own generator, the generator's key would
        // reveal every ephemeral secret that it ever generated.
        Peer::new(options, Arc::clone(activity), Box::new(UnwrapErr(SysRng)), clock::now())
    }

    async fn start(
        mut self,
        config: &Config,
        keys: Keys,
        hooks: News,
        stop: Rc<Cell<Option<Asked>>>,
    ) -> Result<Shell, RunError> {
        let sandbox = Sandbox::of(config);
        // These threads need other files than this one.
        let lookups = sandbox.worker("lookups", Role::Lookups)?;
        let resolver = resolve::spawn(config.peer.endpoints.clone(), &lookups, None).await?;
        let stored = last_stamp(&self.floor);
        let floor = FloorWriter::start(self.floor.clone(), &sandbox)?;
        self.control.iter().for_each(|control| control.load_with(&lookups));
        let confined = sandbox.confine(Role::Main)?;
        let about = about(config, &keys, &self, confined);
        let (name, mtu) = (self.device.name.clone(), self.mtu);
        let mut hold = Hold::new(self.uapi.take(), &keys.preshared, config.peer.keepalive);
        let activity = Arc::new(Activity::default());
        // From here on hardly anything can fail.
        let left = self.take_tunnel(config, &keys)?;
        self.control.iter_mut().for_each(Control::begin);
        hold.begin();
        let alive = left.as_ref().is_some_and(Inheritance::is_alive);
        let last_stamp = stored.max(left.as_ref().and_then(Inheritance::stamp));
        let mut peer = self.peer(config, keys, last_stamp, &activity);
        if let Some(left) = left {
            tracing::info!(
                sessions = left.sessions(),
                "continuing with the device of an earlier process"
            );
            peer.inherit(clock::now(), left);
        }
        let (table, options) = (peer.table(), options::engine(config, mtu, sandbox));
        let policy = options.policy.clone();
        hand_on::keep(&Offer {
            device: self.device.descriptors(),
            socket: self.socket.as_fd(),
            firewall: self.alter.rules.as_ref().and_then(|rules| rules.socket().ok()),
            listeners: Vec::new(),
        });
        let (engine, reports) = Engine::start(self.device, self.socket, activity, table, options)?;
        // Processes that are started from here on have the normal priority.
        privilege::yield_to_others();
        tracing::info!("{name} is up, listening on port {}", engine.local_port());
        let around = Surroundings {
            running: config.clone(),
            alter: self.alter,
            about,
            device_mtu: self.device_mtu,
            device_watch: self.device_watch,
            egress: self.egress,
            uplink: self.uplink,
            routes: self.routes,
            missing: self.missing,
            bypassed: self.bypassed,
            loops: self.loops,
            floor,
            carrier: self.carrier,
            resolver,
            lookups,
            control: self.control,
            hold,
            metrics: self.metrics.map(metrics::Bound::serve),
            service: service::Service::default(),
            hooks,
            panics: self.panics,
            stop,
        };
        let diagnostics = Diagnostics::new(config.peer.public_key);
        let follows = options::carrier_follows(config, around.carrier.as_ref());
        let settings = options::settings(config, follows, alive);
        let plane = Plane::new(peer, policy, settings);
        Ok(Shell::new(plane, diagnostics, engine, reports, around)?)
    }
}

impl Host {
    /// Ends the earlier process, if it still runs the tunnel, and returns what it has left.
    fn take_tunnel(
        &mut self,
        config: &Config,
        keys: &Keys,
    ) -> Result<Option<Inheritance>, RunError> {
        let before = self.left.take();
        let Some(earlier) = self.earlier.take() else { return Ok(before) };
        let left = earlier
            .end(|binding| inherited::expected(binding, config, keys))
            .map_err(RunError::NotHandedOn)?;
        self.shared.set(false);
        // Without its device, nothing of it is continued.
        Ok(before.map(|before| left.unwrap_or(before)))
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

fn about(config: &Config, keys: &Keys, host: &Host, sandbox: Confined) -> About {
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
        sandbox,
    }
}
