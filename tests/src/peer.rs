//! Independent peers: three WireGuard implementations, run in the foreground inside a host and configured
//! with `wg`, as their users do it.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::link::port;
use crate::site::Site;
use crate::{Host, Process, binaries, eventually};

/// Which implementation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The reference, in Go, as Debian ships it.
    WireguardGo,
    /// Cloudflare's, in Rust.
    Boringtun,
    /// Mullvad's, in Rust.
    Gotatun,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::WireguardGo, Self::Boringtun, Self::Gotatun];

    /// The program, if it is installed.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn program(self) -> Result<PathBuf> {
        match self {
            Self::WireguardGo => binaries::installed("wireguard-go"),
            Self::Boringtun => binaries::cached("boringtun-cli"),
            Self::Gotatun => binaries::cached("gotatun"),
        }
    }

    /// The newest installed program. `tests/setup bench` fetches a newer wireguard-go than the one that
    /// scenarios use.
    ///
    /// # Errors
    /// As [`Kind::program`].
    pub fn newest(self) -> Result<PathBuf> {
        match self {
            Self::WireguardGo => binaries::cached("wireguard-go").or_else(|_| self.program()),
            Self::Boringtun | Self::Gotatun => self.program(),
        }
    }

    fn command(self, host: &Host, device: &str, logs: Logs) -> Result<Command> {
        let program = match logs {
            Logs::Full => self.program()?,
            Logs::Quiet => self.newest()?,
        };
        let mut command = host.command(program);
        match self {
            Self::WireguardGo => command.args(["-f", device]).env("LOG_LEVEL", logs.in_go()),
            Self::Boringtun | Self::Gotatun => {
                command.args(["-f", "--disable-drop-privileges", "-v", logs.in_rust(), device])
            }
        };
        Ok(command)
    }

    /// Its log line after a completed handshake, as initiator or as responder.
    fn finished(self) -> &'static [&'static str] {
        match self {
            Self::WireguardGo => &["Received handshake response", "Sending handshake response"],
            Self::Boringtun => &["New session"],
            Self::Gotatun => &["Received handshake_response", "Received handshake_initiation"],
        }
    }
}

/// How much a peer logs.
#[derive(Debug, Clone, Copy)]
enum Logs {
    /// Every handshake.
    Full,
    /// Errors only.
    Quiet,
}

impl Logs {
    fn in_go(self) -> &'static str {
        match self {
            Self::Full => "verbose",
            Self::Quiet => "error",
        }
    }

    fn in_rust(self) -> &'static str {
        match self {
            Self::Full => "debug",
            Self::Quiet => "error",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WireguardGo => "wireguard-go",
            Self::Boringtun => "boringtun",
            Self::Gotatun => "gotatun",
        })
    }
}

/// A running peer.
#[derive(Debug)]
pub struct Peer {
    kind: Kind,
    host: Host,
    device: String,
    process: Process,
}

impl Peer {
    /// Starts it with its keys, addresses and routes set.
    ///
    /// # Errors
    /// When it is not installed, or does not answer in ten seconds.
    pub fn start(kind: Kind, host: &Host, site: &Site) -> Result<Self> {
        Self::run(kind, host, site, Logs::Full)
    }

    /// As [`Peer::start`], but for measurements: the newest program, which logs only errors.
    ///
    /// # Errors
    /// As [`Peer::start`].
    pub fn start_quiet(kind: Kind, host: &Host, site: &Site) -> Result<Self> {
        Self::run(kind, host, site, Logs::Quiet)
    }

    /// The output of `wg show DEVICE FIELD`.
    ///
    /// # Errors
    /// When the peer does not answer.
    pub fn show(&self, field: &str) -> Result<String> {
        self.host.run(&format!("wg show {} {field}", self.device))
    }

    /// Handshakes in its log, in either role.
    pub fn handshakes(&self) -> usize {
        let log = self.process.log();
        self.kind.finished().iter().map(|words| log.matches(words).count()).sum()
    }

    /// The address at which it expects vpnd.
    ///
    /// # Errors
    /// When the peer does not answer.
    pub fn endpoint(&self) -> Result<String> {
        let line = self.show("endpoints")?;
        Ok(line.split_whitespace().nth(1).context("no peer is configured")?.to_owned())
    }

    /// The program, for signals or its log.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Only the program, which continues to run.
    pub fn into_process(self) -> Process {
        self.process
    }

    fn run(kind: Kind, host: &Host, site: &Site, logs: Logs) -> Result<Self> {
        let command = kind.command(host, &site.device, logs)?;
        let process = host.spawn(&kind.to_string(), command)?;
        let peer = Self { kind, host: host.clone(), device: site.device.clone(), process };
        eventually(&format!("{kind} listens"), Duration::from_secs(30), || {
            peer.show("public-key")
        })?;
        peer.configure(site)?;
        Ok(peer)
    }

    fn configure(&self, site: &Site) -> Result<()> {
        let file = self.host.directory().join("wg.conf");
        fs::write(&file, wg_config(site))?;
        let device = port(&self.host, &self.device);
        self.host.run(&format!("wg setconf {} {}", self.device, file.display()))?;
        let addresses: Vec<&str> = site.addresses.iter().map(String::as_str).collect();
        device.address(&addresses)?;
        device.mtu(site.mtu)?;
        device.up()?;
        for route in &site.routes {
            self.host.run(&format!("ip route add {route} dev {}", self.device))?;
        }
        Ok(())
    }
}

fn wg_config(site: &Site) -> String {
    let remote = &site.remote;
    let mut lines =
        vec!["[Interface]".to_owned(), format!("PrivateKey = {}", site.keys.private.as_str())];
    lines.extend(site.listen.map(|port| format!("ListenPort = {port}")));
    lines.push(format!("[Peer]\nPublicKey = {}", remote.public.as_str()));
    lines.push(format!("AllowedIPs = {}", remote.allowed_ips.join(", ")));
    lines.extend(remote.preshared.as_ref().map(|key| format!("PresharedKey = {}", key.as_str())));
    lines.extend(remote.endpoint.as_ref().map(|endpoint| format!("Endpoint = {endpoint}")));
    lines.extend(remote.keepalive.map(|seconds| format!("PersistentKeepalive = {seconds}")));
    lines.join("\n") + "\n"
}
