//! Opens the objects that a start needs, according to the configuration: the device, its carrier, the UDP
//! socket, the control socket.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread::{available_parallelism, sleep};
use std::time::{Duration, Instant};

use nix::fcntl::AtFlags;
use nix::net::if_::if_nametoindex;
use nix::unistd::{Gid, Uid, fchownat};
use vpnd_device::{Families, Heard, Netlink, Uplink};
use vpnd_protocol::inheritance::Inheritance;
use vpnd_protocol::limits::{ETHERNET_MTU, USUAL_MTU};
use vpnd_tun::{Carrier, Mode, OpenError, Options, Owner};
use vpnd_tunnel::udp::{self, BindError, Egress, Socket};

use crate::ask::{self, AskError};
use crate::changes;
use crate::config::{self, Account, Config, Holder, Interface, Queues};
use crate::control::{Ask, Control, ControlError, STOPPING};
use crate::hand_on::{self, Kept};
use crate::inherited::{self, Inherited};
use crate::metrics::{Bound, Metrics, MetricsError};
use crate::nft::Connection;
use crate::run::RunError;
use crate::service;
use crate::socket_file;
use crate::tuntap;
use crate::uapi::{self, Uapi};

/// The netlink connection for configuring the device, and the kernel's messages about it. The caller opens them
/// in the device's network namespace, to which they then belong.
pub(crate) fn netlink() -> Result<(Netlink, Heard, Heard), vpnd_device::Error> {
    Ok((Netlink::connect()?, Heard::devices()?, Heard::everything()?))
}

/// The device, opened in the same namespace.
pub(crate) fn device(config: &Config) -> Result<vpnd_tun::Device, RunError> {
    prepared(patiently(|| open_device(config)).map_err(held)?)
}

/// A device that was just opened, with its settings.
pub(crate) fn prepared(device: vpnd_tun::Device) -> Result<vpnd_tun::Device, RunError> {
    if let Some(owner) = device.claimed {
        let name = &device.name;
        tracing::info!("anybody could attach to device {name}; from now on only {owner} may");
    }
    if !device.adopted {
        let set = |(file, value)| refuse_configuration(&device.name, file, value);
        KEPT_OUT.into_iter().for_each(set);
    }
    Ok(device)
}

/// The device of an earlier process, if it is the one of this configuration.
pub(crate) fn inherited_device(
    config: &Config,
    inherited: &mut Inherited,
) -> Option<vpnd_tun::Device> {
    let attached = inherited.device()?;
    let queues = match config.interface.queues {
        Queues::Fixed(queues) => queues,
        Queues::Auto => u16::try_from(attached.queues.len()).unwrap_or(u16::MAX),
    };
    match vpnd_tun::inherit(attached, &device_options(config, queues)) {
        Ok(device) => Some(device),
        Err(error) => {
            tracing::info!("the device of the earlier process is not continued with: {error}");
            // Otherwise it would keep the device, and hand it to every later process.
            hand_on::forget_device();
            config.interface.name.iter().for_each(|name| wait_for_end(name));
            None
        }
    }
}

/// What the earlier process of this device has left.
pub(crate) fn left(
    config: &Config,
    device: &vpnd_tun::Device,
    inherited: &mut Inherited,
) -> Inheritance {
    // A carrier that does not follow the peer says nothing about it.
    let follows = config.interface.carrier == config::Carrier::Peer;
    let crashed = || inherited::of_a_crash(follows && device.has_carrier().unwrap_or(false));
    inherited.sessions().unwrap_or_else(crashed)
}

/// Waits until there is no device of this name: systemd takes a moment to close one that is given up, and until then no other can
/// be made. One that persists stays.
fn wait_for_end(device: &str) {
    let begun = Instant::now();
    while if_nametoindex(device).is_ok() && begun.elapsed() < ENDS_WITHIN {
        sleep(PATIENCE / 25);
    }
}

const ENDS_WITHIN: Duration = Duration::from_secs(2);

