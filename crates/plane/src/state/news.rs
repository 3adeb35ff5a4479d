//! Decides which states are logged. A state that alternates does not fill the log: after a few lines further
//! ones are minutes apart, and each reports the state at that time.

use std::time::Duration;

use vpnd_protocol::time::BootTime;

use super::{Kind, Reasons, State};

/// The number of lines that may be logged at once, ...
const AT_ONCE: u32 = 10;
/// ... and the time after which there may be one more.
const APART: Duration = Duration::from_secs(360);

/// The state that was last logged, and when further lines may be logged.
#[derive(Debug, Default)]
pub(crate) struct News {
    told: Option<(Kind, Reasons)>,
    /// When the full number of lines may be logged at once again.
    full_at: BootTime,
    /// When a state that was not logged yet may be logged.
    due: Option<BootTime>,
}

impl News {
    /// Whether to log this state now. A tunnel without much traffic has a session only at times, so that it is
    /// idle or connecting is not logged.
    pub(super) fn is_due(&mut self, now: BootTime, state: &State) -> bool {
        let current = Some((state.kind, state.reasons));
        self.due = None;
        if matches!(state.kind, Kind::Idle | Kind::Connecting) || self.told == current {
            return false;
        }
        let may_tell_at = BootTime::from_nanos(self.full_at.as_nanos().saturating_sub(debt()));
        if now < may_tell_at {
            self.due = Some(may_tell_at);
            return false;
        }
        self.full_at = self.full_at.max(now) + APART;
        self.told = current;
        true
    }

    pub(super) const fn deadline(&self) -> Option<BootTime> {
        self.due
    }
}

/// How far the lines may be ahead of the long-term rate.
fn debt() -> u64 {
    (BootTime::default() + APART * (AT_ONCE - 1)).as_nanos()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> BootTime {
        BootTime::default() + Duration::from_secs(100_000 + seconds)
    }

    fn state(kind: Kind) -> State {
        State { kind, reasons: Reasons::default(), since: at(0) }
    }

    #[test]
    fn each_change_is_told_once() {
        let mut news = News::default();
        let mut is_due = |kind| news.is_due(at(0), &state(kind));
        let told = [Kind::Idle, Kind::Connecting, Kind::Up, Kind::Up, Kind::Idle, Kind::Connecting]
            .map(&mut is_due);
        assert_eq!(told, [false, false, true, false, false, false]);
        assert!(!is_due(Kind::Up), "as it was");
        assert!(is_due(Kind::Down));
    }

    #[test]
    fn one_that_alternates_is_told_ten_times_and_then_ten_times_an_hour() {
        let mut news = News::default();
        let told = |second: u64| {
            let kind = if second.is_multiple_of(2) { Kind::Up } else { Kind::Unresponsive };
            news.is_due(at(second), &state(kind)).then_some(second)
        };
        let told: Vec<_> = (0..7200).filter_map(told).collect();
        assert_eq!(told[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert!((29..=30).contains(&told.len()), "{told:?}");
        assert!(told[10..].windows(2).all(|pair| pair[1] - pair[0] >= 359), "{told:?}");
    }

    #[test]
    fn the_last_state_is_told_later() {
        let mut news = News::default();
        for turn in 0..20 {
            news.is_due(at(0), &state(if turn % 2 == 0 { Kind::Up } else { Kind::Down }));
        }
        assert!(!news.is_due(at(1), &state(Kind::Degraded)));
        let due = news.deadline().unwrap();
        assert!(due > at(1) && due <= at(360));
        assert!(news.is_due(due, &state(Kind::Degraded)));
        assert_eq!(news.deadline(), None);
    }
}
