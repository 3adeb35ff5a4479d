//! Which keys may change while a tunnel runs, and which require a restart.

use thiserror::Error;
use vpnd_tun::Mode;

use super::hooks::{Dns, Hooks};
use super::metrics::Metrics;
use super::model::{Config, Interface, Path, Peer, Service, Socket};

/// Differences that cannot be applied while the tunnel runs.
#[derive(Debug, PartialEq, Eq, Error)]
pub(crate) enum NeedsRestart {
    /// These keys.
    #[error(
        "{} {}: only mtu, mss_clamp, allowed_ips, allowed_macs, protocol, cipher, post_quantum, \
         also_accept and the keys can be reloaded; restart for the rest",
        quoted(.0),
        if .0.len() == 1 { "differs" } else { "differ" }
    )]
    Keys(Vec<&'static str>),
    /// The MTU is that of the bridge or the device, which vpnd reads only at the start.
    #[error(
        "`[interface] mtu` was removed: a reload can change it, but the MTU of the bridge or the \
         device is read only at the start; write the MTU, or restart"
    )]
    Mtu,
}

impl Config {
    /// Whether a tunnel that runs with this configuration can change to `wanted`. The following may change: the
    /// terms of the sessions, the MTU, the filters, and the keys. Key files are compared by their contents, not
    /// by their paths.
    ///
    /// # Errors
    ///
    /// The keys that cannot change.
    pub(crate) fn can_become(&self, wanted: &Self) -> Result<(), NeedsRestart> {
        let named = compared(self, wanted).into_iter();
        let differing: Vec<_> = named.filter(|(_, differs)| *differs).map(|(key, _)| key).collect();
        if !differing.is_empty() {
            return Err(NeedsRestart::Keys(differing));
        }
        let is_followed = wanted.interface.mode == Mode::Tun;
        let left_out =
            self.interface.mtu.is_some() && wanted.interface.mtu.is_none() && !is_followed;
        if left_out { Err(NeedsRestart::Mtu) } else { Ok(()) }
    }
}

fn quoted(keys: &[&str]) -> String {
    keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ")
}

/// Each key that requires a restart, and whether it differs. The compiler rejects a new field that is missing
/// here.
pub(super) fn compared(now: &Config, then: &Config) -> Vec<(&'static str, bool)> {
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
    let mut keys = in_interface(interface, &then.interface).to_vec();
    keys.extend(in_peer(peer, &then.peer));
    keys.push(("[[route]]", *routes != then.routes));
    keys.extend(in_path(path, &then.path));
    keys.extend(in_socket(socket, &then.socket));
    keys.extend(in_dns(dns, &then.dns));
    keys.extend(in_hooks(hooks, &then.hooks));
    let Metrics { listen } = metrics;
    keys.push(("[metrics] listen", *listen != then.metrics.listen));
    keys.extend(in_service(service, &then.service));
    keys
}

