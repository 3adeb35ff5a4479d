//! The contents of a configuration file, table by table.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Serialize, Serializer};
use tracing::level_filters::LevelFilter;
use vpnd_crypto::{Algorithm, PublicKey};
use vpnd_device::WhenDown;
use vpnd_protocol::endpoint::{Roam, Sources};
use vpnd_tun::{Adopt, Mode};
use vpnd_tunnel::udp::{self, Gso, Listen};

use super::device::{Carrier, Holder, Mac, Queues};
use super::endpoint::Endpoint;
use super::hooks::{Dns, Hooks};
use super::metrics::{Metrics, MetricsListen};
use super::profile::{AlsoAccept, Protocol};
use super::word::{self, Word, as_word, as_words};
use crate::account::Account;

/// The routing table that `ip route` shows (linux/rtnetlink.h).
pub(crate) const MAIN_TABLE: u32 = 254;

/// The directory of the sockets of WireGuard's tools, which they have compiled in.
pub(crate) const UAPI_DIRECTORY: &str = "/var/run/wireguard";

/// A table of the file, and a key in it.
type Key = (&'static str, &'static str);

/// One tunnel, as its file describes it; every default is filled in. In JSON it has the keys of the file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Config {
    /// The tunnel's name: the file's stem.
    pub(crate) name: String,
    /// The path that it was read from.
    pub(crate) file: PathBuf,
    /// `[interface]`.
    pub(crate) interface: Interface,
    /// `[peer]`.
    pub(crate) peer: Peer,
    /// `[[route]]`, in order.
    #[serde(rename = "route")]
    pub(crate) routes: Vec<Route>,
    /// `[path]`.
    pub(crate) path: Path,
    /// `[socket]`.
    pub(crate) socket: Socket,
    /// `[dns]`.
    pub(crate) dns: Dns,
    /// `[hooks]`.
    pub(crate) hooks: Hooks,
    /// `[metrics]`.
    pub(crate) metrics: Metrics,
    /// `[service]`.
    pub(crate) service: Service,
}

impl Config {
    /// Whether all packets without a more specific route shall go through the tunnel: there is a default route,
    /// without a table and not in a VRF, which has its own table.
    pub(crate) fn leads_everywhere(&self) -> bool {
        self.interface.vrf.is_none()
            && self.routes.iter().any(|route| route.to.prefix_len() == 0 && route.table.is_none())
    }

    /// The directories of the sockets that are files for as long as the tunnel runs, each with the key of that socket.
    pub(crate) fn socket_directories(&self) -> Vec<(Key, &std::path::Path)> {
        let control = (("[service]", "control"), directory_of(&self.service.control));
        let metrics = match &self.metrics.listen {
            Some(MetricsListen::Path(path)) => Some((("[metrics]", "listen"), directory_of(path))),
            Some(MetricsListen::Address(_)) | None => None,
        };
        let uapi = self.service.uapi.then_some((("[service]", "uapi"), UAPI_DIRECTORY.as_ref()));
        [control].into_iter().chain(metrics).chain(uapi).collect()
    }

    /// The files with keys.
    pub(crate) fn key_files(&self) -> Vec<&std::path::Path> {
        let (own, peer) = (&self.interface, &self.peer);
        let others =
            [&own.next_private_key_file, &peer.preshared_key_file, &peer.next_preshared_key_file];
        let others = others.into_iter().flatten();
        [&own.private_key_file].into_iter().chain(others).map(PathBuf::as_path).collect()
    }

    /// Whether the routes cover a whole family, with one network or with its two halves.
    pub(crate) fn routes_everything(&self) -> bool {
        [true, false].into_iter().any(|v4| {
            let family = self.routes.iter().filter(|route| route.to.addr().is_ipv4() == v4);
            let lengths: Vec<_> = family.map(|route| route.to.prefix_len()).collect();
            lengths.contains(&0) || lengths.iter().filter(|len| **len == 1).count() > 1
        })
    }

    /// Whether there is a route that drops its packets while the peer is dead.
    pub(crate) fn has_kill_switch(&self) -> bool {
        self.routes.iter().any(|route| route.when_down == WhenDown::Blackhole)
    }

    /// Whether a route leads packets to `address`, including the tunnel's own datagrams, into the tunnel. A
    /// default route without a table gets a table of its own, and rules that exempt the tunnel.
    pub(crate) fn loops(&self, route: &Route, address: IpAddr) -> bool {
        let table = route.table.or_else(|| (route.to.prefix_len() > 0).then_some(MAIN_TABLE));
        let one_place = self.interface.netns == self.socket.netns;
        one_place && table == Some(MAIN_TABLE) && route.to.contains(&address)
    }

