//! Whether the packet filter drops the tunnel's own datagrams. The rules of `iptables` (nft) are among those that
//! `nft` lists; those of `iptables-legacy` are not.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use super::finding::{Check, Finding};
use super::place::Target;
use super::ruleset::{Dropper, Flow, Packet, Ruleset, Way};

/// The program, which is often not in the `PATH` of a user.
const PROGRAMS: [&str; 2] = ["nft", "/usr/sbin/nft"];

/// The rules of this thread's network namespace.
///
/// # Errors
///
/// Why they are not known, as a note.
pub(super) fn rules() -> Result<Ruleset, String> {
    let missing = "the firewall was not examined: there is no program `nft` (package nftables)";
    let list = |program: &&str| {
        let mut command = Command::new(program);
        command.args(["-j", "list", "ruleset"]).stdin(Stdio::null()).output().ok()
    };
    let output = PROGRAMS.iter().find_map(list).ok_or(missing)?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("the firewall was not examined: nft: {}", said.trim()));
    }
    Ruleset::parse(&text).ok_or_else(|| {
        "the firewall was not examined: `nft -j list ruleset` printed something else".to_owned()
    })
}

/// What is known about the tunnel's datagrams.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traffic {
    /// Our port, if it is known.
    pub(super) port: Option<u16>,
    /// Whether the configuration sets it, so that a rule may name it.
    pub(super) is_fixed: bool,
    /// What arrives: calls of the peer, or only answers to ours.
    pub(super) flow: Flow,
}

/// The chains that drop what comes from the peer or goes there, each once. While the datagrams of one of its addresses
/// pass, those of the others are worth a note.
pub(super) fn findings(
    ruleset: &Ruleset,
    traffic: Traffic,
    targets: &[Target],
) -> (Vec<Finding>, Vec<String>) {
    let known = targets.iter().map(|target| {
        let device = target.found.as_ref().map(|found| found.device.clone());
        (target.to.is_ipv4(), Some(target.to), device)
    });
    let mut ends: Vec<_> = known.collect();
    if ends.is_empty() {
        // The peer calls us, from anywhere.
        ends.push((true, None, None));
    }
    let (mut once, mut is_open) = (Vec::<Finding>::new(), false);
    for (is_v4, peer, device) in ends {
        let found = of_end(ruleset, traffic, is_v4, peer, device.as_deref());
        is_open |= found.is_empty();
        let new = found.into_iter().filter(|finding| !once.contains(finding));
        once.extend(new.collect::<Vec<_>>());
    }
    if is_open {
        (Vec::new(), once.into_iter().map(|finding| finding.cause).collect())
    } else {
        (once, Vec::new())
    }
}

fn of_end(
    ruleset: &Ruleset,
    traffic: Traffic,
    is_v4: bool,
    peer: Option<SocketAddr>,
    device: Option<&str>,
) -> Vec<Finding> {
    let ways = [Way::In, Way::Out].into_iter();
    let packets = ways.map(|way| packet(way, traffic, is_v4, peer, device.map(str::to_owned)));
    let found = packets.flat_map(|packet| {
        let droppers = ruleset.droppers(&packet).into_iter();
        droppers.map(move |dropper| finding(&dropper, &packet, traffic.is_fixed))
    });
    found.collect()
}

fn packet(
    way: Way,
    Traffic { port, flow, .. }: Traffic,
    is_v4: bool,
    peer: Option<SocketAddr>,
    device: Option<String>,
) -> Packet {
    let ours = (None, port);
    let theirs = (peer.map(|peer| peer.ip()), peer.map(|peer| peer.port()));
    let (from, to) = if way == Way::In { (theirs, ours) } else { (ours, theirs) };
    let flow = if way == Way::Out { Flow::New } else { flow };
    Packet { way, flow, is_v4, from, to, device }
}

fn finding(dropper: &Dropper, packet: &Packet, is_fixed: bool) -> Finding {
    let answers = packet.way == Way::In && packet.flow == Flow::Answer && !is_fixed;
    let Dropper { family, table, chain, rule } = dropper;
    let why = match rule {
        None => "policy drop, no rule accepts it".to_owned(),
        Some((handle, within)) if within == chain => format!("rule with handle {handle}"),
        Some((handle, within)) => format!("rule with handle {handle} of chain {within}"),
    };
    let cause = format!(
        "nftables: table {family} {table}, chain {chain} drops {} ({why})",
        which(packet, answers)
    );
    let finding = Finding::new(Check::Firewall, cause).command(opening(dropper, packet, answers));
    finding.advice(
        "put that rule into the file that sets this table, or it is gone with the next boot",
    )
}

/// The datagrams in words; `answers` is whether only the connection tracker tells them from others.
fn which(Packet { way, from, to, .. }: &Packet, answers: bool) -> String {
    match (way, from.1, to) {
        (Way::In, _, _) if answers => "the peer's answers to our datagrams".to_owned(),
        (Way::In, _, (_, Some(port))) => format!("UDP to port {port}"),
        (Way::In, _, (_, None)) => "UDP of the peer".to_owned(),
        (Way::Out, _, (Some(address), Some(port))) => {
            format!("UDP to the peer, {}", SocketAddr::new(*address, *port))
        }
        (Way::Out, Some(port), _) => format!("UDP from port {port}"),
        (Way::Out, None, _) => "UDP to the peer".to_owned(),
    }
}

