//! The common beginning of most scenarios: two vpnd, one of which has the other's endpoint.

use std::time::Duration;

use anyhow::Result;
use vpnd_tests::site::{self, INNER_A4, INNER_A6, INNER_B4, INNER_B6, Site};
use vpnd_tests::traffic::{ping, tcp};
use vpnd_tests::{Lab, Vpnd, Wire};

/// Enough for a handshake that nothing disturbs, on a machine that does much else.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// Two hosts on one cable and a vpnd on each; A initiates.
pub(crate) struct Tunnel {
    pub(crate) wire: Wire,
    pub(crate) a: Vpnd,
    pub(crate) b: Vpnd,
}

impl Tunnel {
    /// As most want it.
    pub(crate) fn new(lab: &Lab) -> Result<Self> {
        Self::with(lab, |a, b| (a.towards(Wire::B4), b))
    }

    /// With other settings.
    pub(crate) fn with(lab: &Lab, change: impl FnOnce(Site, Site) -> (Site, Site)) -> Result<Self> {
        let wire = Wire::new(lab)?;
        let (a, b) = site::pair()?;
        let (a, b) = change(a, b);
        let b = Vpnd::start(&wire.b, &b)?;
        let a = Vpnd::start(&wire.a, &a)?;
        ping::until_answered(&wire.a, INNER_B4, SOON)?;
        Ok(Self { wire, a, b })
    }
}

/// Pings and TCP in both directions and both families; A begins, or B does.
pub(crate) fn carries_everything(wire: &Wire, a_begins: bool) -> Result<()> {
    let from_a = [(&wire.a, &wire.b, INNER_B4), (&wire.a, &wire.b, INNER_B6)];
    let from_b = [(&wire.b, &wire.a, INNER_A4), (&wire.b, &wire.a, INNER_A6)];
    let order = if a_begins { [from_a, from_b] } else { [from_b, from_a] };
    for (from, to, address) in order.into_iter().flatten() {
        ping::until_answered(from, address, SOON)?;
        tcp::transfer(from, to, address, 1 << 20)?;
    }
    Ok(())
}
