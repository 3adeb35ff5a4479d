//! Finds out why a tunnel does not work: `vpnd check FILE --online` before it is started, `vpnd doctor NAME` while it
//! runs. Each fault is named with its cause and with what mends it. What is not known for certain is no fault.

mod call;
mod clock;
mod device;
pub(crate) mod finding;
mod line;
mod names;
mod nftables;
mod place;
mod port;
mod routes;
mod ruleset;
mod running;
mod size;
mod sysctls;

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use nix::unistd::Uid;
use serde::Serialize;
use thiserror::Error;
use vpnd_tun::Mode;

use crate::ask::{self, AskError, socket};
use crate::config::{self, Config, Loaded};
use crate::control::Ask;
use crate::exit::Exit;
use crate::floor::FloorFile;
use crate::forward;
use crate::keys::Keys;
use crate::reload::usual_file;
use crate::status::Status;
use crate::terminal;

use call::{Caller, Outcome};
use finding::{Check, Examination, Page};
use line::{Heard, Line};
use nftables::Traffic;
use place::{Assigned, Place, Target, addresses, fixed_port};
use ruleset::Flow;
use running::Seen;

/// Options of `doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorOptions {
    /// The tunnel, or the path of its control socket
    pub(crate) name: String,
    /// Its configuration [default: /etc/vpnd/NAME.toml]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Prints one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Why nothing was examined.
#[derive(Debug, Error)]
pub(crate) enum DoctorError {
    /// A privilege is missing.
    #[error("only root sees firewall, ports and keys: run this as root")]
    NotRoot,
    /// A daemon has device and port.
    #[error(
        "{0} runs: `vpnd doctor {0}` examines a running tunnel, `check --online` one that is not started yet"
    )]
    Runs(String),
}

impl DoctorError {
    /// The exit code of `vpnd`.
    pub(crate) const fn exit(&self) -> Exit {
        match self {
            Self::NotRoot => Exit::Permission,
            Self::Runs(_) => Exit::Failure,
        }
    }
}

/// How long drops are watched in a tunnel that works, ...
const GLANCE: Duration = Duration::from_secs(1);
/// ... and how long in one that does not: it calls the peer every five seconds.
const LOOK: Duration = Duration::from_secs(6);

/// The object that `doctor --json` prints; keys may be added to it, but are never renamed.
#[derive(Serialize)]
struct Diagnosis<'a> {
    schema: u32,
    name: &'a str,
    state: &'a str,
    ok: bool,
    #[serde(flatten)]
    found: &'a Examination,
}

/// Examines a running tunnel, and prints what is found.
pub(crate) fn run(options: &DoctorOptions) -> anyhow::Result<ExitCode> {
    only_root()?;
    let path = socket(&options.name);
    let status = ask_status(&path)?;
    let file = options.config.clone().unwrap_or_else(|| usual_file(&path));
    let Loaded { config, .. } = config::load_for_running(&file)?;
    let found = block_on(while_running(&config, &path, &status))??;
    let name = status.name.as_str();
    if options.json {
        let (state, ok) = (status.state.word(), found.findings.is_empty());
        let diagnosis = Diagnosis { schema: 1, name, state, ok, found: &found };
        let text = terminal::pretty_json(&diagnosis).context("cannot write JSON")?;
        terminal::print(format_args!("{text}\n"))?;
    } else {
        terminal::print(Page(name, &found))?;
    }
    Ok(found.exit().into())
}

/// Examines a tunnel that is not started yet.
///
/// # Errors
///
/// If it runs, or a privilege is missing.
pub(crate) fn online(config: &Config, keys: Keys) -> anyhow::Result<Examination> {
    only_root()?;
    if ask_status(&config.service.control).is_ok() {
        return Err(DoctorError::Runs(config.name.clone()).into());
    }
    block_on(before_start(config, keys))?
}

fn only_root() -> Result<(), DoctorError> {
    if Uid::effective().is_root() { Ok(()) } else { Err(DoctorError::NotRoot) }
}

fn ask_status(path: &Path) -> Result<Status, AskError> {
    let answer = ask::ask(path, &Ask::new("status"))?;
    serde_json::from_value(answer).map_err(|error| ask::shape(path, error))
}

/// On this thread: it changes its network namespace.
fn block_on<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(work))
}

