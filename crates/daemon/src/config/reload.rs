//! The difference of two configurations, key by key, and which keys may change while a tunnel runs.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vpnd_tun::Mode;

use super::hooks::{Dns, Hooks};
use super::metrics::{Metrics, MetricsListen};
use super::model::{Config, Interface, Path, Peer, Service, Socket};

/// How a changed key takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Takes {
    /// While the tunnel runs, and no packet is lost.
    Live,
    /// At the next start.
    Restart,
}

impl fmt::Display for Takes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Live => "live",
            Self::Restart => "restart",
        })
    }
}

/// A key whose values differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Difference {
    /// The table and the key, such as `[peer] keepalive`.
    pub(crate) key: String,
    pub(crate) takes: Takes,
    /// The values, as JSON shows them; of a file with a key, a text that is no secret.
    pub(crate) was: String,
    pub(crate) becomes: String,
}

/// What is known of a running tunnel, but not written in its configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Running {
    /// The device existed before the tunnel was started.
    pub(crate) adopted: bool,
    /// There is a process that runs programs for the tunnel.
    pub(crate) has_runner: bool,
}

/// The classes of keys.
#[derive(Clone, Copy)]
enum Class {
    /// Always live.
    Live,
    /// Never live.
    Restart,
    /// Live, unless this holds for the two configurations.
    Unless(fn(&Config, &Config, Running) -> bool),
    /// A file whose contents count, and not its path. It is live.
    Contents,
}

use Class::{Contents, Live, Restart, Unless};

/// A key of the file, its class, and whether its values differ.
struct Compared {
    table: &'static str,
    key: &'static str,
    class: Class,
    differs: bool,
}

/// Compares every key of one table. The compiler rejects a new field that is missing here.
macro_rules! compare {
    ($now:expr, $then:expr, $table:literal, $type:ident { $($field:ident: $key:literal $class:expr,)* }) => {{
        let $type { $($field),* } = $now;
        vec![$(Compared {
            table: $table,
            key: $key,
            class: $class,
            differs: *$field != $then.$field,
        }),*]
    }};
}

impl Config {
    /// Every key that differs from `wanted`. Those of files with keys are `of_keys`, because this does not read the files.
    pub(crate) fn differences(
        &self,
        wanted: &Self,
        running: Running,
        of_keys: &[Difference],
    ) -> Vec<Difference> {
        let [now, then] =
            [self, wanted].map(|config| serde_json::to_value(config).unwrap_or_default());
        let difference = |one: Compared| {
            let [was, becomes] = [&now, &then].map(|config| shown(config, &one));
            let takes = one.class.takes(self, wanted, running);
            Difference { key: one.name(), takes, was, becomes }
        };
        let all = compared(self, wanted).into_iter();
        let differing = all.filter_map(|one| match one.class {
            Contents => of_keys.iter().find(|known| known.key == one.name()).cloned(),
            _ => one.differs.then(|| difference(one)),
        });
        differing.collect()
    }
}

impl Class {
    fn takes(self, now: &Config, then: &Config, running: Running) -> Takes {
        match self {
            Live | Contents => Takes::Live,
            Restart => Takes::Restart,
            Unless(holds) if holds(now, then, running) => Takes::Restart,
            Unless(_) => Takes::Live,
        }
    }
}

impl Compared {
    fn name(&self) -> String {
        if self.key.is_empty() {
            self.table.to_owned()
        } else {
            format!("{} {}", self.table, self.key)
        }
    }
}

/// The value of a key as text.
fn shown(config: &Value, Compared { table, key, .. }: &Compared) -> String {
    let table = &config[table.trim_matches(['[', ']'])];
    let value = if key.is_empty() { table } else { &table[key] };
    match value {
        Value::Null => "none".to_owned(),
        Value::Array(all) if all.is_empty() => "none".to_owned(),
        Value::Array(all) if all.iter().all(Value::is_object) => {
            all.iter().map(one_line).collect::<Vec<_>>().join(", ")
        }
        value => value.to_string(),
    }
}

/// A route in one line: its network, and what else is set.
fn one_line(route: &Value) -> String {
    let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let all = ["to", "metric", "table", "when_down"].map(|key| (key, &route[key]));
    let set = all.iter().filter(|(_, value)| !value.is_null());
    set.map(|(key, value)| format!("{key} {}", plain(value))).collect::<Vec<_>>().join(" ")
}

