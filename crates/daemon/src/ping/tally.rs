//! What came of all pings, in the words of ping(8), which scripts read.

use std::time::Duration;

/// The sums over all pings.
#[derive(Debug, Default)]
pub(super) struct Tally {
    sent: u32,
    answered: u32,
    least: f64,
    most: f64,
    sum: f64,
    squares: f64,
}

impl Tally {
    /// Counts a ping, with its round trip in milliseconds if it was answered.
    pub(super) fn take(&mut self, round_trip_ms: Option<f64>) {
        self.sent += 1;
        let Some(took) = round_trip_ms else { return };
        self.least = if self.answered == 0 { took } else { self.least.min(took) };
        self.most = self.most.max(took);
        self.sum += took;
        self.squares += took * took;
        self.answered += 1;
    }

    /// How many were answered.
    pub(super) const fn answered(&self) -> u32 {
        self.answered
    }

    /// The last lines of ping(8), after pings for this time.
    pub(super) fn text(&self, time: Duration) -> String {
        let Self { sent, answered, least, most, sum, squares } = *self;
        let lost = f64::from(sent - answered) / f64::from(sent.max(1)) * 100.0;
        let counts = format!(
            "{sent} packets transmitted, {answered} received, {lost:.0}% packet loss, time {}ms\n",
            time.as_millis()
        );
        if answered == 0 {
            return counts;
        }
        let mean = sum / f64::from(answered);
        // Rounding may make it negative.
        let deviation = (squares / f64::from(answered) - mean * mean).max(0.0).sqrt();
        counts
            + &format!("rtt min/avg/max/mdev = {least:.3}/{mean:.3}/{most:.3}/{deviation:.3} ms\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statistics_are_those_of_ping() {
        let mut tally = Tally::default();
        [Some(3.0), Some(1.0), None, Some(2.0)].into_iter().for_each(|took| tally.take(took));
        let expected = "4 packets transmitted, 3 received, 25% packet loss, time 3004ms\n\
                        rtt min/avg/max/mdev = 1.000/2.000/3.000/0.816 ms\n";
        assert_eq!(tally.text(Duration::from_millis(3004)), expected);
        let mut none = Tally::default();
        none.take(None);
        let expected = "1 packets transmitted, 0 received, 100% packet loss, time 0ms\n";
        assert_eq!(none.text(Duration::ZERO), expected);
        assert!(Tally::default().text(Duration::ZERO).starts_with("0 packets transmitted"));
    }
}