    /// Whether this route applies to every program's packets. A route in another table needs rules of others,
    /// and a route in a VRF applies only there.
    pub(crate) fn is_for_everybody(&self, route: &Route) -> bool {
        let one_place = self.interface.netns == self.socket.netns;
        one_place && self.interface.vrf.is_none() && matches!(route.table, None | Some(MAIN_TABLE))
    }

    /// Whether the tunnel runs programs: its hooks, and `resolvectl` for `[dns]`. systemd-resolved knows only
    /// the devices of its own network namespace.
    pub(crate) fn runs_programs(&self) -> bool {
        let Hooks { up, established, lost, down, timeout: _ } = &self.hooks;
        let resolves = !self.dns.servers.is_empty() || !self.dns.domains.is_empty();
        let hooks = [up, established, lost, down].iter().any(|commands| !commands.is_empty());
        hooks || (resolves && self.interface.netns.is_none())
    }

    /// Whether a route, a hook or the carrier depends on the peer being alive, so that a silent peer has to be
    /// probed.
    pub(crate) fn watches(&self) -> bool {
        self.watches_with(self.peer.keepalive)
    }

    /// The same with another keepalive.
    pub(crate) fn watches_with(&self, keepalive: Option<Duration>) -> bool {
        let hooks = !self.hooks.established.is_empty() || !self.hooks.lost.is_empty();
        let routes = self.routes.iter().any(|route| route.when_down != WhenDown::Keep);
        // A device without a carrier gets no packet that would start a handshake.
        let carrier = self.interface.carrier == Carrier::Peer;
        keepalive.is_some() || hooks || routes || carrier
    }
}

/// The control socket of this file's tunnel while the contents of the file are unknown.
pub(crate) fn default_control(file: &std::path::Path) -> PathBuf {
    let name = file.file_stem().unwrap_or_default().to_string_lossy();
    control_of(&name).into()
}

/// The default control socket of the tunnel `name`.
pub(super) fn control_of(name: &str) -> String {
    format!("/run/vpnd/{name}.sock")
}

fn directory_of(path: &std::path::Path) -> &std::path::Path {
    path.parent().unwrap_or_else(|| std::path::Path::new("/"))
}

/// `[interface]`: the device, its addresses, our key and our port.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Interface {
    /// The device's name; if absent, the kernel chooses a free `tunN`.
    pub(crate) name: Option<String>,
    /// What the device carries.
    #[serde(serialize_with = "as_word")]
    pub(crate) mode: Mode,
    /// Our addresses inside the tunnel, with host bits.
    #[serde(rename = "address")]
    pub(crate) addresses: Vec<IpNet>,
    /// The peer's addresses inside the tunnel, for a point-to-point device.
    #[serde(rename = "peer_address")]
    pub(crate) peer_addresses: Vec<IpAddr>,
    /// The file of our private key, which `keys` has read.
    pub(crate) private_key_file: PathBuf,
    /// The file of the next private key.
    pub(crate) next_private_key_file: Option<PathBuf>,
    /// The address and port to receive datagrams at.
    #[serde(serialize_with = "as_listen")]
    pub(crate) listen: Listen,
    /// The device's MTU. If absent, that of a TUN device follows the path, and that of a TAP device is its bridge's,
    /// its own if it exists already, or Ethernet's.
    #[serde(serialize_with = "as_mtu")]
    pub(crate) mtu: Option<u16>,
    /// The device's queue length.
    pub(crate) txqueuelen: u32,
    /// The number of queues that are read from the device.
    pub(crate) queues: Queues,
    /// Whether the device stays when vpnd ends.
    pub(crate) persist: bool,
    /// Whether an existing device is used.
    #[serde(serialize_with = "as_word")]
    pub(crate) adopt: Adopt,
    /// The user who may open it without a privilege.
    pub(crate) owner: Option<Holder>,
    /// The group whose members may open it without a privilege.
    pub(crate) group: Option<Holder>,
    /// Its hardware address; if absent, it is derived from our key.
    pub(crate) mac: Option<Mac>,
    /// The bridge that the device joins.
    pub(crate) bridge: Option<String>,
    /// The path cost of this port in the bridge's spanning tree.
    pub(crate) stp_cost: Option<u32>,
    /// The VRF that the device joins.
    pub(crate) vrf: Option<String>,
    /// Whether multicast packets are routed into it.
    pub(crate) multicast: bool,
    /// What its carrier indicates.
    #[serde(serialize_with = "as_word")]
    pub(crate) carrier: Carrier,
    /// Its network namespace, if it is not ours: a name or a path.
    pub(crate) netns: Option<String>,
}

