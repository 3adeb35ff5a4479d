//! Rules about combinations of keys, each of which is valid by itself.

use std::net::IpAddr;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use nix::unistd::Uid;
use toml::Spanned;
use toml::de::DeTable;
use vpnd_crypto::SecretKey;
use vpnd_device::WhenDown;
use vpnd_protocol::endpoint::Roam;
use vpnd_protocol::limits::LEAST_MTU_V6;
use vpnd_tun::{Adopt, Mode};
use vpnd_tunnel::udp::Listen;

use super::device::Carrier;
use super::model::{Config, Interface, Peer, Route};
use super::problem::Problem;
use super::profile::{AlsoAccept, Protocol};
use super::section::subject;
use crate::keys::Keys;
use crate::netns;
use crate::program::{from_directory, look_at};
use crate::trust::{Untrusted, future_directory, future_place};

/// The shortest `dead_after` with a keepalive: probing takes half of it, for at least two handshakes.
const TIME_TO_ASK: Duration = Duration::from_secs(15);

/// The shortest `dead_after` without one: ten seconds, after which WireGuard owes a keepalive for data, and the
/// delay of a slow path.
const TIME_TO_ANSWER: Duration = Duration::from_secs(12);

/// The number of candidates that are tried to open one answer; each costs a hash and an AEAD.
const MAX_CANDIDATES: usize = 4;

/// All problems of the combination of keys.
pub(super) fn check(config: &Config, keys: &Keys, places: Places<'_>) -> Vec<Problem> {
    let mut found = Found { places, problems: vec![] };
    own_keys(config, keys, &mut found);
    next_keys(config, keys, &mut found);
    vpnd_alone(config, &mut found);
    also_accept(config, &mut found);
    someone_begins(config, &mut found);
    peer_addresses(config, &mut found);
    mtu(config, &mut found);
    frames(config, &mut found);
    one_master(config, &mut found);
    persistence(config, &mut found);
    carrier(config, &mut found);
    time_to_ask(config, &mut found);
    something_allowed(config, &mut found);
    endpoints_outside(config, &mut found);
    routes_once(config, &mut found);
    routes_allowed(config, &mut found);
    blackhole_behind(config, &mut found);
    routes_without_loop(config, &mut found);
    device_outside(config, &mut found);
    sources(config, &mut found);
    hooks(config, &mut found);
    names(config, &mut found);
    user_of_its_own(config, &mut found);
    found.problems
}

/// All problems of a start with this configuration.
pub(super) fn check_start(config: &Config, places: Places<'_>) -> Vec<Problem> {
    let mut found = Found { places, problems: vec![] };
    paths_of_root(config, &mut found);
    found.problems
}

/// Whoever can change the file decides which programs root runs, and where root's packets go.
pub(super) fn file(config: &Config, why: &Untrusted) -> Option<Problem> {
    let matters = Uid::effective().is_root() || config.runs_programs();
    let problem = format!("others could change this configuration: {why}");
    let help = "it and all directories above it must belong to root or to whoever starts vpnd, and be \
                writable by nobody else: keep it in /etc/vpnd, with mode 0600";
    matters.then(|| Problem::error(problem).help(help))
}

/// The default of the accepted source addresses: the networks of our addresses, the peer's addresses, and the
/// networks routed to it. No other address has a reason to come from there.
pub(super) fn default_allowed_ips(interface: &Interface, routes: &[Route]) -> Vec<IpNet> {
    let networks = interface.addresses.iter().filter(|net| net.prefix_len() < net.max_prefix_len());
    let peers = interface.peer_addresses.iter().map(|address| IpNet::from(*address));
    let routed = routes.iter().map(|route| route.to);
    let mut nets: Vec<_> = networks.map(IpNet::trunc).chain(peers).chain(routed).collect();
    nets.sort();
    nets.dedup();
    nets
}

