//! The keys of `.netdev` and `.network`.

use super::{Networkd, elsewhere};
use crate::line::Line;
use crate::table::{
    ANY, CHANGED, CHANGED_OR_DROPPED, DROPPED, Row, TAKEN, TAKEN_OR_CHANGED, TAKEN_OR_DROPPED,
    Verdict, always, reads,
};
use crate::value;
use crate::wireguard::{self as wg, Routing};

const W: &str = "WireGuard";
const P: &str = "WireGuardPeer";
const N: &str = "Network";
const A: &str = "Address";
const R: &str = "Route";
const DHCP: &str = "no DHCP inside the tunnel: give [interface] address";
const RULE: &str =
    "vpnd makes rules only for a default route: `ip rule add` in [hooks] up, `ip rule del` in down";
const FORWARD: &str =
    "a setting of the host: net.ipv4.ip_forward and net.ipv6.conf.all.forwarding in /etc/sysctl.d";
const LINK: &str = "vpnd configures its device alone: keep the line in a .network for the device, with Unmanaged=no, if you need it";

/// The keys. `RouteTable` precedes `AllowedIPs`.
pub(crate) static ROWS: &[Row<Networkd>] = &[
    reads("NetDev", &["Name"], TAKEN, "`[interface] name`, and the tunnel's name", name),
    reads("NetDev", &["Kind"], TAKEN_OR_DROPPED, "`wireguard` only", kind),
    always(
        "NetDev",
        &["Description"],
        DROPPED,
        "text for people: a comment in the configuration, if you want it",
    ),
    reads("NetDev", &["MTUBytes"], TAKEN_OR_DROPPED, "`[interface] mtu`", mtu),
    always("NetDev", &["MACAddress"], DROPPED, "a WireGuard device has none"),
    reads(W, &["PrivateKey"], TAKEN, "`NAME.key`, mode 0600", private_key),
    reads(
        W,
        &["PrivateKeyFile"],
        CHANGED_OR_DROPPED,
        "copied to `NAME.key`; a credential (`@NAME`) is given by `--private-key`",
        private_key_file,
    ),
    reads(W, &["ListenPort"], TAKEN, "`[interface] listen`; `auto`: any free port", listen_port),
    reads(W, &["FirewallMark"], TAKEN, "`[socket] fwmark`", fwmark),
    reads(
        W,
        &["RouteTable"],
        ANY,
        "routes to the allowed IPs, in this table; `off`: none",
        route_table,
    ),
    reads(W, &["RouteMetric"], TAKEN, "`[[route]] metric` of the allowed IPs", route_metric),
    reads(P, &["RouteTable"], ANY, "as in `[WireGuard]`, for this peer", route_table),
    reads(P, &["RouteMetric"], TAKEN, "as in `[WireGuard]`, for this peer", route_metric),
    reads(
        P,
        &["PublicKey"],
        TAKEN_OR_DROPPED,
        "`[peer] public_key`; of several peers, the one in `--peer`",
        public_key,
    ),
    reads(P, &["PresharedKey"], TAKEN, "`NAME.psk`, mode 0600", preshared_key),
    reads(
        P,
        &["PresharedKeyFile"],
        CHANGED_OR_DROPPED,
        "copied to `NAME.psk`; a credential (`@NAME`) is given by `--preshared-key`",
        preshared_key_file,
    ),
    reads(
        P,
        &["AllowedIPs"],
        TAKEN_OR_CHANGED,
        "`[peer] allowed_ips`; routes only with `RouteTable`",
        allowed_ips,
    ),
    reads(P, &["Endpoint"], TAKEN_OR_CHANGED, "`[peer] endpoint`", endpoint),
    reads(P, &["PersistentKeepalive"], TAKEN, "`[peer] keepalive`", keepalive),
    reads(
        "Match",
        &["Name"],
        TAKEN_OR_CHANGED,
        "the device, if the `.netdev` does not name it",
        match_name,
    ),
    always(
        "Match",
        &["*"],
        DROPPED,
        "a condition for this file: vpnd has none, start the tunnel only on the hosts that need it",
    ),
    reads("Link", &["MTUBytes"], TAKEN_OR_DROPPED, "`[interface] mtu`", mtu),
    reads("Link", &["Multicast"], TAKEN, "`[interface] multicast`", multicast),
    always(
        "Link",
        &["RequiredForOnline"],
        CHANGED,
        "`vpnd@NAME.service` is ready when the device is configured; order services after it, or use `vpnd wait`",
    ),
    always(
        "Link",
        &["ActivationPolicy"],
        CHANGED,
        "`systemctl enable vpnd@NAME` starts the tunnel at boot",
    ),
    always("Link", &["*"], DROPPED, LINK),
    reads(N, &["Address"], TAKEN_OR_CHANGED, "`[interface] address`", addresses),
    reads(
        N,
        &["DNS"],
        TAKEN_OR_CHANGED,
        "`[dns] servers`, without port, device and server name",
        dns,
    ),
    reads(N, &["Domains"], TAKEN_OR_CHANGED, "`[dns] domains`", domains),
    reads(
        N,
        &["DNSDefaultRoute"],
        CHANGED,
        "`[dns] domains`: `true` becomes `~.`; `false` holds if there are domains",
        dns_default_route,
    ),
    reads(
        N,
        &["Gateway"],
        CHANGED,
        "a default route into the tunnel, in a table of its own",
        gateway,
    ),
    reads(N, &["VRF"], TAKEN, "`[interface] vrf`", vrf),
    always(
        N,
        &["Description"],
        DROPPED,
        "text for people: a comment in the configuration, if you want it",
    ),
    always(
        N,
        &["BindCarrier"],
        DROPPED,
        "[interface] carrier follows the peer, not another link: `[hooks]` of your own, or a unit",
    ),
    always(
        N,
        &["ConfigureWithoutCarrier"],
        CHANGED,
        "vpnd configures its device at the start, with or without the peer",
    ),
    always(N, &["IgnoreCarrierLoss"], CHANGED, "addresses and routes stay while the peer is away"),
    always(
        N,
        &["KeepConfiguration"],
        CHANGED,
        "[interface] persist = true keeps the device, its addresses and routes",
    ),
    always(N, &["DHCP"], DROPPED, DHCP),
    always(N, &["DHCPServer"], DROPPED, "no DHCP inside the tunnel: run a server of your own"),
    always(N, &["IPForward", "IPv4Forwarding", "IPv6Forwarding"], DROPPED, FORWARD),
    always(
        N,
        &["IPMasquerade"],
        DROPPED,
        "vpnd translates no addresses: a masquerade rule in [hooks] up (docs/hooks.md has it)",
    ),
    always(
        N,
        &["IPv6AcceptRA"],
        CHANGED,
        "[peer] guard drops router advertisements from the peer; `guard = []` accepts them",
    ),
    always(
        N,
        &["IPv6SendRA"],
        DROPPED,
        "no router advertisements into the tunnel: radvd, if you need them",
    ),
    always(
        N,
        &["LinkLocalAddressing"],
        CHANGED,
        "the device gets no link-local address; one can be given in [interface] address",
    ),
    always(N, &["*"], DROPPED, LINK),
    reads(A, &["Address"], TAKEN, "`[interface] address`", address_address),
    reads(
        A,
        &["Peer"],
        TAKEN,
        "`[interface] peer_address`; a network there becomes a route",
        address_peer,
    ),
    always(A, &["Scope"], DROPPED, "addresses of vpnd are global"),
    always(A, &["Label"], DROPPED, "addresses of vpnd have no label"),
    always(
        A,
        &["AddPrefixRoute"],
        DROPPED,
        "the kernel adds the route to the address's network: write a shorter prefix, such as /32, to have none",
    ),
    always(A, &["*"], DROPPED, "vpnd adds the address with the kernel's defaults"),
    reads(
        R,
        &["Type"],
        TAKEN_OR_DROPPED,
        "`unicast`; others do not lead into the tunnel",
        route_type,
    ),
    reads(
        R,
        &["Destination"],
        ANY,
        "`[[route]] to`; dropped with a `Type` that leads elsewhere",
        destination,
    ),
    reads(
        R,
        &["Gateway"],
        CHANGED,
        "everything in the tunnel goes to the peer; without `Destination` a default route",
        route_gateway,
    ),
    reads(R, &["Metric"], TAKEN, "`[[route]] metric`", metric),
    reads(R, &["Table"], TAKEN_OR_CHANGED, "`[[route]] table`", table),
    always(R, &["GatewayOnLink"], CHANGED, "everything in the tunnel goes to the peer"),
    always(R, &["Scope"], CHANGED, "the kernel's default"),
    always(R, &["Protocol"], CHANGED, "vpnd's routes have `proto 118`"),
    always(
        R,
        &["PreferredSource"],
        DROPPED,
        "the kernel chooses the source address: an address of the device comes first",
    ),
    always(R, &["MTUBytes"], DROPPED, "a route of vpnd has the device's MTU: set [interface] mtu"),
    always(
        R,
        &["*"],
        DROPPED,
        "vpnd adds the route with the kernel's defaults: `ip route change` in [hooks] up",
    ),
    always("RoutingPolicyRule", &["*"], DROPPED, RULE),
    always("DHCPv4", &["*"], DROPPED, DHCP),
    always("DHCPv6", &["*"], DROPPED, DHCP),
    always(
        "IPv6AcceptRA",
        &["*"],
        DROPPED,
        "[peer] guard drops router advertisements from the peer",
    ),
    always("DHCPServer", &["*"], DROPPED, "no DHCP inside the tunnel: run a server of your own"),
];

