//! Confines the threads of a running tunnel: which files they can open (Landlock, [`files`]) and which system
//! calls they can make (seccomp, [`calls`]). Both belong to a thread and to the threads that it starts, so each
//! thread confines itself before it begins its work.
//!
//! A thread that is confined cannot widen its rights, and a thread that it starts has no more. Therefore the
//! threads that need other files than the main thread, for names or the disk, are started before the main thread
//! confines itself, and the data threads after it.

mod calls;
mod files;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::slice;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::{Config, Confinement};
use crate::privilege::{self, PrivilegeError};
use crate::worker::Worker;

pub(crate) use files::Files;
use files::Right;

/// The kinds of threads, each with its own rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The control plane.
    Main,
    /// Moves packets.
    Data,
    /// Looks up names and users, and reads a configuration again.
    Lookups,
    /// Writes the timestamp's high-water mark.
    Disk,
}

/// Why a thread cannot be confined.
#[derive(Debug, Error)]
pub(crate) enum SandboxError {
    /// The kernel refused the filter of system calls.
    #[error(
        "confining a thread to its system calls: {0}; [service] sandbox = \"off\" does without"
    )]
    Calls(#[from] seccompiler::Error),
    /// The kernel refused the rules for files.
    #[error("confining a thread to its files: {0}; [service] sandbox = \"off\" does without")]
    Files(#[from] landlock::RulesetError),
    /// The kernel refused to take a capability away.
    #[error(transparent)]
    Privilege(#[from] PrivilegeError),
}

impl From<SandboxError> for io::Error {
    fn from(error: SandboxError) -> Self {
        Self::other(error)
    }
}

/// What each thread of one tunnel may do.
#[derive(Clone, Debug)]
pub(crate) struct Sandbox(Arc<Bounds>);

#[derive(Debug)]
struct Bounds {
    confinement: Confinement,
    state: PathBuf,
    /// The directories of sockets, which are removed at the end.
    sockets: Vec<PathBuf>,
    /// The directories of the configuration and of its keys, for a reload by signal.
    configuration: Vec<PathBuf>,
}

/// The rights that a thread has given up, for `vpnd status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Confined {
    /// `kill` or `errno`: what happens at a forbidden system call; `off`, and `unsupported` on a processor for
    /// which there is no list.
    pub(crate) system_calls: String,
    /// Which part of the file rules the kernel enforces.
    pub(crate) files: Files,
    /// Whether memory is kept out of swap.
    #[serde(default)]
    pub(crate) memory_locked: bool,
}

impl Confined {
    fn new(system_calls: &str, files: Files, memory_locked: bool) -> Self {
        Self { system_calls: system_calls.into(), files, memory_locked }
    }
}

impl fmt::Display for Confined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory = if self.memory_locked { "locked" } else { "not locked" };
        write!(f, "system calls {}, files {}, memory {memory}", self.system_calls, self.files)
    }
}

impl Sandbox {
    /// The rights that the threads of this tunnel need.
    pub(crate) fn of(config: &Config) -> Self {
        let within = |path: &Path| path.parent().unwrap_or_else(|| Path::new("/")).to_owned();
        let keys = config.key_files().into_iter().map(Path::to_owned);
        let files: Vec<_> = [config.file.clone()].into_iter().chain(keys).collect();
        let mut configuration = files::behind(&files);
        configuration.extend(files.iter().map(|file| within(file)));
        configuration.sort();
        configuration.dedup();
        Self(Arc::new(Bounds {
            confinement: config.service.sandbox,
            state: config.service.state_dir.clone(),
            sockets: config.socket_directories().into_iter().map(|(_, at)| at.to_owned()).collect(),
            configuration,
        }))
    }

    /// A sandbox that forbids nothing.
    #[cfg(test)]
    pub(crate) fn off() -> Self {
        Self(Arc::new(Bounds {
            confinement: Confinement::Off,
            state: PathBuf::new(),
            sockets: Vec::new(),
            configuration: Vec::new(),
        }))
    }

