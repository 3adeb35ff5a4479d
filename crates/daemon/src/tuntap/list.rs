//! Lists the existing devices, and what the next program that opens them has to know.

use std::fmt::{self, Display, Formatter};
use std::path::Path;
use std::{fs, io};

use nix::net::if_::{if_nameindex, if_nametoindex};
use nix::unistd::{Group, User};
use serde::Serialize;
use thiserror::Error;
use vpnd_tun::{Mode, PersistError, kind_of};

use super::holders::{Holder, Holders, in_words};

/// Why devices cannot be listed.
#[derive(Debug, Error)]
pub(crate) enum ListError {
    /// There is no such device.
    #[error(transparent)]
    Device(#[from] PersistError),
    /// The interfaces cannot be listed.
    #[error("listing the interfaces: {0}")]
    Names(io::Error),
    /// sysfs shows the flags of devices in another network namespace.
    #[error(
        "/sys shows the devices of another network namespace, or none at all: {0} is not there as \
         we know it; mount a sysfs here, as `ip netns exec` does"
    )]
    OtherSys(String),
}

/// The output of `list --json`; keys may be added to it, but are never renamed.
#[derive(Serialize)]
pub(crate) struct Listing {
    schema: u32,
    devices: Vec<Device>,
    /// Whether there are processes that this process may not inspect.
    processes_hidden: bool,
}

#[derive(Serialize)]
struct Device {
    name: String,
    mode: &'static str,
    /// The flags by their names in `ip tuntap`.
    flags: Vec<&'static str>,
    user: Option<Account>,
    group: Option<Account>,
    processes: Vec<Holder>,
    /// Flags that the next program has to request, too; empty for a device that will not exist by then.
    fixed: Vec<&'static str>,
    /// Settings that the next program overwrites.
    overwritten: Vec<&'static str>,
}

#[derive(Serialize)]
struct Account {
    id: u32,
    name: Option<String>,
}

impl Listing {
    /// All devices of this network namespace.
    ///
    /// # Errors
    ///
    /// If the kernel does not report them.
    pub(crate) fn all() -> Result<Self, ListError> {
        let names = if_nameindex().map_err(|error| ListError::Names(error.into()))?;
        let names = names.iter().map(|name| name.name().to_string_lossy().into_owned());
        let ours = names.filter_map(|name| Some((kind_of(&name).ok()?, name)));
        Self::collect(ours)
    }

    /// The device with this name.
    ///
    /// # Errors
    ///
    /// If there is no such device, or the kernel does not report it.
    pub(crate) fn of(name: &str) -> Result<Self, ListError> {
        Self::collect([(kind_of(name)?, name.to_owned())])
    }

    fn collect(found: impl IntoIterator<Item = (Mode, String)>) -> Result<Self, ListError> {
        let mut holders = Holders::find();
        let mut devices = Vec::new();
        for (kind, name) in found {
            devices.extend(inspect(kind, &name, &mut holders)?);
        }
        Ok(Self { schema: 1, devices, processes_hidden: holders.hidden })
    }
}

/// The device, unless it has vanished in the meantime.
fn inspect(kind: Mode, name: &str, holders: &mut Holders) -> Result<Option<Device>, ListError> {
    match Properties::read(name) {
        Some(properties) if properties.describes(kind, name) => {
            Ok(Some(properties.device(kind, name, holders.take(name))))
        }
        _ if kind_of(name).is_err() => Ok(None),
        _ => Err(ListError::OtherSys(name.to_owned())),
    }
}

/// A device's properties in sysfs.
struct Properties {
    index: u32,
    flags: i32,
    owner: Option<u32>,
    group: Option<u32>,
}

impl Properties {
    fn read(name: &str) -> Option<Self> {
        let directory = Path::new("/sys/class/net").join(name);
        let read = |what| fs::read_to_string(directory.join(what)).ok();
        // -1 means no owner.
        let id = |text: String| text.trim().parse().ok();
        Some(Self {
            index: read("ifindex")?.trim().parse().ok()?,
            flags: hexadecimal(&read("tun_flags")?)?,
            owner: id(read("owner")?),
            group: id(read("group")?),
        })
    }

    /// Whether sysfs describes this device. False if sysfs was mounted in another network namespace, which it
    /// shows.
    fn describes(&self, kind: Mode, name: &str) -> bool {
        let mode = if self.has(libc::IFF_TUN) { Mode::Tun } else { Mode::Tap };
        mode == kind && if_nametoindex(name) == Ok(self.index)
    }

    fn has(&self, flag: i32) -> bool {
        self.flags & flag != 0
    }

    fn device(&self, kind: Mode, name: &str, processes: Vec<Holder>) -> Device {
        let (fixed, overwritten) = self.for_the_next(kind);
        Device {
            name: name.to_owned(),
            mode: kind.word(),
            flags: self.words(),
            user: self.owner.map(Account::of_user),
            group: self.group.map(Account::of_group),
            processes,
            fixed,
            overwritten,
        }
    }

