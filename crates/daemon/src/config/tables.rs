//! A function for each table: its keys, their valid values and their defaults.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use nix::unistd::User;
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use tracing::level_filters::LevelFilter;
use vpnd_crypto::{Algorithm, KeyError, PresharedKey, PublicKey, SecretKey};
use vpnd_device::WhenDown;
use vpnd_protocol::endpoint::Roam;
use vpnd_protocol::limits::{LEAST_MTU_V6, USUAL_MTU};
use vpnd_tun::{Adopt, Mode};
use vpnd_tunnel::udp::{Gso, Listen, unmapped};

use super::device::{self, Carrier, Queues};
use super::hooks;
use super::metrics::{Metrics, MetricsListen};
use super::model::{
    self, Config, Confinement, Guard, Icmp, Interface, LogFormat, MAIN_TABLE, MssClamp, Path, Peer,
    Route, Service, Socket,
};
use super::problem::Problem;
use super::profile::{Protocol, also_accept};
use super::rules::{self, Places};
use super::section::{Parsed, Section, Value};
use super::surroundings::Surroundings;
use super::value::{self, TextResult, expected, integer, list, text};
use super::word::word;
use crate::account::Account;
use crate::keys::Keys;

/// A uid and gid without an account: Debian reserves 65000 to 65533, systemd leaves 65520 to 65533 unused, and
/// the usual user namespaces of containers map it.
const OWN_ID: u32 = 65521;

/// The default of `return_after`.
const RETURN_AFTER: Duration = Duration::from_secs(60);

/// The default of `resolve_every`.
const RESOLVE_EVERY: Duration = Duration::from_secs(5 * 60);

/// The longest path a Unix socket may have (`sun_path`, less the zero at its end).
const MAX_SOCKET_PATH: usize = 107;

/// The whole file. The rules between keys are checked once each key is valid.
pub(super) fn all(
    file: &Spanned<DeTable<'_>>,
    from: &Surroundings,
) -> (Option<(Config, Keys)>, Vec<Problem>) {
    let mut problems = Vec::new();
    let good = tables(Section::root(file), from, &mut problems);
    if let Some((config, keys)) = good.as_ref().filter(|_| problems.is_empty()) {
        problems = rules::check(config, keys, Places::new(file.get_ref()));
        if from.starts {
            problems.extend(rules::check_start(config, Places::new(file.get_ref())));
        }
        problems.extend(from.trusted.as_ref().err().and_then(|why| rules::file(config, why)));
    }
    (good, problems)
}

fn tables(
    root: Section<'_>,
    from: &Surroundings,
    problems: &mut Vec<Problem>,
) -> Option<(Config, Keys)> {
    let peer_settings = PeerSettings::of(&root);
    let interface = table(&root, "[interface]", problems, |s| interface(s, from, &peer_settings));
    let routes = routes(root.raw("route"), problems);
    let inside = interface.as_ref().map(|(i, ..)| PeerDefaults {
        allowed_ips: rules::default_allowed_ips(i, &routes),
        guard: if i.mode == Mode::Tun { vec![Guard::Ra] } else { vec![] },
    });
    let peer = table(&root, "[peer]", problems, |s| peer(s, from, inside.unwrap_or_default()));
    let path = table(&root, "[path]", problems, path);
    let socket = table(&root, "[socket]", problems, socket);
    let dns = table(&root, "[dns]", problems, hooks::dns);
    let hooks = table(&root, "[hooks]", problems, hooks::hooks);
    let metrics = table(&root, "[metrics]", problems, |s| metrics(s, from));
    let service = table(&root, "[service]", problems, |s| service(s, from));
    problems.extend(root.close());
    let (interface, secret, next_secret) = interface?;
    let (peer, preshared, next_preshared) = peer?;
    let (name, file) = (from.name.clone(), from.file.clone());
    let config =
        Config { name, file, interface, peer, routes, path, socket, dns, hooks, metrics, service };
    Some((config, Keys { secret, next_secret, preshared, next_preshared }))
}

