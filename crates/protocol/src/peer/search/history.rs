//! The last probes of a search, for the status.

use std::collections::VecDeque;

use super::Probe;
use crate::time::BootTime;

/// The number of probes that are remembered: two rounds and more.
const MOST: usize = 48;

/// One probe; a probe that is not answered is sent several times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probed {
    /// The size of the UDP payload.
    pub size: u16,
    /// When it was sent last.
    pub at: BootTime,
    /// How often it was sent.
    pub sent: u32,
    /// Whether the peer has answered it.
    pub answered: bool,
}

#[derive(Debug, Default)]
pub(super) struct History(VecDeque<(u32, Probed)>);

impl History {
    pub(super) fn sent(&mut self, now: BootTime, probe: Probe) {
        if let Some(probed) = self.find(probe.number) {
            (probed.at, probed.sent) = (now, probed.sent + 1);
            return;
        }
        if self.0.len() == MOST {
            self.0.pop_front();
        }
        let probed = Probed { size: probe.size, at: now, sent: 1, answered: false };
        self.0.push_back((probe.number, probed));
    }

    pub(super) fn answered(&mut self, number: u32) {
        if let Some(probed) = self.find(number) {
            probed.answered = true;
        }
    }

    /// The probes, the newest first.
    pub(super) fn newest(&self) -> impl Iterator<Item = Probed> {
        self.0.iter().rev().map(|(_, probed)| *probed)
    }

    fn find(&mut self, number: u32) -> Option<&mut Probed> {
        self.0.iter_mut().find(|(one, _)| *one == number).map(|(_, probed)| probed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_last_ones_are_remembered() {
        let (mut history, at) = (History::default(), BootTime::from_nanos(0));
        for number in 0..100 {
            history.sent(at, Probe { number, size: 1300 });
        }
        let later = at + Duration::from_secs(1);
        history.sent(later, Probe { number: 98, size: 1300 });
        history.answered(98);
        history.answered(3);
        assert_eq!(history.newest().count(), MOST);
        let answered: Vec<_> = history.newest().filter(|probed| probed.answered).collect();
        assert_eq!(answered, [Probed { size: 1300, at: later, sent: 2, answered: true }]);
    }
}
