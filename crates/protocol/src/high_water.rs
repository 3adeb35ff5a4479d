//! The high-water mark of the timestamps that were accepted under one public key of the peer: an initiation
//! that is not newer is a replay.
//!
//! A timestamp more than a day ahead of our wall clock is accepted, but does not raise the mark: otherwise
//! one initiation with the last possible timestamp would lock the key out for as long as we run. It is kept
//! apart, in a mark that only slows initiations down: if our own clock is wrong, every honest timestamp is
//! that far ahead, and recorded initiations must not crowd out the newest.

use std::time::Duration;

use crate::time::WallTime;
use crate::timestamp::Timestamp;

/// A timestamp further ahead of our wall clock than this does not raise the refusing mark.
const TRUSTED_AHEAD: Duration = Duration::from_secs(86_400);

/// What an initiation's timestamp shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is newer than all before.
    Newer,
    /// It is far ahead of our clock and not newer than another such timestamp: perhaps a replay.
    Doubtful,
    /// It is not newer than this one: a replay.
    Stale(Timestamp),
}

/// The newest timestamps accepted under one public key.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HighWater {
    /// The newest that was not far ahead of our clock.
    mark: Option<Timestamp>,
    /// The newest that was more than a day ahead of our clock.
    ahead: Option<Timestamp>,
}

impl HighWater {
    /// Judges a timestamp by our wall clock's current time; either clock may have been set since the last
    /// call.
    pub(crate) fn judge(&self, wall: WallTime, got: Timestamp) -> Verdict {
        let Self { mark, ahead } = self.sorted(wall, None);
        let is_ahead = is_ahead(wall, got);
        match if is_ahead { ahead } else { mark } {
            Some(last) if got <= last && is_ahead => Verdict::Doubtful,
            Some(last) if got <= last => Verdict::Stale(last),
            _ => Verdict::Newer,
        }
    }

    /// The marks, for the next process of the tunnel: the newest timestamp, and the newest that was far ahead.
    pub(crate) const fn parts(&self) -> [Option<Timestamp>; 2] {
        [self.mark, self.ahead]
    }

    /// The value with these [parts](Self::parts).
    pub(crate) const fn of_parts([mark, ahead]: [Option<Timestamp>; 2]) -> Self {
        Self { mark, ahead }
    }

    /// Records the timestamp of an accepted initiation.
    pub(crate) fn remember(&mut self, wall: WallTime, got: Timestamp) {
        *self = self.sorted(wall, Some(got));
    }

    /// The marks by the wall clock's current time: a timestamp that was ahead may be past by now, and one
    /// that was accepted while our clock was ahead refuses nothing once it is right.
    fn sorted(self, wall: WallTime, got: Option<Timestamp>) -> Self {
        let newest = |ahead: bool| {
            let all = [self.mark, self.ahead, got].into_iter().flatten();
            all.filter(|stamp| is_ahead(wall, *stamp) == ahead).max()
        };
        Self { mark: newest(false), ahead: newest(true) }
    }
}

/// Whether a timestamp is so far ahead of our wall clock that one of the two clocks is wrong.
pub(crate) fn is_ahead(wall: WallTime, stamp: Timestamp) -> bool {
    let limit = wall.since_unix().saturating_add(TRUSTED_AHEAD);
    stamp > Timestamp::from_wall(WallTime::from_unix(limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000;
    const DAY: u64 = 86_400;

    fn wall(seconds: u64) -> WallTime {
        WallTime::from_unix(Duration::from_secs(seconds))
    }

    fn stamp(seconds: u64) -> Timestamp {
        Timestamp::from_wall(wall(seconds))
    }

    #[test]
    fn only_a_newer_stamp_is_accepted() {
        let mut seen = HighWater::default();
        assert_eq!(seen.judge(wall(NOW), stamp(0)), Verdict::Newer);
        seen.remember(wall(NOW), stamp(NOW));
        assert_eq!(seen.judge(wall(NOW), stamp(NOW)), Verdict::Stale(stamp(NOW)));
        assert_eq!(seen.judge(wall(NOW), stamp(NOW - 1)), Verdict::Stale(stamp(NOW)));
        assert_eq!(seen.judge(wall(NOW), stamp(NOW + 1)), Verdict::Newer);
    }

    #[test]
    fn a_stamp_a_day_ahead_binds_and_one_beyond_does_not() {
        for (ahead, after) in [(DAY, Verdict::Stale(stamp(NOW + DAY))), (DAY + 1, Verdict::Newer)] {
            let mut seen = HighWater::default();
            seen.remember(wall(NOW), stamp(NOW + ahead));
            assert_eq!(seen.judge(wall(NOW), stamp(NOW)), after, "{ahead}");
        }
    }

    #[test]
    fn the_end_of_time_locks_nobody_out() {
        let mut seen = HighWater::default();
        seen.remember(wall(NOW), stamp(NOW));
        seen.remember(wall(NOW), stamp(u64::MAX));
        assert_eq!(seen.judge(wall(NOW), stamp(NOW)), Verdict::Stale(stamp(NOW)));
        assert_eq!(seen.judge(wall(NOW), stamp(NOW + 1)), Verdict::Newer);
        assert_eq!(seen.judge(wall(NOW), stamp(u64::MAX)), Verdict::Doubtful);
    }

    #[test]
    fn where_our_clock_is_wrong_old_stamps_are_told_from_new_ones() {
        let mut seen = HighWater::default();
        seen.remember(wall(0), stamp(NOW));
        assert_eq!(seen.judge(wall(0), stamp(NOW)), Verdict::Doubtful);
        assert_eq!(seen.judge(wall(0), stamp(NOW + 1)), Verdict::Newer);
        // Once our clock is right, earlier timestamps are refused.
        assert_eq!(seen.judge(wall(NOW), stamp(NOW)), Verdict::Stale(stamp(NOW)));
    }

    #[test]
    fn a_mark_taken_by_a_wrong_clock_goes_with_it() {
        let mut seen = HighWater::default();
        seen.remember(wall(2 * NOW), stamp(2 * NOW));
        assert_eq!(seen.judge(wall(NOW), stamp(NOW)), Verdict::Newer);
        seen.remember(wall(NOW), stamp(NOW));
        assert_eq!(seen.judge(wall(NOW), stamp(NOW)), Verdict::Stale(stamp(NOW)));
        assert_eq!(seen.judge(wall(NOW), stamp(2 * NOW)), Verdict::Doubtful);
    }
}
