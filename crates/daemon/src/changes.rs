//! A tunnel's changes to the system apart from its device's own properties. They are made at the start,
//! maintained while the tunnel runs, and reverted at the end. After a sudden end, the next start finds them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;
use vpnd_device::{
    Bypass, DeviceHold, DeviceLink, DeviceMtu, Error, Heard, Journal, Keeper, Leftover, Link, Mark,
    Missing, Namespace, Netlink, Own, OwnState, PeerState, PortMemory, Stays, Undo,
};
use vpnd_tunnel::udp::{BindError, Egress};

use crate::config::{Config, Socket};
use crate::firewall::{Firewall, Rules};
use crate::nft::Table;
use crate::options;

/// Addresses, rules and routes, with the task that maintains them.
pub(crate) struct Changes {
    netlink: Netlink,
    keeper: Keeper,
    /// Removed last, because its table protects the addresses.
    firewall: Option<Firewall>,
}

impl Changes {
    /// Makes the changes, and begins to maintain them. Returns the device's hardware address, if it has one.
    ///
    /// # Errors
    ///
    /// The kernel's error. In that case only the blackhole routes and rules of a kill switch remain.
    pub(crate) async fn make(
        netlink: Netlink,
        news: Heard,
        link: &Link,
        undo: Undo,
    ) -> Result<(Self, Option<[u8; 6]>), Error> {
        let setup = netlink.configure(link, undo).await?;
        let mac = netlink.present(&link.name).await?.mac;
        let keeper = Keeper::spawn(&netlink, news, setup);
        Ok((Self { netlink, keeper, firewall: None }, mac))
    }

    /// Adds a packet filter's table, which exists as long as these changes.
    pub(crate) fn with(self, firewall: Option<Firewall>) -> Self {
        Self { firewall, ..self }
    }

    /// The handle that reports the peer's liveness.
    pub(crate) fn peer(&self) -> PeerState {
        self.keeper.peer()
    }

    /// Reverts the changes, but hands the blackholes on to the next start if it follows soon.
    pub(crate) async fn hand_on(self, device: bool) -> Option<HandedOn> {
        let table = kill_switch(self.firewall.as_ref());
        let Some(setup) = self.keeper.stop().await else {
            tracing::error!("cannot revert the changes to the system; the next start reverts them");
            return None;
        };
        let leftover = self.netlink.hand_on(setup, device, |_| open(table.as_deref())).await;
        self.firewall.into_iter().for_each(Firewall::end);
        leftover.map(|leftover| HandedOn { leftover, table })
    }

    /// The missing objects, and why they are missing.
    pub(crate) fn missing(&self) -> watch::Receiver<Vec<Missing>> {
        self.keeper.missing()
    }

    /// Other programs' routes through which packets bypass a kill switch.
    pub(crate) fn bypassed(&self) -> watch::Receiver<Vec<Bypass>> {
        self.keeper.bypassed()
    }

    /// The handle that reports changes of the tunnel's own datagrams.
    pub(crate) fn own(&self) -> OwnState {
        self.keeper.own()
    }

    /// The handle that sets the device's MTU.
    pub(crate) fn mtu(&self) -> DeviceMtu {
        self.keeper.mtu()
    }

    /// The handle that gives the device another wanted state.
    pub(crate) fn link(&self) -> DeviceLink {
        self.keeper.link()
    }

    /// The handle that gives the packet filter's tables other rules, if there are tables.
    pub(crate) fn rules(&self) -> Option<Rules> {
        self.firewall.as_ref().map(Firewall::rules)
    }

    /// The handle that makes the task pause which maintains addresses, rules and routes.
    pub(crate) fn hold(&self) -> DeviceHold {
        self.keeper.hold()
    }

    /// The connection to the kernel in the device's network namespace.
    pub(crate) fn netlink(&self) -> Netlink {
        self.netlink.clone()
    }

    /// Leaves everything as it is: another process of the tunnel continues with it, and finds the journal.
    pub(crate) async fn leave(self) {
        drop(self.keeper.stop().await);
    }

    /// Reverts the changes, except for those that `stays` names.
    pub(crate) async fn put_back(self, stays: Stays) {
        let table = kill_switch(self.firewall.as_ref());
        match self.keeper.stop().await {
            Some(mut setup) => {
                if !stays.guards {
                    setup.delete_table(|_| open(table.as_deref()));
                }
                self.netlink.undo(setup, stays).await;
            }
            None => {
                tracing::error!(
                    "cannot revert the changes to the system; the next start reverts them"
                )
            }
        }
        self.firewall.into_iter().for_each(Firewall::end);
    }
}