/// The problem that a key needs vpnd at both ends; `otherwise` is the alternative.
pub(super) fn needs_vpnd(otherwise: &str) -> Problem {
    let help = format!("write protocol = \"vpnd\" in [peer] on both sides, or {otherwise}");
    Problem::error("this needs vpnd at both ends").help(help)
}

/// Positions of values in the file.
pub(super) struct Places<'t>(&'t DeTable<'t>);

impl<'t> Places<'t> {
    /// The positions in `file`.
    pub(super) fn new(file: &'t DeTable<'t>) -> Self {
        Self(file)
    }

    /// The position of the value of `key`; without one, that of the whole table.
    fn of(&self, table: &str, key: &str) -> Option<Range<usize>> {
        let table = self.0.get(table.trim_matches(['[', ']']))?;
        Some(table.get_ref().get(key).unwrap_or(table).span())
    }

    /// Whether the file has `key`.
    fn has(&self, table: &str, key: &str) -> bool {
        self.item(table, key, 0).is_some()
    }

    /// The position of the `index`th element of a list, or of a value that is not in a list.
    fn item(&self, table: &str, key: &str, index: usize) -> Option<Range<usize>> {
        let value = self.0.get(table.trim_matches(['[', ']']))?.get_ref().get(key)?;
        Some(value.get_ref().get(index).unwrap_or(value).span())
    }

    fn route(&self, index: usize) -> Option<Range<usize>> {
        let route = self.0.get("route")?.get_ref().get(index)?;
        route.get_ref().get("to").map(Spanned::span)
    }
}

struct Found<'t> {
    places: Places<'t>,
    problems: Vec<Problem>,
}

impl Found<'_> {
    fn at(&mut self, title: &str, key: &str, problem: Problem) {
        let place = self.places.of(title, key);
        self.problems.push(problem.at(place).of(&subject(title, key)));
    }

    fn at_item(&mut self, title: &str, key: &str, index: usize, problem: Problem) {
        let place = self.places.item(title, key, index);
        self.problems.push(problem.at(place).of(&subject(title, key)));
    }

    fn at_route(&mut self, index: usize, problem: Problem) {
        let place = self.places.route(index);
        self.problems.push(problem.at(place).of("[[route]] to"));
    }
}

fn own_keys(config: &Config, keys: &Keys, found: &mut Found<'_>) {
    let next = keys.next_secret.iter().map(|next| ("next_private_key_file", next));
    let ours = [("private_key_file", &keys.secret)].into_iter().chain(next);
    let ours: Vec<_> = ours.map(|(file, secret)| (file, secret.public())).collect();
    let next = config.peer.next_public_key.iter().map(|next| ("next_public_key", *next));
    for (key, theirs) in [("public_key", config.peer.public_key)].into_iter().chain(next) {
        for (file, _) in ours.iter().filter(|(_, own)| *own == theirs) {
            let problem = format!("this is our own key, the public half of {file}");
            let help = "put the peer's public key here";
            found.at("[peer]", key, Problem::error(problem).help(help));
        }
    }
}

/// A next key must differ from the current one.
fn next_keys(config: &Config, keys: &Keys, found: &mut Found<'_>) {
    let peer = &config.peer;
    let next_secret = keys.next_secret.as_ref().map(SecretKey::public);
    let next_preshared = keys.next_preshared.as_ref().map(|next| next.as_bytes());
    for (same, title, key) in [
        (next_secret == Some(keys.secret.public()), "[interface]", "private_key_file"),
        (peer.next_public_key == Some(peer.public_key), "[peer]", "public_key"),
        (next_preshared == Some(keys.preshared.as_bytes()), "[peer]", "preshared_key_file"),
    ] {
        if same {
            let problem = Problem::error(format!("the same key as {key}: nothing would change"));
            let help = "give the key that takes its place, or remove this line";
            found.at(title, &format!("next_{key}"), problem.help(help));
        }
    }
}

