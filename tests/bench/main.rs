//! Compares vpnd with the bare cable and with every other tunnel that is installed, on two network
//! namespaces joined by a pair of virtual Ethernet devices.

mod chart;
mod contender;
mod fastd;
mod figure;
mod generator;
mod interrupt;
mod json;
mod machine;
mod openvpn;
mod options;
mod plan;
mod probe;
mod report;
mod search;

use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use vpnd_tests::Lab;
use vpnd_tests::binaries::installed;

use crate::contender::Contender;
use crate::figure::Records;
use crate::machine::Machine;
use crate::options::Options;
use crate::plan::Plan;

/// What the measuring itself needs.
const TOOLS: [&str; 5] = ["ip", "ss", "ping", "iperf3", "wg"];
/// From this on, something else runs on the machine.
const BUSY: f64 = 0.5;

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
    for tool in TOOLS {
        installed(tool).context("`tests/setup bench` installs what the comparison needs")?;
    }
    let (contenders, missing) = those_there(Contender::chosen(options)?);
    ensure!(!contenders.is_empty(), "nothing to measure");
    let lab = Lab::within(&env::temp_dir(), "bench")?;
    interrupt::removes(lab.path().to_owned())?;
    let plan = Plan {
        contenders,
        missing,
        probes: options.probes()?,
        rounds: options.rounds(),
        seconds: options.seconds(),
        place: lab.path().to_owned(),
    };
    let machine = Machine::here();
    warn_if_busy();
    let records = plan.run();
    publish(options, &machine, &plan, &records)
}

/// Names what is not there, and returns it apart.
fn those_there(contenders: Vec<Contender>) -> (Vec<Contender>, Vec<Contender>) {
    let there = |one: &Contender| match one.missing() {
        Some(why) => {
            say(&format!("without {}: {why}; `tests/setup bench` installs it", one.name));
            false
        }
        None => true,
    };
    contenders.into_iter().partition(there)
}

fn warn_if_busy() {
    if let Some(load) = machine::load().filter(|load| *load > BUSY) {
        say(&format!("the machine is busy (load {load:.1}): expect worse figures, and scattered"));
    }
}

/// Tables to standard output, files where they were asked for.
fn publish(options: &Options, machine: &Machine, plan: &Plan, records: &Records) -> Result<()> {
    if let Some(path) = &options.json {
        write(path, &format!("{:#}\n", json::document(machine, plan, records)))?;
    }
    if let Some(path) = &options.svg {
        write(path, &chart::svg(&plan.contenders, records))?;
    }
    let text = report::introduction(machine, plan) + &report::text(&plan.contenders, records);
    io::stdout().write_all(text.as_bytes()).context("cannot print the tables")
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Progress, for whoever waits; one who went away is no failure.
pub(crate) fn say(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}
