//! Runs the control plane's event loop. It waits for the next event, passes it to the [`Plane`], and carries
//! out the effects that the plane returns. It makes no decisions itself.

mod alterable;
mod candidate;
mod capture;
mod captured;
mod network;
mod perform;
mod pings;
mod reload;
mod requests;
mod room;
mod succession;
mod wireguard;

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use thiserror::Error;
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch as channel};
use vpnd_crypto::stack;
use vpnd_device::{Bypass, DeviceMtu, Missing, PeerState, Seen, Uplink};
use vpnd_plane::Plane;
use vpnd_protocol::drop_reason::DropReason;
use vpnd_protocol::receive_order::Framed;
use vpnd_protocol::table::Admitted;
use vpnd_protocol::time::BootTime;
use vpnd_tun::Carrier;
use vpnd_tunnel::clock;
use vpnd_tunnel::engine::{Engine, Reports, is_gone};
use vpnd_tunnel::udp::Egress;

use crate::alarm::Alarm;
use crate::config::Config;
use crate::control::{Control, Request};
use crate::copied::Copied;
use crate::device_watch::{DeviceChange, DeviceWatch};
use crate::diagnostics::Diagnostics;
use crate::floor::FloorWriter;
use crate::hand_on::Successor;
use crate::hooks::News;
use crate::loops::Loops;
use crate::metrics::{Metrics, Scrape};
use crate::panics::Panics;
use crate::resolve::Resolver;
use crate::service::Service;
use crate::status::About;
use crate::stop::Asked;
use crate::suspend::Suspend;
use crate::uapi::Hold;
use crate::watch::watch;
use crate::worker::Worker;

pub(crate) use alterable::Alterable;
use candidate::Candidate;
use captured::{Running, ended};
use network::shifted;
use pings::Pings;
use room::room;

/// How often a tunnel without a session looks for the reason. Signs of a wrong key are only counted and never
/// queued, so that invalid datagrams wake no thread.
const LOOK_FOR_TROUBLE: Duration = Duration::from_secs(5);
/// How long the last datagrams may wait until the socket has room.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Why the tunnel ended without a request.
#[derive(Debug, Error)]
pub(crate) enum ShellError {
    /// The device was deleted while the tunnel was running.
    #[error("device {name} is gone: somebody deleted it; start vpnd again to make it anew")]
    DeviceGone { name: String },
    /// A data thread ended for another reason.
    #[error("the data path has stopped: {0}")]
    Stalled(io::Error),
    /// A thread or a task of the daemon panicked.
    #[error(
        "a part of vpnd has failed, which is a bug: {0}; please report it, and start vpnd again"
    )]
    Panicked(String),
    /// The process that was to continue with the tunnel has ended.
    #[error("the process that asked for the tunnel has ended ({0}): start vpnd again")]
    NoSuccessor(io::Error),
    /// The event loop itself failed.
    #[error("the event loop: {0}")]
    Loop(#[from] io::Error),
}

/// All objects outside the control plane that the shell works with.
pub(crate) struct Surroundings {
    /// The configuration that the tunnel runs with.
    pub(crate) running: Config,
    pub(crate) about: About,
    /// Sets the device's MTU.
    pub(crate) device_mtu: DeviceMtu,
    pub(crate) device_watch: DeviceWatch,
    /// The settings that affect the route of datagrams: mark and device.
    pub(crate) egress: Egress,
    /// Reports changes of the route to the peer; `None` if the kernel does not report them.
    pub(crate) uplink: Option<Uplink>,
    /// Adds and removes the routes that depend on the peer.
    pub(crate) routes: PeerState,
    /// The device's addresses, rules and routes that are missing.
    pub(crate) missing: channel::Receiver<Vec<Missing>>,
    /// Routes of other programs through which packets bypass a kill switch.
    pub(crate) bypassed: channel::Receiver<Vec<Bypass>>,
    /// Whether the tunnel leads into itself.
    pub(crate) loops: Loops,
    pub(crate) floor: FloorWriter,
    /// What a reload changes.
    pub(crate) alter: Alterable,
    /// The device's carrier, if it can be set.
    pub(crate) carrier: Option<Carrier>,
    pub(crate) resolver: Resolver,
    /// A thread that may read the files of name lookups.
    pub(crate) lookups: Worker,
    pub(crate) control: Option<Control>,
    /// The WireGuard socket.
    pub(crate) hold: Hold,
    pub(crate) metrics: Option<Metrics>,
    pub(crate) service: Service,
    pub(crate) hooks: News,
    pub(crate) panics: Panics,
    /// Who has asked the tunnel to stop.
    pub(crate) stop: Rc<Cell<Option<Asked>>>,
}

