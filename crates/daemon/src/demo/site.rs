//! One side of the tunnel: the files that `pair` writes for it, and its daemon.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, mkdtemp};
use vpnd_tun::{Adopt, Device, Mode, OpenError, Options, Owner};

use super::common::{DemoError, INNER, NAMES, OUTER_A, OUTER_B};
use super::netns::Namespace;
use crate::config::{Endpoint, Protocol};
use crate::pair::{self, Link, Plan, Routed, Site, inner_network};

/// Opens a device like those that the daemons will open, so that a missing requirement is reported early.
///
/// # Errors
///
/// If the device cannot be opened.
pub(super) fn try_device() -> Result<Device, OpenError> {
    let (adopt, owner) = (Adopt::Never, Owner::default());
    let mode = Mode::Tun;
    vpnd_tun::open(&Options { name: None, mode, offload: true, queues: 1, adopt, owner })
}

/// The files of both sites, in a directory that is removed when this value is dropped.
#[derive(Debug)]
pub(super) struct Files {
    directory: PathBuf,
}

impl Files {
    /// Writes the files of `pair`, and adds the paths of state and control socket for this demonstration.
    ///
    /// # Errors
    ///
    /// If the files cannot be written.
    pub(super) fn write() -> anyhow::Result<Self> {
        let template = std::env::temp_dir().join("vpnd-demo-XXXXXX");
        let directory = mkdtemp(&template)
            .with_context(|| format!("cannot make a directory {}", template.display()))?;
        let files = Self { directory };
        pair::write(&plan().map_err(anyhow::Error::msg)?, &files.directory)?;
        NAMES.iter().try_for_each(|name| files.place_service(name))?;
        Ok(files)
    }

    /// The directory of the files.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Starts the daemon of a site.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub(super) fn start(&self, name: &str, namespace: &Namespace) -> anyhow::Result<Daemon> {
        let directory = self.directory.join(name);
        let log = File::create(directory.join(LOG)).context("cannot write a log")?;
        let program = std::env::current_exe().context("cannot tell where this program is")?;
        let mut command = namespace.command(&program);
        command.args(["run", "--config"]).arg(directory.join(format!("{name}.toml")));
        command.env_remove("NOTIFY_SOCKET").env_remove("CREDENTIALS_DIRECTORY");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().with_context(|| format!("cannot start {program:?}"))?;
        Ok(Daemon { name: name.to_owned(), program, directory, child })
    }

    /// Removes the files, and reports an error if that fails.
    ///
    /// # Errors
    ///
    /// If a file could not be removed.
    pub(super) fn remove(self) -> anyhow::Result<()> {
        fs::remove_dir_all(&self.directory)
            .with_context(|| format!("cannot remove {}", self.directory.display()))
    }

    /// Puts state and control socket beside the configuration, to which relative paths refer.
    fn place_service(&self, name: &str) -> anyhow::Result<()> {
        let path = self.directory.join(name).join(format!("{name}.toml"));
        let mut config = OpenOptions::new().append(true).open(&path)?;
        let service =
            format!("\n[service]\nstate_dir = \".\"\ncontrol = \"{CONTROL}\"\nuser = \"\"\n");
        config.write_all(service.as_bytes()).with_context(|| format!("cannot write {path:?}"))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // This fails if the files were already removed.
        let _gone = fs::remove_dir_all(&self.directory);
    }
}

/// A running daemon; dropping it kills it.
#[derive(Debug)]
pub(super) struct Daemon {
    name: String,
    program: PathBuf,
    directory: PathBuf,
    child: Child,
}

impl Daemon {
    /// The name of the daemon's site.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The daemon's process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The daemon's control socket.
    pub(super) fn control(&self) -> PathBuf {
        self.directory.join(CONTROL)
    }

    /// The output of `vpnd status`, and whether it reports success.
    ///
    /// # Errors
    ///
    /// If `vpnd status` cannot be run.
    pub(super) fn status(&self) -> anyhow::Result<(bool, String)> {
        let mut command = Command::new(&self.program);
        command.arg("status").arg(self.control()).stdin(Stdio::null());
        let output = command.output().context("cannot run `vpnd status`")?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
    }

    /// Waits until the daemon reports that the tunnel is up.
    ///
    /// # Errors
    ///
    /// If the daemon ends instead, or takes too long.
    pub(super) async fn up(&mut self) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Err(self.ended(status).into());
            }
            let (up, said) = self.status()?;
            if up {
                return Ok(());
            }
            ensure!(start.elapsed() < PATIENCE, "{} is not up:\n{said}{}", self.name, self.log());
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Asks the daemon to stop, and waits until it has ended.
    ///
    /// # Errors
    ///
    /// If the daemon ended before, does not end, or fails.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        let start = Instant::now();
        if let Some(status) = self.child.try_wait()? {
            return Err(self.ended(status).into());
        }
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM)?;
        while start.elapsed() < PATIENCE {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(self.ended(status).into()),
                None => tokio::time::sleep(POLL_INTERVAL).await,
            }
        }
        bail!("{} does not stop:\n{}", self.name, self.log())
    }

    fn ended(&self, status: ExitStatus) -> DemoError {
        DemoError::Ended { name: self.name.clone(), status, log: self.log() }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.join(LOG)).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both calls fail if the daemon has already ended.
        let _killed = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// Two sites that reach each other, and nothing behind them.
fn plan() -> Result<Plan, String> {
    let inner = INNER.map(inner_network).into_iter().collect::<Result<_, _>>()?;
    let routed = Routed { behind: [Vec::new(), Vec::new()], inner, protocol: Protocol::Vpnd };
    let sites = [site(NAMES[0], OUTER_A)?, site(NAMES[1], OUTER_B)?];
    Plan::new(sites, Link::Routed(routed)).map_err(|error| error.to_string())
}

fn site(name: &str, address: IpAddr) -> Result<Site, String> {
    let endpoint = Endpoint { host: address.to_string(), port: PORT };
    Ok(Site { name: name.parse()?, endpoint: Some(endpoint) })
}

/// WireGuard's usual port.
const PORT: u16 = 51820;
const LOG: &str = "log";
const CONTROL: &str = "control.sock";
/// How long a start or a stop may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// The pause between two polls.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
