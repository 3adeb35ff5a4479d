//! A network that does its worst for minutes, ends that die, sleep, move and lose their clocks,
//! and somebody who replays and forges. When it stops, packets must flow both ways within 30 s.

use std::env;
use std::net::{IpAddr, SocketAddr};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use vpnd_crypto::aead::Algorithm;
use vpnd_protocol::drop_reason::DropReason;
use vpnd_protocol::peer::Load;
use vpnd_protocol::profile::{Kem, Mode, Profile};
use vpnd_protocol::terms::Protocol;

use crate::end::{Disk, END_OF_TIME, EPOCH, Floor, Options, Side};
use crate::network::{Datagram, Kind, Weather};
use crate::world::{World, millis, seconds};

const SEEDS: u64 = 200;
const SEEDS_LONG: u64 = 10_000;
/// How soon both ends must hear each other again.
const RECONNECTED_WITHIN: Duration = seconds(30);
/// How long they are then watched.
const CALM: Duration = seconds(60);

#[test]
fn every_end_survives_every_network() {
    println!("{}", Report::of(each_seed(SEEDS, SEEDS_LONG, survive)));
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok()?.parse().ok()
}

/// Whether the full counts are asked for.
pub(crate) fn is_long() -> bool {
    env::var("VPND_TESTS").is_ok_and(|tests| tests == "long")
}

/// Does this for each of `few` seeds, or of `many` in the long tests, or for the one that is to be replayed.
///
/// # Panics
/// If it panics for one of them; those are printed.
pub(crate) fn each_seed<T: Send>(few: u64, many: u64, survive: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let default = || if is_long() { many } else { few };
    let seeds = match number("VPND_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("VPND_SEEDS").unwrap_or_else(default),
    };
    let outcomes = survive_all(seeds.clone(), survive);
    let survived = outcomes.len() as u64;
    assert_eq!(survived, seeds.end - seeds.start, "see above for the seeds that failed");
    outcomes
}

fn survive_all<T: Send>(seeds: std::ops::Range<u64>, survive: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let next = AtomicU64::new(seeds.start);
    let outcomes = Mutex::new(Vec::new());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            match panic::catch_unwind(AssertUnwindSafe(|| survive(seed))) {
                Ok(outcome) => outcomes.lock().expect("no panic inside").push(outcome),
                Err(_) => println!("FAILED: replay with VPND_SEED={seed}"),
            }
        }
    };
    thread::scope(|scope| {
        (0..thread::available_parallelism().map_or(1, usize::from)).for_each(|_| {
            scope.spawn(work);
        });
    });
    outcomes.into_inner().expect("no panic inside")
}

/// What one seed came to.
struct Outcome {
    reconnected: Duration,
    offered: usize,
    delivered: usize,
    sealed: usize,
    initiations: usize,
    replays_refused: usize,
}

fn survive(seed: u64) -> Outcome {
    let mut hostility = Hostility::new(seed);
    let mut world = hostility.world();
    for side in Side::BOTH {
        world.resolve(side);
        world.offer_every(side, seconds(1));
    }
    world.run_for(seconds(1));
    let stop = hostility.rng.random_range(seconds(60)..seconds(400));
    while world.now < stop {
        hostility.strike(&mut world);
        let pause = hostility.rng.random_range(millis(10)..seconds(20));
        world.run_until(stop.min(world.now + pause));
    }
    let stop = world.now;
    hostility.relent(&mut world);
    world.run_for(RECONNECTED_WITHIN + CALM);
    if number("VPND_SEED").is_some() {
        world.narrate();
    }
    judge(&world, stop)
}

