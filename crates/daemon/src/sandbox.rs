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
use crate::privilege;
use crate::uapi;
use crate::worker::Worker;

pub(crate) use files::Files;

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
    /// The directory of the control socket, which is removed at the end.
    control: PathBuf,
    /// The directory of the WireGuard socket, likewise.
    uapi: Option<PathBuf>,
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
    fn new(system_calls: &str, files: Files) -> Self {
        Self { system_calls: system_calls.into(), files, memory_locked: false }
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
        let keys = config.key_files().into_iter();
        let mut configuration: Vec<_> =
            [config.file.as_path()].into_iter().chain(keys).map(within).collect();
        configuration.dedup();
        Self(Arc::new(Bounds {
            confinement: config.service.sandbox,
            state: config.service.state_dir.clone(),
            control: within(&config.service.control),
            uapi: config.service.uapi.then(|| uapi::DIRECTORY.into()),
            configuration,
        }))
    }

    /// A sandbox that forbids nothing.
    #[cfg(test)]
    pub(crate) fn off() -> Self {
        Self(Arc::new(Bounds {
            confinement: Confinement::Off,
            state: PathBuf::new(),
            control: PathBuf::new(),
            uapi: None,
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
    /// If the kernel has such a mechanism and refuses. A kernel without it is no error.
    pub(crate) fn confine(&self, role: Role) -> Result<Confined, SandboxError> {
        let Bounds { confinement, state, control, uapi, configuration } = &*self.0;
        if *confinement == Confinement::Off {
            return Ok(Confined::new("off", Files::Off));
        }
        let files = match role {
            Role::Main => {
                let sockets = [control, state].into_iter().chain(uapi).cloned();
                files::confine(&sockets.collect::<Vec<_>>(), &[])?
            }
            // Started by the main thread, whose rights it has. It opens nothing, as its calls say.
            Role::Data => Files::Inherited,
            Role::Lookups => {
                files::confine(&[], &[files::lookups(), configuration.clone()].concat())?
            }
            Role::Disk => files::confine(slice::from_ref(state), &[])?,
        };
        let system_calls = match calls::confine(role, *confinement)? {
            true => confinement.word(),
            false => "unsupported",
        };
        Ok(Confined::new(system_calls, files))
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
            control: control.to_owned(),
            uapi: None,
            configuration: Vec::new(),
        }))
    }

    fn is_refused<T>(result: io::Result<T>, errors: &[i32]) -> bool {
        result.err().and_then(|error| error.raw_os_error()).is_some_and(|it| errors.contains(&it))
    }

    #[test]
    fn the_main_thread_changes_its_directories_and_starts_no_program() {
        in_child(
            "sandbox::tests::the_main_thread_changes_its_directories_and_starts_no_program",
            &[],
            || {
                let (state, control) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
                let socket = control.path().join("a.sock");
                fs::write(&socket, "").unwrap();
                let confined = sandbox(Confinement::Errno, state.path(), control.path());
                let confined = confined.confine(Role::Main).unwrap();
                assert_eq!(confined.system_calls, "errno");
                fs::write(state.path().join("a.floor"), "x").unwrap();
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
                    assert!(is_refused(fs::read("/etc/passwd"), &[libc::EACCES]));
                }
            },
        );
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
