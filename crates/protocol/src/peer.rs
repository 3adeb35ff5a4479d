//! The control plane of one tunnel: handshakes, timers, sessions and the path to the peer, in one value that is
//! only used as `&mut`. Transport data bypasses it: the data threads follow the [`Table`] that the control
//! plane publishes, and report through [`Activity`].
//!
//! After every call of another method the caller calls [`Peer::poll_table`] and publishes the table, then
//! [`Peer::poll_transmit`] and sends, then [`Peer::poll_event`]. Then it sleeps until [`Peer::poll_timeout`].

mod alternatives;
mod change;
mod contest;
mod detours;
mod doubt;
mod duplicate;
mod echo;
mod event;
mod frames;
mod heir;
mod identities;
mod initiator;
mod key_log;
mod life;
mod pace;
mod parts;
mod paths;
mod race;
mod reach;
mod responder;
mod roaming;
mod search;
mod segmentation;
mod session;
mod size;
mod sleep;
mod status;
mod upgrade;
mod window;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand_core::CryptoRng;
use vpnd_crypto::key::PublicKey;

use crate::activity::{Activity, Tally};
use crate::cookie::RateLimiter;
use crate::drop_reason::DropReason;
use crate::endpoint::{Roam, Sources};
use crate::handshake::Identity;
use crate::key_log::KeyLog;
use crate::keyring::{Keyring, Session};
use crate::limits::LEAST_DATAGRAM;
use crate::liveness::Life;
use crate::message::Index;
use crate::session::{Generation, Pair, Role};
use crate::table::{Admitted, BOOTSTRAP_SLOTS, OPENING_SLOTS, Table};
use crate::terms::Terms;
use crate::time::{BootTime, Now};
use crate::timers::{LAST_MINUTE, LOOK_EVERY, MAX_JITTER_MS, Timer, Timers};
use crate::timestamp::{Stamper, Timestamp};

use echo::Echoes;
use identities::Identities;
use initiator::Attempt;
use parts::Parts;
use paths::Paths;
use reach::Port;
use responder::{Answered, Initiations};
use upgrade::Answering;
use window::Window;

pub use change::Tuning;
pub use echo::{Echo, NotAsked};
pub use event::{Change, Command, Diagnosis, Event};
pub use frames::{Greeting, Loss, Quality};
pub use search::Probed;
pub use size::{Known, PathSize};
pub use status::{PeerStatus, Standing};
pub use window::{BothDirections, Recent, RoundTrip};

/// The settings of a tunnel.
pub struct Config {
    /// Our static key pair, followed by the next one if a key rotation is planned.
    pub identities: Vec<Identity>,
    /// The peer's static public key, followed by the next one if it plans a key rotation.
    pub remotes: Vec<PublicKey>,
    /// The terms that we accept in a response to our initiation. Our own responses use the first. There is
    /// always at least one.
    pub terms: Vec<Terms>,
    /// The device's MTU, which is announced to the peer.
    pub mtu: u16,
    /// The device's hardware address, which is announced to the peer. Only for TAP devices.
    pub mac: Option<[u8; 6]>,
    /// The longest packet of the device. Ethernet frames are longer than the MTU.
    pub largest_packet: u16,
    /// If nothing else is sent or received for this long, a keepalive is sent.
    pub keepalive: Option<Duration>,
    /// A peer without any sign of life for this long counts as dead.
    pub dead_after: Duration,
    /// Whether silence alone shows that the peer is dead. If so, a silent peer is probed, and handshakes with a
    /// dead one are attempted without end. Otherwise only an unanswered packet shows it.
    pub watch: bool,
    /// The new addresses to which the peer is followed.
    pub roam: Roam,
    /// The path returns to an earlier configured address once that address has worked for this long.
    pub return_after: Duration,
    /// The source address until the peer has sent to another address of ours.
    pub sources: Sources,
    /// Whether the source port must not change, even if the peer cannot be reached from it.
    pub fixed_port: bool,
    /// The differentiated services code point of data that leaves, 0 to 63.
    pub dscp: u8,
    /// The last timestamp ever sent under our key, if it was stored.
    pub floor: Option<Timestamp>,
    /// The largest UDP payload to send before the path's MTU is known.
    pub max_datagram: u16,
    /// How often a larger MTU is probed for on a path whose MTU is smaller than that of its first link.
    pub raise_after: Duration,
    /// Whether datagrams leave singly on a path where runs lose more.
    pub tests_segmentation: bool,
}

