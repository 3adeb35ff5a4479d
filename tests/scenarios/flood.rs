//! Malformed datagrams at a live daemon, in equal parts of every kind we could think of.

use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use vpnd_crypto::{PublicKey, hash, mac};
use vpnd_tests::relay::{Direction, Relay};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_A4, INNER_B4, PORT};
use vpnd_tests::traffic::stream::{Pace, Stream};
use vpnd_tests::traffic::{ping, tcp};
use vpnd_tests::{Key, Lab, Routed, Vpnd, Wire, long, within};

use crate::tunnel::{SOON, Tunnel};

/// The largest payload of a datagram.
const LARGEST: usize = 65_507;
/// Of the messages 1 to 4.
const LENGTHS: [usize; 4] = [148, 92, 64, 96];
/// Lasting growth that is allowed.
const GROWTH: u64 = 1 << 20;

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("flood::malformed datagrams", Cost::Alone, malformed),
        Scenario::new("flood::a socket that is always full", Cost::Works, full_socket),
    ]
}

/// Data keeps a slow uplink's socket full. Handshakes leave all the same.
fn full_socket(lab: &Lab) -> Result<String> {
    let (mut site, b) = site::pair()?;
    // A run of segments that the queue takes apart is no longer accounted to the socket, which is then never full.
    site.tables.push("[socket]\nsndbuf = \"64KiB\"\n[path]\ngso = false".to_owned());
    let site = site.towards(Wire::B4);
    let tunnel = Tunnel::with(lab, |_, _| (site.clone(), b))?;
    let (host, a) = (&tunnel.wire.a, &tunnel.a);
    // The queue is longer than the socket's buffer: it pushes back and never drops.
    host.run("tc qdisc add dev eth0 root tbf rate 5mbit burst 16kb limit 4mb")?;
    let pace = Pace { per_second: 10_000, payload: 1000 };
    let stream = Stream::start(host, &tunnel.wire.b, INNER_B4, pace)?;
    thread::sleep(Duration::from_secs(1));
    let mut took = Vec::new();
    for _ in 0..3 {
        let before = a.status()?.handshakes();
        let begun = Instant::now();
        a.reload(&site)?;
        let done = || a.status().ok().filter(|status| status.handshakes() > before);
        within(SOON, done).context("no handshake while data keeps the socket full")?;
        took.push(begun.elapsed());
    }
    let tally = stream.stop()?;
    ensure!(tally.overflowed > 1000, "the uplink was not full: {tally:?}");
    Ok(format!("three handshakes in {took:.1?} while {} packets found no room", tally.overflowed))
}

fn malformed(lab: &Lab) -> Result<String> {
    let count = if long() { 1_000_000 } else { 64_000 };
    let net = Routed::new(lab)?;
    let front = format!("{}:{PORT}", Routed::ROUTER_A4);
    let relay = Relay::start(&net.router, &front, Routed::B4, 1)?;
    relay.record();
    let (a, b) = site::pair()?;
    let target = b.keys.public.clone();
    let b = Vpnd::start(&net.b, &b)?;
    let _a = Vpnd::start(&net.a, &a.towards(&front))?;
    ping::until_answered(&net.a, INNER_B4, SOON)?;
    tcp::transfer(&net.a, &net.b, INNER_B4, 1 << 20)?;
    let mut garbage = Garbage::new(&relay, &target)?;
    let outbox = net.router.enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;

    let before = b.as_process().resident()?;
    let start = Instant::now();
    let stream = Stream::start(&net.a, &net.b, INNER_B4, Pace { per_second: 100, payload: 500 })?;
    garbage.send(&outbox, Routed::B4.parse()?, count)?;
    let took = start.elapsed();
    let tally = stream.stop()?;
    ping::until_answered(&net.b, INNER_A4, SOON)?;
    tcp::transfer(&net.a, &net.b, INNER_B4, 1 << 20)?;
    let after = b.as_process().resident()?;
    let status = b.status()?;
    ensure!(after.saturating_sub(before) <= GROWTH, "{before} bytes became {after}; {status}");
    let (drops, counted) = (status.drops(), status.dropped());
    Ok(format!(
        "{count} datagrams in {took:.1?}, {counted} counted as dropped; resident {} KiB before, \
         {} KiB after; a stream beside it lost {} of {}; {drops:?}",
        before / 1024,
        after / 1024,
        tally.lost(),
        tally.sent
    ))
}

