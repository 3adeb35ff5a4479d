//! The options of the tunnel's sections.

use super::{I, Network, P, R, R6, host_address};
use crate::line::Line;
use crate::table::{
    ANY, CHANGED, DROPPED, Row, TAKEN, TAKEN_OR_CHANGED, TAKEN_OR_DROPPED, Verdict, always, reads,
};
use crate::value;
use crate::wireguard as wg;

const NETIFD: &str = "of OpenWrt's netifd, which does not manage vpnd's device";
const PREFIX: &str = "prefix delegation: give [interface] address";
const HOST_ROUTE: &str = "vpnd needs no route to the peer: a default route has a table of its own, and rules that exempt the tunnel";

/// The options. What `allowed_ips` depends on precedes it.
pub(crate) static ROWS: &[Row<Network>] = &[
    reads(I, &["proto"], TAKEN, "`wireguard` only", proto),
    reads(I, &["disabled"], TAKEN_OR_DROPPED, "`systemctl enable` decides", disabled),
    always(I, &["auto"], CHANGED, "the service's start at boot decides"),
    reads(I, &["private_key"], TAKEN, "`NAME.key`, mode 0600", private_key),
    reads(I, &["listen_port"], TAKEN, "`[interface] listen`", listen_port),
    reads(I, &["addresses"], TAKEN_OR_CHANGED, "`[interface] address`", addresses),
    reads(I, &["mtu"], TAKEN_OR_DROPPED, "`[interface] mtu`", mtu),
    reads(I, &["fwmark"], TAKEN, "`[socket] fwmark`", fwmark),
    reads(I, &["ip4table"], ANY, "`[[route]] table` of IPv4", ip4table),
    reads(I, &["ip6table"], ANY, "`[[route]] table` of IPv6", ip6table),
    reads(I, &["metric"], TAKEN, "`[[route]] metric` of the allowed IPs", metric),
    reads(I, &["dns"], TAKEN_OR_DROPPED, "`[dns] servers`", dns),
    reads(I, &["dns_search"], TAKEN_OR_DROPPED, "`[dns] domains`", dns_search),
    always(I, &["dns_metric"], DROPPED, "systemd-resolved has no metrics, but [dns] domains"),
    always(
        I,
        &["peerdns"],
        CHANGED,
        "there is no DHCP inside the tunnel, and so no other name server",
    ),
    always(
        I,
        &["defaultroute"],
        CHANGED,
        "a default route comes from `route_allowed_ips` with 0.0.0.0/0",
    ),
    always(I, &["nohostroute"], CHANGED, HOST_ROUTE),
    reads(
        I,
        &["tunlink"],
        CHANGED,
        "`[socket] bind_device` binds to a device, not to an interface of OpenWrt: set it if you need it",
        tunlink,
    ),
    reads(I, &["multicast"], TAKEN, "`[interface] multicast`", multicast),
    always(I, &["ip6assign", "ip6hint", "ip6prefix", "ip6ifaceid", "ip6class"], DROPPED, PREFIX),
    always(I, &["force_link", "delegate", "*"], DROPPED, NETIFD),
    always(
        P,
        &["description"],
        DROPPED,
        "text for people: a comment in the configuration, if you want it",
    ),
    reads(P, &["disabled"], TAKEN_OR_DROPPED, "a disabled peer is not taken", peer_disabled),
    reads(
        P,
        &["public_key"],
        TAKEN_OR_DROPPED,
        "`[peer] public_key`; of several peers, the one in `--peer`",
        public_key,
    ),
    always(
        P,
        &["private_key"],
        DROPPED,
        "the peer's own private key, which LuCI keeps for its QR code: it belongs to the peer alone",
    ),
    reads(P, &["preshared_key"], TAKEN, "`NAME.psk`, mode 0600", preshared_key),
    reads(
        P,
        &["route_allowed_ips"],
        TAKEN,
        "whether the allowed IPs become `[[route]]`",
        route_allowed_ips,
    ),
    reads(
        P,
        &["allowed_ips"],
        TAKEN_OR_CHANGED,
        "`[peer] allowed_ips`; routes only with `route_allowed_ips`",
        allowed_ips,
    ),
    reads(P, &["endpoint_host"], TAKEN, "`[peer] endpoint`", endpoint_host),
    reads(P, &["endpoint_port"], TAKEN, "`[peer] endpoint`; 51820 without it", endpoint_port),
    reads(P, &["persistent_keepalive"], TAKEN, "`[peer] keepalive`", keepalive),
    reads(R, &["interface"], TAKEN, "the tunnel's routes are `[[route]]`", interface),
    reads(R, &["target"], TAKEN, "`[[route]] to`", target),
    reads(R, &["netmask"], TAKEN, "`[[route]] to`", netmask),
    reads(R, &["metric"], TAKEN, "`[[route]] metric`", route_metric),
    reads(R, &["table"], TAKEN_OR_CHANGED, "`[[route]] table`", route_table),
    reads(R, &["disabled"], TAKEN, "a disabled route is left out", route_disabled),
    always(R, &["gateway", "onlink"], CHANGED, "everything in the tunnel goes to the peer"),
    always(
        R,
        &["*"],
        DROPPED,
        "vpnd adds the route with the kernel's defaults: `ip route change` in [hooks] up",
    ),
    reads(R6, &["interface"], TAKEN, "the tunnel's routes are `[[route]]`", interface),
    reads(R6, &["target"], TAKEN, "`[[route]] to`", target),
    reads(R6, &["metric"], TAKEN, "`[[route]] metric`", route_metric),
    reads(R6, &["table"], TAKEN_OR_CHANGED, "`[[route]] table`", route_table),
    reads(R6, &["disabled"], TAKEN, "a disabled route is left out", route_disabled),
    always(R6, &["gateway"], CHANGED, "everything in the tunnel goes to the peer"),
    always(
        R6,
        &["*"],
        DROPPED,
        "vpnd adds the route with the kernel's defaults: `ip route change` in [hooks] up",
    ),
];