impl Config {
    /// A tunnel of IP packets between these ends, with this MTU. All other settings have the configuration's
    /// defaults.
    pub fn new(
        identities: Vec<Identity>,
        remotes: Vec<PublicKey>,
        terms: Vec<Terms>,
        mtu: u16,
    ) -> Self {
        Self {
            identities,
            remotes,
            terms,
            mtu,
            mac: None,
            largest_packet: mtu,
            keepalive: None,
            dead_after: Duration::from_secs(60),
            watch: false,
            roam: Roam::default(),
            return_after: Duration::from_secs(60),
            sources: Sources::default(),
            fixed_port: false,
            dscp: 0,
            floor: None,
            max_datagram: LEAST_DATAGRAM,
            raise_after: Duration::from_secs(600),
            tests_segmentation: true,
        }
    }
}

/// Whether more handshakes arrive than can be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// All are answered.
    Normal,
    /// Only senders that prove their address are answered, and those at a limited rate.
    Under,
}

/// The destination and source of a datagram to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// The destination.
    pub to: SocketAddr,
    /// Our address; `None` lets the kernel choose.
    pub from: Option<IpAddr>,
}

/// The properties of the device that are announced to the peer.
#[derive(Clone, Copy, Debug)]
struct DeviceFacts {
    mtu: u16,
    mac: Option<[u8; 6]>,
    largest_packet: u16,
}

/// One peer. See the module's documentation for the order of calls.
pub struct Peer {
    /// The terms that we accept in a response; the first are also those of our own responses.
    terms: Vec<Terms>,
    device: DeviceFacts,
    rng: Box<dyn CryptoRng + Send>,
    activity: Arc<Activity>,
    timers: Timers,
    life: Life,
    next_poll: Option<BootTime>,

    keyring: Keyring,
    generation: Generation,
    established: Option<BootTime>,
    /// When the last session ran out.
    ran_out: Option<BootTime>,
    handshakes: u64,
    /// Sessions up to this generation no longer request a rekey at their last minute: they already have.
    last_minute_asked: Generation,

    paths: Paths,
    /// Round trip and loss of the last minutes, over all sessions.
    window: Window,
    /// The PINGs that a user has requested.
    echoes: Echoes,

    attempt: Option<Attempt>,
    /// A bootstrap session that the peer initiated.
    answering: Option<Answering>,
    /// An initiation is wanted but was not started yet.
    wanted: bool,
    /// Terms or keys have changed: a session of this generation or an older one has to be replaced.
    renewing: Option<Generation>,
    /// Until this time at the latest, packets wait in the device for the first session of this process.
    holds_until: Option<BootTime>,
    /// The earliest time of our next initiation, because of the least interval between two.
    initiate_from: BootTime,
    /// The peer may still confirm our last response, so we do not initiate before this time.
    yields_until: BootTime,
    /// The host is about to be suspended, so no session is made before this time.
    sleeps_until: BootTime,
    stamper: Stamper,

    identities: Identities,
    key_log: KeyLog,
    limiter: RateLimiter,
    initiations: Initiations,
    answered: Option<Answered>,
    unconfirmed_answers: u32,
    port: Port,
    /// What the peer announced on the current session.
    greeting: Option<Greeting>,

    /// The parts of the last published table.
    published: Option<Parts>,
    transmits: VecDeque<(Transmit, Vec<u8>)>,
    events: VecDeque<Event>,
}

