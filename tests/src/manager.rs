//! A service manager in the style of systemd, as far as vpnd uses it: it keeps descriptors that a service has sent to
//! `NOTIFY_SOCKET`, and hands them to the service's next process by `LISTEN_FDS`, the last stored one first.

use std::fs::{self, Permissions};
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::Result;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::Host;

/// Descriptors with the names that the service gave them, in the order in which they came.
type Store = Arc<Mutex<Vec<(String, OwnedFd)>>>;

/// The manager of one service.
#[derive(Debug)]
pub struct Manager {
    socket: String,
    store: Store,
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
        let store = Store::default();
        let kept = Arc::clone(&store);
        // It ends with the process.
        thread::spawn(move || while receive(&socket, &kept).is_ok() {});
        Ok(Self { socket: path.display().to_string(), store })
    }

    /// The names of the descriptors that it keeps.
    pub fn kept(&self) -> Vec<String> {
        lock(&self.store).iter().map(|(name, _)| name.clone()).collect()
    }

    /// Makes `command` a process of the service, which gets what is kept.
    ///
    /// # Errors
    /// When a descriptor cannot be copied.
    pub fn manages(&self, command: &mut Command) -> Result<()> {
        const FIRST: RawFd = 3;
        let store = lock(&self.store);
        let names: Vec<_> = store.iter().rev().map(|(name, _)| name.as_str()).collect();
        let copies = store.iter().rev().map(|(_, kept)| high(kept));
        let copies: Vec<OwnedFd> = copies.collect::<Result<_>>()?;
        command
            .env("NOTIFY_SOCKET", &self.socket)
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

fn lock(store: &Store) -> MutexGuard<'_, Vec<(String, OwnedFd)>> {
    store.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Receives one message, and keeps or closes descriptors.
fn receive(socket: &UnixDatagram, store: &Store) -> Result<()> {
    let mut text = [0; 4096];
    let mut room = nix::cmsg_space!([RawFd; 16]);
    let (len, descriptors) = {
        let mut parts = [IoSliceMut::new(&mut text)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut room), flags)?;
        let mut descriptors = Vec::new();
        for one in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(some) = one {
                // SAFETY: the kernel has just given these descriptors to this process.
                descriptors.extend(some.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        (message.bytes, descriptors)
    };
    let text = String::from_utf8_lossy(&text[..len]).into_owned();
    let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("stored");
    let mut store = lock(store);
    if text.contains("FDSTOREREMOVE=1") {
        store.retain(|(kept, _)| kept != name);
    } else if text.contains("FDSTORE=1") {
        for descriptor in descriptors {
            if !store.iter().any(|(_, kept)| is_same(kept, &descriptor)) {
                store.push((name.to_owned(), descriptor));
            }
        }
    }
    Ok(())
}
