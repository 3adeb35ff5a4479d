//! Which device is taken: one that is there already, or a new one.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use crate::ioctl;
use crate::open::{Mode, OpenError, Options, open_driver};
use crate::persist::{Owner, PersistError, kind_of};

/// Whether a device that is there is taken, and whether one is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Adopt {
    /// The one that is there; a new one where there is none.
    #[default]
    Auto,
    /// The one that is there, and no other.
    Require,
    /// A new one.
    Never,
}

/// A device with its first queue attached.
pub(crate) struct First {
    pub(crate) file: File,
    pub(crate) name: String,
    /// Whether it was there before.
    pub(crate) adopted: bool,
}

/// Attaches the first queue of the device `name`.
pub(crate) fn first(name: &str, options: &Options) -> Result<First, OpenError> {
    let (mode, multi_queue) = (options.mode, options.queues > 1);
    match options.adopt {
        Adopt::Never => make(name, options),
        Adopt::Require => {
            is_there(name, mode)?;
            take(name, mode, multi_queue)
        }
        Adopt::Auto => match make(name, options) {
            Err(OpenError::Exists { .. }) => take(name, mode, multi_queue),
            made => made,
        },
    }
}

/// Attaches one more queue, or the only one.
pub(crate) fn attach(
    file: &File,
    name: &str,
    mode: Mode,
    multi_queue: bool,
) -> Result<String, OpenError> {
    let flags = flags(mode, multi_queue);
    ioctl::attach(file.as_fd(), name, flags).map_err(|e| OpenError::attaching(name, e))
}

/// Asks for a new one alone: to look first and then to make it would leave a moment between.
/// It has an owner before it has a second queue: to one without, anybody could attach and read along.
fn make(name: &str, options: &Options) -> Result<First, OpenError> {
    let file = open_driver(name)?;
    let Options { mode, queues, owner, .. } = *options;
    let flags = flags(mode, queues > 1) | libc::IFF_TUN_EXCL;
    let name = ioctl::attach(file.as_fd(), name, flags).map_err(|e| making(name, mode, e))?;
    let owner = if owner == Owner::default() { Owner::ROOT } else { owner };
    owner.set(&file, &name).map_err(|error| owning(&name, error))?;
    Ok(First { file, name, adopted: false })
}

/// A device that was made with multi_queue refuses a plain attach, but takes one queue of several.
fn take(name: &str, mode: Mode, multi_queue: bool) -> Result<First, OpenError> {
    let file = open_driver(name)?;
    let attached = match attach(&file, name, mode, multi_queue) {
        Err(OpenError::Kind { .. }) if !multi_queue => attach(&file, name, mode, true),
        Err(OpenError::Kind { name }) if kind_of(&name).is_ok_and(|kind| kind == mode) => {
            Err(OpenError::SingleQueue { name })
        }
        attached => attached,
    };
    Ok(First { file, name: attached?, adopted: true })
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

fn making(name: &str, mode: Mode, error: io::Error) -> OpenError {
    let device = name.to_owned();
    match error.raw_os_error() {
        Some(libc::EBUSY) => OpenError::Exists { name: device },
        Some(libc::EPERM) => OpenError::MayNotMake { name: device, mode },
        // There is nothing of that name, so it cannot be something else.
        Some(libc::EINVAL) => OpenError::Io { name: device, source: error },
        _ => OpenError::attaching(name, error),
    }
}

fn flags(mode: Mode, multi_queue: bool) -> i32 {
    let queues = if multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
    mode.flag() | libc::IFF_NO_PI | libc::IFF_VNET_HDR | queues
}
