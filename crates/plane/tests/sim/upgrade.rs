//! The post-quantum upgrade, each of its messages in turn lost, doubled, late, or met by a peer that
//! has just started anew. Data must flow both ways soon after, and never before the upgrade: the
//! oracle watches that, and every nonce.

use std::env;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use vpnd_crypto::aead::Algorithm;
use vpnd_protocol::drop_reason::DropReason;
use vpnd_protocol::endpoint::Roam;
use vpnd_protocol::frame::ControlFrame;
use vpnd_protocol::peer::{Change, Diagnosis};
use vpnd_protocol::profile::{Kem, Mode, Profile};
use vpnd_protocol::session::OVERHEAD;
use vpnd_protocol::terms::Protocol;

use crate::end::{Floor, Side};
use crate::network::{Captured, Kind};
use crate::world::{World, millis, seconds};

const SEEDS: u64 = 300;
const SEEDS_LONG: u64 = 10_000;
/// How soon both ends must hear each other after whatever befell the message.
const CONVERGED_WITHIN: Duration = seconds(20);

const POST_QUANTUM: Protocol = Protocol::Vpnd(Profile {
    mode: Mode::Tun,
    cipher: Algorithm::ChaCha20Poly1305,
    kem: Kem::MlKem768,
});

/// The messages of a session's beginning, each known by its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Initiation,
    Response,
    FirstChunk,
    SecondChunk,
    Answer,
    /// The first on the upgraded session.
    Greeting,
}

impl Which {
    const ALL: [Self; 6] = [
        Self::Initiation,
        Self::Response,
        Self::FirstChunk,
        Self::SecondChunk,
        Self::Answer,
        Self::Greeting,
    ];

