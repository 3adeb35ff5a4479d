//! Settings of the kernel that packets depend on: forwarding, and the filter of source addresses.

use std::fs;
use std::net::IpAddr;

use super::finding::{Check, Finding};
use super::place::{Assigned, Target};
use crate::config::Config;
use crate::forward::{self, Forwarding};

/// Versions of IP that are not forwarded, in the network namespace of the device, in which this thread is. That this
/// host should forward is known if it has another network than that of its uplinks; else it may be a single host,
/// which uses the tunnel only for itself.
pub(super) fn forwarding(
    config: &Config,
    targets: &[Target],
    addresses: &[Assigned],
) -> (Vec<Finding>, Vec<String>) {
    let uplinks: Vec<&str> =
        targets.iter().filter_map(|it| it.found.as_ref()).map(|it| it.device.as_str()).collect();
    let lan = |is_v4| addresses.iter().find(|it| is_lan(it, is_v4, config, &uplinks));
    let (mut findings, mut notes) = (Vec::new(), Vec::new());
    for off in forward::off(config) {
        match lan(off.is_v4).filter(|_| !uplinks.is_empty()) {
            Some(lan) => findings.push(not_forwarded(off, lan)),
            None => notes.push(off.note().sentence()),
        }
    }
    (findings, notes)
}

fn is_lan(one: &Assigned, is_v4: bool, config: &Config, uplinks: &[&str]) -> bool {
    let of_tunnel = config.interface.name.as_deref() == Some(&one.device)
        || config.interface.addresses.contains(&one.address);
    let is_network = one.address.prefix_len() < one.address.max_prefix_len();
    let is_global = match one.address.addr() {
        IpAddr::V4(v4) => is_v4 && !v4.is_link_local(),
        IpAddr::V6(v6) => !is_v4 && !v6.is_unicast_link_local(),
    };
    let is_ours = of_tunnel || one.is_loopback || uplinks.contains(&one.device.as_str());
    is_network && is_global && one.is_up && !is_ours
}

fn not_forwarded(off: &Forwarding, lan: &Assigned) -> Finding {
    let (version, sysctl) = (if off.is_v4 { "IPv4" } else { "IPv6" }, off.sysctl);
    let Assigned { device, address, .. } = lan;
    let cause = format!(
        "this host does not forward {version} ({sysctl} = 0), so hosts of {} on {device} cannot use the tunnel's routes",
        address.trunc()
    );
    Finding::new(Check::Forwarding, cause)
        .command(format!("sysctl -w {sysctl}=1"))
        .advice("a file in /etc/sysctl.d keeps it over a reboot")
}

/// The packets that the filter of source addresses has dropped so far, in the network namespace of this thread.
pub(super) fn dropped_by_reverse_path() -> u64 {
    let counters = fs::read_to_string("/proc/thread-self/net/netstat").unwrap_or_default();
    counter(&counters, "IPReversePathFilter").unwrap_or(0)
}

/// A counter of `/proc/net/netstat`, where a line of names precedes each line of numbers.
fn counter(text: &str, name: &str) -> Option<u64> {
    let lines: Vec<&str> = text.lines().collect();
    lines.chunks_exact(2).find_map(|pair| {
        let place = pair[0].split_whitespace().position(|word| word == name)?;
        pair[1].split_whitespace().nth(place)?.parse().ok()
    })
}

/// A strict filter that has dropped packets while an answer was awaited: those come in by another device than that
/// of the route to the peer.
pub(super) fn reverse_path(target: &Target, addresses: &[Assigned]) -> Option<Finding> {
    let found = target.found.as_ref().filter(|_| target.to.is_ipv4())?;
    let is_other = |one: &&Assigned| {
        one.address.addr().is_ipv4() && one.is_up && !one.is_loopback && one.device != found.device
    };
    let mut strict: Vec<&str> = addresses.iter().filter(is_other).map(|it| &*it.device).collect();
    strict.retain(|device| is_strict(device));
    strict.dedup();
    let (device, which) = match strict.as_slice() {
        [] => return None,
        [one] => (*one, (*one).to_owned()),
        all => ("all", all.join(" or ")),
    };
    let cause = format!(
        "rp_filter is strict on {which}, where answers of {} arrive although the route to it leads through {}: the \
         kernel drops them",
        target.to.ip(),
        found.device
    );
    let command = format!("sysctl -w net.ipv4.conf.{device}.rp_filter=2");
    Some(
        Finding::new(Check::ReversePath, cause)
            .command(command)
            .advice("let the route to the peer lead through the device where its answers arrive"),
    )
}

/// The larger one of two settings counts; 1 is strict.
fn is_strict(device: &str) -> bool {
    let value = |of: &str| {
        let path = format!("/proc/sys/net/ipv4/conf/{of}/rp_filter");
        let text = fs::read_to_string(path).unwrap_or_default();
        text.trim().parse::<u8>().unwrap_or(0)
    };
    value("all").max(value(device)) == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_by_its_name() {
        let text = "TcpExt: SyncookiesSent IPReversePathFilter Other\nTcpExt: 1 7 3\n\
                    IpExt: InNoRoutes InOctets\nIpExt: 4 5\n";
        assert_eq!(counter(text, "IPReversePathFilter"), Some(7));
        assert_eq!(counter(text, "InOctets"), Some(5));
        assert_eq!(counter(text, "Missing"), None);
        assert_eq!(counter("TcpExt: IPReversePathFilter\nTcpExt:\n", "IPReversePathFilter"), None);
        assert_eq!(counter("one line", "line"), None);
    }
}
