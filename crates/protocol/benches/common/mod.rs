//! The two ends of a session, made by a handshake.
#![allow(dead_code, reason = "each benchmark uses its part")]

use std::net::SocketAddr;
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::StdRng;
use vpnd_crypto::{PresharedKey, PublicKey, SecretKey};
use vpnd_protocol::activity::Activity;
use vpnd_protocol::endpoint::Roam;
use vpnd_protocol::handshake::Identity;
use vpnd_protocol::peer::{Config, Event, Load, Peer};
use vpnd_protocol::session::{OpeningKey, SealingKey};
use vpnd_protocol::table::{Arrival, Table};
use vpnd_protocol::terms::{Protocol, Terms};
use vpnd_protocol::time::{BootTime, Now};

/// The moment at which everything happens.
pub(crate) const NOW: BootTime = BootTime::from_nanos(1);

/// One direction of a session.
pub(crate) struct Session {
    pub(crate) sealing: Arc<SealingKey>,
    pub(crate) opening: Arc<OpeningKey>,
    /// What the end that opens works by.
    pub(crate) table: Table,
}

impl Session {
    /// A session on which nothing was sent but what confirms it.
    pub(crate) fn new() -> Self {
        let (mut near, mut far) = (peer(1, secret(2).public()), peer(2, secret(1).public()));
        near.handle_endpoints(now(), vec![arrival().from]);
        while let Some(event) = near.poll_event() {
            if let Event::KeepFloor(stamp) = event {
                near.floor_kept(now(), stamp);
            }
        }
        hand_over(&mut near, &mut far);
        hand_over(&mut far, &mut near);
        let table = far.table();
        let (sealing, _path) = near.table().send.expect("a session");
        let opening = Arc::clone(table.open.iter().flatten().next().expect("a session"));
        Self { sealing, opening, table }
    }
}

/// Where everything comes from.
pub(crate) fn arrival() -> Arrival {
    Arrival { from: SocketAddr::from(([192, 0, 2, 1], 51820)), local: None }
}

fn hand_over(from: &mut Peer, to: &mut Peer) {
    let mut message = Vec::new();
    from.poll_transmit(&mut message).expect("a handshake message");
    let admitted = to.table().admit(arrival(), &message).expect("made for it");
    to.handle_handshake(now(), Load::Normal, &admitted).expect("the handshake goes on");
}

fn peer(number: u8, remote: PublicKey) -> Peer {
    let config = Config {
        identities: vec![Identity::new(secret(number))],
        remotes: vec![remote],
        terms: vec![Terms::new(Protocol::WireGuard, &PresharedKey::default())],
        largest_packet: 1420,
        keepalive: None,
        roam: Roam::Any,
        floor: None,
        max_datagram: 1500,
    };
    let rng = Box::new(StdRng::seed_from_u64(number.into()));
    Peer::new(config, Arc::new(Activity::default()), rng, now())
}

fn secret(number: u8) -> SecretKey {
    SecretKey::from_bytes([number; 32])
}

fn now() -> Now {
    Now { boot: NOW, ..Now::default() }
}
