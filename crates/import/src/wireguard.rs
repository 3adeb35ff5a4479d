//! What the four WireGuard formats have in common: a draft of the tunnel, and its keys.

use std::path::Path;
use std::rc::Rc;

use ipnet::IpNet;
use vpnd_crypto::{PresharedKey, PublicKey, SecretKey};
use zeroize::Zeroizing;

use crate::Choices;
use crate::host::Host;
use crate::line::Line;
use crate::report::ImportError;
use crate::table::Verdict;
use crate::tunnel::{Route, Tunnel};
use crate::value;

/// What becomes of the networks in `AllowedIPs`, besides the filter.
#[derive(Clone, Copy, Default)]
pub(crate) enum Routing {
    /// No routes.
    #[default]
    Off,
    /// A route to each network for which there is none yet.
    Auto,
    /// A route to each in this table.
    Table(u32),
}

/// The tunnel as far as it is read.
pub(crate) struct Draft {
    pub(crate) host: Rc<dyn Host>,
    pub(crate) tunnel: Tunnel,
    pub(crate) allowed: Vec<IpNet>,
    pub(crate) routing: Routing,
    /// The metric of the routes to the allowed networks.
    pub(crate) metric: Option<u32>,
    /// Networks that are not routed, although they are allowed.
    pub(crate) unrouted: fn(&IpNet) -> bool,
    /// Why a key is missing.
    pub(crate) no_private_key: Option<String>,
    pub(crate) no_preshared_key: Option<String>,
    pub(crate) notes: Vec<String>,
}

impl Draft {
    pub(crate) fn new(host: &Rc<dyn Host>, choices: &Choices) -> Self {
        let tunnel = Tunnel {
            private_key: choices.private_key.clone().unwrap_or_default(),
            preshared_key: choices.preshared_key.clone(),
            ..Tunnel::default()
        };
        Self {
            host: Rc::clone(host),
            tunnel,
            allowed: vec![],
            routing: Routing::Off,
            metric: None,
            unrouted: |_| false,
            no_private_key: None,
            no_preshared_key: None,
            notes: vec![],
        }
    }

    /// The tunnel, once everything is read.
    pub(crate) fn finish(mut self) -> Result<(Tunnel, Vec<String>), ImportError> {
        if self.tunnel.private_key.is_empty() {
            let why = self.no_private_key.unwrap_or_else(|| "the file has none".to_owned());
            return Err(ImportError::NoPrivateKey(format!("{why}. Give it by --private-key FILE")));
        }
        if let (None, Some(why)) = (&self.tunnel.preshared_key, self.no_preshared_key.take()) {
            return Err(ImportError::NoPresharedKey(format!(
                "{why}. Give it by --preshared-key FILE"
            )));
        }
        self.route();
        self.room_for_ipv6();
        self.tunnel.allowed_ips = Some(self.allowed);
        if self.tunnel.listen.is_none() && self.tunnel.endpoints.is_empty() {
            self.notes.push("neither a port nor an endpoint: neither end could begin".to_owned());
        }
        Ok((self.tunnel, self.notes))
    }

    /// IPv6 needs an MTU of 1280 (RFC 8200 §5), without which the kernel has no IPv6 on the device.
    fn room_for_ipv6(&mut self) {
        let tunnel = &mut self.tunnel;
        let nets = tunnel.addresses.iter().chain(tunnel.routes.iter().map(|route| &route.to));
        let v6 = nets.into_iter().any(|net| net.addr().is_ipv6());
        if let Some(mtu) = tunnel.mtu.filter(|mtu| v6 && *mtu < 1280) {
            tunnel.mtu = Some(1280);
            self.notes.push(format!("the MTU {mtu} becomes 1280: IPv6 inside needs that"));
        }
    }

    fn route(&mut self) {
        let tunnel = &mut self.tunnel;
        let routed = self.allowed.iter().filter(|net| !(self.unrouted)(net));
        for to in routed.copied() {
            let route = Route { to, metric: self.metric, table: None };
            match self.routing {
                Routing::Off => {}
                Routing::Auto if tunnel.connects(&to) => {}
                Routing::Auto => tunnel.add_route(route),
                Routing::Table(table) => tunnel.add_route(Route { table: Some(table), ..route }),
            }
        }
    }

    /// Adds commands as `sh` or `bash` would run them.
    pub(crate) fn shell(shell: &str, command: &str) -> Vec<String> {
        vec![shell.to_owned(), "-c".to_owned(), command.to_owned()]
    }
}

