//! A program that runs beside the test and never outlives it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{sys, within};

/// The unit of time in `/proc`: `USER_HZ`, 100 on every architecture of Rust.
pub const TICK: Duration = Duration::from_millis(10);

/// A child with its log; it is killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; standard output and error are appended to `log`.
    pub(crate) fn start(command: Command, log: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        Self::start_writing_to(command, log, file.into())
    }

    /// Starts `command`; standard output and error go elsewhere than to `log`.
    pub(crate) fn start_writing_to(
        mut command: Command,
        log: &Path,
        output: OwnedFd,
    ) -> Result<Self> {
        command.stdout(output.try_clone()?).stderr(output);
        let program = command.get_program().to_owned();
        let child = sys::spawn(command).with_context(|| format!("exec {}", program.display()))?;
        living().insert(child.id());
        Ok(Self { child, log: log.to_owned() })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// All its output so far, including that of earlier runs with the same log.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let id = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(id, signal).with_context(|| format!("cannot send {signal} to {id}"))
    }

    /// Its exit status, if it has ended.
    ///
    /// # Errors
    /// When the kernel does not know the child.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let ended = within(limit, || self.child.try_wait().ok().flatten());
        let Some(status) = ended else {
            bail!("{} still runs after {limit:?}:\n{}", self.log.display(), self.log());
        };
        Ok(status)
    }

    /// Asks it to end, and waits.
    ///
    /// # Errors
    /// When it does not end in ten seconds.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(Duration::from_secs(10))
    }

    /// Ends it as Ctrl-C does, which vpnd never takes for the first half of a restart, and waits.
    ///
    /// # Errors
    /// When it does not end in ten seconds.
    pub fn interrupt(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGINT)?;
        self.wait(Duration::from_secs(10))
    }

    /// Kills it, as a power cut would.
    ///
    /// # Errors
    /// When the kernel does not know the child.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Memory resident now, in bytes.
    ///
    /// # Errors
    /// When it is gone.
    pub fn resident(&self) -> Result<u64> {
        self.memory("VmRSS:")
    }

    /// The most memory that was ever resident, in bytes.
    ///
    /// # Errors
    /// When it is gone.
    pub fn peak_resident(&self) -> Result<u64> {
        self.memory("VmHWM:")
    }

    /// Processor time of all its threads, including ended ones, in kernel and user mode.
    ///
    /// # Errors
    /// When it is gone.
    pub fn processor_time(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.id()))?;
        let ticks = ticks(&stat).with_context(|| format!("no times in {stat:?}"))?;
        Ok(TICK * ticks)
    }

    fn memory(&self, field: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kib = line.and_then(|rest| rest.split_whitespace().next()).context(field.to_owned())?;
        Ok(kib.parse::<u64>()? * 1024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        let _ = self.kill();
        living().remove(&self.child.id());
    }
}

/// Ends all programs that still run, for callers that exit without unwinding: a program that has changed its
/// user since its start is not killed automatically with this process.
pub fn kill_all() {
    for id in living().iter().filter_map(|id| i32::try_from(*id).ok()) {
        // It may have ended by itself.
        let _ = kill(Pid::from_raw(id), Signal::SIGKILL);
    }
}

fn living() -> MutexGuard<'static, BTreeSet<u32>> {
    static LIVING: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());
    LIVING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// User and system time in `/proc/PID/stat`: fields 14 and 15, counted after the name, which may contain any
/// character.
fn ticks(stat: &str) -> Option<u32> {
    let (_, behind) = stat.rsplit_once(')')?;
    let mut times = behind.split_whitespace().skip(11).map(str::parse);
    let (user, system): (u32, u32) = (times.next()?.ok()?, times.next()?.ok()?);
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_counted_behind_the_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 31 11 5 6 20 0 4 0 100 1000 2 0";
        assert_eq!(ticks(stat), Some(42));
        assert_eq!(ticks("7 (short) S 1"), None);
    }
}
