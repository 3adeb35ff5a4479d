//! The control plane of one tunnel: handshakes, timers, sessions and the way to the peer, in one
//! value that is only ever `&mut`. Transport data never enters it; the data threads work by the
//! [`Table`] it publishes and report through [`Activity`].
//!
//! The caller, after every call in: [`Peer::poll_table`] (publish), then [`Peer::poll_transmit`]
//! (send), then [`Peer::poll_event`], and sleeps until [`Peer::poll_timeout`].

mod alternatives;
mod change;
mod contest;
mod detours;
mod doubt;
mod duplicate;
mod event;
mod frames;
mod identities;
mod initiator;
mod life;
mod pace;
mod parts;
mod paths;
mod race;
mod reach;
mod responder;
mod roaming;
mod search;
mod session;
mod size;
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

use identities::Identities;
use initiator::Attempt;
use parts::Parts;
use paths::Paths;
use reach::Port;
use responder::{Answered, Initiations};
use upgrade::Answering;
use window::Window;

pub use event::{Change, Command, Diagnosis, Event};
pub use frames::{Greeting, Loss, Quality};
pub use status::{PeerStatus, Standing};
pub use window::{BothWays, Recent, RoundTrip};

/// What a tunnel is made of.
pub struct Config {
    /// Our static key pair, and perhaps the one that is to replace it.
    pub identities: Vec<Identity>,
    /// The peer's static public key, and perhaps the one that is to replace it.
    pub remotes: Vec<PublicKey>,
    /// What an answer may have been made under. The first are ours, and what we answer under; there
    /// is always one.
    pub terms: Vec<Terms>,
    /// The device's MTU, which the peer is told.
    pub mtu: u16,
    /// The hardware address of the device, which the peer is told, where frames cross it.
    pub mac: Option<[u8; 6]>,
    /// The longest that crosses the device: with Ethernet frames more than the MTU.
    pub largest_packet: u16,
    /// How often to speak when nothing else does.
    pub keepalive: Option<Duration>,
    /// Who gives no sign of life for so long is dead.
    pub dead_after: Duration,
    /// Whether silence alone is a sign of death: the peer is then asked when it is silent, and called
    /// without end while it is not alive. Otherwise only what goes unanswered is a sign.
    pub watch: bool,
    /// Which new addresses of the peer are followed.
    pub roam: Roam,
    /// A configured address earlier than the one in use has to be good for this long before it is used again.
    pub return_after: Duration,
    /// What to send from until the peer has written to another address of ours.
    pub sources: Sources,
    /// Whether the port that is sent from stays, whatever comes of it.
    pub fixed_port: bool,
    /// The differentiated services code point of data that leaves, 0 to 63.
    pub dscp: u8,
    /// The last timestamp ever sent under our key, if it was kept.
    pub floor: Option<Timestamp>,
    /// The largest UDP payload to send while nothing is known of a path.
    pub max_datagram: u16,
    /// How often a path that carries less than its first link is probed for more.
    pub raise_after: Duration,
}

impl Config {
    /// Both ends and their terms, over a device of IP packets with this MTU; the rest is as a configuration has it
    /// that does not name it.
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
        }
    }
}

/// Whether more handshakes queue than can be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// All are answered.
    Normal,
    /// Only senders that prove their address are answered, and those at a limited rate.
    Under,
}

/// A datagram to send: where, and from which of our addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// The destination.
    pub to: SocketAddr,
    /// Our address; `None` lets the kernel choose.
    pub from: Option<IpAddr>,
}

/// The device, as the peer is told of it.
#[derive(Clone, Copy, Debug)]
struct DeviceFacts {
    mtu: u16,
    mac: Option<[u8; 6]>,
    largest_packet: u16,
}

/// One peer. See the module's documentation for the order of calls.
pub struct Peer {
    /// What an answer may have been made under; ours first.
    terms: Vec<Terms>,
    device: DeviceFacts,
    rng: Box<dyn CryptoRng + Send>,
    activity: Arc<Activity>,
    timers: Timers,
    life: Life,
    next_look: Option<BootTime>,

    keyring: Keyring,
    generation: Generation,
    established: Option<BootTime>,
    handshakes: u64,
    /// A session older than this rekeys no more at the last minute: it has already asked.
    last_minute_asked: Generation,

    paths: Paths,
    /// Round trip and loss of the last minutes, whatever the session.
    window: Window,

