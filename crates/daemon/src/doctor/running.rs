//! What a running tunnel says of itself, and whether its device is as the configuration wants it.

use std::collections::BTreeMap;
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nameindex};
use vpnd_device::{Netlink, WhenDown};
use vpnd_plane::Kind;

use super::finding::{Check, Examination, Finding};
use super::place::{Assigned, addresses};
use crate::config::{Config, Confinement, Route};
use crate::status::{Bypassed, Missing, Status};

/// This many drops of one kind while we look are no accident.
const MANY: u64 = 5;

/// The state, and what hinders packets according to the daemon.
pub(super) fn state(status: &Status, name: &str, found: &mut Examination) {
    found.findings.extend(standing(status, name));
    if status.state.0 == Some(Kind::Idle) {
        // Without a keepalive that is as it should be.
        let note = "there is no session, because nothing was sent: `ping` the peer";
        found.notes.push(note.into());
    }
    for Missing { what, why } in &status.missing {
        let cause = format!("the kernel refuses {what}: {why}");
        let advice = "vpnd tries again by itself once the reason is gone";
        found.findings.push(Finding::new(Check::Route, cause).advice(advice));
    }
    for Bypassed { what, by, .. } in &status.bypassed {
        let cause = format!("route {by} of another program takes the packets of {what}");
        let advice = "remove that route, or give ours a lower metric";
        found.findings.push(Finding::new(Check::Route, cause).advice(advice));
    }
}

fn standing(status: &Status, name: &str) -> Option<Finding> {
    let (kind, hint) = (status.state.0, status.hint.as_deref());
    let advice = format!("as it says; `vpnd status {name}` shows more, and the log when it began");
    let cause = match kind {
        Some(Kind::Up | Kind::Idle) => hint?.to_owned(),
        _ => {
            let since = humantime::format_duration(whole_seconds(status.state_changed_s));
            let why = hint.unwrap_or("no reason is known yet, ask again in some seconds");
            format!("the tunnel is {} for {since}: {why}", status.state.word())
        }
    };
    Some(Finding::new(Check::Tunnel, cause).advice(advice))
}

fn whole_seconds(seconds: f64) -> Duration {
    Duration::from_secs(Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs())
}

/// Drops that rise while we look.
pub(super) fn drops(
    before: &BTreeMap<String, u64>,
    after: &BTreeMap<String, u64>,
) -> Option<Finding> {
    let rise = |(reason, count): (&String, &u64)| {
        let rise = count.saturating_sub(before.get(reason).copied().unwrap_or(0));
        (rise >= MANY).then(|| format!("{reason} {rise}"))
    };
    let rising: Vec<_> = after.iter().filter_map(rise).collect();
    let cause = format!("packets are dropped just now: {}", rising.join(", "));
    let advice = "docs/operations.md, \"Drops\", has each reason with what to do";
    (!rising.is_empty()).then(|| Finding::new(Check::Tunnel, cause).advice(advice))
}

/// The kernel enforces less than the configuration wants.
pub(super) fn sandbox(config: &Config, status: &Status) -> Option<String> {
    let confined = status.sandbox.as_ref()?;
    let is_off = ["off", "unsupported"].contains(&confined.system_calls.as_str());
    let wanted = config.service.sandbox != Confinement::Off;
    (wanted && is_off)
        .then(|| format!("the sandbox is not what [service] sandbox wants: {confined}"))
}

/// The network namespace of the device.
pub(super) struct Seen {
    netlink: Netlink,
    /// Every interface, by its number.
    names: BTreeMap<u32, String>,
    /// Those that are up.
    up: Vec<String>,
    addresses: Vec<Assigned>,
}

impl Seen {
    /// Looks at the network namespace of this thread.
    pub(super) fn here() -> anyhow::Result<Self> {
        let netlink = Netlink::connect()?;
        let interfaces = if_nameindex()?;
        let named = interfaces.iter().map(|it| (it.index(), it.name().to_string_lossy().into()));
        let up = getifaddrs()?.filter(|one| one.flags.contains(InterfaceFlags::IFF_UP));
        let up = up.map(|one| one.interface_name).collect();
        Ok(Self { netlink, names: named.collect(), up, addresses: addresses() })
    }
}

