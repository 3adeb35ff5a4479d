//! Runs many scenarios at once, each in namespaces of its own: those that wait for real timers, started one shortly
//! after the other; beside them those that keep a processor busy, a few at a time; and at the end, alone, those that
//! measure or flood.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::{Lab, binaries};

/// After this time every scenario still running has failed.
const LIMIT: Duration = Duration::from_secs(19 * 60);
/// The same for the long tests.
const LONG_LIMIT: Duration = Duration::from_secs(60 * 60);
/// Waiting scenarios that run at once. The kernel creates and deletes network namespaces one after the other,
/// and with many more the scenarios would miss their time limits of a few seconds.
const WAITING: usize = 28;
/// Working scenarios that run at once when no waiting one is left.
const HELPING: usize = 5;
/// The time between the first of these starts, for the same reason.
const APART: Duration = Duration::from_millis(250);

/// The resource that a scenario needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    /// Time: many of these run at once.
    Waits,
    /// A processor, briefly: beside waiting ones one scenario for each processor but one, some more after them.
    Works,
    /// The whole machine: one after another, when nothing else runs.
    Alone,
}

type Body = Box<dyn Fn(&Lab) -> Result<String> + Send + Sync>;

/// One scenario; it returns the line to print.
pub struct Scenario {
    name: String,
    cost: Cost,
    body: Body,
}

impl Scenario {
    /// Gives a function a name.
    pub fn new(
        name: impl Into<String>,
        cost: Cost,
        body: impl Fn(&Lab) -> Result<String> + Send + Sync + 'static,
    ) -> Self {
        Self { name: name.into(), cost, body: Box::new(body) }
    }

    fn run(&self) -> Outcome {
        let start = Instant::now();
        let result = self.in_a_lab();
        Outcome { name: self.name.clone(), took: start.elapsed(), result }
    }

    /// With a failure, the ends of all logs are printed.
    fn in_a_lab(&self) -> Result<String, String> {
        let lab = Lab::new(&self.name).map_err(|error| format!("{error:#}"))?;
        let body = AssertUnwindSafe(|| (self.body)(&lab));
        let result = catch_unwind(body).unwrap_or_else(|panic| Err(anyhow!(message(&*panic))));
        result.map_err(|error| format!("{error:#}\n{}", lab.log_tails()))
    }
}

/// Runs the scenarios selected on the command line, as `cargo test -- FILTER --skip OTHER` does.
pub fn main(scenarios: Vec<Scenario>) -> ExitCode {
    let choice = Choice::from_arguments(std::env::args().skip(1));
    let chosen: Vec<_> = scenarios.into_iter().filter(|one| choice.takes(&one.name)).collect();
    if choice.list {
        chosen.iter().for_each(|one| say(&format!("{}: test", one.name)));
        return ExitCode::SUCCESS;
    }
    // Installed and built before any time limit starts.
    if let Err(error) = binaries::prepare().and_then(|()| binaries::vpnd()) {
        say(&format!("FAILED {error:#}"));
        return ExitCode::FAILURE;
    }
    say(&format!("running {} scenarios", chosen.len()));
    let failed = run(chosen);
    failed.iter().for_each(|outcome| say(&format!("FAILED {}", outcome.name)));
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    say(&format!("scenarios: {verdict}. {} failed", failed.len()));
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

struct Outcome {
    name: String,
    took: Duration,
    result: Result<String, String>,
}

#[derive(Default)]
struct Choice {
    list: bool,
    exact: bool,
    filters: Vec<String>,
    skipped: Vec<String>,
}

impl Choice {
    fn from_arguments(mut arguments: impl Iterator<Item = String>) -> Self {
        let mut choice = Self::default();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--list" => choice.list = true,
                "--exact" => choice.exact = true,
                "--skip" => choice.skipped.extend(arguments.next()),
                "--test-threads" | "--format" | "--color" => drop(arguments.next()),
                other if other.starts_with('-') => {}
                _ => choice.filters.push(argument),
            }
        }
        choice
    }

    fn takes(&self, name: &str) -> bool {
        let hit = |filter: &String| {
            if self.exact { name == filter } else { name.contains(filter.as_str()) }
        };
        (self.filters.is_empty() || self.filters.iter().any(hit)) && !self.skipped.iter().any(hit)
    }
}