/// The settings of [peer] that determine defaults of [interface].
struct PeerSettings {
    /// Both ends run vpnd, which some settings of [interface] need.
    vpnd: bool,
    /// Something is sent periodically, so a silent peer is dead.
    keepalive: bool,
    /// There are name servers behind the tunnel.
    names: bool,
}

impl PeerSettings {
    fn of(root: &Section<'_>) -> Self {
        let word = |key| root.raw("peer")?.get_ref().get(key)?.get_ref().as_str();
        let keepalive = word("keepalive").is_some_and(|word| word != "off");
        let none = |value: &Value<'_>| value.get_ref().as_array().is_some_and(|all| all.is_empty());
        let some = |key| root.raw("dns")?.get_ref().get(key).map(|value| !none(value));
        let names = ["servers", "domains"].into_iter().filter_map(some).any(|some| some);
        Self { vpnd: word("protocol") == Some("vpnd"), keepalive, names }
    }
}

fn table<T>(
    root: &Section<'_>,
    title: &'static str,
    problems: &mut Vec<Problem>,
    read: impl FnOnce(&mut Section<'_>) -> T,
) -> T {
    let mut section = Section::new(title, root.raw(title.trim_matches(['[', ']'])));
    let good = read(&mut section);
    problems.extend(section.close());
    good
}

fn interface(
    s: &mut Section<'_>,
    from: &Surroundings,
    peer: &PeerSettings,
) -> Option<(Interface, SecretKey, Option<SecretKey>)> {
    const KEY: &str = "make one with `vpnd genkey -o FILE` and name it here";
    let parse = SecretKey::from_base64;
    let key = s.required("private_key_file", KEY, key_file(from, "private_key_file", parse));
    let (next_private_key_file, next_secret) = optional(s, from, "next_private_key_file", parse);
    let mode = s.or("mode", Mode::Tun, text(|text| mode(text, peer.vpnd)));
    let bridge = s.take("bridge", text(device_name));
    let mtu = s.take("mtu", mtu);
    let interface = Interface {
        name: s.take("name", text(device_name)),
        mode,
        mtu: mtu.unwrap_or_else(|| default_mtu(mode, peer.vpnd)),
        bridge,
        stp_cost: s.take("stp_cost", integer(1..=65535)),
        queues: s.or("queues", Queues::Fixed(1), device::queues),
        persist: s.or("persist", false, value::truth),
        adopt: s.or("adopt", Adopt::Auto, text(word)),
        owner: s.take("owner", text(device::user)),
        group: s.take("group", text(device::group)),
        mac: s.take("mac", text(device::mac)),
        vrf: s.take("vrf", text(device_name)),
        multicast: s.or("multicast", true, value::truth),
        carrier: s.or("carrier", default_carrier(peer), text(word)),
        netns: s.take("netns", text(netns)),
        addresses: s.or("address", vec![], list(value::interface_address)),
        peer_addresses: s.or("peer_address", vec![], list(value::host_address)),
        listen: s.or("listen", Listen::Port(0), listen),
        txqueuelen: s.or("txqueuelen", 1000, integer(1..=1_000_000)),
        private_key_file: key.as_ref()?.0.clone(),
        next_private_key_file,
    };
    Some((interface, key?.1, next_secret))
}

/// The defaults for what is accepted from the peer.
#[derive(Default)]
struct PeerDefaults {
    allowed_ips: Vec<ipnet::IpNet>,
    guard: Vec<Guard>,
}

fn peer(
    s: &mut Section<'_>,
    from: &Surroundings,
    defaults: PeerDefaults,
) -> Option<(Peer, PresharedKey, Option<PresharedKey>)> {
    const KEY: &str = "the peer's `vpnd pubkey < its.key` prints it";
    let protocol = s.or("protocol", Protocol::WireGuard, text(word));
    let key = s.required("public_key", KEY, text(public_key));
    let parse = PresharedKey::from_base64;
    let (preshared_key_file, preshared) = optional(s, from, "preshared_key_file", parse);
    let (next_preshared_key_file, next) = optional(s, from, "next_preshared_key_file", parse);
    let peer = Peer {
        protocol,
        cipher: s.or("cipher", Algorithm::ChaCha20Poly1305, text(word)),
        post_quantum: s.or("post_quantum", protocol == Protocol::Vpnd, value::truth),
        also_accept: s.or("also_accept", vec![], list(also_accept)),
        next_public_key: s.take("next_public_key", text(public_key)),
        preshared_key_file,
        next_preshared_key_file,
        endpoints: s.or("endpoint", vec![], list(|text| text.parse().map_err(in_words))),
        allowed_ips: s.or("allowed_ips", defaults.allowed_ips, list(value::network)),
        allowed_macs: s.or("allowed_macs", vec![], list(device::mac)),
        guard: s.or("guard", defaults.guard, list(word)),
        keepalive: s.or("keepalive", None, value::keepalive),
        dead_after: s.or("dead_after", Duration::from_secs(60), value::duration("1s", "1h")),
        roam: s.or("roam", Roam::Any, text(word)),
        return_after: s.or("return_after", RETURN_AFTER, value::duration("1s", "1d")),
        resolve_every: s.or("resolve_every", RESOLVE_EVERY, value::duration("10s", "1d")),
        public_key: key?,
    };
    Some((peer, preshared.unwrap_or_default(), next))
}

fn routes(value: Option<&Value<'_>>, problems: &mut Vec<Problem>) -> Vec<Route> {
    let items = match value.map(Spanned::get_ref) {
        None => return vec![],
        Some(DeValue::Array(items)) => items.iter(),
        Some(_) => {
            let problem = Problem::error("there may be many routes: write [[route]] for each");
            problems.extend(value.map(|value| problem.at(value.span())));
            return vec![];
        }
    };
    items.filter_map(|item| route(item, problems)).collect()
}

fn route(item: &Value<'_>, problems: &mut Vec<Problem>) -> Option<Route> {
    const TO: &str = "name the network behind the peer: to = \"192.168.20.0/24\"";
    let mut s = Section::new("[[route]]", Some(item));
    let to = s.required("to", TO, text(value::network));
    let metric = s.take("metric", integer(0..=i64::from(u32::MAX)));
    let table = s.take("table", route_table);
    let when_down = s.or("when_down", WhenDown::Keep, text(word));
    problems.extend(s.close());
    Some(Route { to: to?, metric, table, when_down })
}

fn path(s: &mut Section<'_>) -> Path {
    Path {
        mss_clamp: s.or("mss_clamp", MssClamp::Auto, mss_clamp),
        mtu_max: s.take("mtu_max", integer(LEAST_MTU_V6.into()..=65535)),
        raise_every: s.or("raise_every", Duration::from_secs(600), value::duration("1s", "1d")),
        icmp: s.or("icmp", Icmp::Hint, text(word)),
        gso: s.or("gso", Gso::Auto, value::gso),
        offload: s.or("offload", true, value::switch),
    }
}

fn socket(s: &mut Section<'_>) -> Socket {
    let rcvbuf = s.or("rcvbuf", 4 << 20, buffer);
    Socket {
        fwmark: s.or("fwmark", 0, value::mark),
        bind_device: s.take("bind_device", text(device_name)),
        sources: s.or("source", vec![], list(value::source)),
        dscp: s.or("dscp", 0, value::dscp),
        rcvbuf,
        sndbuf: s.or("sndbuf", rcvbuf, buffer),
        netns: s.take("netns", text(netns)),
    }
}

fn buffer(value: &Value<'_>) -> Parsed<usize> {
    value::size(64 << 10..=1 << 30)(value)
}

fn metrics(s: &mut Section<'_>, from: &Surroundings) -> Metrics {
    Metrics { listen: s.take("listen", text(|text| metrics_listen(text, from))) }
}

fn service(s: &mut Section<'_>, from: &Surroundings) -> Service {
    let path = |text: &str| from.path(text);
    let control = model::control_of(&from.name);
    Service {
        state_dir: s.or("state_dir", PathBuf::from("/var/lib/vpnd"), text(path)),
        control: s.or("control", PathBuf::from(control), text(|text| socket_path(text, from))),
        uapi: s.or("uapi", false, value::truth),
        allow_key_log: s.or("allow_key_log", false, value::truth),
        user: s.take("user", text(account)).unwrap_or_else(default_account),
        nice: s.or("nice", -10, integer(-20..=19)),
        firewall: s.or("firewall", false, value::truth),
        sandbox: s.or("sandbox", Confinement::Errno, text(word)),
        log_level: s.or("log_level", LevelFilter::INFO, text(word)),
        log_format: s.or("log_format", LogFormat::Auto, text(word)),
    }
}

/// An optional key file, and the key in it.
fn optional<K>(
    s: &mut Section<'_>,
    from: &Surroundings,
    named_by: &'static str,
    parse: fn(&str) -> Result<K, KeyError>,
) -> (Option<PathBuf>, Option<K>) {
    s.take(named_by, key_file(from, named_by, parse)).unzip()
}

/// The path of the key file that the key `named_by` names, and the key in it.
fn key_file<K>(
    from: &Surroundings,
    named_by: &'static str,
    parse: fn(&str) -> Result<K, KeyError>,
) -> impl Fn(&Value<'_>) -> Parsed<(PathBuf, K)> {
    text(move |text| {
        let path = from.key_path(text)?;
        let key = from.keys.find(named_by, &path, parse).map_err(in_words)?;
        Ok((path, key))
    })
}

/// A name that the kernel accepts for an interface (`dev_valid_name`), without `%`, which the kernel may
/// replace by a number.
fn device_name(text: &str) -> TextResult<String> {
    let allowed = |b: u8| b.is_ascii_graphic() && !b"/:%".contains(&b);
    let good = (1..=15).contains(&text.len()) && text.bytes().all(allowed);
    if good && text != "." && text != ".." {
        return Ok(text.to_owned());
    }
    let problem = Problem::error(format!("`{text}` cannot name a network device"));
    Err(problem.help("1 to 15 characters, without blanks, `/`, `:` or `%`"))
}

/// A name in `/run/netns`, or the path of a namespace.
fn netns(text: &str) -> TextResult<String> {
    let name = !text.is_empty() && !text.contains(['/', '\0']) && text != "." && text != "..";
    if name || text.starts_with('/') && !text.contains('\0') {
        return Ok(text.to_owned());
    }
    let problem = Problem::error(format!("`{text}` cannot name a network namespace"));
    Err(problem.help("a name that `ip netns` lists, or a path from the root"))
}

/// Without a keepalive an alive peer may be silent for hours. With name servers behind the tunnel, the carrier
/// must stay on when the peer is dead, as the resolver would send its queries elsewhere.
const fn default_carrier(peer: &PeerSettings) -> Carrier {
    if peer.keepalive && !peer.names { Carrier::Peer } else { Carrier::Always }
}

/// A LAN's frames are longer than a datagram can carry, so they are fragmented. A bridge takes the smallest MTU
/// of its ports, so a port gets the bridge's MTU, which is known at the start. The MTU of a TAP device depends
/// on its LAN, which is not known yet. The MTU of a TUN device follows the path if the peer answers probes.
const fn default_mtu(mode: Mode, vpnd: bool) -> Option<u16> {
    match mode {
        Mode::Tun if !vpnd => Some(USUAL_MTU),
        Mode::Tun | Mode::Tap => None,
    }
}

/// A number of bytes, or "auto".
fn mtu(value: &Value<'_>) -> Parsed<Option<u16>> {
    match value.get_ref().as_str() {
        Some("auto") => Ok(None),
        Some(_) => Err(vec![expected("\"auto\" or an integer from 576 to 65535", value)]),
        None => integer(576..=65535)(value).map(Some),
    }
}

fn mode(text: &str, vpnd: bool) -> TextResult<Mode> {
    match text {
        "tap" if !vpnd => Err(rules::needs_vpnd("change this line to mode = \"tun\"")),
        _ => word(text),
    }
}

fn public_key(text: &str) -> TextResult<PublicKey> {
    PublicKey::from_base64(text).map_err(in_words)
}

fn listen(value: &Value<'_>) -> Parsed<Listen> {
    let Some(text) = value.get_ref().as_str() else {
        return integer(0..=65535)(value).map(Listen::Port);
    };
    let what = "a port (51820) or an address and a port (\"192.0.2.1:51820\")";
    text.parse().map(unmapped).map(Listen::Address).map_err(|_| vec![expected(what, value)])
}

fn route_table(value: &Value<'_>) -> Parsed<u32> {
    match value.get_ref().as_str() {
        Some("main") => Ok(MAIN_TABLE),
        Some(_) => Err(vec![expected("\"main\" or a table's number", value)]),
        None => integer(1..=i64::from(u32::MAX))(value),
    }
}

fn mss_clamp(value: &Value<'_>) -> Parsed<MssClamp> {
    match value.get_ref().as_str() {
        Some("auto") => Ok(MssClamp::Auto),
        Some("off") => Ok(MssClamp::Off),
        Some(_) => Err(vec![expected("\"auto\", \"off\" or a number of bytes", value)]),
        None => integer(536..=65495)(value).map(MssClamp::Fixed),
    }
}

fn socket_path(text: &str, from: &Surroundings) -> TextResult<PathBuf> {
    let path = from.path(text)?;
    if path.as_os_str().len() <= MAX_SOCKET_PATH {
        return Ok(path);
    }
    Err(Problem::error(format!("a socket's path has at most {MAX_SOCKET_PATH} bytes")))
}

/// An address and a port, or the path of a socket, which has a `/`.
fn metrics_listen(text: &str, from: &Surroundings) -> TextResult<MetricsListen> {
    if text.contains('/') {
        return socket_path(text, from).map(MetricsListen::Path);
    }
    let address = text.parse().ok().filter(|address: &SocketAddr| address.port() != 0);
    address.map(MetricsListen::Address).ok_or_else(|| {
        let problem = format!("expected an address and a port, or a path, found `{text}`");
        Problem::error(problem).help("write \"127.0.0.1:9586\", or \"/run/vpnd/NAME.metrics\"")
    })
}

/// The user with this name; `None` for the empty name, with which the daemon keeps its user.
fn account(name: &str) -> TextResult<Option<Account>> {
    if name.is_empty() {
        return Ok(None);
    }
    let help = "create it, or keep the user vpnd is started as: user = \"\"";
    let unknown = || Problem::error(format!("no user `{name}` on this system")).help(help);
    find_account(name).map(Some).ok_or_else(unknown)
}

/// The user `vpnd`; if there is none, a uid that nobody else uses. Other programs run as `nobody`.
fn default_account() -> Option<Account> {
    find_account("vpnd").or_else(|| Some(by_number(OWN_ID)))
}

/// A user of the system, or a number alone, which is then also the gid.
fn find_account(name: &str) -> Option<Account> {
    match User::from_name(name).ok().flatten() {
        Some(user) => Some(of_user(user)),
        None => name.parse().ok().filter(|uid| *uid != u32::MAX).map(by_number),
    }
}

fn by_number(uid: u32) -> Account {
    let user = User::from_uid(uid.into()).ok().flatten();
    user.map_or_else(|| Account { name: uid.to_string(), uid, gid: uid }, of_user)
}

fn of_user(user: User) -> Account {
    Account { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw() }
}

/// A problem with the error's message.
fn in_words(error: impl std::fmt::Display) -> Problem {
    Problem::error(error.to_string())
}
