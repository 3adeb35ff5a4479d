//! Reverts changes: vpnd does so at its end, or the next start does so after a sudden end.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rtnetlink::packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, LinkAttribute, LinkFlags, LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::packet_route::rule::RuleMessage;
use rtnetlink::sys::Socket;
use rtnetlink::{Error, Handle};

use crate::error::errno;
use crate::journal::{Journal, Named};
use crate::leftover::Leftover;
use crate::port::PortMemory;
use crate::{is_our_protocol, link, route, rule};

/// Every change that was made, in order, and the journal that records the changes for the next start.
#[derive(Debug, Default)]
#[must_use = "what was changed stays so unless it is undone"]
pub struct Undo {
    changes: Vec<Change>,
    journal: Journal,
    pub(crate) port: PortMemory,
    shared: bool,
}

/// One change, represented by what is needed to revert it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// An address that was added.
    Address(AddressMessage),
    /// A route that was added.
    Route(RouteMessage),
    /// A rule that was added.
    Rule(RuleMessage),
    /// The previous value of a device's property.
    Link(LinkMessage),
}

/// The changes that are not reverted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stays {
    /// Changes to the device, with its addresses and routes, so that programs that use them do not notice a
    /// restart of vpnd.
    pub device: bool,
    /// Blackhole routes and rules: after an end that nobody requested, packets must not take another route
    /// before the next start. Blackholes that a failed start has added itself are reverted.
    pub guards: bool,
}

impl Undo {
    /// Starts with no changes except for those that an earlier run left behind and recorded in `journal`.
    pub fn resume(mut journal: Journal) -> Self {
        Self { changes: journal.left_behind(), journal, ..Self::default() }
    }

    /// The same value, with the settings of the device's bridge port.
    pub fn remembering(self, port: PortMemory) -> Self {
        Self { port, ..self }
    }

    /// An earlier process still uses the device: what it has changed makes way for nothing.
    pub fn share(&mut self) {
        self.shared = true;
    }

    pub(crate) const fn is_shared(&self) -> bool {
        self.shared
    }

    /// Whether the changes include a blackhole.
    pub fn guards(&self) -> bool {
        self.changes.iter().any(Change::drops)
    }

    /// Another descriptor of the open journal, for a process that continues with the journal; `None` if there
    /// is no journal.
    ///
    /// # Errors
    ///
    /// If the process has no free descriptor.
    pub fn journal(&self) -> io::Result<Option<OwnedFd>> {
        self.journal.descriptor()
    }

    /// Lets another process continue with the journal.
    pub(crate) fn release(&mut self) {
        self.journal.release();
    }

    /// Continues with the journal after another process has had it: with the changes that it names now. Returns false if
    /// that process still has it.
    pub(crate) fn retake(&mut self) -> bool {
        match self.journal.retake() {
            Ok(true) => self.changes = self.journal.left_behind(),
            Ok(false) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(error) => tracing::warn!(%error, "the journal is not continued with"),
        }
        true
    }

    /// The packet filter's table of the kill switch, if an earlier run or this run has recorded one.
    pub fn table(&self) -> Option<&str> {
        self.journal.table()
    }

    /// Records the name of that table before it is created, or that there is no table any more.
    pub fn set_table(&mut self, table: Option<&str>) {
        self.journal.set_table(table);
    }

    /// Deletes that table, if there is one. The journal names the table until `delete` has succeeded: until
    /// then the table drops packets, and the next start or `release` has to find it.
    ///
    /// # Errors
    ///
    /// The error of `delete`.
    pub fn delete_table(&mut self, delete: impl FnOnce(&str) -> io::Result<()>) -> io::Result<()> {
        if let Some(table) = self.table() {
            delete(table)?;
            self.set_table(None);
        }
        Ok(())
    }

    /// Like [`delete_table`](Self::delete_table), but a failure is only logged.
    pub(crate) fn try_delete_table(&mut self, delete: impl FnOnce(&str) -> io::Result<()>) {
        if let Err(error) = self.delete_table(delete) {
            crate::leftover::still_drops(&error);
        }
    }

    /// Whether the next start would find the remaining changes.
    pub(crate) fn can_be_handed_on(&self) -> bool {
        self.journal.is_kept()
    }

    /// Records which device has the index that the following changes use.
    pub(crate) fn name(&mut self, device: Named) {
        self.journal.name(device);
    }