/// Keys that do not apply to WireGuard are reported, not ignored.
fn vpnd_alone(config: &Config, found: &mut Found<'_>) {
    for key in ["cipher", "post_quantum", "also_accept"] {
        if config.peer.protocol == Protocol::WireGuard && found.places.has("[peer]", key) {
            found.at("[peer]", key, needs_vpnd("remove this line"));
        }
    }
}

fn also_accept(config: &Config, found: &mut Found<'_>) {
    let peer = &config.peer;
    if peer.protocol == Protocol::WireGuard {
        return;
    }
    let changes = peer.also_accept.iter().enumerate();
    let (own, other): (Vec<_>, Vec<_>) = changes.partition(|(_, change)| is_own(peer, **change));
    for (index, change) in own {
        let problem = Problem::error(format!("\"{change}\" is this end's own setting"));
        let help = "remove it: each entry is one change from cipher, post_quantum and protocol";
        found.at_item("[peer]", "also_accept", index, problem.help(help));
    }
    let next = usize::from(peer.next_preshared_key_file.is_some());
    let candidates = 1 + next + other.len();
    if candidates > MAX_CANDIDATES {
        let problem = Problem::error(format!(
            "with next_preshared_key_file there are {candidates} alternatives for the peer's answer, \
             but at most {MAX_CANDIDATES} are possible"
        ));
        let help = "finish one change before the next";
        found.at("[peer]", "also_accept", problem.help(help));
    }
}

fn is_own(peer: &Peer, change: AlsoAccept) -> bool {
    match change {
        AlsoAccept::Cipher(cipher) => cipher == peer.cipher,
        AlsoAccept::PostQuantum(on) => on == peer.post_quantum,
        AlsoAccept::WireGuard => peer.protocol == Protocol::WireGuard,
    }
}

fn someone_begins(config: &Config, found: &mut Found<'_>) {
    if !config.peer.endpoints.is_empty() {
        return;
    }
    if config.interface.listen == Listen::Port(0) {
        let problem =
            Problem::error("missing, and no [interface] listen: neither end could initiate");
        found.at("[peer]", "endpoint", problem.help("set one of the two, or both"));
    } else if config.peer.roam == Roam::Off {
        let problem = Problem::error("\"off\" needs an endpoint, or the peer is never found");
        found.at("[peer]", "roam", problem.help("set endpoint, or roam = \"any\""));
    }
}

fn peer_addresses(config: &Config, found: &mut Found<'_>) {
    let ours = &config.interface.addresses;
    for (index, address) in config.interface.peer_addresses.iter().enumerate() {
        let same_family = |net: &&IpNet| net.addr().is_ipv4() == address.is_ipv4();
        let problem = if ours.iter().any(|net| net.addr() == *address) {
            "this is our own address"
        } else if ours.iter().find(same_family).is_none() {
            "needs an address of the same family in [interface] address"
        } else {
            continue;
        };
        found.at_item("[interface]", "peer_address", index, Problem::error(problem));
    }
}

fn mtu(config: &Config, found: &mut Found<'_>) {
    let addresses = config.interface.addresses.iter().copied();
    let mut nets = addresses.chain(config.routes.iter().map(|route| route.to));
    let narrow = config.interface.mtu.is_some_and(|mtu| mtu < LEAST_MTU_V6);
    if narrow && nets.any(|net| net.addr().is_ipv6()) {
        let problem = format!("IPv6 inside the tunnel needs an MTU of {LEAST_MTU_V6} at the least");
        found.at("[interface]", "mtu", Problem::error(problem));
    }
}