impl Peer {
    /// A peer of which only the configuration is known.
    pub fn new(
        config: Config,
        activity: Arc<Activity>,
        rng: Box<dyn CryptoRng + Send>,
        now: Now,
    ) -> Self {
        let paths = Paths::new(&config);
        let Config { identities, remotes, terms, mtu, mac, largest_packet, fixed_port, .. } =
            config;
        let mut peer = Self {
            timers: Timers::new(config.keepalive, now.boot),
            life: Life::new(config.dead_after, config.watch, now.boot),
            next_poll: None,
            keyring: Keyring::default(),
            generation: Generation::default(),
            established: None,
            ran_out: None,
            handshakes: 0,
            last_minute_asked: Generation::default(),
            paths,
            window: Window::default(),
            echoes: Echoes::default(),
            attempt: None,
            answering: None,
            wanted: false,
            renewing: None,
            holds_until: None,
            initiate_from: BootTime::default(),
            yields_until: BootTime::default(),
            sleeps_until: BootTime::default(),
            stamper: Stamper::new(config.floor),
            identities: Identities::new(identities, remotes),
            key_log: KeyLog::default(),
            limiter: RateLimiter::new(),
            initiations: Initiations::default(),
            answered: None,
            unconfirmed_answers: 0,
            port: Port::new(fixed_port, config.dead_after, now.boot),
            greeting: None,
            published: None,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            terms,
            device: DeviceFacts { mtu, mac, largest_packet },
            activity,
            rng,
        };
        peer.timers.jitter = peer.jitter();
        peer
    }

    /// Takes the addresses that name resolution found for the configured endpoints. The first ones start a
    /// handshake at once, so that whoever waits for the tunnel soon knows whether it works.
    pub fn handle_endpoints(&mut self, now: Now, addresses: Vec<SocketAddr>) {
        if self.paths.candidates.configure(addresses) && self.keyring.current().is_none() {
            self.wanted = true;
            self.spread_now(now);
        }
        if let (None, Some(_), Some(to)) =
            (self.paths.current, self.keyring.current(), self.paths.target())
        {
            // A session was established before the peer's name was resolved, from an address that may not be
            // followed.
            self.paths.set(to, None);
        }
        self.handle_wake(now);
    }

    /// Like [`handle_endpoints`](Self::handle_endpoints), for endpoints that a user has replaced. If the address in
    /// use is a former one that is not among them, a handshake is attempted at the new ones; packets follow as soon as
    /// one answers.
    pub fn replace_endpoints(&mut self, now: Now, addresses: Vec<SocketAddr>) {
        let current = self.endpoint().filter(|at| self.paths.candidates.name(*at));
        let leaves = current.is_some_and(|at| !addresses.contains(&at)) && !addresses.is_empty();
        self.handle_endpoints(now, addresses);
        if leaves {
            // A pending initiation is to the former address; its answer would keep the path there.
            self.attempt = None;
            self.paths.candidates.begin_with_configured();
            self.try_other_addresses(now);
            self.handle_wake(now);
        }
    }

    /// Takes a handshake message.
    ///
    /// # Errors
    /// The reason for dropping it, for the counters.
    pub fn handle_handshake(
        &mut self,
        now: Now,
        load: Load,
        admitted: &Admitted,
    ) -> Result<(), DropReason> {
        // Handle wake flags first: a session that was confirmed before this message must not be lost to it.
        self.follow_flags(now);
        let result = self.dispatch(now, load, admitted);
        self.handle_wake(now);
        result
    }

    /// Checks everything: call it when a wake flag was set, a deadline has passed or a poll is due.
    pub fn handle_wake(&mut self, now: Now) {
        self.follow_flags(now);
        self.retire_keys(now);
        self.follow_hold(now);
        let moved = self.timers.observe(self.activity.timestamps());
        self.follow_traffic(now);
        self.follow_timers(now);
        self.follow_life(now);
        self.pursue_handshake(now);
        self.pursue_upgrade(now);
        self.follow_doubt(now);
        self.follow_alternatives(now);
        self.measure(now);
        self.probe_size(now);
        self.schedule_poll(now, moved);
    }

    /// The new table, if it has changed. The caller must publish it before it sends anything else.
    pub fn poll_table(&mut self) -> Option<Table> {
        let parts = Parts::of(self);
        let changed = self.published.as_ref() != Some(&parts);
        self.published = Some(parts);
        changed.then(|| self.table())
    }

    /// The next datagram to send; its bytes replace what `out` holds.
    pub fn poll_transmit(&mut self, out: &mut Vec<u8>) -> Option<Transmit> {
        let (transmit, datagram) = self.transmits.pop_front()?;
        *out = datagram;
        Some(self.paths.leaving(transmit))
    }

    /// The next report.
    pub fn poll_event(&mut self) -> Option<Event> {
        let moved = self.paths.moved.take().map(|to| Change::Moved { to }.into());
        moved.or_else(|| self.events.pop_front())
    }

