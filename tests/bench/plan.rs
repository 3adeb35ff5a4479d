//! Every contender in every round, so that what changes on the machine meanwhile hits all alike.

use anyhow::{Error, Result};

use crate::contender::{Contender, Tunnel};
use crate::figure::{Figure, Record, Records};
use crate::probe::Probe;
use crate::say;

/// What is done.
pub(crate) struct Plan {
    pub(crate) contenders: Vec<Contender>,
    pub(crate) probes: Vec<Probe>,
    pub(crate) rounds: u32,
    pub(crate) seconds: u32,
}

impl Plan {
    /// Measures everything; what fails is recorded as such.
    pub(crate) fn run(&self) -> Records {
        let mut records = Records::default();
        for round in 1..=self.rounds {
            for contender in &self.contenders {
                let mut turn = Turn { plan: self, round, contender, records: &mut records };
                turn.run();
            }
        }
        records
    }
}

/// One contender in one round.
struct Turn<'a> {
    plan: &'a Plan,
    round: u32,
    contender: &'a Contender,
    records: &'a mut Records,
}

impl Turn<'_> {
    fn run(&mut self) {
        match self.contender.start() {
            Ok(tunnel) => self.measure(&tunnel),
            Err(error) => {
                let all: Vec<_> = self.plan.probes.iter().flat_map(|one| one.figures()).collect();
                self.failed("start", all, &error);
            }
        }
    }

    fn measure(&mut self, tunnel: &Tunnel) {
        for probe in &self.plan.probes {
            match probe.run(tunnel, self.plan.seconds) {
                Ok(values) => values.into_iter().for_each(|value| self.measured(value)),
                Err(error) => self.failed(probe.name(), probe.figures(), &error),
            }
        }
    }

    fn measured(&mut self, (figure, value): (Figure, f64)) {
        self.progress(figure.title(), &format!("{:>10} {}", figure.show(value), figure.unit()));
        self.record(figure, Ok(value));
    }

    fn failed<'f>(
        &mut self,
        what: &str,
        figures: impl IntoIterator<Item = &'f Figure>,
        error: &Error,
    ) {
        let reason = format!("{error:#}");
        self.progress(what, &format!("FAILED {reason}"));
        for figure in figures {
            self.record(*figure, Err(reason.clone()));
        }
    }

    fn progress(&self, what: &str, seen: &str) {
        let (round, rounds) = (self.round, self.plan.rounds);
        say(&format!("round {round}/{rounds}  {:<18} {what:<22} {seen}", self.contender.name));
    }

    fn record(&mut self, figure: Figure, value: Result<f64, String>) {
        let contender = self.contender.name.clone();
        self.records.0.push(Record { round: self.round, contender, figure, value });
    }
}
