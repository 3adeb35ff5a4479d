//! Packets of the peer that the source filter drops: a network that nobody has named in the configuration looks to its
//! hosts like a tunnel that does not work.

use std::fmt;
use std::time::Duration;

use vpnd_protocol::time::BootTime;
use vpnd_tunnel::engine::RefusedPackets;

use super::Trouble;

/// Fewer such packets are no sign of a missing network, ...
const BEFORE_HINT: u64 = 3;
/// ... and the hint goes when no more of them come for this time.
pub(super) const FORGOTTEN: Duration = Duration::from_secs(600);

/// Packets of the peer that were dropped because `allowed_ips` does not contain their source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RefusedSource(pub(super) RefusedPackets);

impl fmt::Display for RefusedSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RefusedPackets { packets, source } = self.0;
        write!(
            f,
            "dropped {packets} packets of the peer from addresses that allowed_ips does not contain, lately from \
             {source}: if that network is behind the peer, add it to [peer] allowed_ips; without allowed_ips, the \
             default is what is routed to the peer, so add a [[route]] to it"
        )
    }
}

/// How many there were, when that last changed, and what `status` says of it.
#[derive(Default)]
pub(super) struct RefusedSources {
    packets: u64,
    at: BootTime,
    trouble: Option<Trouble>,
    is_logged: bool,
}

impl RefusedSources {
    /// The hint, while more of them come.
    pub(super) const fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    /// The configuration was reloaded: those that it lets in now come no more.
    pub(super) fn reloaded(&mut self) {
        (self.trouble, self.is_logged) = (None, false);
    }

    /// Takes note of how many there are by now. The log reports the first ones of a configuration only.
    pub(super) fn watch(&mut self, now: BootTime, seen: Option<RefusedPackets>) {
        let Some(seen) = seen.filter(|seen| seen.packets >= BEFORE_HINT) else { return };
        if seen.packets == self.packets {
            let is_old = now.saturating_since(self.at) >= FORGOTTEN;
            self.trouble.take_if(|_| is_old);
            return;
        }
        let refused = RefusedSource(seen);
        if !self.is_logged {
            tracing::warn!("{refused}");
        }
        let trouble = Some(Trouble::RefusedSource(refused));
        *self = Self { packets: seen.packets, at: now, trouble, is_logged: true };
    }
}
