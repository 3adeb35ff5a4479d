//! Congestion marks through the tunnel: every mark of a packet under every mark of the way (RFC 6040).

use anyhow::{Result, ensure};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{INNER_B4, PORT};
use vpnd_tests::traffic::ping;
use vpnd_tests::{Lab, nft};

use crate::tunnel::Tunnel;

/// As `nft` calls them, in the order of their bits.
const MARKS: [&str; 4] = ["not-ect", "ect1", "ect0", "ce"];
/// Figure 4 of the RFC, as indices of [`MARKS`]: what emerges, for each mark inside and each outside.
const EMERGING: [[Option<usize>; 4]; 4] = [
    [Some(0), Some(0), Some(0), None],
    [Some(1), Some(1), Some(1), Some(3)],
    [Some(2), Some(1), Some(2), Some(3)],
    [Some(3), Some(3), Some(3), Some(3)],
];
/// Echo requests of one kind.
const PINGS: u32 = 3;

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("ecn::every mark under every other", Cost::Works, marks)]
}

fn marks(lab: &Lab) -> Result<String> {
    let tunnel = Tunnel::new(lab)?;
    let (a, b) = (&tunnel.wire.a, &tunnel.wire.b);
    copied_out(&tunnel)?;
    for (outer, mark) in MARKS.into_iter().enumerate() {
        for (inner, row) in EMERGING.iter().enumerate() {
            nft::clear(b)?;
            nft::remark_arriving(b, &format!("udp dport {PORT}"), mark)?;
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
