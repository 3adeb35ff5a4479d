//! NetworkManager: a keyfile with `type=wireguard`.

use std::collections::BTreeMap;
use std::rc::Rc;

use ipnet::IpNet;

use crate::line::{Line, Source};
use crate::peers::{self, PeerChoice};
use crate::report::{Failure, ImportError, Imported};
use crate::table::apply;
use crate::tunnel::Route;
use crate::wireguard::{Draft, Routing};
use crate::{Choices, Format, Host, ini, shell_word, value};

mod rows;

pub(crate) use rows::ROWS;

/// What is read besides the tunnel.
pub(crate) struct Keyfile {
    pub(crate) draft: Draft,
    pub(crate) v4: Family,
    pub(crate) v6: Family,
    /// Whether the allowed IPs are routed.
    pub(crate) peer_routes: bool,
    /// `routeN`, by family and number.
    pub(crate) routes: BTreeMap<(bool, usize), Route>,
}

/// The settings of `[ipv4]` or `[ipv6]`.
#[derive(Default)]
pub(crate) struct Family {
    pub(crate) never_default: bool,
    pub(crate) table: Option<u32>,
    pub(crate) metric: Option<u32>,
}

/// The part of a section's name before the peer's key.
const PEER: &str = "wireguard-peer.";
/// Peers' sections in the table.
pub(crate) const P: &str = "wireguard-peer";

pub(crate) fn import(
    sources: &[Source],
    choices: &Choices,
    host: &Rc<dyn Host>,
) -> Result<Imported, Box<Failure>> {
    let [source] = sources else {
        return Err(ImportError::Files("a keyfile of NetworkManager is one file").alone());
    };
    let mut lines = ini::parse(0, source, &ini::KEYFILE);
    let kind = lines.iter().find(|line| line.section == "connection" && line.key == "type");
    if let Some(other) = kind.filter(|kind| kind.value.as_str() != "wireguard") {
        return Err(other_type(&other.value).alone());
    }
    let found = peers_of(&mut lines, source);
    let choice = found.iter().map(|(_, peer)| peer.clone()).collect();
    let chosen = peers::choose(choice, choices.peer.as_deref()).map_err(ImportError::alone)?;
    peers::keep_only(&mut lines, P, &found, chosen);
    lines.iter_mut().for_each(unnumber);
    let mut read = Keyfile {
        draft: Draft::new(host, choices),
        v4: Family::default(),
        v6: Family::default(),
        peer_routes: true,
        routes: BTreeMap::new(),
    };
    read.draft.tunnel.public_key = Some(chosen);
    let outcomes = apply(ROWS, lines, &mut read);
    match read.finish(source, choices) {
        Ok((tunnel, notes, stop)) => {
            let stop = Some(stop);
            let format = Format::NetworkManager;
            Ok(Imported { format, tunnel, other: None, outcomes, notes, stop })
        }
        Err(error) => Err(error.after(outcomes)),
    }
}

fn other_type(kind: &str) -> ImportError {
    ImportError::NotPointToPoint(match kind {
        "vpn" => "this connection is a plugin's, type=vpn: write its own configuration with \
                  `nmcli connection export NAME > NAME.conf`, and import that"
            .to_owned(),
        kind => format!("type={kind}: only type=wireguard is a tunnel that vpnd can take over"),
    })
}

/// The peers, whose keys are in the names of their sections; the lines get the name that the table has.
fn peers_of(lines: &mut [Line], source: &Source) -> Vec<(usize, PeerChoice)> {
    let mut found: Vec<(usize, PeerChoice)> = vec![];
    let mut group = 0;
    for text in source.text.lines() {
        let Some(section) = text.trim().strip_prefix('[').and_then(|it| it.strip_suffix(']'))
        else {
            continue;
        };
        group += 1;
        let key = section.strip_prefix(PEER).map(vpnd_crypto::PublicKey::from_base64);
        if let Some(Ok(key)) = key {
            found.push((group, PeerChoice { key, about: String::new() }));
        }
    }
    for line in lines.iter_mut().filter(|line| line.section.starts_with(PEER)) {
        P.clone_into(&mut line.section);
        let peer = found.iter_mut().find(|(group, _)| *group == line.group);
        if let (Some((_, peer)), "endpoint" | "allowed-ips") = (peer, line.key.as_str()) {
            peer.about = format!("{}  {}", peer.about, line.value.as_str()).trim().to_owned();
        }
    }
    found
}

/// `address1` is `addressN` in the table; the number is kept as the group of a route.
fn unnumber(line: &mut Line) {
    if !line.section.starts_with("ip") {
        return;
    }
    for stem in ["address", "route", "routing-rule"] {
        let Some(rest) = line.key.strip_prefix(stem) else { continue };
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, more) = rest.split_at(digits);
        if let (Ok(number), "" | "_options") = (number.parse(), more) {
            let key = format!("{stem}N{more}");
            line.group = number;
            line.shown = Some(std::mem::replace(&mut line.key, key));
        }
    }
}

impl Keyfile {
    pub(crate) fn family(&mut self, line: &Line) -> &mut Family {
        if line.section == "ipv4" { &mut self.v4 } else { &mut self.v6 }
    }

    fn finish(
        mut self,
        source: &Source,
        choices: &Choices,
    ) -> Result<(crate::Tunnel, Vec<String>, String), ImportError> {
        let id = self.draft.tunnel.name.clone();
        let device = self.draft.tunnel.device.clone();
        let name = [choices.name.as_deref(), device.as_deref(), Some(&id), Some(source.stem())];
        let name = name.into_iter().flatten().find_map(value::tunnel_name);
        self.draft.tunnel.name = name.ok_or(ImportError::Name)?;
        for route in self.routes.into_values() {
            self.draft.tunnel.add_route(route);
        }
        // NetworkManager routes the allowed networks one family at a time.
        if self.peer_routes {
            let nets = self.draft.allowed.clone();
            for to in nets {
                let family = if to.addr().is_ipv4() { &self.v4 } else { &self.v6 };
                route(&mut self.draft, to, family);
            }
        }
        self.draft.routing = Routing::Off;
        let (tunnel, notes) = self.draft.finish()?;
        let id = if id.is_empty() { tunnel.name.clone() } else { id };
        let id = shell_word(&id);
        Ok((
            tunnel,
            notes,
            format!("nmcli connection modify {id} autoconnect no; nmcli connection down {id}"),
        ))
    }
}

fn route(draft: &mut Draft, to: IpNet, family: &Family) {
    let covered = family.table.is_none() && draft.tunnel.connects(&to);
    if covered || (to.prefix_len() == 0 && family.never_default) {
        return;
    }
    draft.tunnel.add_route(Route { to, metric: family.metric, table: family.table });
}
