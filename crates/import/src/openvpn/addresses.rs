//! Device, addresses, routes and name servers.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use super::OpenVpn;
use super::parse::words;
use crate::line::Line;
use crate::table::Verdict;
use crate::tunnel::Route;
use crate::value;
use crate::wireguard::{add_dns, add_domain};

pub(super) fn dev(draft: &mut OpenVpn, line: &Line) -> Verdict {
    let words = words(&line.value);
    let Some(name) = words.first().filter(|name| value::is_device(name) && *name != "null") else {
        return Verdict::invalid("the name of a device");
    };
    draft.tunnel.tap = name.starts_with("tap");
    if ["tun", "tap"].contains(&name.as_str()) {
        return Verdict::taken(format!("[interface] mode = \"{name}\", named by the kernel"));
    }
    draft.tunnel.device = Some(name.clone());
    Verdict::taken(format!("[interface] name = \"{name}\""))
}

pub(super) fn dev_type(draft: &mut OpenVpn, line: &Line) -> Verdict {
    match line.value.as_str() {
        "tun" | "tap" => {
            draft.tunnel.tap = line.value.as_str() == "tap";
            Verdict::taken(format!("[interface] mode = \"{}\"", line.value.as_str()))
        }
        _ => Verdict::invalid("tun or tap"),
    }
}

pub(super) fn lladdr(draft: &mut OpenVpn, line: &Line) -> Verdict {
    if !draft.tunnel.tap {
        return Verdict::dropped("only a tap device has an Ethernet address");
    }
    draft.tunnel.mac = Some(line.value.to_string());
    Verdict::taken("[interface] mac")
}

/// Two addresses of a point-to-point device, or an address and its netmask.
pub(super) fn ifconfig(draft: &mut OpenVpn, line: &Line) -> Verdict {
    let words = words(&line.value);
    let v4 = |index: usize| words.get(index).and_then(|word| word.parse::<Ipv4Addr>().ok());
    let (Some(own), Some(second)) = (v4(0), v4(1)) else {
        return Verdict::invalid("two IPv4 addresses, or an address and a netmask");
    };
    if draft.tunnel.tap || second.octets()[0] == 255 {
        let Some(net) = value::masked(own, second) else {
            return Verdict::invalid("an IPv4 address and a netmask");
        };
        draft.others.extend(the_other_host(net));
        let changed = draft.tunnel.add_address(net.into());
        let kept = || Verdict::taken(format!("[interface] address = \"{net}\""));
        return changed.map_or_else(kept, Verdict::changed);
    }
    draft.tunnel.addresses.push(IpAddr::V4(own).into());
    draft.tunnel.peer_addresses.push(second.into());
    draft.others.push(IpAddr::V4(second).into());
    Verdict::taken(format!("[interface] address = \"{own}/32\", peer_address = \"{second}\""))
}

/// The other host of a network of two.
fn the_other_host(net: Ipv4Net) -> Option<IpNet> {
    let mut others = net.hosts().filter(|host| *host != net.addr());
    let other = others.next().filter(|_| net.prefix_len() >= 30)?;
    Ipv4Net::new(other, net.prefix_len()).ok().map(IpNet::from)
}

pub(super) fn ifconfig_ipv6(draft: &mut OpenVpn, line: &Line) -> Verdict {
    let words = words(&line.value);
    let Some(own) =
        words.first().and_then(|word| value::net(word)).filter(|own| own.addr().is_ipv6())
    else {
        return Verdict::invalid("an IPv6 address and a length");
    };
    // OpenVPN's default.
    let own = if words.first().is_some_and(|word| word.contains('/')) {
        own
    } else {
        IpNet::new(own.addr(), 64).unwrap_or(own)
    };
    let changed = draft.tunnel.add_address(own);
    let far = words.get(1).and_then(|word| value::address(word)).filter(IpAddr::is_ipv6);
    if let Some(far) = far.filter(|far| *far != own.addr()) {
        if own.trunc().contains(&far) {
            draft.others.extend(IpNet::new(far, own.prefix_len()));
        } else {
            draft.tunnel.peer_addresses.push(far);
            draft.others.push(far.into());
        }
    }
    changed.map_or_else(
        || Verdict::taken(format!("[interface] address = \"{own}\"")),
        Verdict::changed,
    )
}

pub(super) fn route_gateway(draft: &mut OpenVpn, line: &Line) -> Verdict {
    match value::address(&line.value) {
        Some(gateway) if draft.tunnel.tap => {
            draft.route_gateway = Some(gateway);
            Verdict::changed("the routes by way of it become commands in [hooks] up")
        }
        Some(_) => Verdict::changed("everything in the tunnel goes to the peer"),
        None => Verdict::dropped("no DHCP for the gateway: write its address"),
    }
}

pub(super) fn route_metric(draft: &mut OpenVpn, line: &Line) -> Verdict {
    draft.route_metric = value::decimal(&line.value);
    draft
        .route_metric
        .map_or_else(|| Verdict::invalid("a number"), |_| Verdict::taken("[[route]] metric"))
}