async fn before_start(config: &Config, keys: Keys) -> anyhow::Result<Examination> {
    let place = Place::of(config)?;
    let mut found = Examination::default();
    found.findings.extend(place.inside.within(|| device::before_start(config))?);
    found.findings.extend(place.outside.within(|| port::before_start(config, &place.egress))?);
    let is_fixed = fixed_port(config).is_some();
    let traffic = Traffic { port: fixed_port(config), is_fixed, flow: calls(config) };
    let device = config.interface.name.as_deref();
    let targets = host(config, &place, Host { traffic, device, current: None }, &mut found).await?;
    reach(config, &place, keys, &targets, &mut found)?;
    let name = config.name.as_str();
    sizes(config, &place, config.interface.mtu, &targets, name, &mut found)?;
    Ok(found)
}

/// What arrives at a fixed port are calls of the peer too.
fn calls(config: &Config) -> Flow {
    if fixed_port(config).is_some() { Flow::New } else { Flow::Answer }
}

async fn while_running(
    config: &Config,
    path: &Path,
    status: &Status,
) -> anyhow::Result<Examination> {
    let place = Place::of(config)?;
    let mut found = Examination::default();
    let works = status.state.works();
    running::state(status, &config.name, &mut found);
    found.notes.extend(running::sandbox(config, status));
    let seen = place.inside.within(Seen::here)??;
    found.findings.extend(running::device(config, status, &seen).await);
    // What works shows that the firewall lets answers in.
    let flow = if works { Flow::Answer } else { calls(config) };
    let is_fixed = fixed_port(config).is_some();
    let traffic = Traffic { port: Some(status.device.listen_port), is_fixed, flow };
    let current = status.peer.endpoint.as_deref().and_then(|endpoint| endpoint.parse().ok());
    let device = Some(status.device.name.as_str());
    let targets = host(config, &place, Host { traffic, device, current }, &mut found).await?;
    watch(&place, path, status, &targets, &mut found)?;
    // One that follows the path has no MTU to compare.
    let pinned = config.interface.mtu.map(|_| status.device.mtu);
    let used = targets.iter().find(|target| Some(target.to) == current);
    let used = used.filter(|_| works).map_or(targets.as_slice(), std::slice::from_ref);
    sizes(config, &place, pinned, used, &config.name, &mut found)?;
    Ok(found)
}

/// What is known of the tunnel when the host is examined.
struct Host<'a> {
    traffic: Traffic,
    /// The tunnel's device, if there is one.
    device: Option<&'a str>,
    /// The peer's address in use.
    current: Option<SocketAddr>,
}

/// Examines the host: names, routes, firewall, forwarding, clock.
async fn host(
    config: &Config,
    place: &Place,
    Host { traffic, device, current }: Host<'_>,
    found: &mut Examination,
) -> anyhow::Result<Vec<Target>> {
    let clock = vpnd_tunnel::clock::now().wall;
    let floor = FloorFile::of(&config.service.state_dir, &config.name);
    found.findings.extend(clock::findings(&floor, clock));
    let (resolved, unresolved) = names::resolve(config, &place.outside);
    found.findings.extend(unresolved);
    let all: Vec<_> = current.into_iter().chain(resolved).collect();
    let targets = place.targets(config, traffic.port.unwrap_or(0), &all).await?;
    let outside = place.outside.within(addresses)?;
    routes(place, &targets, device, &outside, found).await;
    match place.outside.within(nftables::rules)? {
        Ok(rules) => {
            let (findings, notes) = nftables::findings(&rules, traffic, &targets);
            found.findings.extend(findings);
            found.notes.extend(notes);
        }
        Err(note) => found.notes.push(note),
    }
    let forwarding = |addresses: &[Assigned]| sysctls::forwarding(config, &targets, addresses);
    let (findings, notes) = place.inside.within(|| forwarding(&addresses()))?;
    found.findings.extend(findings);
    found.notes.extend(notes);
    found.notes.extend(forward::problems(config).iter().map(config::Problem::sentence));
    Ok(targets)
}

/// The routes to the peer. While one of its addresses has a good route, the others are worth a note.
async fn routes(
    place: &Place,
    targets: &[Target],
    device: Option<&str>,
    addresses: &[Assigned],
    found: &mut Examination,
) {
    let mut bad = Vec::new();
    for target in targets {
        bad.extend(routes::finding(place, target, device, addresses).await);
    }
    if bad.len() < targets.len() {
        found.notes.extend(bad.into_iter().map(|finding| finding.cause));
    } else {
        found.findings.extend(bad);
    }
}

