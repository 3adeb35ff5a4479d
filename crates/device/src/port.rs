//! The settings of a bridge port: cost, isolation, VLANs and others. The bridge forgets all of them when the
//! port leaves, so they have to be set again when it returns.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use futures_util::TryStreamExt;
use rtnetlink::packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    AfSpecBridge, BridgeVlanInfo, InfoBridgePort, InfoPortData, InfoPortKind, LinkAttribute,
    LinkExtentMask, LinkInfo, LinkMessage,
};
use rtnetlink::{Handle, LinkBridgePort, LinkBridgeVlan, LinkMessageBuilder};

use crate::journal::{Namespace, hex, open_own, unhex};
use crate::{controller, link};

/// The settings of one bridge port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Port {
    settings: Vec<InfoBridgePort>,
    vlans: Vec<BridgeVlanInfo>,
}

impl Port {
    /// Reads the kernel's settings; `None` if the device is not a bridge port.
    pub(crate) async fn read(handle: &Handle, link: &LinkMessage) -> Option<Self> {
        let settings = settings(link)?;
        Some(Self { settings, vlans: vlans(handle, link.header.index).await })
    }

    fn encode(&self) -> Vec<u8> {
        let data = LinkInfo::PortData(InfoPortData::BridgePort(self.settings.clone()));
        let mut message = message(0, &self.vlans);
        message
            .attributes
            .push(LinkAttribute::LinkInfo(vec![LinkInfo::PortKind(InfoPortKind::Bridge), data]));
        let message = RouteNetlinkMessage::SetLink(message);
        let mut bytes = vec![0; NetlinkSerializable::buffer_len(&message)];
        message.serialize(&mut bytes);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut header = NetlinkHeader::default();
        header.message_type = SET_LINK;
        let RouteNetlinkMessage::SetLink(link) =
            RouteNetlinkMessage::deserialize(&header, bytes).ok()?
        else {
            return None;
        };
        let vlans = link.attributes.iter().flat_map(vlans_in).collect();
        Some(Self { settings: settings(&link)?, vlans })
    }

    /// Applies these settings to a port. If the kernel refuses one of them, the others are still set.
    pub(crate) async fn write(&self, handle: &Handle, index: u32) {
        for setting in &self.settings {
            note(set(handle, index, setting.clone()).await);
        }
        let there = vlans(handle, index).await;
        let only_in = |one: &[BridgeVlanInfo], other: &[BridgeVlanInfo]| -> Vec<_> {
            one.iter().filter(|vlan| !other.contains(vlan)).copied().collect()
        };
        let (gone, new) = (only_in(&there, &self.vlans), only_in(&self.vlans, &there));
        change_vlans(handle, index, &gone, &new).await;
    }
}

/// The known settings of our device's port.
#[derive(Debug)]
pub(crate) struct KnownPort {
    last: Option<Port>,
    memory: PortMemory,
}

impl KnownPort {
    pub(crate) const fn new(memory: PortMemory) -> Self {
        Self { last: None, memory }
    }

    /// The device is a port of another bridge now, or of none.
    pub(crate) fn forget(&mut self) {
        self.last = None;
    }

    /// Restores the last known settings if the port `came_back`; reads the settings of a port that did not
    /// leave.
    pub(crate) async fn keep(
        &mut self,
        handle: &Handle,
        index: u32,
        (bridge, came_back): (&str, bool),
    ) {
        if let (Some(last), true) = (&self.last, came_back) {
            return last.write(handle, index).await;
        }
        let Some(link) = link::at(handle, index).await else { return };
        let Some(port) = Port::read(handle, &link).await else { return };
        if self.last.as_ref() != Some(&port) {
            self.memory.keep(bridge, &port);
            self.last = Some(port);
        }
    }
}

/// Sets this port's path cost in the spanning tree.
pub(crate) async fn set_cost(
    handle: &Handle,
    index: u32,
    cost: u32,
) -> Result<(), rtnetlink::Error> {
    set(handle, index, InfoBridgePort::Cost(cost)).await
}

async fn set(handle: &Handle, index: u32, setting: InfoBridgePort) -> Result<(), rtnetlink::Error> {
    let message = LinkBridgePort::new(index).append_info_data(setting).build();
    handle.link().change(message).execute().await
}

async fn change_vlans(
    handle: &Handle,
    index: u32,
    gone: &[BridgeVlanInfo],
    new: &[BridgeVlanInfo],
) {
    if !gone.is_empty() {
        let gone = message(index, gone);
        note(handle.link().del_with_message(gone).execute().await);
    }
    if !new.is_empty() {
        note(handle.link().set(message(index, new)).execute().await);
    }
}

fn message(index: u32, vlans: &[BridgeVlanInfo]) -> LinkMessage {
    let with =
        |message: LinkMessageBuilder<_>, vlan: &BridgeVlanInfo| message.vlan(vlan.vid, vlan.flags);
    vlans.iter().fold(LinkBridgeVlan::new(index), with).build()
}

fn note(result: Result<(), rtnetlink::Error>) {
    if let Err(error) = result {
        tracing::debug!(%error, "a setting of the bridge's port cannot be put back");
    }
}