    /// When [`Peer::handle_wake`] must be called at the latest, and why.
    pub fn poll_timeout(&self) -> Option<(BootTime, Timer)> {
        let deadlines = [
            (self.initiation_deadline(), Timer::Initiate),
            (self.spread_deadline(), Timer::Initiate),
            (self.upgrade_deadline(), Timer::Upgrade),
            (self.floor_deadline(), Timer::Floor),
            (self.roaming_deadline(), Timer::Roam),
            (self.timers.answer_deadline(), Timer::NoAnswer),
            (self.timers.owed_deadline(), Timer::KeepaliveOwed),
            (self.timers.persistent_deadline(), Timer::PersistentKeepalive),
            (self.keyring.next_expiry(), Timer::KeyExpiry),
            (self.life.deadline(), Timer::Silence),
            (self.size_deadline(), Timer::PathMtu),
            (self.alternatives_deadline(), Timer::Probe),
            (self.doubt_deadline(), Timer::Probe),
            (self.next_poll, Timer::Poll),
            (self.holds_until, Timer::Poll),
        ];
        deadlines.into_iter().filter_map(|(at, why)| Some((at?, why))).min_by_key(|(at, _)| *at)
    }

    /// The destination of packets for the peer.
    pub fn endpoint(&self) -> Option<SocketAddr> {
        self.paths.endpoint()
    }

    /// Their source address, if it is known.
    pub fn source(&self) -> Option<IpAddr> {
        self.paths.source()
    }

    fn follow_flags(&mut self, now: Now) {
        let confirmed = self.keyring.confirm();
        if confirmed {
            self.reached(now);
            self.establish(now, Role::Responder);
            self.watch_for_duplicates(now);
            self.follow_answer(now);
        }
        self.follow_contest(now);
        self.follow_source(now);
        // If the peer has moved, a delayed contest is due now.
        self.follow_contest(now);
        if confirmed {
            self.greet_back(now);
        }
        if self.activity.source_lost.take() {
            // This host no longer has the source address. The kernel chooses another, even if that one is
            // configured.
            self.paths.change_source(None);
        }
    }

    /// A session has become current.
    fn establish(&mut self, now: Now, role: Role) {
        self.established = Some(now.boot);
        self.handshakes += 1;
        self.greeting = None;
        // A session of the `WireGuard` protocol has no PROBE, even if the last session had.
        self.paths.alternatives.answers &= self.frames_flow();
        self.paths.gauge.begin();
        let current = self.keyring.current().map(|s| (s.opening.generation(), s.pair));
        if let Some((generation, pair)) = current {
            self.identities.confirm(pair);
            self.answering.take_if(|answering| answering.made(generation));
            let rotated = pair.own >= self.identities.calling().own;
            self.renewing.take_if(|old| rotated && generation > *old);
        }
        self.wanted = self.renewing.is_some();
        self.activity.want_handshake.take();
        self.timers.jitter = self.jitter();
        self.life.jitter = self.timers.jitter;
        self.events.push_back(Change::Established(role).into());
    }

    /// The peer hears us on the path in use. A handshake at another address does not show that.
    fn reached(&mut self, now: Now) {
        self.unconfirmed_answers = 0;
        self.paths.candidates.settle();
        // From wherever we answered.
        self.paths.given_up = None;
        self.port.renew(now.boot);
        self.life.hear(now.boot);
    }

    fn retire_keys(&mut self, now: Now) {
        let had_session = self.keyring.current().is_some();
        self.keyring.expire(now.boot);
        if had_session && self.keyring.current().is_none() {
            self.forget_announcements();
            self.ran_out = Some(now.boot);
            self.events.push_back(Change::Lost.into());
        }
    }

    /// Requests a handshake if packets wait for a key, or if the current key is nearly used up.
    fn follow_traffic(&mut self, now: Now) {
        let Some(current) = self.keyring.current() else {
            self.wanted |= self.activity.want_handshake.is_raised();
            return;
        };
        let seals = current.sealing.seals_at(now.boot);
        if seals {
            // The flag was set just before the key was published: its packets now find the key.
            self.activity.want_handshake.take();
        }
        let asked = !seals && self.activity.want_handshake.is_raised()
            || current.sealing.wants_successor()
            || self.is_last_minute(current, now);
        // While a next session waits for its confirmation, `yields_until` delays this.
        if asked && self.attempt.is_none() {
            self.last_minute_asked = current.opening.generation();
            self.wanted = true;
        }
    }

