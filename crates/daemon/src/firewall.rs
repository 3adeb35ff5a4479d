//! `[service] firewall`: vpnd's own nftables tables. They drop packets to our inner addresses that do not come from
//! the tunnel, whatever other tables accept, and they give the peer's datagrams the mark of our own datagrams.
//!
//! For a kill switch there is a second table, whose only chain drops packets that would bypass the
//! tunnel. The first table contains this chain, too. It belongs to the socket through which it was made: no other program
//! can remove it, and the kernel removes it when the socket is closed, which the next process of the tunnel may inherit. The second table exists as long as the kill switch, even during a
//! restart, after a failed start, and after a crash. So at least one of the tables exists at any time, even if
//! somebody flushes tables while vpnd runs.
//!
//! A table cannot accept a packet that another table drops: in nftables every drop is final. [`problems`](fn@problems) warns
//! of such tables.

mod following;
mod problems;

use std::io;
use std::net::IpAddr;
use std::thread::sleep;
use std::time::Duration;

use ipnet::IpNet;
use thiserror::Error;
use vpnd_device::{KILL_SWITCH_TABLE, Mark, SpecificRoutes, Undo, WhenDown};
use vpnd_tunnel::udp::Listen;

use crate::config::{Config, MAIN_TABLE};
use crate::nft::expression::{
    Address, Header, Meta, bytes, counter, device, drop, is, is_in_none, is_not, kind_of, load,
    masked, set_bits, set_mark,
};
use crate::nft::{self, Connection, Encoded, Hook, Plan, Set, Table};

pub(crate) use following::{Firewall, Paused, Rules};
pub(crate) use problems::{open_beside, problems};

/// The priority of chains that must run before other tables read the mark or check the source address, which
/// happens at `raw` (-300) at the earliest.
const BEFORE_RAW: i32 = -310;
const RAW: i32 = -300;
/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
const IPV4: u8 = 2;
const IPV6: u8 = 10;
/// `RTN_UNICAST` and `RTN_LOCAL`.
const UNICAST: u32 = 1;
const LOCAL: u32 = 2;
/// The sets of networks to which a kill switch does not apply, for IPv4 and IPv6.
const SPECIFIC: [&str; 2] = ["specific", "specific6"];
const UDP: u8 = 17;

/// Why the table could not be set.
#[derive(Debug, Error)]
#[error("cannot set the nftables table inet {table} of [service] firewall: {error}{}", help(error))]
pub(crate) struct FirewallError {
    table: String,
    error: io::Error,
}

impl FirewallError {
    /// Whether a missing privilege is the reason.
    pub(crate) fn is_permission(&self) -> bool {
        self.error.kind() == io::ErrorKind::PermissionDenied
    }
}

fn help(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => "; it needs CAP_NET_ADMIN",
        Some(libc::EEXIST) => "; another program has made one of this name",
        _ => "; it needs Linux 5.12, with nftables and its `fib` for both versions of IP",
    }
}

/// Deletes, by its name, the table of the kill switch of a vpnd that has ended.
///
/// # Errors
///
/// The kernel's error; a missing table is not an error.
pub(crate) fn open_left(table: &str) -> io::Result<()> {
    nft::delete(table).map(|_was_there| ())
}

/// The properties of the tunnel that the tables depend on.
#[derive(Clone, Copy)]
pub(crate) struct Tunnel {
    /// The device's number.
    pub(crate) index: u32,
    /// The mark of the tunnel's own datagrams, if routing rules use one.
    pub(crate) mark: Option<Mark>,
    /// The mark of the tunnel's own datagrams, even if no routing rule uses it.
    pub(crate) borne: Option<Mark>,
}

/// Makes the table of the kill switch before the device exists, in the network namespace of this thread.
/// `specific` contains the networks to which the kill switch does not apply, and `own` is the mark of the
/// tunnel's own datagrams. Without a kill switch, deletes the table that an earlier run has left. The journal
/// records the table before the table is made.
///
/// # Errors
///
/// The kernel's error.
pub(crate) fn guard(
    config: &Config,
    own: Option<Mark>,
    specific: Option<&SpecificRoutes>,
    undo: &mut Undo,
) -> Result<(), FirewallError> {
    let Some(specific) = specific else {
        open_all_left(config, undo);
        return Ok(());
    };
    let table = lasting(config);
    if undo.table() != Some(&table) {
        let refused = |error| FirewallError { table: table.clone(), error };
        undo.delete_table(open_left).map_err(refused)?;
    }
    undo.set_table(Some(&table));
    // No device has this number.
    let tunnel = Tunnel { index: 0, mark: None, borne: own };
    make_lasting(config, tunnel, specific, table).map(|_: Table| ())
}

