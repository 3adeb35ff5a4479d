//! Runs one command: in a separate process group, with nothing inherited but the environment, and with a time
//! limit.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::output::Lines;
use super::plan::Argv;
use super::talk::{End, Report, Sender};
use crate::program;

/// The highest number of a signal (`_NSIG`).
const LAST_SIGNAL: libc::c_int = 64;
/// How long a command may take to end after SIGTERM; then it is killed.
const GRACE: Duration = Duration::from_secs(1);

/// Runs the command until it ends or `limit` is over, and sends its output to `sender`. Dropping the future
/// kills the command.
///
/// # Errors
///
/// If the receiver of `sender` is gone; then the command is killed.
pub(super) async fn execute(
    argv: &Argv,
    environment: impl IntoIterator<Item = (String, String)>,
    limit: Duration,
    sender: &mut Sender,
) -> io::Result<End> {
    let mut running = match Running::start(argv, environment) {
        Ok(running) => running,
        Err(error) => return Ok(End::NotStarted(error.to_string())),
    };
    let end = match timeout(limit, running.end(sender)).await {
        Ok(status) => End::from(status?),
        Err(_elapsed) => {
            running.stop(sender).await?;
            End::TooLong(limit)
        }
    };
    running.pass_rest(sender).await?;
    Ok(end)
}

/// A command, with all of its children that are still in its group.
struct Running {
    child: Child,
    group: Pid,
    /// Whether the command ended without being killed; then its background processes are not killed.
    ended: bool,
    output: Option<pipe::Receiver>,
    lines: Lines,
}

impl Running {
    fn start(
        argv: &Argv,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> io::Result<Self> {
        let (output, input) = io::pipe()?;
        let output = pipe::Receiver::from_owned_fd(OwnedFd::from(output))?;
        let environment: Vec<_> = environment.into_iter().collect();
        let mut command = std::process::Command::new(argv.file()?);
        command.arg0(argv.words().next().unwrap_or_default()).args(argv.words().skip(1));
        command.env_clear().envs(environment.iter().cloned()).current_dir("/");
        command.stdin(Stdio::null()).stdout(input.try_clone()?).stderr(input);
        reset_inherited(&mut command);
        execute_descriptor(&mut command, Image::of(argv, &environment)?);
        // The command value contains our ends of the pipe; they are closed when it is dropped here.
        let child = Command::from(command).spawn()?;
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        let group = Pid::from_raw(id.ok_or_else(|| io::Error::from(Errno::ESRCH))?);
        Ok(Self { child, group, ended: false, output: Some(output), lines: Lines::default() })
    }

    /// Waits until the command ends, and passes its output on until then.
    async fn end(&mut self, sender: &mut Sender) -> io::Result<ExitStatus> {
        let mut buffer = [0; 4096];
        loop {
            tokio::select! {
                status = self.child.wait() => {
                    self.ended = true;
                    return status;
                }
                read = read(&mut self.output, &mut buffer) => match read {
                    Ok(len @ 1..) => pass(self.lines.take(&buffer[..len]), sender).await?,
                    // The command has closed its output, but may still run.
                    _ => self.output = None,
                },
            }
        }
    }

    /// Asks the whole group to end, and then kills it.
    async fn stop(&mut self, sender: &mut Sender) -> io::Result<()> {
        self.signal(Signal::SIGTERM);
        let obeyed = timeout(GRACE, self.end(sender)).await.is_ok();
        // The command's children may still run after it has ended.
        self.signal(Signal::SIGKILL);
        if !obeyed {
            // A process that is stuck in the kernel cannot be killed.
            let _stuck = timeout(GRACE, self.end(sender)).await;
        }
        Ok(())
    }

    /// Passes on the rest of the pipe's contents. Does not wait for background processes with the pipe open.
    async fn pass_rest(&mut self, sender: &mut Sender) -> io::Result<()> {
        let mut buffer = [0; 4096];
        while let Some(output) = &self.output {
            match output.try_read(&mut buffer) {
                Ok(len @ 1..) => pass(self.lines.take(&buffer[..len]), sender).await?,
                _ => break,
            }
        }
        pass(self.lines.rest(), sender).await
    }

    /// Sends a signal to the group; does nothing if the group is gone.
    fn signal(&self, signal: Signal) {
        let _gone = killpg(self.group, signal);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            self.signal(Signal::SIGKILL);
        }
    }
}