pub(crate) fn private_key(draft: &mut Draft, line: &Line) -> Verdict {
    if draft.tunnel.private_key.is_empty() {
        return take_private_key(draft, &line.value);
    }
    Verdict::dropped("--private-key, or an earlier line, has given another")
}

pub(crate) fn take_private_key(draft: &mut Draft, text: &str) -> Verdict {
    match SecretKey::from_base64(text.trim()) {
        Ok(key) => {
            draft.tunnel.private_key = key.to_base64();
            Verdict::taken("in the key file, which only its owner may read")
        }
        Err(error) => {
            draft.no_private_key = Some(format!("the one in the file is not valid: {error}"));
            Verdict::invalid(&format!("a key ({error})"))
        }
    }
}

/// A file with the private key.
pub(crate) fn private_key_file(draft: &mut Draft, line: &Line) -> Verdict {
    match read_key(draft, &line.value) {
        Ok(text) => {
            let verdict = private_key_text(draft, &text);
            Verdict { kind: changed_if_taken(verdict.kind), ..verdict }
        }
        Err(why) => {
            draft.no_private_key = Some(why.clone());
            Verdict::dropped(format!("{why}: give the key by --private-key FILE"))
        }
    }
}

fn private_key_text(draft: &mut Draft, text: &str) -> Verdict {
    if !draft.tunnel.private_key.is_empty() {
        return Verdict::dropped("--private-key, or an earlier line, has given another");
    }
    let verdict = take_private_key(draft, text);
    match verdict.kind {
        crate::Kind::Taken => Verdict::changed("the key is copied to the key file of vpnd"),
        _ => verdict,
    }
}

fn changed_if_taken(kind: crate::Kind) -> crate::Kind {
    if kind == crate::Kind::Taken { crate::Kind::Changed } else { kind }
}

/// A file with the preshared key.
pub(crate) fn preshared_key_file(draft: &mut Draft, line: &Line) -> Verdict {
    match read_key(draft, &line.value) {
        Ok(text) => {
            let verdict = take_preshared_key(draft, &text);
            Verdict { kind: changed_if_taken(verdict.kind), ..verdict }
        }
        Err(why) => {
            draft.no_preshared_key = Some(why.clone());
            Verdict::dropped(format!("{why}: give the key by --preshared-key FILE"))
        }
    }
}

/// A credential of systemd (`@NAME`) is in no file that could be read.
fn read_key(draft: &Draft, path: &str) -> Result<Zeroizing<String>, String> {
    if let Some(name) = path.strip_prefix('@') {
        return Err(format!("it is the credential {name} of systemd"));
    }
    let read = draft.host.read(Path::new(path));
    read.map_err(|error| format!("cannot read {path}: {error}"))
}

pub(crate) fn preshared_key(draft: &mut Draft, line: &Line) -> Verdict {
    take_preshared_key(draft, &line.value)
}

fn take_preshared_key(draft: &mut Draft, text: &str) -> Verdict {
    match PresharedKey::from_base64(text.trim()) {
        Ok(key) if key.as_bytes() == &[0; 32] => Verdict::taken("all zeros, which is none"),
        Ok(key) => {
            draft.tunnel.preshared_key = Some(key.to_base64());
            Verdict::taken("in a key file of its own, which only its owner may read")
        }
        Err(error) => {
            draft.no_preshared_key = Some(format!("the one in the file is not valid: {error}"));
            Verdict::invalid(&format!("a key ({error})"))
        }
    }
}

pub(crate) fn public_key(draft: &mut Draft, line: &Line) -> Verdict {
    match PublicKey::from_base64(&line.value) {
        Ok(key) => {
            draft.tunnel.public_key = Some(key);
            Verdict::taken(format!("[peer] public_key = \"{key}\""))
        }
        Err(error) => Verdict::invalid(&format!("a key ({error})")),
    }
}

pub(crate) fn listen_port(draft: &mut Draft, line: &Line) -> Verdict {
    match line.value.as_str() {
        "0" | "auto" => Verdict::taken("any free port, which is the default"),
        text => match value::port(text) {
            Some(port) => {
                draft.tunnel.listen = Some((None, port));
                Verdict::taken(format!("[interface] listen = {port}"))
            }
            None => Verdict::invalid("a port from 0 to 65535"),
        },
    }
}

pub(crate) fn fwmark(draft: &mut Draft, line: &Line) -> Verdict {
    if line.value.eq_ignore_ascii_case("off") || line.value.as_str() == "0" {
        return Verdict::taken("no mark, which is the default");
    }
    match value::mark(&line.value) {
        Some(0) => Verdict::taken("no mark, which is the default"),
        Some(mark) => {
            draft.tunnel.fwmark = Some(mark);
            Verdict::taken(format!("[socket] fwmark = {mark}"))
        }
        None => Verdict::invalid("a mark such as 51820 or 0xca6c"),
    }
}

