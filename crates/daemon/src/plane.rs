//! The control plane's task: the one place that owns the peer. It waits for whatever comes
//! first, hands it to the peer, and does what the peer asks: publish, send, tell.

mod carrier;
mod reach;
mod reload;

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use thiserror::Error;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch as channel;
use vpnd_device::{Bypass, DeviceMtu, Missing, PeerState, Seen, Uplink};
use vpnd_protocol::drop_reason::DropReason;
use vpnd_protocol::limits::MAX_DATAGRAM;
use vpnd_protocol::peer::{Event, Liveness, Load, Peer, PeerStatus};
use vpnd_protocol::table::Admitted;
use vpnd_protocol::time::BootTime;
use vpnd_protocol::turn::Framed;
use vpnd_tunnel::clock;
use vpnd_tunnel::engine::{Engine, LOAD_THRESHOLD, Reports, is_gone};
use vpnd_tunnel::udp::{Refusal, Way, largest_payload, packet_around, payload_within};

use crate::alarm::Alarm;
use crate::config::Config;
use crate::control::{Control, Request};
use crate::floor::FloorWriter;
use crate::hooks::News;
use crate::keys::Keys;
use crate::life::{Fate, Life};
use crate::loops::Loops;
use crate::panics::Panics;
use crate::resolve::{Lookup, Resolver};
use crate::service::Service;
use crate::status::{About, State, Status};
use crate::stop::Asked;
use crate::telling::Telling;
use crate::watch::watch;

use reach::{Reach, shifted};

pub(crate) use carrier::PacedCarrier;
/// Load lasts this long after it was last seen.
const LOAD_LINGERS: Duration = Duration::from_secs(1);
/// How often it is looked up what the path carries, at the most.
const LOOK_AT_THE_WAY: Duration = Duration::from_millis(100);
/// How often a tunnel without a session looks for the reason. What tells of a wrong key is only
/// counted, never queued, so that garbage wakes nobody.
const LOOK_FOR_TROUBLE: Duration = Duration::from_secs(5);

/// Why the tunnel ends other than by being asked to.
#[derive(Debug, Error)]
pub(crate) enum PlaneError {
    /// The device was deleted under us.
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
    /// The event loop itself does not work.
    #[error("the event loop: {0}")]
    Loop(#[from] io::Error),
}

/// Everybody the control plane talks to.
pub(crate) struct Surroundings {
    /// What the tunnel runs with.
    pub(crate) running: Config,
    pub(crate) about: About,
    /// Sets the device's MTU.
    pub(crate) device_mtu: DeviceMtu,
    pub(crate) life: Life,
    /// By which way datagrams leave.
    pub(crate) way: Way,
    /// By which uplink; none where the kernel does not tell.
    pub(crate) uplink: Option<Uplink>,
    /// The routes that come and go with the peer.
    pub(crate) routes: PeerState,
    /// What of the device's addresses, rules and routes is missing.
    pub(crate) missing: channel::Receiver<Vec<Missing>>,
    /// The routes of others that take packets past a kill switch.
    pub(crate) bypassed: channel::Receiver<Vec<Bypass>>,
    /// Whether the tunnel leads into itself.
    pub(crate) loops: Loops,
    /// The largest packet to send outside, if the configuration says it.
    pub(crate) mtu_max: Option<u16>,
    pub(crate) floor: FloorWriter,
    /// The device's, where it follows the peer.
    pub(crate) carrier: PacedCarrier,
    pub(crate) resolver: Resolver,
    pub(crate) control: Option<Control>,
    pub(crate) service: Service,
    pub(crate) hooks: News,
    pub(crate) panics: Panics,
    /// Who has asked the tunnel to stop.
    pub(crate) stop: Rc<Cell<Option<Asked>>>,
}

/// A running tunnel's control plane.
pub(crate) struct Plane {
    peer: Peer,
    engine: Engine,
    reports: Reports,
    around: Surroundings,
    telling: Telling,
    started: BootTime,
    wake: AsyncFd<OwnedFd>,
    alarm: Alarm,
    watchdog: Option<tokio::time::Interval>,
    said: (Liveness, Option<SocketAddr>),
    /// When the peer was last said to be silent.
    silent_at: BootTime,
    /// Where name resolution and the configuration have the peer.
    addresses: Vec<SocketAddr>,
    reach: Reach,
    /// When the path last left an address that this host refuses.
    turned_back: BootTime,
    load_until: BootTime,
    /// When it was last looked up what the path carries.
    looked: BootTime,
    /// The size that larger packets are fragmented at, where it is not the first link's.
    fragments: Option<u16>,
    datagram: Vec<u8>,
}

impl Plane {
    /// A plane over a data path that runs already.
    ///
    /// # Errors
    /// When the kernel has no descriptor left.
    pub(crate) fn new(
        peer: Peer,
        telling: Telling,
        engine: Engine,
        reports: Reports,
        around: Surroundings,
    ) -> io::Result<Self> {
        Ok(Self {
            wake: watch(engine.wake_fd())?,
            alarm: Alarm::new()?,
            watchdog: Service::watchdog_interval().map(tokio::time::interval),
            started: clock::boot(),
            said: (Liveness::Idle, None),
            silent_at: BootTime::default(),
            addresses: Vec::new(),
            reach: Reach::default(),
            turned_back: BootTime::default(),
            load_until: BootTime::default(),
            looked: BootTime::default(),
            fragments: None,
            datagram: Vec::new(),
            peer,
            engine,
            reports,
            around,
            telling,
        })
    }