/// Deletes the table that an earlier run has left, even if the journal does not name it.
fn open_all_left(config: &Config, undo: &mut Undo) {
    if let Err(error) = undo.delete_table(open_left) {
        tracing::warn!(
            "cannot delete the nftables table of a kill switch, which still drops packets: {error}"
        );
    }
    match nft::delete(&lasting(config)) {
        Ok(true) => tracing::info!("deleted the nftables table of an earlier kill switch"),
        Ok(false) => {}
        // Without the privilege, or without nftables, it is unknown whether the table exists.
        Err(error) => tracing::debug!(%error, "an earlier kill switch's table is not deleted"),
    }
}

/// The name of the table that belongs to the process.
fn own(config: &Config) -> String {
    format!("vpnd-{}", config.name)
}

/// The name of the kill switch's table. Names of vpnd's other tables begin differently.
fn lasting(config: &Config) -> String {
    usual_table(&config.name)
}

/// The name of the table of a tunnel's kill switch.
pub(crate) fn usual_table(tunnel: &str) -> String {
    format!("{KILL_SWITCH_TABLE}{tunnel}")
}

fn make_lasting(
    config: &Config,
    tunnel: Tunnel,
    specific: &SpecificRoutes,
    table: String,
) -> Result<Table, FirewallError> {
    let plan = lasting_plan(config, &table, tunnel, specific);
    plan.and_then(|plan| plan.make()).map_err(|error| FirewallError { table, error })
}

fn lasting_plan(
    config: &Config,
    table: &str,
    tunnel: Tunnel,
    specific: &SpecificRoutes,
) -> io::Result<Plan> {
    let mut plan = Plan::lasting(table)?;
    keep_in(&mut plan, config, tunnel, specific)?;
    Ok(plan)
}

/// Makes the table in the network namespace of this thread, and makes the kill switch's table again, because
/// the device exists now. `specific` contains the networks to which a kill switch does not apply; without it there is no
/// table. The table of an `earlier` process of the tunnel is replaced in one transaction.
///
/// # Errors
///
/// The kernel's error.
pub(crate) fn set(
    config: &Config,
    tunnel: Tunnel,
    specific: Option<SpecificRoutes>,
    earlier: Option<Connection>,
) -> Result<Option<Firewall>, FirewallError> {
    let Some(specific) = specific else { return Ok(None) };
    let table = own(config);
    // It may have been in another network namespace.
    let earlier = earlier.filter(|_| nft::is_there(&table).unwrap_or(false));
    let made = plan(config, &table, tunnel, &specific).and_then(|plan| match earlier {
        Some(earlier) => earlier.take(&plan),
        None => make_with_retries(&plan),
    });
    let made = made.map_err(|error| FirewallError { table, error })?;
    let lasting = match keeps_in(config) {
        true => Some(make_lasting(config, tunnel, &specific, lasting(config))?),
        false => None,
    };
    let connection =
        Connection::open().map_err(|error| FirewallError { table: own(config), error })?;
    let tables = (made, lasting);
    Ok(Some(Firewall::follow(tables, connection, config.clone(), tunnel, specific)))
}

/// Whether the tables need the networks to which a kill switch does not apply.
pub(crate) fn keeps_in(config: &Config) -> bool {
    config.service.firewall && kill_switch_networks(config).next().is_some()
}

/// The networks of the kill switch. Routes of a VRF or of another table are not included, because they apply
/// only if other programs' rules lead there.
fn kill_switch_networks(config: &Config) -> impl Iterator<Item = IpNet> {
    let routes = config.routes.iter().filter(|_| config.interface.vrf.is_none());
    let routes = routes.filter(|route| matches!(route.table, None | Some(MAIN_TABLE)));
    let shut = routes.filter(|route| route.when_down == WhenDown::Blackhole);
    shut.map(|route| route.to.trunc())
}