fn judge(world: &World, stop: Duration) -> Outcome {
    let heard = |side| world.oracle.first_delivery(side, stop).map(|at| at - stop);
    let reconnected = Side::BOTH.map(heard).into_iter().max().flatten();
    let both = Side::BOTH.map(heard).iter().all(Option::is_some);
    let reconnected = reconnected.filter(|_| both).expect("never reconnected");
    assert!(reconnected <= RECONNECTED_WITHIN, "reconnected only after {reconnected:?}");
    for side in Side::BOTH {
        assert!(world[side].alive, "{side:?} takes the peer for dead, whom it hears");
    }
    if world[Side::A].options.protocol != Protocol::WireGuard {
        world.oracle.spares(is_stranger);
    }
    let all = |side| world.oracle.tally(side, Duration::ZERO, Duration::MAX);
    let calm = stop + RECONNECTED_WITHIN;
    for side in Side::BOTH {
        let (offered, arrived) = world.oracle.tally(side, calm, calm + CALM - seconds(1));
        assert_eq!(offered, arrived, "{side:?} lost packets in the calm");
    }
    let sum = |of: &dyn Fn(Side) -> usize| Side::BOTH.map(of).iter().sum();
    Outcome {
        reconnected,
        offered: sum(&|side| all(side).0),
        delivered: sum(&|side| all(side).1),
        sealed: sum(&|side| world.sent(side, Kind::Data).len()),
        initiations: sum(&|side| world.sent(side, Kind::Initiation).len()),
        replays_refused: sum(&|side| world[side].drops(DropReason::Replayed)),
    }
}

/// Whoever is against us, and what the dice gave them.
struct Hostility {
    seed: u64,
    rng: StdRng,
    /// Clocks go wrong in this one; if not, disks do.
    clocks: bool,
    /// B knows no endpoint: it waits for A.
    one_sided: bool,
}

impl Hostility {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let (clocks, one_sided) = (rng.random_bool(0.6), rng.random_bool(0.4));
        Self { seed, rng, clocks, one_sided }
    }

    fn world(&mut self) -> World {
        let (one_sided, disk) = (self.one_sided, self.disk());
        let keepalive = self.rng.random_bool(0.3).then_some(seconds(25));
        let watches = [self.rng.random(), self.rng.random()];
        let psks = [1, 2].map(|psk| [psk; 32]);
        let rolling_over = self.rng.random_bool(0.3);
        let protocol = self.protocol();
        let mut world = World::with(self.seed, |side, options| {
            let watch = watches[side as usize];
            *options = Options { disk, keepalive, watch, protocol, ..Options::of(side) };
            options.endpoint = options.endpoint.filter(|_| side == Side::A || !one_sided);
            if rolling_over {
                options.preshared = psks.to_vec();
                options.preshared.rotate_left(side as usize);
            }
        });
        world.drowsiness = self.rng.random_range(millis(0)..millis(50));
        world
    }

    fn protocol(&mut self) -> Protocol {
        let profile = |kem| Profile { mode: Mode::Tun, cipher: Algorithm::Aes256Gcm, kem };
        match self.rng.random_range(0..3) {
            0 => Protocol::WireGuard,
            1 => Protocol::Vpnd(profile(Kem::None)),
            _ => Protocol::Vpnd(profile(Kem::MlKem768)),
        }
    }

    /// A stamp that is sent before it is written is lost in a crash; that is only harmless
    /// where the clock is right.
    fn disk(&mut self) -> Disk {
        if self.clocks {
            Disk::Writes(self.rng.random_range(millis(0)..millis(450)))
        } else if self.rng.random_bool(0.3) {
            Disk::Broken
        } else {
            Disk::Writes(self.rng.random_range(millis(0)..millis(3000)))
        }
    }

    fn side(&mut self) -> Side {
        if self.rng.random() { Side::A } else { Side::B }
    }

    fn strike(&mut self, world: &mut World) {
        match self.rng.random_range(0..13) {
            0..4 => self.change_weather(world),
            4 => self.restart(world),
            5 if self.clocks => self.turn_clock(world),
            5 | 6 => self.roam(world),
            7 => self.suspend(world),
            8 => self.load(world),
            9 => self.forge(world),
            10 => self.spoof(world),
            _ => self.replay(world),
        }
    }

    fn change_weather(&mut self, world: &mut World) {
        let worst = [millis(5), millis(50), millis(500), seconds(5)];
        let worst = worst[self.rng.random_range(0..worst.len())];
        let blackout = self.rng.random_bool(0.05);
        world.network.weather = Weather {
            loss: if blackout { 1.0 } else { self.rng.random_range(0.0..=0.5) },
            duplication: self.rng.random_range(0.0..=0.5),
            delay: Duration::ZERO..=self.rng.random_range(millis(0)..=worst),
        };
    }

    fn restart(&mut self, world: &mut World) {
        let side = self.side();
        world.restart(side, Floor::Kept);
    }

    fn turn_clock(&mut self, world: &mut World) {
        let (side, now) = (self.side(), world.now);
        let year = seconds(365 * 86_400);
        let to = match self.rng.random_range(0..5) {
            0 => Duration::ZERO,
            1 => EPOCH + 30 * year,
            2 => EPOCH + now,
            3 => END_OF_TIME,
            _ => EPOCH - year + self.rng.random_range(Duration::ZERO..2 * year),
        };
        world[side].set_wall(now, to);
        if self.rng.random() {
            world.restart(side, Floor::Kept);
        }
    }

    /// Its name follows, where it has one.
    fn roam(&mut self, world: &mut World) {
        let side = self.side();
        let (host, port) = (side as u8 * 100 + self.rng.random_range(1..100), self.rng.random());
        world[side].roam(host, port);
        let address = world[side].address;
        let other = side.other();
        if world[other].options.endpoint.replace(address).is_some() {
            world.resolve(other);
        } else {
            world[other].options.endpoint = None;
        }
    }

    fn suspend(&mut self, world: &mut World) {
        let side = self.side();
        world.suspend(side);
        world.run_for(self.rng.random_range(seconds(1)..seconds(240)));
        world.resume(side);
    }

    fn load(&mut self, world: &mut World) {
        let side = self.side();
        world[side].load = if self.rng.random() { Load::Under } else { Load::Normal };
    }

    /// From where it came from once, or from somewhere else.
    fn replay(&mut self, world: &mut World) {
        for _ in 0..self.rng.random_range(1..30) {
            let datagram = self.pick(world);
            world.inject(datagram);
        }
    }

    fn forge(&mut self, world: &mut World) {
        for _ in 0..self.rng.random_range(1..30) {
            let mut datagram = self.pick(world);
            let at = self.rng.random_range(0..datagram.bytes.len());
            datagram.bytes[at] ^= 1 << self.rng.random_range(0..8);
            if self.rng.random_bool(0.2) {
                datagram.bytes.truncate(at);
            }
            world.inject(datagram);
        }
    }

    /// A share of what is sent overtakes itself, from where nobody of ours is.
    fn spoof(&mut self, world: &mut World) {
        let (share, seed) = (self.rng.random_range(0.0..0.5), self.rng.random());
        let mut rng = StdRng::seed_from_u64(seed);
        world.network.spoofs =
            Some(Box::new(move |_| rng.random_bool(share).then(|| stranger(&mut rng))));
    }

    fn pick(&mut self, world: &World) -> Datagram {
        let at = self.rng.random_range(0..world.network.wire.len());
        let sent = &world.network.wire[at];
        let mut datagram = sent.datagram.clone();
        datagram.to = world[sent.by.other()].address;
        if self.rng.random() {
            datagram.from = stranger(&mut self.rng);
        }
        datagram
    }

    /// All of it stops. What is on its way still arrives.
    fn relent(&mut self, world: &mut World) {
        world.network.weather = Weather::fair(millis(self.rng.random_range(1..100)));
        world.network.spoofs = None;
        for side in Side::BOTH {
            world[side].load = Load::Normal;
        }
    }
}