/// `[peer]`: the other end.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Peer {
    /// The protocol of both ends.
    #[serde(serialize_with = "as_word")]
    pub(crate) protocol: Protocol,
    /// The cipher that seals packets.
    #[serde(serialize_with = "as_word")]
    pub(crate) cipher: Algorithm,
    /// Whether each session's keys also come from ML-KEM-768.
    pub(crate) post_quantum: bool,
    /// Differences from our own profile that are accepted in an answer of the peer, in the order in which they
    /// are tried.
    pub(crate) also_accept: Vec<AlsoAccept>,
    /// The peer's public key.
    #[serde(serialize_with = "as_text")]
    pub(crate) public_key: PublicKey,
    /// The peer's next public key.
    #[serde(serialize_with = "as_text_if_any")]
    pub(crate) next_public_key: Option<PublicKey>,
    /// The file of the preshared key, which `keys` has read.
    pub(crate) preshared_key_file: Option<PathBuf>,
    /// The file of the next preshared key.
    pub(crate) next_preshared_key_file: Option<PathBuf>,
    /// Where the peer may be reached, in order; if empty, the peer initiates.
    #[serde(rename = "endpoint")]
    pub(crate) endpoints: Vec<Endpoint>,
    /// The inner source addresses the peer may use.
    pub(crate) allowed_ips: Vec<IpNet>,
    /// The stations whose frames are accepted from the peer; if empty, all.
    pub(crate) allowed_macs: Vec<Mac>,
    /// Senders of host configuration whose messages are not accepted from the peer.
    #[serde(serialize_with = "as_words")]
    pub(crate) guard: Vec<Guard>,
    /// The longest time without sending anything.
    #[serde(serialize_with = "as_duration")]
    pub(crate) keepalive: Option<Duration>,
    /// After this time of silence the peer counts as dead.
    #[serde(serialize_with = "super::hooks::as_span")]
    pub(crate) dead_after: Duration,
    /// Whether the endpoint follows the peer when its address changes.
    #[serde(serialize_with = "as_word")]
    pub(crate) roam: Roam,
    /// How long an earlier endpoint has to answer before it is used again.
    #[serde(serialize_with = "super::hooks::as_span")]
    pub(crate) return_after: Duration,
    /// How often names in `endpoint` are looked up while the tunnel works.
    #[serde(serialize_with = "super::hooks::as_span")]
    pub(crate) resolve_every: Duration,
}

/// Messages that configure hosts; they are dropped if they come from the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guard {
    /// Router advertisements.
    Ra,
    /// Messages of DHCP servers.
    Dhcp,
}

impl Word for Guard {
    const WORDS: &'static [(&'static str, Self)] = &[("ra", Self::Ra), ("dhcp", Self::Dhcp)];
}

/// One `[[route]]` into the tunnel.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Route {
    /// The network behind the peer.
    pub(crate) to: IpNet,
    /// The route's priority; if absent, the kernel's default.
    pub(crate) metric: Option<u32>,
    /// The routing table; if absent, 254 (`main`), except for a default route.
    pub(crate) table: Option<u32>,
    /// What happens to it while the peer is dead.
    #[serde(serialize_with = "as_word")]
    pub(crate) when_down: WhenDown,
}

/// `[path]`: how packets are sent and received.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Path {
    /// The largest MSS that a SYN may announce.
    pub(crate) mss_clamp: MssClamp,
    /// The largest packet to send outside; if absent, the route's MTU.
    pub(crate) mtu_max: Option<u16>,
    /// How often a larger MTU is probed for on a path whose MTU is smaller than that of its first link.
    #[serde(serialize_with = "as_period")]
    pub(crate) raise_every: Duration,
    /// Whether reports of routers about the path's MTU are followed.
    #[serde(serialize_with = "as_word")]
    pub(crate) icmp: Icmp,
    /// UDP segmentation offload (GSO and GRO), if the kernel has it.
    #[serde(serialize_with = "as_gso")]
    pub(crate) gso: Gso,
    /// The device's segmentation offload, if the kernel has it.
    #[serde(serialize_with = "as_switch")]
    pub(crate) offload: bool,
}

/// How to handle ICMP messages of routers that a packet is too big. Anybody can forge them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Icmp {
    /// Between two vpnd they speed the search up. Towards a WireGuard peer they are followed, never below 1280 bytes.
    Hint,
    /// They are not used: the MTU of the first link counts, and what probes find.
    Ignore,
}

impl Word for Icmp {
    const WORDS: &'static [(&'static str, Self)] =
        &[("hint", Self::Hint), ("ignore", Self::Ignore)];
}

/// The largest MSS that SYNs crossing the tunnel may announce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum MssClamp {
    /// As much as fits the device's MTU.
    Auto,
    /// Not changed.
    Off,
    /// This many bytes.
    #[serde(untagged)]
    Fixed(u16),
}