/// Lets the reader of all WireGuard formats read a line.
macro_rules! shared {
    ($($name:ident),*) => { $(
        fn $name(read: &mut Networkd, line: &Line) -> Verdict {
            wg::$name(&mut read.draft, line)
        }
    )* };
}
shared!(
    private_key,
    private_key_file,
    listen_port,
    fwmark,
    preshared_key,
    preshared_key_file,
    endpoint,
    keepalive,
    mtu,
    addresses,
    allowed_ips,
    public_key
);

fn name(read: &mut Networkd, line: &Line) -> Verdict {
    if !value::is_device(&line.value) {
        return Verdict::invalid("the name of a device");
    }
    read.draft.tunnel.device = Some(line.value.to_string());
    Verdict::taken(format!("[interface] name = \"{}\"", line.value.as_str()))
}

fn kind(read: &mut Networkd, line: &Line) -> Verdict {
    read.kind = Some(line.value.to_string());
    if line.value.as_str() == "wireguard" {
        return Verdict::taken("[peer] protocol = \"wireguard\"");
    }
    Verdict::dropped("only Kind=wireguard is a tunnel that vpnd can take over")
}

fn match_name(read: &mut Networkd, line: &Line) -> Verdict {
    let pattern = line.value.as_str();
    if read.draft.tunnel.device.is_some() {
        return Verdict::changed("the device has the name of the .netdev");
    }
    if !value::is_device(pattern) || pattern.contains(['*', '?', '[', '!']) {
        return Verdict::changed(
            "a pattern: the device gets the name in --name, or one of the kernel's",
        );
    }
    read.draft.tunnel.device = Some(pattern.to_owned());
    Verdict::taken(format!("[interface] name = \"{pattern}\""))
}