/// Retries for a short time: the process that has a killed vpnd's device open may take an instant to end.
pub(crate) fn patiently(
    open: impl Fn() -> Result<vpnd_tun::Device, OpenError>,
) -> Result<vpnd_tun::Device, OpenError> {
    let begun = Instant::now();
    loop {
        match open() {
            Err(OpenError::Busy { .. } | OpenError::Shared { .. })
                if begun.elapsed() < PATIENCE =>
            {
                sleep(PATIENCE / 25);
            }
            opened => return opened,
        }
    }
}

const PATIENCE: Duration = Duration::from_millis(500);

/// Adds the processes that have the device open to an error about that.
fn held(error: OpenError) -> RunError {
    match &error {
        OpenError::Busy { name } | OpenError::Shared { name, .. } | OpenError::Header { name } => {
            RunError::Held { holders: tuntap::attached_to(name), error }
        }
        _ => error.into(),
    }
}

/// Sysctls for a device that vpnd creates, so that no host at the other end can configure this host.
const KEPT_OUT: [(&str, &str); 4] = [
    ("ipv6/conf/DEVICE/accept_ra", "0"),
    ("ipv6/conf/DEVICE/accept_redirects", "0"),
    ("ipv4/conf/DEVICE/accept_redirects", "0"),
    ("ipv4/conf/DEVICE/send_redirects", "0"),
];

/// Sets a sysctl in the network namespace of this thread. A failure is harmless: in a service, `/proc/sys` may
/// be read-only or hidden; a kernel may lack IPv6; and the data path drops these messages anyway.
fn refuse_configuration(device: &str, file: &str, value: &str) {
    let file = format!("/proc/sys/net/{}", file.replace("DEVICE", device));
    // These two names are not devices: they stand for all and for future devices.
    let set =
        || if ["all", "default"].contains(&device) { Ok(()) } else { fs::write(&file, value) };
    if let Err(error) = set() {
        tracing::debug!("{file} stays as it is: {error}");
    }
}

/// Opens the device. If vpnd chooses the number of queues, an existing device may have only one.
fn open_device(config: &Config) -> Result<vpnd_tun::Device, OpenError> {
    let with = |queues| device_options(config, queues);
    match config.interface.queues {
        Queues::Fixed(queues) => vpnd_tun::open(&with(queues)),
        Queues::Auto => match vpnd_tun::open(&with(processors())) {
            Err(OpenError::SingleQueue { .. }) => vpnd_tun::open(&with(1)),
            opened => opened,
        },
    }
}

fn device_options(config: &Config, queues: u16) -> Options {
    let Interface { owner, group, .. } = &config.interface;
    let id = |holder: &Option<Holder>| holder.as_ref().map(|holder| holder.id);
    Options {
        name: config.interface.name.clone(),
        owner: Owner { user: id(owner), group: id(group) },
        mode: config.interface.mode,
        offload: config.path.offload,
        queues,
        adopt: config.interface.adopt,
    }
}

/// The number of processors that this process may use, up to the number that one inbound thread can keep up
/// with.
fn processors() -> u16 {
    const MOST: u16 = 8;
    let processors = available_parallelism().map_or(1, usize::from);
    u16::try_from(processors).map_or(MOST, |processors| processors.min(MOST))
}

/// The device's carrier. If it follows the peer, it is on if the peer `is_alive`.
pub(crate) fn carrier(
    config: &Config,
    device: &vpnd_tun::Device,
    is_alive: bool,
) -> Option<Carrier> {
    let follows = config.interface.carrier == config::Carrier::Peer;
    let set = |carrier: Carrier| match follows {
        true => carrier.set(is_alive).map(|()| carrier),
        false => Ok(carrier),
    };
    let carrier = Carrier::of(&device.queues[0]).and_then(set);
    let refused = |error| {
        tracing::warn!("the device's carrier stays on, whether the peer is alive or not: {error}")
    };
    carrier.map_err(refused).ok()
}