/// Makes what no honest peer sends.
struct Garbage {
    rng: StdRng,
    genuine: Vec<Vec<u8>>,
    index: [u8; 4],
    mac1_key: [u8; 32],
}

impl Garbage {
    fn new(relay: &Relay, target: &Key) -> Result<Self> {
        let own = relay.recorded().into_iter().filter(|one| one.direction == Direction::ToTarget);
        let genuine: Vec<Vec<u8>> = own.map(|one| one.datagram).collect();
        let data = genuine.iter().rfind(|datagram| datagram[0] == 4).context("no data was sent")?;
        let index = *data[4..].first_chunk().context("no index")?;
        let public = PublicKey::from_base64(target.as_str()).context("no key")?;
        let mac1_key = hash(&[b"mac1----", public.as_bytes()]);
        Ok(Self { rng: StdRng::seed_from_u64(1), genuine, index, mac1_key })
    }

    /// In bursts that a receive buffer can hold, so that most of them are really read.
    fn send(&mut self, outbox: &UdpSocket, target: SocketAddr, count: usize) -> Result<()> {
        for number in 0..count {
            let datagram = self.make(number % 8);
            outbox.send_to(&datagram, target).context("cannot flood")?;
            if number % 64 == 63 {
                thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }

    fn make(&mut self, kind: usize) -> Vec<u8> {
        match kind {
            0 => self.random(),
            1 => self.right_length(),
            2 => self.truncated(),
            3 => self.flipped(),
            4 => self.right_mac1(),
            5 => self.right_index(),
            6 => Vec::new(),
            _ => vec![self.rng.random_range(0..6); LARGEST],
        }
    }

    fn random(&mut self) -> Vec<u8> {
        let len = self.rng.random_range(0..1500);
        self.bytes(len)
    }

    fn right_length(&mut self) -> Vec<u8> {
        let kind = self.rng.random_range(1..=4_u8);
        self.message(kind)
    }

    fn truncated(&mut self) -> Vec<u8> {
        let mut datagram = self.captured();
        datagram.truncate(self.rng.random_range(0..datagram.len()));
        datagram
    }

    fn flipped(&mut self) -> Vec<u8> {
        let mut datagram = self.captured();
        let bit = self.rng.random_range(0..datagram.len() * 8);
        datagram[bit / 8] ^= 1 << (bit % 8);
        datagram
    }

    fn right_mac1(&mut self) -> Vec<u8> {
        let kind = self.rng.random_range(1..=2_u8);
        let mut datagram = self.message(kind);
        let at = datagram.len() - 32;
        let tag = mac(&self.mac1_key, &[&datagram[..at]]);
        datagram[at..at + 16].copy_from_slice(&tag);
        datagram
    }

    fn right_index(&mut self) -> Vec<u8> {
        let mut datagram = self.message(4);
        datagram[4..8].copy_from_slice(&self.index);
        datagram
    }

    fn message(&mut self, kind: u8) -> Vec<u8> {
        let mut datagram = self.bytes(LENGTHS[usize::from(kind) - 1]);
        datagram[..4].copy_from_slice(&[kind, 0, 0, 0]);
        datagram
    }

    fn captured(&mut self) -> Vec<u8> {
        let which = self.rng.random_range(0..self.genuine.len());
        self.genuine[which].clone()
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.rng.fill_bytes(&mut bytes);
        bytes
    }
}
