//! Whether a full packet of the device fits into one packet on the path, for a device whose MTU is set.
//!
//! The kernel knows the first link, and what routers have reported. Two datagrams that may not be fragmented make
//! routers report, if they do at all; a router that drops in silence is found only between two running vpnd
//! (`vpnd mtu`).

use std::thread::sleep;
use std::time::Duration;

use vpnd_tunnel::udp;

use super::finding::{Check, Finding};
use super::line::Line;
use super::place::Target;
use crate::config::Config;

/// What the tunnel adds to a packet: header and tag.
const ADDED: u16 = 32;
/// How long a router's report may take.
const REPORT: Duration = Duration::from_millis(400);
const PROBES: usize = 2;

/// Examines the path to one address of the peer, in the network namespace of the socket.
pub(super) fn finding(config: &Config, target: &Target, mtu: u16, name: &str) -> Option<Finding> {
    let full = config.interface.mode.largest_packet(mtu).saturating_add(ADDED);
    if *target.payload.as_ref().ok()? >= full {
        probe(target, full);
    }
    let carried = udp::largest_payload(target.to, target.source, &target.egress).ok()?;
    (carried < full).then(|| narrow(config, target, carried, [mtu, full], name))
}

/// Sends datagrams of the full size. Their contents are no message of the protocol, so the peer drops them.
fn probe(target: &Target, full: u16) {
    let Ok(line) = Line::open(target, 0, &target.egress) else { return };
    if line.forbid_fragments(target.to.is_ipv4()).is_err() {
        return;
    }
    for _ in 0..PROBES {
        // One that is refused shows what the first has found out.
        let _refused = line.send(&vec![0; full.into()]);
        sleep(REPORT);
    }
}

fn narrow(
    config: &Config,
    target: &Target,
    carried: u16,
    [mtu, full]: [u16; 2],
    name: &str,
) -> Finding {
    let packet = |payload| udp::packet_around(payload, target.to);
    let over = full - carried;
    let fits = mtu.saturating_sub(over);
    let cause = format!(
        "the path to the peer at {} carries packets of {} bytes, and a full packet of the device (MTU {mtu}) is {} bytes \
         outside: it crosses in fragments or not at all",
        target.to.ip(),
        packet(carried),
        packet(full)
    );
    let file = config.file.display();
    Finding::new(Check::Mtu, cause).advice(format!(
        "mtu = {fits} in [interface] of {file}, at both ends; then `vpnd reload {name}` if the tunnel runs"
    ))
}
