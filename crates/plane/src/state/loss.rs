//! Detects whether the path loses so many datagrams that the tunnel is degraded.

use std::time::Duration;

use vpnd_protocol::peer::{Loss, Standing};
use vpnd_protocol::time::BootTime;

/// The state begins if more datagrams in a hundred than this are lost, ...
const BEGINS_ABOVE: u64 = 2;
/// ... and at least this number, because the loss of one in a few is chance, ...
const LEAST: u64 = 5;
/// ... and this lasts for this time: on a path that reorders, datagrams may seem to be lost for a
/// moment.
const CONFIRMED_AFTER: Duration = Duration::from_secs(3);
/// The state ends if fewer in a hundred than this are lost.
const ENDS_BELOW: u64 = 1;

/// Whether the loss is too high, with hysteresis.
#[derive(Debug, Default)]
pub(crate) struct Lossy {
    /// Since when the loss seems to be too high.
    suspected: Option<BootTime>,
    /// While the loss is too high: when its measurements become too old.
    until: Option<BootTime>,
}

impl Lossy {
    /// Takes the loss of the last minute. A direction without a measurement is not lossy.
    pub(super) fn watch(&mut self, now: BootTime, peer: &Standing) {
        let ways = [peer.loss.outward, peer.loss.inward];
        let mut measured = ways.into_iter().flatten();
        let stays = match self.until {
            Some(_) => measured.any(|loss| {
                loss.missing().saturating_mul(100) >= loss.sent.saturating_mul(ENDS_BELOW)
            }),
            None => self.confirm(now, measured.any(exceeds)),
        };
        self.until = (stays && now < peer.loss_until).then_some(peer.loss_until);
    }

    /// Whether the loss has seemed to be too high for long enough.
    fn confirm(&mut self, now: BootTime, seems: bool) -> bool {
        let since = self.suspected.filter(|_| seems).unwrap_or(now);
        self.suspected = seems.then_some(since);
        let is_confirmed = seems && now >= since + CONFIRMED_AFTER;
        self.suspected.take_if(|_| is_confirmed);
        is_confirmed
    }

    pub(super) const fn is_lossy(&self) -> bool {
        self.until.is_some()
    }

    pub(super) fn deadline(&self) -> Option<BootTime> {
        self.until.or_else(|| Some(self.suspected? + CONFIRMED_AFTER))
    }
}

const fn exceeds(loss: Loss) -> bool {
    let lost = loss.missing();
    lost >= LEAST && lost.saturating_mul(100) > loss.sent.saturating_mul(BEGINS_ABOVE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use vpnd_protocol::peer::BothDirections;

    fn at(seconds: u64) -> BootTime {
        BootTime::default() + Duration::from_secs(seconds)
    }

    fn standing(outward: Option<(u64, u64)>, inward: Option<(u64, u64)>) -> Standing {
        let loss = |(sent, lost)| Loss { sent, arrived: sent - lost };
        Standing {
            alive: true,
            in_session: true,
            is_unanswered: false,
            tries: None,
            endpoint: None,
            largest: None,
            sends_singly: false,
            is_other_family: false,
            loss: BothDirections { outward: outward.map(loss), inward: inward.map(loss) },
            loss_until: at(1000),
        }
    }

    #[test]
    fn it_begins_above_two_in_a_hundred_and_ends_below_one() {
        let (mut lossy, mut second) = (Lossy::default(), 0);
        let mut watch = |outward, inward| {
            // Twice, as far apart as is necessary.
            lossy.watch(at(second), &standing(outward, inward));
            second += 3;
            lossy.watch(at(second), &standing(outward, inward));
            lossy.is_lossy()
        };
        let none = Some((1000, 0));
        for (lost, expected) in
            [(0, false), (20, false), (21, true), (20, true), (10, true), (9, false), (20, false)]
        {
            assert_eq!(watch(Some((1000, lost)), none), expected, "{lost} of what we send");
        }
        assert!(watch(none, Some((1000, 21))), "in the other direction alone");
        assert!(!watch(none, none));
        assert!(!watch(Some((10, 4)), None), "so few are chance");
        assert!(watch(Some((10, 5)), None));
        assert!(watch(Some((u64::MAX, u64::MAX)), None), "an impossible count is survived");
    }

    #[test]
    fn a_count_that_is_short_for_a_moment_is_nothing() {
        let mut lossy = Lossy::default();
        for second in 0..100 {
            lossy.watch(
                at(second),
                &standing(Some((100, if second % 3 == 2 { 0 } else { 50 })), None),
            );
            assert!(!lossy.is_lossy(), "after {second} s");
        }
        assert_eq!(lossy.deadline(), Some(at(102)));
    }

    #[test]
    fn it_ends_when_nothing_is_known_of_the_last_minute() {
        let mut lossy = Lossy::default();
        lossy.watch(at(0), &standing(Some((100, 50)), None));
        assert_eq!(lossy.deadline(), Some(at(3)));
        lossy.watch(at(3), &standing(Some((100, 50)), None));
        assert_eq!(lossy.deadline(), Some(at(1000)));
        lossy.watch(at(1000), &standing(None, None));
        assert_eq!((lossy.is_lossy(), lossy.deadline()), (false, None));
    }
}