    fn words(&self) -> Vec<&'static str> {
        let words = [
            ("pi", !self.has(libc::IFF_NO_PI)),
            ("one_queue", self.has(libc::IFF_ONE_QUEUE)),
            ("vnet_hdr", self.has(libc::IFF_VNET_HDR)),
            ("multi_queue", self.has(libc::IFF_MULTI_QUEUE)),
            ("persist", self.has(libc::IFF_PERSIST)),
        ];
        words.into_iter().filter(|(_, set)| *set).map(|(word, _)| word).collect()
    }

    /// The flags that the next program must match, and those that it overwrites: `tun_set_iff` of
    /// drivers/net/tun.c compares the mode and `multi_queue`, and copies the other flags from the program.
    fn for_the_next(&self, kind: Mode) -> (Vec<&'static str>, Vec<&'static str>) {
        if !self.has(libc::IFF_PERSIST) {
            return (Vec::new(), Vec::new());
        }
        let queues = if self.has(libc::IFF_MULTI_QUEUE) { "multi_queue" } else { "single queue" };
        (vec![kind.word(), queues], vec!["pi", "vnet_hdr", "one_queue"])
    }
}

fn hexadecimal(text: &str) -> Option<i32> {
    i32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
}

impl Account {
    fn of_user(id: u32) -> Self {
        let user = User::from_uid(id.into()).ok().flatten();
        Self { id, name: user.map(|user| user.name) }
    }

    fn of_group(id: u32) -> Self {
        let group = Group::from_gid(id.into()).ok().flatten();
        Self { id, name: group.map(|group| group.name) }
    }
}

impl Display for Account {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => f.write_str(name),
            None => self.id.fmt(f),
        }
    }
}

/// Prints a line per device, as `ip tuntap` does, and further lines below it.
impl Display for Listing {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for device in &self.devices {
            device.first_line(f)?;
            device.attached(f, self.processes_hidden)?;
            device.next(f)?;
        }
        Ok(())
    }
}

impl Device {
    fn first_line(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.mode)?;
        self.flags.iter().try_for_each(|flag| write!(f, " {flag}"))?;
        self.user.iter().try_for_each(|user| write!(f, " user {user}"))?;
        self.group.iter().try_for_each(|group| write!(f, " group {group}"))?;
        writeln!(f)
    }

    fn attached(&self, f: &mut Formatter<'_>, hidden: bool) -> fmt::Result {
        writeln!(f, "    processes attached: {}", in_words(&self.processes, hidden))
    }

    fn next(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.fixed.is_empty() {
            return Ok(());
        }
        let (fixed, overwritten) = (self.fixed.join(", "), self.overwritten.join(", "));
        writeln!(f, "    the next opener must ask for: {fixed}; it overwrites: {overwritten}")
    }
}

#[cfg(test)]
mod tests {
    use super::super::holders::tests::holder;
    use super::*;

    fn device(flags: i32, owner: Option<u32>) -> Device {
        let kind = if flags & libc::IFF_TUN != 0 { Mode::Tun } else { Mode::Tap };
        Properties { index: 4, flags, owner, group: None }.device(kind, "dev7", Vec::new())
    }

    fn text(device: Device, processes_hidden: bool) -> String {
        Listing { schema: 1, devices: vec![device], processes_hidden }.to_string()
    }

    /// The numbers are those that Linux 6.18 shows for devices made with `ip tuntap add`.
    #[test]
    fn flags_have_the_words_of_ip() {
        let flags = |text| device(hexadecimal(text).unwrap(), None).flags;
        assert_eq!(flags("0x3901\n"), ["one_queue", "multi_queue", "persist"]);
        assert_eq!(flags("0x4802\n"), ["pi", "vnet_hdr", "persist"]);
        assert_eq!(hexadecimal("3901"), None);
    }

    #[test]
    fn what_the_next_opener_does() {
        assert_eq!(
            text(device(0x3901, Some(0)), false),
            "dev7: tun one_queue multi_queue persist user root\n    \
             processes attached: none\n    \
             the next opener must ask for: tun, multi_queue; it overwrites: pi, vnet_hdr, one_queue\n"
        );
        let goes = text(device(0x1002, Some(u32::MAX - 1)), true);
        assert!(goes.starts_with("dev7: tap user 4294967294\n"), "{goes}");
        assert!(goes.ends_with("attached: perhaps some that are hidden from us\n"), "{goes}");
    }

    #[test]
    fn who_is_attached() {
        let processes = vec![holder(7, false), holder(8, true), holder(9, true)];
        let text = text(Device { processes, ..device(0x1001, None) }, false);
        assert_eq!(
            text.lines().nth(1).unwrap(),
            "    processes attached: vpnd(7), perhaps 2 in other network namespaces, attached to \
             this device or to one of its name there"
        );
    }
}
