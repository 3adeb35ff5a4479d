//! One end of the tunnel: a control plane, its two data lines, its clocks and its disk.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use vpnd_crypto::key::{PublicKey, SecretKey};
use vpnd_plane::{
    Counted, Effect, Kind, Loop, Notice, Outlook, Plane, Port, Settings, State, Trouble,
};
use vpnd_protocol::activity::Activity;
use vpnd_protocol::drop_reason::DropReason;
use vpnd_protocol::inheritance::Inheritance;
use vpnd_protocol::message::{self, Index, Message};
use vpnd_protocol::peer::{
    Change, Command, Echo, Event, Load, NotAsked, Peer, PeerStatus, Transmit, Tuning,
};
use vpnd_protocol::table::Arrival;
use vpnd_protocol::time::{BootTime, Now, WallTime};
use vpnd_protocol::timestamp::Timestamp;
use vpnd_tunnel::clamp::Clamp;
use vpnd_tunnel::engine::LOAD_THRESHOLD;
use vpnd_tunnel::filter::Filter;
use vpnd_tunnel::udp::Refusal;
use vpnd_tunnel::view::Policy;

use crate::data::Data;
use crate::network::Datagram;
pub(crate) use crate::options::{Disk, Floor, Options};

/// Wall clocks begin here.
pub(crate) const EPOCH: Duration = Duration::from_secs(1_700_000_000);
/// A wall clock beyond every timestamp: all stamps are then the last one there is.
pub(crate) const END_OF_TIME: Duration = Duration::from_secs(1 << 62);
/// More timers than all rules together can need in a second.
const WAKES_PER_SECOND: usize = 16;
/// Of devices, to begin with.
pub(crate) const MTU: u16 = 1420;

/// Which of the ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Side {
    A,
    B,
    /// A second machine with the configuration of A, if the world has one.
    C,
}

impl Side {
    pub(crate) const BOTH: [Self; 2] = [Self::A, Self::B];

    pub(crate) fn other(self) -> Self {
        if self == Self::B { Self::A } else { Self::B }
    }

    /// Whether this end is configured for a tunnel to that one.
    pub(crate) fn faces(self, other: Self) -> bool {
        (self == Self::B) != (other == Self::B)
    }

    pub(crate) fn secret(self) -> SecretKey {
        let owner = if self == Self::B { 2 } else { 1 };
        SecretKey::from_bytes([owner; 32])
    }

    pub(crate) fn public(self) -> PublicKey {
        self.secret().public()
    }

    /// Whose public key is the smaller one.
    pub(crate) fn smaller() -> Self {
        if Self::A.public() < Self::B.public() { Self::A } else { Self::B }
    }

    pub(crate) fn home(self) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, self as u8 + 1], 51820))
    }
}

/// Says of a datagram that its own host refuses to send it.
pub(crate) type Refuses = Box<dyn Fn(&Datagram) -> bool>;

pub(crate) struct End {
    side: Side,
    pub(crate) options: Options,
    pub(crate) address: SocketAddr,
    /// Other addresses of this end. Of one that differs from `address` in the port alone it only hears.
    pub(crate) others: Vec<SocketAddr>,
    /// What its own host refuses to send.
    pub(crate) refuses: Option<Refuses>,
    /// Datagrams that it refused.
    pub(crate) refused: Vec<(Duration, SocketAddr)>,
    /// Those that impair the tunnel.
    pub(crate) impaired: Vec<(Duration, SocketAddr)>,
    /// Addresses of the peer whose routes lead into the tunnel.
    pub(crate) loops: Vec<Loop>,
    pub(crate) load: Load,
    plane: Plane,
    pub(crate) data: Data,
    /// The device's MTU, and the one that it is to have.
    pub(crate) device_mtu: u16,
    pub(crate) wanted_mtu: Option<u16>,
    /// Its host sets the DF bit.
    pub(crate) dont_fragment: bool,
    rng: StdRng,
    /// How often it was started.
    pub(crate) life: u32,
    floor: Option<Timestamp>,
    /// The wall clock was set to the second at the first.
    wall: (Duration, Duration),
    /// What was told last of the peer's life, in this life of ours.
    pub(crate) alive: bool,
    /// Suspended: neither time nor packets reach it.
    pub(crate) asleep: bool,
    /// Timestamps on their way to the disk.
    pub(crate) writes: Vec<(Duration, Timestamp)>,
    pub(crate) outbox: Vec<Datagram>,
    pub(crate) events: Vec<(Duration, Event)>,
    /// What the service manager was told of the state, and what the log was.
    pub(crate) told: Vec<(Duration, State)>,
    pub(crate) logged: Vec<(Duration, State)>,
    /// What the data path counts beside its drops.
    pub(crate) counted: Counted,
    /// What people were to know of faults that the protocol does not find.
    pub(crate) notices: Vec<Notice>,
    /// When names were to be looked up.
    pub(crate) lookups: Vec<Duration>,
    /// Answers to PINGs that were requested.
    pub(crate) echoes: Vec<Echo>,
    /// When a timer called the control plane.
    pub(crate) wakes: Vec<Duration>,
    /// How often the order of effects was checked.
    pub(crate) checked: Checked,
}