    fn is_last_minute(&self, current: &Session, now: Now) -> bool {
        current.role == Role::Initiator
            && current.opening.generation() > self.last_minute_asked
            && now.boot.saturating_since(current.birth) >= LAST_MINUTE
            && self
                .activity
                .timestamps()
                .received
                .is_some_and(|at| at >= current.birth + LAST_MINUTE)
    }

    fn follow_timers(&mut self, now: Now) {
        let due = |deadline: Option<BootTime>| deadline.is_some_and(|at| now.boot >= at);
        if due(self.timers.answer_deadline()) {
            self.timers.settle_answer();
            self.timers.jitter = self.jitter();
            self.paths.forget_source(now.boot);
            self.wanted = true;
        }
        if due(self.timers.owed_deadline()) {
            self.timers.settle_owed();
            self.send_keepalive(now);
        }
        if due(self.timers.persistent_deadline()) {
            self.timers.settle_persistent(now.boot);
            self.wanted |= !self.send_sign_of_life(now);
        }
    }

    /// Queues an authenticated datagram of the control plane. Without a required source address it is sent from
    /// the configured one, which this host may have regained.
    fn transmit(&mut self, now: Now, transmit: Transmit, datagram: Vec<u8>) {
        self.note_sent(now, datagram.len());
        self.transmit_aside(transmit, datagram);
    }

    /// Like [`Peer::transmit`], for a datagram that does not count as traffic.
    fn transmit_aside(&mut self, mut transmit: Transmit, datagram: Vec<u8>) {
        let configured = || self.paths.sources.towards(transmit.to);
        transmit.from = transmit.from.or_else(configured);
        self.transmits.push_back((transmit, datagram));
    }

    /// Counts the control plane's own traffic. No wake-up is needed: it is awake already.
    fn note_sent(&self, now: Now, bytes: usize) {
        let tally = Tally { datagrams: 1, packets: 0, bytes: bytes as u64 };
        let _awake = self.activity.sent(now.boot, tally);
    }

    fn note_received(&self, now: Now, bytes: usize) {
        let tally = Tally { datagrams: 1, packets: 0, bytes: bytes as u64 };
        let _awake = self.activity.received(now.boot, tally);
    }

    /// Polls four times a second while traffic flows, and stops after a poll without new traffic.
    fn schedule_poll(&mut self, now: Now, moved: bool) {
        if !moved && self.next_poll.is_some_and(|at| now.boot >= at) {
            self.activity.rest(self.timers.seen());
        }
        if !self.activity.is_active() {
            self.next_poll = None;
        } else if self.next_poll.is_none_or(|at| now.boot >= at) {
            self.next_poll = Some(now.boot + LOOK_EVERY);
        }
    }

    /// The table that the data threads should use now; also for their start.
    pub fn table(&self) -> Table {
        let sealing = self.keyring.current().map(|session| Arc::clone(&session.sealing));
        let mut open = [const { None }; OPENING_SLOTS + BOOTSTRAP_SLOTS];
        for (slot, key) in open.iter_mut().zip(self.keyring.opening().chain(self.bootstraps())) {
            *slot = Some(Arc::clone(key));
        }
        Table {
            send: sealing.zip(self.paths.current),
            path: self.paths.current,
            open,
            mac1: self.identities.mac1_keys(),
            awaiting_cookie: self.awaiting_cookie(),
            roam: self.paths.roam,
            left: self.paths.contests.before(),
            holds: self.holds_until.is_some(),
            stop: false,
        }
    }

    /// The indices of our pending handshakes that a cookie reply may answer.
    fn awaiting_cookie(&self) -> [Option<Index>; 2] {
        let answered = self.answering.as_ref().map(Answering::opening);
        let answered = answered.or_else(|| self.keyring.next().map(|session| &session.opening));
        [self.attempt.as_ref().and_then(Attempt::index), answered.map(|key| key.index())]
    }

    fn jitter(&mut self) -> Duration {
        Duration::from_millis((self.rng.next_u32() % (MAX_JITTER_MS + 1)).into())
    }
}