    attempt: Option<Attempt>,
    /// A bootstrap session that the peer began.
    answering: Option<Answering>,
    /// An initiation is wanted and has not begun.
    wanted: bool,
    /// Terms or keys have changed: a session of this generation or an older one is not what is wanted.
    renewing: Option<Generation>,
    /// Two initiations of ours stand this far apart.
    initiate_from: BootTime,
    /// An answer of ours that the peer may still use puts our own initiation off until then.
    yields_until: BootTime,
    stamper: Stamper,

    identities: Identities,
    limiter: RateLimiter,
    initiations: Initiations,
    answered: Option<Answered>,
    unconfirmed_answers: u32,
    port: Port,
    /// What the peer said of itself on the current session.
    greeting: Option<Greeting>,

    /// What the table that was published last is made of.
    published: Option<Parts>,
    transmits: VecDeque<(Transmit, Vec<u8>)>,
    events: VecDeque<Event>,
}

impl Peer {
    /// A peer that nothing is known of yet but its configuration.
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
            next_look: None,
            keyring: Keyring::default(),
            generation: Generation::default(),
            established: None,
            handshakes: 0,
            last_minute_asked: Generation::default(),
            paths,
            window: Window::default(),
            attempt: None,
            answering: None,
            wanted: false,
            renewing: None,
            initiate_from: BootTime::default(),
            yields_until: BootTime::default(),
            stamper: Stamper::new(config.floor),
            identities: Identities::new(identities, remotes),
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

    /// Takes the addresses that name resolution found for the configured endpoints. The first
    /// ones begin a handshake: whoever waits for the tunnel then learns at once how it stands.
    pub fn handle_endpoints(&mut self, now: Now, addresses: Vec<SocketAddr>) {
        if self.paths.candidates.configure(addresses) && self.keyring.current().is_none() {
            self.wanted = true;
            self.spread_now(now);
        }
        if let (None, Some(_), Some(to)) =
            (self.paths.current, self.keyring.current(), self.paths.target())
        {
            // The peer spoke before its name was resolved, and only its name says where it is.
            self.paths.set(to, None);
        }
        self.handle_wake(now);
    }

    /// Takes a handshake message.
    ///
    /// # Errors
    /// Why it was dropped, for the counters.
    pub fn handle_handshake(
        &mut self,
        now: Now,
        load: Load,
        admitted: &Admitted,
    ) -> Result<(), DropReason> {
        // Edges first: a confirmation that came before this message must not be undone by it.
        self.follow_edges(now);
        let result = self.dispatch(now, load, admitted);
        self.handle_wake(now);
        result
    }

    /// Looks at everything: an edge was raised, a deadline passed, or it is time to look.
    pub fn handle_wake(&mut self, now: Now) {
        self.follow_edges(now);
        self.retire_keys(now);
        let moved = self.timers.observe(self.activity.moments());
        self.follow_traffic(now);
        self.follow_timers(now);
        self.follow_life(now);
        self.pursue_handshake(now);
        self.pursue_upgrade(now);
        self.follow_doubt(now);
        self.follow_alternatives(now);
        self.measure(now);
        self.probe_size(now);
        self.schedule_look(now, moved);
    }

