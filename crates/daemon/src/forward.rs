//! Host settings that decide whether packets are forwarded between the tunnel and the LAN.
//!
//! With a bridge: if `br_netfilter` is loaded, bridged IP packets also pass the FORWARD chain of IP. A host
//! that does not route, or one with Docker, drops them there. With routes: the kernel forwards packets only if
//! a sysctl of that IP version is set.

use std::fs;
use std::path::Path;

use ipnet::IpNet;
use vpnd_tun::Mode;

use crate::config::{Config, Problem};
use crate::nft::{self, Chain, Hook};

/// Warns of a bridge whose frames the host's packet filter drops.
pub(crate) fn problems(config: &Config) -> Vec<Problem> {
    let bridge = config.interface.bridge.as_ref().filter(|_| config.interface.netns.is_none());
    let Some(bridge) = bridge else { return Vec::new() };
    let called = FAMILIES.iter().filter(|family| family.is_called());
    called.filter_map(|family| family.problem(bridge)).collect()
}

/// One IP version, and the parts of the packet filter that apply to it.
struct Family {
    name: &'static str,
    sysctl: &'static str,
    /// The file that lists the tables of the legacy packet filter.
    older: &'static str,
    /// `NFPROTO_INET` and the family's own number.
    numbers: [u8; 2],
    words: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        name: "IPv4",
        sysctl: "bridge-nf-call-iptables",
        older: "/proc/net/ip_tables_names",
        numbers: [1, 2],
        words: "iptables",
    },
    Family {
        name: "IPv6",
        sysctl: "bridge-nf-call-ip6tables",
        older: "/proc/net/ip6_tables_names",
        numbers: [1, 10],
        words: "ip6tables",
    },
];

impl Family {
    fn is_called(&self) -> bool {
        let path = format!("/proc/sys/net/bridge/{}", self.sysctl);
        fs::read_to_string(path).is_ok_and(|value| value.trim() != "0")
    }

    fn problem(&self, bridge: &str) -> Option<Problem> {
        let Self { name, sysctl, words, .. } = self;
        let problem = format!(
            "[interface] bridge: {name} packets that cross {bridge} also go through the host's FORWARD chain \
             (net.bridge.{sysctl} is 1), {}",
            self.verdict()?
        );
        let help = format!(
            "`sysctl -w net.bridge.{sysctl}=0` leaves bridges alone, `{words} -I FORWARD -m physdev \
             --physdev-is-bridged -j ACCEPT` lets them pass"
        );
        Some(Problem::warning(problem).help(help))
    }

    /// What happens to packets in the FORWARD chain; `None` if no chain drops packets by default.
    fn verdict(&self) -> Option<String> {
        let Ok(chains) = nft::chains() else {
            return Some("which drops them if its policy is drop: look at it as root".to_owned());
        };
        let drops =
            |chain: &&Chain| self.numbers.contains(&chain.family) && chain.drops(Hook::Forward);
        if let Some(Chain { table, name, .. }) = chains.iter().find(drops) {
            return Some(format!(
                "and chain {name} of table {table} drops packets that none of its rules accepts"
            ));
        }
        let older = fs::read_to_string(self.older).unwrap_or_default();
        let filters = older.lines().any(|table| table == "filter");
        let words = self.words;
        filters.then(|| format!("which drops them if `{words}-legacy -S FORWARD` says so"))
    }
}

/// Notes that this host does not forward packets, if the tunnel leads to networks. Only the administrator knows
/// whether it should: a host that uses the tunnel only for itself has the same configuration.
pub(crate) fn not_forwarded(config: &Config) -> Vec<Problem> {
    // Another network namespace has its own sysctls.
    if config.interface.netns.is_some() {
        return Vec::new();
    }
    off(config).map(Forwarding::note).collect()
}

/// The versions of IP that the tunnel leads to networks of, and that the network namespace of this thread does not
/// forward. Packets that cross a bridge are not routed.
pub(crate) fn off(config: &Config) -> impl Iterator<Item = &'static Forwarding> {
    let is_routed = config.interface.mode == Mode::Tun;
    let leads_to = |is_v4: bool| config.routes.iter().any(|route| is_lan(&route.to, is_v4));
    let needed = FORWARDING.iter().filter(move |one| is_routed && leads_to(one.is_v4));
    needed.filter(|one| !one.is_on(Path::new(SYSCTLS)))
}

/// Whether the route's network may contain hosts whose packets would be forwarded. A default route does not
/// count, because a single host has one, too.
fn is_lan(net: &IpNet, is_v4: bool) -> bool {
    let single = net.max_prefix_len();
    net.addr().is_ipv4() == is_v4 && (1..single).contains(&net.prefix_len())
}

const SYSCTLS: &str = "/proc/sys/net";

/// The sysctls that decide whether packets of one IP version are forwarded.
pub(crate) struct Forwarding {
    pub(crate) is_v4: bool,
    pub(crate) sysctl: &'static str,
    /// The sysctls for existing devices and for future ones. A host may forward packets of some devices only.
    files: [&'static str; 2],
}

const FORWARDING: [Forwarding; 2] = [
    Forwarding {
        is_v4: true,
        sysctl: "net.ipv4.ip_forward",
        files: ["ipv4/conf/all/forwarding", "ipv4/conf/default/forwarding"],
    },
    Forwarding {
        is_v4: false,
        sysctl: "net.ipv6.conf.all.forwarding",
        files: ["ipv6/conf/all/forwarding", "ipv6/conf/default/forwarding"],
    },
];

impl Forwarding {
    /// Whether forwarding is on for any device. A sysctl that cannot be read counts as on, so it causes no
    /// note.
    fn is_on(&self, sysctls: &Path) -> bool {
        let is_off = |file: &str| {
            fs::read_to_string(sysctls.join(file)).is_ok_and(|value| value.trim() == "0")
        };
        !self.files.iter().all(|file| is_off(file))
    }

    /// The note for a host that may need no forwarding.
    pub(crate) fn note(&self) -> Problem {
        let (version, sysctl) = (if self.is_v4 { "IPv4" } else { "IPv6" }, self.sysctl);
        Problem::note(format!(
            "[[route]]: this host does not forward {version} packets between its LAN and the tunnel ({sysctl} = 0); only \
             its own packets use the tunnel"
        ))
        .help(format!(
            "if hosts of the LAN should use it too: `sysctl -w {sysctl}=1`, and a file in /etc/sysctl.d keeps it over a \
             reboot"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_routes_to_networks_need_forwarding() {
        let is_lan = |net: &str, is_v4| is_lan(&net.parse().unwrap(), is_v4);
        assert!(is_lan("192.168.20.0/24", true) && is_lan("fd20::/48", false));
        assert!(!is_lan("192.168.20.0/24", false) && !is_lan("fd20::/48", true));
        for net in ["0.0.0.0/0", "192.168.20.1/32", "::/0", "fd20::1/128"] {
            assert!(!is_lan(net, true) && !is_lan(net, false), "{net}");
        }
    }

    #[test]
    fn some_devices_that_forward_are_enough() {
        let directory = tempfile::tempdir().unwrap();
        let [v4, _] = &FORWARDING;
        assert!(v4.is_on(directory.path()), "nothing is known of it");
        let set = |values: [&str; 2]| {
            for (file, value) in v4.files.iter().zip(values) {
                let path = directory.path().join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, value).unwrap();
            }
            v4.is_on(directory.path())
        };
        assert_eq!(
            [set(["0\n", "0\n"]), set(["0\n", "1\n"]), set(["1\n", "1\n"])],
            [false, true, true]
        );
    }
}
