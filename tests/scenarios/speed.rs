//! Figures, never asserted: TCP through two vpnd beside the bare cable, in the same run.

use anyhow::Result;
use vpnd_tests::Lab;
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::INNER_B4;
use vpnd_tests::traffic::iperf;

use crate::tunnel::Tunnel;

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("speed::TCP beside the bare cable", Cost::Alone, tcp)]
}

fn tcp(lab: &Lab) -> Result<String> {
    let seconds = if vpnd_tests::long() { 30 } else { 5 };
    let tunnel = Tunnel::new(lab)?;
    let bare = iperf::tcp(&tunnel.wire.a, &tunnel.wire.b, "192.0.2.2", seconds)?;
    let inside = iperf::tcp(&tunnel.wire.a, &tunnel.wire.b, INNER_B4, seconds)?;
    let share = inside.megabits / bare.megabits;
    Ok(format!(
        "through vpnd {:.0} Mbit/s ({} segments again), bare {:.0} Mbit/s: {share:.3} of it",
        inside.megabits, inside.retransmits, bare.megabits
    ))
}
