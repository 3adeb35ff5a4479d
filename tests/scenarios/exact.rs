//! Exact delivery: long transfers, hashed at both ends, without a single checksum error.

use anyhow::{Context, Result, ensure};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{INNER_A6, INNER_B4};
use vpnd_tests::traffic::tcp::Transfer;
use vpnd_tests::{Host, Lab, long};

use crate::tunnel::Tunnel;

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("exact::TCP both ways, hashed at both ends", Cost::Alone, hashed)]
}

/// One family in each direction.
fn hashed(lab: &Lab) -> Result<String> {
    let each = if long() { 5_000_000_000 } else { 200_000_000 };
    let tunnel = Tunnel::new(lab)?;
    let (a, b) = (&tunnel.wire.a, &tunnel.wire.b);
    let there = Transfer::start(a, b, INNER_B4, each)?;
    let back = Transfer::start(b, a, INNER_A6, each)?;
    let bytes = there.finish()?.bytes + back.finish()?.bytes;
    for host in [a, b] {
        let errors = checksum_errors(host)?;
        ensure!(errors == 0, "{}: {errors} checksums failed", host.name());
    }
    Ok(format!("{bytes} bytes, the same at both ends; no checksum failed"))
}

/// As the kernel of this host counts them, for TCP over either family.
fn checksum_errors(host: &Host) -> Result<u64> {
    let table = host.run("cat /proc/net/snmp")?;
    let mut lines = table.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = lines.next().zip(lines.next()).context("no counters of TCP")?;
    let place = names.split_whitespace().position(|name| name == "InCsumErrors");
    let value = values.split_whitespace().nth(place.context("no count of checksum errors")?);
    Ok(value.context("no value")?.parse()?)
}
