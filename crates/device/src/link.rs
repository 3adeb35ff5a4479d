//! The device itself: hardware address, MTU, queue length, up or down.

use futures_util::TryStreamExt;
use rtnetlink::packet_core::Nla;
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec};

use crate::error::{Error, Step, errno};
use crate::journal::Named;
use crate::undo::{Change, Undo};
use crate::{Link, controller, watch};

/// A device: its name, for messages, and its index.
#[derive(Clone, Copy)]
pub(crate) struct Device<'a> {
    pub(crate) name: &'a str,
    pub(crate) index: u32,
}

/// Changes the properties that differ, and returns the device.
pub(crate) async fn set<'a>(
    handle: &Handle,
    link: &'a Link,
    undo: &mut Undo,
) -> Result<Device<'a>, Error> {
    let before = find(handle, &link.name).await?;
    let device = Device { name: &link.name, index: before.header.index };
    undo.name(named(&before));
    let joins = link.bridge.is_some() && controller::controller(&before) == 0;
    let mac = link.mac.or_else(|| link.mac_as_port.filter(|_| joins));
    for step in steps(link, mac) {
        let old = current(&before, step);
        if old == Some(step) {
            continue;
        }
        match change(handle, device, step).await {
            Ok(()) => undo.extend(old.map(|old| Change::Link(message(device.index, old)))),
            // The tunnel also works with a shorter queue.
            Err(error) if error.is_permission() && matches!(step, Step::QueueLen(_)) => {
                tracing::warn!("{error}");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(device)
}

/// The steps that set the wanted properties of the device.
fn steps(link: &Link, mac: Option<[u8; 6]>) -> impl Iterator<Item = Step> {
    let wanted = [
        mac.map(Step::Mac),
        link.multicast.map(Step::Multicast),
        link.mtu.map(Step::Mtu),
        link.txqueuelen.map(Step::QueueLen),
    ];
    wanted.into_iter().flatten()
}

/// Sets the device up, unless it is up. Returns whether it was down; then the device is also kept silent.
pub(crate) async fn up(
    handle: &Handle,
    device: Device<'_>,
    undo: &mut Undo,
) -> Result<bool, Error> {
    let before = find(handle, device.name).await?;
    if watch::is_up(&before) {
        return Ok(false);
    }
    if silence(handle, device.index).await {
        let mode = address_generation(&before);
        undo.extend(mode.map(|mode| Change::Link(generating(device.index, mode))));
    }
    change(handle, device, Step::Up).await?;
    undo.extend([Change::Link(LinkUnspec::new_with_index(device.index).down().build())]);
    Ok(true)
}

/// Prevents the kernel from generating a link-local address and soliciting routers on the device, so that an
/// unused tunnel sends nothing. A kernel without IPv6 refuses this setting, and sends nothing anyway.
pub(crate) async fn silence(handle: &Handle, index: u32) -> bool {
    handle.link().set(generating(index, In6AddrGenMode::None)).execute().await.is_ok()
}

/// The message that sets the kernel's mode of generating addresses.
fn generating(index: u32, mode: In6AddrGenMode) -> LinkMessage {
    let mode = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(mode)]);
    LinkMessageBuilder::<LinkUnspec>::default()
        .index(index)
        .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![mode]))
        .build()
}

/// The kernel's mode of generating addresses; `None` if IPv6 is not configured on the device, for example
/// because its MTU is below 1280.
pub(crate) fn address_generation(link: &LinkMessage) -> Option<In6AddrGenMode> {
    let families = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::AfSpecUnspec(families) => Some(families),
        _ => None,
    })?;
    let inet6 = families.iter().find_map(|family| match family {
        AfSpecUnspec::Inet6(attributes) => Some(attributes),
        _ => None,
    })?;
    inet6.iter().find_map(|attribute| match attribute {
        AfSpecInet6::AddrGenMode(mode) => Some(*mode),
        _ => None,
    })
}

pub(crate) async fn find(handle: &Handle, name: &str) -> Result<LinkMessage, Error> {
    let gone = || Error::NoDevice { device: name.to_owned() };
    let mut links = handle.link().get().match_name(name).execute();
    match links.try_next().await {
        Ok(link) => link.ok_or_else(gone),
        Err(error) if errno(&error) == libc::ENODEV => Err(gone()),
        Err(error) => Err(Error::refused(Step::Find, name, &error)),
    }
}