/// Effects whose order was checked.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Checked {
    pub(crate) responses: usize,
    pub(crate) hooks: usize,
}

impl End {
    pub(crate) fn new(side: Side, options: Options, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ (side as u64 + 1) << 56);
        let wall = (Duration::ZERO, EPOCH);
        let (plane, data) =
            start(side, &options, None, None, &mut rng, clock(side, wall, Duration::ZERO));
        let mut end = Self {
            side,
            options,
            address: side.home(),
            others: Vec::new(),
            refuses: None,
            refused: Vec::new(),
            impaired: Vec::new(),
            loops: Vec::new(),
            load: Load::Normal,
            plane,
            data,
            device_mtu: MTU,
            wanted_mtu: None,
            dont_fragment: false,
            rng,
            life: 0,
            floor: None,
            wall,
            alive: false,
            asleep: false,
            writes: Vec::new(),
            outbox: Vec::new(),
            events: Vec::new(),
            told: Vec::new(),
            logged: Vec::new(),
            counted: Counted::default(),
            notices: Vec::new(),
            lookups: Vec::new(),
            echoes: Vec::new(),
            wakes: Vec::new(),
            checked: Checked::default(),
        };
        end.flush(Duration::ZERO);
        end
    }

    /// Resolves the configured name of the peer.
    pub(crate) fn resolve(&mut self, now: Duration) {
        let first = self.options.endpoint.into_iter();
        let addresses = first.chain(self.options.also_at.iter().copied()).collect();
        self.plane.resolved(addresses);
        self.flush(now);
    }

    /// Dies and starts anew.
    pub(crate) fn restart(&mut self, now: Duration, floor: Floor) {
        if floor == Floor::Lost {
            self.floor = None;
        }
        let clock = self.clock(now);
        self.begin(clock, None);
        self.alive = false;
        self.flush(now);
        self.resolve(now);
    }

    /// Ends in order, and the next process of the tunnel continues, at once.
    pub(crate) fn hand_on(&mut self, now: Duration) {
        let clock = self.clock(now);
        let left = self.plane.hand_on(clock).encode();
        self.take_over(now, Inheritance::decode(&left).expect("it was written by this version"));
    }

    /// The next process continues with this.
    pub(crate) fn take_over(&mut self, now: Duration, left: Inheritance) {
        let clock = self.clock(now);
        self.begin(clock, Some(left));
        self.flush(now);
        self.resolve(now);
    }

    fn begin(&mut self, clock: Now, left: Option<Inheritance>) {
        (self.plane, self.data) =
            start(self.side, &self.options, self.floor, left, &mut self.rng, clock);
        self.life += 1;
    }

    pub(crate) fn set_wall(&mut self, now: Duration, to: Duration) {
        self.wall = (now, to);
    }

    pub(crate) fn clock(&self, now: Duration) -> Now {
        clock(self.side, self.wall, now)
    }

    /// When the control plane wants to be called.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        let at = self.plane.deadline()?;
        Some(at.saturating_since(boot(self.side, Duration::ZERO)))
    }

    /// A deadline has passed.
    pub(crate) fn alarm(&mut self, now: Duration) {
        self.wakes.push(now);
        let lately = self.wakes.iter().rev().take_while(|&&at| at + Duration::from_secs(1) > now);
        assert!(lately.count() <= WAKES_PER_SECOND, "{:?} spins at {now:?}", self.side);
        self.control(now);
    }

    /// The control plane's turn: edges, then what queues.
    pub(crate) fn control(&mut self, now: Duration) {
        let clock = self.clock(now);
        self.data.woken = false;
        self.plane.wake(clock);
        self.flush(now);
        let waiting = if self.load == Load::Under { LOAD_THRESHOLD } else { 0 };
        while let Some(admitted) = self.data.handshakes.pop_front() {
            if let Err(reason) = self.plane.handshake(clock, waiting, &admitted) {
                *self.data.drops.entry(reason).or_default() += 1;
            }
            self.flush(now);
        }
        while let Some(framed) = self.data.frames.pop_front() {
            if let Err(reason) = self.plane.frame(clock, &framed) {
                *self.data.drops.entry(reason).or_default() += 1;
            }
            self.flush(now);
        }
        let next = self.plane.deadline();
        assert!(next.is_none_or(|at| at > clock.boot), "{:?} at {now:?}: {next:?}", self.side);
    }

    /// A timestamp has reached the disk.
    pub(crate) fn written(&mut self, now: Duration, stamp: Timestamp) {
        self.floor = Some(stamp);
        self.plane.floor_kept(self.clock(now), stamp);
        self.flush(now);
    }

    /// The configuration's terms have changed, and are taken up.
    pub(crate) fn adopt(&mut self, now: Duration) {
        let (own, remotes) = (self.options.identities(self.side), self.options.remotes());
        self.plane.adopt(self.clock(now), self.options.terms(), own, remotes);
        self.flush(now);
    }

    /// The configuration's timers and policies for the path have changed, and are taken up.
    pub(crate) fn retune(&mut self, now: Duration) {
        let Options {
            keepalive, dead_after, watch, roam, return_after, sources, raise_after, ..
        } = self.options;
        let tuning = Tuning {
            keepalive,
            dead_after,
            watch,
            roam,
            return_after,
            sources,
            dscp: 46,
            raise_after,
            tests_segmentation: true,
        };
        self.plane.retune(self.clock(now), &tuning, settings(&self.options));
        self.flush(now);
    }

    /// The configuration has other endpoints.
    pub(crate) fn replace_endpoints(&mut self, now: Duration) {
        self.retune(now);
        self.plane.endpoints_replaced();
        self.resolve(now);
    }

    /// Its user pings the peer.
    pub(crate) fn ping(&mut self, now: Duration) -> Result<u32, NotAsked> {
        let asked = self.plane.ping(self.clock(now));
        self.flush(now);
        asked
    }

    /// Its device has another MTU.
    pub(crate) fn set_mtu(&mut self, now: Duration, mtu: u16) {
        self.set_policy(now, policy(mtu, None, &["10.99.0.0/16"]));
    }

    /// Its data path goes by another policy.
    pub(crate) fn set_policy(&mut self, now: Duration, policy: Policy) {
        self.plane.set_policy(policy);
        self.flush(now);
    }

    /// The kernel confirms or refuses the MTU that the device was to have.
    pub(crate) fn answer_mtu(&mut self, now: Duration, confirmed: bool) {
        let wanted = self.wanted_mtu.take().expect("an MTU was to be set");
        if confirmed {
            self.device_mtu = wanted;
        }
        self.plane.mtu_set(self.clock(now), confirmed);
        self.flush(now);
    }

    /// What the peer said of its MTU.
    pub(crate) fn peer_mtu(&mut self, now: Duration) -> Option<u16> {
        self.status(now).greeting.map(|greeting| greeting.mtu)
    }

    /// Goes over to its next key.
    pub(crate) fn rotate(&mut self, now: Duration) {
        assert_eq!(self.plane.rotate(self.clock(now), false), Ok(()), "there is a next key");
        self.flush(now);
    }

    /// Forgets the old keys.
    pub(crate) fn finish_rotation(&mut self, now: Duration) {
        let finished = self.plane.rotate(self.clock(now), true);
        assert_eq!(finished, Ok(()), "{:?}: nobody has moved to a next key", self.side);
        self.flush(now);
    }

    /// Stops, and says so.
    pub(crate) fn close(&mut self, now: Duration) {
        self.plane.close(self.clock(now));
        self.flush(now);
    }

    /// A datagram cannot leave from where it should.
    pub(crate) fn lose_source(&mut self, now: Duration) {
        self.data.lose_source();
        self.control(now);
    }

    /// A router has reported how much it carries.
    pub(crate) fn hear_of_size(&mut self, payload: usize) {
        self.options.link = u16::try_from(payload).ok();
    }

    /// Packets come out of the device.
    pub(crate) fn offer(&mut self, now: Duration, packets: &[Vec<u8>]) {
        self.data.outbound(packets, self.clock(now).boot);
        self.collect();
    }

    /// Datagrams of one sender come out of the socket.
    pub(crate) fn receive(
        &mut self,
        now: Duration,
        from: SocketAddr,
        to: SocketAddr,
        batch: Vec<Vec<u8>>,
    ) {
        let at = Arrival { from, local: Some(to.ip()) };
        self.data.inbound(at, batch, self.clock(now).boot);
        self.collect();
    }

    pub(crate) fn drops(&self, reason: DropReason) -> usize {
        self.data.drops.get(&reason).copied().unwrap_or(0)
    }

    /// Does what the control plane wants done.
    fn flush(&mut self, now: Duration) {
        let mut bytes = Vec::new();
        while let Some(effect) = self.plane.poll(self.clock(now), &mut bytes) {
            match effect {
                Effect::Publish(table) => {
                    self.data.publish(*table, boot(self.side, now));
                    self.collect();
                }
                Effect::Transmit(transmit) => {
                    self.transmit(now, transmit, std::mem::take(&mut bytes))
                }
                other => self.perform(now, other),
            }
        }
    }

    /// The key that an answer lets the peer use is published before the answer leaves.
    fn check_published(&mut self, datagram: &[u8]) {
        if let Ok(Message::Response(response)) = message::parse(datagram) {
            let opening = self.data.table().opening(response.sender);
            assert!(opening.is_some(), "{:?}: the key is not published", self.side);
            self.checked.responses += 1;
        }
    }

    /// A hook that runs because the peer is alive finds routes that lead to it, and the key that it was heard under.
    fn check_hooks(&mut self, now: Duration, alive: bool) {
        assert_eq!(self.alive, alive, "{:?}: routes come first", self.side);
        let has_key = self.data.table().open.iter().any(Option::is_some);
        assert!(!alive || has_key, "{:?}: the key is not published", self.side);
        let kind = self.state(now).kind;
        let lives = kind.works() || kind == Kind::Unresponsive;
        let agrees = if alive { lives } else { kind == Kind::Down };
        assert!(agrees, "{:?}: {kind:?}, and the hook is told {alive}", self.side);
        let told = self.told.last().map(|(_, state)| state.kind);
        assert_eq!(told, Some(kind), "{:?}: the service manager comes first", self.side);
        self.checked.hooks += 1;
    }

    fn transmit(&mut self, now: Duration, transmit: Transmit, bytes: Vec<u8>) {
        self.check_published(&bytes);
        let datagram = self.datagram(transmit, bytes);
        if self.refuses.as_ref().is_some_and(|refuses| refuses(&datagram)) {
            self.refused.push((now, datagram.to));
            self.plane.datagram_refused(self.clock(now), datagram.to, Some(Refusal::NoRoute));
        } else {
            self.plane.datagram_left(datagram.to);
            self.outbox.push(datagram);
        }
    }

    /// What is neither published nor sent.
    fn perform(&mut self, now: Duration, effect: Effect) {
        let clock = self.clock(now);
        match effect {
            Effect::KeepFloor(stamp) => {
                if let Disk::Writes(after) = self.options.disk {
                    self.writes.push((after, stamp));
                }
                self.events.push((now, Command::KeepFloor(stamp).into()));
            }
            Effect::PublishPolicy(policy) => self.data.set_policy(policy),
            Effect::SetMtu(mtu) => {
                self.wanted_mtu = Some(mtu);
                if !self.options.slow_device {
                    self.answer_mtu(now, true);
                }
            }
            Effect::MeasurePath(to) => {
                self.plane.path_measured(clock, to, self.options.link);
            }
            Effect::DontFragment(set) => self.dont_fragment = set,
            Effect::Fragment(size) => self.plane.fragments_at(size),
            Effect::AskRoutes { .. } => self.see_routes(now),
            Effect::ChangePort => self.change_port(now),
            Effect::FollowRoute(Some(way)) => {
                let is_kernels = way.from == Some(self.address.ip());
                self.plane.source_chosen(way, is_kernels);
            }
            Effect::CheckSending => self.plane.sending_checked(clock, None),
            Effect::Routes { alive } => self.watch_life(now, alive),
            Effect::Carrier { on } => {
                assert_eq!(self.alive, on, "{:?}: routes come first", self.side)
            }
            Effect::Hooks { alive, .. } => self.check_hooks(now, alive),
            Effect::Notify(Notice::Change(change)) => self.events.push((now, change.into())),
            Effect::Notify(Notice::Diagnosis(found) | Notice::Again(found)) => {
                self.events.push((now, found.into()))
            }
            Effect::Standing(state, _) => self.told.push((now, state)),
            Effect::Notify(Notice::State(state)) => self.logged.push((now, state)),
            Effect::Echo(echo) => self.echoes.push(echo),
            Effect::LookUpNames => self.lookups.push(now),
            Effect::Notify(Notice::Refused(refused)) => self.impaired.push((now, refused.to)),
            Effect::Notify(notice) => self.notices.push(notice),
            _ => {}
        }
    }

    /// A router is on the path of those whose port is fixed.
    fn see_routes(&mut self, now: Duration) {
        let (is_routed, loops) = (self.options.fixed_port, self.loops.clone());
        let outlook = Outlook { is_routed, loops, ..Outlook::default() };
        self.plane.routes_seen(self.clock(now), outlook);
    }

    /// The kernel's routes to the peer have changed.
    pub(crate) fn change_routes(&mut self, now: Duration, loops: Vec<Loop>) {
        self.loops = loops;
        self.see_routes(now);
        self.flush(now);
    }

    /// The control plane reads what the data path has counted, and then the fault that stands.
    pub(crate) fn trouble(&mut self, now: Duration) -> Option<Trouble> {
        let bad_mac1 = self.drops(DropReason::BadMac1) as u64;
        let counted = Counted { bad_mac1, ..self.counted };
        self.plane.counters_seen(self.clock(now).boot, counted);
        self.flush(now);
        self.plane.trouble()
    }

    fn change_port(&mut self, now: Duration) {
        self.events.push((now, Command::ChangePort.into()));
        let port = match (self.options.free_port, self.options.fixed_port) {
            (true, _) => Port::Changed,
            (_, true) => Port::Fixed,
            _ => Port::Kept,
        };
        if port == Port::Changed {
            self.address.set_port(self.address.port() + 1);
        }
        self.plane.port_is(self.clock(now), port);
    }

    /// Its own host refuses data.
    pub(crate) fn data_refused(&mut self, now: Duration, to: SocketAddr) {
        self.plane.datagram_refused(self.clock(now), to, Some(Refusal::NoRoute));
        self.flush(now);
    }

    /// Who comes to life was not alive, and who dies was.
    fn watch_life(&mut self, now: Duration, alive: bool) {
        assert_ne!(self.alive, alive, "{:?} is told {alive} twice, at {now:?}", self.side);
        self.alive = alive;
        let change = if alive { Change::Alive } else { Change::Dead };
        self.events.push((now, change.into()));
    }

    /// The state of the tunnel.
    pub(crate) fn state(&mut self, now: Duration) -> State {
        self.plane.state(self.clock(now))
    }

    /// How the peer stands.
    pub(crate) fn status(&mut self, now: Duration) -> PeerStatus {
        self.plane.status(self.clock(now))
    }

    fn collect(&mut self) {
        for (transmit, bytes) in std::mem::take(&mut self.data.sealed) {
            let datagram = self.datagram(transmit, bytes);
            self.outbox.push(datagram);
        }
    }

    /// The kernel chooses the first address of the end where the peer does not.
    fn datagram(&self, Transmit { to, from }: Transmit, bytes: Vec<u8>) -> Datagram {
        let chosen =
            |other: &&SocketAddr| Some(other.ip()) == from && other.ip() != self.address.ip();
        let from = self.others.iter().find(chosen);
        Datagram { from: *from.unwrap_or(&self.address), to, bytes }
    }

    /// Whether a datagram to this address reaches it.
    pub(crate) fn listens(&self, to: SocketAddr) -> bool {
        !self.asleep && (self.address == to || self.others.contains(&to))
    }

    /// The kernel says that a route, an address or a link has changed.
    pub(crate) fn retry_refused(&mut self, now: Duration) {
        self.plane.network_changed(self.clock(now), false);
        self.flush(now);
    }

    /// The kernel would send by another way now.
    pub(crate) fn route_changed(&mut self, now: Duration) {
        self.plane.network_changed(self.clock(now), true);
        self.flush(now);
    }

    /// The host was suspended until now.
    pub(crate) fn resumed(&mut self, now: Duration) {
        self.plane.resumed(self.clock(now));
        self.flush(now);
    }

    /// The host is about to be suspended.
    pub(crate) fn forget(&mut self, now: Duration) {
        self.plane.forget(self.clock(now));
        self.flush(now);
    }

    /// This end's machine was copied.
    pub(crate) fn copied(&mut self, now: Duration) {
        self.plane.copied(self.clock(now));
        self.flush(now);
    }

    /// The sessions that open datagrams.
    pub(crate) fn opening_indices(&self) -> Vec<Index> {
        self.data.table().open.iter().flatten().map(|key| key.index()).collect()
    }

    /// Moves to another address.
    pub(crate) fn roam(&mut self, host: u8, port: u16) {
        self.address = SocketAddr::new(IpAddr::from([198, 51, 100, host]), port);
    }
}

