//! Makes and removes devices that outlive the program that made them, as `ip tuntap` does.

use std::fmt::{self, Display, Formatter};
use std::io;
use std::os::fd::AsFd;

use thiserror::Error;

use crate::ioctl;
use crate::make::{MakeError, New, any_socket};
use crate::open::{Mode, OpenError, check_name, open_driver};

/// A device to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Persistent {
    /// The device's name; the kernel replaces `%d` in it with the first free number. `None` means `tun%d` or
    /// `tap%d`.
    pub name: Option<String>,
    /// Whether it carries packets or frames.
    pub kind: Mode,
    /// The id of the user who may attach without a capability.
    pub user: Option<u32>,
    /// The id of the group whose members may attach without a capability.
    pub group: Option<u32>,
    /// Whether several descriptors may be attached. This cannot be changed later.
    pub multi_queue: bool,
    /// Whether four bytes of flags and protocol precede each packet. The next program that attaches replaces
    /// this setting.
    pub packet_info: bool,
    /// Whether a `virtio_net_hdr` precedes each packet. The next program that attaches replaces this setting.
    pub vnet_header: bool,
    /// A flag without a meaning since Linux 3.8. The next program that attaches replaces this setting.
    pub one_queue: bool,
}

/// Who may attach to a device without a capability. If it names neither user nor group, *anybody* who can open
/// the driver may (`tun_not_capable` of tun.c).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// The id of a user.
    pub user: Option<u32>,
    /// The id of a group.
    pub group: Option<u32>,
}

impl Persistent {
    /// Makes the device and returns its name. The device stays down.
    ///
    /// # Errors
    ///
    /// If the driver or a privilege is missing, or an interface of that name exists.
    pub fn create(&self) -> Result<String, PersistError> {
        let name = self.name.as_deref().unwrap_or_else(|| self.kind.pattern());
        check_new_name(name)?;
        let owner = Owner { user: self.user, group: self.group };
        let new = New { name, mode: self.kind, flags: self.flags(), owner };
        let (file, name) = new.make().map_err(|why| creating(name, why))?;
        keep(&file, &name)?;
        Ok(name)
    }

    fn flags(&self) -> i32 {
        let words = [
            (!self.packet_info, libc::IFF_NO_PI),
            (self.vnet_header, libc::IFF_VNET_HDR),
            (self.one_queue, libc::IFF_ONE_QUEUE),
            (self.multi_queue, libc::IFF_MULTI_QUEUE),
        ];
        let set = words.iter().filter(|(wanted, _)| *wanted);
        set.fold(self.kind.flag(), |flags, (_, flag)| flags | flag)
    }
}

impl Owner {
    /// Only root, and processes with CAP_NET_ADMIN.
    pub(crate) const ROOT: Self = Self { user: Some(0), group: None };

    /// Makes this the owner of the device `name`, to which `attached` is attached.
    pub(crate) fn set(self, attached: impl AsFd, name: &str) -> Result<(), PersistError> {
        let device = attached.as_fd();
        if let Some(uid) = self.user {
            ioctl::set_owner(device, uid).map_err(refused("user", name))?;
        }
        if let Some(gid) = self.group {
            ioctl::set_group(device, gid).map_err(refused("group", name))?;
        }
        Ok(())
    }
}

impl Display for Owner {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match (self.user, self.group) {
            (Some(user), None) => write!(f, "user {user}"),
            (Some(user), Some(group)) => write!(f, "user {user} of group {group}"),
            (None, Some(group)) => write!(f, "group {group}"),
            (None, None) => write!(f, "anybody"),
        }
    }
}

/// Makes the device `name`, to which `attached` is attached, persistent. This needs no privilege.
///
/// # Errors
///
/// If the kernel refuses it.
pub fn keep(attached: impl AsFd, name: &str) -> Result<(), PersistError> {
    ioctl::set_persistent(attached.as_fd(), true).map_err(refused("persistence", name))
}