/// Whether the kill switch has IPv4 networks, and whether it has IPv6 networks.
fn families(config: &Config) -> [bool; 2] {
    [true, false].map(|v4| kill_switch_networks(config).any(|net| net.addr().is_ipv4() == v4))
}

/// The networks as sets of a table, one set for each IP version with a kill switch.
fn sets(networks: &[IpNet], [v4, v6]: [bool; 2]) -> Vec<Set> {
    let of = |is_v4: bool| {
        let networks = networks.iter().filter(move |net| net.addr().is_ipv4() == is_v4);
        let (name, bytes) = if is_v4 { (SPECIFIC[0], 4) } else { (SPECIFIC[1], 16) };
        Set { name, bytes, ranges: ranges(networks) }
    };
    [v4.then(|| of(true)), v6.then(|| of(false))].into_iter().flatten().collect()
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

/// The first and last address of each network; adjacent networks are merged.
fn ranges<'a>(networks: impl Iterator<Item = &'a IpNet>) -> Vec<(u128, u128)> {
    let mut ranges: Vec<(u128, u128)> = Vec::new();
    for net in networks {
        let (first, last) = (number(net.network()), number(net.broadcast()));
        match ranges.last_mut() {
            Some((_, end)) if end.checked_add(1).is_none_or(|behind| first <= behind) => {
                *end = last.max(*end);
            }
            _ => ranges.push((first, last)),
        }
    }
    ranges
}

/// Makes the table. If a vpnd that owned such a table was killed, its table may exist for a short time, so this
/// tries several times.
fn make_with_retries(plan: &Plan) -> io::Result<Table> {
    const TRIES: usize = 25;
    for _ in 0..TRIES {
        match plan.make() {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                sleep(Duration::from_millis(20));
            }
            made => return made,
        }
    }
    plan.make()
}

fn plan(
    config: &Config,
    table: &str,
    tunnel: Tunnel,
    specific: &SpecificRoutes,
) -> io::Result<Plan> {
    let Tunnel { index, mark, .. } = tunnel;
    let mut plan = Plan::owned(table)?;
    let port = port(config.interface.listen);
    if let (Some(mark), 1..) = (mark, port) {
        plan.chain("marks", Hook::Prerouting, BEFORE_RAW)?;
        plan.rule("marks", marks(index, port, mark))?;
    }
    plan.chain("inside", Hook::Prerouting, RAW)?;
    for address in inside(config) {
        let mut rule = not_from_tunnel(index, config.interface.vrf.as_deref());
        rule.extend(to(address));
        // A VRF delivers packets of this host to the hook a second time. For IPv4 they are recognised by their
        // source address and exempted: the kernel drops packets from outside that have one of our addresses as
        // source. For IPv6 it does not.
        if address.is_ipv4() {
            rule.extend([kind_of(Address::Source), is_not(&LOCAL.to_ne_bytes())]);
        }
        rule.extend([counter(), drop()]);
        plan.rule("inside", rule)?;
    }
    if keeps_in(config) {
        keep_in(&mut plan, config, tunnel, specific)?;
    }
    Ok(plan)
}

/// Adds the chain that drops packets that would leave outside the tunnel, and its sets.
fn keep_in(
    plan: &mut Plan,
    config: &Config,
    tunnel: Tunnel,
    specific: &SpecificRoutes,
) -> io::Result<()> {
    sets(specific.networks(), families(config)).iter().try_for_each(|set| plan.set(set))?;
    plan.chain("beside", Hook::Output, RAW)?;
    for net in kill_switch_networks(config) {
        plan.rule("beside", bypasses_tunnel(tunnel.index, tunnel.borne, net))?;
    }
    Ok(())
}

