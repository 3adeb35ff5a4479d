//! Both ends of a tunnel in WireGuard's terms.

use std::net::IpAddr;

use ipnet::IpNet;
use vpnd_device::WhenDown;
use vpnd_import::export::{End, Hook, Routing};
use vpnd_protocol::endpoint::Roam;
use vpnd_tunnel::udp::Listen;
use zeroize::Zeroizing;

use super::{ExportError, ExportOptions};
use crate::config::{Carrier, Config, Endpoint, Guard, MssClamp, Route};
use crate::keys::Keys;
use crate::terminal::shell_word;

/// Behind a NAT, which an end that nobody can reach often is.
const BEHIND_NAT: u16 = 25;

/// The other end, and what is not known or cannot be said.
pub(super) fn other(
    config: &Config,
    keys: &Keys,
    private_key: Option<Zeroizing<String>>,
    options: &ExportOptions,
) -> Result<(End, Vec<String>), ExportError> {
    let listen = config.interface.listen;
    let endpoint =
        options.endpoint.as_deref().map(|text| own_endpoint(text, listen)).transpose()?;
    let addresses = addresses_of_other(config, options);
    let notes = unknown(config, private_key.is_some(), !addresses.is_empty(), options);
    let networks = options.network.iter().map(IpNet::trunc);
    let reached = config.peer.endpoints.first();
    let end = End {
        device: config.name.chars().take(15).collect(),
        private_key,
        public_key: config.peer.public_key,
        addresses,
        listen: reached.map(|endpoint| endpoint.port),
        mtu: config.interface.mtu,
        fwmark: None,
        dns_servers: vec![],
        dns_domains: vec![],
        routing: Routing::Auto,
        up: vec![],
        down: vec![],
        peer: keys.secret.public(),
        preshared_key: preshared(config, keys),
        endpoint,
        allowed_ips: hosts(&config.interface.addresses).chain(networks).collect(),
        keepalive: reached.is_none().then_some(BEHIND_NAT),
    };
    Ok((end, notes))
}

/// What is not known here about the other end, and how it is given.
fn unknown(config: &Config, key: bool, addresses: bool, options: &ExportOptions) -> Vec<String> {
    let peer = &config.peer;
    let key = (!key).then(|| {
        format!(
            "the private key of {} is not known here: put it in place of the placeholder, or give --peer-key FILE",
            peer.public_key
        )
    });
    let several = (peer.endpoints.len() > 1).then(|| {
        format!(
            "of several endpoints the first gives the other end its port: {}",
            peer.endpoints[0]
        )
    });
    let endpoint = options.endpoint.is_none().then(|| match peer.endpoints.as_slice() {
        [] => "neither end could begin: give --endpoint HOST, where this end is reached".to_owned(),
        _ => "without --endpoint HOST the other end waits for this one".to_owned(),
    });
    let address = (!addresses).then(|| {
        "the other end's address inside is not known here: give --address ADDRESS/LENGTH".to_owned()
    });
    let network = options.network.is_empty().then(|| {
        "networks behind this end are not in its configuration: give --network NET for each"
            .to_owned()
    });
    let own = "what holds at this end only stays here: routes, filters, timers, hooks, [dns], the kill switch";
    [key, several, endpoint, address, network, Some(own.to_owned())].into_iter().flatten().collect()
}

/// `HOST` with the port that is listened at, or `HOST:PORT`.
fn own_endpoint(text: &str, listen: Listen) -> Result<String, ExportError> {
    let port = match listen {
        Listen::Port(port) => port,
        Listen::Address(address) => address.port(),
    };
    let bare =
        text.parse::<std::net::Ipv6Addr>().map_or_else(|_| text.to_owned(), |v6| format!("[{v6}]"));
    let with_port = || format!("{bare}:{port}").parse::<Endpoint>().ok();
    let endpoint = text.parse().ok().or_else(with_port);
    endpoint
        .map(|endpoint| endpoint.to_string())
        .ok_or_else(|| ExportError::Endpoint(text.to_owned()))
}

fn addresses_of_other(config: &Config, options: &ExportOptions) -> Vec<IpNet> {
    if !options.address.is_empty() {
        return options.address.clone();
    }
    let peers = config.interface.peer_addresses.iter().map(|address| IpNet::from(*address));
    peers.chain(config.interface.addresses.iter().filter_map(other_host)).collect()
}

/// The other host of a network of two.
fn other_host(own: &IpNet) -> Option<IpNet> {
    let few = own.max_prefix_len() - own.prefix_len();
    if !(1..=2).contains(&few) {
        return None;
    }
    let anycast = |address: &IpAddr| address.is_ipv6() && few == 2 && *address == own.network();
    let other = own.hosts().find(|host| *host != own.addr() && !anycast(host))?;
    IpNet::new(other, own.prefix_len()).ok()
}

fn hosts(nets: &[IpNet]) -> impl Iterator<Item = IpNet> {
    nets.iter().map(|net| IpNet::from(net.addr()))
}

fn preshared(config: &Config, keys: &Keys) -> Option<Zeroizing<String>> {
    config.peer.preshared_key_file.as_ref().map(|_| keys.preshared.to_base64())
}

