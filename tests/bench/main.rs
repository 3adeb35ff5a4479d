//! Compares vpnd with the bare cable and with every other tunnel that is installed, on two network
//! namespaces joined by a pair of virtual Ethernet devices.

mod contender;
mod figure;
mod generator;
mod options;
mod plan;
mod probe;
mod report;
mod search;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use crate::contender::Contender;
use crate::options::Options;
use crate::plan::Plan;

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("bench: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let plan = Plan {
        contenders: installed(Contender::chosen(options)?),
        probes: options.probes()?,
        rounds: options.rounds(),
        seconds: options.seconds(),
    };
    ensure!(!plan.contenders.is_empty(), "nothing to measure");
    let records = plan.run();
    let text = report::text(&plan.contenders, &records);
    io::stdout().write_all(text.as_bytes()).context("cannot print the tables")
}

/// Names what is not there, and leaves it out.
fn installed(contenders: Vec<Contender>) -> Vec<Contender> {
    let there = |one: &Contender| match one.missing() {
        Some(why) => {
            say(&format!("without {}: {why}; `tests/setup bench` installs it", one.name));
            false
        }
        None => true,
    };
    contenders.into_iter().filter(there).collect()
}

/// Progress, for whoever waits; one who went away is no failure.
pub(crate) fn say(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}
