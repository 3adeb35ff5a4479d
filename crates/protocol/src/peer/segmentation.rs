//! Whether datagrams that leave in runs (segmentation offload) arrive as well as datagrams that leave singly.
//!
//! Some kernels and network cards segment wrongly, of this host or of the one that it is a guest of, and some paths lose
//! long runs. No system call reports it; the peer receives less than was sent. So after a loss that PONGs report,
//! a trial alternates between runs and single datagrams, phase by phase, and compares what arrives. Loss that hits both
//! is the path's. If runs lose markedly more, datagrams leave singly on this path. The next trial is half a minute
//! later, and if it has the same result, the others are an hour apart.

use std::net::IpAddr;
use std::time::Duration;

use super::{Change, Loss, Peer};
use crate::session::Generation;
use crate::time::{BootTime, Now};

/// A trial begins if at least this many datagrams are lost between two PONGs, ...
const LEAST_LOST: u64 = 4;
/// ... and more than this many in a hundred.
const SUSPICIOUS: u64 = 2;
/// A phase lasts this long ...
const PHASE: Duration = Duration::from_millis(200);
/// ... and until so many datagrams were sent in it.
const LEAST_SENT: u64 = 4;
/// The phases of each kind.
const PHASES: usize = 8;
/// A trial without a result ends after this time: hardly anything is sent.
const GIVE_UP: Duration = Duration::from_secs(30);
/// How long datagrams leave singly after the first trial in which runs lost more: bursts of losses may have misled it.
const DOUBTFUL: Duration = Duration::from_secs(30);
/// The same after the next trial with the same result.
const OFF: Duration = Duration::from_secs(3600);
/// After the first trial that found no difference, the next one begins this much later; then twice as late, ...
const FIRST_REST: Duration = Duration::from_secs(20);
/// ... up to this.
const LONGEST_REST: Duration = Duration::from_secs(3600);
/// An unanswered PING of a trial is repeated after this time.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What is known of one path.
#[derive(Debug)]
pub(super) struct Segmentation {
    /// Whether trials are made at all.
    is_tested: bool,
    to: Option<IpAddr>,
    /// The session that is counted, and the count of the last PONG.
    last: Option<(Generation, Loss)>,
    /// The result of the last trial is that runs lose more.
    is_off: bool,
    state: State,
    rest: Duration,
}

#[derive(Debug)]
enum State {
    /// No trial begins before this time.
    Rest(BootTime),
    Trial(Trial),
}

/// What a trial has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    RunsLoseMore,
    NoDifference,
}

impl Segmentation {
    pub(super) const fn new(is_tested: bool) -> Self {
        Self {
            is_tested,
            to: None,
            last: None,
            is_off: false,
            state: State::Rest(BootTime::from_nanos(0)),
            rest: FIRST_REST,
        }
    }

    /// Whether datagrams to this address leave singly now.
    pub(super) fn sends_singly(&self, to: IpAddr) -> bool {
        self.to == Some(to)
            && match &self.state {
                State::Rest(_) => self.is_off,
                State::Trial(trial) => trial.singly,
            }
    }

    /// Whether runs lose more on this path, so that they are not used.
    pub(super) const fn is_off(&self) -> bool {
        self.is_off
    }

    /// Takes the count of a PONG on the path to this address. Returns whether runs are used from now on, if that has
    /// changed.
    fn take(
        &mut self,
        now: BootTime,
        to: IpAddr,
        session: Generation,
        count: Loss,
    ) -> Option<bool> {
        if self.to != Some(to) {
            *self = Self { to: Some(to), ..Self::new(self.is_tested) };
        }
        let last = self.last.replace((session, count)).filter(|(counted, _)| *counted == session);
        match &mut self.state {
            State::Rest(until) => {
                let suspicious = last.is_some_and(|(_, last)| is_suspicious(between(last, count)));
                if self.is_tested && now >= *until && (self.is_off || suspicious) {
                    self.state = State::Trial(Trial::new(now));
                }
                None
            }
            State::Trial(trial) => {
                if last.is_none() {
                    // The counts of another session began anew.
                    trial.mark = None;
                }
                let verdict = trial.take(now, count)?;
                self.conclude(now, verdict)
            }
        }
    }

    fn conclude(&mut self, now: BootTime, verdict: Verdict) -> Option<bool> {
        let was_off = std::mem::replace(&mut self.is_off, verdict == Verdict::RunsLoseMore);
        let rest = match (was_off, self.is_off) {
            (false, true) => DOUBTFUL,
            (true, true) => OFF,
            (_, false) => self.rest,
        };
        self.state = State::Rest(now + rest);
        self.rest = if self.is_off { FIRST_REST } else { (self.rest * 2).min(LONGEST_REST) };
        (was_off != self.is_off).then_some(!self.is_off)
    }

