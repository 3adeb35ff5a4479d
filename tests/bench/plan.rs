//! Runs every contender in every round, so that changes on the machine affect all of them alike.

use std::path::PathBuf;

use anyhow::{Error, Result};

use crate::contender::{Contender, Tunnel};
use crate::figure::{Figure, Record, Records};
use crate::probe::Probe;
use crate::say;

/// Lengths of the device's queue, in packets: first vpnd's own choice, then the kernel's.
pub(crate) const QUEUES: [u16; 4] = [1000, 500, 100, 50];

/// What the records of a queue's length are called.
pub(crate) fn queue_name(packets: u16) -> String {
    format!("vpnd queue {packets}")
}

/// What is done.
pub(crate) struct Plan {
    pub(crate) contenders: Vec<Contender>,
    /// Not installed, and so not measured.
    pub(crate) missing: Vec<Contender>,
    pub(crate) probes: Vec<Probe>,
    pub(crate) rounds: u32,
    pub(crate) seconds: u32,
    /// Where everything is written, until the end.
    pub(crate) place: PathBuf,
}

impl Plan {
    /// Measures everything; what fails is recorded as such.
    pub(crate) fn run(&self) -> Records {
        let mut records = Records::default();
        for round in 1..=self.rounds {
            for contender in &self.contenders {
                let name = contender.name.clone();
                Turn { plan: self, round, name, records: &mut records }.run(contender);
            }
        }
        records
    }
}

/// One contender in one round.
struct Turn<'a> {
    plan: &'a Plan,
    round: u32,
    /// What the records are called.
    name: String,
    records: &'a mut Records,
}

impl Turn<'_> {
    fn run(&mut self, contender: &Contender) {
        match contender.start(&self.plan.place) {
            Ok(tunnel) => self.measure(contender, &tunnel),
            Err(error) => {
                let all: Vec<_> = self.plan.probes.iter().flat_map(|one| one.figures()).collect();
                self.failed("start", all, &error);
            }
        }
    }

    fn measure(&mut self, contender: &Contender, tunnel: &Tunnel) {
        for probe in &self.plan.probes {
            match probe {
                Probe::Queue if contender.is_vpnd() => self.queues(tunnel),
                Probe::Queue => {}
                other => self.probe(*other, tunnel),
            }
        }
    }

    fn probe(&mut self, probe: Probe, tunnel: &Tunnel) {
        match probe.run(tunnel, self.plan.seconds) {
            Ok(values) => values.into_iter().for_each(|value| self.measured(value)),
            Err(error) => self.failed(probe.name(), probe.figures(), &error),
        }
    }

    /// Under a name for each length; the first, which is set again at the end, is what the other probes
    /// have.
    fn queues(&mut self, tunnel: &Tunnel) {
        let (plan, round) = (self.plan, self.round);
        for packets in QUEUES {
            let name = queue_name(packets);
            let mut turn = Turn { plan, round, name, records: &mut *self.records };
            match tunnel.queue_length(packets) {
                Ok(()) => turn.probe(Probe::Queue, tunnel),
                Err(error) => turn.failed("queue", Probe::Queue.figures(), &error),
            }
        }
        if let Err(error) = tunnel.queue_length(QUEUES[0]) {
            self.progress("queue", &format!("FAILED {error:#}"));
        }
    }

    fn measured(&mut self, (figure, value): (Figure, f64)) {
        self.progress(figure.title(), &figure.unit().tell(value));
        self.record(figure, Ok(value));
    }

    fn failed<'f>(
        &mut self,
        what: &str,
        figures: impl IntoIterator<Item = &'f Figure>,
        error: &Error,
    ) {
        let reason = format!("{what}: {error:#}");
        self.progress(what, &format!("FAILED {error:#}"));
        for figure in figures {
            self.record(*figure, Err(reason.clone()));
        }
    }

    fn progress(&self, what: &str, seen: &str) {
        let (round, rounds) = (self.round, self.plan.rounds);
        say(&format!("round {round}/{rounds}  {:<18} {what:<28} {seen}", self.name));
    }

    fn record(&mut self, figure: Figure, value: Result<f64, String>) {
        let contender = self.name.clone();
        self.records.0.push(Record { round: self.round, contender, figure, value });
    }
}