/// The command that accepts the datagrams, in the syntax of the tool that has made the chain.
fn opening(
    Dropper { family, table, chain, .. }: &Dropper,
    packet: &Packet,
    answers: bool,
) -> String {
    let (word, legacy, port) = match (packet.way, packet.from.1, packet.to.1) {
        (Way::In, _, Some(port)) => ("dport", "--dport", Some(port)),
        (Way::Out, Some(port), _) => ("sport", "--sport", Some(port)),
        (Way::Out, None, Some(port)) => ("dport", "--dport", Some(port)),
        (_, _, None) => ("", "", None),
    };
    let tool = match (family.as_str(), table.as_str()) {
        ("ip", "filter" | "raw" | "mangle") => Some("iptables"),
        ("ip6", "filter" | "raw" | "mangle") => Some("ip6tables"),
        _ => None,
    };
    let of_tool = ["INPUT", "OUTPUT", "PREROUTING", "POSTROUTING"].contains(&chain.as_str());
    match (tool.filter(|_| of_tool), port.filter(|_| !answers)) {
        (Some(tool), Some(port)) => {
            format!("{tool} -t {table} -I {chain} -p udp {legacy} {port} -j ACCEPT")
        }
        (Some(tool), None) => format!(
            "{tool} -t {table} -I {chain} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"
        ),
        (None, Some(port)) => {
            format!("nft insert rule {family} {table} {chain} udp {word} {port} accept")
        }
        (None, None) => {
            format!("nft insert rule {family} {table} {chain} ct state established,related accept")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dropper(family: &str, table: &str, chain: &str) -> Dropper {
        let [family, table, chain] = [family, table, chain].map(str::to_owned);
        Dropper { family, table, chain, rule: None }
    }

    #[test]
    fn the_command_is_in_the_words_of_whoever_made_the_chain() {
        let peer = Some("192.0.2.2:9".parse().unwrap());
        let line = |way, port, flow, dropper: &Dropper| {
            let traffic = Traffic { port, is_fixed: port.is_some(), flow };
            let packet = packet(way, traffic, true, peer, None);
            opening(dropper, &packet, flow == Flow::Answer && way == Way::In)
        };
        let of_nft = dropper("inet", "filter", "input");
        let of_iptables = dropper("ip", "filter", "OUTPUT");
        for (way, port, flow, dropper, expected) in [
            (
                Way::In,
                Some(7),
                Flow::New,
                &of_nft,
                "nft insert rule inet filter input udp dport 7 accept",
            ),
            (
                Way::Out,
                Some(7),
                Flow::New,
                &of_nft,
                "nft insert rule inet filter input udp sport 7 accept",
            ),
            (
                Way::Out,
                None,
                Flow::New,
                &of_nft,
                "nft insert rule inet filter input udp dport 9 accept",
            ),
            (
                Way::In,
                None,
                Flow::Answer,
                &of_nft,
                "nft insert rule inet filter input ct state established,related accept",
            ),
            (
                Way::Out,
                Some(7),
                Flow::New,
                &of_iptables,
                "iptables -t filter -I OUTPUT -p udp --sport 7 -j ACCEPT",
            ),
        ] {
            assert_eq!(line(way, port, flow, dropper), expected);
        }
    }

    fn target(to: &str) -> Target {
        Target {
            to: to.parse().unwrap(),
            source: None,
            found: None,
            egress: vpnd_tunnel::udp::Egress::default(),
            payload: Ok(1452),
        }
    }

    #[test]
    fn one_chain_is_one_finding() {
        let closed = r#"{"nftables": [{"chain": {"family": "inet", "table": "t", "name": "c",
            "type": "filter", "hook": "input", "policy": "drop"}}]}"#;
        let ruleset = Ruleset::parse(closed).unwrap();
        let traffic = Traffic { port: Some(7), is_fixed: true, flow: Flow::New };
        for targets in [vec![], vec![target("192.0.2.2:9"), target("[2001:db8::2]:9")]] {
            let (found, notes) = findings(&ruleset, traffic, &targets);
            assert!(found.len() == 1 && notes.is_empty(), "{found:?} {notes:?}");
            assert!(
                found[0].cause.contains("chain c drops UDP to port 7 (policy drop"),
                "{found:?}"
            );
        }
    }

    #[test]
    fn one_address_that_passes_is_enough() {
        let closed = r#"{"nftables": [{"chain": {"family": "ip6", "table": "t", "name": "c",
            "type": "filter", "hook": "input", "policy": "drop"}}]}"#;
        let ruleset = Ruleset::parse(closed).unwrap();
        let traffic = Traffic { port: Some(7), is_fixed: true, flow: Flow::New };
        let both = [target("[2001:db8::2]:9"), target("192.0.2.2:9")];
        let (found, notes) = findings(&ruleset, traffic, &both);
        assert!(found.is_empty() && notes.len() == 1, "{found:?} {notes:?}");
        assert_eq!(findings(&ruleset, traffic, &both[..1]).0.len(), 1);
    }
}