/// All keys in the order of the documentation.
fn compared(now: &Config, then: &Config) -> Vec<Compared> {
    let Config {
        name: _,
        file: _,
        interface,
        peer,
        routes,
        path,
        socket,
        dns,
        hooks,
        metrics,
        service,
    } = now;
    let mut keys = in_interface(interface, &then.interface);
    keys.extend(in_peer(peer, &then.peer));
    let differs = *routes != then.routes;
    keys.push(Compared { table: "[[route]]", key: "", class: Unless(moves_names), differs });
    keys.extend(in_path(path, &then.path));
    keys.extend(in_socket(socket, &then.socket));
    keys.extend(in_dns(dns, &then.dns));
    keys.extend(in_hooks(hooks, &then.hooks));
    keys.extend(in_metrics(metrics, &then.metrics));
    keys.extend(in_service(service, &then.service));
    keys
}

fn in_interface(now: &Interface, then: &Interface) -> Vec<Compared> {
    compare!(now, then, "[interface]", Interface {
        name: "name" Restart,
        mode: "mode" Restart,
        bridge: "bridge" Unless(|now, then, _| now.interface.mode != then.interface.mode),
        stp_cost: "stp_cost" Live,
        mac: "mac" Restart,
        vrf: "vrf" Restart,
        addresses: "address" Unless(renumbers),
        peer_addresses: "peer_address" Unless(renumbers),
        private_key_file: "private_key_file" Contents,
        next_private_key_file: "next_private_key_file" Contents,
        listen: "listen" Restart,
        mtu: "mtu" Unless(forgets_mtu),
        txqueuelen: "txqueuelen" Live,
        queues: "queues" Restart,
        persist: "persist" Restart,
        adopt: "adopt" Restart,
        owner: "owner" Restart,
        group: "group" Restart,
        multicast: "multicast" Live,
        carrier: "carrier" Live,
        netns: "netns" Restart,
    })
}

fn in_peer(now: &Peer, then: &Peer) -> Vec<Compared> {
    compare!(now, then, "[peer]", Peer {
        protocol: "protocol" Live,
        cipher: "cipher" Live,
        post_quantum: "post_quantum" Live,
        also_accept: "also_accept" Live,
        public_key: "public_key" Unless(is_another_peer),
        next_public_key: "next_public_key" Live,
        preshared_key_file: "preshared_key_file" Contents,
        next_preshared_key_file: "next_preshared_key_file" Contents,
        endpoints: "endpoint" Live,
        allowed_ips: "allowed_ips" Live,
        allowed_macs: "allowed_macs" Live,
        guard: "guard" Live,
        keepalive: "keepalive" Live,
        dead_after: "dead_after" Live,
        roam: "roam" Live,
        return_after: "return_after" Live,
        resolve_every: "resolve_every" Live,
    })
}

fn in_path(now: &Path, then: &Path) -> Vec<Compared> {
    compare!(now, then, "[path]", Path {
        mss_clamp: "mss_clamp" Live,
        mtu_max: "mtu_max" Live,
        raise_every: "raise_every" Live,
        icmp: "icmp" Live,
        gso: "gso" Live,
        offload: "offload" Restart,
    })
}

fn in_socket(now: &Socket, then: &Socket) -> Vec<Compared> {
    compare!(now, then, "[socket]", Socket {
        fwmark: "fwmark" Unless(filters_by_mark),
        bind_device: "bind_device" Unless(loses_port),
        sources: "source" Live,
        dscp: "dscp" Live,
        rcvbuf: "rcvbuf" Live,
        sndbuf: "sndbuf" Live,
        netns: "netns" Restart,
    })
}

fn in_dns(now: &Dns, then: &Dns) -> Vec<Compared> {
    compare!(now, then, "[dns]", Dns {
        servers: "servers" Restart,
        domains: "domains" Restart,
    })
}

fn in_hooks(now: &Hooks, then: &Hooks) -> Vec<Compared> {
    compare!(now, then, "[hooks]", Hooks {
        up: "up" Restart,
        established: "established" Restart,
        lost: "lost" Restart,
        down: "down" Restart,
        timeout: "timeout" Restart,
    })
}