/// Returns the failures.
fn run(scenarios: Vec<Scenario>) -> Vec<Outcome> {
    let deadline = Instant::now() + if crate::long() { LONG_LIMIT } else { LIMIT };
    let (alone, together): (Vec<_>, Vec<_>) =
        scenarios.into_iter().partition(|one| one.cost == Cost::Alone);
    let (waiting, working): (Vec<_>, Vec<_>) =
        together.into_iter().partition(|one| one.cost == Cost::Waits);
    let processors = thread::available_parallelism().map_or(2, usize::from);
    let mut failed = run_together(waiting, working, (processors - 1).max(1), deadline);
    failed.extend(run_together(Vec::new(), alone, 1, deadline));
    failed
}

/// Runs `waiting` on many threads, and `working` on as many more as there are `workers`. When no waiting one is left to start,
/// some of the threads go on with the working ones: these too wait more often than not.
fn run_together(
    waiting: Vec<Scenario>,
    working: Vec<Scenario>,
    workers: usize,
    deadline: Instant,
) -> Vec<Outcome> {
    let names = waiting.iter().chain(&working).map(|one| one.name.clone()).collect();
    let helping = if waiting.is_empty() { 0 } else { HELPING };
    let (waiting, working) = (Queue::of(waiting), Queue::of(working));
    let (report, outcomes) = channel();
    for (index, delay) in (0..WAITING).zip((0..).map(|index| APART * index)) {
        let then = (index < helping).then(|| working.clone());
        work(delay, waiting.clone().chain(then.into_iter().flatten()), &report);
    }
    (0..workers).for_each(|_| work(Duration::ZERO, working.clone(), &report));
    drop(report);
    collect(&outcomes, names, deadline)
}

/// Scenarios that several threads take from.
#[derive(Clone)]
struct Queue(Arc<Mutex<std::vec::IntoIter<Scenario>>>);

impl Queue {
    fn of(scenarios: Vec<Scenario>) -> Self {
        Self(Arc::new(Mutex::new(scenarios.into_iter())))
    }
}

impl Iterator for Queue {
    type Item = Scenario;

    fn next(&mut self) -> Option<Scenario> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).next()
    }
}

/// Runs the scenarios on a thread of their own, after this time.
fn work(
    delay: Duration,
    scenarios: impl Iterator<Item = Scenario> + Send + 'static,
    report: &Sender<Outcome>,
) {
    let report = report.clone();
    thread::spawn(move || {
        thread::sleep(delay);
        for scenario in scenarios {
            // The receiver is gone only after the deadline.
            let _ = report.send(scenario.run());
        }
    });
}

fn collect(
    outcomes: &Receiver<Outcome>,
    mut running: BTreeSet<String>,
    deadline: Instant,
) -> Vec<Outcome> {
    let mut failed = Vec::new();
    loop {
        match outcomes.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(outcome) => {
                running.remove(&outcome.name);
                show(&outcome);
                failed.extend(Some(outcome).filter(|outcome| outcome.result.is_err()));
            }
            Err(RecvTimeoutError::Disconnected) => return failed,
            Err(RecvTimeoutError::Timeout) => {
                failed.extend(running.into_iter().map(too_late));
                return failed;
            }
        }
    }
}

fn too_late(name: String) -> Outcome {
    Outcome { name, took: LIMIT, result: Err("not done in time".to_owned()) }
}

fn show(outcome: &Outcome) {
    let seconds = outcome.took.as_secs_f64();
    say(&match &outcome.result {
        Ok(seen) => format!("ok     {:6.1} s  {}: {seen}", seconds, outcome.name),
        Err(why) => format!("FAILED {:6.1} s  {}: {why}", seconds, outcome.name),
    });
}

/// If the reader of the output goes away, as `head` does, that is no failure.
fn say(line: &str) {
    let _ = writeln!(io::stdout().lock(), "{line}");
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panicked: {}", text.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_that_of_cargo_test() {
        let arguments = ["--nocapture", "nat", "--test-threads", "1", "--skip", "expiry"];
        let choice = Choice::from_arguments(arguments.iter().map(|word| (*word).to_owned()));
        assert!(choice.takes("nat::rebinding"));
        assert!(!choice.takes("nat::expiry"));
        assert!(!choice.takes("ping"));
    }

    #[test]
    fn every_cost_is_run_and_failures_are_returned() {
        let scenario = |name: &str, cost, fails: bool| {
            Scenario::new(name, cost, move |_: &Lab| {
                assert!(!fails, "as asked");
                Ok("seen".to_owned())
            })
        };
        let failed = run(vec![
            scenario("a", Cost::Waits, false),
            scenario("b", Cost::Works, true),
            scenario("c", Cost::Works, false),
            scenario("d", Cost::Alone, true),
        ]);
        let names: Vec<_> = failed.iter().map(|outcome| outcome.name.as_str()).collect();
        assert_eq!(names, ["b", "d"]);
    }
}