fn multicast(read: &mut Networkd, line: &Line) -> Verdict {
    read.draft.tunnel.multicast = value::truth(&line.value);
    match read.draft.tunnel.multicast {
        Some(on) => Verdict::taken(format!("[interface] multicast = {on}")),
        None => Verdict::invalid("a boolean"),
    }
}

fn route_table(read: &mut Networkd, line: &Line) -> Verdict {
    let (routing, verdict) = match line.value.as_str() {
        text if value::truth(text) == Some(false) && text != "0" => {
            (Routing::Off, Verdict::taken("no [[route]] to the allowed IPs"))
        }
        "main" => (Routing::Auto, Verdict::taken("[[route]] to the allowed IPs")),
        text => match value::table(text, &*read.draft.host) {
            Some(254) => (Routing::Auto, Verdict::taken("[[route]] to the allowed IPs")),
            Some(table) if value::decimal(text) == Some(table) => {
                (Routing::Table(table), Verdict::taken(format!("[[route]] table = {table}")))
            }
            Some(table) => {
                (Routing::Table(table), Verdict::changed(format!("[[route]] table = {table}")))
            }
            None => (Routing::Off, no_table()),
        },
    };
    read.draft.routing = routing;
    verdict
}

fn no_table() -> Verdict {
    Verdict::dropped(
        "no number, and no name in rt_tables here: add [[route]] with `table` yourself",
    )
}

fn route_metric(read: &mut Networkd, line: &Line) -> Verdict {
    read.draft.metric = value::decimal(&line.value);
    match read.draft.metric {
        Some(metric) => Verdict::taken(format!("[[route]] metric = {metric}")),
        None => Verdict::invalid("a number"),
    }
}

/// `ADDRESS[:PORT][%DEVICE][#NAME]`.
fn dns(read: &mut Networkd, line: &Line) -> Verdict {
    let mut left = vec![];
    for item in line.words() {
        let plain = item.split(['#', '%']).next().unwrap_or_default();
        let unbracketed = plain.strip_prefix('[').and_then(|rest| rest.split(']').next());
        let v4 = plain.split_once(':').filter(|(_, rest)| !rest.contains(':'));
        let address = unbracketed.or_else(|| v4.map(|(address, _)| address)).unwrap_or(plain);
        if value::address(address).is_none() || !wg::add_dns(&mut read.draft.tunnel, address) {
            left.push(format!("{item} is no address"));
        } else if address != item {
            left.push(format!("{item} is {address}"));
        }
    }
    match left.as_slice() {
        [] => Verdict::taken("[dns] servers"),
        left => Verdict::changed(format!("[dns] servers: {}", left.join(", "))),
    }
}

