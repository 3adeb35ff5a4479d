//! `check`: reports what is wrong with a configuration, or summarises it.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use vpnd_device::WhenDown;
use vpnd_tun::Mode;

use crate::ask::socket;
use crate::config::{
    self, Carrier, Config, Finding, Interface, Loaded, Peer, Protocol, Report, Route,
};
use crate::doctor;
use crate::doctor::finding::{Examination, Page};
use crate::exit::Exit;
use crate::hooks::{self, Facts, Plan};
use crate::keys::Keys;
use crate::reload::usual_file;
use crate::terminal::{self, Printable, PrintableLines};
use crate::{firewall, forward, metrics, nameservers};

/// Options of `check`.
#[derive(Debug, Args)]
pub(crate) struct CheckOptions {
    /// The tunnel's configuration, or the tunnel's name for /etc/vpnd/NAME.toml
    #[arg(value_name = "FILE|NAME")]
    pub(crate) file: PathBuf,
    /// Prints one JSON object: what is wrong, or the configuration with every default filled in
    #[arg(long)]
    pub(crate) json: bool,
    /// Examines this host and calls the peer, before the tunnel is started: device, port, firewall, routes, names,
    /// clock, MTU. As root
    #[arg(long)]
    pub(crate) online: bool,
}

/// Reads the configuration and its key files, as `run` would.
pub(crate) fn run(options: &CheckOptions) -> anyhow::Result<ExitCode> {
    if options.online {
        return online(options);
    }
    let loaded = config::load(&file(&options.file)).map(|mut loaded| {
        loaded.warnings = loaded
            .warnings
            .and(forward::problems(&loaded.config))
            .and(firewall::problems(&loaded.config))
            .and(firewall::open_beside(&loaded.config).into_iter().collect())
            .and(metrics::seen_by_others(&loaded.config).into_iter().collect())
            .and(nameservers::problems(&loaded.config))
            .and(forward::not_forwarded(&loaded.config));
        loaded
    });
    match loaded {
        result if options.json => as_json(&result),
        Ok(loaded) => as_text(&loaded),
        Err(report) => Err(report.into()),
    }
}

/// Like [`run`], and examines the host.
fn online(options: &CheckOptions) -> anyhow::Result<ExitCode> {
    let Loaded { config, keys, warnings } = match config::load(&file(&options.file)) {
        Err(report) if options.json => return as_json(&Err(report)),
        loaded => loaded?,
    };
    let public = keys.secret.public();
    let found = doctor::online(&config, keys)?;
    if options.json {
        let object = Outcome::of(&warnings, Some((&config, public.to_string())), Some(&found));
        print_json(&object)?;
    } else {
        if !warnings.is_empty() {
            writeln!(io::stderr(), "{warnings}\n").context("cannot write to standard error")?;
        }
        terminal::print(Page(&config.name, &found))?;
    }
    Ok(found.exit().into())
}

/// The given file if it exists. If not, a word that can be a tunnel's name is one, as for `reload`.
pub(crate) fn file(given: &Path) -> PathBuf {
    let name = given.to_str().filter(|name| !name.contains('/') && !name.ends_with(".toml"));
    match name {
        Some(name) if !is_file(given) => usual_file(&socket(name)),
        _ => given.to_owned(),
    }
}

/// Whether the path can be read as a file; `pair` makes directories with the names of tunnels.
fn is_file(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| !metadata.is_dir())
}

fn as_text(Loaded { config, keys, warnings }: &Loaded) -> anyhow::Result<ExitCode> {
    if !warnings.is_empty() {
        writeln!(io::stderr(), "{warnings}\n").context("cannot write to standard error")?;
    }
    let text = PrintableLines(summary(config, keys));
    terminal::print(format_args!("{text}\n"))?;
    Ok(Exit::Success.into())
}

/// The values that the other side's configuration must agree with.
fn summary(config: &Config, keys: &Keys) -> String {
    let peer = &config.peer;
    let summary = format!(
        "ok        {}\ndevice    {}\nprotocol  {}\nour key   {}\npeer key  {}\nendpoint  {}\naccepts   \
         {}",
        config.name,
        device(config),
        profile(peer),
        keys.secret.public(),
        peer.public_key,
        joined(&peer.endpoints, "unknown until the peer initiates"),
        lets_in(config),
    ) + &config.routes.iter().map(route).collect::<String>();
    summary + &commands(&hooks::plan(config, Facts::expected(config)))
}

