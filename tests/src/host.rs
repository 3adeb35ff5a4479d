//! A host: an anonymous network namespace with a `/run` of its own, in which commands, threads
//! and sockets live.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use crate::{Process, eventually, sys};

/// The settings of every namespace: addresses that work at once, no unsolicited packets, and answers whatever
/// the reverse path.
const SYSCTLS: [(&str, &str); 7] = [
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/all/accept_ra", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/default/router_solicitations", "0"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
];

/// The two namespaces; the kernel removes them with the last descriptor and the last process.
#[derive(Debug)]
pub(crate) struct Namespaces {
    pub(crate) network: File,
    pub(crate) mounts: File,
}

/// A host of the laboratory.
#[derive(Debug, Clone)]
pub struct Host {
    name: String,
    directory: PathBuf,
    namespaces: Arc<Namespaces>,
}

impl Host {
    pub(crate) fn new(name: &str, directory: &Path) -> Result<Self> {
        let namespaces = thread::spawn(make_namespaces)
            .join()
            .map_err(|_panic| anyhow!("making the namespaces of {name} panicked"))?
            .with_context(|| format!("cannot make the namespaces of {name}; is this root?"))?;
        let host = Self {
            name: name.to_owned(),
            directory: directory.to_owned(),
            namespaces: Arc::new(namespaces),
        };
        for (key, value) in SYSCTLS {
            host.sysctl(key, value)?;
        }
        host.choose_congestion_control()?;
        host.run("ip link set lo up")?;
        Ok(host)
    }

    /// A connection that begins with a pacing algorithm such as bbr is paced to its end, by a timer for each
    /// packet, even if it later changes to cubic. If a namespace may not choose cubic, it may choose reno,
    /// which does not pace either.
    fn choose_congestion_control(&self) -> Result<()> {
        let key = "ipv4/tcp_congestion_control";
        self.sysctl(key, "cubic").or_else(|_refused| self.sysctl(key, "reno"))
    }

    /// Its name in the scenario.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory of this host's keys, configurations and logs.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A command that will run inside. It dies with the thread that starts it, unless it is
    /// started through [`Host::spawn`].
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        sys::enter_before_exec(&mut command, Arc::clone(&self.namespaces));
        command.stdin(Stdio::null()).env("NO_COLOR", "1");
        command
    }

    /// Runs one line (words split at spaces, no shell) and returns what it printed.
    ///
    /// # Errors
    /// If it cannot be started or fails; with its standard error.
    pub fn run(&self, line: &str) -> Result<String> {
        self.run_with_input(line, "")
    }

    /// Runs one line with `input` on its standard input.
    ///
    /// # Errors
    /// As [`Host::run`].
    pub fn run_with_input(&self, line: &str, input: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().context("an empty command line")?);
        let output = sys::output(command.args(words), input)
            .with_context(|| format!("{}: cannot run `{line}`", self.name))?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!("{}: `{line}` failed: {}: {}", self.name, output.status, stderr.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// As [`Host::run`], but with a time limit.
    ///
    /// # Errors
    /// As [`Host::run`], and if it has not ended after `limit`: it is then killed.
    pub fn run_within(&self, line: &str, limit: Duration) -> Result<String> {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().context("an empty command line")?);
        let output = sys::output_within(command.args(words), limit)
            .with_context(|| format!("{}: cannot run `{line}`", self.name))?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let said = if stderr.trim().is_empty() { stdout.trim() } else { stderr.trim() };
            bail!("{}: `{line}` failed: {}: {said}", self.name, output.status);
        }
        Ok(stdout)
    }

    /// Starts a command made by [`Host::command`]; its output goes to `NAME.log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, name: &str, command: Command) -> Result<Process> {
        let log = self.directory.join(format!("{name}.log"));
        Process::start(command, &log).with_context(|| format!("{}: cannot start {name}", self.name))
    }

    /// Starts a command made by [`Host::command`], with this output.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn_writing_to(&self, name: &str, command: Command, to: &OwnedFd) -> Result<Process> {
        let log = self.directory.join(format!("{name}.log"));
        let output = to.try_clone()?;
        Process::start_writing_to(command, &log, output)
            .with_context(|| format!("{}: cannot start {name}", self.name))
    }

    /// Calls `work` on a thread inside; sockets it opens stay inside even if they are moved.
    ///
    /// # Errors
    /// The error of `work`.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let inside = || {
            setns(&self.namespaces.network, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("cannot enter {}", self.name))?;
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join())
            .map_err(|_panic| anyhow!("work inside {} panicked", self.name))?
    }

    /// Sets a value below `/proc/sys/net`.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.enter(|| {
            fs::write(Path::new("/proc/sys/net").join(key), value)
                .with_context(|| format!("cannot set net/{key} to {value}"))
        })
    }

    /// Every device, address, route and rule, as text that can be compared; after duplicate address detection
    /// has finished.
    ///
    /// # Errors
    /// If `ip` fails, or an address stays tentative for too long.
    pub fn network_state(&self) -> Result<String> {
        eventually("no address is tentative", Duration::from_secs(5), || {
            let tentative = self.run("ip -o -6 address show tentative")?;
            ensure!(tentative.is_empty(), "{tentative}");
            Ok(())
        })?;
        let devices = self.run("ip -o link")?;
        let addresses = self.run("ip -o address")?;
        let mut state = vec![devices.lines().map(device_and_mtu).collect(), addresses];
        for family in ["-4", "-6"] {
            state.push(self.run(&format!("ip {family} route show table all"))?);
            state.push(self.run(&format!("ip {family} rule"))?);
        }
        Ok(state.join("---\n"))
    }

    /// Packets lost because a device queue was full: the kernel's loss on a machine with too few processors,
    /// not that of a program under test.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn queue_drops(&self) -> Result<u64> {
        let links: serde_json::Value = serde_json::from_str(&self.run("ip -json -stats link")?)?;
        let links = links.as_array().context("ip prints no list")?;
        let drops = links.iter().filter_map(|link| link.pointer("/stats64/tx/dropped")?.as_u64());
        Ok(drops.sum())
    }

    /// A path by which another process may open this network namespace.
    pub fn network_path(&self) -> String {
        use std::os::fd::AsRawFd;
        format!("/proc/{}/fd/{}", std::process::id(), self.namespaces.network.as_raw_fd())
    }
}

/// The part of a line of `ip -o link` that must be unchanged after the device was up and is down again.
fn device_and_mtu(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let after = |name| words.iter().skip_while(|word| **word != name).nth(1).unwrap_or(&"-");
    let name = words.get(1).unwrap_or(&"-");
    format!("{name} mtu {} qlen {} master {}\n", after("mtu"), after("qlen"), after("master"))
}

/// Runs on a thread of its own, so that only this thread changes its namespaces.
fn make_namespaces() -> Result<Namespaces> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    // All implementations put their control sockets below /run: with one for each host, two tunnels of the
    // same name do not collide.
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))?;
    fs::create_dir("/run/wireguard")?;
    Ok(Namespaces {
        network: File::open("/proc/thread-self/ns/net")?,
        mounts: File::open("/proc/thread-self/ns/mnt")?,
    })
}
