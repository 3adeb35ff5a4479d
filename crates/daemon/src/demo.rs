//! `demo`: shows a working tunnel, step by step. Two network namespaces of this machine are the sites, a veth
//! pair is the wire between them, and two ordinary daemons connect them. The demonstration needs nothing else,
//! changes nothing else on this machine, and leaves nothing behind.

mod common;
mod netns;
mod packet;
mod ping;
mod site;
mod tell;
mod transfer;
mod wiretap;

use std::io;
use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::Exit;
use crate::run::RunError;
use common::{INNER_A, INNER_B, INNER6_A, INNER6_B, NAMES, OUTER_A, OUTER_B};
use netns::Wire;
use site::{Daemon, Files};
use tell::{Teller, rate, size};
use transfer::{Limit, Transfer};
use wiretap::{Seen, Wiretap};

pub(crate) use common::DemoError;

/// Options of `demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoOptions {
    /// The time limit of each of the two speed measurements
    #[arg(long, value_name = "N", default_value_t = 5,
          value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
}

/// Runs the demonstration. If it fails, cleans up and reports where.
pub(crate) fn run(options: DemoOptions) -> anyhow::Result<ExitCode> {
    // Only a single-threaded process can enter a user namespace.
    let privilege = netns::acquire()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interruption = Interruption::new()?;
        // When one of these ends, the other is dropped and cleans up.
        tokio::select! {
            shown = show(&options, privilege) => shown.map(|()| Exit::Success.into()),
            code = interruption.wait() => Ok(code),
        }
    })
}

async fn show(options: &DemoOptions, privilege: netns::Privilege) -> anyhow::Result<()> {
    let tell = Teller::default();
    let wire = lay_wire(&tell, privilege)?;
    let files = write_files(&tell)?;
    let tap = Wiretap::start(&wire.a, netns::DEVICE_A, SENTENCE)?;
    let daemons = start_daemons(&tell, &wire, &files).await?;
    ping_across(&tell, &wire).await?;
    eavesdrop(&tell, &wire, tap).await?;
    measure(&tell, &wire, Duration::from_secs(options.seconds)).await?;
    show_status(&tell, &daemons)?;
    clean_up(&tell, daemons, files).await
}

fn lay_wire(tell: &Teller, privilege: netns::Privilege) -> anyhow::Result<Wire> {
    tell.step("Two sites, and the wire between them")?;
    let wire = Wire::lay()?;
    wire.a.enter(site::try_device)?.map_err(RunError::Open)?;
    tell.line(format_args!("site-a  {OUTER_A} -------- wire -------- {OUTER_B}  site-b"))?;
    tell.line(format_args!("Two network namespaces and a veth pair, made {privilege}."))?;
    Ok(wire)
}

fn write_files(tell: &Teller) -> anyhow::Result<Files> {
    tell.step("Keys and configurations, as `vpnd pair` writes them")?;
    let files = Files::write()?;
    let directory = files.directory().display();
    tell.line(format_args!("{directory}/site-a:  site-a.toml  site-a.key  site-a.psk"))?;
    tell.line(format_args!("{directory}/site-b:  site-b.toml  site-b.key  site-b.psk"))?;
    Ok(files)
}

async fn start_daemons(tell: &Teller, wire: &Wire, files: &Files) -> anyhow::Result<[Daemon; 2]> {
    tell.step("A daemon on either side")?;
    let start = Instant::now();
    let mut daemons = [files.start(NAMES[0], &wire.a)?, files.start(NAMES[1], &wire.b)?];
    for daemon in &mut daemons {
        daemon.up().await?;
        let (name, pid, took) = (daemon.name(), daemon.pid(), start.elapsed().as_millis());
        tell.line(format_args!("{name}  process {pid}, up after {took} ms"))?;
    }
    Ok(daemons)
}

async fn ping_across(tell: &Teller, wire: &Wire) -> anyhow::Result<()> {
    tell.step("Pings through the tunnel, both ways")?;
    let ways = [
        (&wire.a, INNER_A, INNER_B),
        (&wire.b, INNER_B, INNER_A),
        (&wire.a, INNER6_A, INNER6_B),
        (&wire.b, INNER6_B, INNER6_A),
    ];
    for (namespace, from, to) in ways {
        let pings = ping::series(namespace, to, PINGS, SENTENCE).await?;
        tell.line(format_args!("{:>9} -> {:<9}  {pings}", from.to_string(), to.to_string()))?;
        ensure!(pings.all_answered(), "pings from {from} to {to} were lost");
    }
    Ok(())
}

