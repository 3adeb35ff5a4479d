//! One end of the tunnel: a control plane, its two data lines, its clocks and its disk.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use vpnd_crypto::key::{PresharedKey, PublicKey, SecretKey};
use vpnd_protocol::activity::Activity;
use vpnd_protocol::drop_reason::DropReason;
use vpnd_protocol::endpoint::{Roam, Sources};
use vpnd_protocol::handshake::Identity;
use vpnd_protocol::peer::{Config, Event, Load, Peer, Transmit};
use vpnd_protocol::table::Arrival;
use vpnd_protocol::terms::{Protocol, Terms};
use vpnd_protocol::time::{BootTime, Now, WallTime};
use vpnd_protocol::timestamp::Timestamp;

use crate::data::Data;
use crate::network::Datagram;

/// Wall clocks begin here.
pub(crate) const EPOCH: Duration = Duration::from_secs(1_700_000_000);
/// A wall clock beyond every timestamp: all stamps are then the last one there is.
pub(crate) const END_OF_TIME: Duration = Duration::from_secs(1 << 62);
/// More timers than all rules together can need in a second.
const WAKES_PER_SECOND: usize = 16;

/// Which of the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Side {
    A,
    B,
}

impl Side {
    pub(crate) const BOTH: [Self; 2] = [Self::A, Self::B];

    pub(crate) fn other(self) -> Self {
        if self == Self::A { Self::B } else { Self::A }
    }

    pub(crate) fn secret(self) -> SecretKey {
        SecretKey::from_bytes([self as u8 + 1; 32])
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

/// How the disk takes a timestamp.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Disk {
    /// Written after this long.
    Writes(Duration),
    /// Never written, never answered.
    Broken,
}

/// What is left of an end that is started anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Floor {
    Kept,
    Lost,
}

#[derive(Clone)]
pub(crate) struct Options {
    /// Where to find the peer; nowhere: wait for it.
    pub(crate) endpoint: Option<SocketAddr>,
    /// Where else.
    pub(crate) also_at: Vec<SocketAddr>,
    pub(crate) keepalive: Option<Duration>,
    pub(crate) dead_after: Duration,
    pub(crate) watch: bool,
    /// Its port may change.
    pub(crate) free_port: bool,
    /// It may not, and the peer knows.
    pub(crate) fixed_port: bool,
    pub(crate) roam: Roam,
    pub(crate) sources: Sources,
    pub(crate) protocol: Protocol,
    pub(crate) preshared: Vec<[u8; 32]>,
    /// What else an answer may be made under, with the first of the preshared keys.
    pub(crate) also: Vec<Protocol>,
    /// Our next key, and the peer's.
    pub(crate) next: [Option<[u8; 32]>; 2],
    pub(crate) remote: PublicKey,
    pub(crate) disk: Disk,
}

impl Options {
    pub(crate) fn of(side: Side) -> Self {
        Self {
            endpoint: Some(side.other().home()),
            also_at: Vec::new(),
            keepalive: None,
            dead_after: Duration::from_secs(60),
            watch: false,
            free_port: false,
            fixed_port: false,
            roam: Roam::Any,
            sources: Sources::default(),
            protocol: Protocol::WireGuard,
            preshared: vec![[0; 32]],
            also: Vec::new(),
            next: [None, None],
            remote: side.other().public(),
            disk: Disk::Writes(Duration::ZERO),
        }
    }

    fn terms(&self) -> Vec<Terms> {
        let key = |bytes: &[u8; 32]| PresharedKey::from_bytes(*bytes);
        let keys = self.preshared.iter().map(|bytes| Terms::new(self.protocol, &key(bytes)));
        let also = self.also.iter().map(|other| Terms::new(*other, &key(&self.preshared[0])));
        keys.chain(also).collect()
    }

    fn identities(&self, side: Side) -> Vec<Identity> {
        let next = self.next[0].map(SecretKey::from_bytes);
        [Some(side.secret()), next].into_iter().flatten().map(Identity::new).collect()
    }

    fn remotes(&self) -> Vec<PublicKey> {
        let next = self.next[1].map(|secret| SecretKey::from_bytes(secret).public());
        [Some(self.remote), next].into_iter().flatten().collect()
    }

    fn config(&self, side: Side, floor: Option<Timestamp>) -> Config {
        Config {
            identities: self.identities(side),
            remotes: self.remotes(),
            terms: self.terms(),
            mtu: 1420,
            mac: None,
            largest_packet: 1420,
            keepalive: self.keepalive,
            dead_after: self.dead_after,
            fixed_port: self.fixed_port,
            watch: self.watch,
            roam: self.roam,
            sources: self.sources,
            dscp: 46,
            floor,
            max_datagram: 1452,
        }
    }
}

