use super::*;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// There and back.
const TRIP: u64 = 20;
/// The longest run.
const RUN: u64 = 44;

/// A flow like TCP's over a path, in steps of one round trip, and the PINGs that measure it.
struct Flow {
    rng: StdRng,
    /// The share that the path loses.
    loss: f64,
    /// Runs lose their last datagram.
    spoils_runs: bool,
    /// Bursts: the path loses everything for a moment.
    bursts: f64,
    millis: u64,
    window: u64,
    /// A timeout holds the flow up until then.
    resumes: u64,
    count: Loss,
    pinged: u64,
    segmentation: Segmentation,
    session: Generation,
}

impl Flow {
    fn new(seed: u64, loss: f64, spoils_runs: bool) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            loss,
            spoils_runs,
            bursts: 0.0,
            millis: 0,
            window: 10,
            resumes: 0,
            count: Loss::default(),
            pinged: 0,
            segmentation: Segmentation::new(true),
            session: Generation::default(),
        }
    }

    fn now(&self) -> BootTime {
        BootTime::from_nanos(0) + Duration::from_millis(self.millis)
    }

    fn singly(&self) -> bool {
        self.segmentation.sends_singly(to())
    }

    /// One round trip; returns a change.
    fn step(&mut self) -> Option<bool> {
        self.millis += TRIP;
        if self.millis >= self.resumes {
            let lost = self.send();
            self.follow(lost);
        }
        // The peer looks at the traffic four times a second, and when an answer arrives.
        let looks = self.millis.is_multiple_of(240) || self.millis == self.pinged + TRIP;
        let due = looks && self.segmentation.asks(self.now()) || self.millis >= self.pinged + 1000;
        if !due {
            return None;
        }
        (self.pinged, self.count.sent) = (self.millis, self.count.sent + 1);
        if self.rng.random_bool(self.loss) {
            return None;
        }
        self.count.arrived += 1;
        self.segmentation.take(self.now(), to(), self.session, self.count)
    }

    /// Sends a window's datagrams; returns how many are lost.
    fn send(&mut self) -> u64 {
        let burst = self.rng.random_bool(self.bursts);
        let (mut left, mut lost) = (self.window, 0);
        while left > 0 {
            let run = if self.singly() { 1 } else { left.min(RUN) };
            for datagram in 1..=run {
                let is_spoilt = self.spoils_runs && run > 1 && datagram == run;
                lost += u64::from(is_spoilt || burst || self.rng.random_bool(self.loss));
            }
            left -= run;
        }
        self.count.sent += self.window;
        self.count.arrived += self.window - lost;
        lost
    }

    fn follow(&mut self, lost: u64) {
        if lost == 0 {
            self.window = (self.window + 1).min(500);
        } else if self.window > 4 {
            self.window /= 2;
        } else {
            // Too few are left to show a loss before the timeout. It begins again with one.
            (self.window, self.resumes) = (1, self.millis + 200);
        }
    }

    /// Lets time pass until runs are no longer used, or are used again; returns the seconds.
    fn until_changed(&mut self, to: bool, seconds: u64) -> Option<u64> {
        let end = self.millis + seconds * 1000;
        let begin = self.millis;
        while self.millis < end {
            if self.step() == Some(to) {
                return Some((self.millis - begin) / 1000);
            }
        }
        None
    }
}

fn to() -> IpAddr {
    IpAddr::from([192, 0, 2, 1])
}

/// The seconds until spoilt runs are found, for each of a thousand flows.
fn found_after(loss: f64) -> Vec<u64> {
    let found = |seed| {
        let found = Flow::new(seed, loss, true).until_changed(false, 60);
        found.unwrap_or_else(|| panic!("seed {seed}, loss {loss}"))
    };
    let mut all: Vec<_> = (0..1000).map(found).collect();
    all.sort_unstable();
    all
}

#[test]
fn spoilt_runs_are_found_within_ten_seconds() {
    let found = found_after(0.0);
    assert!(found[999] < 10, "{} s", found[999]);
}