/// The table of the kill switch. From now on the table is neither updated nor restored.
fn kill_switch(firewall: Option<&Firewall>) -> Option<Arc<Table>> {
    let firewall = firewall?;
    firewall.stop_following();
    firewall.kill_switch()
}

/// Deletes the table of a kill switch through the table's own socket, because the table may be in another
/// network namespace. A table that this run did not make is left to the next start.
pub(crate) fn open(table: Option<&Table>) -> io::Result<()> {
    let stranger = || io::Error::other("it is not of this run");
    table.ok_or_else(stranger)?.delete()
}

/// A kill switch that has outlived its device: routes and rules, and the packet filter's table.
pub(crate) struct HandedOn {
    pub(crate) leftover: Leftover,
    pub(crate) table: Option<Arc<Table>>,
}

/// The settings that affect the route of datagrams. If the tunnel's routes would lead even these datagrams into
/// the tunnel, they get a mark; vpnd chooses one if the configuration has none.
pub(crate) async fn egress(config: &Config, netlink: &Netlink, would_loop: bool) -> Egress {
    egress_beside(config, netlink, would_loop, None).await
}

/// The same for a running tunnel, which keeps a mark that vpnd has `chosen`.
pub(crate) async fn egress_beside(
    config: &Config,
    netlink: &Netlink,
    would_loop: bool,
    chosen: Option<u32>,
) -> Egress {
    let mut egress = config.socket.egress();
    if egress.mark == 0 && would_loop {
        egress.mark = match chosen {
            Some(mark) => mark,
            None => netlink.free_mark().await.value,
        };
    }
    egress
}

/// Reports a source address that is not ours yet.
pub(crate) fn check_sources(wanted: &Socket, egress: &Egress) -> Result<(), BindError> {
    for source in &wanted.sources {
        match egress.check_source(*source) {
            Err(error @ BindError::SourceNotOurs { .. }) => {
                tracing::warn!("{error}. Nothing is sent until an interface has it");
            }
            checked => checked?,
        }
    }
    Ok(())
}

/// Adds the kill switch's routes and rules, if the configuration has one, and returns the leftovers of an
/// earlier run. `mark` is the mark of the tunnel's own datagrams, if the kill switch would block them without
/// it.
///
/// # Errors
///
/// The kernel's error.
pub(crate) async fn guard(
    config: &Config,
    netlink: &Netlink,
    mark: Option<Mark>,
) -> Result<Undo, Error> {
    let mut undo = left_behind(config, netlink.namespace());
    if config.has_kill_switch() {
        let own = mark.map(|mark| Own { mark, port: 0, peers: Vec::new() });
        let name = config.interface.name.as_deref().unwrap_or(&config.name);
        netlink.guard(&options::link(config, name, 0, own), &mut undo).await?;
    }
    Ok(undo)
}

/// How rules match the mark of the tunnel's own datagrams. If the configuration sets the mark, other programs
/// may use each of its bits. If vpnd chose the mark, no other program uses its bits.
pub(crate) fn mark(config: &Config, egress: &Egress) -> Mark {
    if config.socket.fwmark == 0 { Mark::bits(egress.mark) } else { Mark::exact(egress.mark) }
}

/// The leftovers of an earlier run, read from the file beside the control socket. Both the file's directory and
/// the kernel's tables are emptied at boot.
fn left_behind(config: &Config, namespace: Namespace) -> Undo {
    let path = journal(config);
    let opened = Journal::open(&path, namespace).inspect_err(|error| {
        let path = path.display();
        tracing::warn!(
            "cannot open {path}: {error}; the next start cannot revert what a crash leaves behind"
        );
    });
    let undo = opened.map_or_else(|_| Undo::default(), Undo::resume);
    // Without this file, an administrator has to repeat the settings of the bridge port.
    let port = PortMemory::open(&path.with_extension("port"), namespace);
    undo.remembering(port.unwrap_or_default())
}

/// The extension of the journal, which is beside the control socket.
pub(crate) const JOURNAL: &str = "changes";

fn journal(config: &Config) -> PathBuf {
    config.service.control.with_extension(JOURNAL)
}

/// Records that a start of the tunnel with this control socket has begun. Even if the start fails, a kill
/// switch that it found stays in place.
pub(crate) fn announce_start(control: &Path) {
    if let Err(error) = Journal::announce_start(&control.with_extension(JOURNAL)) {
        tracing::debug!(%error, "cannot announce the start: the kill switch of an earlier run may be removed before this one takes it over");
    }
}