/// Lets the reader of all WireGuard formats read a line.
macro_rules! shared {
    ($($name:ident),*) => { $(
        fn $name(read: &mut Network, line: &Line) -> Verdict {
            wg::$name(&mut read.draft, line)
        }
    )* };
}
shared!(
    private_key,
    listen_port,
    addresses,
    mtu,
    fwmark,
    public_key,
    preshared_key,
    allowed_ips,
    keepalive
);

fn proto(_: &mut Network, _: &Line) -> Verdict {
    Verdict::taken("[peer] protocol = \"wireguard\"")
}

fn disabled(_: &mut Network, line: &Line) -> Verdict {
    match value::truth(&line.value) {
        Some(true) => Verdict::dropped(
            "the tunnel was disabled: start it with `systemctl start vpnd@NAME` when you want it",
        ),
        _ => Verdict::taken("`systemctl enable vpnd@NAME` starts the tunnel at boot"),
    }
}

fn peer_disabled(_: &mut Network, line: &Line) -> Verdict {
    match value::truth(&line.value) {
        Some(false) => Verdict::taken("the peer is in use"),
        _ => Verdict::invalid("a boolean"),
    }
}

fn ip4table(read: &mut Network, line: &Line) -> Verdict {
    let (table, verdict) = table(read, line);
    read.tables.v4 = table;
    verdict
}

fn ip6table(read: &mut Network, line: &Line) -> Verdict {
    let (table, verdict) = table(read, line);
    read.tables.v6 = table;
    verdict
}

fn table(read: &Network, line: &Line) -> (Option<u32>, Verdict) {
    let table = value::table(&line.value, &*read.draft.host);
    let verdict = match table {
        Some(table) if value::decimal(&line.value).is_some() => {
            Verdict::taken(format!("[[route]] table = {table}"))
        }
        Some(table) => Verdict::changed(format!("[[route]] table = {table}")),
        None => Verdict::dropped(
            "no number, and no name in rt_tables here: add `table` to [[route]] yourself",
        ),
    };
    (table.filter(|table| *table != 254), verdict)
}