    fn of(sent: &Captured) -> Option<Self> {
        match (sent.datagram.kind(), sent.datagram.bytes.len()) {
            (Kind::Initiation, _) => Some(Self::Initiation),
            (Kind::Response, _) => Some(Self::Response),
            (_, 688) => Some(Self::FirstChunk),
            (_, 592) => Some(Self::SecondChunk),
            (_, 1152) => Some(Self::Answer),
            (Kind::Data, len) if len == greeting_len() => Some(Self::Greeting),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Fate {
    Lost,
    Doubled,
    Late(Duration),
    /// Whoever was to receive it starts anew.
    Restart,
}

#[test]
fn whatever_befalls_a_message_of_the_upgrade_data_soon_flows_and_never_before_it() {
    let long = env::var("VPND_TESTS").is_ok_and(|tests| tests == "long");
    let seeds: Range<u64> = match env::var("VPND_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..if long { SEEDS_LONG } else { SEEDS },
    };
    let mut worst = Duration::ZERO;
    for seed in seeds.clone() {
        worst = worst.max(befall(seed));
    }
    println!("{} seeds converged, the slowest in {worst:?}", seeds.end);
}

/// One message of one kind meets its fate, perhaps more than once; says how long both ends took to
/// hear each other again.
fn befall(seed: u64) -> Duration {
    let mut rng = StdRng::seed_from_u64(seed);
    let which = Which::ALL[usize::try_from(seed).unwrap_or(0) % Which::ALL.len()];
    let fate = match rng.random_range(0..4) {
        0 => Fate::Lost,
        1 => Fate::Doubled,
        2 => Fate::Late(rng.random_range(millis(1)..seconds(6))),
        _ => Fate::Restart,
    };
    let rekey = rng.random_bool(0.3);
    let crossed = rng.random_bool(0.3);
    let mut world = World::with(seed, |side, options| {
        options.protocol = POST_QUANTUM;
        options.endpoint = options.endpoint.filter(|_| side == Side::A || crossed);
    });
    world.drowsiness = rng.random_range(millis(0)..millis(50));
    if !rekey {
        meddle(&mut world, which, fate);
    }
    for side in Side::BOTH {
        world.resolve(side);
        world.offer_every(side, millis(100));
    }
    if rekey {
        // The upgrade that replaces a session is the one that is hit.
        world.run_for(seconds(110));
        meddle(&mut world, which, fate);
        world.run_for(seconds(9));
    }
    let hit = wait_for(&mut world, which);
    if let Fate::Restart = fate {
        let receiver = world.network.wire.last().map_or(Side::B, |sent| sent.by.other());
        world.restart(receiver, Floor::Kept);
    }
    world.run_for(CONVERGED_WITHIN + seconds(5));
    let heard = |side| world.oracle.first_delivery(side, hit).map(|at| at - hit);
    let converged = Side::BOTH.map(heard).into_iter().map(|at| at.unwrap_or(Duration::MAX)).max();
    let converged = converged.unwrap_or(Duration::MAX);
    assert!(converged <= CONVERGED_WITHIN, "seed {seed}: {which:?} {fate:?}: {converged:?}");
    if rekey && !matches!(fate, Fate::Restart) {
        if env::var("VPND_SEED").is_ok() {
            world.narrate();
            for packet in world.oracle.packets.iter().filter(|p| p.delivered.is_none()) {
                println!("lost: {:?} offered at {:?}", packet.from, packet.offered);
            }
        }
        let losses = Side::BOTH.map(|side| world.oracle.tally(side, seconds(5), hit + seconds(20)));
        let whole = losses.iter().all(|(offered, arrived)| offered == arrived);
        assert!(whole, "seed {seed}: {which:?} {fate:?}: a rekey lost packets: {losses:?}");
    }
    converged
}

/// The first message of this kind from now on meets this fate.
fn meddle(world: &mut World, which: Which, fate: Fate) {
    let mut done = false;
    world.network.fate = Some(Box::new(move |sent| {
        if done || Which::of(sent) != Some(which) {
            return None;
        }
        done = true;
        match fate {
            Fate::Lost => Some(vec![]),
            Fate::Doubled => Some(vec![millis(10), millis(35)]),
            Fate::Late(by) => Some(vec![by]),
            Fate::Restart => None,
        }
    }));
}

/// Runs until such a message has been sent, and says when that was.
fn wait_for(world: &mut World, which: Which) -> Duration {
    let sent =
        |world: &World| world.network.wire.iter().filter(|s| Which::of(s) == Some(which)).count();
    let before = sent(world);
    let deadline = world.now + seconds(20);
    while sent(world) == before && world.now < deadline {
        world.run_for(millis(5));
    }
    world.now
}

fn greeting_len() -> usize {
    // HELLO of this release: see `peer/frames.rs`.
    let release = concat!("vpnd ", env!("CARGO_PKG_VERSION")).len();
    let body = 3 + 7 + release;
    vpnd_protocol::frame::plaintext_len(body) + OVERHEAD
}

#[test]
fn a_quiet_network_upgrades_in_two_round_trips_and_asks_once() {
    let mut world = World::with(1, |side, options| {
        options.protocol = POST_QUANTUM;
        options.endpoint = options.endpoint.filter(|_| side == Side::A);
    });
    world.resolve(Side::A);
    world.offer(Side::A);
    world.run_for(seconds(3));
    let of = |side, which| {
        let all = world.network.wire.iter().filter(move |sent| sent.by == side);
        all.filter(|sent| Which::of(sent) == Some(which)).count()
    };
    assert_eq!([of(Side::A, Which::FirstChunk), of(Side::A, Which::SecondChunk)], [1, 1]);
    assert_eq!(of(Side::B, Which::Answer), 1);
    assert_eq!(world.lost(Side::A), 0);
    for side in Side::BOTH {
        let stands = world.changed(side, |one| matches!(one, Change::Established(_)));
        assert!(stands.iter().all(|at| *at <= millis(60)), "{side:?}: {stands:?}");
        assert_eq!(stands.len(), 1);
    }
}

fn attacker() -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 66], 666))
}

/// An attacker on the path sends each chunk of the key ahead of the initiator, from another address.
#[test]
fn an_upgrade_whose_key_is_raced_from_elsewhere_is_answered_where_message_2_went() {
    for roam in [Roam::Any, Roam::SameIp, Roam::Off] {
        for raced in [&[Which::FirstChunk, Which::SecondChunk][..], &[Which::SecondChunk]] {
            let mut world = World::with(1, |_, options| {
                (options.protocol, options.roam) = (POST_QUANTUM, roam);
            });
            world.network.spoofs = Some(Box::new(move |sent| {
                Which::of(sent).is_some_and(|which| raced.contains(&which)).then(attacker)
            }));
            Side::BOTH.into_iter().for_each(|side| world.resolve(side));
            Side::BOTH.into_iter().for_each(|side| world.offer_every(side, millis(100)));
            world.run_until(seconds(400));
            for side in Side::BOTH {
                // The sessions of the start and of three rekeys.
                let stood = world.changed(side, |e| matches!(e, Change::Established(_)));
                assert!(stood.len() >= 4, "{roam:?} {raced:?}: {side:?} {stood:?}");
                let (offered, arrived) = world.oracle.tally(side, seconds(1), seconds(399));
                assert_eq!(offered, arrived, "{roam:?} {raced:?}: {side:?}");
            }
            let to_attacker = |sent: &&Captured| sent.datagram.to == attacker();
            let sent: usize = world.network.wire.iter().filter(to_attacker).map(bytes).sum();
            let raced = world
                .network
                .wire
                .iter()
                .filter(|s| Which::of(s).is_some_and(|which| raced.contains(&which)));
            assert!(sent <= 3 * raced.map(bytes).sum::<usize>(), "{sent} bytes to a forged source");
            assert!(sent == 0 || roam == Roam::Any, "only where the peer may be");
        }
    }
}