/// Matches packets of this host that would leave outside the tunnel. This can happen in two ways. If a program
/// names a device, the kernel looks up no route: it assumes that any IPv4 address is on that link
/// (`ip_route_output_key_hash_rcu`). And a router advertisement or a DHCP server may have added a route that is
/// more specific than the tunnel's.
fn bypasses_tunnel(index: u32, own: Option<Mark>, net: IpNet) -> Vec<Encoded> {
    let (family, offset, len, set) = match net {
        IpNet::V4(_) => (IPV4, 16, 4, SPECIFIC[0]),
        IpNet::V6(_) => (IPV6, 24, 16, SPECIFIC[1]),
    };
    let by = [load(Meta::OutDevice), is_not(&index.to_ne_bytes())];
    let mut rule: Vec<_> = [load(Meta::Family), is(&[family])].into_iter().chain(by).collect();
    rule.extend([load(Meta::OutDeviceName), is_not(&device("lo"))]);
    if let Some(Mark { value, mask }) = own {
        rule.extend([load(Meta::Mark), masked(&mask.to_ne_bytes()), is_not(&value.to_ne_bytes())]);
    }
    let receiver = || bytes(Header::Network, offset, len);
    if net.prefix_len() > 0 {
        let [mask, network] = [net.netmask(), net.network()].map(octets);
        rule.extend([receiver(), masked(&mask), is(&network)]);
    }
    rule.extend(match net {
        IpNet::V4(_) => [kind_of(Address::Destination), is(&UNICAST.to_ne_bytes())],
        // This excludes only multicast. For IPv6 the kernel would return the type of the address's route, which
        // may be the kill switch's own blackhole.
        IpNet::V6(_) => [bytes(Header::Network, offset, 1), is_not(&[0xff])],
    });
    rule.extend([receiver(), is_in_none(set), counter(), drop()]);
    rule
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// Our addresses on the device. Link-local addresses are left out, because another link may have them, too. A
/// bridge port has no addresses.
fn inside(config: &Config) -> impl Iterator<Item = IpAddr> {
    let interface = &config.interface;
    let addresses = interface.addresses.iter().filter(|_| interface.bridge.is_none());
    addresses.map(IpNet::addr).filter(|address| match address {
        IpAddr::V4(v4) => !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local(),
    })
}

/// Matches packets that came neither from the device nor from this host. The device is matched by its number,
/// because it may be renamed. Packets in a VRF pass a second time, with the VRF as their device.
fn not_from_tunnel(index: u32, vrf: Option<&str>) -> Vec<Encoded> {
    let by_device = [load(Meta::Device), is_not(&index.to_ne_bytes())];
    let by_name = [Some("lo"), vrf].into_iter().flatten().map(device);
    let by_name = by_name.flat_map(|name| [load(Meta::DeviceName), is_not(&name)]);
    by_device.into_iter().chain(by_name).collect()
}

fn to(address: IpAddr) -> [Encoded; 4] {
    let ip = |family, offset, address: &[u8]| {
        let len = if family == IPV4 { 4 } else { 16 };
        let header = bytes(Header::Network, offset, len);
        [load(Meta::Family), is(&[family]), header, is(address)]
    };
    match address {
        IpAddr::V4(v4) => ip(IPV4, 16, &v4.octets()),
        IpAddr::V6(v6) => ip(IPV6, 24, &v6.octets()),
    }
}

/// Matches datagrams to our port on this host, and sets their mark. Forwarded datagrams are not marked, so
/// their routing does not change.
fn marks(index: u32, port: u16, mark: Mark) -> [Encoded; 11] {
    [
        load(Meta::Device),
        is_not(&index.to_ne_bytes()),
        load(Meta::Protocol),
        is(&[UDP]),
        bytes(Header::Transport, 2, 2),
        is(&port.to_be_bytes()),
        kind_of(Address::Destination),
        is(&LOCAL.to_ne_bytes()),
        load(Meta::Mark),
        set_bits(mark.value, mark.mask),
        set_mark(),
    ]
}

/// The port; 0 if the kernel chooses one.
fn port(listen: Listen) -> u16 {
    match listen {
        Listen::Port(port) => port,
        Listen::Address(address) => address.port(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_that_touch_are_one_range() {
        let networks = ["0.0.0.0/2", "64.0.0.0/2", "192.0.2.0/24", "fe80::/64"];
        let networks = networks.map(|net| net.parse().unwrap());
        let v4 = vec![(0, 0x7fff_ffff), (0xc000_0200, 0xc000_02ff)];
        let link_local = 0xfe80_u128 << 112;
        let v6 = vec![(link_local, link_local + u128::from(u64::MAX))];
        assert_eq!(
            sets(&networks, [true, true]),
            [
                Set { name: "specific", bytes: 4, ranges: v4 },
                Set { name: "specific6", bytes: 16, ranges: v6.clone() }
            ]
        );
        assert_eq!(
            sets(&networks, [false, true]),
            [Set { name: "specific6", bytes: 16, ranges: v6 }]
        );
    }
}
