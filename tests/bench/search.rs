//! The highest rate with under one percent of loss, found by trying.

use anyhow::{Result, bail};

/// More loss than this is too much.
const LOSS: f64 = 0.01;
/// Packets a second to begin with.
const FIRST: f64 = 10_000.0;
/// Below this there is nothing to find.
const LEAST: f64 = 100.0;
/// The bracket is narrow enough.
const NARROW: f64 = 1.04;
/// When a sender that is asked for twice as much sends less than this much more, it has reached
/// its own limit.
const GROWS: f64 = 1.1;
/// The answer is lowered at least and at most by these until it is confirmed, so many times.
const LOWERED: u32 = 10;
const LEAST_STEP: f64 = 0.97;
const LARGEST_STEP: f64 = 0.5;

/// What became of one rate, in packets a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Trial {
    /// What left the sender.
    pub(crate) sent: f64,
    /// What reached the receiver.
    pub(crate) received: f64,
}

/// How long a rate is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Length {
    /// Far from the answer.
    Short,
    /// Near it.
    Full,
}

impl Trial {
    const NONE: Self = Self { sent: 0.0, received: 0.0 };

    fn holds(self) -> bool {
        self.received > 0.0 && self.received > self.sent * (1.0 - LOSS)
    }

    /// A lower rate that may hold: halfway, on a logarithmic scale, to what was sent, and as far
    /// again to what arrived. Not all the way, for many a tunnel that is offered too much carries
    /// less than it could.
    fn lower(self, rate: f64) -> f64 {
        let sent = self.sent.max(1.0).min(rate);
        let step = (self.received / sent).sqrt().clamp(LARGEST_STEP, LEAST_STEP);
        (sent * rate).sqrt() * step
    }
}

/// Doubles the rate until it does not hold or the sender cannot go faster, halves the bracket on
/// a logarithmic scale, and tries the answer three times more, of which two must hold. Returns
/// the middle one of what was then received.
///
/// # Errors
/// Those of `attempt`, and when no rate holds.
pub(crate) fn highest(attempt: impl FnMut(f64, Length) -> Result<Trial>) -> Result<f64> {
    let mut search = Search { attempt };
    let (mut low, mut high) = search.bracket()?;
    while high / low > NARROW {
        let middle = (low * high).sqrt();
        match search.holds(middle, Length::Full)? {
            Some(_) => low = middle,
            None => high = middle,
        }
    }
    search.confirm(low)
}

struct Search<F> {
    attempt: F,
}

impl<F: FnMut(f64, Length) -> Result<Trial>> Search<F> {
    /// A rate that holds, and one that does not; the same, where the sender is the limit.
    fn bracket(&mut self) -> Result<(f64, f64)> {
        let mut rate = FIRST;
        let Some(mut last) = self.holds(rate, Length::Short)? else { return self.downwards() };
        loop {
            let Some(trial) = self.holds(rate * 2.0, Length::Short)? else {
                return Ok((rate, rate * 2.0));
            };
            rate *= 2.0;
            if trial.sent < last.sent * GROWS {
                return Ok((rate, rate));
            }
            last = trial;
        }
    }

    fn downwards(&mut self) -> Result<(f64, f64)> {
        let mut rate = FIRST;
        while rate > LEAST {
            rate /= 2.0;
            if self.holds(rate, Length::Short)?.is_some() {
                return Ok((rate, rate * 2.0));
            }
        }
        bail!("one percent is lost even at {rate:.0} packets/s")
    }

    /// A machine that was busy elsewhere for a moment must not halve the answer: what does not
    /// hold is tried once more.
    fn holds(&mut self, rate: f64, length: Length) -> Result<Option<Trial>> {
        for _ in 0..2 {
            let trial = (self.attempt)(rate, length)?;
            if trial.holds() {
                return Ok(Some(trial));
            }
        }
        Ok(None)
    }

    fn confirm(&mut self, mut rate: f64) -> Result<f64> {
        for _ in 0..=LOWERED {
            let mut trials = [Trial::NONE; 3];
            for trial in &mut trials {
                *trial = (self.attempt)(rate, Length::Full)?;
            }
            trials.sort_by(|a, b| a.received.total_cmp(&b.received));
            if trials.iter().filter(|trial| trial.holds()).count() >= 2 {
                return Ok(trials[1].received);
            }
            rate = trials[1].lower(rate);
        }
        bail!("no rate holds twice, down to {rate:.0} packets/s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A path that carries up to `capacity`, and a sender that cannot exceed `limit`.
    fn path(capacity: f64, limit: f64) -> impl FnMut(f64, Length) -> Result<Trial> {
        move |rate, _| {
            let sent = rate.min(limit);
            Ok(Trial { sent, received: sent.min(capacity) })
        }
    }

    #[test]
    fn the_capacity_is_found_within_the_bracket() {
        for capacity in [150.0, 9_000.0, 10_000.0, 123_456.0, 2_000_000.0] {
            let found = highest(path(capacity, f64::INFINITY)).unwrap();
            assert!(found <= capacity && found > capacity / NARROW * 0.99, "{found} of {capacity}");
        }
    }

    #[test]
    fn a_slow_sender_ends_the_search() {
        let mut highest_asked = 0.0_f64;
        let mut inner = path(1e9, 300_000.0);
        let found = highest(|rate, length| {
            highest_asked = highest_asked.max(rate);
            inner(rate, length)
        });
        assert_eq!(found.unwrap(), 300_000.0);
        assert!(highest_asked < 1_500_000.0, "{highest_asked}");
    }

    #[test]
    fn one_bad_moment_is_forgiven() {
        let mut trials = 0;
        let mut inner = path(100_000.0, f64::INFINITY);
        let found = highest(|rate, length| {
            trials += 1;
            if trials % 3 == 1 {
                Ok(Trial { sent: rate, received: 0.0 })
            } else {
                inner(rate, length)
            }
        });
        assert!(found.unwrap() > 85_000.0);
    }

    #[test]
    fn a_lucky_search_is_put_right() {
        let mut trials = 0;
        let mut inner = path(100_000.0, f64::INFINITY);
        let found = highest(|rate, length| {
            trials += 1;
            // Ten trials promise six times of what is there.
            if trials <= 10 {
                path(600_000.0, f64::INFINITY)(rate, length)
            } else {
                inner(rate, length)
            }
        });
        let found = found.unwrap();
        assert!(found > 90_000.0 && found <= 100_000.0, "{found}");
    }

    #[test]
    fn a_dead_path_is_an_error() {
        assert!(highest(|rate, _| Ok(Trial { sent: rate, received: 0.0 })).is_err());
        assert!(highest(|_, _| bail!("gone")).is_err());
        let mut trials = 0;
        let mut dies = |rate, _| {
            trials += 1;
            let sent = if trials < 15 { rate } else { 0.0 };
            Ok(Trial { sent, received: sent.min(50_000.0) })
        };
        assert!(highest(&mut dies).is_err());
    }
}
