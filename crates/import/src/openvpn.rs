//! OpenVPN between two points: a static key (`secret`), or TLS without a server. The new tunnel has vpnd at both ends
//! and new keys, because OpenVPN's are of another kind.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use ipnet::IpNet;

use crate::line::Source;
use crate::report::{Failure, ImportError, Imported, Outcome};
use crate::table::apply;
use crate::tunnel::{Route, Tunnel};
use crate::{Choices, Format, Host, shell_word, value};

mod addresses;
mod carrier;
mod parse;
mod rows;
mod scripts;

pub(crate) use rows::{ROWS, is_option};

/// The port of OpenVPN.
const PORT: u16 = 1194;

/// One end, as far as it is read.
pub(crate) struct OpenVpn {
    host: Rc<dyn Host>,
    tunnel: Tunnel,
    /// The base of relative paths.
    directory: PathBuf,
    /// Whether OpenVPN would run scripts.
    runs_scripts: bool,
    /// The option that only a server, or its client, has.
    server: Option<String>,
    client: Option<String>,
    port: Option<u16>,
    lport: Option<u16>,
    rport: Option<u16>,
    nobind: bool,
    local: Option<IpAddr>,
    /// The ports and protocols of `<connection>` blocks, by their group.
    connections: Vec<(usize, u16)>,
    route_metric: Option<u32>,
    route_gateway: Option<IpAddr>,
    /// The other end's addresses, as far as this end knows them.
    others: Vec<IpNet>,
    dns: bool,
    notes: Vec<String>,
}

pub(crate) fn import(
    sources: &[Source],
    choices: &Choices,
    host: &Rc<dyn Host>,
) -> Result<Imported, Box<Failure>> {
    let (first, second) = match sources {
        [first] => (first, None),
        [first, second] => (first, Some(second)),
        _ => {
            return Err(
                ImportError::Files("give the file of this end, and that of the other end").alone()
            );
        }
    };
    let (here, mut outcomes) = read(0, first, host);
    let there = second.map(|second| read(1, second, host));
    let stop = Some(format!("systemctl disable --now {}", shell_word(&unit(first))));
    let name = choices.name.as_deref().unwrap_or_else(|| first.stem());
    let result = here.finish().and_then(|(tunnel, others, mut notes)| {
        let mut tunnel =
            Tunnel { name: value::tunnel_name(name).ok_or(ImportError::Name)?, ..tunnel };
        let mut other = match (second, there) {
            (Some(second), Some((there, more))) => {
                outcomes.extend(more);
                let (other, _, more) = there.finish()?;
                notes
                    .extend(more.into_iter().map(|note| format!("{}: {note}", second.file_name())));
                let name = value::tunnel_name(second.stem()).ok_or(ImportError::Name)?;
                Tunnel { name, cipher: tunnel.cipher, ..other }
            }
            _ => mirrored(&tunnel, &others, choices, &mut notes)?,
        };
        exchange_keys(&mut tunnel, &mut other, &**host);
        Ok((tunnel, other, notes))
    });
    match result {
        Ok((tunnel, other, notes)) => Ok(Imported {
            format: Format::OpenVpn,
            tunnel,
            other: Some(other),
            outcomes,
            notes,
            stop,
        }),
        Err(error) => Err(error.after(outcomes)),
    }
}

/// The unit of systemd that starts this file.
fn unit(source: &Source) -> String {
    let template = match source.directory().rsplit('/').next() {
        Some("server") => "openvpn-server",
        Some("client") => "openvpn-client",
        _ => "openvpn",
    };
    format!("{template}@{}", source.stem())
}

fn read(file: usize, source: &Source, host: &Rc<dyn Host>) -> (OpenVpn, Vec<Outcome>) {
    let mut draft = OpenVpn {
        host: Rc::clone(host),
        tunnel: Tunnel { vpnd: true, ..Tunnel::default() },
        directory: PathBuf::from(source.directory()),
        runs_scripts: false,
        server: None,
        client: None,
        port: None,
        lport: None,
        rport: None,
        nobind: false,
        local: None,
        connections: vec![],
        route_metric: None,
        route_gateway: None,
        others: vec![],
        dns: false,
        notes: vec![],
    };
    let outcomes = apply(ROWS, parse::parse(file, source), &mut draft);
    (draft, outcomes)
}

/// Gives both ends new keys.
fn exchange_keys(here: &mut Tunnel, there: &mut Tunnel, host: &dyn Host) {
    (here.private_key, there.private_key) = (host.private_key(), host.private_key());
    (here.public_key, there.public_key) = (there.own_public_key(), here.own_public_key());
    here.preshared_key = Some(host.preshared_key());
    there.preshared_key.clone_from(&here.preshared_key);
}