/// A TUN device cannot be a bridge port, and WireGuard carries IP packets only.
fn frames(config: &Config, found: &mut Found<'_>) {
    let Interface { mode, .. } = &config.interface;
    for (title, key, what) in [
        ("[interface]", "bridge", "joins a bridge"),
        ("[interface]", "mac", "has an Ethernet address"),
        ("[interface]", "stp_cost", "is part of a spanning tree"),
        ("[peer]", "allowed_macs", "has stations behind it"),
    ] {
        if *mode == Mode::Tun && found.places.has(title, key) {
            let problem = format!("only a device that carries Ethernet frames {what}");
            let help = "write mode = \"tap\" in [interface]";
            found.at(title, key, Problem::error(problem).help(help));
        }
    }
    if *mode == Mode::Tap && config.peer.also_accept.contains(&AlsoAccept::WireGuard) {
        let problem = Problem::error("WireGuard carries no Ethernet frames");
        found.at("[peer]", "also_accept", problem.help("leave out \"protocol=wireguard\""));
    }
}

fn one_master(config: &Config, found: &mut Found<'_>) {
    if config.interface.bridge.is_some() && config.interface.vrf.is_some() {
        let problem = Problem::error("a device can join a bridge or a VRF, not both");
        found.at("[interface]", "vrf", problem.help("let the bridge join the VRF"));
    }
}

/// The owner of a device matters only if it is persistent, and an existing device has a name.
fn persistence(config: &Config, found: &mut Found<'_>) {
    let Interface { name, persist, adopt, .. } = &config.interface;
    for key in ["owner", "group"] {
        if !persist && found.places.has("[interface]", key) {
            let problem = Problem::warning("only a device that stays can be opened by others");
            found.at("[interface]", key, problem.help("write persist = true, or remove this line"));
        }
    }
    if *adopt == Adopt::Require && name.is_none() {
        let problem = Problem::error("\"require\" needs the name of an existing device");
        found.at("[interface]", "adopt", problem.help("set [interface] name"));
    }
}

/// A link that is down sends no packet into the tunnel, but a handshake would need one to start it.
fn carrier(config: &Config, found: &mut Found<'_>) {
    let names = !config.dns.servers.is_empty() || !config.dns.domains.is_empty();
    if config.interface.carrier == Carrier::Peer && config.peer.keepalive.is_none() {
        let problem = "without a keepalive a silent peer may be alive, and nothing would probe it";
        let help = "set [peer] keepalive, or carrier = \"always\"";
        found.at("[interface]", "carrier", Problem::error(problem).help(help));
    } else if config.interface.carrier == Carrier::Peer && names {
        let problem = "systemd-resolved asks other links' servers for the names of a link without carrier, so \
                       while the peer is dead [dns] has no effect, and queries leave outside the tunnel";
        let help = "leave `carrier` out: with [dns] it is \"always\"";
        found.at("[interface]", "carrier", Problem::warning(problem).help(help));
    }
}

/// `WireGuard` can only probe by a handshake, and there are five seconds between two of those. A peer that is
/// not probed answers data by itself, but only after ten seconds.
fn time_to_ask(config: &Config, found: &mut Found<'_>) {
    let Peer { dead_after, protocol, .. } = config.peer;
    let (problem, help) = if !config.watches() && dead_after < TIME_TO_ANSWER {
        (
            "a peer that has nothing to send answers only after ten seconds: it would count as dead before",
            "set 12s or more, or set [peer] keepalive so that the peer is probed",
        )
    } else if config.watches() && dead_after < TIME_TO_ASK && protocol == Protocol::WireGuard {
        (
            "there is no time to probe a silent WireGuard peer",
            "set 15s or more, or let the peer's keepalive be shorter than ours and than this",
        )
    } else {
        return;
    };
    found.at("[peer]", "dead_after", Problem::warning(problem).help(help));
}

fn something_allowed(config: &Config, found: &mut Found<'_>) {
    // A bridge accepts all addresses.
    if config.peer.allowed_ips.is_empty() && config.interface.mode == Mode::Tun {
        let problem =
            Problem::error("no source address is accepted: no packet would pass the tunnel");
        let help = "set [interface] address, from which it follows, or allowed_ips itself";
        found.at("[peer]", "allowed_ips", problem.help(help));
    }
}

