//! What else decides whether a frame crosses a bridge: where `br_netfilter` is loaded, the kernel takes IP packets
//! that a bridge forwards through the FORWARD chain of IP as well. A host that routes nothing, or one with
//! Docker, drops them there.

use std::fs;

use crate::config::{Config, Problem};
use crate::nft::{self, Chain, Hook};

/// Warns of a bridge whose frames the host's packet filter drops.
pub(crate) fn problems(config: &Config) -> Vec<Problem> {
    let bridge = config.interface.bridge.as_ref().filter(|_| config.interface.netns.is_none());
    let Some(bridge) = bridge else { return Vec::new() };
    let called = FAMILIES.iter().filter(|family| family.is_called());
    called.filter_map(|family| family.problem(bridge)).collect()
}

/// One version of IP, and what of the packet filter concerns it.
struct Family {
    name: &'static str,
    sysctl: &'static str,
    /// Where the older packet filter lists its tables.
    older: &'static str,
    /// `NFPROTO_INET` and its own.
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

    /// What becomes of packets there; none if nothing there drops all that it does not know.
    fn verdict(&self) -> Option<String> {
        let Ok(chains) = nft::chains() else {
            return Some("which drops them if its policy is drop: look at it as root".to_owned());
        };
        let drops =
            |chain: &&Chain| self.numbers.contains(&chain.family) && chain.drops(Hook::Forward);
        if let Some(Chain { table, name, .. }) = chains.iter().find(drops) {
            return Some(format!(
                "and chain {name} of table {table} drops what none of its rules accepts"
            ));
        }
        let older = fs::read_to_string(self.older).unwrap_or_default();
        let filters = older.lines().any(|table| table == "filter");
        let words = self.words;
        filters.then(|| format!("which drops them if `{words}-legacy -S FORWARD` says so"))
    }
}