/// The families for which the kernel ignores the device's routes while it has no carrier. The sysctl is
/// `ignore_routes_with_linkdown`. For IPv4 there are two settings, and one of them is enough.
pub(crate) fn passed_over(device: &str) -> Families {
    let is_on = |family: &str, of: &str| {
        let path = format!("/proc/sys/net/{family}/conf/{of}/ignore_routes_with_linkdown");
        fs::read_to_string(path).is_ok_and(|value| value.trim() != "0")
    };
    Families { v4: is_on("ipv4", "all") || is_on("ipv4", device), v6: is_on("ipv6", device) }
}

/// The device's MTU. A bridge port gets the bridge's MTU, which never lowers that of the bridge. A device that
/// others created keeps its own.
pub(crate) async fn mtu(
    interface: &Interface,
    device: &vpnd_tun::Device,
    netlink: &Netlink,
    is_inherited: bool,
) -> Result<u16, vpnd_device::Error> {
    let there = match (interface.mtu, &interface.bridge) {
        (Some(mtu), _) => return Ok(mtu),
        // The earlier process knew the path.
        (None, None) if is_inherited => netlink.present(&device.name).await?.mtu,
        // Until the path is known.
        (None, _) if interface.mode == Mode::Tun => return Ok(USUAL_MTU),
        (None, Some(bridge)) => netlink.bridge_mtu(bridge).await?,
        (None, None) if device.adopted => netlink.present(&device.name).await?.mtu,
        (None, None) => return Ok(ETHERNET_MTU),
    };
    Ok(u16::try_from(there).unwrap_or(u16::MAX))
}

/// Opens the UDP socket. If its address is not ours yet, this reports the error before the first send does.
pub(crate) fn socket(
    config: &Config,
    egress: &Egress,
    earlier: Option<OwnedFd>,
) -> Result<Socket, BindError> {
    let wanted = &config.socket;
    changes::check_sources(wanted, egress)?;
    let options = udp::Options {
        receive_buffer: wanted.rcvbuf,
        send_buffer: wanted.sndbuf,
        gso: config.path.gso,
        egress: egress.clone(),
    };
    let listen = config.interface.listen;
    match earlier.map(|earlier| Socket::inherit(earlier, listen, &options)) {
        Some(Ok(socket)) => return Ok(socket),
        Some(Err(error)) => {
            tracing::info!("the socket of the earlier process is not continued with: {error}");
            service::forget(Kept::Socket.name());
        }
        None => {}
    }
    Socket::bind(listen, &options)
}

/// The connection that the nftables table of an earlier process belongs to, if there is to be a table.
pub(crate) fn firewall(config: &Config, inherited: &mut Inherited) -> Option<Connection> {
    let earlier = inherited.firewall()?;
    if config.service.firewall {
        return Some(earlier);
    }
    // Otherwise the table would stay.
    service::forget(Kept::Firewall.name());
    None
}

/// The socket of the metrics, if the configuration has one.
pub(crate) fn metrics(
    config: &Config,
    inherited: &mut Inherited,
) -> Result<Option<Bound>, MetricsError> {
    let earlier = inherited.listener(Kept::Metrics);
    match earlier.and_then(|socket| Metrics::later(config, socket)) {
        Some(bound) => {
            inherited.continues_with(Kept::Metrics);
            Ok(Some(bound))
        }
        None => Metrics::bind(config),
    }
}

/// The kernel's messages about the routes of the socket's datagrams; a tunnel also works without them.
pub(crate) fn uplink() -> Option<Uplink> {
    let opened = Netlink::connect().and_then(|netlink| Ok((netlink, Heard::everything()?)));
    match opened {
        Ok((netlink, heard)) => Some(Uplink::follow(netlink, heard)),
        Err(error) => {
            tracing::warn!("{error}; vpnd reacts late to changes of routes to the peer");
            None
        }
    }
}

