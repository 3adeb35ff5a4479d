//! Makes devices to which only their owner can attach.
//!
//! A new device has no owner, and anybody who can open the driver may attach to it (`tun_not_capable` of
//! tun.c). A single-queue device is safe, because the process that makes it has its only queue. A multi-queue
//! device is not: until it has an owner, any process that opens its name gets a queue, which it can keep, and
//! reads a share of the flows. So vpnd makes the device under a name that nobody can guess, sets its owner, and
//! then renames it.
//!
//! The kernel announces the names of new interfaces to every listener. So vpnd then asks the kernel whether
//! another process has attached in the meantime. If so, it deletes the device and makes another one.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;

use crate::link::{self, Link};
use crate::open::{Mode, OpenError, open_driver};
use crate::persist::{Owner, PersistError};
use crate::{clear, ioctl};

/// A device to be made.
pub(crate) struct New<'a> {
    /// Its name; the kernel replaces `%d` in it with a number.
    pub(crate) name: &'a str,
    pub(crate) mode: Mode,
    /// The flags for TUNSETIFF, including the mode.
    pub(crate) flags: i32,
    /// Who may attach. If it names neither a user nor a group, anybody may.
    pub(crate) owner: Owner,
}

/// Why the device could not be made.
pub(crate) enum MakeError {
    /// The driver cannot be opened.
    Driver(OpenError),
    /// An interface of that name exists.
    Taken,
    /// The owner could not be set.
    Owner(PersistError),
    /// Every time the device was made, another process attached to it.
    Contested,
    /// Anything else.
    Kernel(io::Error),
}

impl New<'_> {
    /// Makes the device, and returns its first queue and its name. The device is down.
    pub(crate) fn make(&self) -> Result<(File, String), MakeError> {
        if self.flags & libc::IFF_MULTI_QUEUE == 0 || self.owner == Owner::default() {
            return self.make_named(self.name);
        }
        // This is checked first, so that programs that watch interfaces do not see a device that is deleted
        // again.
        if is_taken(self.name) {
            return Err(MakeError::Taken);
        }
        for _ in 0..ATTEMPTS {
            if let Some(file) = self.make_under_random_name()? {
                return self.rename(file);
            }
        }
        Err(MakeError::Contested)
    }

    /// Makes the device, and never opens an existing one. The kernel checks and creates in one step, so there
    /// is no race.
    fn make_named(&self, name: &str) -> Result<(File, String), MakeError> {
        let file = open_driver(self.name).map_err(MakeError::Driver)?;
        let flags = self.flags | libc::IFF_TUN_EXCL;
        let name = ioctl::attach(file.as_fd(), name, flags).map_err(make_error)?;
        self.owner.set(&file, &name).map_err(MakeError::Owner)?;
        Ok((file, name))
    }

    /// Makes a device with an owner under a random name; `None` if another process has attached to it.
    fn make_under_random_name(&self) -> Result<Option<File>, MakeError> {
        let (file, name) = match self.make_named(&random_name()?) {
            // With 2^60 possible names this is not a coincidence.
            Err(MakeError::Taken) => return Ok(None),
            made => made?,
        };
        let seen = link::query(&name).map_err(MakeError::Kernel)?;
        let Some(seen) = seen.filter(|seen| seen.queues.is_some()) else {
            return Err(MakeError::Kernel(io::Error::new(
                io::ErrorKind::Unsupported,
                "this kernel does not report who is attached to a device; set queues = 1",
            )));
        };
        if self.is_as_made(&seen) {
            clear::clear(&file, self.mode).map_err(MakeError::Kernel)?;
            return Ok(Some(file));
        }
        // While another process is attached, closing our descriptor would not delete the device.
        link::delete(seen.index).map_err(MakeError::Kernel)?;
        Ok(None)
    }

    /// Whether the device is unchanged and only ours. A process that was attached may have set another owner
    /// and detached, to attach again later. From now on no other process can attach, so this result remains
    /// valid.
    fn is_as_made(&self, seen: &Link) -> bool {
        let hardware = match self.mode {
            Mode::Tun => libc::ARPHRD_NONE,
            Mode::Tap => libc::ARPHRD_ETHER,
        };
        let owner = Owner { user: seen.user, group: seen.group };
        seen.queues == Some(1)
            && owner == self.owner
            && !seen.persistent
            && seen.hardware == hardware
    }

    fn rename(&self, file: File) -> Result<(File, String), MakeError> {
        let name_now = || ioctl::attached(file.as_fd()).map(|(name, _flags)| name);
        let renamed = any_socket()
            .and_then(|socket| ioctl::rename(socket, &name_now()?, self.name))
            .and_then(|()| name_now());
        renamed.map_err(make_error).map(|name| (file, name))
    }
}

fn make_error(error: io::Error) -> MakeError {
    match error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => MakeError::Taken,
        _ => MakeError::Kernel(error),
    }
}

fn is_taken(name: &str) -> bool {
    any_socket().and_then(|socket| ioctl::link_flags(socket, name)).is_ok()
}

/// A socket for requests about interfaces, which any socket supports. This kind exists even without IPv4 or
/// IPv6.
pub(crate) fn any_socket() -> io::Result<UnixDatagram> {
    UnixDatagram::unbound()
}

/// A random name. It begins with `vpn`, so that rules for vpnd's own names (`Name=vpn*` of systemd-networkd)
/// match it.
fn random_name() -> Result<String, MakeError> {
    let random: [u8; 12] = ioctl::random().map_err(MakeError::Kernel)?;
    let digits = random.into_iter().map(|byte| char::from(DIGITS[usize::from(byte % 32)]));
    Ok("vpn".chars().chain(digits).collect())
}

/// An attacker rarely wins the race; losing it this often in a row is not a coincidence.
const ATTEMPTS: u32 = 10;
const DIGITS: [u8; 32] = *b"abcdefghijklmnopqrstuvwxyz234567";