/// An endpoint with an address of the tunnel itself would be reached through the tunnel.
fn endpoints_outside(config: &Config, found: &mut Found<'_>) {
    for (index, address) in literal_endpoints(config) {
        if config.interface.addresses.iter().any(|net| net.contains(&address)) {
            let problem = Problem::error(format!("{address} is inside the tunnel"));
            let help = "give the peer's address on the network that carries the tunnel";
            found.at_item("[peer]", "endpoint", index, problem.help(help));
        }
    }
}

fn routes_once(config: &Config, found: &mut Found<'_>) {
    for (index, route) in config.routes.iter().enumerate() {
        if config.routes[..index].contains(route) {
            found.at_route(index, Problem::error(format!("{} is routed twice", route.to)));
        }
    }
}

fn routes_allowed(config: &Config, found: &mut Found<'_>) {
    for (index, route) in config.routes.iter().enumerate() {
        if !config.peer.allowed_ips.iter().any(|net| net.contains(&route.to)) {
            let problem = format!("answers from {} would be dropped", route.to);
            let help = "add it to [peer] allowed_ips";
            found.at_route(index, Problem::warning(problem).help(help));
        }
    }
}

/// The blackhole route gets the metric of the route it backs up, plus one.
fn blackhole_behind(config: &Config, found: &mut Found<'_>) {
    for (index, route) in config.routes.iter().enumerate() {
        if route.when_down == WhenDown::Blackhole && route.metric == Some(u32::MAX) {
            let problem = "`when_down = \"blackhole\"` needs a lower metric: its blackhole route gets the next one";
            found.at_route(index, Problem::error(problem).help("take a lower metric"));
        }
    }
}

/// A route must not lead the tunnel's own datagrams into the tunnel.
fn routes_without_loop(config: &Config, found: &mut Found<'_>) {
    let endpoints: Vec<_> = literal_endpoints(config).map(|(_, address)| address).collect();
    for (index, route) in config.routes.iter().enumerate() {
        let to = route.to;
        let default = to.prefix_len() == 0;
        // A default route covers any address that a name may resolve to.
        let anywhere = default.then(|| to.addr());
        if endpoints.iter().copied().chain(anywhere).any(|address| config.loops(route, address)) {
            let problem = format!("{to} also covers the way to the peer itself");
            let help = if default {
                "leave `table` out, and vpnd keeps the tunnel's own datagrams out of it"
            } else {
                "keep a more specific route to the endpoint, or give this one a table of its own"
            };
            found.at_route(index, Problem::warning(problem).help(help));
        }
    }
}

fn device_outside(config: &Config, found: &mut Found<'_>) {
    let device = &config.socket.bind_device;
    if device.is_some() && *device == config.interface.name {
        let problem = Problem::error("this is the tunnel's own device");
        found.at(
            "[socket]",
            "bind_device",
            problem.help("name the device that sends the tunnel's datagrams"),
        );
    }
}

/// At most one of each family, and an address at which answers arrive.
fn sources(config: &Config, found: &mut Found<'_>) {
    let sources = &config.socket.sources;
    for (index, source) in sources.iter().enumerate() {
        let mut say = |problem: String, help| {
            found.at_item("[socket]", "source", index, Problem::error(problem).help(help));
        };
        if sources[..index].iter().any(|other| other.is_ipv4() == source.is_ipv4()) {
            let family = if source.is_ipv4() { "IPv4" } else { "IPv6" };
            say(format!("a second {family} address"), "give at most one of each family");
        }
        if config.interface.addresses.iter().any(|net| net.addr() == *source) {
            let help = "give one on the network that carries it";
            say("this is our address inside the tunnel".to_owned(), help);
        }
        if let Some(listen) = elsewhere(config.interface.listen, *source) {
            let help = "let both be the same, or give `listen` only a port";
            say(
                format!("answers would come to {source}, and [interface] listen is {listen}"),
                help,
            );
        }
    }
}

