//! Whether the clock is plausible, and not behind the last handshake.

use std::time::Duration;

use vpnd_protocol::time::WallTime;
use vpnd_protocol::timestamp::Timestamp;

use super::finding::{Check, Finding};
use crate::floor::{FloorFile, KNOWN_PAST};

/// A clock that was corrected by less than this is nothing to report.
const CORRECTION: Duration = Duration::from_secs(60);

/// Compares the clock with the time at which this program was written and with the timestamp of the last handshake.
pub(super) fn findings(floor: &FloorFile, clock: WallTime) -> Vec<Finding> {
    let set = "timedatectl set-ntp true";
    let finding = |cause: String| Finding::new(Check::Clock, cause);
    if clock.since_unix() < KNOWN_PAST {
        let cause = "the clock is before 2026, when this program was written".to_owned();
        return vec![finding(cause).command(set).advice("set the clock, or the battery is empty")];
    }
    match floor.read_of_another(clock) {
        Ok(Some(stamp)) if stamp > tolerated(clock) => {
            let cause = format!(
                "the clock is behind the timestamp of the last handshake, {stamp} in {}: it was set back, or was ahead \
                 then, and a peer that has seen that timestamp answers no older one",
                floor.path().display()
            );
            let advice =
                "if the clock is right now, leave the file alone: handshakes count on from it";
            vec![finding(cause).command(set).advice(advice)]
        }
        Ok(_) => Vec::new(),
        Err(error) => {
            let path = floor.path().display();
            vec![finding(error.to_string()).command(format!("rm {path}"))]
        }
    }
}

fn tolerated(clock: WallTime) -> Timestamp {
    Timestamp::from_wall(WallTime::from_unix(clock.since_unix().saturating_add(CORRECTION)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> WallTime {
        WallTime::from_unix(Duration::from_secs(seconds))
    }

    #[test]
    fn clocks() {
        const NOW: u64 = 1_800_000_000;
        let state = tempfile::tempdir().unwrap();
        let floor = FloorFile::of(state.path(), "site-a");
        let causes = |clock| {
            let found = findings(&floor, at(clock));
            found.iter().map(|one| one.cause.clone()).collect::<Vec<_>>()
        };
        assert!(causes(NOW).is_empty(), "no handshake yet");
        assert!(causes(5)[0].contains("before 2026"));
        floor.store_for_another(Timestamp::from_wall(at(NOW))).unwrap();
        assert!(
            causes(NOW).is_empty() && causes(NOW - 30).is_empty() && causes(NOW + 9).is_empty()
        );
        assert!(causes(NOW - 3600)[0].contains("behind the timestamp of the last handshake"));
        std::fs::write(floor.path(), "nonsense").unwrap();
        assert!(causes(NOW)[0].contains("not a TAI64N timestamp"), "{:?}", causes(NOW));
    }
}
