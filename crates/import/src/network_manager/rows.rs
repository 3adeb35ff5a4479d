//! The keys of a keyfile with `type=wireguard`.

use super::{Keyfile, P};
use crate::line::Line;
use crate::table::{
    ANY, CHANGED, DROPPED, Row, TAKEN, TAKEN_OR_CHANGED, TAKEN_OR_DROPPED, Verdict, always, reads,
};
use crate::tunnel::Route;
use crate::value;
use crate::wireguard as wg;

const C: &str = "connection";
const W: &str = "wireguard";
const V4: &str = "ipv4";
const V6: &str = "ipv6";
const OWN: &str = "of NetworkManager alone: vpnd's service is `vpnd@NAME`";
const RESOLVED: &str = "systemd-resolved's own default applies: set it in resolved.conf";
const ROUTING: &str =
    "vpnd makes rules only for a default route: `ip rule add` in [hooks] up, `ip rule del` in down";
const AUTO: &str = "no DHCP and no router advertisements inside the tunnel";

/// The keys. `addressN` precedes the routes, and `routeN` its options.
pub(crate) static ROWS: &[Row<Keyfile>] = &[
    reads(C, &["id"], CHANGED, "the tunnel's name, if there is no `interface-name`", id),
    always(C, &["uuid"], DROPPED, OWN),
    reads(C, &["type"], TAKEN, "`wireguard` only", kind),
    reads(
        C,
        &["interface-name"],
        TAKEN,
        "`[interface] name`, and the tunnel's name",
        interface_name,
    ),
    reads(
        C,
        &["autoconnect"],
        CHANGED,
        "`systemctl enable vpnd@NAME` starts the tunnel at boot",
        autoconnect,
    ),
    always(C, &["autoconnect-priority"], DROPPED, OWN),
    always(C, &["autoconnect-retries"], CHANGED, "vpnd tries without end"),
    always(
        C,
        &["permissions"],
        DROPPED,
        "root starts vpnd; polkit can let users start `vpnd@NAME`",
    ),
    always(C, &["timestamp"], DROPPED, OWN),
    always(
        C,
        &["zone"],
        DROPPED,
        "of firewalld: `firewall-cmd --permanent --zone=ZONE --add-interface=DEVICE`",
    ),
    always(C, &["metered"], DROPPED, OWN),
    always(C, &["secondaries"], DROPPED, "other connections: `Wants=` in their units"),
    always(C, &["gateway-ping-timeout"], DROPPED, "`vpnd wait NAME` waits for the peer"),
    always(C, &["wait-device-timeout"], DROPPED, OWN),
    always(C, &["mdns", "llmnr", "dns-over-tls"], DROPPED, RESOLVED),
    always(C, &["stable-id", "*"], DROPPED, OWN),
    reads(
        W,
        &["private-key-flags"],
        TAKEN_OR_DROPPED,
        "0: in the file; else `--private-key` gives the key",
        private_key_flags,
    ),
    reads(W, &["private-key"], TAKEN, "`NAME.key`, mode 0600", private_key),
    reads(W, &["listen-port"], TAKEN, "`[interface] listen`", listen_port),
    reads(W, &["fwmark"], TAKEN, "`[socket] fwmark`", fwmark),
    reads(W, &["mtu"], TAKEN_OR_DROPPED, "`[interface] mtu`", mtu),
    reads(W, &["peer-routes"], TAKEN, "whether the allowed IPs become `[[route]]`", peer_routes),
    reads(
        W,
        &["ip4-auto-default-route"],
        CHANGED,
        "a default route of vpnd always has a table of its own; `false`: no such route",
        default_route_v4,
    ),
    reads(W, &["ip6-auto-default-route"], CHANGED, "the same for IPv6", default_route_v6),
    reads(
        P,
        &["preshared-key-flags"],
        TAKEN_OR_DROPPED,
        "0: in the file; else `--preshared-key` gives the key",
        preshared_key_flags,
    ),
    reads(P, &["preshared-key"], TAKEN, "`NAME.psk`, mode 0600", preshared_key),
    reads(P, &["endpoint"], TAKEN_OR_CHANGED, "`[peer] endpoint`", endpoint),
    reads(P, &["persistent-keepalive"], TAKEN, "`[peer] keepalive`", keepalive),
    reads(
        P,
        &["allowed-ips"],
        ANY,
        "`[peer] allowed_ips`, and `[[route]]` unless `peer-routes=false`; dropped with a peer that is not taken",
        allowed_ips,
    ),
    reads(V4, &["method"], TAKEN_OR_DROPPED, "`manual`, `disabled`; others get no address", method),
    reads(
        V4,
        &["addressN"],
        TAKEN_OR_CHANGED,
        "`[interface] address`; a gateway means a default route",
        address,
    ),
    reads(V4, &["addresses"], TAKEN_OR_CHANGED, "`[interface] address`", addresses),
    reads(V4, &["gateway"], CHANGED, "a default route into the tunnel", gateway),
    reads(V4, &["dns"], TAKEN_OR_CHANGED, "`[dns] servers`", dns),
    reads(V4, &["dns-search"], TAKEN_OR_CHANGED, "`[dns] domains`", dns_search),
    reads(
        V4,
        &["dns-priority"],
        CHANGED,
        "negative: `[dns] domains` gets `~.`, so that no other servers are asked",
        dns_priority,
    ),
    always(V4, &["dns-options"], DROPPED, "options of resolv.conf, which vpnd does not write"),
    always(V4, &["ignore-auto-dns", "ignore-auto-routes"], CHANGED, AUTO),
    always(V4, &["may-fail"], CHANGED, "vpnd does not start if an address cannot be set"),
    reads(
        V4,
        &["never-default"],
        TAKEN,
        "`true`: no default route from the allowed IPs",
        never_default,
    ),
    reads(V4, &["route-metric"], TAKEN, "`[[route]] metric` of the allowed IPs", route_metric),
    reads(V4, &["route-table"], TAKEN, "`[[route]] table` of the allowed IPs", route_table),
    reads(
        V4,
        &["routeN"],
        TAKEN_OR_CHANGED,
        "`[[route]]`; everything in the tunnel goes to the peer, so the next hop is left out",
        numbered_route,
    ),
    reads(
        V4,
        &["routeN_options"],
        TAKEN_OR_CHANGED,
        "`table` becomes `[[route]] table`; the others are left out",
        route_options,
    ),
    always(V4, &["routing-ruleN"], DROPPED, ROUTING),
    always(V4, &["*"], DROPPED, AUTO),
    reads(
        V6,
        &["method"],
        TAKEN_OR_DROPPED,
        "`manual`, `disabled`, `ignore`; others get no address",
        method,
    ),
    reads(V6, &["addressN"], TAKEN_OR_CHANGED, "as in `[ipv4]`", address),
    reads(V6, &["addresses"], TAKEN_OR_CHANGED, "as in `[ipv4]`", addresses),
    reads(V6, &["gateway"], CHANGED, "as in `[ipv4]`", gateway),
    reads(V6, &["dns"], TAKEN_OR_CHANGED, "as in `[ipv4]`", dns),
    reads(V6, &["dns-search"], TAKEN_OR_CHANGED, "as in `[ipv4]`", dns_search),
    reads(V6, &["dns-priority"], CHANGED, "as in `[ipv4]`", dns_priority),
    always(V6, &["dns-options"], DROPPED, "options of resolv.conf, which vpnd does not write"),
    always(V6, &["ignore-auto-dns", "ignore-auto-routes"], CHANGED, AUTO),
    always(V6, &["may-fail"], CHANGED, "vpnd does not start if an address cannot be set"),
    reads(V6, &["never-default"], TAKEN, "as in `[ipv4]`", never_default),
    reads(V6, &["route-metric"], TAKEN, "as in `[ipv4]`", route_metric),
    reads(V6, &["route-table"], TAKEN, "as in `[ipv4]`", route_table),
    reads(V6, &["routeN"], TAKEN_OR_CHANGED, "as in `[ipv4]`", numbered_route),
    reads(V6, &["routeN_options"], TAKEN_OR_CHANGED, "as in `[ipv4]`", route_options),
    always(V6, &["routing-ruleN"], DROPPED, ROUTING),
    always(
        V6,
        &["addr-gen-mode", "ip6-privacy", "token"],
        CHANGED,
        "the device gets no address that is not in the configuration",
    ),
    always(V6, &["*"], DROPPED, AUTO),
    always("proxy", &["*"], DROPPED, "a proxy for browsers: set it in the desktop"),
    always("user", &["*"], DROPPED, "notes of other programs"),
];

