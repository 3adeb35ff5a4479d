//! Whether the device can be made: the driver, the name, the bridge or VRF that it joins.

use std::fs::OpenOptions;
use std::io;

use nix::net::if_::if_nametoindex;
use vpnd_tun::{Adopt, Mode, PersistError, kind_of};

use super::finding::{Check, Finding};
use crate::config::{Config, Interface};
use crate::tuntap;

const DRIVER: &str = "/dev/net/tun";

/// Examines the device's network namespace, in which this thread is, before the start.
pub(super) fn before_start(config: &Config) -> Vec<Finding> {
    let interface = &config.interface;
    let name = interface.name.as_deref().filter(|name| !name.contains('%'));
    let all = [driver(), name.and_then(|name| taken(interface, name))];
    let joins = [("bridge", &interface.bridge), ("vrf", &interface.vrf)];
    let joins = joins.into_iter().filter_map(|(kind, name)| absent(kind, name.as_deref()?));
    all.into_iter().flatten().chain(joins).collect()
}

fn driver() -> Option<Finding> {
    // Without a request, an open descriptor belongs to no device.
    let error = OpenOptions::new().read(true).write(true).open(DRIVER).err()?;
    let finding = Finding::new(Check::Device, format!("{DRIVER} cannot be opened: {error}"));
    Some(match error.raw_os_error() {
        Some(libc::ENOENT) => finding
            .command(format!("mkdir -p /dev/net && mknod -m 666 {DRIVER} c 10 200"))
            .advice("on a host that has just booted: modprobe tun"),
        Some(libc::ENODEV | libc::ENXIO) => finding.command("modprobe tun"),
        _ => finding.advice(
            "allow it: in a container with `--device /dev/net/tun`, in a service with DeviceAllow=",
        ),
    })
}

/// The name belongs to something that vpnd cannot use, or must not.
fn taken(interface: &Interface, name: &str) -> Option<Finding> {
    let finding =
        |what: &str| Finding::new(Check::Device, format!("[interface] name: {name} {what}"));
    let rename = "give the tunnel another [interface] name";
    let kind = match kind_of(name) {
        Ok(kind) => kind,
        Err(PersistError::Missing { .. }) if interface.adopt == Adopt::Require => {
            let command = format!("vpnd tuntap add dev {name} mode {}", interface.mode.word());
            return Some(finding("does not exist, and adopt = \"require\"").command(command));
        }
        Err(PersistError::NotOurs { .. }) => {
            let what =
                "is an interface that is no TUN or TAP device, so the tunnel cannot have this name";
            let command = format!("ip link delete dev {name}");
            return Some(finding(what).advice(rename).command(command));
        }
        Err(_) => return None,
    };
    let delete = format!("vpnd tuntap del dev {name}");
    if let Some(pid) = tuntap::holder(name) {
        let what = format!("is a device that another program holds: {}", tuntap::attached_to(name));
        return Some(finding(&what).command(format!("kill {pid}")).advice(rename));
    }
    if kind != interface.mode {
        let other = if kind == Mode::Tun { "a TUN" } else { "a TAP" };
        let what = format!("exists as {other} device, and mode = \"{}\"", interface.mode.word());
        return Some(finding(&what).command(delete).advice(rename));
    }
    let refused = interface.adopt == Adopt::Never;
    refused.then(|| finding("exists, and adopt = \"never\"").command(delete).advice(rename))
}

/// The bridge or VRF is not there.
fn absent(kind: &str, name: &str) -> Option<Finding> {
    let errno = if_nametoindex(name).err()?;
    let error = io::Error::from(errno);
    if errno != nix::errno::Errno::ENODEV {
        return Some(Finding::new(Check::Device, format!("[interface] {kind}: {name}: {error}")));
    }
    let finding = Finding::new(Check::Device, format!("[interface] {kind}: {name} does not exist"));
    Some(match kind {
        "bridge" => finding
            .command(format!("ip link add name {name} type bridge && ip link set dev {name} up")),
        _ => finding.advice(format!("make it: ip link add name {name} type vrf table NUMBER")),
    })
}
