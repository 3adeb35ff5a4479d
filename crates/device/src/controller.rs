//! The controller that the device may become a port of: an existing bridge or VRF.

use std::fmt;

use rtnetlink::Handle;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVrf, LinkAttribute, LinkInfo, LinkMessage,
};

use crate::Link;
use crate::error::{Error, Step};
use crate::link::{self, Device};
use crate::port;
use crate::undo::{Change, Undo};

/// The kinds of devices that have ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Joins its ports to one LAN.
    Bridge,
    /// Has its own routing table for packets that are received on its ports.
    Vrf,
}

impl Kind {
    /// Its name in `ip link` and in the configuration.
    const fn word(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Vrf => "vrf",
        }
    }

    /// Its key in the configuration.
    pub(crate) const fn key(self) -> &'static str {
        match self {
            Self::Bridge => "[interface] bridge",
            Self::Vrf => "[interface] vrf",
        }
    }

    fn step(self, controller: u32) -> Step {
        match self {
            Self::Bridge => Step::Bridge(controller),
            Self::Vrf => Step::Vrf(controller),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The path cost of the tunnel in the spanning tree. The kernel would give a TAP device the cost of a very
/// fast link (2, while a gigabit link has 5), and block a parallel cable instead of the tunnel.
pub const DEFAULT_STP_COST: u32 = 200;

/// Makes the device a port of the controller in `link`. If that is a VRF, returns the routing table for the
/// device's routes.
pub(crate) async fn join(
    handle: &Handle,
    device: Device<'_>,
    link: &Link,
    undo: &mut Undo,
) -> Result<Option<u32>, Error> {
    let mut table = None;
    for (name, kind) in [(&link.bridge, Kind::Bridge), (&link.vrf, Kind::Vrf)] {
        let Some(name) = name else { continue };
        let controller = find(handle, name, kind).await?;
        let joined = become_port(handle, device, kind.step(controller.header.index), undo).await?;
        if kind == Kind::Bridge {
            set_up_port(handle, device, (link, name, joined), undo).await?;
        }
        table = vrf_table(&controller);
    }
    Ok(table)
}

/// Sets the port settings. A device that is still a port from an earlier run keeps its settings; the
/// configuration's path cost has precedence.
async fn set_up_port(
    handle: &Handle,
    device: Device<'_>,
    (link, bridge, joined): (&Link, &str, bool),
    undo: &mut Undo,
) -> Result<(), Error> {
    let known = if joined { undo.port.recall(bridge) } else { None };
    if let Some(port) = &known {
        port.write(handle, device.index).await;
    }
    let default = (joined && known.is_none()).then_some(DEFAULT_STP_COST);
    let Some(cost) = link.stp_cost.or(default) else { return Ok(()) };
    let set = port::set_cost(handle, device.index, cost).await;
    set.map_err(|error| Error::refused(Step::Cost(cost), device.name, &error))
}

/// The table of the VRF in `link`, if it names one.
pub(crate) async fn table(handle: &Handle, link: &Link) -> Result<Option<u32>, Error> {
    match &link.vrf {
        Some(name) => Ok(vrf_table(&find(handle, name, Kind::Vrf).await?)),
        None => Ok(None),
    }
}

/// The controller of the device, if it is to have one.
pub(crate) fn wanted(link: &Link) -> Option<(String, Kind)> {
    let bridge = link.bridge.clone().map(|name| (name, Kind::Bridge));
    bridge.or_else(|| link.vrf.clone().map(|name| (name, Kind::Vrf)))
}

/// Makes the device a port again; returns whether it was not one.
pub(crate) async fn rejoin(
    handle: &Handle,
    device: Device<'_>,
    name: &str,
    kind: Kind,
) -> Result<bool, Error> {
    let wanted = find(handle, name, kind).await?.header.index;
    let is = link::at(handle, device.index).await.map_or(wanted, |link| controller(&link));
    if is != wanted {
        link::change(handle, device, kind.step(wanted)).await?;
    }
    Ok(is != wanted)
}

/// The bridge or VRF of this name.
pub(crate) async fn find(handle: &Handle, name: &str, kind: Kind) -> Result<LinkMessage, Error> {
    let missing = |error| match error {
        Error::NoDevice { device } => Error::NoController { name: device, kind },
        other => other,
    };
    let found = link::find(handle, name).await.map_err(missing)?;
    match kind_of(&found) {
        Some(InfoKind::Bridge) if kind == Kind::Bridge => Ok(found),
        Some(InfoKind::Vrf) if kind == Kind::Vrf => Ok(found),
        _ => Err(Error::NotA { name: name.to_owned(), kind }),
    }
}

/// Makes the device a port of this controller; returns whether it was not one before.
async fn become_port(
    handle: &Handle,
    device: Device<'_>,
    step: Step,
    undo: &mut Undo,
) -> Result<bool, Error> {
    let before = controller(&link::find(handle, device.name).await?);
    let (Step::Bridge(wanted) | Step::Vrf(wanted)) = step else { return Ok(false) };
    if before != wanted {
        link::change(handle, device, step).await?;
        undo.extend([Change::Link(link::message(device.index, Step::Bridge(before)))]);
    }
    Ok(before != wanted)
}

/// The index of a device's controller; 0 is none.
pub(crate) fn controller(link: &LinkMessage) -> u32 {
    let controllers = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::Controller(index) => Some(*index),
        _ => None,
    });
    controllers.max().unwrap_or(0)
}

/// The kind of a device; `None` for hardware.
pub(crate) fn kind_of(link: &LinkMessage) -> Option<&InfoKind> {
    info(link).find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    })
}

fn vrf_table(link: &LinkMessage) -> Option<u32> {
    let data = info(link).find_map(|info| match info {
        LinkInfo::Data(InfoData::Vrf(data)) => Some(data),
        _ => None,
    })?;
    data.iter().find_map(|attribute| match attribute {
        InfoVrf::TableId(table) => Some(*table),
        _ => None,
    })
}

/// A device's attributes of its kind and its controller.
pub(crate) fn info(link: &LinkMessage) -> impl Iterator<Item = &LinkInfo> {
    let infos = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    infos.flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Not every kernel has VRFs, so the attributes of one are written out here.
    #[test]
    fn a_vrf_says_which_table_is_its_own() {
        let vrf = LinkInfo::Data(InfoData::Vrf(vec![InfoVrf::TableId(1001)]));
        let mut link = LinkMessage::default();
        link.attributes = vec![
            LinkAttribute::Mtu(65575),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vrf), vrf]),
        ];
        assert_eq!((kind_of(&link), vrf_table(&link)), (Some(&InfoKind::Vrf), Some(1001)));
        assert_eq!(controller(&link), 0);
    }
}
