//! One end of a tunnel, as vpnd's configuration describes it. What is absent has vpnd's default.

use std::net::IpAddr;

use ipnet::IpNet;
use vpnd_crypto::{PublicKey, SecretKey};
use zeroize::Zeroizing;

use crate::value;

/// A route into the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The network.
    pub to: IpNet,
    /// Its priority.
    pub metric: Option<u32>,
    /// Its table, if it is not `main`.
    pub table: Option<u32>,
}

impl Route {
    /// A route in `main`, or for a default route in a table of its own.
    pub const fn to(to: IpNet) -> Self {
        Self { to, metric: None, table: None }
    }
}

/// A program and its arguments.
pub type Command = Vec<String>;

/// One end of a tunnel.
#[derive(Clone, Default)]
pub struct Tunnel {
    /// Its name, that of its files.
    pub name: String,
    /// The device's name.
    pub device: Option<String>,
    /// Whether the device carries Ethernet frames.
    pub tap: bool,
    /// Whether the device stays.
    pub persist: bool,
    /// The bridge of the device.
    pub bridge: Option<String>,
    /// The VRF of the device.
    pub vrf: Option<String>,
    /// The hardware address.
    pub mac: Option<String>,
    /// Whether multicast is routed into the device.
    pub multicast: Option<bool>,
    /// The queue length.
    pub txqueuelen: Option<u32>,
    /// Our addresses inside.
    pub addresses: Vec<IpNet>,
    /// The peer's addresses inside.
    pub peer_addresses: Vec<IpAddr>,
    /// The address and port that datagrams are received at.
    pub listen: Option<(Option<IpAddr>, u16)>,
    /// The device's MTU.
    pub mtu: Option<u16>,
    /// Our private key in base64.
    pub private_key: Zeroizing<String>,
    /// Whether both ends run vpnd; otherwise the protocol is WireGuard's.
    pub vpnd: bool,
    /// The cipher, with `vpnd`.
    pub cipher: Option<&'static str>,
    /// The peer's public key.
    pub public_key: Option<PublicKey>,
    /// The preshared key in base64.
    pub preshared_key: Option<Zeroizing<String>>,
    /// Where the peer is reached.
    pub endpoints: Vec<String>,
    /// The sources that the peer may use.
    pub allowed_ips: Option<Vec<IpNet>>,
    /// The keepalive, in seconds.
    pub keepalive: Option<u16>,
    /// How long a silent peer counts as alive, in seconds.
    pub dead_after: Option<u16>,
    /// The routes into the tunnel.
    pub routes: Vec<Route>,
    /// The mark of the datagrams.
    pub fwmark: Option<u32>,
    /// The interface of the datagrams.
    pub bind_device: Option<String>,
    /// The socket's receive buffer in bytes.
    pub rcvbuf: Option<u32>,
    /// The socket's send buffer in bytes.
    pub sndbuf: Option<u32>,
    /// `"off"`, or the largest MSS.
    pub mss_clamp: Option<Clamp>,
    /// The largest packet to send outside.
    pub mtu_max: Option<u16>,
    /// Name servers behind the tunnel.
    pub dns_servers: Vec<IpAddr>,
    /// Their domains.
    pub dns_domains: Vec<String>,
    /// Commands when the device is configured.
    pub up: Vec<Command>,
    /// Commands when the peer is alive.
    pub established: Vec<Command>,
    /// Commands when the peer is not alive any more.
    pub lost: Vec<Command>,
    /// Commands before the device goes.
    pub down: Vec<Command>,
    /// Whether WireGuard's tools get their socket.
    pub uapi: bool,
    /// The priority of the threads that move packets.
    pub nice: Option<i8>,
    /// What is logged.
    pub log_level: Option<&'static str>,
}

/// How the MSS is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clamp {
    /// Not at all.
    Off,
    /// To this.
    Most(u16),
}

impl Tunnel {
    /// A route, unless there is one to the same network in the same table.
    pub(crate) fn add_route(&mut self, route: Route) {
        let same = |other: &Route| other.to == route.to && other.table == route.table;
        if !self.routes.iter().any(same) {
            self.routes.push(route);
        }
    }

    /// Whether one of our own networks contains this one, so that the kernel has a route to it.
    pub(crate) fn connects(&self, to: &IpNet) -> bool {
        self.addresses.iter().any(|own| own.trunc().contains(to))
    }

    /// An address, with what [`vpnd`'s rules](value::own_address) make of it. Returns what was changed.
    pub(crate) fn add_address(&mut self, address: IpNet) -> Option<String> {
        let own = value::own_address(address);
        if !self.addresses.contains(&own) {
            self.addresses.push(own);
        }
        (own != address).then(|| {
            self.add_route(Route::to(address.trunc()));
            format!(
                "{address} is no address of a host: taken as {own}, with a route to the network"
            )
        })
    }

    /// The commands of each event in `[hooks]`.
    pub fn commands(&self) -> [(&'static str, &[Command]); 4] {
        [
            ("up", &self.up),
            ("established", &self.established),
            ("lost", &self.lost),
            ("down", &self.down),
        ]
    }

    /// The public half of our private key.
    pub fn own_public_key(&self) -> Option<PublicKey> {
        SecretKey::from_base64(&self.private_key).ok().map(|secret| secret.public())
    }
}