/// The attributes of a port that can be read and then set again. The port's state is not included, because it
/// results from the spanning tree; nor are its statistics.
fn settings(link: &LinkMessage) -> Option<Vec<InfoBridgePort>> {
    let data = controller::info(link).find_map(|info| match info {
        LinkInfo::PortData(InfoPortData::BridgePort(data)) => Some(data),
        _ => None,
    })?;
    Some(data.iter().filter(|setting| is_settable(setting)).cloned().collect())
}

fn is_settable(setting: &InfoBridgePort) -> bool {
    use InfoBridgePort as Is;
    matches!(
        setting,
        Is::Priority(_)
            | Is::Cost(_)
            | Is::HairpinMode(_)
            | Is::Guard(_)
            | Is::Protect(_)
            | Is::FastLeave(_)
            | Is::Learning(_)
            | Is::UnicastFlood(_)
            | Is::ProxyARP(_)
            | Is::ProxyARPWifi(_)
            | Is::MulticastRouter(_)
            | Is::MulticastFlood(_)
            | Is::MulticastToUnicast(_)
            | Is::VlanTunnel(_)
            | Is::BroadcastFlood(_)
            | Is::GroupFwdMask(_)
            | Is::NeighSupress(_)
            | Is::Isolated(_)
            | Is::BackupPort(_)
            | Is::MulticastEhtHostsLimit(_)
            | Is::Locked(_)
            | Is::Mab(_)
            | Is::MulticastMaxGroups(_)
            | Is::NeighVlanSuppress(_)
    )
}

/// The VLANs of a port, one entry each. The kernel returns them only in a dump.
async fn vlans(handle: &Handle, index: u32) -> Vec<BridgeVlanInfo> {
    let request = handle.link().get();
    let filter = vec![LinkExtentMask::Brvlan];
    let mut links = request.set_filter_mask(AddressFamily::Bridge, filter).execute();
    let mut vlans = Vec::new();
    while let Ok(Some(link)) = links.try_next().await {
        if link.header.index == index {
            vlans.extend(link.attributes.iter().flat_map(vlans_in));
        }
    }
    vlans
}

fn vlans_in(attribute: &LinkAttribute) -> Vec<BridgeVlanInfo> {
    let LinkAttribute::AfSpecBridge(specs) = attribute else { return Vec::new() };
    let vlan = |spec: &AfSpecBridge| match spec {
        AfSpecBridge::VlanInfo(vlan) => Some(*vlan),
        _ => None,
    };
    specs.iter().filter_map(vlan).collect()
}

/// The last known settings of the port, in a file beside the [`Journal`](crate::Journal) that is lost at boot
/// as well. The file lets an administrator's settings of the port survive a restart of vpnd.
#[derive(Debug, Default)]
pub struct PortMemory {
    file: Option<File>,
    namespace: Option<u64>,
}

impl PortMemory {
    /// Opens the file, or creates it.
    ///
    /// # Errors
    ///
    /// If the file can be neither opened nor created, or others may write to it.
    pub fn open(path: &Path, namespace: Namespace) -> io::Result<Self> {
        Ok(Self { file: Some(open_own(path)?), namespace: namespace.number() })
    }

    /// The recorded settings of our port of this bridge.
    pub(crate) fn recall(&mut self, bridge: &str) -> Option<Port> {
        let (file, header) = (self.file.as_mut()?, header(self.namespace?, bridge));
        let mut text = String::new();
        file.rewind().ok()?;
        file.take(MAX_LEN).read_to_string(&mut text).ok()?;
        let (first, hex) = text.split_once('\n')?;
        (first == header).then(|| Port::decode(&unhex(hex.trim_end())?)).flatten()
    }

    /// Records the settings. If the file cannot be written, only these settings are lost.
    pub(crate) fn keep(&mut self, bridge: &str, port: &Port) {
        let (Some(file), Some(namespace)) = (&mut self.file, self.namespace) else { return };
        let text = format!("{}\n{}\n", header(namespace, bridge), hex(&port.encode()));
        let write = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(text.as_bytes())
        };
        if let Err(error) = write(file) {
            tracing::debug!(%error, "how the port is set up is not written down");
        }
    }
}

fn header(namespace: u64, bridge: &str) -> String {
    format!("vpnd port 1, network namespace {namespace}, bridge {bridge}")
}

/// `RTM_SETLINK`.
const SET_LINK: u16 = 19;
/// A file longer than this is invalid.
const MAX_LEN: u64 = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::left_behind::Notes;
    use rtnetlink::packet_route::link::BridgeVlanInfoFlags;

    /// Not every kernel's bridge supports VLANs, so the test contains their attributes instead of reading them.
    #[test]
    fn a_port_is_remembered_with_its_vlans_for_its_own_bridge_alone() {
        let vlan = |vid, flags| BridgeVlanInfo { vid, flags };
        let pvid = BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged;
        let port = Port {
            settings: vec![InfoBridgePort::Cost(77), InfoBridgePort::Isolated(true)],
            vlans: vec![vlan(1, pvid), vlan(20, BridgeVlanInfoFlags::empty())],
        };
        let notes = Notes::new("port");
        let open = || PortMemory::open(&notes.0, Namespace::current()).unwrap();
        open().keep("br0", &port);
        assert_eq!(open().recall("br0"), Some(port));
        assert_eq!(open().recall("br1"), None);
        std::fs::write(&notes.0, "vpnd port 1, what is this").unwrap();
        assert_eq!(open().recall("br0"), None);
    }
}