/// Removes the device `name`: at once if no descriptor is attached, and otherwise when the last descriptor is
/// closed. If `kind` is given, the device must be of that kind.
///
/// # Errors
///
/// If there is no such device, its only queue is in use, or a privilege is missing.
pub fn remove(name: &str, kind: Option<Mode>) -> Result<(), PersistError> {
    let is = kind_of(name)?;
    if kind.is_some_and(|kind| kind != is) {
        return Err(PersistError::OtherKind { name: name.to_owned(), is });
    }
    let file = open_driver(name)?;
    // Attaching replaces these two flags of the device, which no longer matters because it is removed.
    let flags = is.flag() | libc::IFF_NO_PI;
    let attached = match ioctl::attach(file.as_fd(), name, flags) {
        // A multi-queue device refuses a plain attach.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            ioctl::attach(file.as_fd(), name, flags | libc::IFF_MULTI_QUEUE)
        }
        other => other,
    };
    attached.map_err(|error| OpenError::attaching(name, error))?;
    ioctl::set_persistent(file.as_fd(), false).map_err(refused("end", name))
}

/// The kind of the interface `name` in this network namespace. This does not attach to the device, because that
/// would change it.
///
/// # Errors
///
/// If there is no such interface, or it is not a device of the TUN driver.
pub fn kind_of(name: &str) -> Result<Mode, PersistError> {
    check_name(name)?;
    let socket = any_socket().map_err(refused("driver", name))?;
    let (driver, bus) = ioctl::driver(socket, name).map_err(|e| match e.raw_os_error() {
        Some(libc::ENODEV) => PersistError::Missing { name: name.to_owned() },
        Some(libc::EOPNOTSUPP) => PersistError::NotOurs { name: name.to_owned() },
        _ => refused("driver", name)(e),
    })?;
    match (driver.as_str(), bus.as_str()) {
        ("tun", "tun") => Ok(Mode::Tun),
        ("tun", "tap") => Ok(Mode::Tap),
        _ => Err(PersistError::NotOurs { name: name.to_owned() }),
    }
}

/// Why a device could not be made, removed or found.
#[derive(Debug, Error)]
pub enum PersistError {
    /// The driver cannot be opened, or the name is invalid.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// An interface has this name already.
    #[error("there is an interface {name:?} already; delete it or choose another name")]
    Exists {
        /// The interface.
        name: String,
    },
    /// No interface has that name.
    #[error("there is no device {name:?} in this network namespace")]
    Missing {
        /// The requested name.
        name: String,
    },
    /// It is an interface of another driver.
    #[error("{name:?} is neither a TUN nor a TAP device; `ip link` is for those")]
    NotOurs {
        /// The interface.
        name: String,
    },
    /// The device is of the other mode.
    #[error("device {name:?} is a {} device, which is not the mode that was asked for", is.word())]
    OtherKind {
        /// The device.
        name: String,
        /// Its actual mode.
        is: Mode,
    },
    /// Anything else.
    #[error("the kernel refuses the {what} of device {name:?}")]
    Refused {
        /// The operation or setting.
        what: &'static str,
        /// The device.
        name: String,
        /// The kernel's error.
        source: io::Error,
    },
}

/// Checks a name in which `%d` may stand for a number that the kernel chooses.
fn check_new_name(name: &str) -> Result<(), PersistError> {
    if name.replacen("%d", "", 1).contains('%') {
        return Err(OpenError::Name { name: name.to_owned() }.into());
    }
    Ok(check_name(name)?)
}

pub(crate) fn refused(what: &'static str, name: &str) -> impl Fn(io::Error) -> PersistError {
    move |source| PersistError::Refused { what, name: name.to_owned(), source }
}

fn creating(name: &str, why: MakeError) -> PersistError {
    let error = match why {
        MakeError::Driver(error) => return error.into(),
        MakeError::Owner(error) => return error,
        MakeError::Taken => return PersistError::Exists { name: name.to_owned() },
        MakeError::Contested => return OpenError::Contested { name: name.to_owned() }.into(),
        MakeError::Kernel(error) => error,
    };
    match error.raw_os_error() {
        // No interface has that name, so this is not a device of another kind.
        Some(libc::EINVAL) => refused("flags", name)(error),
        _ => OpenError::attaching(name, error).into(),
    }
}
