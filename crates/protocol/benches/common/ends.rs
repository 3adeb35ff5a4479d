//! The two ends of a session, made by a handshake.
#![allow(dead_code, reason = "each benchmark uses its part")]

use std::net::SocketAddr;
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::StdRng;
use vpnd_crypto::aead::Algorithm;
use vpnd_crypto::{PresharedKey, PublicKey, SecretKey};
use vpnd_protocol::activity::Activity;
use vpnd_protocol::handshake::Identity;
use vpnd_protocol::inner::Inner;
use vpnd_protocol::message::{self, Message};
use vpnd_protocol::peer::{Command, Config, Event, Load, Peer};
use vpnd_protocol::profile::{Kem, Mode, Profile};
use vpnd_protocol::receive_order::ReceiveOrder;
use vpnd_protocol::session::{OpeningKey, SealingKey};
use vpnd_protocol::table::{Arrival, Table};
use vpnd_protocol::terms::{Protocol, Terms};
use vpnd_protocol::time::{BootTime, Now};

/// The time of all events.
pub(crate) const NOW: BootTime = BootTime::from_nanos(1);

/// One direction of a session.
pub(crate) struct Session {
    pub(crate) sealing: Arc<SealingKey>,
    pub(crate) opening: Arc<OpeningKey>,
    /// The table of the end that opens.
    pub(crate) table: Table,
}

impl Session {
    /// A session on which nothing was sent but what confirms it.
    pub(crate) fn new() -> Self {
        let ([near, far], _, _) = connected(wireguard());
        let table = far.peer.table();
        let (sealing, _path) = near.peer.table().send.expect("a session");
        let opening = Arc::clone(table.open.iter().flatten().next().expect("a session"));
        Self { sealing, opening, table }
    }
}

/// `WireGuard`'s own.
pub(crate) const fn wireguard() -> Protocol {
    Protocol::WireGuard
}

/// The default protocol between two vpnd.
pub(crate) const fn post_quantum() -> Protocol {
    let (mode, cipher, kem) = (Mode::Tun, Algorithm::ChaCha20Poly1305, Kem::MlKem768);
    Protocol::Vpnd(Profile { mode, cipher, kem })
}

/// A whole handshake, until both ends have a session: how many datagrams it took, and their bytes.
pub(crate) fn connect(protocol: Protocol) -> (usize, usize) {
    let (ends, datagrams, bytes) = connected(protocol);
    let stands = |end: &End| end.peer.table().send.is_some();
    assert!(ends.iter().all(stands), "both ends have a session");
    (datagrams, bytes)
}

fn connected(protocol: Protocol) -> ([End; 2], usize, usize) {
    let mut ends = [End::new(1, 2, protocol), End::new(2, 1, protocol)];
    ends[0].peer.handle_endpoints(now(), vec![arrival().from]);
    let (mut datagrams, mut bytes, mut quiet) = (0, 0, 0);
    let mut order = 0;
    while quiet < 2 {
        quiet += 1;
        while let Some(datagram) = ends[order].poll() {
            (datagrams, bytes, quiet) = (datagrams + 1, bytes + datagram.len(), 0);
            ends[1 - order].take(datagram);
        }
        order = 1 - order;
    }
    (ends, datagrams, bytes)
}

/// A peer, and what its data lines do for it.
struct End {
    peer: Peer,
    activity: Arc<Activity>,
    order: ReceiveOrder,
}

impl End {
    fn new(number: u8, remote: u8, protocol: Protocol) -> Self {
        let activity = Arc::new(Activity::default());
        let peer = peer(number, secret(remote).public(), protocol, Arc::clone(&activity));
        Self { peer, activity, order: ReceiveOrder::default() }
    }

    fn poll(&mut self) -> Option<Vec<u8>> {
        while let Some(event) = self.peer.poll_event() {
            if let Event::Command(Command::KeepFloor(stamp)) = event {
                self.peer.floor_kept(now(), stamp);
            }
        }
        let mut datagram = Vec::new();
        self.peer.poll_transmit(&mut datagram).map(|_| datagram)
    }

    fn take(&mut self, mut datagram: Vec<u8>) {
        let table = self.peer.table();
        let Ok(Message::Data { receiver, counter }) = message::parse(&datagram) else {
            let admitted = table.admit(arrival(), &datagram).expect("made for it");
            let taken = self.peer.handle_handshake(now(), Load::Normal, &admitted);
            return taken.expect("the handshake goes on");
        };
        let key = table.opening(receiver).expect("publish, then transmit");
        let opened = key.open(counter, &mut datagram, NOW).expect("authentic");
        let mut accepting = self.order.begin(&table, &self.activity, arrival());
        let inner = accepting.accept(key, &mut key.window(), &opened, &datagram);
        let framed = match inner.expect("fresh and well made") {
            Inner::Control { len, .. } => Some(accepting.frame(key, &datagram, len)),
            _ => None,
        };
        let _wake = accepting.end(NOW);
        match framed {
            Some(framed) => self.peer.handle_frame(now(), &framed).expect("known"),
            None => self.peer.handle_wake(now()),
        }
    }
}

/// Where everything comes from.
pub(crate) fn arrival() -> Arrival {
    Arrival { from: SocketAddr::from(([192, 0, 2, 1], 51820)), local: None }
}

fn peer(number: u8, remote: PublicKey, protocol: Protocol, activity: Arc<Activity>) -> Peer {
    let terms = Terms::new(protocol, &PresharedKey::default());
    let config = Config::new(vec![Identity::new(secret(number))], vec![remote], vec![terms], 1420);
    let config = Config { max_datagram: 1500, ..config };
    let rng = Box::new(StdRng::seed_from_u64(number.into()));
    Peer::new(config, activity, rng, now())
}

fn secret(number: u8) -> SecretKey {
    SecretKey::from_bytes([number; 32])
}

fn now() -> Now {
    Now { boot: NOW, ..Now::default() }
}