/// Lets the reader of all WireGuard formats read a line.
macro_rules! shared {
    ($($name:ident),*) => { $(
        fn $name(read: &mut Keyfile, line: &Line) -> Verdict {
            wg::$name(&mut read.draft, line)
        }
    )* };
}
shared!(private_key, listen_port, fwmark, mtu, preshared_key, endpoint, keepalive, allowed_ips);

fn id(read: &mut Keyfile, line: &Line) -> Verdict {
    read.draft.tunnel.name = line.value.to_string();
    Verdict::changed("the tunnel's name, if there is no interface-name")
}

fn kind(_: &mut Keyfile, _: &Line) -> Verdict {
    Verdict::taken("[peer] protocol = \"wireguard\"")
}

fn interface_name(read: &mut Keyfile, line: &Line) -> Verdict {
    if !value::is_device(&line.value) {
        return Verdict::invalid("the name of a device");
    }
    read.draft.tunnel.device = Some(line.value.to_string());
    Verdict::taken("[interface] name")
}

fn autoconnect(_: &mut Keyfile, line: &Line) -> Verdict {
    Verdict::changed(match value::truth(&line.value) {
        Some(false) => "`systemctl start vpnd@NAME` starts the tunnel, without `enable`",
        _ => "`systemctl enable vpnd@NAME` starts the tunnel at boot",
    })
}