/// Calls the peer at each of its addresses, until it answers.
fn reach(
    config: &Config,
    place: &Place,
    keys: Keys,
    targets: &[Target],
    found: &mut Examination,
) -> anyhow::Result<()> {
    let Some(mut caller) = Caller::new(config, keys) else { return Ok(()) };
    if config.peer.endpoints.is_empty() {
        let note = "the peer was not called, because it has no endpoint here: it calls us";
        found.notes.push(note.into());
        return Ok(());
    }
    if found.has(&[Check::Port]) {
        found.notes.push("the peer was not called, because the port is not free".into());
        return Ok(());
    }
    let before = place.outside.within(sysctls::dropped_by_reverse_path)?;
    let mut failures: Vec<(&Target, Outcome)> = Vec::new();
    for target in targets.iter().filter(|target| target.payload.is_ok()) {
        let called = place.outside.within(|| caller.call(config, target, &place.egress))?;
        match called {
            Ok(Outcome::Answered) => {
                found.notes.extend(
                    failures.iter().map(|(target, outcome)| in_vain(target, outcome, &caller)),
                );
                return Ok(());
            }
            Ok(outcome) => failures.push((target, outcome)),
            Err(error) => found.notes.push(format!("the peer was not called: {error}")),
        }
    }
    let after = place.outside.within(sysctls::dropped_by_reverse_path)?;
    unanswered(place, (after > before).then_some(targets), &failures, &caller, found)
}

/// A call that was not answered, while another one was.
fn in_vain(target: &Target, outcome: &Outcome, caller: &Caller) -> String {
    call::finding(target, outcome, caller.key()).map(|finding| finding.cause).unwrap_or_default()
}

/// Judges calls of which none was answered. Silence that a fault of this host explains is no fault of its own.
fn unanswered(
    place: &Place,
    filtered: Option<&[Target]>,
    failures: &[(&Target, Outcome)],
    caller: &Caller,
    found: &mut Examination,
) -> anyhow::Result<()> {
    let outside = place.outside.within(addresses)?;
    let strict = |target| place.outside.within(|| sysctls::reverse_path(target, &outside));
    for target in filtered.unwrap_or_default() {
        found.findings.extend(strict(target)?);
    }
    let explained = found.has(&[Check::Firewall, Check::Route, Check::ReversePath]);
    for (target, outcome) in failures {
        let is_silence = matches!(outcome, Outcome::Silent | Outcome::Refused(_));
        match call::finding(target, outcome, caller.key()) {
            Some(_) if explained && is_silence => found.notes.push(format!(
                "the peer at {} was called in vain, which the above explains: mend that and check again",
                target.to
            )),
            finding => found.findings.extend(finding),
        }
    }
    Ok(())
}

/// Whether full packets fit, for a device of IP packets with this MTU. Frames are cut and joined by the tunnel.
fn sizes(
    config: &Config,
    place: &Place,
    mtu: Option<u16>,
    targets: &[Target],
    name: &str,
    found: &mut Examination,
) -> anyhow::Result<()> {
    let Some(mtu) = mtu.filter(|_| config.interface.mode == Mode::Tun) else { return Ok(()) };
    let size = |target| place.outside.within(|| size::finding(config, target, mtu, name));
    for target in targets {
        found.findings.extend(size(target)?);
    }
    Ok(())
}

/// Watches the tunnel for some time: drops, the filter of source addresses, and whether anybody listens.
fn watch(
    place: &Place,
    path: &Path,
    status: &Status,
    targets: &[Target],
    found: &mut Examination,
) -> anyhow::Result<()> {
    let works = status.state.works();
    let before = place.outside.within(sysctls::dropped_by_reverse_path)?;
    let begun = Instant::now();
    if !works {
        let closed = targets.iter().filter(|target| target.payload.is_ok());
        for target in closed {
            let listens = place.outside.within(|| nobody_listens(target))?;
            found.findings.extend(listens.then(|| call::closed(target)));
        }
    }
    let whole = if works || status.state.word() == "idle" { GLANCE } else { LOOK };
    std::thread::sleep(whole.saturating_sub(begun.elapsed()));
    // A daemon that has ended meanwhile drops nothing more.
    if let Ok(later) = ask_status(path) {
        found.findings.extend(running::drops(&status.drops, &later.drops));
    }
    let after = place.outside.within(sysctls::dropped_by_reverse_path)?;
    if !works && after > before {
        let outside = place.outside.within(addresses)?;
        for target in targets {
            let strict = place.outside.within(|| sysctls::reverse_path(target, &outside))?;
            found.findings.extend(strict);
        }
    }
    Ok(())
}

/// Whether the peer's host answers a byte with ICMP port unreachable. A tunnel drops it.
fn nobody_listens(target: &Target) -> bool {
    const PATIENCE: Duration = Duration::from_millis(500);
    let Ok(line) = Line::open(target, 0, &target.egress) else { return false };
    if line.send(&[0]).is_err() {
        return false;
    }
    let heard = line.hear(Instant::now() + PATIENCE, &mut [0; 64]);
    matches!(heard, Heard::Error(error) if error.kind() == std::io::ErrorKind::ConnectionRefused)
}
