//! Translates the configuration into the option types of the lower crates.

use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;
use vpnd_crypto::{PublicKey, hash};
use vpnd_device::{Families, Link, Own};
use vpnd_plane::Settings;
use vpnd_protocol::limits::{LEAST_DATAGRAM, MAX_DATAGRAM};
use vpnd_protocol::peer;
use vpnd_protocol::timestamp::Timestamp;
use vpnd_tun::{Carrier, Mode};
use vpnd_tunnel::clamp::Clamp;
use vpnd_tunnel::engine;
use vpnd_tunnel::filter::{Filter, Macs, is_link_local};
use vpnd_tunnel::guard::Guard;
use vpnd_tunnel::udp::Gso;
use vpnd_tunnel::view::Policy;

use crate::config::{self, Config, MssClamp};
use crate::firewall;
use crate::keys::Keys;
use crate::privilege;
use crate::sandbox::{Role, Sandbox};
use crate::terms::Agreement;

/// The options of the data path.
pub(crate) fn engine(config: &Config, mtu: u16, sandbox: Sandbox) -> engine::Options {
    engine::Options {
        confine: Arc::new(move || {
            privilege::begin_thread();
            Ok(sandbox.confine(Role::Data).map(drop)?)
        }),
        mode: config.interface.mode,
        policy: policy(config, mtu),
    }
}

/// The options of the protocol that may change while the tunnel runs, except terms and keys.
pub(crate) fn tuning(config: &Config) -> peer::Tuning {
    peer::Tuning {
        keepalive: config.peer.keepalive,
        dead_after: config.peer.dead_after,
        watch: config.watches(),
        roam: config.peer.roam,
        return_after: config.peer.return_after,
        sources: config.socket.sources(),
        dscp: config.socket.dscp,
        raise_after: config.path.raise_every,
        tests_segmentation: config.path.gso == Gso::Auto,
    }
}

/// The options of the control plane, except those of the protocol.
pub(crate) fn settings(config: &Config, carrier_follows: bool, alive: bool) -> Settings {
    let literal =
        |one: &config::Endpoint| one.address().map(|address| SocketAddr::new(address, one.port));
    let has_names = config.peer.endpoints.iter().any(|one| one.address().is_none());
    Settings {
        mtu_max: config.path.mtu_max,
        mtu_follows: mtu_follows(config),
        carrier_follows,
        alive,
        endpoints: config.peer.endpoints.iter().map(literal).collect(),
        resolve_every: has_names.then_some(config.peer.resolve_every),
    }
}

/// Whether the device's carrier follows the peer: it is configured to, and can be set.
pub(crate) fn carrier_follows(config: &Config, carrier: Option<&Carrier>) -> bool {
    carrier.is_some() && config.interface.carrier == config::Carrier::Peer
}

/// The options of the data path that may change while the tunnel runs.
pub(crate) fn policy(config: &Config, mtu: u16) -> Policy {
    Policy::new(config.interface.mode, mtu, filter(config))
        .with_clamp(clamp(config))
        .with_macs(macs(&config.peer))
        .with_guard(guard(config))
}

/// The wanted state of the device. `own` describes the tunnel's own datagrams, if the tunnel's routes would
/// catch them.
pub(crate) fn link(config: &Config, name: &str, mtu: u16, own: Option<Own>) -> Link {
    let interface = &config.interface;
    Link {
        name: name.to_owned(),
        addresses: interface.addresses.clone(),
        peer_addresses: interface.peer_addresses.clone(),
        mtu: Some(mtu.into()),
        txqueuelen: Some(interface.txqueuelen),
        mac: interface.mac.map(|mac| mac.0),
        multicast: Some(interface.multicast),
        mac_as_port: None,
        bridge: interface.bridge.clone(),
        stp_cost: interface.stp_cost,
        vrf: interface.vrf.clone(),
        routes: config.routes.iter().map(route).collect(),
        own,
        alive: false,
        passed_over: Families::default(),
        guard_table: firewall::keeps_in(config).then(|| firewall::usual_table(&config.name)),
    }
}

/// Chooses a hardware address for a TAP device if the configuration has none. A device that others created
/// keeps its address, unless it joins a bridge: its address could be the lowest of all ports, and the bridge
/// would use it as its own.
pub(crate) fn choose_mac(
    link: &mut Link,
    config: &Config,
    device: &vpnd_tun::Device,
    public_key: &PublicKey,
) {
    if config.interface.mode != Mode::Tap || link.mac.is_some() {
        return;
    }
    let own = Some(own_mac(public_key, &config.name));
    if device.adopted {
        link.mac_as_port = own;
    } else {
        link.mac = own;
    }
}

