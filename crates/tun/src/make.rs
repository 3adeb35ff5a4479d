//! Makes devices that nobody attaches to but who may.
//!
//! A new device belongs to nobody, and to such a device anybody may attach who can open the driver
//! (`tun_not_capable` of tun.c). One of a single queue is safe, for its maker holds the queue. One of several
//! is not: until it has an owner, whoever asks for its name gets a queue, reads a share of the flows and
//! keeps it. So it is made under a name that nobody can guess, gets its owner, and is renamed. As names of new
//! interfaces are told to whoever listens, the kernel is asked whether somebody was quick enough; such a device
//! is deleted and another one made.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;

use crate::look::{Look, delete, look};
use crate::open::{Mode, OpenError, open_driver};
use crate::persist::{Owner, PersistError};
use crate::{clear, ioctl};

/// A device to be made.
pub(crate) struct New<'a> {
    /// Its name, or one with `%d` for a number of the kernel's choice.
    pub(crate) name: &'a str,
    pub(crate) mode: Mode,
    /// As TUNSETIFF takes them, the mode's among them.
    pub(crate) flags: i32,
    /// Who may attach; anybody, where it names neither user nor group.
    pub(crate) owner: Owner,
}

/// Why there is no new device.
pub(crate) enum Unmade {
    /// There is no driver.
    Driver(OpenError),
    /// There is an interface of that name.
    Taken,
    /// It cannot have that owner.
    Owner(PersistError),
    /// Whenever it was made, somebody attached to it.
    Contested,
    /// Anything else.
    Kernel(io::Error),
}

impl New<'_> {
    /// Makes it, and returns its first queue and its name. It is down.
    pub(crate) fn make(&self) -> Result<(File, String), Unmade> {
        if self.flags & libc::IFF_MULTI_QUEUE == 0 || self.owner == Owner::default() {
            return self.make_named(self.name);
        }
        // To make one in vain would be told to every program that watches interfaces.
        if is_taken(self.name) {
            return Err(Unmade::Taken);
        }
        for _ in 0..ATTEMPTS {
            if let Some(file) = self.make_unseen()? {
                return self.rename(file);
            }
        }
        Err(Unmade::Contested)
    }

    /// Asks for a new one alone: to look first and then to make it would leave a moment between.
    fn make_named(&self, name: &str) -> Result<(File, String), Unmade> {
        let file = open_driver(self.name).map_err(Unmade::Driver)?;
        let flags = self.flags | libc::IFF_TUN_EXCL;
        let name = ioctl::attach(file.as_fd(), name, flags).map_err(unmade)?;
        self.owner.set(&file, &name).map_err(Unmade::Owner)?;
        Ok((file, name))
    }

    /// One that has its owner, under a name that does not matter; none if somebody else was attached to it.
    fn make_unseen(&self) -> Result<Option<File>, Unmade> {
        let (file, name) = match self.make_named(&unguessable()?) {
            // Of 2^60 names nobody else has this one by chance.
            Err(Unmade::Taken) => return Ok(None),
            made => made?,
        };
        let seen = look(&name).map_err(Unmade::Kernel)?;
        let Some(seen) = seen.filter(|seen| seen.queues.is_some()) else {
            return Err(Unmade::Kernel(io::Error::new(
                io::ErrorKind::Unsupported,
                "this kernel does not tell who is attached to a device; set queues = 1",
            )));
        };
        if self.is_as_made(&seen) {
            clear::clear(&file, self.mode).map_err(Unmade::Kernel)?;
            return Ok(Some(file));
        }
        // It would not go with our descriptor.
        delete(seen.index).map_err(Unmade::Kernel)?;
        Ok(None)
    }

    /// Who was attached may have given it another owner and left, to come back later. From here on nobody
    /// can attach, so what is seen now stays.
    fn is_as_made(&self, seen: &Look) -> bool {
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

    fn rename(&self, file: File) -> Result<(File, String), Unmade> {
        let name_now = || ioctl::attached(file.as_fd()).map(|(name, _flags)| name);
        let renamed = any_socket()
            .and_then(|socket| ioctl::rename(socket, &name_now()?, self.name))
            .and_then(|()| name_now());
        renamed.map_err(unmade).map(|name| (file, name))
    }
}

fn unmade(error: io::Error) -> Unmade {
    match error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => Unmade::Taken,
        _ => Unmade::Kernel(error),
    }
}

fn is_taken(name: &str) -> bool {
    any_socket().and_then(|socket| ioctl::link_flags(socket, name)).is_ok()
}

/// For requests about interfaces any socket will do, and this one needs no address family of the network.
pub(crate) fn any_socket() -> io::Result<UnixDatagram> {
    UnixDatagram::unbound()
}

/// It begins as vpnd's own names do, so that rules for those (`Name=vpn*` of systemd-networkd) hold.
fn unguessable() -> Result<String, Unmade> {
    let random: [u8; 12] = ioctl::random().map_err(Unmade::Kernel)?;
    let digits = random.into_iter().map(|byte| char::from(DIGITS[usize::from(byte % 32)]));
    Ok("vpn".chars().chain(digits).collect())
}

/// Whoever listens for names wins hardly ever, and not so often in a row by chance.
const ATTEMPTS: u32 = 10;
const DIGITS: [u8; 32] = *b"abcdefghijklmnopqrstuvwxyz234567";