fn in_metrics(now: &Metrics, then: &Metrics) -> Vec<Compared> {
    compare!(now, then, "[metrics]", Metrics { listen: "listen" Unless(cannot_be_bound), })
}

fn in_service(now: &Service, then: &Service) -> Vec<Compared> {
    compare!(now, then, "[service]", Service {
        state_dir: "state_dir" Restart,
        control: "control" Restart,
        uapi: "uapi" Restart,
        allow_key_log: "allow_key_log" Restart,
        user: "user" Restart,
        nice: "nice" Restart,
        firewall: "firewall" Restart,
        sandbox: "sandbox" Restart,
        log_level: "log_level" Live,
        log_format: "log_format" Live,
    })
}

/// Whether an address that stays would be unusable for a moment. The kernel ties the IPv4 addresses of one network to the
/// first of them, and to give an address another prefix or far end, it has to be removed.
fn renumbers(now: &Config, then: &Config, _: Running) -> bool {
    let [now, then] = [now, then].map(|config| addresses(&config.interface));
    let firsts = |all: &[(IpNet, Option<IpAddr>)]| {
        let mut firsts: Vec<IpNet> = Vec::new();
        for (address, _) in all.iter().filter(|(address, _)| address.addr().is_ipv4()) {
            if !firsts.iter().any(|first| first.trunc() == address.trunc()) {
                firsts.push(*address);
            }
        }
        firsts
    };
    let (old, new) = (firsts(&now), firsts(&then));
    let is_moved =
        |first: &IpNet| new.iter().any(|other| other.trunc() == first.trunc() && other != first);
    let is_altered = |(address, far): &(IpNet, Option<IpAddr>)| {
        let same = |(other, _): &&(IpNet, Option<IpAddr>)| other.addr() == address.addr();
        then.iter().find(same).is_some_and(|other| other != &(*address, *far))
    };
    old.iter().any(is_moved) || now.iter().any(is_altered)
}

/// Our addresses with their far ends, which are given in the order of the addresses of their family.
fn addresses(interface: &Interface) -> Vec<(IpNet, Option<IpAddr>)> {
    let mut left = interface.peer_addresses.clone();
    let pair = |address: &IpNet| {
        let same = left.iter().position(|peer| peer.is_ipv4() == address.addr().is_ipv4());
        (*address, same.map(|at| left.remove(at)))
    };
    interface.addresses.iter().map(pair).collect()
}

/// Whether the MTU would be one that the device had before the tunnel was started.
fn forgets_mtu(_: &Config, then: &Config, running: Running) -> bool {
    let Interface { mode, mtu, bridge, .. } = &then.interface;
    *mode == Mode::Tap && mtu.is_none() && bridge.is_none() && running.adopted
}

/// Whether the routes decide which names are resolved through the tunnel, and decide otherwise now. The name servers of
/// `[dns]` are set by a process that takes no other commands from the daemon than those of the start.
fn moves_names(now: &Config, then: &Config, running: Running) -> bool {
    let has_names = !now.dns.servers.is_empty() || !now.dns.domains.is_empty();
    running.has_runner && has_names && now.routes_everything() != then.routes_everything()
}

/// Whether the peer is another one. The configured next key is that of the same peer.
fn is_another_peer(now: &Config, then: &Config, _: Running) -> bool {
    now.peer.next_public_key != Some(then.peer.public_key)
}

/// Whether a packet filter of vpnd lets only datagrams with the mark pass: it and the socket cannot change at one instant.
fn filters_by_mark(now: &Config, then: &Config, _: Running) -> bool {
    [now, then].iter().any(|config| config.service.firewall && config.has_kill_switch())
}

/// Whether the socket has to leave an interface, and the kernel chose its port: it would be lost.
fn loses_port(now: &Config, _: &Config, _: Running) -> bool {
    now.socket.bind_device.is_some() && !now.interface.listen.is_fixed()
}

/// Whether a socket would have to be made in a directory, which the running daemon must not, or at a port that the former
/// socket has.
fn cannot_be_bound(now: &Config, then: &Config, _: Running) -> bool {
    match (&now.metrics.listen, &then.metrics.listen) {
        (_, Some(MetricsListen::Path(_))) => true,
        (Some(MetricsListen::Address(now)), Some(MetricsListen::Address(then))) => {
            now.port() == then.port()
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