fn start(
    side: Side,
    options: &Options,
    floor: Option<Timestamp>,
    left: Option<Inheritance>,
    rng: &mut StdRng,
    now: Now,
) -> (Plane, Data) {
    let activity = Arc::new(Activity::default());
    let own_rng = StdRng::seed_from_u64(rng.next_u64());
    let config = options.config(side, floor);
    let mut peer = Peer::new(config, Arc::clone(&activity), Box::new(own_rng), now);
    let alive = left.as_ref().is_some_and(Inheritance::is_alive);
    left.into_iter().for_each(|left| peer.inherit(now, left));
    let settings = Settings { alive, ..settings(options) };
    let policy = policy(MTU, None, &["10.99.0.0/16"]);
    let mut plane = Plane::new(peer, policy.clone(), settings);
    let first = plane.poll(now, &mut Vec::new());
    let Some(Effect::Publish(table)) = first else { panic!("a new control plane publishes first") };
    (plane, Data::new(activity, *table, policy))
}

fn settings(options: &Options) -> Settings {
    Settings {
        mtu_max: None,
        mtu_follows: options.mtu_follows,
        alive: false,
        carrier_follows: true,
        endpoints: options.endpoint.into_iter().chain(options.also_at.clone()).map(Some).collect(),
        resolve_every: options.resolve_every,
    }
}

/// What the data path goes by.
pub(crate) fn policy(mtu: u16, clamp: Option<Clamp>, allowed: &[&str]) -> Policy {
    let allowed: Vec<IpNet> = allowed.iter().map(|text| text.parse().expect("a network")).collect();
    Policy::new(vpnd_tun::Mode::Tun, mtu, Filter::new(&allowed)).with_clamp(clamp)
}

fn clock(side: Side, (set_at, set_to): (Duration, Duration), now: Duration) -> Now {
    Now { boot: boot(side, now), wall: WallTime::from_unix(set_to + (now - set_at)) }
}

/// The two machines were booted at different times.
fn boot(side: Side, now: Duration) -> BootTime {
    BootTime::from_nanos(1_000_000_000_000 * (side as u64 + 1)) + now
}