fn metric(read: &mut Network, line: &Line) -> Verdict {
    read.draft.metric = value::decimal(&line.value);
    read.draft
        .metric
        .map_or_else(|| Verdict::invalid("a number"), |_| Verdict::taken("[[route]] metric"))
}

fn dns(read: &mut Network, line: &Line) -> Verdict {
    let mut verdict = Verdict::taken("[dns] servers");
    for item in line.words() {
        if host_address(item).is_none() || !wg::add_dns(&mut read.draft.tunnel, item) {
            verdict = Verdict::dropped(format!("`{item}` is not the address of a name server"));
        }
    }
    verdict
}

fn dns_search(read: &mut Network, line: &Line) -> Verdict {
    let mut verdict = Verdict::taken("[dns] domains");
    for item in line.words() {
        if value::is_domain(item) {
            wg::add_domain(&mut read.draft.tunnel, item);
        } else {
            verdict = Verdict::dropped(format!("`{item}` is no domain"));
        }
    }
    verdict
}

fn tunlink(_: &mut Network, line: &Line) -> Verdict {
    let interface = line.value.as_str();
    Verdict::changed(format!(
        "the routes choose the way out: [socket] bind_device = \"DEVICE\", with the device of `{interface}`, if it must be that one"
    ))
}

fn multicast(read: &mut Network, line: &Line) -> Verdict {
    read.draft.tunnel.multicast = value::truth(&line.value);
    read.draft
        .tunnel
        .multicast
        .map_or_else(|| Verdict::invalid("a boolean"), |_| Verdict::taken("[interface] multicast"))
}

fn route_allowed_ips(read: &mut Network, line: &Line) -> Verdict {
    let Some(on) = value::truth(&line.value) else { return Verdict::invalid("a boolean") };
    read.route_allowed = on;
    Verdict::taken(if on {
        "[[route]] to the allowed IPs"
    } else {
        "no [[route]] to the allowed IPs"
    })
}

fn endpoint_host(read: &mut Network, line: &Line) -> Verdict {
    if !value::is_host(&line.value) {
        return Verdict::invalid("a name or an address");
    }
    read.endpoint_host = Some(line.value.to_string());
    Verdict::taken("[peer] endpoint")
}

fn endpoint_port(read: &mut Network, line: &Line) -> Verdict {
    let Some(port) = value::port(&line.value) else { return Verdict::invalid("a port") };
    read.endpoint_port = port;
    Verdict::taken("[peer] endpoint")
}

fn interface(_: &mut Network, _: &Line) -> Verdict {
    Verdict::taken("a [[route]] of this tunnel")
}

fn target(read: &mut Network, line: &Line) -> Verdict {
    if value::net(&line.value).is_none() {
        return Verdict::invalid("a network");
    }
    read.routes.entry(line.group).or_default().target = line.value.to_string();
    Verdict::taken("[[route]] to")
}

fn netmask(read: &mut Network, line: &Line) -> Verdict {
    let mask = line.value.parse().ok();
    read.routes.entry(line.group).or_default().netmask = mask;
    mask.map_or_else(|| Verdict::invalid("a netmask"), |_| Verdict::taken("[[route]] to"))
}

fn route_metric(read: &mut Network, line: &Line) -> Verdict {
    let metric = value::decimal(&line.value);
    read.routes.entry(line.group).or_default().metric = metric;
    metric.map_or_else(|| Verdict::invalid("a number"), |_| Verdict::taken("[[route]] metric"))
}

fn route_table(read: &mut Network, line: &Line) -> Verdict {
    let (table, verdict) = table(read, line);
    read.routes.entry(line.group).or_default().table = table;
    verdict
}

fn route_disabled(read: &mut Network, line: &Line) -> Verdict {
    let Some(off) = value::truth(&line.value) else { return Verdict::invalid("a boolean") };
    read.routes.entry(line.group).or_default().off = off;
    Verdict::taken(if off { "the route is left out" } else { "the route is in use" })
}