/// A line for a route, with what happens to the route while the peer is dead.
fn route(route: &Route) -> String {
    let when_down = match route.when_down {
        WhenDown::Keep => "",
        WhenDown::Remove => ", while the peer is alive",
        WhenDown::Blackhole => ", which drops packets while the peer is dead",
    };
    format!("\nroutes    {}{when_down}", route.to)
}

/// The sources that the peer may use. Frames are filtered by their hardware address, if at all.
fn lets_in(config: &Config) -> String {
    match config.interface.mode {
        Mode::Tun => joined(&config.peer.allowed_ips, "nothing"),
        Mode::Tap => joined(&config.peer.allowed_macs, "frames of every station"),
    }
}

/// A line for each command, with the event at which it runs.
fn commands(plan: &Plan) -> String {
    let all =
        plan.commands.iter().flat_map(|(moment, all)| all.iter().map(move |argv| (moment, argv)));
    all.map(|(moment, argv)| format!("\nruns      {}: {}", moment.word(), Printable(argv)))
        .collect()
}

/// The line about the device. The MTU of a bridge is known only on the tunnel's host, when the tunnel starts.
fn device(config: &Config) -> String {
    let Interface { name, mode, mtu, bridge, carrier, .. } = &config.interface;
    let name = name.as_deref().unwrap_or("named by the kernel");
    let carrier = match carrier {
        Carrier::Peer => ", a carrier only while the peer is alive",
        Carrier::Always if config.peer.keepalive.is_some() => ", always a carrier",
        Carrier::Always => "",
    };
    match (mtu, bridge) {
        (Some(mtu), _) => format!("{name}, mtu {mtu}{carrier}"),
        (None, Some(bridge)) => format!("{name}, with the mtu of bridge {bridge}{carrier}"),
        (None, None) if *mode == Mode::Tun => format!("{name}, its mtu follows the path{carrier}"),
        (None, None) => format!("{name}{carrier}"),
    }
}

fn profile(peer: &Peer) -> String {
    match peer.protocol {
        Protocol::WireGuard => "wireguard".to_owned(),
        Protocol::Vpnd if peer.post_quantum => format!("vpnd, {}, post-quantum", peer.cipher),
        Protocol::Vpnd => format!("vpnd, {}", peer.cipher),
    }
}

fn joined(items: &[impl ToString], none: &str) -> String {
    match items {
        [] => none.to_owned(),
        items => {
            let items = items.iter().map(ToString::to_string).collect::<Vec<_>>();
            Printable(items.join(", ")).to_string()
        }
    }
}

/// The object that `--json` prints; keys may be added to it, but are never renamed.
#[derive(Serialize)]
struct Outcome<'a> {
    schema: u32,
    ok: bool,
    problems: Vec<Finding<'a>>,
    /// The number of problems that are not listed.
    more: usize,
    public_key: Option<String>,
    config: Option<&'a Config>,
    /// With `--online`.
    #[serde(skip_serializing_if = "Option::is_none")]
    online: Option<&'a Examination>,
}

impl<'a> Outcome<'a> {
    fn of(
        report: &'a Report,
        loaded: Option<(&'a Config, String)>,
        online: Option<&'a Examination>,
    ) -> Self {
        let (config, public_key) = loaded.unzip();
        Self {
            schema: 1,
            ok: config.is_some(),
            problems: report.findings().collect(),
            more: report.left_out(),
            public_key,
            config,
            online,
        }
    }
}

fn as_json(result: &Result<Loaded, Report>) -> anyhow::Result<ExitCode> {
    let report = result.as_ref().map_or_else(|report| report, |loaded| &loaded.warnings);
    let loaded = result.as_ref().ok();
    let loaded = loaded.map(|it| (&it.config, it.keys.secret.public().to_string()));
    let outcome = Outcome::of(report, loaded, None);
    print_json(&outcome)?;
    Ok(if outcome.ok { Exit::Success } else { Exit::Config }.into())
}

fn print_json(outcome: &Outcome<'_>) -> anyhow::Result<()> {
    let text = terminal::pretty_json(outcome).context("cannot write JSON")?;
    terminal::print(format_args!("{text}\n"))
}