/// The device with this index; `None` if there is no such device, or the kernel does not answer.
pub(crate) async fn by_index(handle: &Handle, index: u32) -> Option<Named> {
    at(handle, index).await.map(|link| named(&link))
}

/// The device with this index, whatever its current name.
pub(crate) async fn at(handle: &Handle, index: u32) -> Option<LinkMessage> {
    let mut links = handle.link().get().match_index(index).execute();
    links.try_next().await.ok().flatten()
}

pub(crate) fn named(link: &LinkMessage) -> Named {
    let kind = controller::kind_of(link).map_or_else(|| "-".to_owned(), ToString::to_string);
    let name = watch::name(link).unwrap_or_default();
    Named { index: link.header.index, who: format!("{kind} {name}") }
}

pub(crate) async fn change(handle: &Handle, device: Device<'_>, step: Step) -> Result<(), Error> {
    let request = handle.link().set(message(device.index, step));
    request.execute().await.map_err(|error| Error::refused(step, device.name, &error))
}

pub(crate) fn message(index: u32, step: Step) -> LinkMessage {
    let builder = LinkMessageBuilder::<LinkUnspec>::default().index(index);
    match step {
        Step::Mtu(mtu) => builder.mtu(mtu),
        Step::QueueLen(len) => builder.append_extra_attribute(LinkAttribute::TxQueueLen(len)),
        Step::Mac(mac) => builder.address(mac.to_vec()),
        Step::Multicast(on) => builder.multicast(on),
        Step::Up => builder.up(),
        Step::Bridge(controller) | Step::Vrf(controller) => builder.controller(controller),
        Step::Find
        | Step::Cost(_)
        | Step::Address(..)
        | Step::Route(_)
        | Step::Follow(_)
        | Step::Rule(_) => builder,
    }
    .build()
}

/// The property that a message sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Property {
    /// The controller.
    Controller,
    /// The hardware address.
    Mac,
    /// Another one: the attribute's number, and the flags.
    Other((u16, LinkFlags)),
}

/// The property that is set by a message of vpnd, which sets only one.
pub(crate) fn property(message: &LinkMessage) -> Property {
    match message.attributes.first() {
        Some(LinkAttribute::Controller(_)) => Property::Controller,
        Some(LinkAttribute::Address(_)) => Property::Mac,
        attribute => {
            let kind = attribute.map(Nla::kind).unwrap_or_default();
            Property::Other((kind, message.header.change_mask))
        }
    }
}

/// The longest packet that a device accepts.
pub(crate) fn mtu(link: &LinkMessage) -> u32 {
    match current(link, Step::Mtu(0)) {
        Some(Step::Mtu(mtu)) => mtu,
        _ => 0,
    }
}

/// The hardware address.
pub(crate) fn mac(link: &LinkMessage) -> Option<[u8; 6]> {
    match current(link, Step::Mac([0; 6])) {
        Some(Step::Mac(mac)) => Some(mac),
        _ => None,
    }
}

/// Whether it supports broadcast, as Ethernet does.
pub(crate) async fn broadcasts(handle: &Handle, device: Device<'_>) -> Result<bool, Error> {
    Ok(find(handle, device.name).await?.header.flags.contains(LinkFlags::Broadcast))
}

/// The step that would restore the device's current state.
fn current(link: &LinkMessage, step: Step) -> Option<Step> {
    if let Step::Multicast(_) = step {
        return Some(Step::Multicast(link.header.flags.contains(LinkFlags::Multicast)));
    }
    link.attributes.iter().find_map(|attribute| match (step, attribute) {
        (Step::Mac(_), LinkAttribute::Address(mac)) => Some(Step::Mac(mac.first_chunk().copied()?)),
        (Step::Mtu(_), LinkAttribute::Mtu(mtu)) => Some(Step::Mtu(*mtu)),
        (Step::QueueLen(_), LinkAttribute::TxQueueLen(len)) => Some(Step::QueueLen(*len)),
        _ => None,
    })
}