    /// Whether a PING is due for a trial. The caller sends it.
    fn asks(&mut self, now: BootTime) -> bool {
        match &mut self.state {
            // The peer no longer answers.
            State::Trial(trial) if now >= trial.began + GIVE_UP => {
                self.state = State::Rest(now + self.rest);
                false
            }
            State::Trial(trial) if now >= trial.ask_at => {
                trial.ask_at = now + ASK_AGAIN;
                true
            }
            State::Trial(_) | State::Rest(_) => false,
        }
    }
}

/// What was sent and what arrived between two counts of one session. What was under way at the first count may
/// arrive after it.
fn between(first: Loss, second: Loss) -> Loss {
    let sent = second.sent.saturating_sub(first.sent);
    Loss { sent, arrived: second.arrived.saturating_sub(first.arrived).min(sent) }
}

const fn is_suspicious(loss: Loss) -> bool {
    let lost = loss.missing();
    lost >= LEAST_LOST && lost.saturating_mul(100) > loss.sent.saturating_mul(SUSPICIOUS)
}

/// A comparison under way.
#[derive(Debug)]
struct Trial {
    began: BootTime,
    /// The kind of the present phase.
    singly: bool,
    /// When the phase began and the count then; none until the first PING of the phase was answered.
    mark: Option<(BootTime, Loss)>,
    ask_at: BootTime,
    /// What was lost in the phases so far: of runs, and of single datagrams.
    phases: [Vec<Loss>; 2],
}

impl Trial {
    /// It begins with single datagrams.
    const fn new(now: BootTime) -> Self {
        Self { began: now, singly: true, mark: None, ask_at: now, phases: [Vec::new(), Vec::new()] }
    }

    /// Takes a count.
    fn take(&mut self, now: BootTime, count: Loss) -> Option<Verdict> {
        let Some((began, first)) = self.mark else {
            self.mark = Some((now, count));
            self.ask_at = now + PHASE;
            return None;
        };
        let phase = between(first, count);
        if now >= self.began + GIVE_UP {
            return Some(Verdict::NoDifference);
        }
        if now < began + PHASE || phase.sent < LEAST_SENT {
            self.ask_at = (began + PHASE).max(now + PHASE / 4);
            return None;
        }
        self.phases[usize::from(self.singly)].push(phase);
        (self.singly, self.mark, self.ask_at) = (!self.singly, None, now);
        self.phases.iter().all(|phases| phases.len() >= PHASES).then(|| self.verdict())
    }

    /// Runs lose markedly more if the difference is large, is hardly chance, and shows in nearly every pair of phases:
    /// bursts of losses hit some phases of either kind.
    fn verdict(&self) -> Verdict {
        let [runs, single] = &self.phases;
        let (all_runs, all_single) = (total(runs), total(single));
        let pairs = runs.iter().flat_map(|run| single.iter().map(move |one| (run, one)));
        let inverted = pairs.filter(|(run, one)| share(**run) <= share(**one)).count();
        let is_large = median(runs) > 2.0 * median(single) + 0.01;
        if is_large
            && inverted * 10 <= runs.len() * single.len()
            && deviations(all_runs, all_single) > 4.0
        {
            Verdict::RunsLoseMore
        } else {
            Verdict::NoDifference
        }
    }
}

fn total(phases: &[Loss]) -> Loss {
    phases.iter().fold(Loss { sent: 0, arrived: 0 }, |sum, one| Loss {
        sent: sum.sent.saturating_add(one.sent),
        arrived: sum.arrived.saturating_add(one.arrived),
    })
}

/// The share that was lost.
fn share(loss: Loss) -> f64 {
    1.0 - loss.arriving()
}

/// The share that was lost in the middle one of the phases.
fn median(phases: &[Loss]) -> f64 {
    let mut shares: Vec<_> = phases.iter().map(|phase| share(*phase)).collect();
    shares.sort_by(f64::total_cmp);
    shares.get(shares.len() / 2).copied().unwrap_or_default()
}

/// How far two shares are apart, in standard deviations of their difference if both were the same.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn deviations(one: Loss, other: Loss) -> f64 {
    let both = share(total(&[one, other]));
    let variance =
        both * (1.0 - both) * (1.0 / one.sent.max(1) as f64 + 1.0 / other.sent.max(1) as f64);
    (share(one) - share(other)) / variance.max(f64::MIN_POSITIVE).sqrt()
}

impl Peer {
    /// The peer has answered a PING; that many datagrams of the session had arrived.
    pub(super) fn compare_segmentation(&mut self, now: Now, session: Generation, count: Loss) {
        let Some(to) = self.endpoint().map(|to| to.ip()) else { return };
        if let Some(works) = self.paths.segmentation.take(now.boot, to, session, count) {
            self.events.push_back(Change::Segmentation { works }.into());
        }
        self.paths.follow_segmentation();
    }

    /// Whether a trial needs a PING now. It is asked at each look at the traffic: without data there is nothing to
    /// compare.
    pub(super) fn asks_for_segmentation(&mut self, now: BootTime) -> bool {
        let asks = self.activity.is_active() && self.paths.segmentation.asks(now);
        self.paths.follow_segmentation();
        asks
    }
}

#[cfg(test)]
mod tests;