/// Missing programs are only a warning, as they fail when they run; a program that others could change must not
/// be run.
fn hooks(config: &Config, found: &mut Found<'_>) {
    let from = config.file.parent().unwrap_or_else(|| Path::new("/"));
    let hooks = &config.hooks;
    for (key, commands) in [
        ("up", &hooks.up),
        ("established", &hooks.established),
        ("lost", &hooks.lost),
        ("down", &hooks.down),
    ] {
        for (index, words) in commands.iter().enumerate() {
            let Err(error) = look_at(&from_directory(&words[0], from)) else { continue };
            let problem = if error.is_dangerous() { Problem::error } else { Problem::warning };
            found.at_item("[hooks]", key, index, problem(error.to_string()));
        }
    }
}

/// Other programs that run as `nobody` could read the tunnel's state and take its place.
fn user_of_its_own(config: &Config, found: &mut Found<'_>) {
    const NOBODY: u32 = 65534;
    if config.service.user.as_ref().is_some_and(|user| user.uid == NOBODY) {
        let problem = Problem::warning("other programs run as this user too");
        let help = "leave the line out, and vpnd has a user of its own";
        found.at("[service]", "user", problem.help(help));
    }
}

/// Files that root makes, gives away or enters must not be replaceable by others. Without root's privileges
/// nothing is at stake.
fn paths_of_root(config: &Config, found: &mut Found<'_>) {
    if !Uid::effective().is_root() {
        return;
    }
    let Config { interface, socket, service, .. } = config;
    // The control socket is given to its user by descriptor, so its directory may belong to that user.
    let users: Vec<u32> = service.user.iter().map(|user| user.uid).collect();
    let netns =
        |name: &Option<String>| name.as_deref().map(|name| future_place(&netns::path(name)));
    let files = [
        (("[service]", "state_dir"), Some(future_place(&service.state_dir))),
        (("[interface]", "netns"), netns(&interface.netns)),
        (("[socket]", "netns"), netns(&socket.netns)),
    ];
    let sockets = config.socket_directories().into_iter();
    let sockets = sockets.map(|(key, directory)| (key, Some(future_directory(directory, &users))));
    for ((table, key), result) in files.into_iter().chain(sockets) {
        // A path that does not exist is reported where it is used.
        if let Some(Err(why @ (Untrusted::Owner { .. } | Untrusted::Writable { .. }))) = result {
            let problem = Problem::error(format!("others could replace what is there: {why}"));
            let help = "all directories on this path must belong to root and be writable by nobody else: \
                        name another place, or `chown root` that directory";
            found.at(table, key, problem.help(help));
        }
    }
}

/// The settings of `[dns]` affect only the resolver of vpnd's own namespace.
fn names(config: &Config, found: &mut Found<'_>) {
    for (key, said) in
        [("servers", !config.dns.servers.is_empty()), ("domains", !config.dns.domains.is_empty())]
    {
        if said && config.interface.netns.is_some() {
            let problem =
                "has no effect: the device is in another network namespace than systemd-resolved";
            let help =
                "write the servers to /etc/netns/NAME/resolv.conf, which `ip netns exec` uses";
            found.at("[dns]", key, Problem::warning(problem).help(help));
        }
    }
}

/// The address that `listen` is bound to, if it differs from `source`.
fn elsewhere(listen: Listen, source: IpAddr) -> Option<IpAddr> {
    let Listen::Address(at) = listen else { return None };
    Some(at.ip()).filter(|ip| !ip.is_unspecified() && *ip != source)
}

fn literal_endpoints(config: &Config) -> impl Iterator<Item = (usize, IpAddr)> {
    let endpoints = config.peer.endpoints.iter().enumerate();
    endpoints.filter_map(|(index, endpoint)| Some((index, endpoint.host.parse().ok()?)))
}
