//! The `vpnd` binary: parses the command line, runs the command, and ends with a matching exit code.

mod account;
mod alarm;
mod ask;
mod capture;
mod changes;
mod check;
#[cfg(test)]
mod child;
mod cli;
mod config;
mod control;
mod copied;
mod demo;
mod device_watch;
mod diagnostics;
mod doctor;
mod exit;
mod export;
mod fingerprint;
mod firewall;
mod floor;
mod forget;
mod forward;
mod hand_on;
mod helper;
mod hooks;
mod import;
mod inherited;
mod interrupt;
mod keygen;
mod keys;
mod linger;
mod live;
mod log_output;
mod logging;
mod loops;
mod manual;
mod metrics;
mod nameservers;
mod netns;
mod nft;
mod opening;
mod options;
mod pair;
mod panics;
mod ping;
mod placing;
mod presence;
mod privilege;
mod program;
mod release;
mod reload;
mod resolve;
mod run;
mod sandbox;
mod service;
mod shell;
mod show_mtu;
mod show_status;
mod socket_file;
mod span;
mod status;
mod stop;
mod suspend;
mod systemd;
mod tenancy;
mod terminal;
mod terms;
mod trust;
mod tuntap;
mod uapi;
mod wait;
mod watch;
mod wireguard_go;
mod worker;
mod zone;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use ask::AskError;
use cli::{Cli, Command};
use config::{Loaded, Report};
use demo::DemoError;
use doctor::DoctorError;
use exit::Exit;
use export::ExportError;
use import::ImportFailure;
use inherited::{Inherited, TakeOverError};
use logging::Logging;
use pair::PairError;
use run::{RunError, RunOptions};
use terminal::PrintableLines;
use tuntap::TuntapError;
use wait::WaitError;

fn main() -> ExitCode {
    manual::answer(Cli::command);
    let (command, logging) = Cli::parse_from(wireguard_go::command_line(std::env::args_os()))
        .split()
        .unwrap_or_else(|error| error.exit());
    let code = dispatch(command, logging).unwrap_or_else(|error| explain(&error).into());
    logging::finish();
    code
}

fn dispatch(command: Command, logging: Logging) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(options) => start(&options, logging),
        Command::Genkey(options) => keygen::genkey(&options),
        Command::Pubkey(options) => keygen::pubkey(&options),
        Command::Genpsk(options) => keygen::genpsk(&options),
        Command::Check(options) => check::run(&options),
        Command::Doctor(options) => doctor::run(&options),
        Command::Status(options) => show_status::run(&options),
        Command::Wait(options) => wait::run(&options),
        Command::Ping(options) => ping::run(&options),
        Command::Capture(options) => capture::run(&options),
        Command::Mtu(options) => show_status::mtu(&options),
        Command::Reload(options) => reload::reload(&options),
        Command::Release(options) => release::run(&options),
        Command::Rotate(options) => reload::rotate(&options),
        Command::Forget(options) => forget::run(&options),
        Command::Pair(options) => pair::run(&options),
        Command::Import(options) => import::run(&options),
        Command::Export(options) => export::run(&options),
        Command::Tuntap(options) => tuntap::run(&options),
        Command::Demo(options) => demo::run(options),
        Command::Help(options) => manual::help(&options, Cli::command()),
        Command::Man(options) => manual::man(&options, &Cli::command()),
        Command::Completions(options) => manual::completions(&options),
        Command::WireguardGoCompat(options) => wireguard_go::run(&options),
        Command::HookRunner => hooks::run(),
        Command::DeviceCaretaker(user) => tenancy::care(user),
        Command::KillSwitchOpener(user) => linger::wait(user),
    }
}

fn start(options: &RunOptions, logging: Logging) -> anyhow::Result<ExitCode> {
    // This is done before the file is read, because reading may fail, too.
    changes::announce_start(&config::default_control(&options.config));
    // Before there is a key in it.
    privilege::protect_memory();
    let mut inherited = Inherited::from_service_manager();
    let (Loaded { config, keys, warnings }, invalid) = load(&options.config, &inherited)?;
    logging::init(logging, &config.service);
    let source = warnings.source().to_owned();
    for warning in warnings.and(forward::problems(&config)).and(firewall::problems(&config)).lines()
    {
        tracing::warn!("{warning}");
    }
    match invalid {
        Some(report) => tracing::error!(
            "the configuration is not valid, so the tunnel continues with that of the earlier process: {}",
            report.lines().collect::<Vec<_>>().join("; ")
        ),
        None => hand_on::keep_configuration(&source),
    }
    if options.take_over {
        inherited = Inherited::from_process(&config)?;
    }
    run::run(config, keys, inherited)?;
    Ok(Exit::Success.into())
}

/// Loads the configuration. If it is not valid, but an earlier process of the tunnel has left its device and its
/// configuration, the tunnel continues with that one: a typing error must not end a tunnel that works. Returns also what
/// is wrong.
fn load(file: &Path, inherited: &Inherited) -> Result<(Loaded, Option<Report>), Report> {
    let report = match config::load(file) {
        Ok(loaded) => return Ok((loaded, None)),
        Err(report) => report,
    };
    let earlier = inherited.configuration().map(|source| config::load_text(file, source));
    match earlier {
        Some(Ok(loaded)) => Ok((loaded, Some(report))),
        Some(Err(_)) | None => Err(report),
    }
}

/// Prints an error on standard error, and returns the matching exit code.
fn explain(error: &anyhow::Error) -> Exit {
    // If standard error is closed, or nobody reads it, only the exit code remains.
    if log_output::takes_last_words() {
        let _said = match error.downcast_ref::<Report>() {
            Some(report) => writeln!(io::stderr(), "{report}"),
            None => writeln!(io::stderr(), "vpnd: {}", PrintableLines(format_args!("{error:#}"))),
        };
    }
    code(error)
}

fn code(error: &anyhow::Error) -> Exit {
    if error.is::<Report>() {
        Exit::Config
    } else if let Some(error) = error.downcast_ref::<RunError>() {
        error.exit()
    } else if let Some(error) = error.downcast_ref::<PairError>() {
        error.exit()
    } else if let Some(error) = error.downcast_ref::<ImportFailure>() {
        error.exit()
    } else if let Some(error) = error.downcast_ref::<ExportError>() {
        error.exit()
    } else if let Some(error) = error.downcast_ref::<AskError>() {
        error.exit()
    } else if let Some(error) = error.downcast_ref::<WaitError>() {
        error.exit()
    } else if let Some(error) = error.downcast_ref::<DemoError>() {
        error.exit()
    } else if let Some(error) = error.downcast_ref::<DoctorError>() {
        error.exit()
    } else if let Some(error) = error.downcast_ref::<TakeOverError>() {
        error.exit()
    } else if let Some(error) = error.downcast_ref::<TuntapError>() {
        error.exit()
    } else {
        Exit::Failure
    }
}
