//! What one file describes, table by table.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Serialize, Serializer};
use tracing::level_filters::LevelFilter;
use vpnd_crypto::PublicKey;
use vpnd_protocol::endpoint::Sources;
use vpnd_tunnel::udp::{self, Listen};

use super::device::{Adopt, Carrier, Holder, Mac, Mode, Queues};
use super::endpoint::Endpoint;
use super::hooks::{Dns, Hooks};
use super::profile::{AlsoAccept, Cipher, Protocol};
use crate::account::Account;

/// The table of routes that `ip route` shows (linux/rtnetlink.h).
pub(crate) const MAIN_TABLE: u32 = 254;

/// One tunnel, as its file describes it; every default is filled in. As JSON its keys are the
/// file's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Config {
    /// The tunnel's name: the file's stem.
    pub(crate) name: String,
    /// Where it was read from.
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
    /// `[service]`.
    pub(crate) service: Service,
}

impl Config {
    /// Whether everything without a better way is to go through the tunnel: by a default route that names no
    /// table, and in no VRF, which has its own.
    pub(crate) fn leads_everywhere(&self) -> bool {
        self.interface.vrf.is_none()
            && self.routes.iter().any(|route| route.to.prefix_len() == 0 && route.table.is_none())
    }

    /// Whether there is a route that drops what it covers while the peer is not there.
    pub(crate) fn has_kill_switch(&self) -> bool {
        self.routes.iter().any(|route| route.when_down == WhenDown::Blackhole)
    }

    /// Whether a route leads what is sent to `address` into the tunnel, the tunnel's own datagrams too. A
    /// default route without a table has one of its own, and rules.
    pub(crate) fn loops(&self, route: &Route, address: IpAddr) -> bool {
        let table = route.table.or_else(|| (route.to.prefix_len() > 0).then_some(MAIN_TABLE));
        let one_place = self.interface.netns == self.socket.netns;
        one_place && table == Some(MAIN_TABLE) && route.to.contains(&address)
    }

    /// Whether packets of every program take this route: none of another table, which takes rules of others, and none
    /// of a VRF.
    pub(crate) fn is_for_everybody(&self, route: &Route) -> bool {
        let one_place = self.interface.netns == self.socket.netns;
        one_place && self.interface.vrf.is_none() && matches!(route.table, None | Some(MAIN_TABLE))
    }

    /// Whether the tunnel runs programs: its hooks, and `resolvectl` for `[dns]`. systemd-resolved knows only the
    /// devices of its own network namespace.
    pub(crate) fn runs_programs(&self) -> bool {
        let Hooks { up, established, lost, down, timeout: _ } = &self.hooks;
        let resolves = !self.dns.servers.is_empty() || !self.dns.domains.is_empty();
        let hooks = [up, established, lost, down].iter().any(|commands| !commands.is_empty());
        hooks || (resolves && self.interface.netns.is_none())
    }

    /// Whether something hangs on the peer's life, so that it has to be asked when it is silent.
    pub(crate) fn watches(&self) -> bool {
        let hooks = !self.hooks.established.is_empty() || !self.hooks.lost.is_empty();
        let routes = self.routes.iter().any(|route| route.when_down != WhenDown::Keep);
        self.peer.keepalive.is_some() || hooks || routes
    }
}

/// The control socket of the tunnel of this file, as long as it is not known what the file says.
pub(crate) fn default_control(file: &std::path::Path) -> PathBuf {
    let name = file.file_stem().unwrap_or_default().to_string_lossy();
    control_of(&name).into()
}

/// The default control socket of the tunnel `name`.
pub(super) fn control_of(name: &str) -> String {
    format!("/run/vpnd/{name}.sock")
}