fn bytes(sent: &Captured) -> usize {
    sent.datagram.bytes.len()
}

/// An initiator that has moved since message 2 gets its answer where it is.
#[test]
fn an_initiator_that_moves_before_it_repeats_its_key_is_upgraded() {
    let mut world = World::with(1, |side, options| {
        options.protocol = POST_QUANTUM;
        options.endpoint = options.endpoint.filter(|_| side == Side::A);
    });
    world.network.loses =
        Some(Box::new(|sent| sent.at < millis(500) && Which::of(sent) == Some(Which::Answer)));
    world.resolve(Side::A);
    world.run_until(millis(500));
    world[Side::A].roam(7, 7);
    world.run_until(seconds(2));
    assert_eq!(world.changed(Side::A, |e| matches!(e, Change::Established(_))).len(), 1);
    let answers = world.network.wire.iter().filter(|s| Which::of(s) == Some(Which::Answer));
    let to: Vec<_> = answers.map(|sent| sent.datagram.to).collect();
    let home = Side::A.home();
    assert_eq!(to, [home, home, world[Side::A].address]);
}

/// The key is sent once more, not as often as it would have been.
#[test]
fn what_a_suspend_sleeps_through_is_not_made_up_for() {
    let mut world = World::with(1, |side, options| {
        options.protocol = POST_QUANTUM;
        options.endpoint = options.endpoint.filter(|_| side == Side::A);
    });
    world.network.loses = Some(Box::new(|sent| Which::of(sent) == Some(Which::Answer)));
    world.resolve(Side::A);
    world.run_for(millis(100));
    world.suspend(Side::A);
    world.run_for(seconds(5));
    world.resume(Side::A);
    world.run_for(seconds(1));
    let keys = |sent: &&Captured| Which::of(sent) == Some(Which::FirstChunk);
    assert_eq!(world.network.wire.iter().filter(keys).count(), 2);
}

#[test]
fn one_end_without_it_never_connects() {
    let plain = Protocol::Vpnd(Profile {
        mode: Mode::Tun,
        cipher: Algorithm::ChaCha20Poly1305,
        kem: Kem::None,
    });
    let mut world = World::with(1, |side, options| {
        options.protocol = if side == Side::A { POST_QUANTUM } else { plain };
    });
    for side in Side::BOTH {
        world.resolve(side);
        world.offer_every(side, seconds(1));
    }
    world.run_for(seconds(30));
    for side in Side::BOTH {
        assert_eq!(world.changed(side, |e| matches!(e, Change::Established(_))), []);
        assert!(!world.diagnosed(side, |e| *e == Diagnosis::AnswerDoesNotOpen).is_empty());
        assert!(world[side].drops(DropReason::ResponseDoesNotOpen) > 0);
    }
}

/// What is sealed on a bootstrap session and is not the upgrade goes nowhere.
#[test]
fn a_bootstrap_session_carries_nothing_else() {
    use vpnd_protocol::inner::Inner;
    use vpnd_protocol::session::Contents;
    let read = |plaintext: &[u8]| Inner::read(Contents::Bootstrap, plaintext);
    let mut packet = vec![0; 32];
    (packet[0], packet[3]) = (0x45, 32);
    assert_eq!(read(&packet), Err(DropReason::NotUpgraded));
    assert_eq!(read(&[3, 0, 0, 2, 1]), Err(DropReason::NotUpgraded));
    assert_eq!(read(&[]), Ok(Inner::Keepalive));
    let close = ControlFrame::begin().close().end();
    // A control frame goes to the control plane, which takes nothing but the upgrade's records.
    assert_eq!(read(&close), Ok(Inner::Control { len: close.len(), closes: true, aside: false }));
}