    /// Whether the changes include that the device sends nothing by itself.
    pub(crate) fn has_silenced(&self, index: u32) -> bool {
        let silences = |change: &Change| match change {
            Change::Link(link) => {
                link.header.index == index && link::address_generation(link).is_some()
            }
            _ => false,
        };
        self.changes.iter().any(silences)
    }

    /// Whether the changes are about this device with this name.
    pub(crate) fn knows(&self, device: &Named) -> bool {
        self.journal.devices().contains(device)
    }

    /// Forgets the changes to devices that are gone: other devices may have their indices now.
    pub(crate) async fn forget_strangers(&mut self, handle: &Handle) {
        let mut there = Vec::new();
        for device in self.journal.devices() {
            if link::by_index(handle, device.index).await.as_ref() == Some(device) {
                there.push(device.index);
            }
        }
        let is_known = |change: &Change| change.device().is_none_or(|index| there.contains(&index));
        let (known, strange): (Vec<_>, Vec<_>) = self.changes.drain(..).partition(is_known);
        self.changes = known;
        strange.iter().for_each(|change| self.journal.remove(change));
    }

    /// Forgets the changes to a device that cannot be reached any more.
    pub(crate) fn forget_device(&mut self, index: u32) {
        self.forget(|change| change.device() == Some(index));
    }

    /// Records a change that was made.
    pub(crate) fn extend(&mut self, changes: impl IntoIterator<Item = Change>) {
        changes.into_iter().for_each(|change| self.intend(change));
    }

    /// Records a change before it is made. When this returns, the change is in the journal.
    pub(crate) fn intend(&mut self, change: Change) {
        self.journal.add(&change);
        self.changes.push(change);
    }

    /// Forgets the last change, because it was not made.
    pub(crate) fn forget_last(&mut self) {
        if let Some(change) = self.changes.pop() {
            self.journal.remove(&change);
        }
    }

    /// Forgets every record of a property of the device that was set before as well: only the first one has the value to
    /// restore.
    pub(crate) fn keep_first_of_link(&mut self) {
        let mut seen = Vec::new();
        self.forget(|change| {
            let Change::Link(link) = change else { return false };
            let of = (link.header.index, link::property(link));
            let again = seen.contains(&of);
            seen.push(of);
            again
        });
    }

    /// Forgets changes without reverting them.
    pub(crate) fn forget(&mut self, mut is_over: impl FnMut(&Change) -> bool) {
        let (gone, kept): (Vec<_>, Vec<_>) =
            self.changes.drain(..).partition(|change| is_over(change));
        self.changes = kept;
        gone.iter().for_each(|change| self.journal.remove(change));
    }

    pub(crate) fn contains(&self, change: &Change) -> bool {
        self.changes.contains(change)
    }

    /// The number of changes to revert.
    pub(crate) fn len(&self) -> usize {
        self.changes.len()
    }

    pub(crate) fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Reverts the last changes, the latest first, until `len` changes are left.
    pub(crate) async fn back_to(&mut self, len: usize, handle: &Handle) {
        while self.changes.len() > len {
            let Some(change) = self.changes.pop() else { return };
            self.journal.remove(&change);
            change.take_back(handle).await;
        }
    }

    /// Reverts the changes for which `keep` is false.
    pub(crate) async fn only(&mut self, keep: impl Fn(&Change) -> bool, handle: &Handle) {
        let (kept, gone): (Vec<_>, Vec<_>) = self.changes.drain(..).partition(keep);
        self.changes = kept;
        for change in gone.into_iter().rev() {
            self.journal.remove(&change);
            change.take_back(handle).await;
        }
    }

    /// Reverts everything except for the changes that `stays` names.
    pub(crate) async fn run(mut self, handle: &Handle, stays: Stays) {
        let guarded = stays.guards && self.guards();
        let stays = |change: &Change| {
            (stays.device && change.device().is_some()) || (guarded && change.is_guard())
        };
        self.only(stays, handle).await;
        if self.changes.is_empty() && self.table().is_none() {
            self.journal.end();
        }
    }

    /// Reverts everything except for blackholes and the rules that lead to them, and hands these on.
    pub(crate) async fn hand_on(
        mut self,
        handle: &Handle,
        socket: &Arc<Socket>,
        device: bool,
    ) -> Option<Leftover> {
        let stays = |change: &Change| (device && change.device().is_some()) || change.is_guard();
        self.only(stays, handle).await;
        let (mut guards, rest): (Vec<_>, Vec<_>) =
            self.changes.into_iter().partition(Change::is_guard);
        guards.reverse();
        Leftover::new(socket, guards, rest.is_empty(), self.journal)
    }
}