    /// Runs the tunnel until `stop` resolves.
    ///
    /// # Errors
    /// When the device is gone.
    pub(crate) async fn run(&mut self, stop: impl Future<Output = ()>) -> Result<(), PlaneError> {
        tokio::pin!(stop);
        self.around.service.ready();
        self.around.service.status(&line(self.said.0, None));
        loop {
            let connected = self.settle()?;
            tokio::select! {
                () = &mut stop => break,
                Some(error) = self.reports.ended.recv() => return Err(self.stalled(error)),
                text = self.around.panics.seen() => return Err(PlaneError::Panicked(text)),
                Some(admitted) = self.reports.handshakes.recv() => self.handshake(&admitted),
                Some(framed) = self.reports.frames.recv() => self.frame(&framed),
                woken = self.wake.readable() => {
                    woken?.clear_ready();
                    self.engine.drain();
                    self.peer.handle_wake(clock::now());
                    self.watch_the_way();
                    self.data_refused(self.engine.refusal());
                }
                expired = self.alarm.expired() => {
                    expired?;
                    self.peer.handle_wake(clock::now());
                    self.watch_the_way();
                }
                lookup = self.around.resolver.changed() => self.looked_up(lookup).await,
                () = self.around.loops.due() => self.look_for_loops().await,
                stamp = self.around.floor.kept() => self.peer.floor_kept(clock::now(), stamp),
                shift = shifted(&mut self.around.uplink) => self.follow_uplink(shift),
                () = self.reach.check_due() => self.check_reach(),
                () = self.around.carrier.due() => self.around.carrier.apply(),
                seen = self.around.life.changed() => self.device(seen)?,
                request = next_request(&mut self.around.control) => self.answer(request).await,
                () = tick(&mut self.watchdog) => self.around.service.alive(),
                () = self.around.service.due() => self.around.service.catch_up(),
                () = tokio::time::sleep(LOOK_FOR_TROUBLE), if !connected => {}
            }
        }
        tracing::info!("stopping, as asked");
        self.around.service.stopping();
        self.peer.close(clock::now());
        self.settle()?;
        Ok(())
    }

    fn stalled(&self, error: io::Error) -> PlaneError {
        if is_gone(&error) { self.gone() } else { PlaneError::Stalled(error) }
    }

    fn gone(&self) -> PlaneError {
        PlaneError::DeviceGone { name: self.around.about.device.name.clone() }
    }

    /// Somebody did something to the device.
    fn device(&mut self, seen: Seen) -> Result<(), PlaneError> {
        match self.around.life.attend(seen) {
            Fate::Stays => {}
            Fate::Renamed(name) => {
                self.around.hooks.renamed(&name);
                self.around.about.device.name = name;
            }
            Fate::Gone => return Err(self.gone()),
        }
        Ok(())
    }

    fn handshake(&mut self, admitted: &Admitted) {
        let now = clock::now();
        // The one in hand was queued too.
        if self.reports.handshakes.len() + 1 >= LOAD_THRESHOLD {
            self.load_until = now.boot + LOAD_LINGERS;
        }
        let load = if now.boot < self.load_until { Load::Under } else { Load::Normal };
        if let Err(reason) = self.peer.handle_handshake(now, load, admitted) {
            self.engine.counters().count(reason, 1);
        }
    }

    fn frame(&mut self, framed: &Framed) {
        if let Err(reason) = self.peer.handle_frame(clock::now(), framed) {
            self.engine.counters().count(reason, 1);
        }
    }

