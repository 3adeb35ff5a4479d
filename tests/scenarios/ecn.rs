//! Congestion marks through the tunnel: every inner mark combined with every mark set on the path (RFC 6040).

use anyhow::{Result, ensure};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{INNER_B4, PORT};
use vpnd_tests::traffic::ping;
use vpnd_tests::{Lab, Wire, nft};

use crate::tunnel::{SOON, Tunnel};

/// As `nft` calls them, in the order of their bits.
const MARKS: [&str; 4] = ["not-ect", "ect1", "ect0", "ce"];
/// Figure 4 of the RFC, as indices of [`MARKS`]: what emerges, for each mark inside and each outside.
const EMERGING: [[Option<usize>; 4]; 4] = [
    [Some(0), Some(0), Some(0), None],
    [Some(1), Some(1), Some(1), Some(3)],
    [Some(2), Some(1), Some(2), Some(3)],
    [Some(3), Some(3), Some(3), Some(3)],
];
/// Echo requests that show a path to be sane, or not.
const SANE: u32 = 150;
/// Echo requests of one kind.
const PINGS: u32 = 3;

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("ecn::every mark under every other", Cost::Works, marks),
        Scenario::new("ecn::a path that marks everything over v4", Cost::Works, |lab| {
            everything(lab, Wire::B4, "ip")
        }),
        Scenario::new("ecn::a path that marks everything over v6", Cost::Works, |lab| {
            everything(lab, Wire::B6, "ip6")
        }),
    ]
}

/// What has no ECN arrives although each datagram is marked, and `status` says so until the path is sane again.
fn everything(lab: &Lab, outside: &str, family: &str) -> Result<String> {
    let tunnel = Tunnel::with(lab, |a, b| (a.towards(outside), b))?;
    let (a, b) = (&tunnel.wire.a, &tunnel.wire.b);
    nft::remark_arriving(b, &format!("udp dport {PORT}"), family, "ce")?;
    let pings = ping::marked(a, INNER_B4, SANE, 0)?;
    ensure!(pings.answered == pings.sent, "of unmarked packets in marked datagrams: {pings:?}");
    let status = tunnel.b.status()?;
    ensure!(status.ecn_ignored() && !status.drops().contains_key("congestion"), "{status}");
    nft::clear(b)?;
    let pings = ping::marked(a, INNER_B4, SANE * 2, 0)?;
    ensure!(pings.answered == pings.sent, "on a sane path: {pings:?}");
    tunnel.b.wait_for("the path to be sane again", SOON, |status| !status.ecn_ignored())?;
    Ok(format!("{SANE} of {SANE} arrived under marks, and RFC 6040 holds again after them"))
}

fn marks(lab: &Lab) -> Result<String> {
    let tunnel = Tunnel::new(lab)?;
    let (a, b) = (&tunnel.wire.a, &tunnel.wire.b);
    copied_out(&tunnel)?;
    for (outer, mark) in MARKS.into_iter().enumerate() {
        if mark == "ce" {
            // Most of what arrived lately bears no such mark: it is believed.
            nft::clear(b)?;
            ping::marked(a, INNER_B4, SANE, 0)?;
        }
        for (inner, row) in EMERGING.iter().enumerate() {
            nft::clear(b)?;
            nft::remark_arriving(b, &format!("udp dport {PORT}"), "ip", mark)?;
            nft::count_arriving(
                b,
                &MARKS.map(|mark| format!("icmp type echo-request ip ecn {mark}")),
            )?;
            ping::marked(a, INNER_B4, PINGS, u8::try_from(inner)?)?;
            let seen = nft::counts(b)?;
            let expected: Vec<u64> = (0..4)
                .map(|mark| if row[outer] == Some(mark) { PINGS.into() } else { 0 })
                .collect();
            ensure!(seen == expected, "{} in {mark}: {seen:?}, not {expected:?}", MARKS[inner]);
        }
    }
    let dropped = tunnel.b.status()?.drops().get("congestion").copied();
    ensure!(dropped == Some(PINGS.into()), "dropped for congestion: {dropped:?}, not {PINGS}");
    Ok(format!("16 of 16 combinations; {PINGS} packets without ECN dropped for a mark of the way"))
}

/// What leaves bears the mark of what is inside.
fn copied_out(tunnel: &Tunnel) -> Result<()> {
    let (a, b) = (&tunnel.wire.a, &tunnel.wire.b);
    for (inner, mark) in MARKS.into_iter().enumerate().skip(1) {
        nft::clear(b)?;
        nft::count_arriving(b, &[format!("udp dport {PORT} ip ecn {mark}")])?;
        ping::marked(a, INNER_B4, PINGS, u8::try_from(inner)?)?;
        let seen = nft::counts(b)?;
        ensure!(seen == [u64::from(PINGS)], "outside, {mark}: {seen:?} of {PINGS}");
    }
    nft::clear(b)
}