pub(crate) fn mtu(draft: &mut Draft, line: &Line) -> Verdict {
    match value::decimal(&line.value) {
        Some(0) => Verdict::taken("the default"),
        Some(_) => match value::mtu(&line.value) {
            Some(mtu) => {
                draft.tunnel.mtu = Some(mtu);
                Verdict::taken(format!("[interface] mtu = {mtu}"))
            }
            None => Verdict::dropped("vpnd's MTU is 576 to 65535: the default stays, 1420"),
        },
        None => Verdict::invalid("an MTU"),
    }
}

/// A list of allowed networks.
pub(crate) fn allowed_ips(draft: &mut Draft, line: &Line) -> Verdict {
    let (mut cut, mut bad) = (vec![], vec![]);
    for item in line.items(&[',', ';']) {
        match value::net(item) {
            Some(net) => {
                if net != net.trunc() {
                    cut.push(net.trunc().to_string());
                }
                if !draft.allowed.contains(&net.trunc()) {
                    draft.allowed.push(net.trunc());
                }
            }
            None => bad.push(item.to_owned()),
        }
    }
    if !bad.is_empty() {
        return Verdict::changed(format!("not networks, left out: {}", bad.join(", ")));
    }
    if !cut.is_empty() {
        let text = format!("without host bits, as WireGuard does: {}", cut.join(", "));
        return Verdict::changed(text);
    }
    Verdict::taken(match draft.routing {
        Routing::Off => "[peer] allowed_ips",
        _ => "[peer] allowed_ips, and a [[route]] to each that no address covers",
    })
}

/// `host:port`.
pub(crate) fn endpoint(draft: &mut Draft, line: &Line) -> Verdict {
    let text = line.value.as_str();
    let Some((host, port)) = value::split_endpoint(text) else {
        return Verdict::invalid("HOST:PORT");
    };
    let number = value::port(port).or_else(|| value::service_port(port, &*draft.host));
    let (true, Some(number)) = (value::is_host(host), number) else {
        return Verdict::invalid("HOST:PORT, a name or an address and a port from 1 to 65535");
    };
    let endpoint = value::endpoint(host, number);
    let verdict = if endpoint == text { Verdict::taken } else { Verdict::changed };
    let verdict = verdict(format!("[peer] endpoint = \"{endpoint}\""));
    draft.tunnel.endpoints = vec![endpoint];
    verdict
}

pub(crate) fn keepalive(draft: &mut Draft, line: &Line) -> Verdict {
    if line.value.eq_ignore_ascii_case("off") || line.value.as_str() == "0" {
        return Verdict::taken("off, which is the default");
    }
    match value::port(&line.value) {
        Some(seconds) => {
            draft.tunnel.keepalive = Some(seconds);
            Verdict::taken(format!("[peer] keepalive = \"{seconds}s\""))
        }
        None => Verdict::invalid("off, or seconds up to 65535"),
    }
}

/// A list of our addresses.
pub(crate) fn addresses(draft: &mut Draft, line: &Line) -> Verdict {
    let (mut changed, mut bad) = (vec![], vec![]);
    for item in line.items(&[',']) {
        match value::net(item) {
            Some(net) => changed.extend(draft.tunnel.add_address(net)),
            None => bad.push(item.to_owned()),
        }
    }
    if !bad.is_empty() {
        return Verdict::changed(format!("not addresses, left out: {}", bad.join(", ")));
    }
    if !changed.is_empty() {
        return Verdict::changed(changed.join("; "));
    }
    Verdict::taken("[interface] address")
}

/// Adds a name server or a domain. Returns whether it is one.
pub(crate) fn add_dns(tunnel: &mut Tunnel, item: &str) -> bool {
    let server = value::address(item);
    match server.filter(|address| value::is_host_address(*address)) {
        Some(address) if !tunnel.dns_servers.contains(&address) => tunnel.dns_servers.push(address),
        Some(_) => {}
        None if server.is_none() && value::is_domain(item) => add_domain(tunnel, item),
        None => return false,
    }
    true
}

pub(crate) fn add_domain(tunnel: &mut Tunnel, domain: &str) {
    if !tunnel.dns_domains.iter().any(|known| known == domain) {
        tunnel.dns_domains.push(domain.to_owned());
    }
}