fn in_interface(now: &Interface, then: &Interface) -> [(&'static str, bool); 18] {
    let Interface {
        name,
        mode,
        addresses,
        peer_addresses,
        listen,
        mtu: _,
        txqueuelen,
        queues,
        persist,
        adopt,
        owner,
        group,
        mac,
        bridge,
        stp_cost,
        vrf,
        multicast,
        carrier,
        netns,
        private_key_file: _,
        next_private_key_file: _,
    } = now;
    [
        ("[interface] name", *name != then.name),
        ("[interface] mode", *mode != then.mode),
        ("[interface] address", *addresses != then.addresses),
        ("[interface] peer_address", *peer_addresses != then.peer_addresses),
        ("[interface] listen", *listen != then.listen),
        ("[interface] txqueuelen", *txqueuelen != then.txqueuelen),
        ("[interface] queues", *queues != then.queues),
        ("[interface] persist", *persist != then.persist),
        ("[interface] adopt", *adopt != then.adopt),
        ("[interface] owner", *owner != then.owner),
        ("[interface] group", *group != then.group),
        ("[interface] mac", *mac != then.mac),
        ("[interface] bridge", *bridge != then.bridge),
        ("[interface] stp_cost", *stp_cost != then.stp_cost),
        ("[interface] vrf", *vrf != then.vrf),
        ("[interface] multicast", *multicast != then.multicast),
        ("[interface] carrier", *carrier != then.carrier),
        ("[interface] netns", *netns != then.netns),
    ]
}

fn in_peer(now: &Peer, then: &Peer) -> [(&'static str, bool); 8] {
    let Peer {
        public_key,
        endpoints,
        allowed_ips: _,
        allowed_macs: _,
        guard,
        keepalive,
        dead_after,
        roam,
        return_after,
        resolve_every,
        next_public_key,
        protocol: _,
        cipher: _,
        post_quantum: _,
        also_accept: _,
        preshared_key_file: _,
        next_preshared_key_file: _,
    } = now;
    // A change to the configured next key is not a difference.
    let next = *next_public_key == Some(then.public_key);
    [
        ("[peer] public_key", *public_key != then.public_key && !next),
        ("[peer] endpoint", *endpoints != then.endpoints),
        ("[peer] guard", *guard != then.guard),
        ("[peer] keepalive", *keepalive != then.keepalive),
        ("[peer] dead_after", *dead_after != then.dead_after),
        ("[peer] roam", *roam != then.roam),
        ("[peer] return_after", *return_after != then.return_after),
        ("[peer] resolve_every", *resolve_every != then.resolve_every),
    ]
}

fn in_path(now: &Path, then: &Path) -> [(&'static str, bool); 5] {
    let Path { mss_clamp: _, mtu_max, raise_every, icmp, gso, offload } = now;
    [
        ("[path] mtu_max", *mtu_max != then.mtu_max),
        ("[path] raise_every", *raise_every != then.raise_every),
        ("[path] icmp", *icmp != then.icmp),
        ("[path] gso", *gso != then.gso),
        ("[path] offload", *offload != then.offload),
    ]
}

fn in_socket(now: &Socket, then: &Socket) -> [(&'static str, bool); 7] {
    let Socket { fwmark, bind_device, sources, dscp, rcvbuf, sndbuf, netns } = now;
    [
        ("[socket] fwmark", *fwmark != then.fwmark),
        ("[socket] bind_device", *bind_device != then.bind_device),
        ("[socket] source", *sources != then.sources),
        ("[socket] dscp", *dscp != then.dscp),
        ("[socket] rcvbuf", *rcvbuf != then.rcvbuf),
        ("[socket] sndbuf", *sndbuf != then.sndbuf),
        ("[socket] netns", *netns != then.netns),
    ]
}

fn in_dns(now: &Dns, then: &Dns) -> [(&'static str, bool); 2] {
    let Dns { servers, domains } = now;
    [("[dns] servers", *servers != then.servers), ("[dns] domains", *domains != then.domains)]
}

fn in_hooks(now: &Hooks, then: &Hooks) -> [(&'static str, bool); 5] {
    let Hooks { up, established, lost, down, timeout } = now;
    [
        ("[hooks] up", *up != then.up),
        ("[hooks] established", *established != then.established),
        ("[hooks] lost", *lost != then.lost),
        ("[hooks] down", *down != then.down),
        ("[hooks] timeout", *timeout != then.timeout),
    ]
}

fn in_service(now: &Service, then: &Service) -> [(&'static str, bool); 10] {
    let Service {
        state_dir,
        control,
        uapi,
        allow_key_log,
        user,
        nice,
        firewall,
        sandbox,
        log_level,
        log_format,
    } = now;
    [
        ("[service] state_dir", *state_dir != then.state_dir),
        ("[service] control", *control != then.control),
        ("[service] uapi", *uapi != then.uapi),
        ("[service] allow_key_log", *allow_key_log != then.allow_key_log),
        ("[service] user", *user != then.user),
        ("[service] nice", *nice != then.nice),
        ("[service] firewall", *firewall != then.firewall),
        ("[service] sandbox", *sandbox != then.sandbox),
        ("[service] log_level", *log_level != then.log_level),
        ("[service] log_format", *log_format != then.log_format),
    ]
}
