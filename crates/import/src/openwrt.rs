//! OpenWrt: the tunnel in `/etc/config/network`, an interface with `proto 'wireguard'`, its peer and its routes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;

use vpnd_crypto::PublicKey;

use crate::line::{Line, Source};
use crate::peers::{self, PeerChoice};
use crate::report::{Failure, ImportError, Imported};
use crate::table::{Verdict, apply};
use crate::tunnel::Route;
use crate::wireguard::{Draft, Routing};
use crate::{Choices, Format, Host, shell_word, value};

mod rows;
mod uci;

pub(crate) use rows::ROWS;

/// The table's names of sections.
pub(crate) const I: &str = "interface";
pub(crate) const P: &str = "wireguard_NAME";
pub(crate) const R: &str = "route";
pub(crate) const R6: &str = "route6";

/// What is read besides the tunnel.
pub(crate) struct Network {
    pub(crate) draft: Draft,
    pub(crate) endpoint_host: Option<String>,
    pub(crate) endpoint_port: u16,
    /// Whether the allowed IPs are routed.
    pub(crate) route_allowed: bool,
    pub(crate) tables: Tables,
    /// `route` and `route6`, by their group.
    pub(crate) routes: BTreeMap<usize, RouteSection>,
}

/// `ip4table` and `ip6table`.
#[derive(Default)]
pub(crate) struct Tables {
    pub(crate) v4: Option<u32>,
    pub(crate) v6: Option<u32>,
}

/// A section `route` or `route6`.
#[derive(Default)]
pub(crate) struct RouteSection {
    pub(crate) target: String,
    pub(crate) netmask: Option<Ipv4Addr>,
    pub(crate) metric: Option<u32>,
    pub(crate) table: Option<u32>,
    pub(crate) off: bool,
}

pub(crate) fn import(
    sources: &[Source],
    choices: &Choices,
    host: &Rc<dyn Host>,
) -> Result<Imported, Box<Failure>> {
    let [source] = sources else {
        return Err(ImportError::Files("OpenWrt's configuration is one file").alone());
    };
    let mut lines = uci::parse(source);
    let found = peers_of(&lines);
    let choice = found.iter().map(|found| found.peer.clone()).collect();
    let chosen = peers::choose(choice, choices.peer.as_deref()).map_err(ImportError::alone)?;
    let interface = found.iter().find(|found| found.peer.key == chosen);
    let interface = interface.map(|found| found.interface.clone()).unwrap_or_default();
    let peers: Vec<_> = found.into_iter().map(|found| (found.group, found.peer)).collect();
    belongs_to(&mut lines, &interface, &peers, chosen);
    let mut read = Network {
        draft: Draft::new(host, choices),
        endpoint_host: None,
        endpoint_port: 51820,
        route_allowed: false,
        tables: Tables::default(),
        routes: BTreeMap::new(),
    };
    read.draft.tunnel.device = value::is_device(&interface).then(|| interface.clone());
    let outcomes = apply(ROWS, lines, &mut read);
    match read.finish(&interface, choices) {
        Ok((tunnel, notes)) => {
            let stop = Some(format!(
                "uci set {} && uci commit network && ifdown {}",
                shell_word(&format!("network.{interface}.disabled=1")),
                shell_word(&interface)
            ));
            Ok(Imported { format: Format::OpenWrt, tunnel, other: None, outcomes, notes, stop })
        }
        Err(error) => Err(error.after(outcomes)),
    }
}

/// A peer, and the interface that it belongs to.
struct Found {
    group: usize,
    interface: String,
    peer: PeerChoice,
}

fn peers_of(lines: &[Line]) -> Vec<Found> {
    let of = |group: usize, key: &str| {
        let mut all = lines.iter().filter(|line| line.group == group && line.key == key);
        all.next().map_or("", |line| line.value.as_str())
    };
    let mut found = vec![];
    for line in lines.iter().filter(|line| line.key == "public_key") {
        let kind = line.section.split(' ').next().unwrap_or_default();
        let Some(interface) = kind.strip_prefix("wireguard_") else { continue };
        let Ok(key) = PublicKey::from_base64(&line.value) else { continue };
        if value::truth(of(line.group, "disabled")) == Some(true) {
            continue;
        }
        let told = ["description", "endpoint_host", "allowed_ips"].map(|key| of(line.group, key));
        let about = format!("{interface}: {}", told.join("  "));
        let peer = PeerChoice { key, about };
        found.push(Found { group: line.group, interface: interface.to_owned(), peer });
    }
    found
}

/// Gives the sections of the tunnel the names of the table, and decides all other lines.
fn belongs_to(
    lines: &mut [Line],
    interface: &str,
    peers: &[(usize, PeerChoice)],
    chosen: PublicKey,
) {
    let names = |line: &&Line| line.key == "interface" && line.value.as_str() == interface;
    let routes: Vec<_> = lines.iter().filter(names).map(|line| line.group).collect();
    let peers_section = format!("wireguard_{interface}");
    for line in lines.iter_mut() {
        let (section, name) = line.section.split_once(' ').unwrap_or((&line.section, ""));
        let ours = match section {
            I => name == interface,
            R | R6 => routes.contains(&line.group),
            _ => section == peers_section,
        };
        let section = if section == peers_section { P } else { section }.to_owned();
        let place = format!("{section} {name}");
        line.section = section;
        if !ours {
            line.decide(|| outside(place.trim()));
        }
    }
    peers::keep_only(lines, P, peers, chosen);
}

fn outside(place: &str) -> Verdict {
    Verdict::dropped(format!("`{place}` is no part of this tunnel: it stays where it is"))
}

impl Network {
    fn finish(
        mut self,
        interface: &str,
        choices: &Choices,
    ) -> Result<(crate::Tunnel, Vec<String>), ImportError> {
        let draft = &mut self.draft;
        let name = choices.name.as_deref().unwrap_or(interface);
        draft.tunnel.name = value::tunnel_name(name).ok_or(ImportError::Name)?;
        if let Some(host) = self.endpoint_host {
            draft.tunnel.endpoints = vec![value::endpoint(&host, self.endpoint_port)];
        }
        for route in self.routes.values().filter_map(RouteSection::route) {
            draft.tunnel.add_route(route);
        }
        if self.route_allowed {
            for to in draft.allowed.clone() {
                let table = if to.addr().is_ipv4() { self.tables.v4 } else { self.tables.v6 };
                if table.is_some() || !draft.tunnel.connects(&to) {
                    draft.tunnel.add_route(Route { to, metric: draft.metric, table });
                }
            }
        }
        draft.routing = Routing::Off;
        self.draft.finish()
    }
}

impl RouteSection {
    /// `target` with its `netmask`, if it has one.
    fn route(&self) -> Option<Route> {
        let to = match (value::net(&self.target)?, self.netmask) {
            (ipnet::IpNet::V4(net), Some(mask)) => value::masked(net.addr(), mask)?.into(),
            (net, _) => net,
        };
        let table = self.table.filter(|table| *table != 254);
        (!self.off).then_some(Route { to: to.trunc(), metric: self.metric, table })
    }
}

/// An address without a mask is a host.
pub(crate) fn host_address(text: &str) -> Option<IpAddr> {
    value::address(text).filter(|address| value::is_host_address(*address))
}