fn stranger(rng: &mut StdRng) -> SocketAddr {
    ([198, 18, 0, rng.random()], rng.random()).into()
}

fn is_stranger(at: SocketAddr) -> bool {
    matches!(at.ip(), IpAddr::V4(ip) if ip.octets()[..2] == [198, 18])
}

/// All outcomes together.
struct Report(Vec<Outcome>);

impl Report {
    fn of(mut outcomes: Vec<Outcome>) -> Self {
        outcomes.sort_by_key(|outcome| outcome.reconnected);
        Self(outcomes)
    }

    fn sum(&self, of: impl Fn(&Outcome) -> usize) -> usize {
        self.0.iter().map(of).sum()
    }

    fn quantile(&self, percent: usize) -> Duration {
        let at = (self.0.len() * percent / 100).min(self.0.len().saturating_sub(1));
        self.0.get(at).map_or(Duration::ZERO, |outcome| outcome.reconnected)
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} seeds survived; reconnected after {:?} (median), {:?} (99 %), {:?} (worst); \
             {} packets offered, {} delivered, {} sealed, {} initiations, {} replays refused",
            self.0.len(),
            self.quantile(50),
            self.quantile(99),
            self.quantile(100),
            self.sum(|outcome| outcome.offered),
            self.sum(|outcome| outcome.delivered),
            self.sum(|outcome| outcome.sealed),
            self.sum(|outcome| outcome.initiations),
            self.sum(|outcome| outcome.replays_refused),
        )
    }
}