    /// The new table, if there is one. Publish it before anything else is sent.
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
        Some(transmit)
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
            (self.next_look, Timer::Look),
        ];
        deadlines.into_iter().filter_map(|(at, why)| Some((at?, why))).min_by_key(|(at, _)| *at)
    }

    /// Where packets for the peer go.
    pub fn endpoint(&self) -> Option<SocketAddr> {
        self.paths.endpoint()
    }

    /// The address of ours that they leave from, if that is known.
    pub fn source(&self) -> Option<IpAddr> {
        self.paths.source()
    }

    fn follow_edges(&mut self, now: Now) {
        let confirmed = self.keyring.confirm();
        if confirmed {
            self.reached(now);
            self.establish(now, Role::Responder);
            self.watch_for_duplicates(now);
            self.follow_answer(now);
        }
        self.follow_contest(now);
        self.follow_source(now);
        // A move makes a contest due that was put off.
        self.follow_contest(now);
        if confirmed {
            self.greet_back(now);
        }
        if self.activity.source_lost.take() {
            // Not ours any more, be it the configured one: the kernel knows which are.
            self.paths.change_source(None);
        }
    }

    /// A session has become current.
    fn establish(&mut self, now: Now, role: Role) {
        self.established = Some(now.boot);
        self.handshakes += 1;
        self.greeting = None;
        // A session of another protocol has none, whatever was answered before.
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
            self.forget_what_was_said();
            self.events.push_back(Change::Lost.into());
        }
    }

    /// What traffic itself asks for: packets without a key, a key that nears its end.
    fn follow_traffic(&mut self, now: Now) {
        let Some(current) = self.keyring.current() else {
            self.wanted |= self.activity.want_handshake.is_raised();
            return;
        };
        let seals = current.sealing.seals_at(now.boot);
        if seals {
            // Raised in the moment before the key was published: its packets find the key.
            self.activity.want_handshake.take();
        }
        let asked = !seals && self.activity.want_handshake.is_raised()
            || current.sealing.wants_successor()
            || self.is_last_minute(current, now);
        // A successor that waits for its confirmation puts this off, by `yields_until`.
        if asked && self.attempt.is_none() {
            self.last_minute_asked = current.opening.generation();
            self.wanted = true;
        }
    }

    fn is_last_minute(&self, current: &Session, now: Now) -> bool {
        current.role == Role::Initiator
            && current.opening.generation() > self.last_minute_asked
            && now.boot.saturating_since(current.birth) >= LAST_MINUTE
            && self.activity.moments().received.is_some_and(|at| at >= current.birth + LAST_MINUTE)
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
            self.wanted |= !self.speak(now);
        }
    }

    /// Queues an authenticated datagram of our own making. One that need not leave from where the peer
    /// last wrote to leaves from the configured address, which may be ours again by now.
    fn transmit(&mut self, now: Now, transmit: Transmit, datagram: Vec<u8>) {
        self.note_sent(now, datagram.len());
        self.transmit_aside(transmit, datagram);
    }

    /// The same, but it does not count as traffic.
    fn transmit_aside(&mut self, mut transmit: Transmit, datagram: Vec<u8>) {
        let configured = || self.paths.sources.towards(transmit.to);
        transmit.from = transmit.from.or_else(configured);
        self.transmits.push_back((transmit, datagram));
    }

    /// The control plane's own traffic counts like everybody's; it is awake already.
    fn note_sent(&self, now: Now, bytes: usize) {
        let tally = Tally { datagrams: 1, packets: 0, bytes: bytes as u64 };
        let _awake = self.activity.sent(now.boot, tally);
    }

    fn note_received(&self, now: Now, bytes: usize) {
        let tally = Tally { datagrams: 1, packets: 0, bytes: bytes as u64 };
        let _awake = self.activity.received(now.boot, tally);
    }

    /// While traffic flows, four looks a second; one that sees nothing new is the last.
    fn schedule_look(&mut self, now: Now, moved: bool) {
        if !moved && self.next_look.is_some_and(|at| now.boot >= at) {
            self.activity.rest(self.timers.seen());
        }
        if !self.activity.is_active() {
            self.next_look = None;
        } else if self.next_look.is_none_or(|at| now.boot >= at) {
            self.next_look = Some(now.boot + LOOK_EVERY);
        }
    }

    /// What the data threads should work by now; for their start.
    pub fn table(&self) -> Table {
        let sealing = self.keyring.current().map(|session| Arc::clone(&session.sealing));
        let mut open = [const { None }; OPENING_SLOTS + BOOTSTRAP_SLOTS];
        for (slot, key) in open.iter_mut().zip(self.keyring.opening().chain(self.bootstraps())) {
            *slot = Some(Arc::clone(key));
        }
        Table {
            send: sealing.zip(self.paths.current),
            open,
            mac1: self.identities.mac1_keys(),
            awaiting_cookie: self.awaiting_cookie(),
            roam: self.paths.roam,
            left: self.paths.contests.before(),
            stop: false,
        }
    }

    /// The names of the handshakes of ours that a cookie reply may answer.
    fn awaiting_cookie(&self) -> [Option<Index>; 2] {
        let answered = self.answering.as_ref().map(Answering::opening);
        let answered = answered.or_else(|| self.keyring.next().map(|session| &session.opening));
        [self.attempt.as_ref().and_then(Attempt::index), answered.map(|key| key.index())]
    }

    fn jitter(&mut self) -> Duration {
        Duration::from_millis((self.rng.next_u32() % (MAX_JITTER_MS + 1)).into())
    }
}