/// `NETWORK [NETMASK [GATEWAY [METRIC]]]`.
pub(super) fn route(draft: &mut OpenVpn, line: &Line) -> Verdict {
    let words = words(&line.value);
    let given =
        |index: usize| words.get(index).map(String::as_str).filter(|word| *word != "default");
    let Some(address) = given(0).and_then(|word| word.parse::<Ipv4Addr>().ok()) else {
        return Verdict::dropped(
            "no IPv4 network: write the address of this name into a [[route]]",
        );
    };
    let mask = given(1).map_or(Some(Ipv4Addr::BROADCAST), |word| word.parse().ok());
    let Some(net) = mask.and_then(|mask| value::masked(address, mask)) else {
        return Verdict::invalid("a network and its netmask");
    };
    routed(draft, net.trunc().into(), given(2), given(3))
}

pub(super) fn route_ipv6(draft: &mut OpenVpn, line: &Line) -> Verdict {
    let words = words(&line.value);
    let given =
        |index: usize| words.get(index).map(String::as_str).filter(|word| *word != "default");
    match given(0).and_then(value::net).filter(|net| net.addr().is_ipv6()) {
        Some(net) => routed(draft, net.trunc(), given(1), given(2)),
        None => Verdict::invalid("an IPv6 network"),
    }
}

fn routed(draft: &mut OpenVpn, to: IpNet, gateway: Option<&str>, metric: Option<&str>) -> Verdict {
    let gateway = match gateway {
        None | Some("vpn_gateway") => None,
        Some("net_gateway") => {
            return Verdict::dropped(format!(
                "a route outside the tunnel: `ip route add {to} via ROUTER` belongs to the host's own network settings"
            ));
        }
        Some(text) => match value::address(text) {
            Some(address) => Some(address),
            None => {
                return Verdict::dropped(
                    "the gateway is a name: write its address into a route of [hooks] up",
                );
            }
        },
    };
    if !draft.tunnel.tap && draft.tunnel.connects(&to) {
        return Verdict::taken(
            "the network of [interface] address, to which the kernel has a route",
        );
    }
    let metric = metric.and_then(value::decimal);
    let peers = draft.tunnel.peer_addresses.clone();
    if draft.add_route(to, gateway, metric) {
        return Verdict::changed("a command in [hooks] up, because [[route]] has no gateway");
    }
    match gateway.filter(|gateway| !peers.contains(gateway)) {
        Some(_) => Verdict::changed(format!(
            "[[route]] to = \"{to}\": everything in the tunnel goes to the peer"
        )),
        None => Verdict::taken(format!("[[route]] to = \"{to}\"")),
    }
}

pub(super) fn redirect_gateway(draft: &mut OpenVpn, line: &Line) -> Verdict {
    let words = words(&line.value);
    let has = |flag: &str| words.iter().any(|word| word == flag);
    if line.key == "redirect-private" {
        return Verdict::changed("vpnd's rules exempt the tunnel's own datagrams by themselves");
    }
    if draft.tunnel.tap {
        return Verdict::dropped(
            "on an Ethernet device a default route needs a gateway: in [hooks] up, with a route to the peer outside",
        );
    }
    if !has("!ipv4") {
        add_default(draft, "0.0.0.0/0");
    }
    if has("ipv6") {
        add_default(draft, "::/0");
    }
    Verdict::changed(
        "[[route]] to everything, in a table of its own: rules exempt the tunnel and the local networks. \
         when_down = \"blackhole\" makes it a kill switch",
    )
}

fn add_default(draft: &mut OpenVpn, to: &str) {
    if let Some(to) = value::net(to) {
        draft.tunnel.add_route(Route::to(to));
    }
}

/// `DNS ADDRESS`, `DOMAIN NAME` and others.
pub(super) fn dhcp_option(draft: &mut OpenVpn, line: &Line) -> Verdict {
    let words = words(&line.value);
    let word = |index: usize| words.get(index).map_or("", String::as_str);
    match word(0) {
        "DNS" | "DNS6" => server(draft, word(1)),
        "DOMAIN" | "DOMAIN-SEARCH" | "ADAPTER_DOMAIN_SUFFIX" => domain(draft, &words[1..]),
        _ => Verdict::dropped(
            "neither a name server nor a domain: configure it on the hosts that need it",
        ),
    }
}

/// `server N address ADDRESS…`, `search-domains NAME…`.
pub(super) fn dns(draft: &mut OpenVpn, line: &Line) -> Verdict {
    let words = words(&line.value);
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["server", _, "address", address, ..] => server(draft, address),
        ["search-domains", ..] => domain(draft, &words[1..]),
        ["server", _, "resolve-domains", ..] => {
            let routed: Vec<_> = words[3..].iter().map(|name| format!("~{name}")).collect();
            domain(draft, &routed)
        }
        _ => Verdict::dropped(
            "neither a name server nor a domain: systemd-resolved's own setting applies",
        ),
    }
}

fn server(draft: &mut OpenVpn, text: &str) -> Verdict {
    if value::address(text).is_some() && add_dns(&mut draft.tunnel, text) {
        draft.dns = true;
        return Verdict::changed("[dns] servers: vpnd tells systemd-resolved, without a script");
    }
    Verdict::invalid("the address of a name server")
}

fn domain(draft: &mut OpenVpn, names: &[String]) -> Verdict {
    if names.is_empty() || !names.iter().all(|name| value::is_domain(name)) {
        return Verdict::invalid("a domain");
    }
    names.iter().for_each(|name| add_domain(&mut draft.tunnel, name));
    Verdict::changed("[dns] domains: vpnd tells systemd-resolved, without a script")
}