/// `[socket]`: the socket of the tunnel's own datagrams.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Socket {
    /// The mark for routing rules and packet filters; 0 means none.
    pub(crate) fwmark: u32,
    /// The only interface for sending and receiving.
    pub(crate) bind_device: Option<String>,
    /// The source addresses until the peer has sent to another address of ours; one for each family.
    #[serde(rename = "source")]
    pub(crate) sources: Vec<IpAddr>,
    /// The differentiated services code point of sealed data, 0 to 63.
    pub(crate) dscp: u8,
    /// The receive buffer in bytes.
    pub(crate) rcvbuf: usize,
    /// The send buffer in bytes.
    pub(crate) sndbuf: usize,
    /// Its network namespace, if it is not ours: a name or a path.
    pub(crate) netns: Option<String>,
}

impl Socket {
    /// The settings that affect the route of datagrams.
    pub(crate) fn egress(&self) -> udp::Egress {
        udp::Egress { mark: self.fwmark, device: self.bind_device.clone() }
    }

    /// The source addresses, by family.
    pub(crate) fn sources(&self) -> Sources {
        let mut sources = Sources::default();
        for address in &self.sources {
            match *address {
                IpAddr::V4(v4) => sources.v4 = Some(v4),
                IpAddr::V6(v6) => sources.v6 = Some(v6),
            }
        }
        sources
    }
}

/// `[service]`: the daemon itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Service {
    /// The directory of the timestamp's high-water mark.
    pub(crate) state_dir: PathBuf,
    /// The control socket, to which `vpnd status` connects.
    pub(crate) control: PathBuf,
    /// Whether the tunnel also answers on the socket that WireGuard's tools use.
    pub(crate) uapi: bool,
    /// Whether root may record the keys of sessions.
    pub(crate) allow_key_log: bool,
    /// The user that the daemon changes to when it no longer needs root; if absent, it keeps its uid.
    pub(crate) user: Option<Account>,
    /// The scheduling priority, from -20 (highest) to 19 (lowest).
    pub(crate) nice: i32,
    /// Whether vpnd sets an nftables table of its own.
    pub(crate) firewall: bool,
    /// What happens to a thread that makes a system call which is not on its list.
    #[serde(serialize_with = "as_word")]
    pub(crate) sandbox: Confinement,
    /// The log level.
    #[serde(serialize_with = "as_word")]
    pub(crate) log_level: LevelFilter,
    /// The log format.
    #[serde(serialize_with = "as_word")]
    pub(crate) log_format: LogFormat,
}

/// How the threads of a running tunnel are confined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Confinement {
    /// A forbidden system call fails with `EPERM`.
    Errno,
    /// A forbidden system call ends the process.
    Kill,
    /// Threads are not confined.
    Off,
}

impl Confinement {
    /// The word in the configuration.
    pub(crate) fn word(self) -> &'static str {
        word::name(self)
    }
}

impl Word for Confinement {
    const WORDS: &'static [(&'static str, Self)] =
        &[("errno", Self::Errno), ("kill", Self::Kill), ("off", Self::Off)];
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// Text, in colour on a terminal, without times when systemd's journal adds them.
    Auto,
    /// Text, always with times.
    Text,
    /// One JSON object a line.
    Json,
}

impl Word for LogFormat {
    const WORDS: &'static [(&'static str, Self)] =
        &[("auto", Self::Auto), ("text", Self::Text), ("json", Self::Json)];
}

fn as_text<S: Serializer>(value: &impl std::fmt::Display, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(value)
}

fn as_text_if_any<S: Serializer, T: std::fmt::Display>(
    value: &Option<T>,
    to: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => to.collect_str(value),
        None => to.serialize_none(),
    }
}

/// In the format of the file: `"auto"` or `false`.
fn as_switch<S: Serializer>(value: &bool, to: S) -> Result<S::Ok, S::Error> {
    if *value { to.serialize_str("auto") } else { to.serialize_bool(false) }
}

fn as_gso<S: Serializer>(value: &Gso, to: S) -> Result<S::Ok, S::Error> {
    match value {
        Gso::Auto => to.serialize_str("auto"),
        Gso::On => to.serialize_bool(true),
        Gso::Off => to.serialize_bool(false),
    }
}

/// In the format of the file: a port, or an address and a port.
fn as_listen<S: Serializer>(value: &Listen, to: S) -> Result<S::Ok, S::Error> {
    match value {
        Listen::Port(port) => to.serialize_u16(*port),
        Listen::Address(address) => to.collect_str(address),
    }
}

/// In the format of the file: a number, or `"auto"`.
fn as_mtu<S: Serializer>(value: &Option<u16>, to: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(mtu) => to.serialize_u16(*mtu),
        None => to.serialize_str("auto"),
    }
}

/// In the format of the file: `10m`.
fn as_period<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&humantime::format_duration(*value))
}

/// In the format of the file: `25s`, or `off`.
fn as_duration<S: Serializer>(value: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(duration) => to.collect_str(&humantime::format_duration(*duration)),
        None => to.serialize_str("off"),
    }
}
