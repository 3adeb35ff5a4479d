//! Packets of the peer that the source filter drops: a network that nobody has named in the configuration looks to its
//! hosts like a tunnel that does not work.

use std::time::Duration;

use vpnd_protocol::time::BootTime;
use vpnd_tunnel::engine::RefusedPackets;

/// Fewer such packets are no sign of a missing network, ...
const BEFORE_HINT: u64 = 3;
/// ... and the hint goes when no more of them come for this time.
pub(super) const FORGOTTEN: Duration = Duration::from_secs(600);

/// How many there were, when that last changed, and whether more of them come.
#[derive(Debug, Default)]
pub(super) struct RefusedSources {
    packets: u64,
    at: BootTime,
    current: Option<RefusedPackets>,
    is_reported: bool,
}

impl RefusedSources {
    /// The last of them, while more come.
    pub(super) const fn current(&self) -> Option<RefusedPackets> {
        self.current
    }

    /// The configuration was reloaded. It may let in what was refused, so earlier refusals are forgotten.
    pub(super) const fn reloaded(&mut self) {
        (self.current, self.is_reported) = (None, false);
    }

    /// Takes note of how many there are by now. Returns them if they are the first ones of a configuration.
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