async fn eavesdrop(tell: &Teller, wire: &Wire, tap: Wiretap) -> anyhow::Result<()> {
    tell.step("What an eavesdropper on the wire sees")?;
    let sentence = String::from_utf8_lossy(SENTENCE);
    tell.line(format_args!("site-a sends site-b a mebibyte of one sentence, again and again:"))?;
    tell.line(format_args!("\"{}\"", sentence.trim_end()))?;
    speak(wire, INNER_B).await?;
    let hidden = tap.stop()?;
    let tap = Wiretap::start(&wire.a, netns::DEVICE_A, SENTENCE)?;
    speak(wire, OUTER_B).await?;
    let open = tap.stop()?;

    tell.line(format_args!(
        "On the bare wire:    {}; it reads the sentence {} times.",
        open.volume(),
        open.sightings
    ))?;
    tell.line(format_args!(
        "Through the tunnel:  {}; it reads the sentence {} times.",
        hidden.volume(),
        hidden.sightings
    ))?;
    tell.line(format_args!("What it can tell apart there: {}.", hidden.kinds()))?;
    ensure!(open.sightings > 0, "the wiretap is deaf: it missed what crossed the bare wire");
    ensure!(hidden.sightings == 0, "the tunnel leaks: the sentence crossed the wire");
    show_datagram(tell, &hidden)
}

fn show_datagram(tell: &Teller, seen: &Seen) -> anyhow::Result<()> {
    let sample = seen.sample.as_deref().context("no transport data crossed the wire")?;
    tell.line(format_args!("The first ping, sentence and all, as it crossed the wire:"))?;
    for line in wiretap::hexdump(sample) {
        tell.line(format_args!("  {line}"))?;
    }
    tell.line(format_args!("(type, receiver index and counter; from byte 0x10 on, ciphertext)"))?;
    Ok(())
}

/// Sends so few bytes that the wiretap can read all of them.
async fn speak(wire: &Wire, to: IpAddr) -> anyhow::Result<()> {
    let limit = Limit { bytes: 1 << 20, time: Duration::from_secs(5) };
    let progress = Arc::new(AtomicU64::new(0));
    transfer::run(&wire.a, &wire.b, to, limit, SENTENCE, progress).await?.verify()
}

async fn measure(tell: &Teller, wire: &Wire, time: Duration) -> anyhow::Result<()> {
    let limit = Limit { bytes: 1 << 30, time };
    let title =
        format!("One TCP stream, site-a to site-b: {} or {} s", size(limit.bytes), time.as_secs());
    tell.step(&title)?;
    let bare = race(tell, wire, "bare wire", OUTER_B, limit).await?;
    let tunnel = race(tell, wire, "tunnel", INNER_B, limit).await?;
    let share = tunnel.bytes_per_second() / bare.bytes_per_second();
    tell.line(format_args!("The tunnel carries {share:.2} of what the bare wire does."))?;
    Ok(())
}

async fn race(
    tell: &Teller,
    wire: &Wire,
    name: &str,
    to: IpAddr,
    limit: Limit,
) -> anyhow::Result<Transfer> {
    let progress = Arc::new(AtomicU64::new(0));
    let transfer = transfer::run(&wire.a, &wire.b, to, limit, SENTENCE, Arc::clone(&progress));
    let done = tell.watch(name, limit, &progress, transfer).await?;
    tell.line(format_args!(
        "{name:<9}  {} in {:.2} s: {}",
        size(done.bytes),
        done.time.as_secs_f64(),
        rate(done.bytes_per_second())
    ))?;
    tell.line(format_args!("{:<9}  checksum {} sent, {} received", "", done.sent, done.received))?;
    done.verify()?;
    Ok(done)
}

fn show_status(tell: &Teller, daemons: &[Daemon]) -> anyhow::Result<()> {
    tell.step("What either daemon says of itself")?;
    for daemon in daemons {
        tell.line(format_args!("$ vpnd status {}", daemon.control().display()))?;
        let (up, said) = daemon.status()?;
        said.lines().try_for_each(|line| tell.line(format_args!("{line}")))?;
        ensure!(up, "{} is no longer up", daemon.name());
    }
    Ok(())
}

async fn clean_up(tell: &Teller, daemons: [Daemon; 2], files: Files) -> anyhow::Result<()> {
    tell.step("The end")?;
    for daemon in daemons {
        daemon.stop().await?;
    }
    files.remove()?;
    tell.line(format_args!("Both daemons stopped when told; keys, files and devices are gone."))?;
    tell.line(format_args!("Everything crossed, unharmed and unread."))?;
    Ok(())
}

/// The signals that end the demonstration.
struct Interruption {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Interruption {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The exit code that a shell would report for a process that this signal ended.
    async fn wait(&mut self) -> ExitCode {
        let number: u8 = tokio::select! {
            _ = self.interrupt.recv() => 2,
            _ = self.terminate.recv() => 15,
            _ = self.hangup.recv() => 1,
        };
        ExitCode::from(128 + number)
    }
}

/// The number of pings for each direction and family.
const PINGS: u16 = 5;
/// The text that is sent through the tunnel and searched for on the wire.
const SENTENCE: &[u8] = b"Who reads this sentence on the wire has broken in. \n";