/// Why a secret is not in the file (`NMSettingSecretFlags`).
fn flags(text: &str) -> Option<&'static str> {
    match value::decimal(text) {
        Some(0) => None,
        Some(flags) if flags & 1 != 0 => Some(
            "an agent of the desktop keeps it (flags=1), and NetworkManager asks it at each start",
        ),
        Some(flags) if flags & 2 != 0 => Some("it is asked for at each start (flags=2)"),
        _ => Some("the flags say that it is not needed"),
    }
}

fn private_key_flags(read: &mut Keyfile, line: &Line) -> Verdict {
    match flags(&line.value) {
        None => Verdict::taken("the key is in the file"),
        Some(why) => {
            read.draft.no_private_key = Some(why.to_owned());
            Verdict::dropped(format!("{why}: vpnd's key is in a file, given by --private-key FILE"))
        }
    }
}

fn preshared_key_flags(read: &mut Keyfile, line: &Line) -> Verdict {
    match flags(&line.value) {
        None => Verdict::taken("the key is in the file"),
        // NetworkManager uses no preshared key then.
        Some(why) if line.value.as_str() == "4" => {
            Verdict::dropped(format!("{why}: no preshared key"))
        }
        Some(why) => {
            read.draft.no_preshared_key = Some(why.to_owned());
            Verdict::dropped(format!(
                "{why}: vpnd's key is in a file, given by --preshared-key FILE"
            ))
        }
    }
}

fn peer_routes(read: &mut Keyfile, line: &Line) -> Verdict {
    let Some(on) = value::truth(&line.value) else { return Verdict::invalid("a boolean") };
    read.peer_routes = on;
    Verdict::taken(if on {
        "[[route]] to the allowed IPs"
    } else {
        "no [[route]] to the allowed IPs"
    })
}

fn default_route_v4(read: &mut Keyfile, line: &Line) -> Verdict {
    default_route(line, &mut read.v4.never_default)
}

fn default_route_v6(read: &mut Keyfile, line: &Line) -> Verdict {
    default_route(line, &mut read.v6.never_default)
}

/// 1 is true, 0 false, and -1 the default, which depends on the allowed IPs.
fn default_route(line: &Line, never: &mut bool) -> Verdict {
    if value::truth(&line.value) == Some(false) {
        *never = true;
        return Verdict::changed(
            "no default route: NetworkManager would put one into main, where it covers the peer too",
        );
    }
    Verdict::changed("a default route has a table of its own, and rules that exempt the tunnel")
}

fn method(_: &mut Keyfile, line: &Line) -> Verdict {
    match line.value.as_str() {
        "manual" | "disabled" | "ignore" => Verdict::taken("addresses from the configuration only"),
        _ => Verdict::dropped(format!("{AUTO}: give [interface] address")),
    }
}

/// `ADDRESS/LENGTH[,GATEWAY]`.
fn address(read: &mut Keyfile, line: &Line) -> Verdict {
    let (text, gateway) = match line.value.split_once(',') {
        Some((text, gateway)) => (text, value::address(gateway.trim())),
        None => (line.value.as_str(), None),
    };
    let Some(net) = value::net(text.trim()) else { return Verdict::invalid("an address") };
    let changed = read.draft.tunnel.add_address(net);
    if let Some(gateway) = gateway.filter(|gateway| !gateway.is_unspecified()) {
        default(read, gateway);
        return Verdict::changed(
            "[interface] address; its gateway becomes a default [[route]] into the tunnel",
        );
    }
    changed.map_or_else(|| Verdict::taken("[interface] address"), Verdict::changed)
}

fn addresses(read: &mut Keyfile, line: &Line) -> Verdict {
    let mut verdict = Verdict::taken("[interface] address");
    for item in line.items(&[';', ',']) {
        match value::net(item) {
            Some(net) => {
                if let Some(changed) = read.draft.tunnel.add_address(net) {
                    verdict = Verdict::changed(changed);
                }
            }
            None => verdict = Verdict::changed(format!("[interface] address; `{item}` is none")),
        }
    }
    verdict
}