/// Says of a datagram that its own host refuses to send it.
pub(crate) type Refuses = Box<dyn Fn(&Datagram) -> bool>;

pub(crate) struct End {
    side: Side,
    pub(crate) options: Options,
    pub(crate) address: SocketAddr,
    /// Other addresses of this end.
    pub(crate) others: Vec<SocketAddr>,
    /// What its own host refuses to send.
    pub(crate) refuses: Option<Refuses>,
    /// Datagrams that it refused.
    pub(crate) refused: Vec<(Duration, SocketAddr)>,
    /// Those that impair the tunnel.
    pub(crate) impaired: Vec<(Duration, SocketAddr)>,
    pub(crate) load: Load,
    pub(crate) peer: Peer,
    pub(crate) data: Data,
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
    /// When a timer called the control plane.
    pub(crate) wakes: Vec<Duration>,
}

impl End {
    pub(crate) fn new(side: Side, options: Options, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ (side as u64 + 1) << 56);
        let wall = (Duration::ZERO, EPOCH);
        let (peer, data) = start(side, &options, None, &mut rng, clock(side, wall, Duration::ZERO));
        let mut end = Self {
            side,
            options,
            address: side.home(),
            others: Vec::new(),
            refuses: None,
            refused: Vec::new(),
            impaired: Vec::new(),
            load: Load::Normal,
            peer,
            data,
            rng,
            life: 0,
            floor: None,
            wall,
            alive: false,
            asleep: false,
            writes: Vec::new(),
            outbox: Vec::new(),
            events: Vec::new(),
            wakes: Vec::new(),
        };
        end.flush(Duration::ZERO);
        end
    }

    /// Resolves the configured name of the peer.
    pub(crate) fn resolve(&mut self, now: Duration) {
        let first = self.options.endpoint.into_iter();
        let addresses = first.chain(self.options.also_at.iter().copied()).collect();
        self.peer.handle_endpoints(self.clock(now), addresses);
        self.flush(now);
    }

    /// Dies and starts anew.
    pub(crate) fn restart(&mut self, now: Duration, floor: Floor) {
        if floor == Floor::Lost {
            self.floor = None;
        }
        let clock = self.clock(now);
        (self.peer, self.data) = start(self.side, &self.options, self.floor, &mut self.rng, clock);
        self.life += 1;
        self.alive = false;
        self.flush(now);
        self.resolve(now);
    }

    pub(crate) fn set_wall(&mut self, now: Duration, to: Duration) {
        self.wall = (now, to);
    }

    pub(crate) fn clock(&self, now: Duration) -> Now {
        clock(self.side, self.wall, now)
    }

    /// When the control plane wants to be called.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        let (at, _) = self.peer.poll_timeout()?;
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
        self.peer.handle_wake(clock);
        self.flush(now);
        while let Some(admitted) = self.data.handshakes.pop_front() {
            if let Err(reason) = self.peer.handle_handshake(clock, self.load, &admitted) {
                *self.data.drops.entry(reason).or_default() += 1;
            }
            self.flush(now);
        }
        while let Some(framed) = self.data.frames.pop_front() {
            if let Err(reason) = self.peer.handle_frame(clock, &framed) {
                *self.data.drops.entry(reason).or_default() += 1;
            }
            self.flush(now);
        }
        let next = self.peer.poll_timeout();
        assert!(next.is_none_or(|(at, _)| at > clock.boot), "{:?} at {now:?}: {next:?}", self.side);
    }

    /// A timestamp has reached the disk.
    pub(crate) fn written(&mut self, now: Duration, stamp: Timestamp) {
        self.floor = Some(stamp);
        self.peer.floor_kept(self.clock(now), stamp);
        self.flush(now);
    }

    /// The configuration's terms have changed, and are taken up.
    pub(crate) fn adopt(&mut self, now: Duration) {
        let (own, remotes) = (self.options.identities(self.side), self.options.remotes());
        self.peer.adopt(self.clock(now), self.options.terms(), own, remotes);
        self.flush(now);
    }

    /// Its device has another MTU.
    pub(crate) fn set_mtu(&mut self, now: Duration, mtu: u16) {
        self.peer.device_changed(self.clock(now), mtu, mtu);
        self.flush(now);
    }

    /// What the peer said of its MTU.
    pub(crate) fn peer_mtu(&mut self, now: Duration) -> Option<u16> {
        self.peer.status(self.clock(now)).greeting.map(|greeting| greeting.mtu)
    }

    /// Goes over to its next key.
    pub(crate) fn rotate(&mut self, now: Duration) {
        assert!(self.peer.rotate(self.clock(now)), "there is a next key");
        self.flush(now);
    }

    /// Forgets the old keys.
    pub(crate) fn finish_rotation(&mut self, now: Duration) {
        assert!(self.peer.finish_rotation(), "{:?}: nobody has moved to a next key", self.side);
        self.flush(now);
    }

    /// Stops, and says so.
    pub(crate) fn close(&mut self, now: Duration) {
        self.peer.close(self.clock(now));
        self.flush(now);
    }

    /// A datagram cannot leave from where it should.
    pub(crate) fn lose_source(&mut self, now: Duration) {
        self.data.lose_source();
        self.control(now);
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

    /// Publish, then transmit, then tell.
    fn flush(&mut self, now: Duration) {
        if let Some(table) = self.peer.poll_table() {
            self.data.publish(table, boot(self.side, now));
            self.collect();
        }
        let mut bytes = Vec::new();
        while let Some(transmit) = self.peer.poll_transmit(&mut bytes) {
            let datagram = self.datagram(transmit, std::mem::take(&mut bytes));
            if self.refuses.as_ref().is_some_and(|refuses| refuses(&datagram)) {
                self.refused.push((now, datagram.to));
                self.note_refusal(now, datagram.to);
            } else {
                self.outbox.push(datagram);
            }
        }
        while let Some(event) = self.peer.poll_event() {
            if let (Event::KeepFloor(stamp), Disk::Writes(after)) = (&event, self.options.disk) {
                self.writes.push((after, *stamp));
            }
            if event == Event::Unheard && self.options.free_port {
                self.address.set_port(self.address.port() + 1);
            }
            if event == Event::Unheard && self.options.fixed_port {
                self.peer.fall_silent(self.clock(now));
            }
            self.watch_life(now, &event);
            self.events.push((now, event));
        }
    }

    fn note_refusal(&mut self, now: Duration, to: SocketAddr) {
        if self.peer.send_refused(self.clock(now), to) {
            self.impaired.push((now, to));
        }
    }

    /// Its own host refuses data.
    pub(crate) fn data_refused(&mut self, now: Duration, to: SocketAddr) {
        self.note_refusal(now, to);
        self.flush(now);
    }

    /// Who comes to life was not alive, and who dies was.
    fn watch_life(&mut self, now: Duration, event: &Event) {
        let alive = match event {
            Event::Alive => true,
            Event::Dead => false,
            _ => return,
        };
        assert_ne!(self.alive, alive, "{:?} is told {event:?} twice, at {now:?}", self.side);
        self.alive = alive;
    }

    fn collect(&mut self) {
        for (transmit, bytes) in std::mem::take(&mut self.data.sealed) {
            let datagram = self.datagram(transmit, bytes);
            self.outbox.push(datagram);
        }
    }

    /// The kernel chooses the first address of the end where the peer does not.
    fn datagram(&self, Transmit { to, from }: Transmit, bytes: Vec<u8>) -> Datagram {
        let from = self.others.iter().find(|other| Some(other.ip()) == from);
        Datagram { from: *from.unwrap_or(&self.address), to, bytes }
    }

    /// Whether a datagram to this address reaches it.
    pub(crate) fn listens(&self, to: SocketAddr) -> bool {
        !self.asleep && (self.address == to || self.others.contains(&to))
    }

    /// The kernel says that a route, an address or a link has changed.
    pub(crate) fn retry_refused(&mut self, now: Duration) {
        self.peer.retry_refused(self.clock(now));
        self.flush(now);
    }

    /// The kernel would send by another way now.
    pub(crate) fn route_changed(&mut self, now: Duration) {
        self.peer.route_changed(self.clock(now));
        self.flush(now);
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
    rng: &mut StdRng,
    now: Now,
) -> (Peer, Data) {
    let activity = Arc::new(Activity::default());
    let own_rng = StdRng::seed_from_u64(rng.next_u64());
    let config = options.config(side, floor);
    let mut peer = Peer::new(config, Arc::clone(&activity), Box::new(own_rng), now);
    let table = peer.poll_table().expect("a new peer publishes");
    (peer, Data::new(activity, table))
}

fn clock(side: Side, (set_at, set_to): (Duration, Duration), now: Duration) -> Now {
    Now { boot: boot(side, now), wall: WallTime::from_unix(set_to + (now - set_at)) }
}

/// The two machines were booted at different times.
fn boot(side: Side, now: Duration) -> BootTime {
    BootTime::from_nanos(1_000_000_000_000 * (side as u64 + 1)) + now
}
