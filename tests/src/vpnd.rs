//! The daemon under test: its files, start, status and end.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::site::Site;
use crate::status::Status;
use crate::{Host, Manager, Process, binaries, eventually};

/// The time that a start may take on a busy machine.
const READY: Duration = Duration::from_secs(10);

/// What its `[service]` table says, unless the site says it.
#[derive(Debug, Clone, Copy)]
pub struct Service {
    /// The log level.
    pub log_level: &'static str,
    /// Nothing stands for the default, which builds before the sandbox have too.
    pub sandbox: Option<&'static str>,
}

impl Service {
    /// As users have it.
    pub const PLAIN: Self = Self { log_level: "info", sandbox: None };
    /// A log that explains a failure; and a system call that a thread must not make ends the test.
    pub const TESTED: Self = Self { log_level: "debug", sandbox: Some("kill") };
}

/// Its command and environment.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The binary.
    pub program: PathBuf,
    /// Of its `[service]` table.
    pub service: Service,
    /// Added to its environment.
    pub environment: Vec<(&'static str, String)>,
    /// The destination of its log, if not a file.
    pub log_to: Option<Arc<OwnedFd>>,
    /// Starts it as a service.
    pub manager: Option<Arc<Manager>>,
}

impl Launch {
    /// Any binary as its users start it, with the default log.
    pub fn plain(program: &Path) -> Self {
        let program = program.to_owned();
        Self {
            program,
            service: Service::PLAIN,
            environment: Vec::new(),
            log_to: None,
            manager: None,
        }
    }

    /// The binary under test, with a log that is printed with a failure.
    ///
    /// # Errors
    /// When there is none.
    pub fn to_test() -> Result<Self> {
        Ok(Self { service: Service::TESTED, ..Self::plain(binaries::vpnd()?) })
    }

    fn command(&self, host: &Host) -> Result<Command> {
        let mut command = match &self.manager {
            // Only the process itself knows its number.
            Some(_) => host.command(Path::new("/bin/sh")),
            None => host.command(&self.program),
        };
        if let Some(manager) = &self.manager {
            command.args(["-c", "export LISTEN_PID=$$; exec \"$0\" \"$@\""]).arg(&self.program);
            manager.manages(&mut command)?;
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        Ok(command)
    }
}

/// A running vpnd.
#[derive(Debug)]
pub struct Vpnd {
    host: Host,
    launch: Launch,
    name: String,
    config: PathBuf,
    process: Process,
}

impl Vpnd {
    /// Writes its files, starts it, and waits until it answers `vpnd status`.
    ///
    /// # Errors
    /// If it ends, or does not answer in time.
    pub fn start(host: &Host, site: &Site) -> Result<Self> {
        Self::start_as(&Launch::to_test()?, host, site)
    }

    /// As [`Vpnd::start`], with another binary, log or environment.
    ///
    /// # Errors
    /// As [`Vpnd::start`].
    pub fn start_as(launch: &Launch, host: &Host, site: &Site) -> Result<Self> {
        let config = write(host, site, launch.service)?;
        Self::run(host, launch.clone(), &site.name, config)
    }

    /// Starts the tunnel `name` with the file `config`, and waits until it answers.
    ///
    /// # Errors
    /// As [`Vpnd::start`].
    pub fn start_file(host: &Host, name: &str, config: PathBuf) -> Result<Self> {
        Self::run(host, Launch::to_test()?, name, config)
    }

    /// Starts it again with the same files, after it ended.
    ///
    /// # Errors
    /// As [`Vpnd::start`].
    pub fn restart(mut self) -> Result<Self> {
        self.process.kill()?;
        Self::run(&self.host, self.launch.clone(), &self.name, self.config.clone())
    }

    /// As its service manager does: announces a restart, ends it, and starts it again with the same files.
    ///
    /// # Errors
    /// As [`Vpnd::start`], and if it does not end in order.
    pub fn restart_service(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGUSR1)?;
        let status = self.process.terminate()?;
        ensure!(status.success(), "{status}: {}", self.process.log());
        *self = Self::run(&self.host, self.launch.clone(), &self.name, self.config.clone())?;
        Ok(())
    }