fn gateway(read: &mut Keyfile, line: &Line) -> Verdict {
    match value::address(&line.value) {
        Some(gateway) => default(read, gateway),
        None => Verdict::invalid("an address"),
    }
}

fn default(read: &mut Keyfile, gateway: std::net::IpAddr) -> Verdict {
    if let Some(to) = value::net(if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" }) {
        read.draft.tunnel.add_route(Route::to(to));
    }
    Verdict::changed("[[route]]: a default route into the tunnel, in a table of its own")
}

fn dns(read: &mut Keyfile, line: &Line) -> Verdict {
    items(line, |item| {
        let plain = item.split('#').next().unwrap_or_default();
        plain == item && value::address(item).is_some() && wg::add_dns(&mut read.draft.tunnel, item)
    })
}

fn dns_search(read: &mut Keyfile, line: &Line) -> Verdict {
    items(line, |item| {
        let good = value::is_domain(item);
        if good {
            wg::add_domain(&mut read.draft.tunnel, item);
        }
        good
    })
}

fn items(line: &Line, mut take: impl FnMut(&str) -> bool) -> Verdict {
    let bad: Vec<_> = line.items(&[';', ',']).filter(|item| !take(item)).collect();
    match bad.as_slice() {
        [] => Verdict::taken("[dns]"),
        bad => Verdict::changed(format!("[dns]; left out: {}", bad.join(", "))),
    }
}

fn dns_priority(read: &mut Keyfile, line: &Line) -> Verdict {
    match line.value.parse::<i32>() {
        Ok(priority) if priority < 0 => {
            wg::add_domain(&mut read.draft.tunnel, "~.");
            Verdict::changed("[dns] domains = \"~.\": no other servers are asked")
        }
        Ok(_) => Verdict::changed("systemd-resolved has no priorities, but [dns] domains"),
        Err(_) => Verdict::invalid("a number"),
    }
}

fn never_default(read: &mut Keyfile, line: &Line) -> Verdict {
    let Some(never) = value::truth(&line.value) else { return Verdict::invalid("a boolean") };
    read.family(line).never_default |= never;
    Verdict::taken(if never { "no default route from the allowed IPs" } else { "the default" })
}

fn route_metric(read: &mut Keyfile, line: &Line) -> Verdict {
    if line.value.as_str() == "-1" {
        return Verdict::taken("the default");
    }
    let Some(metric) = value::decimal(&line.value) else { return Verdict::invalid("a number") };
    read.family(line).metric = Some(metric);
    Verdict::taken(format!("[[route]] metric = {metric}"))
}

fn route_table(read: &mut Keyfile, line: &Line) -> Verdict {
    let Some(table) = value::decimal(&line.value) else { return Verdict::invalid("a number") };
    read.family(line).table = Some(table).filter(|table| ![0, 254].contains(table));
    Verdict::taken(format!("[[route]] table = {table}; 0 is the default"))
}

/// `NETWORK[,GATEWAY[,METRIC]]`.
fn numbered_route(read: &mut Keyfile, line: &Line) -> Verdict {
    let mut parts = line.value.split(',').map(str::trim);
    let Some(net) = parts.next().and_then(value::net) else { return Verdict::invalid("a network") };
    let gateway = parts.next().filter(|hop| !matches!(*hop, "" | "0.0.0.0" | "::"));
    let metric = parts.next().and_then(value::decimal);
    let route = Route { to: net.trunc(), metric, table: None };
    let key = (line.section == "ipv6", line.group);
    read.routes.insert(key, route);
    if gateway.is_some() {
        return Verdict::changed(
            "[[route]], without the next hop: everything in the tunnel goes to the peer",
        );
    }
    if net == net.trunc() {
        Verdict::taken("[[route]]")
    } else {
        Verdict::changed(format!("[[route]] to = \"{}\"", net.trunc()))
    }
}

fn route_options(read: &mut Keyfile, line: &Line) -> Verdict {
    let mut left = vec![];
    let route = read.routes.get_mut(&(line.section == "ipv6", line.group));
    let mut table = None;
    for option in line.items(&[',']) {
        match option.split_once('=').map(|(key, text)| (key, value::decimal(text))) {
            Some(("table", Some(number))) => table = Some(number).filter(|number| *number != 254),
            _ => left.push(option.to_owned()),
        }
    }
    if let Some(route) = route {
        route.table = table;
    }
    match left.as_slice() {
        [] => Verdict::taken("[[route]] table"),
        left => Verdict::changed(format!(
            "left out, `ip route change` in [hooks] up can set it: {}",
            left.join(", ")
        )),
    }
}
