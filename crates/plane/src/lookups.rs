//! Decides when the peer's names are looked up again: at an interval while the tunnel works; at once and then
//! less and less often while it does not; and when the network has changed. The daemon performs the lookups.

use std::time::Duration;

use vpnd_protocol::time::BootTime;

use crate::effect::Effect;
use crate::plane::Plane;

/// The first pause while the tunnel does not work. It doubles with each lookup …
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// … up to this time.
const LAST_PAUSE: Duration = Duration::from_secs(300);
/// The least time between two lookups, regardless of the reason.
const APART: Duration = FIRST_PAUSE;

/// The schedule of lookups.
#[derive(Debug, Default)]
pub(crate) struct Lookups {
    /// The pause while the tunnel works; `None` if no endpoint is a name.
    every: Option<Duration>,
    /// The pause after the next lookup, while the tunnel does not work.
    pause: Option<Duration>,
    last: Option<BootTime>,
    next_at: Option<BootTime>,
}

impl Lookups {
    pub(crate) fn new(every: Option<Duration>) -> Self {
        Self { every, ..Self::default() }
    }

    /// Another pause while the tunnel works, or there are no names any more.
    pub(crate) fn retune(&mut self, now: BootTime, every: Option<Duration>) {
        self.every = every;
        let last = self.last.unwrap_or(now);
        self.next_at = every.map(|every| last + self.pause.map_or(every, |pause| pause.min(every)));
    }

    /// The names have just been looked up for the first time.
    pub(crate) fn begin(&mut self, now: BootTime) {
        if self.next_at.is_none() {
            self.last = Some(now);
            self.next_at = self.every.map(|every| now + every);
        }
    }

    /// The tunnel does not work, or works again.
    pub(crate) fn follow(&mut self, now: BootTime, works: bool) {
        match (works, self.pause) {
            (true, Some(_)) => {
                self.pause = None;
                let last = self.last.unwrap_or(now);
                self.next_at = self.every.map(|every| last + every);
            }
            (false, None) => {
                self.pause = Some(FIRST_PAUSE);
                self.soon(now);
            }
            _ => {}
        }
    }

    /// An address may have changed: schedules a lookup as soon as possible.
    pub(crate) fn soon(&mut self, now: BootTime) {
        let at = self.last.map_or(now, |last| now.max(last + APART));
        self.next_at = self.every.map(|_| self.next_at.map_or(at, |next| next.min(at)));
    }

    pub(crate) const fn deadline(&self) -> Option<BootTime> {
        self.next_at
    }

    /// Whether a lookup is due. If so, schedules the next one.
    fn due(&mut self, now: BootTime) -> bool {
        if self.next_at.is_none_or(|at| now < at) {
            return false;
        }
        let pause = self.pause;
        self.pause = pause.map(|pause| (pause * 2).min(LAST_PAUSE));
        self.last = Some(now);
        self.next_at = self.every.map(|every| now + pause.map_or(every, |pause| pause.min(every)));
        true
    }
}

impl Plane {
    /// Requests a lookup of the names, if that is due.
    pub(crate) fn look_up_names(&mut self, now: BootTime) {
        if self.lookups.due(now) {
            self.push(Effect::LookUpNames);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seconds at which names are looked up until `until`.
    fn lookups(lookups: &mut Lookups, from: u64, until: u64) -> Vec<u64> {
        (from..=until).filter(|second| lookups.due(at(*second))).collect()
    }

    fn at(second: u64) -> BootTime {
        BootTime::from_nanos(1) + Duration::from_secs(second)
    }

    fn begun() -> Lookups {
        let mut lookups = Lookups::new(Some(Duration::from_secs(300)));
        lookups.begin(at(0));
        lookups
    }

    #[test]
    fn now_and_then_while_it_works_and_often_at_first_while_it_does_not() {
        let mut names = begun();
        assert_eq!(lookups(&mut names, 0, 650), [300, 600]);
        names.follow(at(700), false);
        names.follow(at(701), false);
        let expected = [700, 705, 715, 735, 775, 855, 1015, 1315, 1615];
        assert_eq!(lookups(&mut names, 700, 1700), expected);
        names.follow(at(1701), true);
        assert_eq!(lookups(&mut names, 1701, 1950), [1915]);
    }

    #[test]
    fn a_network_that_changes_ten_times_a_second_costs_a_lookup_every_five_seconds() {
        let mut names = begun();
        let mut count = 0;
        for tenth in 100..700 {
            let now = BootTime::from_nanos(1) + Duration::from_millis(tenth * 100);
            names.soon(now);
            count += u32::from(names.due(now));
        }
        assert!((11..=13).contains(&count), "{count}");
    }

    #[test]
    fn without_names_nothing_is_looked_up() {
        let mut names = Lookups::new(None);
        names.begin(at(0));
        names.follow(at(1), false);
        names.soon(at(2));
        assert_eq!((names.deadline(), lookups(&mut names, 0, 1000)), (None, vec![]));
    }
}