/// Addresses, routes and the MTU that the device should have.
pub(super) async fn device(config: &Config, status: &Status, seen: &Seen) -> Vec<Finding> {
    let name = status.device.name.as_str();
    let Some(index) = seen.names.iter().find(|(_, it)| *it == name).map(|(index, _)| *index) else {
        let cause = format!("the device {name} is not in its network namespace");
        let advice = "move it back, or restart the tunnel";
        return vec![Finding::new(Check::Device, cause).advice(advice)];
    };
    if !seen.up.iter().any(|up| up == name) {
        let cause = format!("the device {name} was set down, and vpnd leaves it so");
        let command = format!("ip link set dev {name} up");
        return vec![Finding::new(Check::Device, cause).command(command)];
    }
    // What the kernel refuses has its own finding.
    let is_known = |what: &str| status.missing.iter().any(|one| one.what.contains(what));
    let lacking = lacking(config, name, &seen.addresses);
    let mut found: Vec<Finding> =
        lacking.filter(|(address, _)| !is_known(address)).map(|(_, finding)| finding).collect();
    let expected = config.routes.iter().filter(|route| is_expected(config, status, route));
    for route in expected.filter(|route| !is_known(&route.to.to_string())) {
        let leads = seen.netlink.devices_to(route.to).await;
        let other = leads.iter().find_map(|index| seen.names.get(index));
        found.extend((!leads.contains(&index)).then(|| no_route(name, route, other)));
    }
    found.extend(other_mtu(status, seen).await);
    found
}

async fn other_mtu(status: &Status, seen: &Seen) -> Option<Finding> {
    let (name, wanted) = (&status.device.name, status.device.mtu);
    let actual = seen.netlink.present(name).await.ok()?.mtu;
    let cause = format!("somebody has set the MTU of {name} to {actual}; vpnd's is {wanted}");
    let command = format!("ip link set dev {name} mtu {wanted}");
    (actual != u32::from(wanted)).then(|| Finding::new(Check::Mtu, cause).command(command))
}

fn lacking<'a>(
    config: &'a Config,
    name: &'a str,
    addresses: &'a [Assigned],
) -> impl Iterator<Item = (String, Finding)> + 'a {
    let is_port = config.interface.bridge.is_some();
    let wanted = config.interface.addresses.iter().filter(move |_| !is_port);
    let has = move |address: &ipnet::IpNet| {
        addresses.iter().any(|one| one.device == name && one.address.addr() == address.addr())
    };
    wanted.filter(move |address| !has(address)).map(move |address| {
        let cause =
            format!("the device {name} lacks its address {address}: somebody has removed it");
        let command = format!("ip address add {address} dev {name}");
        (address.addr().to_string(), Finding::new(Check::Device, cause).command(command))
    })
}

/// Whether the route has to be in the main table. A default route has a table of its own, and one that follows the
/// peer is absent while the peer is dead.
fn is_expected(config: &Config, status: &Status, route: &Route) -> bool {
    let in_main = matches!(route.table, None | Some(254)) && config.interface.vrf.is_none();
    let follows = route.when_down != WhenDown::Keep;
    in_main && route.to.prefix_len() > 0 && (!follows || status.alive)
}

fn no_route(name: &str, route: &Route, other: Option<&String>) -> Finding {
    let (to, family) = (route.to, if route.to.addr().is_ipv4() { "" } else { "-6 " });
    let why = match other {
        Some(other) => format!("somebody has replaced it by one over {other}"),
        None => "somebody has removed it".to_owned(),
    };
    let metric = route.metric.map(|metric| format!(" metric {metric}")).unwrap_or_default();
    let command = format!("ip {family}route replace {to} dev {name} proto 118{metric}");
    Finding::new(Check::Route, format!("the route to {to} over {name} is missing: {why}"))
        .command(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_that_rise() {
        let counts = |all: &[(&str, u64)]| {
            all.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect::<BTreeMap<_, _>>()
        };
        let before = counts(&[("replayed", 100), ("bad_mac1", 3)]);
        assert_eq!(drops(&before, &before), None);
        let some = counts(&[("replayed", 104), ("bad_mac1", 3)]);
        assert_eq!(drops(&before, &some), None);
        let many = counts(&[("replayed", 105), ("bad_mac1", 3), ("too_old", 9)]);
        let cause = drops(&before, &many).unwrap().cause;
        assert!(cause.ends_with("replayed 5, too_old 9"), "{cause}");
    }
}