/// The other end, as far as it follows from this one.
fn mirrored(
    here: &Tunnel,
    others: &[IpNet],
    choices: &Choices,
    notes: &mut Vec<String>,
) -> Result<Tunnel, ImportError> {
    let (endpoint, listen) = (where_we_are(here, choices), their_port(here));
    if endpoint.is_none() && listen.is_none() {
        return Err(ImportError::NoEndpoint);
    }
    if others.is_empty() {
        notes.push(NO_ADDRESS.to_owned());
    }
    notes.push(NO_NETWORKS.to_owned());
    Ok(Tunnel {
        name: format!("{}-peer", here.name),
        device: here.device.clone(),
        tap: here.tap,
        addresses: others.to_vec(),
        peer_addresses: our_addresses(here),
        listen,
        mtu: here.mtu,
        vpnd: true,
        cipher: here.cipher,
        endpoints: endpoint.into_iter().collect(),
        keepalive: here.keepalive,
        dead_after: here.dead_after,
        mss_clamp: here.mss_clamp,
        mtu_max: here.mtu_max,
        ..Tunnel::default()
    })
}

const NO_ADDRESS: &str =
    "the other end's address inside is not in this file: set [interface] address there";

const NO_NETWORKS: &str = "the other end's networks are not in this file: at the other end add a [[route]] for each \
     network behind this one, or import both files at once (`vpnd import HERE.conf THERE.conf`)";

/// Where the other end reaches this one.
fn where_we_are(here: &Tunnel, choices: &Choices) -> Option<String> {
    let has_port = |text: &str| {
        value::split_endpoint(text).is_some_and(|(_, port)| value::port(port).is_some())
    };
    match (&choices.endpoint, here.listen) {
        (Some(text), _) if has_port(text) => Some(text.clone()),
        (Some(host), listen) => Some(value::endpoint(host, listen.map_or(PORT, |(_, port)| port))),
        (None, Some((Some(address), port))) => Some(value::endpoint(&address.to_string(), port)),
        (None, _) => None,
    }
}

/// The port that this end calls.
fn their_port(here: &Tunnel) -> Option<(Option<IpAddr>, u16)> {
    let (_, port) = value::split_endpoint(here.endpoints.first()?)?;
    value::port(port).map(|port| (None, port))
}

/// Our addresses that are the far ends of a point-to-point device.
fn our_addresses(here: &Tunnel) -> Vec<IpAddr> {
    let own =
        |v4: bool| here.addresses.iter().find(|own| own.addr().is_ipv4() == v4).map(IpNet::addr);
    here.peer_addresses.iter().filter_map(|far| own(far.is_ipv4())).collect()
}

const NO_MTU: &str = "no tun-mtu: the device's MTU follows the path, where OpenVPN has 1500";

const FILTER: &str = "the peer may use only source addresses that are routed to it ([peer] \
                      allowed_ips); OpenVPN accepts any";

impl OpenVpn {
    /// The tunnel, without name and keys, the other end's addresses, and notes.
    fn finish(mut self) -> Result<(Tunnel, Vec<IpNet>, Vec<String>), ImportError> {
        self.refuse()?;
        if !self.nobind {
            let port = self.lport.or(self.port);
            self.tunnel.listen = Some((self.local, port.unwrap_or(PORT)));
            if port.is_none() {
                self.notes.push(format!("no port: [interface] listen = {PORT}, OpenVPN's own"));
            }
        }
        if !self.tunnel.tap {
            self.notes.extend(self.tunnel.mtu.is_none().then(|| NO_MTU.to_owned()));
            self.notes.push(FILTER.to_owned());
        }
        Ok((self.tunnel, self.others, self.notes))
    }

    /// Refuses what is no tunnel between two points.
    fn refuse(&self) -> Result<(), ImportError> {
        let why = match (&self.server, &self.client) {
            (Some(option), _) => format!(
                "`{option}` is an option of a server with many clients. vpnd joins two sites, one \
                 tunnel for each pair: `vpnd pair` writes both ends of a tunnel"
            ),
            (None, Some(option)) => format!(
                "`{option}`: a server gives this client its addresses and routes. vpnd has no \
                 server: it joins two sites, each with a configuration of its own. `vpnd pair` \
                 writes both"
            ),
            (None, None) => return Ok(()),
        };
        Err(ImportError::NotPointToPoint(why))
    }

    /// A route into the tunnel; on an Ethernet device one by way of a gateway is a command.
    fn add_route(&mut self, to: IpNet, gateway: Option<IpAddr>, metric: Option<u32>) -> bool {
        let metric = metric.or(self.route_metric).filter(|metric| *metric > 0);
        let gateway =
            gateway.or(self.route_gateway).filter(|it| it.is_ipv4() == to.addr().is_ipv4());
        match gateway {
            Some(gateway) if self.tunnel.tap => {
                let family = if to.addr().is_ipv4() { "-4" } else { "-6" };
                let metric = metric.map_or_else(String::new, |metric| format!(" metric {metric}"));
                let command = format!(
                    "exec ip {family} route replace {to} via {gateway} dev \"$VPND_DEVICE\"{metric}"
                );
                self.tunnel.up.push(vec!["sh".into(), "-c".into(), command]);
                true
            }
            _ => {
                self.tunnel.add_route(Route { to, metric, table: None });
                false
            }
        }
    }

    /// A path of the file.
    fn path(&self, text: &str) -> PathBuf {
        self.directory.join(Path::new(text))
    }
}
