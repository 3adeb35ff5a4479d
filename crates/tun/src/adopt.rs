//! Decides whether to open an existing device or to make a new one.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use caps::{CapSet, Capability};

use crate::link;
use crate::make::{MakeError, New};
use crate::open::{Mode, OpenError, Options, open_driver};
use crate::persist::{Owner, PersistError, kind_of};
use crate::{clear, ioctl};

/// Whether an existing device may be opened, and whether a new one may be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Adopt {
    /// Opens the existing device, or makes one if there is none.
    #[default]
    Auto,
    /// Opens the existing device; fails if there is none.
    Require,
    /// Makes a new device; fails if there is one of that name.
    Never,
}

/// A device with its first queue attached.
pub(crate) struct First {
    pub(crate) file: File,
    pub(crate) name: String,
    /// Whether the device existed before.
    pub(crate) adopted: bool,
    /// The owner that the device was given, if it had none before.
    pub(crate) claimed: Option<Owner>,
}

/// Attaches the first queue of the device `name`.
pub(crate) fn first(name: &str, options: &Options) -> Result<First, OpenError> {
    match options.adopt {
        Adopt::Never => make(name, options),
        Adopt::Require => {
            is_there(name, options.mode)?;
            take(name, options)
        }
        Adopt::Auto => match make(name, options) {
            Err(OpenError::Exists { .. }) => take(name, options),
            made => made,
        },
    }
}

/// Attaches one more queue, or the only one. While another process is attached to a multi-queue device, the
/// kernel accepts any flags without applying them. The flags in effect are therefore read back.
pub(crate) fn attach(
    file: &File,
    name: &str,
    mode: Mode,
    multi_queue: bool,
) -> Result<String, OpenError> {
    let flags = flags(mode, multi_queue);
    let failed = |error| OpenError::attaching(name, error);
    let attached = ioctl::attach(file.as_fd(), name, flags).map_err(failed)?;
    let (_, has) = ioctl::attached(file.as_fd()).map_err(failed)?;
    if has & flags == flags {
        return Ok(attached);
    }
    Err(OpenError::Header { name: name.to_owned() })
}

/// Checks that no other process is attached to a multi-queue device, because it would get a share of the
/// packets.
///
/// # Errors
///
/// If more than `ours` are attached.
pub(crate) fn alone(name: &str, ours: usize) -> Result<(), OpenError> {
    let seen = link::query(name).map_err(|error| OpenError::attaching(name, error))?;
    let queues = seen.and_then(|seen| seen.queues).unwrap_or_default();
    let ours = u32::try_from(ours).unwrap_or(u32::MAX);
    match queues.saturating_sub(ours) {
        0 => Ok(()),
        queues => Err(OpenError::Shared { name: name.to_owned(), queues }),
    }
}

/// Makes a new device, and never opens an existing one. It belongs to root unless `options` names an owner.
fn make(name: &str, options: &Options) -> Result<First, OpenError> {
    let Options { mode, queues, owner, .. } = *options;
    let owner = if owner == Owner::default() { Owner::ROOT } else { owner };
    let new = New { name, mode, flags: flags(mode, queues > 1), owner };
    let (file, name) = new.make().map_err(|why| making(name, mode, why))?;
    Ok(First { file, name, adopted: false, claimed: None })
}

/// Opens an existing device. A device that was made with multi_queue refuses a plain attach, but even a single
/// queue can attach to it with the flag.
fn take(name: &str, options: &Options) -> Result<First, OpenError> {
    let (mode, multi_queue) = (options.mode, options.queues > 1);
    // This is checked first, so that a device in use is not changed.
    alone(name, 0)?;
    let file = open_driver(name)?;
    let attached = match attach(&file, name, mode, multi_queue) {
        Err(OpenError::Kind { .. }) if !multi_queue => attach(&file, name, mode, true),
        Err(OpenError::Kind { name }) if kind_of(&name).is_ok_and(|kind| kind == mode) => {
            Err(OpenError::SingleQueue { name })
        }
        attached => attached,
    };
    let name = attached?;
    let claimed = claim(&file, &name, options.owner)?;
    let failed = |source| OpenError::Io { name: name.clone(), source };
    clear::clear(&file, mode).map_err(failed)?;
    Ok(First { file, name, adopted: true, claimed })
}

/// Gives an owner to a device that anybody may attach to. This needs no privilege, and cannot be undone.
fn claim(file: &File, name: &str, wanted: Owner) -> Result<Option<Owner>, OpenError> {
    let seen = link::query(name).map_err(|error| OpenError::attaching(name, error))?;
    if !seen.is_some_and(|seen| seen.is_anybodys()) {
        return Ok(None);
    }
    let owner = if wanted == Owner::default() { opener() } else { wanted };
    owner.set(file, name).map_err(|error| owning(name, error))?;
    Ok(Some(owner))
}

/// An owner with which the next start can open the device again: root if this process has CAP_NET_ADMIN,
/// and this process's user if not.
fn opener() -> Owner {
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap_or(false) {
        return Owner::ROOT;
    }
    Owner { user: Some(ioctl::effective_user()), group: None }
}

fn is_there(name: &str, mode: Mode) -> Result<(), OpenError> {
    let name = name.to_owned();
    match kind_of(&name) {
        Ok(kind) if kind == mode => Ok(()),
        Ok(_) | Err(PersistError::NotOurs { .. }) => Err(OpenError::Kind { name }),
        Err(PersistError::Open(error)) => Err(error),
        Err(PersistError::Refused { source, .. }) => Err(OpenError::Io { name, source }),
        Err(_missing) => Err(OpenError::Missing { name, mode }),
    }
}

fn owning(name: &str, error: PersistError) -> OpenError {
    let source = match error {
        PersistError::Refused { source, .. } => source,
        other => io::Error::other(other),
    };
    OpenError::Io { name: name.to_owned(), source }
}

fn making(name: &str, mode: Mode, why: MakeError) -> OpenError {
    let device = name.to_owned();
    let error = match why {
        MakeError::Driver(error) => return error,
        MakeError::Owner(error) => return owning(name, error),
        MakeError::Taken => return OpenError::Exists { name: device },
        MakeError::Contested => return OpenError::Contested { name: device },
        MakeError::Kernel(error) => error,
    };
    match error.raw_os_error() {
        Some(libc::EPERM) => OpenError::MayNotMake { name: device, mode },
        // No interface has that name, so this is not a device of another kind.
        Some(libc::EINVAL) => OpenError::Io { name: device, source: error },
        _ => OpenError::attaching(name, error),
    }
}

pub(crate) fn flags(mode: Mode, multi_queue: bool) -> i32 {
    let queues = if multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
    mode.flag() | libc::IFF_NO_PI | libc::IFF_VNET_HDR | queues
}