/// Beside the path's own loss they are found by the same trial, if it takes a little longer.
#[test]
fn spoilt_runs_are_found_by_one_trial_on_a_path_that_loses_datagrams() {
    for (loss, late) in [(0.01, 15), (0.03, 250)] {
        let found = found_after(loss);
        assert!(found[999] < 20, "{} s with loss {loss}", found[999]);
        assert!(found[999 - late] < 10, "{} s with loss {loss}", found[999 - late]);
    }
}

#[test]
fn loss_that_hits_everything_is_not_blamed_on_runs() {
    for loss in [0.0, 0.03, 0.2] {
        for seed in 0..100 {
            let mut flow = Flow::new(seed, loss, false);
            let found = flow.until_changed(false, 600);
            assert_eq!(found, None, "seed {seed}, loss {loss}");
        }
    }
}

#[test]
fn bursts_of_losses_mislead_it_seldom_and_not_for_long() {
    for (loss, bursts) in [(0.001, 0.02), (0.03, 0.05)] {
        let (mut off, seconds) = (0, 100 * 600);
        for seed in 0..100 {
            let mut flow = Flow { bursts, ..Flow::new(seed, loss, false) };
            while flow.until_changed(false, 600_u64.saturating_sub(flow.millis / 1000)).is_some() {
                let ends = flow.until_changed(true, 120);
                off += ends.unwrap_or_else(|| panic!("seed {seed}: twice in a row"));
            }
        }
        assert!(off * 100 < seconds, "{off} of {seconds} s with loss {loss}, bursts {bursts}");
    }
}

#[test]
fn runs_are_tried_again_after_an_hour() {
    let mut flow = Flow::new(1, 0.0, true);
    flow.until_changed(false, 60).unwrap();
    assert_eq!(flow.until_changed(true, 3 * 3600), None, "they are still spoilt");
    flow.spoils_runs = false;
    assert!(flow.until_changed(true, 3700).is_some());
    assert!(!flow.singly());
}

#[test]
fn another_path_is_another_matter() {
    let mut flow = Flow::new(1, 0.0, true);
    flow.until_changed(false, 60).unwrap();
    let elsewhere = IpAddr::from([192, 0, 2, 9]);
    assert!(!flow.segmentation.sends_singly(elsewhere));
    flow.segmentation.take(flow.now(), elsewhere, flow.session, flow.count);
    assert!(!flow.segmentation.is_off());
}

#[test]
fn another_session_counts_anew() {
    let mut flow = Flow::new(1, 0.0, true);
    // In the middle of the trial.
    (0..200).for_each(|_| assert_eq!(flow.step(), None));
    flow.session = flow.session.next();
    flow.count = Loss::default();
    assert!(flow.until_changed(false, 60).is_some_and(|found| found <= 15));
}

#[test]
fn a_trial_that_nobody_answers_ends() {
    let mut flow = Flow::new(1, 0.0, true);
    while !flow.singly() {
        flow.step();
    }
    // The session is one without PINGs now.
    let later = flow.now() + GIVE_UP;
    assert!(!flow.segmentation.asks(later));
    assert!(!flow.singly());
}

#[test]
fn nothing_is_tried_if_the_configuration_forbids_it() {
    let mut flow = Flow { segmentation: Segmentation::new(false), ..Flow::new(1, 0.0, true) };
    assert_eq!(flow.until_changed(false, 60), None);
    assert!(!flow.segmentation.asks(flow.now()));
}

#[test]
fn a_count_that_cannot_be_is_survived() {
    let mut segmentation = Segmentation::new(true);
    let counts = [(5, 5), (u64::MAX, 0), (0, u64::MAX), (u64::MAX, u64::MAX), (1000, 0), (2000, 0)];
    for (second, (sent, arrived)) in (0_u64..).zip(counts.into_iter().cycle().take(100)) {
        let now = BootTime::from_nanos(0) + Duration::from_secs(second);
        segmentation.asks(now);
        let change = segmentation.take(now, to(), Generation::default(), Loss { sent, arrived });
        assert_eq!(change, None);
    }
}
