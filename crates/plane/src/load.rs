//! Detects whether too many handshakes arrive. If so, only senders that prove their address are
//! answered.

use std::time::Duration;

use vpnd_protocol::peer::Load;
use vpnd_protocol::time::BootTime;
use vpnd_tunnel::engine::LOAD_THRESHOLD;

/// The load state lasts this long after the queue was last too long.
const LINGERS: Duration = Duration::from_secs(1);

/// The load by handshakes.
#[derive(Debug, Default)]
pub(crate) struct Handshakes {
    until: BootTime,
}

impl Handshakes {
    /// The load when a handshake message is taken and `waiting` more are queued.
    pub(crate) fn load(&mut self, now: BootTime, waiting: usize) -> Load {
        // The message in hand was queued too.
        if waiting + 1 >= LOAD_THRESHOLD {
            self.until = now + LINGERS;
        }
        if now < self.until { Load::Under } else { Load::Normal }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_begins_at_the_threshold_and_lingers() {
        let mut handshakes = Handshakes::default();
        let at = |ms| BootTime::default() + Duration::from_millis(ms);
        assert_eq!(handshakes.load(at(0), LOAD_THRESHOLD - 2), Load::Normal);
        assert_eq!(handshakes.load(at(1), LOAD_THRESHOLD - 1), Load::Under);
        assert_eq!(handshakes.load(at(1000), 0), Load::Under);
        assert_eq!(handshakes.load(at(1001), 0), Load::Normal);
    }
}