    /// Starts a thread that confines itself, and has the priority of other programs.
    ///
    /// # Errors
    ///
    /// If the kernel cannot start a thread, or confine it.
    pub(crate) fn worker(&self, name: &str, role: Role) -> io::Result<Worker> {
        let sandbox = self.clone();
        Worker::start(name, move || {
            privilege::yield_to_others();
            Ok(sandbox.confine(role).map(drop)?)
        })
    }

    /// Confines the calling thread, and every thread that it starts from now on, for good. `no_new_privs` must be
    /// set.
    ///
    /// # Errors
    ///
    /// If the kernel refuses the rules for files, or with `sandbox = "kill"` the filter of system calls. A kernel
    /// without Landlock is no error.
    pub(crate) fn confine(&self, role: Role) -> Result<Confined, SandboxError> {
        let Bounds { confinement, state, sockets, configuration } = &*self.0;
        // Afterwards this thread may not read what tells it.
        let memory_locked = privilege::memory_is_locked();
        if *confinement == Confinement::Off {
            return Ok(Confined::new("off", Files::Off, memory_locked));
        }
        if role != Role::Main {
            // Netlink, whose descriptors all threads share, asks for the capability of the thread that sends. Without
            // it, this thread cannot change routes through them.
            privilege::drop_capabilities()?;
        }
        let files = match role {
            Role::Main => files::confine(&[(Right::Remove, sockets)])?,
            // Started by the main thread, whose rights it has. It opens nothing, as its calls say.
            Role::Data => Files::Inherited,
            Role::Lookups => {
                files::confine(&[(Right::Read, &files::lookups()), (Right::Read, configuration)])?
            }
            Role::Disk => files::confine(&[(Right::Change, slice::from_ref(state))])?,
        };
        let system_calls = match calls::confine(role, *confinement) {
            Ok(true) => confinement.word(),
            Ok(false) => "unsupported",
            // A container or a service manager may forbid it. Its own filter is in place then.
            Err(error) if *confinement == Confinement::Errno => {
                tracing::warn!("cannot confine a thread to its system calls: {error}");
                "unsupported"
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Confined::new(system_calls, files, memory_locked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::child::in_child;
    use std::fs;
    use std::net::UdpSocket;
    use std::process::Command;

    use nix::sys::signal::Signal;
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    fn sandbox(confinement: Confinement, state: &Path, control: &Path) -> Sandbox {
        Sandbox(Arc::new(Bounds {
            confinement,
            state: state.to_owned(),
            sockets: vec![control.to_owned()],
            configuration: Vec::new(),
        }))
    }

    fn is_refused<T>(result: io::Result<T>, errors: &[i32]) -> bool {
        result.err().and_then(|error| error.raw_os_error()).is_some_and(|it| errors.contains(&it))
    }

    #[test]
    fn the_main_thread_removes_its_sockets_and_starts_no_program() {
        in_child(
            "sandbox::tests::the_main_thread_removes_its_sockets_and_starts_no_program",
            &[],
            || {
                let (state, control) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
                let socket = control.path().join("a.sock");
                fs::write(&socket, "").unwrap();
                let confined = sandbox(Confinement::Errno, state.path(), control.path());
                let confined = confined.confine(Role::Main).unwrap();
                assert_eq!(confined.system_calls, "errno");
                fs::remove_file(socket).unwrap();
                assert!(std::thread::spawn(|| 7).join().is_ok(), "threads are started as before");
                UdpSocket::bind("127.0.0.1:0").unwrap();
                assert!(is_refused(Command::new("true").status(), &[libc::EPERM, libc::ENOSYS]));
                // SAFETY: the call takes flags.
                let alone = unsafe { libc::unshare(libc::CLONE_NEWNET) };
                assert_eq!(
                    (alone, io::Error::last_os_error().raw_os_error()),
                    (-1, Some(libc::EPERM))
                );
                if confined.files == Files::Restricted {
                    let written =
                        [state.path(), control.path()].map(|at| fs::write(at.join("b"), "x"));
                    let read = fs::read("/etc/passwd").map(drop);
                    let all = written.into_iter().chain([read]);
                    all.for_each(|one| assert!(is_refused(one, &[libc::EACCES])));
                }
            },
        );
    }

    #[test]
    fn the_thread_of_the_disk_changes_the_state_alone() {
        in_child("sandbox::tests::the_thread_of_the_disk_changes_the_state_alone", &[], || {
            let (state, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let confined = sandbox(Confinement::Errno, state.path(), other.path());
            let confined = confined.confine(Role::Disk).unwrap();
            let floor = state.path().join("a.floor");
            fs::write(state.path().join("a.new"), "x").unwrap();
            fs::rename(state.path().join("a.new"), &floor).unwrap();
            assert_eq!(fs::read(floor).unwrap(), b"x");
            if confined.files == Files::Restricted {
                assert!(is_refused(fs::write(other.path().join("b"), "x"), &[libc::EACCES]));
            }
            assert!(is_refused(UdpSocket::bind("127.0.0.1:0"), &[libc::EPERM]));
        });
    }

    #[test]
    fn a_data_thread_opens_no_file_and_no_socket() {
        in_child("sandbox::tests::a_data_thread_opens_no_file_and_no_socket", &[], || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            sandbox(Confinement::Errno, Path::new("/"), Path::new("/"))
                .confine(Role::Data)
                .unwrap();
            assert!(is_refused(fs::read("/etc/passwd"), &[libc::EACCES]));
            assert!(is_refused(UdpSocket::bind("127.0.0.1:0"), &[libc::EPERM]));
            assert!(std::thread::Builder::new().spawn(|| ()).is_err());
            // What it has open it may use, and it may allocate.
            assert!(
                is_refused(socket.recv(&mut [0]), &[libc::EPERM]),
                "recvfrom is not on its list"
            );
            assert_eq!(vec![1_u8; 1 << 22].len(), 1 << 22);
        });
    }

    #[test]
    fn lookups_read_settings_and_write_nothing() {
        in_child("sandbox::tests::lookups_read_settings_and_write_nothing", &[], || {
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("new");
            let nowhere = Path::new("/nonexistent");
            let confined =
                sandbox(Confinement::Errno, nowhere, nowhere).confine(Role::Lookups).unwrap();
            assert!(fs::read("/etc/passwd").is_ok());
            assert!(caps::read(None, caps::CapSet::Permitted).unwrap().is_empty());
            assert!(std::net::ToSocketAddrs::to_socket_addrs("localhost:9").is_ok());
            assert!(fs::write(file, "x").is_err() || confined.files != Files::Restricted);
        });
    }

    #[test]
    fn a_forbidden_call_ends_the_process_if_asked() {
        in_child("sandbox::tests::a_forbidden_call_ends_the_process_if_asked", &[], || {
            // SAFETY: the process has one thread besides the runner's, which holds no lock that is needed here.
            match unsafe { fork() }.unwrap() {
                ForkResult::Child => {
                    let root = Path::new("/");
                    sandbox(Confinement::Kill, root, root).confine(Role::Data).unwrap();
                    let _socket = UdpSocket::bind("127.0.0.1:0");
                    std::process::exit(0);
                }
                ForkResult::Parent { child } => {
                    let end = waitpid(child, None).unwrap();
                    assert!(matches!(end, WaitStatus::Signaled(_, Signal::SIGSYS, _)), "{end:?}");
                }
            }
        });
    }

    #[test]
    fn off_forbids_nothing() {
        in_child("sandbox::tests::off_forbids_nothing", &[], || {
            let confined = Sandbox::off().confine(Role::Data).unwrap();
            assert_eq!(confined.to_string(), "system calls off, files off, memory not locked");
            assert!(fs::read("/etc/passwd").is_ok());
        });
    }
}
