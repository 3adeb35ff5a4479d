//! Finds the processes that are attached to a device: their `/proc/PID/fdinfo` names the device in a line
//! `iff:`.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::terminal::Printable;

/// A process that is attached to a device.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Holder {
    pub(crate) pid: u32,
    name: String,
    /// The number of its descriptors that are attached.
    queues: usize,
    /// Whether it is in another network namespace. Then it may be attached to another device of the same name.
    pub(crate) elsewhere: bool,
}

impl Display for Holder {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.name, self.pid)?;
        if self.queues > 1 {
            write!(f, " with {} queues", self.queues)?;
        }
        Ok(())
    }
}

/// The processes that are attached to devices.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    by_device: BTreeMap<String, Vec<Holder>>,
    /// Whether there are processes that this process may not inspect.
    pub(crate) hidden: bool,
}

impl Holders {
    /// Searches all processes.
    pub(crate) fn find() -> Self {
        let mut holders = Self::default();
        let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut pids: Vec<u32> = pids.collect();
        holders.hidden = pids.is_empty();
        pids.sort_unstable();
        pids.into_iter().for_each(|pid| holders.look_into(pid));
        holders
    }

    /// The processes attached to the device `name`.
    pub(crate) fn take(&mut self, name: &str) -> Vec<Holder> {
        self.by_device.remove(name).unwrap_or_default()
    }

    fn look_into(&mut self, pid: u32) {
        let directory = PathBuf::from(format!("/proc/{pid}"));
        match devices(&directory) {
            Ok(devices) => {
                for (device, queues) in devices {
                    let holder = Holder {
                        pid,
                        name: command(&directory),
                        queues,
                        elsewhere: is_elsewhere(&directory),
                    };
                    self.by_device.entry(device).or_default().push(holder);
                }
            }
            Err(error) => self.hidden |= error.kind() == ErrorKind::PermissionDenied,
        }
    }
}

/// Describes the processes of one device; `hidden` has the meaning of [`Holders::hidden`].
pub(crate) fn in_words(processes: &[Holder], hidden: bool) -> String {
    let (far, near): (Vec<_>, Vec<_>) = processes.iter().partition(|it| it.elsewhere);
    let mut holders: Vec<String> = near.into_iter().map(Holder::to_string).collect();
    if !far.is_empty() {
        holders.push(format!(
            "perhaps {} in other network namespaces, attached to this device or to one of its name \
             there",
            far.len()
        ));
    }
    if hidden {
        holders.push("perhaps some that are hidden from us".to_owned());
    }
    if holders.is_empty() {
        holders.push("none".to_owned());
    }
    holders.join(", ")
}

/// The devices that a process is attached to, with the number of its descriptors for each.
fn devices(process: &Path) -> io::Result<BTreeMap<String, usize>> {
    let mut devices = BTreeMap::new();
    for entry in fs::read_dir(process.join("fd"))? {
        let entry = entry?;
        let info = match fs::read_link(entry.path()) {
            // In a container, the driver's path may differ from /dev/net/tun.
            Ok(path) if path.ends_with("tun") => process.join("fdinfo").join(entry.file_name()),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => return Err(error),
            Ok(_) | Err(_) => continue,
        };
        // A descriptor that was closed in the meantime is ignored.
        if let Some(device) = fs::read_to_string(info).ok().as_deref().and_then(device) {
            *devices.entry(device.to_owned()).or_default() += 1;
        }
    }
    Ok(devices)
}

/// The device in a descriptor's `fdinfo`; `None` if the descriptor is attached to no device.
fn device(fdinfo: &str) -> Option<&str> {
    let name = fdinfo.lines().find_map(|line| line.strip_prefix("iff:"))?.trim();
    (!name.is_empty()).then_some(name)
}

/// The name of the process, made safe for a terminal.
fn command(process: &Path) -> String {
    let comm = fs::read_to_string(process.join("comm")).unwrap_or_default();
    Printable(comm.trim_end_matches('\n')).to_string()
}

fn is_elsewhere(process: &Path) -> bool {
    let network = |process: &Path| fs::read_link(process.join("ns/net")).ok();
    network(process) != network(Path::new("/proc/self"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn holder(pid: u32, elsewhere: bool) -> Holder {
        Holder { pid, name: "vpnd".to_owned(), queues: 1, elsewhere }
    }

    #[test]
    fn the_device_of_a_descriptor() {
        let fdinfo = "pos:\t0\nflags:\t0104002\nmnt_id:\t27\nino:\t109\niff:\ttun7\n";
        assert_eq!(device(fdinfo), Some("tun7"));
        assert_eq!(device(&fdinfo.replace("tun7", "")), None);
        assert_eq!(device("pos:\t0\nflags:\t02\n"), None);
    }

    #[test]
    fn holders_in_words() {
        let one = holder(12, false);
        assert_eq!(one.to_string(), "vpnd(12)");
        assert_eq!(Holder { queues: 4, ..one }.to_string(), "vpnd(12) with 4 queues");
    }
}