    /// Does what the peer asks: publish first, then send, then tell. Says whether a session
    /// stands.
    fn settle(&mut self) -> io::Result<bool> {
        loop {
            if let Some(table) = self.peer.poll_table() {
                self.engine.publish(table);
            }
            while let Some(transmit) = self.peer.poll_transmit(&mut self.datagram) {
                match self.engine.send(transmit.to, transmit.from, &self.datagram) {
                    Ok(_) => self.reach.left(transmit.to),
                    Err(error) => {
                        self.engine.counters().count(DropReason::SendFailed, 1);
                        self.refused(transmit.to, Refusal::of(&error));
                    }
                }
            }
            let Some(event) = self.peer.poll_event() else { break };
            self.attend(&event);
        }
        self.alarm.set(self.peer.poll_timeout().map(|(at, _)| at))?;
        self.ask_for_the_uplink();
        Ok(self.tell_how_it_fares())
    }

    fn attend(&mut self, event: &Event) {
        self.telling.tell(clock::boot(), event);
        match event {
            Event::KeepFloor(stamp) => self.around.floor.keep(*stamp),
            Event::Unheard => self.change_port(),
            Event::Initiating { attempt, .. } if *attempt > 1 => self.around.resolver.nudge(),
            Event::Moved { .. } | Event::Established(_) => {
                self.around.loops.look_soon();
                if self.reach.reached(self.peer.endpoint()) {
                    self.telling.leaves(clock::boot());
                }
                self.look_at_the_way();
            }
            Event::Alive => self.alive(true),
            Event::Dead => self.alive(false),
            _ => {}
        }
    }

    /// The peer has come to life, or is gone.
    fn alive(&mut self, alive: bool) {
        self.around.routes.set(alive);
        self.telling.alive(clock::boot(), alive, self.around.running.peer.dead_after);
        self.around.carrier.follow(alive);
        self.around.hooks.peer(alive, self.peer.endpoint());
    }

    async fn looked_up(&mut self, lookup: Lookup) {
        match lookup {
            Lookup::Addresses(addresses) => {
                self.warn_of_loops(&addresses);
                addresses.iter().for_each(|address| self.telling.zones.learn(*address));
                self.addresses = addresses;
                self.look_for_loops().await;
            }
            Lookup::Failed(failures) => {
                let inside = match failures.is_empty() {
                    true => Vec::new(),
                    false => self.around.loops.name_servers_inside(&self.around.running).await,
                };
                self.telling.lookups_failed(clock::boot(), failures, inside);
            }
        }
    }

    /// Finds out whether what is sent to the peer would come back, and goes by it.
    async fn look_for_loops(&mut self) {
        let (peer, sources) = (self.peer.endpoint(), self.around.running.socket.sources());
        let learnt = self.peer.source();
        let from = |to| learnt.filter(|_| Some(to) == peer).or_else(|| sources.towards(to));
        let (port, all) = (self.engine.local_port(), &self.addresses);
        let outlook = self.around.loops.look(port, peer, all, from).await;
        let avoided: Vec<_> = outlook.loops.iter().map(|one| one.to).collect();
        let mut usable = self.addresses.clone();
        usable.retain(|address| !avoided.contains(address));
        // Where all of them lead back, the first one that no longer does is heard of by calling.
        let usable = if usable.is_empty() { self.addresses.clone() } else { usable };
        let now = clock::now();
        self.telling.outlook(now.boot, &self.around.about.device.name, outlook);
        self.peer.handle_endpoints(now, usable);
        self.peer.avoid(now, avoided);
    }

    /// Of a name only its addresses tell that a route leads the tunnel into itself.
    fn warn_of_loops(&self, addresses: &[SocketAddr]) {
        let config = &self.around.running;
        for route in &config.routes {
            if let Some(at) = addresses.iter().find(|at| config.loops(route, at.ip())) {
                tracing::warn!(
                    "route {} also covers the way to the peer, which is at {}: keep a more specific route \
                     to there, or give this one a table of its own",
                    route.to,
                    at.ip()
                );
            }
        }
    }

    /// How large a datagram may be on the way there is now.
    fn look_at_the_way(&mut self) {
        let Some(to) = self.peer.endpoint() else { return };
        let configured = self.around.mtu_max.map(|mtu| payload_within(mtu, to));
        // Without a route nothing is sent, whatever its size.
        let socket = &self.around.running.socket;
        let source = socket.sources().towards(to);
        let routed = largest_payload(to, source, &self.around.way).ok();
        if let Some(largest) = configured.into_iter().chain(routed).min() {
            self.peer.path_carries(clock::now(), largest.min(MAX_DATAGRAM));
        }
        let fragments = self.peer.fragments_of().map(|payload| packet_around(payload, to));
        if self.fragments != fragments && self.engine.fragment_at(fragments).is_ok() {
            self.fragments = fragments;
        }
    }

