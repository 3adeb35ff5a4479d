//! Packets of the peer that the source filter drops. If a network behind the peer is missing in the
//! configuration, the tunnel seems not to work for its hosts.

use std::time::Duration;

use vpnd_protocol::time::BootTime;
use vpnd_tunnel::engine::RefusedPackets;

/// Fewer such packets than this do not indicate a missing network, ...
const BEFORE_HINT: u64 = 3;
/// ... and the hint disappears if no more of them arrive for this time.
pub(super) const FORGOTTEN: Duration = Duration::from_secs(600);

/// The number of such packets, when it last changed, and the current fault.
#[derive(Debug, Default)]
pub(super) struct RefusedSources {
    packets: u64,
    at: BootTime,
    current: Option<RefusedPackets>,
    is_reported: bool,
}

impl RefusedSources {
    /// The packets of the current fault, while more of them arrive.
    pub(super) const fn current(&self) -> Option<RefusedPackets> {
        self.current
    }

    /// The configuration was reloaded. The new one may allow the refused sources, so earlier refusals are
    /// forgotten.
    pub(super) const fn reloaded(&mut self) {
        (self.current, self.is_reported) = (None, false);
    }

    /// Takes the new number. Returns the packets if they are the first ones of this configuration.
    pub(super) fn watch(
        &mut self,
        now: BootTime,
        seen: Option<RefusedPackets>,
    ) -> Option<RefusedPackets> {
        let seen = seen.filter(|seen| seen.packets >= BEFORE_HINT)?;
        if seen.packets == self.packets {
            let is_old = now.saturating_since(self.at) >= FORGOTTEN;
            self.current.take_if(|_| is_old);
            return None;
        }
        let is_news = !self.is_reported;
        *self = Self { packets: seen.packets, at: now, current: Some(seen), is_reported: true };
        is_news.then_some(seen)
    }
}