/// Binds the control socket, unless an earlier process hands it on. A running tunnel of the same name is an error. If the socket cannot be bound for
/// another reason, the tunnel runs without it.
pub(crate) fn control(
    config: &Config,
    inherited: &mut Inherited,
) -> Result<Option<Control>, ControlError> {
    if let Some(listener) = inherited.listener_at(Kept::Control, &config.service.control) {
        return Control::later(config, listener).map(Some);
    }
    match bind_control(config) {
        Ok(control) => {
            give(&config.service.control, config.service.user.as_ref());
            Ok(Some(control))
        }
        Err(error @ ControlError::Running(_)) => Err(error),
        Err(error) => {
            tracing::warn!("{error}; the tunnel runs, but `vpnd status` cannot find it");
            Ok(None)
        }
    }
}

/// Binds the WireGuard socket of the device, if the configuration wants one. If it cannot be bound, the tunnel runs
/// without it.
pub(crate) fn uapi(config: &Config, device: &str, inherited: &mut Inherited) -> Option<Uapi> {
    if !config.service.uapi {
        return None;
    }
    if let Some(listener) = inherited.listener_at(Kept::Uapi, &uapi::path_of(device)) {
        return Uapi::later(device, listener).ok();
    }
    let bound = uapi::bind(device);
    let refused = |error| tracing::warn!("{error}; the tunnel runs, but `wg` cannot find it");
    bound.map_err(refused).ok()
}

/// Binds the socket. If an earlier run is still stopping, as in a restart, waits for its end. If the start
/// failed instead, no process would maintain the kill switch.
fn bind_control(config: &Config) -> Result<Control, ControlError> {
    let begun = Instant::now();
    let mut announced = false;
    loop {
        match Control::bind(config) {
            Err(ControlError::Running(path))
                if begun.elapsed() < STOP_LIMIT && is_stopping(&path) =>
            {
                if !announced {
                    tracing::info!(
                        "an earlier run of this tunnel is still stopping; the start waits for its end"
                    );
                    announced = true;
                }
                sleep(STOP_POLL);
            }
            bound => return bound,
        }
    }
}

/// How long a start waits for an earlier run that is stopping, which may run `down` hooks, ...
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// ... and how often it checks.
const STOP_POLL: Duration = Duration::from_millis(50);

/// Whether the tunnel at this control socket is stopping, or has ended in the meantime.
fn is_stopping(control: &Path) -> bool {
    match ask::ask(control, &Ask::new("status")) {
        Ok(status) => status.get("stopping") == Some(&serde_json::Value::Bool(true)),
        Err(AskError::Refused { reason, .. }) => reason == STOPPING,
        // A tunnel that ends closes its connections.
        Err(AskError::NotRunning(_) | AskError::Io { .. }) => true,
        Err(_) => false,
    }
}

/// Gives the user whom the daemon becomes access to the socket.
fn give(socket: &Path, user: Option<&Account>) {
    let given = user.map(|user| give_socket(socket, user));
    if let Some(Err(error)) = given {
        tracing::debug!(%error, "{} stays ours", socket.display());
    }
}

/// Changes the owner by descriptor, and only of a socket that is ours and has no other name, because any user
/// who may write to the directory can have replaced it.
fn give_socket(path: &Path, user: &Account) -> io::Result<()> {
    let opened = socket_file::open_own(path)?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    Ok(fchownat(&opened, "", Some(uid), Some(gid), AtFlags::AT_EMPTY_PATH)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::os::unix::net::UnixListener;

    #[test]
    fn nothing_is_given_away_but_the_socket() {
        if !Uid::effective().is_root() {
            return;
        }
        let user = Account { name: "somebody".into(), uid: 12345, gid: 12345 };
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let uid = |name: &str| fs::symlink_metadata(at(name)).unwrap().uid();
        let (_one, _two) =
            ["socket", "other"].map(|name| UnixListener::bind(at(name)).unwrap()).into();
        fs::write(at("file"), "root's").unwrap();
        symlink("file", at("link")).unwrap();
        fs::hard_link(at("other"), at("second")).unwrap();
        for name in ["file", "link", "second"] {
            give(&at(name), Some(&user));
        }
        assert_eq!(["file", "link", "other"].map(uid), [0; 3]);
        give(&at("socket"), Some(&user));
        assert_eq!(uid("socket"), 12345);
    }
}