    /// Starts another process that continues with its tunnel, and waits until it answers.
    ///
    /// # Errors
    /// As [`Vpnd::start`], and if this one does not end in order.
    pub fn take_over(&mut self) -> Result<()> {
        let mut command = self.launch.command(&self.host)?;
        command.arg("--config").arg(&self.config).arg("--take-over");
        let next = self.host.spawn(&format!("vpnd-{}", self.name), command)?;
        let status = self.process.wait(READY)?;
        ensure!(status.success(), "{status}: {}", self.process.log());
        self.process = next;
        self.wait_until_ready()
    }

    /// Another program takes its tunnel over.
    ///
    /// # Errors
    /// As [`Vpnd::take_over`].
    pub fn upgrade(&mut self, program: &Path) -> Result<()> {
        self.launch.program = program.to_owned();
        self.take_over()
    }

    /// Writes other files and makes it reload them.
    ///
    /// # Errors
    /// If it refuses; with its error.
    pub fn reload(&self, site: &Site) -> Result<()> {
        let config = write(&self.host, site, self.launch.service)?;
        let config = config.to_str().context("a path of our own making")?;
        self.ask(&["reload", &self.name, "--config", config])
    }

    /// Its configuration, as it was last written.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn text(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.config)?)
    }

    /// Writes another configuration and runs `vpnd reload` with more `options`: its exit code and what it printed.
    ///
    /// # Errors
    /// When the file cannot be written, or vpnd cannot be run.
    pub fn reload_text(&self, text: &str, options: &[&str]) -> Result<(i32, String)> {
        fs::write(&self.config, text)?;
        let config = self.config.to_str().context("a path of our own making")?;
        let words = ["reload", &self.name, "--config", config];
        run(&self.host, &words.into_iter().chain(options.iter().copied()).collect::<Vec<_>>())
    }

    /// Makes it change to its next key, or remove the previous one.
    ///
    /// # Errors
    /// If it refuses; with its error.
    pub fn rotate(&self, finish: bool) -> Result<()> {
        let finish = finish.then_some("--finish");
        let words: Vec<&str> = ["rotate", self.name.as_str()].into_iter().chain(finish).collect();
        self.ask(&words)
    }

    fn ask(&self, words: &[&str]) -> Result<()> {
        let (code, printed) = run(&self.host, words)?;
        ensure!(code == 0, "{words:?} ends with {code}: {printed}");
        Ok(())
    }

    /// Its status.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn status(&self) -> Result<Status> {
        Status::ask(&self.host, &self.launch.program, &self.name)
    }

    /// Waits until its status is as wanted.
    ///
    /// # Errors
    /// When it never is; with the last status.
    pub fn wait_for(
        &self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&Status) -> bool,
    ) -> Result<Status> {
        eventually(what, limit, || {
            let status = self.status()?;
            ensure!(wanted(&status), "it says {status}");
            Ok(status)
        })
    }

    /// Waits until its log has a line with these words.
    ///
    /// # Errors
    /// When none comes.
    pub fn wait_for_log(&self, words: &str, limit: Duration) -> Result<()> {
        eventually(&format!("the log says {words:?}"), limit, || {
            self.process.log().contains(words).then_some(()).context("it does not")
        })
    }

    /// Its configuration's file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The program, for signals or its output.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Only the program, which continues to run.
    pub fn into_process(self) -> Process {
        self.process
    }

    /// Its log, and memory.
    pub fn as_process(&self) -> &Process {
        &self.process
    }

    fn run(host: &Host, launch: Launch, name: &str, config: PathBuf) -> Result<Self> {
        let mut command = launch.command(host)?;
        command.arg("--config").arg(&config);
        let log = format!("vpnd-{name}");
        let process = match &launch.log_to {
            Some(to) => host.spawn_writing_to(&log, command, to)?,
            None => host.spawn(&log, command)?,
        };
        let (host, name) = (host.clone(), name.to_owned());
        let mut vpnd = Self { host, launch, name, config, process };
        vpnd.wait_until_ready()?;
        Ok(vpnd)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        eventually("vpnd is ready", READY, || {
            let ended = self.process.ended()?;
            ensure!(ended.is_none(), "it ended: {}", self.process.log());
            self.status().map(drop)
        })
    }
}

/// The path of the binary.
///
/// # Errors
/// When there is none.
pub fn program() -> Result<&'static Path> {
    binaries::vpnd()
}

