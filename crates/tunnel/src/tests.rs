//! Both lines at work between two devices and two sockets, and what they cost in allocations.

use std::net::SocketAddr;
use std::sync::Arc;

use allocation_counter::measure;
use arc_swap::ArcSwap;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::mpsc;
use vpnd_crypto::{PresharedKey, SecretKey};
use vpnd_protocol::activity::Activity;
use vpnd_protocol::drop_reason::DropReason;
use vpnd_protocol::endpoint::{Roam, Sources};
use vpnd_protocol::handshake::Identity;
use vpnd_protocol::peer::{Config, Event, Load, Peer};
use vpnd_protocol::table::{Arrival, Table};
use vpnd_protocol::terms::{Protocol, Terms};
use vpnd_tun::{Mode, Options, VnetHeader};

use crate::clamp::Clamp;
use crate::clock;
use crate::counters::Counters;
use crate::filter::Filter;
use crate::inbound::{Inbound, Queues};
use crate::outbound::Outbound;
use crate::shared::{Shared, Signal};
use crate::udp::tests::{bound, in_namespace, ip};
use crate::udp::{Listen, Socket, Way};
use crate::watch::Watch;

const MTU: u16 = 1420;

#[test]
fn a_packet_crosses_without_a_single_allocation() {
    in_namespace(|| {
        let (sender, receiver) = (socket(), socket());
        let (from, to) = (at(&sender), at(&receiver));
        let [send_table, open_table] = tables(from, to);
        let near = shared("tun8", sender, send_table);
        let far = shared("tun9", receiver, open_table);
        let ((handshakes, _admitted), (frames, _framed)) = (mpsc::channel(1), mpsc::channel(1));
        let control = Queues { handshakes, frames };
        let mut outbound = Outbound::new(Arc::clone(&near));
        let mut inbound = Inbound::new(Arc::clone(&far), watch(&far), control);
        let packet = read_packet(1400);
        // The first batches may still allocate: the kernel's and the runtime's own first times.
        cross(&mut outbound, &mut inbound, &packet, 10);
        let allocated = measure(|| {
            cross(&mut outbound, &mut inbound, &packet, 200);
        });
        assert_eq!(allocated.count_total, 0, "allocations for 200 batches of 40 packets");
        let crossed = far.activity.traffic().packets_received;
        assert_eq!(crossed, 210 * 40, "drops: {:?}", dropped(&far));
        assert_eq!(near.activity.traffic().packets_sent, 210 * 40, "drops: {:?}", dropped(&near));
    });
}

fn cross(outbound: &mut Outbound, inbound: &mut Inbound, packet: &[u8], batches: usize) {
    for _ in 0..batches {
        for _ in 0..40 {
            outbound.split_packet(packet).unwrap();
        }
        outbound.flush().unwrap();
        while let Ok(count) = inbound.receive() {
            inbound.deliver(count).unwrap();
        }
    }
}

fn dropped(shared: &Shared) -> Vec<(DropReason, u64)> {
    shared.counters.iter().filter(|(_, count)| *count > 0).collect()
}

fn watch(shared: &Arc<Shared>) -> Arc<Watch> {
    Arc::new(Watch::new(Arc::clone(shared)).unwrap())
}

fn socket() -> Socket {
    bound(Listen::Port(0), Way::default()).unwrap()
}

fn at(socket: &Socket) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], socket.local_port()))
}

fn shared(device: &str, socket: Socket, table: Table) -> Arc<Shared> {
    let options =
        Options { name: Some(device.to_owned()), mode: Mode::Tun, offload: true, queues: 1 };
    let queue = vpnd_tun::open(&options).unwrap().queues.remove(0);
    ip(&format!("link set {device} up"));
    Arc::new(Shared {
        queue,
        socket,
        table: ArcSwap::from_pointee(table),
        activity: Arc::new(Activity::default()),
        counters: Counters::default(),
        filter: Filter::new(&["192.0.2.0/24".parse().unwrap()]),
        mode: Mode::Tun,
        mtu: MTU,
        clamp: Some(Clamp::Mtu(MTU)),
        control: Signal::new().unwrap(),
    })
}

/// What a device returns for a complete UDP packet of `len` bytes.
fn read_packet(len: u16) -> Vec<u8> {
    let mut packet = vec![0; usize::from(len)];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    (packet[8], packet[9]) = (64, 17);
    packet[12..20].copy_from_slice(&[192, 0, 2, 1, 192, 0, 2, 2]);
    [&VnetHeader::PLAIN.encode()[..], &packet].concat()
}

/// The tables of two peers after a handshake: one that seals, one that opens.
fn tables(a_at: SocketAddr, b_at: SocketAddr) -> [Table; 2] {
    let (a_key, b_key) = (SecretKey::from_bytes([1; 32]), SecretKey::from_bytes([2; 32]));
    let (a_public, b_public) = (a_key.public(), b_key.public());
    let mut a = peer(a_key, b_public, 1);
    let mut b = peer(b_key, a_public, 2);
    a.handle_endpoints(clock::now(), vec![b_at]);
    while let Some(event) = a.poll_event() {
        if let Event::KeepFloor(stamp) = event {
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
    let config = Config {
        identities: vec![Identity::new(secret)],
        remotes: vec![remote],
        terms: vec![Terms::new(Protocol::WireGuard, &PresharedKey::default())],
        mtu: 1420,
        largest_packet: 1420,
        keepalive: None,
        dead_after: std::time::Duration::from_secs(60),
        watch: false,
        roam: Roam::Any,
        sources: Sources::default(),
        dscp: 0,
        floor: None,
        max_datagram: 1500,
    };
    let rng = Box::new(StdRng::seed_from_u64(seed));
    Peer::new(config, Arc::new(Activity::default()), rng, clock::now())
}