/// A running tunnel.
pub(crate) struct Shell {
    plane: Plane,
    engine: Engine,
    reports: Reports,
    around: Surroundings,
    diagnostics: Diagnostics,
    started: BootTime,
    wake: AsyncFd<OwnedFd>,
    alarm: Alarm,
    suspend: Suspend,
    /// Absent where the kernel reports no copies.
    copied: Option<Copied>,
    watchdog: Option<tokio::time::Interval>,
    datagram: Vec<u8>,
    pings: Pings,
    capture: Option<Running>,
    /// Why the device's MTU could not be changed.
    mtu_refused: Option<vpnd_device::Error>,
    /// The process that prepares to continue with the tunnel.
    candidate: Option<Candidate>,
    /// Keys that this thread has used may have left the table.
    has_published: bool,
    /// Who waits until nobody has the session keys any more.
    forgetting: Option<Forgetting>,
}

/// Who waits until nobody has the session keys any more.
type Forgetting = oneshot::Sender<Result<(), String>>;

/// How a tunnel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It is over: what it has changed is reverted.
    Over,
    /// Another process continues with it: everything stays as it is.
    HandedOn,
}

impl Shell {
    /// A shell for a data path that is already running.
    ///
    /// # Errors
    /// If the process has no descriptor left.
    pub(crate) fn new(
        plane: Plane,
        diagnostics: Diagnostics,
        engine: Engine,
        reports: Reports,
        around: Surroundings,
    ) -> io::Result<Self> {
        Ok(Self {
            wake: watch(engine.wake_fd())?,
            alarm: Alarm::new()?,
            suspend: Suspend::new()?,
            copied: Copied::new().ok(),
            watchdog: Service::watchdog_interval().map(tokio::time::interval),
            started: clock::boot(),
            datagram: Vec::new(),
            pings: Pings::default(),
            capture: None,
            mtu_refused: None,
            candidate: None,
            has_published: false,
            forgetting: None,
            plane,
            engine,
            reports,
            around,
            diagnostics,
        })
    }

    /// Runs the tunnel until `stop` resolves.
    ///
    /// # Errors
    /// If the device is gone.
    pub(crate) async fn run(
        &mut self,
        stop: impl Future<Output = ()>,
    ) -> Result<Ending, ShellError> {
        let ended = self.run_until(stop).await;
        if let Some(candidate) = self.candidate.take() {
            // Or it would continue with what this process is about to revert.
            candidate.asking.refuse("it is about to end");
        }
        ended
    }