/// This end, and what cannot be said.
pub(super) fn own(config: &Config, keys: &Keys) -> (End, Vec<String>) {
    let (routing, commands) = routing(config);
    let interface = &config.interface;
    let ((up, unsaid_up), (down, unsaid_down)) =
        (hooks(&config.hooks.up), hooks(&config.hooks.down));
    let listen = match interface.listen {
        Listen::Port(port) => port,
        Listen::Address(address) => address.port(),
    };
    let domains = config.dns.domains.iter().filter(|domain| !domain.starts_with('~'));
    let end = End {
        device: interface.name.clone().unwrap_or_else(|| config.name.chars().take(15).collect()),
        private_key: Some(keys.secret.to_base64()),
        public_key: keys.secret.public(),
        addresses: interface.addresses.clone(),
        listen: Some(listen).filter(|port| *port != 0),
        mtu: interface.mtu,
        fwmark: Some(config.socket.fwmark).filter(|mark| *mark != 0),
        dns_servers: config.dns.servers.clone(),
        dns_domains: domains.cloned().collect(),
        routing,
        up: commands.into_iter().chain(up).collect(),
        down,
        peer: config.peer.public_key,
        preshared_key: preshared(config, keys),
        endpoint: config.peer.endpoints.first().map(ToString::to_string),
        allowed_ips: config.peer.allowed_ips.clone(),
        keepalive: config
            .peer
            .keepalive
            .map(|every| every.as_secs())
            .and_then(|seconds| seconds.try_into().ok()),
    };
    (end, [unsaid(config), unsaid_up, unsaid_down].concat())
}

/// The routes as `wg-quick` would make them; if it would make others, commands.
fn routing(config: &Config) -> (Routing, Vec<Hook>) {
    let interface = &config.interface;
    let connected = |to: &IpNet| interface.addresses.iter().any(|own| own.trunc().contains(to));
    let peers = |to: &IpNet| interface.peer_addresses.iter().any(|peer| IpNet::from(*peer) == *to);
    let same = |wanted: &[IpNet]| {
        wanted.iter().all(|to| config.routes.iter().any(|route| route.to == *to) || peers(to))
            && config.routes.iter().all(|route| wanted.contains(&route.to))
    };
    let allowed = &config.peer.allowed_ips;
    let uncovered: Vec<_> = allowed.iter().filter(|to| !connected(to)).copied().collect();
    let plain = config.routes.iter().all(|route| route.metric.is_none() && route.table.is_none());
    let table = config.routes.first().and_then(|route| route.table);
    let one_table =
        config.routes.iter().all(|route| route.metric.is_none() && route.table == table);
    match table {
        None if plain && same(&uncovered) => (Routing::Auto, vec![]),
        Some(table) if one_table && same(allowed) => (Routing::Table(table), vec![]),
        _ => (Routing::Off, config.routes.iter().map(command).collect()),
    }
}

fn command(route: &Route) -> Hook {
    Hook::route(&vpnd_import::Route { to: route.to, metric: route.metric, table: route.table })
}

/// The commands that `wg-quick` can run, and those that it cannot.
fn hooks(commands: &[Vec<String>]) -> (Vec<Hook>, Vec<String>) {
    let hooks: Vec<_> = commands.iter().map(|command| (command, Hook::new(command))).collect();
    let unsaid = hooks.iter().filter(|(_, hook)| hook.is_none());
    let unsaid = unsaid.map(|(command, _)| {
        let typed = command.iter().map(|word| shell_word(word)).collect::<Vec<_>>().join(" ");
        format!("cannot be said: a command with a line break, `#` or `%i`, [hooks] {typed}")
    });
    let unsaid = unsaid.collect();
    (hooks.into_iter().filter_map(|(_, hook)| hook).collect(), unsaid)
}

/// The settings of this end that WireGuard's programs do not have.
fn unsaid(config: &Config) -> Vec<String> {
    let Config { interface, peer, path, socket, dns, hooks, .. } = config;
    let kill_switch = config.routes.iter().any(|route| route.when_down != WhenDown::Keep);
    let all = [
        (
            matches!(interface.listen, Listen::Address(_)),
            "[interface] listen: the port alone; WireGuard binds to every address",
        ),
        (!interface.peer_addresses.is_empty(), "[interface] peer_address: a route takes its place"),
        (
            interface.mtu.is_none(),
            "[interface] mtu = \"auto\": wg-quick takes 80 off the route's MTU at the start",
        ),
        (
            interface.carrier == Carrier::Peer,
            "[interface] carrier = \"peer\": a WireGuard device always has a carrier",
        ),
        (interface.vrf.is_some(), "[interface] vrf: `ip link set %i vrf NAME` in PostUp"),
        (
            interface.netns.is_some() || socket.netns.is_some(),
            "netns: `ip link set %i netns NAME` in PostUp",
        ),
        (peer.endpoints.len() > 1, "[peer] endpoint: the first only, WireGuard has one"),
        (peer.roam != Roam::Any, "[peer] roam: WireGuard always follows its peer"),
        (!peer.guard.is_empty() && peer.guard != [Guard::Ra], "[peer] guard: nothing like it"),
        (
            kill_switch,
            "[[route]] when_down: packets leave outside the tunnel when it is down; a rule of nftables can prevent that",
        ),
        (
            path.mss_clamp != MssClamp::Off,
            "[path] mss_clamp: a rule of nftables, `tcp flags syn tcp option maxseg size set rt mtu`, if LANs need it",
        ),
        (socket.bind_device.is_some(), "[socket] bind_device: `ip rule` with FwMark"),
        (!socket.sources.is_empty(), "[socket] source: the route chooses"),
        (socket.dscp != 0, "[socket] dscp: a rule of nftables"),
        (
            dns.domains.iter().any(|domain| domain.starts_with('~')),
            "[dns] domains with ~: resolvconf has none, all names are asked for",
        ),
        (
            !hooks.established.is_empty() || !hooks.lost.is_empty(),
            "[hooks] established and lost: nothing like them",
        ),
    ];
    all.into_iter()
        .filter(|(said, _)| *said)
        .map(|(_, text)| format!("cannot be said: {text}"))
        .collect()
}
