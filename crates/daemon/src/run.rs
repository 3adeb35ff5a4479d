//! Runs one tunnel. The order of a start is the order of the lines in [`run`]: what needs
//! privileges first, threads last.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::SysRng;
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use vpnd_device::{Link, Netlink, Undo};
use vpnd_protocol::activity::Activity;
use vpnd_protocol::handshake::Identity;
use vpnd_protocol::peer::{self, Peer};
use vpnd_tun::{Mode, OpenError, Options, Queue};
use vpnd_tunnel::clock;
use vpnd_tunnel::engine::{self, Engine};
use vpnd_tunnel::filter::Filter;
use vpnd_tunnel::udp::{BindError, MAX_BATCH, Socket};

use crate::cli::RunOptions;
use crate::config::{Config, MssClamp, Roam};
use crate::exit::Exit;
use crate::keys::Keys;
use crate::plane::{Plane, PlaneError};

/// Why a tunnel did not start, or ended other than by being asked to.
#[derive(Debug, Error)]
pub(crate) enum RunError {
    /// The device cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The device cannot be configured.
    #[error(transparent)]
    Device(#[from] vpnd_device::Error),
    /// The port cannot be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// It ran and cannot go on.
    #[error(transparent)]
    Plane(#[from] PlaneError),
    /// The kernel gives no more descriptors, threads or random numbers.
    #[error("starting: {0}")]
    Start(#[from] io::Error),
}

impl RunError {
    /// The code that `vpnd` ends with.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Open(OpenError::NoDevice) => Exit::Unavailable,
            Self::Open(OpenError::Permission { .. }) => Exit::Permission,
            Self::Device(error) if error.is_permission() => Exit::Permission,
            _ => Exit::Failure,
        }
    }
}

/// Runs until it is told to stop.
///
/// # Errors
///
/// If it cannot start, or cannot go on.
pub(crate) fn run(config: Config, keys: Keys, _options: RunOptions) -> Result<(), RunError> {
    // One thread, this one; tokio starts others only for blocking work.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let host = Host::prepare(&config).await?;
        let tunnel = host.start(&config, keys)?;
        tunnel.run().await
    })
}

/// Everything that needs privileges, made and open.
struct Host {
    netlink: Netlink,
    undo: Undo,
    device: String,
    queue: Queue,
    socket: Socket,
}

/// A tunnel that moves packets.
struct Tunnel {
    netlink: Netlink,
    undo: Undo,
    plane: Plane,
}

impl Host {
    async fn prepare(config: &Config) -> Result<Self, RunError> {
        let mut device = vpnd_tun::open(&Options {
            name: config.interface.name.clone(),
            mode: Mode::Tun,
            offload: config.path.offload,
            queues: 1,
        })?;
        let queue = device.queues.remove(0);
        let socket = Socket::bind(config.interface.listen, config.path.rcvbuf)?;
        let netlink = Netlink::connect()?;
        let undo = netlink.configure(&link(config, &device.name)).await?;
        Ok(Self { netlink, undo, device: device.name, queue, socket })
    }

    fn start(self, config: &Config, keys: Keys) -> Result<Tunnel, RunError> {
        let activity = Arc::new(Activity::default());
        let rng = rand::rngs::StdRng::try_from_rng(&mut SysRng).map_err(io::Error::other)?;
        let mut peer = Peer::new(
            peer_config(config, keys),
            Arc::clone(&activity),
            Box::new(rng),
            clock::now(),
        );
        let table = peer.poll_table().unwrap_or_else(|| unreachable!("a new peer has a table"));
        let options = engine::Options {
            mtu: config.interface.mtu,
            clamp: clamp(config),
            filter: Filter::new(&config.peer.allowed_ips),
        };
        let (engine, reports) = Engine::start(self.queue, self.socket, activity, table, options)?;
        tracing::info!(device = self.device, port = engine.local_port(), "up");
        let (send, addresses) = mpsc::channel(1);
        let literal: Vec<SocketAddr> =
            config.peer.endpoints.iter().filter_map(|e| e.to_string().parse().ok()).collect();
        let _ = send.try_send(literal);
        let plane = Plane::new(peer, engine, reports, addresses)?;
        Ok(Tunnel { netlink: self.netlink, undo: self.undo, plane })
    }
}

impl Tunnel {
    async fn run(mut self) -> Result<(), RunError> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let stop = async {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        };
        let result = self.plane.run(stop).await;
        self.netlink.undo(self.undo).await;
        Ok(result?)
    }
}

fn link(config: &Config, name: &str) -> Link {
    Link {
        name: name.to_owned(),
        addresses: config.interface.addresses.clone(),
        peer_addresses: config.interface.peer_addresses.clone(),
        mtu: Some(config.interface.mtu.into()),
        txqueuelen: Some(config.interface.txqueuelen),
        routes: config.routes.iter().map(route).collect(),
    }
}

fn route(route: &crate::config::Route) -> vpnd_device::Route {
    vpnd_device::Route { to: route.to, metric: route.metric, table: route.table }
}

fn peer_config(config: &Config, keys: Keys) -> peer::Config {
    peer::Config {
        identity: Identity::new(keys.secret),
        remote: config.peer.public_key,
        preshared: vec![keys.preshared],
        keepalive: config.peer.keepalive,
        roam: match config.peer.roam {
            Roam::Any => vpnd_protocol::endpoint::Roam::Any,
            Roam::SameIp => vpnd_protocol::endpoint::Roam::SameIp,
            Roam::Off => vpnd_protocol::endpoint::Roam::Off,
        },
        floor: None,
        max_datagram: MAX_BATCH as u16,
    }
}

/// The MTU that stands for the largest TCP segment.
fn clamp(config: &Config) -> Option<u16> {
    /// What IPv4 and TCP headers take at the least.
    const HEADERS: u16 = 40;
    match config.path.mss_clamp {
        MssClamp::Auto => Some(config.interface.mtu),
        MssClamp::Fixed(mss) => Some(mss.saturating_add(HEADERS)),
        MssClamp::Off => None,
    }
}
