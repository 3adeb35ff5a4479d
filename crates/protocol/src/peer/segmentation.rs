//! Whether datagrams that leave in runs (segmentation offload) arrive as well as datagrams that leave singly.
//!
//! Some kernels and network cards segment wrongly, of this host or of the one that it is a guest of, and some paths lose
//! long runs. No system call reports it; the peer receives less than was sent. So after a loss that PONGs report,
//! a trial alternates between runs and single datagrams, phase by phase, and compares what arrives. Loss that hits both
//! is the path's. If runs lose markedly more, datagrams leave singly on this path. The next trial is half a minute
//! later, and if it has the same result, the others are an hour apart.
//!
//! The trial is a sequential test. From [`PHASES`] phases of each kind on it is judged after every pair; while it is in
//! doubt it goes on, up to [`MOST_PHASES`]. Three conditions must hold before runs are blamed, against different errors:
//!
//! - The phases of runs have the worse ranks (Mann and Whitney), by [`RANKS_APART`]. This holds whatever the
//!   distribution of the losses is, so bursts do not matter, only that they fall on either kind by chance: 2.3 of 1000
//!   trials over all 17 looks together, by simulation of the ranks.
//! - The shares of all datagrams differ by [`SHARES_APART`]. If each datagram is lost by itself, that is 3 of 10 million
//!   for each look, or 5 of a million for a trial. It rests on few datagrams where nearly nothing is lost.
//! - The median phase of runs loses markedly more. A few losses do not move a median.

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
/// ... and until so many datagrams were sent in it, besides PINGs.
const LEAST_SENT: u64 = 4;
/// The phases of each kind before a trial is judged.
const PHASES: usize = 8;
/// A trial that is still in doubt after so many of each kind has found no difference.
const MOST_PHASES: usize = 24;
/// By so many standard deviations the ranks of the phases of runs are worse than chance, if runs are blamed.
const RANKS_APART: f64 = 3.2;
/// The same for the share of datagrams that were lost.
const SHARES_APART: f64 = 5.0;
/// If the shares differ by no more than this, there is no doubt that they are equal.
const DOUBT: f64 = 2.0;
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

    /// Makes trials, or makes none and forgets what they have shown.
    pub(super) fn retune(&mut self, is_tested: bool) {
        if self.is_tested != is_tested {
            *self = Self::new(is_tested);
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
    /// The PINGs that were answered since then. They count as sent, and are never part of a run: while a connection
    /// waits for its timeout, they alone would fill a phase of runs in which there was no run.
    pings: u64,
    ask_at: BootTime,
    /// What was lost in the phases so far: of runs, and of single datagrams.
    phases: [Vec<Loss>; 2],
}

impl Trial {
    /// It begins with single datagrams.
    const fn new(now: BootTime) -> Self {
        Self {
            began: now,
            singly: true,
            mark: None,
            pings: 0,
            ask_at: now,
            phases: [Vec::new(), Vec::new()],
        }
    }

    /// Takes a count.
    fn take(&mut self, now: BootTime, count: Loss) -> Option<Verdict> {
        let Some((began, first)) = self.mark else {
            (self.mark, self.pings, self.ask_at) = (Some((now, count)), 0, now + PHASE);
            return None;
        };
        self.pings += 1;
        if now >= self.began + GIVE_UP {
            return Some(Verdict::NoDifference);
        }
        let phase = without(between(first, count), self.pings);
        if now < began + PHASE || phase.sent < LEAST_SENT {
            self.ask_at = (began + PHASE).max(now + PHASE / 4);
            return None;
        }
        self.phases[usize::from(self.singly)].push(phase);
        (self.singly, self.mark, self.ask_at) = (!self.singly, None, now);
        self.judge()
    }

    /// The verdict once there are enough phases, and as many of one kind as of the other. None while it is in doubt.
    fn judge(&self) -> Option<Verdict> {
        let [runs, single] = &self.phases;
        if runs.len() != single.len() || runs.len() < PHASES {
            return None;
        }
        let apart = deviations(total(runs), total(single));
        let is_large = median(runs) > 2.0 * median(single) + 0.01;
        if is_large && apart > SHARES_APART && ranks_apart(runs, single) > RANKS_APART {
            return Some(Verdict::RunsLoseMore);
        }
        (apart <= DOUBT || runs.len() >= MOST_PHASES).then_some(Verdict::NoDifference)
    }
}

/// What is left without so many datagrams, which have arrived.
const fn without(loss: Loss, arrived: u64) -> Loss {
    Loss { sent: loss.sent.saturating_sub(arrived), arrived: loss.arrived.saturating_sub(arrived) }
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

/// How far the phases' ranks are from those of equal kinds, in standard deviations: how many pairs of a phase of runs and a
/// single one are inverted, beside the half that chance inverts. Equal phases count as inverted.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn ranks_apart(runs: &[Loss], single: &[Loss]) -> f64 {
    let pairs = runs.iter().flat_map(|run| single.iter().map(move |one| (run, one)));
    let inverted = pairs.filter(|(run, one)| share(**run) <= share(**one)).count();
    let (pairs, all) = ((runs.len() * single.len()) as f64, runs.len() + single.len());
    let variance = pairs * (all + 1) as f64 / 12.0;
    (pairs / 2.0 - inverted as f64) / variance.max(f64::MIN_POSITIVE).sqrt()
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
