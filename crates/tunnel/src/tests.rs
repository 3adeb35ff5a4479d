//! Tests of both directions, between two devices and two sockets, and of the memory that they allocate.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use allocation_counter::measure;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::mpsc;
use vpnd_crypto::{PresharedKey, SecretKey};
use vpnd_protocol::activity::Activity;
use vpnd_protocol::drop_reason::DropReason;
use vpnd_protocol::endpoint::Roam;
use vpnd_protocol::handshake::Identity;
use vpnd_protocol::peer::{Command, Config, Event, Load, Peer};
use vpnd_protocol::staging::STAGED_PACKETS;
use vpnd_protocol::table::{Arrival, Table};
use vpnd_protocol::terms::{Protocol, Terms};
use vpnd_tun::{Adopt, Mode, Options, Owner, VnetHeader};

use crate::clamp::Clamp;
use crate::clock;
use crate::counters::Counters;
use crate::filter::Filter;
use crate::inbound::{Inbound, Queues};
use crate::namespace::ip;
use crate::outbound::Outbound;
use crate::pacing::Pacing;
use crate::shared::{Shared, Signal};
use crate::udp::tests::{bound, in_namespace};
use crate::udp::{Egress, Listen, Socket};
use crate::urgent::Urgent;
use crate::view::{Policy, Published};
use crate::watch::Watch;

pub(crate) const MTU: u16 = 1420;

#[test]
fn a_packet_crosses_without_a_single_allocation() {
    in_namespace(|| {
        for queues in [1, 2] {
            let (near, far) = ends(queues);
            let mut lines = lines(&near);
            let mut inbound = inbound(&far);
            // The first batches may still allocate memory: one-time allocations of the kernel and the runtime.
            let packet = read_packet(1400);
            cross(&mut lines, &mut inbound, &packet, 10);
            let allocated = measure(|| cross(&mut lines, &mut inbound, &packet, 200));
            assert_eq!(allocated.count_total, 0, "allocations for 200 batches of 40 packets");
            let packets = 210 * 40 * u64::from(queues);
            let crossed = far.activity.traffic().packets_received;
            assert_eq!(crossed, packets, "drops: {:?}", dropped(&far));
            let sent = near.activity.traffic().packets_sent;
            assert_eq!(sent, packets, "drops: {:?}", dropped(&near));
        }
    });
}

#[test]
fn several_lines_stage_as_much_as_one_and_each_sends_its_own() {
    in_namespace(|| {
        for queues in [1, 2, 4] {
            let (near, far) = ends(queues);
            let table = Arc::clone(&near.view.load().table);
            near.view.set_table(&Arc::new(keyless()));
            let (mut lines, packet) = (lines(&near), read_packet(400));
            lines.iter_mut().for_each(|line| send(line, &packet, 200));
            assert!(near.activity.want_handshake.is_raised());
            let lost = near.counters.dropped(DropReason::StagingDropped);
            assert_eq!(lost, 200 * u64::from(queues) - STAGED_PACKETS as u64);
            near.view.set_table(&table);
            lines.iter_mut().for_each(|line| line.poll(0).map(drop).unwrap());
            let mut inbound = inbound(&far);
            receive(&mut inbound);
            assert_eq!(far.activity.traffic().packets_received, STAGED_PACKETS as u64);
        }
    });
}

#[test]
fn what_was_staged_leaves_without_an_allocation() {
    in_namespace(|| {
        let (near, far) = ends(1);
        let (table, keyless) = (Arc::clone(&near.view.load().table), Arc::new(keyless()));
        let (mut line, mut inbound) = (lines(&near).remove(0), inbound(&far));
        // In the first round the staging queue grows, and other code makes its one-time allocations.
        for round in 1..=2 {
            near.view.set_table(&keyless);
            send(&mut line, &read_packet(400), 100);
            near.view.set_table(&table);
            let allocated = measure(|| line.poll(0).map(drop).unwrap()).count_total;
            assert!(allocated == 0 || round == 1, "{allocated} allocations for 100 packets");
            receive(&mut inbound);
            assert_eq!(far.activity.traffic().packets_received, round * 100);
        }
    });
}

/// Two ends with a session; the first end has this many queues.
pub(crate) fn ends(queues: u16) -> (Arc<Shared>, Arc<Shared>) {
    let (sender, receiver) = (socket(), socket());
    let (from, to) = (at(&sender), at(&receiver));
    let [send_table, open_table] = tables(from, to);
    (shared(queues, sender, send_table), shared(1, receiver, open_table))
}

pub(crate) fn lines(shared: &Arc<Shared>) -> Vec<Outbound> {
    (0..shared.device.queues.len()).map(|line| Outbound::new(Arc::clone(shared), line)).collect()
}

