//! Counts inner packets that were dropped because `allowed_ips` does not contain their source address, and
//! records the last such address. Sources that no configuration would allow are not counted.

use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Written by the data threads and read by the control plane.
#[derive(Debug, Default)]
pub(crate) struct RefusedSources {
    packets: AtomicU64,
    last: Mutex<Option<IpAddr>>,
}

/// Packets of the peer whose source address is not in `allowed_ips`, since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusedPackets {
    /// The number of dropped packets.
    pub packets: u64,
    /// The source of the last of them, or of one shortly before.
    pub source: IpAddr,
}

impl RefusedSources {
    /// Records a packet that was dropped. This never waits: while the control plane is reading, the previous
    /// address remains.
    #[cold]
    pub(crate) fn note(&self, source: IpAddr) {
        self.packets.fetch_add(1, Relaxed);
        if let Ok(mut last) = self.last.try_lock() {
            *last = Some(source);
        }
    }

    /// `None` if there was no such packet.
    pub(crate) fn seen(&self) -> Option<RefusedPackets> {
        let packets = self.packets.load(Relaxed);
        if packets == 0 {
            return None;
        }
        // No thread panics while it holds the lock.
        let source = (*self.last.lock().ok()?)?;
        Some(RefusedPackets { packets, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_source_is_known_and_a_reader_is_not_waited_for() {
        let refused = RefusedSources::default();
        assert_eq!(refused.seen(), None);
        let [first, second] = ["192.168.30.7", "fd30::7"].map(|text| text.parse().unwrap());
        refused.note(first);
        assert_eq!(refused.seen(), Some(RefusedPackets { packets: 1, source: first }));
        let reading = refused.last.lock().unwrap();
        refused.note(second);
        drop(reading);
        assert_eq!(refused.seen(), Some(RefusedPackets { packets: 2, source: first }));
        refused.note(second);
        assert_eq!(refused.seen(), Some(RefusedPackets { packets: 3, source: second }));
    }
}