/// A locally administered address that is the same at each start, and higher than those of all network cards.
fn own_mac(public_key: &PublicKey, tunnel: &str) -> [u8; 6] {
    let parts = [&b"vpnd hardware address"[..], public_key.as_bytes(), tunnel.as_bytes()];
    let [_, a, b, c, d, e, ..] = hash(&parts);
    [0xfe, a, b, c, d, e]
}

fn route(route: &config::Route) -> vpnd_device::Route {
    vpnd_device::Route {
        to: route.to,
        metric: route.metric,
        table: route.table,
        when_down: route.when_down,
    }
}

/// The options of the protocol; `floor` is the last stored timestamp.
pub(crate) fn peer(
    config: &Config,
    keys: Keys,
    (mtu, mac): (u16, Option<[u8; 6]>),
    floor: Option<Timestamp>,
) -> peer::Config {
    let Agreement { identities, remotes, terms } = Agreement::of(config, keys);
    let tuning = tuning(config);
    peer::Config {
        identities,
        remotes,
        terms,
        mtu,
        mac,
        largest_packet: config.interface.mode.largest_packet(mtu),
        keepalive: tuning.keepalive,
        dead_after: tuning.dead_after,
        watch: tuning.watch,
        roam: tuning.roam,
        return_after: tuning.return_after,
        sources: tuning.sources,
        fixed_port: config.interface.listen.is_fixed(),
        dscp: tuning.dscp,
        floor,
        max_datagram: LEAST_DATAGRAM,
        raise_after: tuning.raise_after,
        tests_segmentation: tuning.tests_segmentation,
    }
}

/// The largest MTU of the device, if it follows the path.
pub(crate) fn mtu_follows(config: &Config) -> Option<u16> {
    let follows = config.interface.mode == Mode::Tun && config.interface.mtu.is_none();
    follows.then_some(MAX_DATAGRAM)
}

/// The source addresses that the peer may use; our own are excluded.
pub(crate) fn filter(config: &Config) -> Filter {
    let config::Interface { addresses, peer_addresses, .. } = &config.interface;
    let mut allowed = config.peer.allowed_ips.clone();
    // A link-local network is let in only if one of our addresses is in it; a wider network in `allowed_ips`
    // does not suffice.
    let peers = peer_addresses.iter().map(|address| IpNet::from(*address));
    for network in addresses.iter().map(IpNet::trunc).chain(peers).filter(is_link_local) {
        if allowed.iter().any(|wide| wide.contains(&network)) {
            allowed.push(network);
        }
    }
    let own: Vec<_> = addresses
        .iter()
        .flat_map(own)
        .filter(|own| !peer_addresses.contains(&own.addr()))
        .collect();
    Filter::new(&allowed).without(&own)
}

/// The addresses in the network of one of ours that belong to no other host: our address itself; the network
/// and the broadcast address; in IPv6 the anycast address of routers (RFC 4291 §2.6.1). Networks of two
/// addresses have only the first of these (RFC 3021, RFC 6164).
fn own(address: &IpNet) -> impl Iterator<Item = IpNet> {
    let wide = address.prefix_len() + 1 < address.max_prefix_len();
    let network = wide.then(|| address.network());
    let broadcast = (wide && address.addr().is_ipv4()).then(|| address.broadcast());
    [Some(address.addr()), network, broadcast].into_iter().flatten().map(IpNet::from)
}

/// The messages to drop. Solicitations are dropped only over a TUN device, because no host solicits routers there.
fn guard(config: &Config) -> Guard {
    let guard = &config.peer.guard;
    let routers = guard.contains(&config::Guard::Ra);
    Guard {
        advertisements: routers,
        solicitations: routers && config.interface.mode == Mode::Tun,
        dhcp: guard.contains(&config::Guard::Dhcp),
    }
}

/// The stations that may send; `None` if every station may.
fn macs(peer: &config::Peer) -> Option<Macs> {
    let macs: Vec<_> = peer.allowed_macs.iter().map(|mac| mac.0).collect();
    (!macs.is_empty()).then(|| Macs::new(&macs))
}

const fn clamp(config: &Config) -> Option<Clamp> {
    match config.path.mss_clamp {
        MssClamp::Auto => Some(Clamp::Mtu),
        MssClamp::Fixed(mss) => Some(Clamp::Mss(mss)),
        MssClamp::Off => None,
    }
}
