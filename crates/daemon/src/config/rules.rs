//! What must hold between keys that are each good by themselves.

use std::net::IpAddr;
use std::ops::Range;

use ipnet::IpNet;
use toml::Spanned;
use toml::de::DeTable;
use vpnd_tunnel::udp::Listen;

use super::problem::Problem;
use super::section::subject;
use super::tables::MAIN_TABLE;
use super::{Config, Interface, Roam, Route};
use crate::keys::Keys;

/// The smallest MTU IPv6 runs on (RFC 8200 §5).
const MIN_MTU_V6: u16 = 1280;

/// Everything wrong with how the keys go together.
pub(super) fn check(config: &Config, keys: &Keys, places: Places<'_>) -> Vec<Problem> {
    let mut found = Found { places, problems: vec![] };
    own_key(config, keys, &mut found);
    someone_begins(config, &mut found);
    peer_addresses(config, &mut found);
    mtu(config, &mut found);
    something_allowed(config, &mut found);
    endpoints_outside(config, &mut found);
    routes_once(config, &mut found);
    routes_allowed(config, &mut found);
    routes_without_loop(config, &mut found);
    found.problems
}

/// Whose packets are let in when the file does not say: the networks our addresses are in, the
/// peer's addresses, and what is routed to it. Nothing else has a reason to come from there.
pub(super) fn default_allowed_ips(interface: &Interface, routes: &[Route]) -> Vec<IpNet> {
    let networks = interface.addresses.iter().filter(|net| net.prefix_len() < net.max_prefix_len());
    let peers = interface.peer_addresses.iter().map(|address| IpNet::from(*address));
    let routed = routes.iter().map(|route| route.to);
    let mut nets: Vec<_> = networks.map(IpNet::trunc).chain(peers).chain(routed).collect();
    nets.sort();
    nets.dedup();
    nets
}

/// Where values stand in the file.
pub(super) struct Places<'t>(&'t DeTable<'t>);

impl<'t> Places<'t> {
    /// Of `file`.
    pub(super) fn new(file: &'t DeTable<'t>) -> Self {
        Self(file)
    }

    /// The value of `key`; the whole table where it has no such key.
    fn of(&self, table: &str, key: &str) -> Option<Range<usize>> {
        let table = self.0.get(table.trim_matches(['[', ']']))?;
        Some(table.get_ref().get(key).unwrap_or(table).span())
    }

    /// The `index`th element of a list, or a value that is one alone.
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

fn own_key(config: &Config, keys: &Keys, found: &mut Found<'_>) {
    if config.peer.public_key == keys.secret.public() {
        let problem = Problem::error("this is our own key, the public half of private_key_file");
        found.at("[peer]", "public_key", problem.help("put the peer's public key here"));
    }
}

fn someone_begins(config: &Config, found: &mut Found<'_>) {
    if !config.peer.endpoints.is_empty() {
        return;
    }
    if config.interface.listen == Listen::Port(0) {
        let problem = Problem::error("missing, and no [interface] listen: nobody could begin");
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
    if config.interface.mtu < MIN_MTU_V6 && nets.any(|net| net.addr().is_ipv6()) {
        let problem = format!("IPv6 inside the tunnel needs an MTU of {MIN_MTU_V6} at the least");
        found.at("[interface]", "mtu", Problem::error(problem));
    }
}

fn something_allowed(config: &Config, found: &mut Found<'_>) {
    if config.peer.allowed_ips.is_empty() {
        let problem = Problem::error("no address is let in: nothing would pass the tunnel");
        let help = "set [interface] address, from which it follows, or allowed_ips itself";
        found.at("[peer]", "allowed_ips", problem.help(help));
    }
}

/// An endpoint that is an address of the tunnel itself would be reached through the tunnel.
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
            let problem = format!("answers from {} are not let in", route.to);
            let help = "add it to [peer] allowed_ips";
            found.at_route(index, Problem::warning(problem).help(help));
        }
    }
}

/// A route that also leads the tunnel's own datagrams into the tunnel.
fn routes_without_loop(config: &Config, found: &mut Found<'_>) {
    let endpoints: Vec<_> = literal_endpoints(config).map(|(_, address)| address).collect();
    for (index, route) in config.routes.iter().enumerate() {
        let to = route.to;
        let caught = to.prefix_len() == 0 || endpoints.iter().any(|address| to.contains(address));
        if caught && route.table == MAIN_TABLE {
            let problem = format!("{to} also covers the way to the peer itself");
            let help = "keep a more specific route to the endpoint, or give this one a table of \
                        its own";
            found.at_route(index, Problem::warning(problem).help(help));
        }
    }
}

fn literal_endpoints(config: &Config) -> impl Iterator<Item = (usize, IpAddr)> {
    let endpoints = config.peer.endpoints.iter().enumerate();
    endpoints.filter_map(|(index, endpoint)| Some((index, endpoint.host.parse().ok()?)))
}
