//! How an end is configured, and what surrounds it.

use std::net::SocketAddr;
use std::time::Duration;

use vpnd_crypto::key::{PresharedKey, PublicKey, SecretKey};
use vpnd_protocol::endpoint::{Roam, Sources};
use vpnd_protocol::handshake::Identity;
use vpnd_protocol::limits::LEAST_DATAGRAM;
use vpnd_protocol::peer::Config;
use vpnd_protocol::terms::{Protocol, Terms};
use vpnd_protocol::timestamp::Timestamp;

use crate::end::{MTU, Side};

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
    pub(crate) return_after: Duration,
    pub(crate) resolve_every: Option<Duration>,
    pub(crate) sources: Sources,
    pub(crate) protocol: Protocol,
    pub(crate) preshared: Vec<[u8; 32]>,
    /// What else an answer may be made under, with the first of the preshared keys.
    pub(crate) also: Vec<Protocol>,
    /// Our next key, and the peer's.
    pub(crate) next: [Option<[u8; 32]>; 2],
    pub(crate) remote: PublicKey,
    pub(crate) disk: Disk,
    /// The device has another MTU only when [`End::answer_mtu`] is called.
    pub(crate) slow_device: bool,
    /// The UDP payload that its first link carries, if the kernel can say.
    pub(crate) link: Option<u16>,
    /// The device's MTU follows the path up to this.
    pub(crate) mtu_follows: Option<u16>,
    pub(crate) raise_after: Duration,
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
            return_after: Duration::from_secs(60),
            resolve_every: None,
            sources: Sources::default(),
            protocol: Protocol::WireGuard,
            preshared: vec![[0; 32]],
            also: Vec::new(),
            next: [None, None],
            remote: side.other().public(),
            disk: Disk::Writes(Duration::ZERO),
            slow_device: false,
            link: None,
            mtu_follows: None,
            raise_after: Duration::from_secs(600),
        }
    }

    pub(crate) fn terms(&self) -> Vec<Terms> {
        let key = |bytes: &[u8; 32]| PresharedKey::from_bytes(*bytes);
        let keys = self.preshared.iter().map(|bytes| Terms::new(self.protocol, &key(bytes)));
        let also = self.also.iter().map(|other| Terms::new(*other, &key(&self.preshared[0])));
        keys.chain(also).collect()
    }

    pub(crate) fn identities(&self, side: Side) -> Vec<Identity> {
        let next = self.next[0].map(SecretKey::from_bytes);
        [Some(side.secret()), next].into_iter().flatten().map(Identity::new).collect()
    }

    pub(crate) fn remotes(&self) -> Vec<PublicKey> {
        let next = self.next[1].map(|secret| SecretKey::from_bytes(secret).public());
        [Some(self.remote), next].into_iter().flatten().collect()
    }

    pub(crate) fn config(&self, side: Side, floor: Option<Timestamp>) -> Config {
        Config {
            keepalive: self.keepalive,
            dead_after: self.dead_after,
            fixed_port: self.fixed_port,
            watch: self.watch,
            roam: self.roam,
            return_after: self.return_after,
            sources: self.sources,
            dscp: 46,
            floor,
            max_datagram: if self.link.is_some() { LEAST_DATAGRAM } else { 1452 },
            raise_after: self.raise_after,
            ..Config::new(self.identities(side), self.remotes(), self.terms(), MTU)
        }
    }
}