/// `[interface]`: the device, its addresses, our key and our port.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Interface {
    /// The device's name; the kernel picks a free `tunN` when absent.
    pub(crate) name: Option<String>,
    /// What the device carries.
    pub(crate) mode: Mode,
    /// Our addresses inside the tunnel, host bits kept.
    #[serde(rename = "address")]
    pub(crate) addresses: Vec<IpNet>,
    /// The peer's addresses inside, for a point-to-point device.
    #[serde(rename = "peer_address")]
    pub(crate) peer_addresses: Vec<IpAddr>,
    /// Where our secret key is; `keys` has read it.
    pub(crate) private_key_file: PathBuf,
    /// Where the one is that takes its place.
    pub(crate) next_private_key_file: Option<PathBuf>,
    /// Where datagrams arrive.
    #[serde(serialize_with = "as_listen")]
    pub(crate) listen: Listen,
    /// The device's MTU. Absent, that of the bridge it joins, or of a TAP device that is there, or Ethernet's.
    pub(crate) mtu: Option<u16>,
    /// The device's queue length.
    pub(crate) txqueuelen: u32,
    /// Through how many queues packets leave it.
    pub(crate) queues: Queues,
    /// Whether it stays when vpnd ends.
    pub(crate) persist: bool,
    /// Whether one that is there already is taken.
    pub(crate) adopt: Adopt,
    /// Who may open it without a privilege.
    pub(crate) owner: Option<Holder>,
    /// Whose members may.
    pub(crate) group: Option<Holder>,
    /// Its Ethernet address; absent, it follows from our key.
    pub(crate) mac: Option<Mac>,
    /// The bridge that the device joins.
    pub(crate) bridge: Option<String>,
    /// What a path through the device costs in the bridge's spanning tree.
    pub(crate) stp_cost: Option<u32>,
    /// The VRF that the device joins.
    pub(crate) vrf: Option<String>,
    /// Whether packets to groups are routed into it.
    pub(crate) multicast: bool,
    /// What its carrier tells.
    pub(crate) carrier: Carrier,
    /// The network namespace it lives in, where that is not ours: a name, or a path.
    pub(crate) netns: Option<String>,
}

/// `[peer]`: the other end.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Peer {
    /// What both ends speak.
    #[serde(serialize_with = "as_text")]
    pub(crate) protocol: Protocol,
    /// What seals packets.
    #[serde(serialize_with = "as_text")]
    pub(crate) cipher: Cipher,
    /// Whether each session's keys also come from ML-KEM-768.
    pub(crate) post_quantum: bool,
    /// What an answer of the peer may differ in, in the order that it is tried.
    pub(crate) also_accept: Vec<AlsoAccept>,
    /// Who the peer is.
    #[serde(serialize_with = "as_text")]
    pub(crate) public_key: PublicKey,
    /// Who it is going to be.
    #[serde(serialize_with = "as_text_if_any")]
    pub(crate) next_public_key: Option<PublicKey>,
    /// Where the preshared key is; `keys` has read it.
    pub(crate) preshared_key_file: Option<PathBuf>,
    /// Where the one is that takes its place.
    pub(crate) next_preshared_key_file: Option<PathBuf>,
    /// Where the peer may be found, in order; empty: it finds us.
    #[serde(rename = "endpoint")]
    pub(crate) endpoints: Vec<Endpoint>,
    /// The inner source addresses the peer may use.
    pub(crate) allowed_ips: Vec<IpNet>,
    /// The stations whose frames the peer may send; empty: all.
    pub(crate) allowed_macs: Vec<Mac>,
    /// Whose messages to hosts here the peer may not send.
    pub(crate) guard: Vec<Guard>,
    /// How often something is sent, at the least.
    #[serde(serialize_with = "as_duration")]
    pub(crate) keepalive: Option<Duration>,
    /// How long a silent peer counts as there.
    #[serde(serialize_with = "super::hooks::as_span")]
    pub(crate) dead_after: Duration,
    /// Whether the endpoint follows the peer.
    pub(crate) roam: Roam,
}

/// Messages that configure hosts, and come from the peer's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Guard {
    /// Of routers.
    Ra,
    /// Of DHCP servers.
    Dhcp,
}

/// Whether the endpoint follows the peer when it speaks from elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Roam {
    /// To any address and port.
    Any,
    /// To another port of the same address: a NAT that rebinds.
    SameIp,
    /// Never.
    Off,
}

