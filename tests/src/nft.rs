//! Packet filters of a host: loss, black holes, address translation.

use anyhow::{Context, Result};

use crate::Host;

/// Drops this share of the packets received on a UDP port, at random, before any other rule.
///
/// # Errors
/// When `nft` refuses it.
pub fn lose(host: &Host, port: u16, percent: u8) -> Result<()> {
    drop_arriving(host, &format!("udp dport {port} numgen random mod 100 < {percent}"))
}

/// Silently drops received packets larger than `bytes`, IP header included. The sending device
/// must not send super-packets ([`crate::link::Port::no_offload`]).
///
/// # Errors
/// When `nft` refuses it.
pub fn black_hole(host: &Host, bytes: u16) -> Result<()> {
    drop_arriving(host, &format!("meta length > {bytes}"))
}

/// Drops received packets that match an expression of `nft`.
///
/// # Errors
/// When `nft` refuses it.
pub fn drop_arriving(host: &Host, matching: &str) -> Result<()> {
    let hook = "filter hook prerouting priority raw";
    add(host, "inet lab", hook, &format!("{matching} counter drop"))
}

/// Lets the host's bridges forward this many kilobytes, and then nothing more.
///
/// # Errors
/// When `nft` refuses it.
pub fn limit_bridges(host: &Host, kilobytes: u32) -> Result<()> {
    let rule = format!("quota over {kilobytes} kbytes drop");
    add(host, "bridge limits", "filter hook forward priority filter", &rule)
}

/// Sets another ECN mark on received packets that match, before any other rule; `family` is that of the
/// header, `ip` or `ip6`.
///
/// # Errors
/// When `nft` refuses it.
pub fn remark_arriving(host: &Host, matching: &str, family: &str, mark: &str) -> Result<()> {
    let hook = "filter hook prerouting priority raw";
    add(host, "inet marks", hook, &format!("{matching} {family} ecn set {mark}"))
}

/// Counts received packets, with a counter for each of these expressions of `nft`.
///
/// # Errors
/// When `nft` refuses it.
pub fn count_arriving(host: &Host, matching: &[String]) -> Result<()> {
    let rules: Vec<_> = matching.iter().map(|one| format!("{one} counter")).collect();
    add(host, "inet counts", "filter hook prerouting priority mangle", &rules.join("\n"))
}

/// The packets dropped by this host's rules so far.
///
/// # Errors
/// When `nft` fails.
pub fn dropped(host: &Host) -> Result<u64> {
    Ok(counts(host)?.into_iter().sum())
}

/// Every counter of this host.
///
/// # Errors
/// When `nft` fails.
pub fn counts(host: &Host) -> Result<Vec<u64>> {
    let rules = host.run("nft list ruleset")?;
    let counts = rules.split("counter packets ").skip(1);
    counts
        .map(|rest| rest.split_whitespace().next().unwrap_or_default())
        .map(|number| number.parse::<u64>().context("nft prints no number"))
        .collect()
}

/// Translates the source of all packets that leave by a device to its address, and forgets an idle UDP flow
/// after `forget` seconds, as cheap routers do.
///
/// # Errors
/// When `nft` or the kernel refuses it.
pub fn masquerade(host: &Host, device: &str, forget: u16) -> Result<()> {
    let rule = format!("oifname {device} masquerade random");
    add(host, "ip nat", "nat hook postrouting priority srcnat", &rule)?;
    // Packets from the far side to an expired mapping must not create a new one in reverse.
    let rule = format!("iifname {device} ct state new drop");
    add(host, "ip guard", "filter hook forward priority filter", &rule)?;
    host.sysctl("netfilter/nf_conntrack_udp_timeout", &forget.to_string())?;
    host.sysctl("netfilter/nf_conntrack_udp_timeout_stream", &forget.to_string())
}

/// Removes all rules.
///
/// # Errors
/// When `nft` fails.
pub fn clear(host: &Host) -> Result<()> {
    host.run("nft flush ruleset").map(drop)
}

fn add(host: &Host, table: &str, hook: &str, rule: &str) -> Result<()> {
    let rules = format!("table {table} {{\nchain lab {{\ntype {hook}\n{rule}\n}}\n}}\n");
    host.run_with_input("nft -f -", &rules).map(drop)
}