    /// Over IPv6 routers say how much a path carries, and the kernel keeps it with the route without a word.
    /// While data flows that is looked up as often as everything else is.
    fn watch_the_way(&mut self) {
        let now = clock::boot();
        let due = now.saturating_since(self.looked) >= LOOK_AT_THE_WAY;
        if due && self.peer.endpoint().is_some_and(|to| to.is_ipv6()) {
            self.looked = now;
            self.look_at_the_way();
        }
    }

    /// Says how the tunnel stands when that has changed. Nothing that strangers send changes it,
    /// so they cannot make us speak.
    fn tell_how_it_fares(&mut self) -> bool {
        let now = clock::now();
        let PeerStatus { liveness, endpoint, last_received, .. } = self.peer.status(now);
        let connected = matches!(liveness, Liveness::Up | Liveness::Unresponsive);
        let bad_mac1 = self.engine.counters().dropped(DropReason::BadMac1);
        self.telling.watch_bad_mac1(now.boot, bad_mac1, connected);
        let counters = self.engine.counters();
        let back =
            [DropReason::OwnDatagram, DropReason::NestedTooDeep].map(|why| counters.dropped(why));
        self.telling.watch_loops(now.boot, &self.around.about.device.name, back);
        if self.said != (liveness, endpoint) {
            self.tell_of_silence(now.boot, liveness, last_received);
            self.said = (liveness, endpoint);
            let endpoint = endpoint.map(|at| self.telling.zones.show(at));
            self.around.service.status(&line(liveness, endpoint));
        }
        connected
    }

    fn tell_of_silence(&mut self, now: BootTime, liveness: Liveness, received: Option<Duration>) {
        let silent_for = now.saturating_since(self.silent_at);
        match (self.said.0, liveness) {
            (Liveness::Up, Liveness::Unresponsive) => {
                self.silent_at = now;
                tracing::warn!("the peer is silent");
            }
            // A status that changes for another reason is no answer.
            (Liveness::Unresponsive, Liveness::Up)
                if received.is_some_and(|ago| ago <= silent_for) =>
            {
                tracing::info!("the peer answers again");
            }
            _ => {}
        }
    }

    fn status(&mut self) -> Status {
        let now = clock::now();
        let peer = self.peer.status(now);
        let mut status = Status::new(
            &self.around.about,
            now.boot.saturating_since(self.started),
            &peer,
            self.engine.counters(),
            self.telling.trouble(),
        )
        .with_ecn_ignored(self.engine.marks_everything())
        .lacking(&self.around.missing.borrow())
        .bypassed_by(&self.around.bypassed.borrow());
        status.peer.endpoint = peer.endpoint.map(|at| self.telling.zones.show(at));
        status.stopping = self.around.stop.get().is_some();
        status
    }

    /// Who asked may have left.
    async fn answer(&mut self, request: Request) {
        match request {
            Request::Status(reply) => drop(reply.send(self.status())),
            Request::Reload(mut wanted, reply) => {
                // What is moved out of a box leaves its bytes there, and nobody wipes them.
                let keys = std::mem::replace(&mut wanted.1, Keys::blank());
                let config = wanted.0;
                drop(reply.send(told("reloaded", self.become_new(config, keys).await)));
            }
            Request::Rotate { finish, reply } => {
                let what = if finish { "rotation finished" } else { "rotated" };
                drop(reply.send(told(what, self.rotate(finish))));
            }
        }
    }

    fn rotate(&mut self, finish: bool) -> Result<(), String> {
        let (done, why_not) = if finish {
            (self.peer.finish_rotation(), "no session stands under a next key yet")
        } else {
            (self.peer.rotate(clock::now()), "name the key in `next_private_key_file`, and reload")
        };
        if done { Ok(()) } else { Err(why_not.to_owned()) }
    }
}

/// Says in the log what somebody made of the tunnel, or could not.
fn told(what: &str, result: Result<(), String>) -> Result<(), String> {
    match &result {
        Ok(()) => tracing::info!("{what}, as asked"),
        Err(error) => tracing::warn!("not {what}: {error}"),
    }
    result
}

/// How the tunnel stands, for the service manager.
fn line(liveness: Liveness, endpoint: Option<String>) -> String {
    let state = State::from(liveness).word();
    endpoint.map_or_else(|| state.to_owned(), |at| format!("{state}, peer at {at}"))
}

async fn next_request(control: &mut Option<Control>) -> Request {
    match control {
        Some(control) => control.next().await,
        None => std::future::pending().await,
    }
}

async fn tick(watchdog: &mut Option<tokio::time::Interval>) {
    match watchdog {
        Some(interval) => drop(interval.tick().await),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_for_systemd() {
        let at = Some("198.51.100.7:51820".to_owned());
        assert_eq!(line(Liveness::Up, at), "up, peer at 198.51.100.7:51820");
        assert_eq!(line(Liveness::Idle, None), "idle");
    }
}