/// One `[[route]]` into the tunnel.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Route {
    /// The network behind the peer.
    pub(crate) to: IpNet,
    /// The route's priority; the kernel's default when absent.
    pub(crate) metric: Option<u32>,
    /// The routing table; 254 is `main`, which it is when absent, but for a default route.
    pub(crate) table: Option<u32>,
    /// What becomes of it while the peer is not there.
    pub(crate) when_down: WhenDown,
}

/// What becomes of a route while the peer is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum WhenDown {
    /// It stays.
    Keep,
    /// It goes, and others may lead there.
    Remove,
    /// It leads nowhere, so that nothing leaks.
    Blackhole,
}

/// `[path]`: how packets are moved.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Path {
    /// The largest TCP segment that SYNs may announce.
    pub(crate) mss_clamp: MssClamp,
    /// The largest packet to send outside; what the route says where absent.
    pub(crate) mtu_max: Option<u16>,
    /// UDP segmentation offload (GSO and GRO), where the kernel has it.
    #[serde(serialize_with = "as_switch")]
    pub(crate) gso: bool,
    /// The device's segmentation offload, where the kernel has it.
    #[serde(serialize_with = "as_switch")]
    pub(crate) offload: bool,
}

/// The largest TCP segment that SYNs crossing the tunnel may announce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum MssClamp {
    /// What fits the device's MTU.
    Auto,
    /// Left as it is.
    Off,
    /// This many bytes.
    #[serde(untagged)]
    Fixed(u16),
}

/// `[socket]`: how the tunnel's own datagrams leave and arrive.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Socket {
    /// The mark that rules of routing and filters look at; 0 is none.
    pub(crate) fwmark: u32,
    /// The one interface to leave and arrive by.
    pub(crate) bind_device: Option<String>,
    /// What to send from until the peer has written to another address of ours; one of each family.
    #[serde(rename = "source")]
    pub(crate) sources: Vec<IpAddr>,
    /// The differentiated services code point of data outside, 0 to 63.
    pub(crate) dscp: u8,
    /// Bytes it may hold for us; also said as `[path] rcvbuf`.
    pub(crate) rcvbuf: usize,
    /// Bytes it may hold that have not left.
    pub(crate) sndbuf: usize,
    /// The network namespace it is in, where that is not ours: a name, or a path.
    pub(crate) netns: Option<String>,
}

impl Socket {
    /// By which way datagrams leave.
    pub(crate) fn way(&self) -> udp::Way {
        udp::Way { mark: self.fwmark, device: self.bind_device.clone() }
    }

    /// The addresses to send from, by family.
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
    /// Where the timestamp floor is kept.
    pub(crate) state_dir: PathBuf,
    /// Where `vpnd status` asks.
    pub(crate) control: PathBuf,
    /// Whom the daemon becomes once it needs root no more; absent: it keeps its uid.
    pub(crate) user: Option<Account>,
    /// How the processor's time is shared with others, from -20 (first) to 19 (last).
    pub(crate) nice: i32,
    /// Whether a table of nftables of our own is set.
    pub(crate) firewall: bool,
    /// What is logged.
    #[serde(serialize_with = "as_text")]
    pub(crate) log_level: LevelFilter,
    /// How it is logged.
    pub(crate) log_format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// Text, in colour on a terminal, without times when systemd's journal adds them.
    Auto,
    /// Text, always with times.
    Text,
    /// One JSON object a line.
    Json,
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

/// As the file would have it: `"auto"` or `false`.
fn as_switch<S: Serializer>(value: &bool, to: S) -> Result<S::Ok, S::Error> {
    if *value { to.serialize_str("auto") } else { to.serialize_bool(false) }
}

/// As the file would have it: a port, or an address and a port.
fn as_listen<S: Serializer>(value: &Listen, to: S) -> Result<S::Ok, S::Error> {
    match value {
        Listen::Port(port) => to.serialize_u16(*port),
        Listen::Address(address) => to.collect_str(address),
    }
}

/// As the file would have it: `25s`, or `off`.
fn as_duration<S: Serializer>(value: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(duration) => to.collect_str(&humantime::format_duration(*duration)),
        None => to.serialize_str("off"),
    }
}