fn domains(read: &mut Networkd, line: &Line) -> Verdict {
    let mut bad = vec![];
    for item in line.words() {
        if value::is_domain(item) {
            wg::add_domain(&mut read.draft.tunnel, item);
        } else {
            bad.push(item);
        }
    }
    match bad.as_slice() {
        [] => Verdict::taken("[dns] domains"),
        bad => Verdict::changed(format!("[dns] domains; no domains: {}", bad.join(", "))),
    }
}

fn dns_default_route(read: &mut Networkd, line: &Line) -> Verdict {
    match value::truth(&line.value) {
        Some(true) => {
            wg::add_domain(&mut read.draft.tunnel, "~.");
            Verdict::changed("[dns] domains = \"~.\": these servers are asked for all names")
        }
        Some(false) => Verdict::changed("with [dns] domains, only those names are asked for"),
        None => Verdict::invalid("a boolean"),
    }
}

/// A gateway behind the device: everything in the tunnel goes to the peer.
fn gateway(read: &mut Networkd, line: &Line) -> Verdict {
    let Some(gateway) = value::address(&line.value) else {
        return Verdict::invalid("an address");
    };
    read.routes.entry(usize::MAX - usize::from(gateway.is_ipv6())).or_default().gateway =
        Some(gateway);
    Verdict::changed("[[route]]: a default route into the tunnel, in a table of its own")
}

fn vrf(read: &mut Networkd, line: &Line) -> Verdict {
    if !value::is_device(&line.value) {
        return Verdict::invalid("the name of a device");
    }
    read.draft.tunnel.vrf = Some(line.value.to_string());
    Verdict::taken("[interface] vrf")
}

fn address_address(read: &mut Networkd, line: &Line) -> Verdict {
    let net = value::net(&line.value);
    read.addresses.entry(line.group).or_default().address = net;
    net.map_or_else(|| Verdict::invalid("an address"), |_| Verdict::taken("[interface] address"))
}

fn address_peer(read: &mut Networkd, line: &Line) -> Verdict {
    let net = value::net(&line.value);
    read.addresses.entry(line.group).or_default().peer = net;
    net.map_or_else(
        || Verdict::invalid("an address"),
        |_| Verdict::taken("[interface] peer_address"),
    )
}

fn route_type(read: &mut Networkd, line: &Line) -> Verdict {
    if line.value.as_str() == "unicast" {
        return Verdict::taken("the only type of [[route]]");
    }
    read.routes.entry(line.group).or_default().elsewhere = true;
    elsewhere()
}

fn destination(read: &mut Networkd, line: &Line) -> Verdict {
    let Some(net) = value::net(&line.value) else { return Verdict::invalid("a network") };
    let section = read.routes.entry(line.group).or_default();
    if section.elsewhere {
        return elsewhere();
    }
    section.to = Some(net.trunc());
    let verdict = if net == net.trunc() { Verdict::taken } else { Verdict::changed };
    verdict(format!("[[route]] to = \"{}\"", net.trunc()))
}

fn route_gateway(read: &mut Networkd, line: &Line) -> Verdict {
    let gateway = value::address(&line.value);
    let section = read.routes.entry(line.group).or_default();
    section.gateway = gateway;
    match section.to {
        Some(_) => Verdict::changed("everything in the tunnel goes to the peer"),
        None if gateway.is_some() => Verdict::changed("[[route]]: a default route into the tunnel"),
        None => Verdict::invalid("an address"),
    }
}

fn metric(read: &mut Networkd, line: &Line) -> Verdict {
    let metric = value::decimal(&line.value);
    read.routes.entry(line.group).or_default().metric = metric;
    metric.map_or_else(|| Verdict::invalid("a number"), |_| Verdict::taken("[[route]] metric"))
}

fn table(read: &mut Networkd, line: &Line) -> Verdict {
    let table = value::table(&line.value, &*read.draft.host);
    let section = read.routes.entry(line.group).or_default();
    section.table = table;
    match table {
        Some(_) if value::decimal(&line.value).is_some() => Verdict::taken("[[route]] table"),
        Some(table) => Verdict::changed(format!("[[route]] table = {table}")),
        None => {
            section.elsewhere = true;
            no_table()
        }
    }
}