pub(crate) fn inbound(shared: &Arc<Shared>) -> Inbound {
    let ((handshakes, _), (frames, _)) = (mpsc::channel(1), mpsc::channel(1));
    let watch = Arc::new(Watch::new(Arc::clone(shared)).unwrap());
    Inbound::new(Arc::clone(shared), watch, Queues { handshakes, frames })
}

fn cross(lines: &mut [Outbound], inbound: &mut Inbound, packet: &[u8], batches: usize) {
    for _ in 0..batches {
        for line in &mut *lines {
            send(line, packet, 40);
        }
        receive(inbound);
    }
}

/// Sends a packet `times` times.
pub(crate) fn send(line: &mut Outbound, packet: &[u8], times: usize) {
    for _ in 0..times {
        line.split_packet(packet).unwrap();
    }
    line.flush().unwrap();
}

/// Delivers all datagrams that have arrived.
pub(crate) fn receive(inbound: &mut Inbound) {
    while let Ok(count) = inbound.intake.receive() {
        inbound.deliver(count).unwrap();
    }
}

fn dropped(shared: &Shared) -> Vec<(DropReason, u64)> {
    shared.counters.iter().filter(|(_, count)| *count > 0).collect()
}

fn socket() -> Socket {
    bound(Listen::Port(0), Egress::default()).unwrap()
}

fn at(socket: &Socket) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], socket.local_port()))
}

fn shared(queues: u16, socket: Socket, table: Table) -> Arc<Shared> {
    let (adopt, owner) = (Adopt::Never, Owner::default());
    let options = Options { name: None, mode: Mode::Tun, offload: true, queues, adopt, owner };
    let device = vpnd_tun::open(&options).unwrap();
    ip(&format!("link set {} up", device.name));
    Arc::new(Shared {
        pacing: Pacing::new(device.queues.len()),
        device,
        urgent: Urgent::default(),
        socket,
        view: Published::new(table, policy(MTU, "192.0.2.0/24")),
        activity: Arc::new(Activity::default()),
        counters: Counters::default(),
        tap: Default::default(),
        refused_sources: Default::default(),
        marks_everything: AtomicBool::new(false),
        mode: Mode::Tun,
        control: Signal::new().unwrap(),
        refused: Default::default(),
    })
}

/// A policy that allows the sources in one network, for a device with this MTU.
pub(crate) fn policy(mtu: u16, allowed: &str) -> Policy {
    let filter = Filter::new(&[allowed.parse().unwrap()]);
    Policy::new(Mode::Tun, mtu, filter).with_clamp(Some(Clamp::Mtu))
}

fn keyless() -> Table {
    Table {
        send: None,
        path: None,
        open: Default::default(),
        mac1: Default::default(),
        awaiting_cookie: [None; 2],
        roam: Roam::Any,
        left: None,
        holds: false,
        stop: false,
    }
}

/// The read of a device for a complete UDP packet of `len` bytes.
pub(crate) fn read_packet(len: u16) -> Vec<u8> {
    let mut packet = vec![0; usize::from(len)];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    (packet[8], packet[9]) = (64, 17);
    packet[12..20].copy_from_slice(&[192, 0, 2, 1, 192, 0, 2, 2]);
    [&VnetHeader::PLAIN.encode()[..], &packet].concat()
}

/// The tables of two peers after a handshake: the first seals, the second opens.
pub(crate) fn tables(a_at: SocketAddr, b_at: SocketAddr) -> [Table; 2] {
    let (a_key, b_key) = (SecretKey::from_bytes([1; 32]), SecretKey::from_bytes([2; 32]));
    let (a_public, b_public) = (a_key.public(), b_key.public());
    let mut a = peer(a_key, b_public, 1);
    let mut b = peer(b_key, a_public, 2);
    a.handle_endpoints(clock::now(), vec![b_at]);
    while let Some(event) = a.poll_event() {
        if let Event::Command(Command::KeepFloor(stamp)) = event {
            a.floor_kept(clock::now(), stamp);
        }
    }
    hand_over(&mut a, &mut b, a_at);
    hand_over(&mut b, &mut a, b_at);
    [a.table(), b.table()]
}

fn hand_over(from: &mut Peer, to: &mut Peer, at: SocketAddr) {
    let mut datagram = Vec::new();
    from.poll_transmit(&mut datagram).expect("a handshake message");
    let arrival = Arrival { from: at, local: None };
    let admitted = to.table().admit(arrival, &datagram).expect("made for it");
    to.handle_handshake(clock::now(), Load::Normal, &admitted).expect("the handshake goes on");
}

fn peer(secret: SecretKey, remote: vpnd_crypto::PublicKey, seed: u64) -> Peer {
    let terms = Terms::new(Protocol::WireGuard, &PresharedKey::default());
    let config = Config::new(vec![Identity::new(secret)], vec![remote], vec![terms], MTU);
    let config = Config { max_datagram: 1500, ..config };
    let rng = Box::new(StdRng::seed_from_u64(seed));
    Peer::new(config, Arc::new(Activity::default()), rng, clock::now())
}
