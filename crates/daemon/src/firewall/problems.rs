//! Warnings about packets that another packet filter drops, or that ours would have to drop.

use std::net::SocketAddr;

use vpnd_tunnel::udp::Listen;

use super::{IPV4, IPV6, kill_switch_networks, port};
use crate::config::{Config, Problem};
use crate::nft::{self, Chain, Hook};

/// Warns of chains that drop all datagrams to our port, as far as their rules show this.
pub(crate) fn problems(config: &Config) -> Vec<Problem> {
    let port = port(config.interface.listen);
    if port == 0 || config.socket.netns.is_some() {
        return Vec::new();
    }
    let closed = |chain: &Chain| {
        chain.drops(Hook::Input)
            && concerns(chain.family, config.interface.listen)
            // Without the rules of a chain, nothing is reported about it.
            && nft::names_port(chain, port).is_ok_and(|named| !named)
    };
    // A process without the privilege to list chains gets no warnings.
    let chains = nft::chains().unwrap_or_default();
    chains.iter().filter(|chain| closed(chain)).map(|chain| closed_port(chain, port)).collect()
}

/// Warns that a program can bypass the kill switch if it names a device.
pub(crate) fn open_beside(config: &Config) -> Option<Problem> {
    let is_kept_in = kill_switch_networks(config).any(|net| net.addr().is_ipv4());
    if config.service.firewall || !is_kept_in {
        return None;
    }
    let problem = "[[route]] when_down: no route stops IPv4 packets of a program that names a device \
                   (SO_BINDTODEVICE, IP_PKTINFO, `ping -I`): they leave past this kill switch where the link takes them";
    let help = "`firewall = true` in [service] drops them; `nft add rule inet TABLE CHAIN` with the rule of \
                docs/security.md does so in a table of yours";
    Some(Problem::warning(problem).help(help))
}

/// Whether datagrams to this address pass chains of this family.
fn concerns(family: u8, listen: Listen) -> bool {
    match (family, listen) {
        (nft::INET, _) | (IPV4 | IPV6, Listen::Port(_)) => true,
        (IPV4, Listen::Address(address)) => address.is_ipv4(),
        (IPV6, Listen::Address(SocketAddr::V6(_))) => true,
        _ => false,
    }
}

fn closed_port(chain: &Chain, port: u16) -> Problem {
    let Chain { table, name, .. } = chain;
    let problem = format!(
        "[interface] listen: chain {name} of nftables' table {table} drops packets that none of its rules \
         accepts, and none names port {port}: the peer may not reach us"
    );
    let line = opening(chain, port);
    let help = format!("`{line}` accepts them, until another program sets that table again");
    Problem::warning(problem).help(help)
}

/// The command that accepts datagrams to a port, in the syntax of the tool that made the chain.
fn opening(Chain { family, table, name, .. }: &Chain, port: u16) -> String {
    let family = match (*family, table.as_str(), name.as_str()) {
        (IPV4, "filter", "INPUT") => {
            return format!("iptables -I INPUT -p udp --dport {port} -j ACCEPT");
        }
        (IPV6, "filter", "INPUT") => {
            return format!("ip6tables -I INPUT -p udp --dport {port} -j ACCEPT");
        }
        (IPV4, ..) => "ip",
        (IPV6, ..) => "ip6",
        _ => "inet",
    };
    format!("nft insert rule {family} {table} {name} udp dport {port} accept")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_blamed_for_what_it_sees() {
        let of = |text: &str| Listen::Address(text.parse().unwrap());
        assert!(concerns(nft::INET, of("192.0.2.1:7")) && concerns(IPV6, Listen::Port(7)));
        assert!(concerns(IPV4, of("192.0.2.1:7")) && !concerns(IPV6, of("192.0.2.1:7")));
        assert!(concerns(IPV6, of("[2001:db8::1]:7")) && !concerns(IPV4, of("[2001:db8::1]:7")));
        assert!(!concerns(3, Listen::Port(7)), "ARP");
    }

    #[test]
    fn the_line_is_in_the_words_of_whoever_made_the_chain() {
        let line = |family, table: &str, name: &str| {
            let (table, name) = (table.to_owned(), name.to_owned());
            opening(&Chain { family, table, name, ..Chain::default() }, 7)
        };
        assert_eq!(
            line(nft::INET, "filter", "input"),
            "nft insert rule inet filter input udp dport 7 accept"
        );
        assert_eq!(line(IPV4, "mine", "INPUT"), "nft insert rule ip mine INPUT udp dport 7 accept");
        assert_eq!(line(IPV6, "filter", "INPUT"), "ip6tables -I INPUT -p udp --dport 7 -j ACCEPT");
    }
}