async fn read(output: &mut Option<pipe::Receiver>, buffer: &mut [u8]) -> io::Result<usize> {
    match output {
        Some(output) => output.read(buffer).await,
        None => std::future::pending().await,
    }
}

async fn pass(lines: Vec<String>, sender: &mut Sender) -> io::Result<()> {
    for line in lines {
        sender.send(&Report::Line(line)).await?;
    }
    Ok(())
}

/// Resets the properties that a new program inherits, as if the system had just started it: no signal is
/// blocked or ignored. Also makes the kernel kill the program when the runner ends.
fn reset_inherited(command: &mut std::process::Command) {
    let anew = || {
        set_pdeathsig(Signal::SIGKILL)?;
        for signal in 1..=LAST_SIGNAL {
            // SAFETY: no handler is installed. The kernel and the C library refuse to change some signals.
            let _fixed = unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        SigSet::empty().thread_set_mask()?;
        Ok(())
    };
    command.process_group(0);
    // SAFETY: the closure makes system calls and uses no memory except its own stack: it allocates no memory
    // and takes no lock between fork and exec.
    unsafe { command.pre_exec(anew) };
}

/// Executes the file that was opened and checked, and not another file that may have its name by then. Only a
/// script is executed by its name, because its interpreter needs the name (and no other user can change the
/// file). The kernel reports a script with ENOENT, because its descriptor is closed on exec, and a script
/// without an interpreter with ENOEXEC.
fn execute_descriptor(command: &mut std::process::Command, image: Image) {
    let executed = move || match image.execute() {
        Errno::ENOENT | Errno::ENOEXEC => Ok(()),
        error => Err(error.into()),
    };
    // SAFETY: the closure makes one system call, on memory that was prepared before the fork.
    unsafe { command.pre_exec(executed) };
}

/// An opened program, with its arguments and environment.
struct Image {
    file: OwnedFd,
    words: Strings,
    environment: Strings,
}

impl Image {
    fn of(argv: &Argv, environment: &[(String, String)]) -> io::Result<Self> {
        let file = program::open(argv.file()?).map_err(io::Error::other)?;
        let variables = environment.iter().map(|(name, value)| format!("{name}={value}"));
        Ok(Self {
            file,
            words: Strings::new(argv.words().map(str::to_owned))?,
            environment: Strings::new(variables)?,
        })
    }

    /// Executes the program. Returns only if the kernel refuses.
    fn execute(&self) -> Errno {
        // SAFETY: both arrays end with a null pointer, and own the strings that they point to.
        unsafe {
            libc::syscall(
                libc::SYS_execveat,
                self.file.as_raw_fd(),
                c"".as_ptr(),
                self.words.pointers.as_ptr(),
                self.environment.pointers.as_ptr(),
                libc::AT_EMPTY_PATH,
            );
        }
        Errno::last()
    }
}

/// Strings as the kernel expects them: an array of pointers that ends with a null pointer.
struct Strings {
    pointers: Vec<*const libc::c_char>,
    _pointed_at: Vec<CString>,
}

// SAFETY: the pointers lead to the heap memory of the strings beside them, which do not move or change.
unsafe impl Send for Strings {}
// SAFETY: as above; it is immutable.
unsafe impl Sync for Strings {}

impl Strings {
    fn new(strings: impl Iterator<Item = String>) -> io::Result<Self> {
        let strings = strings.map(CString::new).collect::<Result<Vec<_>, _>>()?;
        let pointers = strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]);
        Ok(Self { pointers: pointers.collect(), _pointed_at: strings })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hooks::talk::{Receiver, split};
    use std::time::Instant;
    use tokio::net::UnixStream;

    const LONG: Duration = Duration::from_secs(60);

    fn ends() -> (Receiver, Sender) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let ((receiver, _), (_, sender)) = (split(ours), split(theirs));
        (receiver, sender)
    }

    /// Runs `sh -c script`; returns how it ended, and its output.
    async fn run(script: &str, limit: Duration) -> (End, Vec<String>) {
        let (mut receiver, mut sender) = ends();
        let environment = [("PATH", "/usr/bin:/bin"), ("A", "b c")];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let argv = Argv::new(["sh", "-c", script]).unwrap();
        let end = execute(&argv, environment, limit, &mut sender).await.unwrap();
        drop(sender);
        let mut said = Vec::new();
        while let Some(report) = receiver.next().await.unwrap() {
            let Report::Line(line) = report else { panic!("{report:?}") };
            said.push(line);
        }
        (end, said)
    }

    #[tokio::test]
    async fn a_command_runs_in_a_clean_place() {
        let (end, said) = run("env; pwd; echo bad >&2; cat; exit 3", LONG).await;
        assert_eq!(end, End::Exited(3));
        for line in ["A=b c", "PATH=/usr/bin:/bin", "/", "bad"] {
            assert!(said.iter().any(|said| said == line), "{line}: {said:?}");
        }
        assert!(!said.iter().any(|line| line.starts_with("CARGO")), "{said:?}");
        let (_, said) = run("grep -hE 'Sig(Blk|Ign)' /proc/self/status", LONG).await;
        // The C library reserves two signals.
        let masks =
            said.iter().map(|line| u64::from_str_radix(&line[8..], 16).unwrap() & !(3 << 31));
        assert_eq!(masks.collect::<Vec<_>>(), [0, 0], "{said:?}");
    }

    #[tokio::test]
    async fn what_hangs_is_killed_with_its_children() {
        let begin = Instant::now();
        let script = "trap '' TERM; sh -c 'trap \"\" TERM; echo $$; sleep 1000; sleep 1000'";
        let (end, said) = run(script, Duration::from_millis(200)).await;
        assert_eq!(end, End::TooLong(Duration::from_millis(200)));
        assert!(begin.elapsed() < LONG);
        let child: i32 = said[0].parse().unwrap();
        while !is_dead(child) {
            assert!(begin.elapsed() < LONG, "{child} lives");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn who_is_asked_to_end_may_say_a_last_word() {
        let script = "trap 'echo last; exit' TERM; sleep 1000 & wait";
        let (end, said) = run(script, Duration::from_millis(200)).await;
        assert_eq!(end, End::TooLong(Duration::from_millis(200)));
        assert_eq!(said, ["last"]);
    }

    #[tokio::test]
    async fn what_is_dropped_is_killed() {
        let (mut receiver, mut sender) = ends();
        let argv = Argv::new(["/bin/sh", "-c", "echo $$; sleep 1000; true"]).unwrap();
        let child = tokio::select! {
            _ = execute(&argv, [], LONG, &mut sender) => panic!("it ended"),
            said = receiver.next() => match said.unwrap() {
                Some(Report::Line(line)) => line.parse().unwrap(),
                other => panic!("{other:?}"),
            },
        };
        let begin = Instant::now();
        while !is_dead(child) {
            assert!(begin.elapsed() < LONG, "{child} lives");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn nobody_waits_for_what_stays_in_the_background() {
        let begin = Instant::now();
        let (end, said) = run("sleep 7 & echo $!", LONG).await;
        assert_eq!(end, End::Exited(0));
        assert!(begin.elapsed() < Duration::from_secs(7));
        assert!(!is_dead(said[0].parse().unwrap()));
    }

    #[tokio::test]
    async fn what_is_not_there_does_not_start() {
        let (_heard, mut sender) = ends();
        let argv = Argv::new(["/nowhere/hook"]).unwrap();
        let end = execute(&argv, [], LONG, &mut sender).await.unwrap();
        assert_eq!(end.to_string(), "could not be started: /nowhere/hook is not there");
    }

    #[tokio::test]
    async fn what_a_link_led_to_is_run_by_the_name_of_the_link() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("called").to_str().unwrap().to_owned();
        std::os::unix::fs::symlink("/bin/sh", &link).unwrap();
        let argv = Argv::new([&link, "-c", "echo $0"]).unwrap();
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink("/bin/false", &link).unwrap();
        let (mut receiver, mut sender) = ends();
        let end = execute(&argv, [], LONG, &mut sender).await.unwrap();
        assert_eq!(end, End::Exited(0));
        assert_eq!(receiver.next().await.unwrap(), Some(Report::Line(link)));
    }

    /// Whether the process has ended, even if it was not reaped yet.
    fn is_dead(id: i32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z'))
    }
}
