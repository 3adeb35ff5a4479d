//! systemd-networkd: a `.netdev` with `Kind=wireguard` and the `.network` of its device, with their drop-ins.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::line::{Line, Source};
use crate::peers::{self, PeerKeys};
use crate::report::{Failure, ImportError, Imported};
use crate::table::{Verdict, apply};
use crate::tunnel::Route;
use crate::wireguard::Draft;
use crate::{Choices, Format, Host, ini, shell_word, value};

mod rows;

pub(crate) use rows::ROWS;

/// What is read of the two files besides the tunnel.
pub(crate) struct Networkd {
    pub(crate) draft: Draft,
    pub(crate) kind: Option<String>,
    /// `[Address]` and `[Route]`, by their group.
    pub(crate) addresses: BTreeMap<usize, AddressSection>,
    pub(crate) routes: BTreeMap<usize, RouteSection>,
}

/// The section `[Address]`.
#[derive(Default)]
pub(crate) struct AddressSection {
    pub(crate) address: Option<ipnet::IpNet>,
    pub(crate) peer: Option<ipnet::IpNet>,
}

/// The section `[Route]`.
#[derive(Default)]
pub(crate) struct RouteSection {
    pub(crate) to: Option<ipnet::IpNet>,
    /// `Gateway=` without a destination is a default route.
    pub(crate) gateway: Option<std::net::IpAddr>,
    pub(crate) metric: Option<u32>,
    pub(crate) table: Option<u32>,
    /// Another type than unicast, which leads nowhere.
    pub(crate) elsewhere: bool,
}

const PEER: PeerKeys = PeerKeys { key: "PublicKey", about: &["Endpoint", "AllowedIPs"] };
const P: &str = "WireGuardPeer";

pub(crate) fn import(
    sources: &[Source],
    choices: &Choices,
    host: &Rc<dyn Host>,
) -> Result<Imported, Box<Failure>> {
    let mut lines = vec![];
    for (file, source) in sources.iter().enumerate() {
        let offset = lines.iter().map(|line: &Line| line.group).max().unwrap_or(0) + 1;
        let mut more = ini::parse(file, source, &ini::SYSTEMD);
        more.iter_mut().for_each(|line| line.group += offset);
        lines.extend(more);
    }
    ini::forget_cleared(&mut lines);
    let found = peers::of_sections(&lines, P, &PEER);
    let choice = found.iter().map(|(_, peer)| peer.clone()).collect();
    let chosen = match peers::choose(choice, choices.peer.as_deref()) {
        Err(ImportError::NoPeer) => return Err(only_network(&lines).alone()),
        chosen => chosen.map_err(ImportError::alone)?,
    };
    peers::keep_only(&mut lines, P, &found, chosen);
    let mut read = Networkd {
        draft: Draft::new(host, choices),
        kind: None,
        addresses: BTreeMap::new(),
        routes: BTreeMap::new(),
    };
    let outcomes = apply(ROWS, lines, &mut read);
    match read.finish(choices) {
        Ok((tunnel, notes)) => {
            let stop = Some(stop(sources, tunnel.device.as_deref().unwrap_or("DEVICE")));
            Ok(Imported { format: Format::Networkd, tunnel, other: None, outcomes, notes, stop })
        }
        Err(error) => Err(error.after(outcomes)),
    }
}

fn only_network(lines: &[Line]) -> ImportError {
    if lines.iter().any(|line| line.section == "NetDev") {
        return ImportError::NoPeer;
    }
    ImportError::Files("keys and peer are in the .netdev file of this .network: give both")
}

fn stop(sources: &[Source], device: &str) -> String {
    let own = sources.iter().filter(|source| !source.name.ends_with(".conf"));
    let files: Vec<_> = own.map(|source| shell_word(&source.name)).collect();
    let device = shell_word(device);
    format!("mv {} /root/ && networkctl reload && networkctl delete {device}", files.join(" "))
}

impl Networkd {
    fn finish(mut self, choices: &Choices) -> Result<(crate::Tunnel, Vec<String>), ImportError> {
        if let Some(kind) = self.kind.filter(|kind| kind != "wireguard") {
            let why = format!(
                "[NetDev] Kind={kind}: only Kind=wireguard is a tunnel that vpnd can take over"
            );
            return Err(ImportError::NotPointToPoint(why));
        }
        let draft = &mut self.draft;
        let name = choices.name.as_deref().or(draft.tunnel.device.as_deref());
        draft.tunnel.name = name.and_then(value::tunnel_name).ok_or(ImportError::Name)?;
        for section in self.addresses.into_values() {
            section.add(draft);
        }
        for section in self.routes.into_values() {
            section.add(draft);
        }
        self.draft.finish()
    }
}

impl AddressSection {
    fn add(self, draft: &mut Draft) {
        let Some(address) = self.address else { return };
        match self.peer {
            Some(peer) if peer.addr().is_ipv4() == address.addr().is_ipv4() => {
                draft.tunnel.addresses.push(address.addr().into());
                draft.tunnel.peer_addresses.push(peer.addr());
                if peer.prefix_len() < peer.max_prefix_len() {
                    draft.tunnel.add_route(Route::to(peer.trunc()));
                }
            }
            _ => draft.notes.extend(draft.tunnel.add_address(address)),
        }
    }
}

impl RouteSection {
    fn add(self, draft: &mut Draft) {
        let everything = |gateway: std::net::IpAddr| match gateway {
            std::net::IpAddr::V4(_) => value::net("0.0.0.0/0"),
            std::net::IpAddr::V6(_) => value::net("::/0"),
        };
        let to = self.to.or_else(|| self.gateway.and_then(everything));
        if let (Some(to), false) = (to, self.elsewhere) {
            let table = self.table.filter(|table| *table != 254);
            draft.tunnel.add_route(Route { to, metric: self.metric, table });
        }
    }
}

/// The outcome of a line of `[Route]` whose type leads nowhere.
pub(crate) fn elsewhere() -> Verdict {
    Verdict::dropped(
        "a route of this type does not lead into the tunnel: `ip route add` in [hooks] up",
    )
}