impl Change {
    pub(crate) async fn take_back(self, handle: &Handle) {
        let result = match self {
            Self::Address(address) => handle.address().del(address).execute().await,
            Self::Route(route) => handle.route().del(route).execute().await,
            Self::Rule(rule) => handle.rule().del(rule).execute().await,
            Self::Link(before) => handle.link().set(before).execute().await,
        };
        if let Err(error) = result
            && !is_gone(&error)
        {
            tracing::warn!(%error, "cannot revert a change to the system");
        }
    }

    /// Whether the change is a blackhole route or rule.
    pub(crate) fn drops(&self) -> bool {
        match self {
            Self::Route(route) => route::drops(route),
            Self::Rule(rule) => rule::drops(rule),
            Self::Address(_) | Self::Link(_) => false,
        }
    }

    /// Whether the change is a blackhole, or a rule that leads to the table of one.
    pub(crate) fn is_guard(&self) -> bool {
        self.drops() || matches!(self, Self::Rule(_))
    }

    /// The table of a rule, or of a default route.
    pub(crate) fn table(&self) -> Option<u32> {
        match self {
            Self::Rule(rule) => Some(rule::table(rule)),
            Self::Route(route) => route::table_of_default(route),
            _ => None,
        }
    }

    /// The index of the changed device; `None` for a change that outlives every device.
    pub(crate) fn device(&self) -> Option<u32> {
        match self {
            Self::Address(address) => Some(address.header.index),
            Self::Link(link) => Some(link.header.index),
            Self::Rule(_) => None,
            Self::Route(route) => route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            }),
        }
    }

    /// The netlink message that reverts the change: its type and its bytes.
    pub(crate) fn encode(&self) -> (u16, Vec<u8>) {
        let message = match self.clone() {
            Self::Address(address) => RouteNetlinkMessage::DelAddress(address),
            Self::Route(route) => RouteNetlinkMessage::DelRoute(route),
            Self::Rule(rule) => RouteNetlinkMessage::DelRule(rule),
            Self::Link(link) => RouteNetlinkMessage::SetLink(link),
        };
        let mut bytes = vec![0; NetlinkSerializable::buffer_len(&message)];
        message.serialize(&mut bytes);
        (message.message_type(), bytes)
    }

    /// The change that a message reverts; `None` if vpnd never makes a change that this message reverts.
    pub(crate) fn decode(kind: u16, bytes: &[u8]) -> Option<Self> {
        let mut header = NetlinkHeader::default();
        header.message_type = kind;
        match RouteNetlinkMessage::deserialize(&header, bytes).ok()? {
            RouteNetlinkMessage::DelAddress(address) => Some(Self::Address(address)),
            RouteNetlinkMessage::DelRoute(route) => {
                is_our_protocol(route.header.protocol).then_some(Self::Route(route))
            }
            RouteNetlinkMessage::DelRule(rule) => rule::is_ours(&rule).then_some(Self::Rule(rule)),
            RouteNetlinkMessage::SetLink(link) => sets_back(&link).then_some(Self::Link(link)),
            _ => None,
        }
    }
}

/// Whether the message changes a device only in ways in which vpnd may have to revert a change.
fn sets_back(link: &LinkMessage) -> bool {
    let flags = link.header.change_mask;
    let generation = |inet6: &AfSpecInet6| matches!(inet6, AfSpecInet6::AddrGenMode(_));
    (LinkFlags::Up | LinkFlags::Multicast).contains(flags)
        && !link.header.flags.contains(LinkFlags::Up)
        && link.attributes.iter().all(|attribute| match attribute {
            LinkAttribute::Address(_)
            | LinkAttribute::Mtu(_)
            | LinkAttribute::TxQueueLen(_)
            | LinkAttribute::Controller(_) => true,
            LinkAttribute::AfSpecUnspec(families) => families.iter().all(
                |family| matches!(family, AfSpecUnspec::Inet6(of) if of.iter().all(generation)),
            ),
            _ => false,
        })
}

/// Whether the device, address, route or rule was already gone.
pub(crate) fn is_gone(error: &Error) -> bool {
    let gone = [
        libc::ENODEV,
        libc::ENXIO,
        libc::EADDRNOTAVAIL,
        libc::ESRCH,
        libc::ENOENT,
        // A kernel without IPv6 has no IPv6 objects.
        libc::EOPNOTSUPP,
        libc::EAFNOSUPPORT,
    ];
    gone.contains(&errno(error))
}