/// Whether the binary contains its C library, and so asks for no loader.
///
/// # Errors
///
/// When it cannot be read.
pub fn is_static() -> Result<bool> {
    const LOADER: &[u8] = b"/ld-linux";
    let program = fs::read(program()?)?;
    let head = program.get(..4096).context("a program of a few bytes")?;
    Ok(!head.windows(LOADER.len()).any(|bytes| bytes == LOADER))
}

/// Runs `vpnd` with arguments to its end: its exit code and everything it printed.
///
/// # Errors
/// When it cannot be run, or was killed.
pub fn run(host: &Host, arguments: &[&str]) -> Result<(i32, String)> {
    let output = host.command(binaries::vpnd()?).args(arguments).output()?;
    let code = output.status.code().with_context(|| format!("killed: {}", output.status))?;
    let printed = [output.stdout, output.stderr].concat();
    Ok((code, String::from_utf8_lossy(&printed).into_owned()))
}

/// Writes configuration and keys beside each other, and returns the configuration's path.
///
/// # Errors
/// When the host's directory cannot be written.
pub fn write_files(host: &Host, site: &Site) -> Result<PathBuf> {
    write(host, site, Service::TESTED)
}

fn write(host: &Host, site: &Site, service: Service) -> Result<PathBuf> {
    let directory = host.directory();
    site.keys.private.write(&directory.join(format!("{}.key", site.name)))?;
    if let Some(key) = &site.remote.preshared {
        key.write(&directory.join(format!("{}.psk", site.name)))?;
    }
    if let Some(key) = &site.remote.next_preshared {
        key.write(&directory.join(format!("{}.next.psk", site.name)))?;
    }
    if let Some(keys) = &site.next_keys {
        keys.private.write(&directory.join(format!("{}.next.key", site.name)))?;
    }
    let state = directory.join("state");
    fs::create_dir_all(&state)?;
    let path = directory.join(format!("{}.toml", site.name));
    fs::write(&path, config(site, &state, service))?;
    Ok(path)
}

/// The configuration of an end, as a user would write it.
pub fn config(site: &Site, state: &Path, service: Service) -> String {
    let (name, remote) = (&site.name, &site.remote);
    let mut lines = vec![
        "[interface]".to_owned(),
        format!("name = {:?}", site.device),
        format!("address = {:?}", site.addresses),
        format!("private_key_file = \"{name}.key\""),
    ];
    lines.extend((site.mtu > 0).then(|| format!("mtu = {}", site.mtu)));
    lines.extend(site.listen.map(|port| format!("listen = {port}")));
    lines.extend(site.interface.iter().cloned());
    let next = site.next_keys.iter();
    lines.extend(next.map(|_| format!("next_private_key_file = \"{name}.next.key\"")));
    lines.push(format!("[peer]\nprotocol = {:?}", remote.protocol));
    lines.extend(remote.lines.iter().cloned());
    lines.push(format!("public_key = {:?}", remote.public.as_str()));
    lines.push(format!("allowed_ips = {:?}", remote.allowed_ips));
    lines.extend(remote.preshared.iter().map(|_| format!("preshared_key_file = \"{name}.psk\"")));
    let next = remote.next_preshared.iter();
    lines.extend(next.map(|_| format!("next_preshared_key_file = \"{name}.next.psk\"")));
    let next = remote.next_public.iter();
    lines.extend(next.map(|key| format!("next_public_key = {:?}", key.as_str())));
    lines.extend(remote.endpoint.iter().map(|endpoint| format!("endpoint = [{endpoint:?}]")));
    lines.push(format!("keepalive = {:?}", keepalive(remote.keepalive)));
    lines.extend(remote.roam.iter().map(|roam| format!("roam = {roam:?}")));
    lines.extend(site.routes.iter().map(|network| format!("[[route]]\nto = {network:?}")));
    lines.push(format!("[service]\nstate_dir = {state:?}\nlog_level = {:?}", service.log_level));
    let says = site.service.iter().any(|line| line.starts_with("sandbox"));
    let sandbox = service.sandbox.filter(|_| !says);
    lines.extend(sandbox.map(|answer| format!("sandbox = {answer:?}")));
    lines.extend(site.service.iter().cloned());
    lines.extend(site.tables.iter().cloned());
    lines.join("\n") + "\n"
}

fn keepalive(seconds: Option<u16>) -> String {
    seconds.map_or_else(|| "off".to_owned(), |seconds| format!("{seconds}s"))
}