    async fn run_until(&mut self, stop: impl Future<Output = ()>) -> Result<Ending, ShellError> {
        tokio::pin!(stop);
        self.around.service.ready();
        loop {
            // Before anything is sent: it may be encrypted under keys that the copy has too.
            if self.copied.as_ref().is_some_and(Copied::has_happened) {
                self.copied();
            }
            self.settle().await?;
            if std::mem::take(&mut self.has_published) {
                // Here the stack is lowest.
                stack::wipe();
            }
            if let Some(forgetting) = self.forgetting.take() {
                self.forgotten(forgetting).await;
            }
            let connected = self.plane.is_connected();
            tokio::select! {
                () = &mut stop => break,
                Some(error) = self.reports.ended.recv() => return Err(self.stalled(error)),
                text = self.around.panics.seen() => return Err(ShellError::Panicked(text)),
                Some(admitted) = self.reports.handshakes.recv() => self.handshake(&admitted),
                Some(framed) = self.reports.frames.recv() => self.frame(&framed),
                woken = self.wake.readable() => {
                    woken?.clear_ready();
                    self.engine.drain();
                    self.plane.wake(clock::now());
                    self.plane.data_refused(clock::now(), self.engine.refusal());
                }
                expired = self.alarm.expired() => {
                    expired?;
                    self.plane.wake(clock::now());
                }
                slept = self.suspend.ended() => slept?.into_iter().for_each(|slept| self.resumed(slept)),
                heard = Copied::heard(&self.copied) => heard?,
                () = room(&self.engine) => self.engine.send_kept(),
                lookup = self.around.resolver.changed() => self.looked_up(lookup).await,
                () = self.around.loops.due() => self.ask_routes().await,
                stamp = self.around.floor.kept() => self.plane.floor_kept(clock::now(), stamp),
                shift = shifted(&mut self.around.uplink) => self.route_looked_up(shift),
                seen = self.around.device_watch.changed() => self.device(seen)?,
                request = next_request(&mut self.around.control) => self.answer(request).await?,
                asked = self.around.hold.next() => self.answer_wireguard(asked),
                () = ended(&mut self.capture) => self.end_capture(),
                ready = Candidate::ready(&mut self.candidate) => {
                    if let Some(ending) = self.decided(ready)? {
                        return Ok(ending);
                    }
                }
                scrape = next_scrape(&mut self.around.metrics) => self.scraped(scrape),
                () = tick(&mut self.watchdog) => self.around.service.alive(),
                () = self.around.service.due() => self.around.service.catch_up(),
                () = tokio::time::sleep(LOOK_FOR_TROUBLE), if !connected => {}
            }
        }
        if self.around.stop.get() == Some(Asked::Restart) {
            return self.hand_on(Successor::OfService);
        }
        self.end().await?;
        Ok(Ending::Over)
    }

    async fn end(&mut self) -> Result<(), ShellError> {
        tracing::info!("stopping on request");
        self.around.service.stopping();
        self.plane.close(clock::now());
        self.settle().await?;
        if let Ok(()) = tokio::time::timeout(LAST_WORDS, room(&self.engine)).await {
            self.engine.send_kept();
        }
        Ok(())
    }

    fn stalled(&self, error: io::Error) -> ShellError {
        if is_gone(&error) { self.gone() } else { ShellError::Stalled(error) }
    }

    fn gone(&self) -> ShellError {
        ShellError::DeviceGone { name: self.around.about.device.name.clone() }
    }

    /// Reacts to a change that somebody made to the device.
    fn device(&mut self, seen: Seen) -> Result<(), ShellError> {
        match self.around.device_watch.attend(seen) {
            DeviceChange::Stays => {}
            DeviceChange::Renamed(name) => {
                self.around.hooks.renamed(&name);
                self.around.about.device.name = name;
            }
            DeviceChange::Gone => return Err(self.gone()),
        }
        Ok(())
    }

    fn resumed(&mut self, slept: Duration) {
        tracing::info!("the host was suspended for {} s: a handshake is started", slept.as_secs());
        self.plane.resumed(clock::now());
    }

    fn copied(&mut self) {
        tracing::warn!(
            "this virtual machine was copied or set back: its sessions are dropped, and a new one is established. Two \
             machines must not run with the same key"
        );
        self.plane.copied(clock::now());
    }

    fn handshake(&mut self, admitted: &Admitted) {
        let waiting = self.reports.handshakes.len();
        let taken = self.plane.handshake(clock::now(), waiting, admitted);
        self.count(taken);
    }

    fn frame(&mut self, framed: &Framed) {
        let taken = self.plane.frame(clock::now(), framed);
        self.count(taken);
    }

    fn count(&self, taken: Result<(), DropReason>) {
        if let Err(reason) = taken {
            self.engine.counters().count(reason, 1);
        }
    }
}

async fn next_request(control: &mut Option<Control>) -> Request {
    match control {
        Some(control) => control.next().await,
        None => std::future::pending().await,
    }
}

async fn next_scrape(metrics: &mut Option<Metrics>) -> Scrape {
    match metrics {
        Some(metrics) => metrics.next().await,
        None => std::future::pending().await,
    }
}

async fn tick(watchdog: &mut Option<tokio::time::Interval>) {
    match watchdog {
        Some(interval) => drop(interval.tick().await),
        None => std::future::pending().await,
    }
}
