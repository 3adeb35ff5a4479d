//! A service manager in the style of systemd, as far as vpnd uses it: it keeps descriptors that a service has sent to
//! `NOTIFY_SOCKET`, and hands them to the service's next process by `LISTEN_FDS`, the last stored one first.

use std::fs::{self, Permissions};
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::Result;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::Host;

/// The socket of a service, and the descriptors that came by it.
#[derive(Debug)]
struct Store {
    socket: UnixDatagram,
    /// With the names that the service gave them, in the order in which they came.
    kept: Vec<(String, OwnedFd)>,
}

/// The manager of one service.
#[derive(Debug)]
pub struct Manager {
    path: String,
    store: Arc<Mutex<Store>>,
}

impl Manager {
    /// A manager with an empty store, for a service on `host`.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn new(host: &Host) -> Result<Self> {
        let path = host.directory().join("notify");
        let _none = fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path)?;
        // The service runs as another user.
        for (path, mode) in [(path.as_path(), 0o666), (host.directory(), 0o711)] {
            fs::set_permissions(path, Permissions::from_mode(mode))?;
        }
        socket.set_nonblocking(true)?;
        let arrives = socket.try_clone()?;
        let store = Arc::new(Mutex::new(Store { socket, kept: Vec::new() }));
        let manager = Self { path: path.display().to_string(), store };
        let store = Arc::clone(&manager.store);
        // It ends with the process.
        thread::spawn(move || while is_readable(&arrives) && up_to_date(&store).is_ok() {});
        Ok(manager)
    }

    /// The names of the descriptors that it keeps.
    ///
    /// # Errors
    /// When a message is none.
    pub fn kept(&self) -> Result<Vec<String>> {
        Ok(up_to_date(&self.store)?.kept.iter().map(|(name, _)| name.clone()).collect())
    }

    /// Makes `command` a process of the service, which gets what is kept.
    ///
    /// # Errors
    /// When a descriptor cannot be copied.
    pub fn manages(&self, command: &mut Command) -> Result<()> {
        const FIRST: RawFd = 3;
        let store = up_to_date(&self.store)?;
        let names: Vec<_> = store.kept.iter().rev().map(|(name, _)| name.as_str()).collect();
        let copies = store.kept.iter().rev().map(|(_, kept)| high(kept));
        let copies: Vec<OwnedFd> = copies.collect::<Result<_>>()?;
        command
            .env("NOTIFY_SOCKET", &self.path)
            .env("LISTEN_FDS", names.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"));
        let place = move || {
            for (to, copy) in (FIRST..).zip(&copies) {
                // SAFETY: the new process has not begun, so that nothing in it owns a descriptor by these numbers.
                unsafe { libc::dup2(copy.as_raw_fd(), to) };
            }
            Ok(())
        };
        // SAFETY: between fork and exec, only `dup2` is called.
        unsafe { command.pre_exec(place) };
        Ok(())
    }
}

/// A copy whose number is none of those that a process gets from its manager.
fn high(descriptor: &OwnedFd) -> Result<OwnedFd> {
    const HIGH: RawFd = 200;
    let copy = fcntl(descriptor, FcntlArg::F_DUPFD_CLOEXEC(HIGH))?;
    // SAFETY: the kernel has just made this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// The store after all that the service has sent: like systemd, which starts the next process after it has read what the one
/// before has said.
fn up_to_date(store: &Mutex<Store>) -> Result<MutexGuard<'_, Store>> {
    let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
    while store.receive()? {}
    Ok(store)
}

fn is_readable(socket: &UnixDatagram) -> bool {
    let mut asked = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    poll(&mut asked, PollTimeout::NONE).is_ok()
}

/// Whether both are the same open file: that is kept once.
fn is_same(one: &OwnedFd, other: &OwnedFd) -> bool {
    const FILE: i32 = 0;
    let own = std::process::id();
    // SAFETY: `kcmp` takes five numbers.
    let order = unsafe {
        libc::syscall(libc::SYS_kcmp, own, own, FILE, one.as_raw_fd(), other.as_raw_fd())
    };
    order == 0
}

impl Store {
    /// Receives one message, if there is one, and keeps or closes descriptors.
    fn receive(&mut self) -> Result<bool> {
        let Some((text, descriptors)) = message(&self.socket)? else { return Ok(false) };
        let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("stored");
        if text.contains("FDSTOREREMOVE=1") {
            self.kept.retain(|(kept, _)| kept != name);
        } else if text.contains("FDSTORE=1") {
            for descriptor in descriptors {
                if !self.kept.iter().any(|(_, kept)| is_same(kept, &descriptor)) {
                    self.kept.push((name.to_owned(), descriptor));
                }
            }
        }
        Ok(true)
    }
}

/// The text of a message, and the descriptors that came with it.
fn message(socket: &UnixDatagram) -> Result<Option<(String, Vec<OwnedFd>)>> {
    let mut text = [0; 4096];
    let mut room = nix::cmsg_space!([RawFd; 16]);
    let (len, descriptors) = {
        let mut parts = [IoSliceMut::new(&mut text)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut room), flags) {
            Err(Errno::EAGAIN) => return Ok(None),
            message => message?,
        };
        let mut descriptors = Vec::new();
        for one in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(some) = one {
                // SAFETY: the kernel has just given these descriptors to this process.
                descriptors.extend(some.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        (message.bytes, descriptors)
    };
    Ok(Some((String::from_utf8_lossy(&text[..len]).into_owned(), descriptors)))
}
