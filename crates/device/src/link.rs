//! The device itself: MTU, queue length, up or down.

use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec};

use crate::Link;
use crate::error::{Error, Step, errno};
use crate::undo::{Change, Undo};

/// A device by its name, for messages, and the kernel's number.
#[derive(Clone, Copy)]
pub(crate) struct Device<'a> {
    pub(crate) name: &'a str,
    pub(crate) index: u32,
}

/// Sets MTU and queue length where they differ, and returns the device.
pub(crate) async fn set<'a>(
    handle: &Handle,
    link: &'a Link,
    undo: &mut Undo,
) -> Result<Device<'a>, Error> {
    let before = find(handle, &link.name).await?;
    let device = Device { name: &link.name, index: before.header.index };
    for step in [link.mtu.map(Step::Mtu), link.txqueuelen.map(Step::QueueLen)].into_iter().flatten()
    {
        let old = current(&before, step);
        if old == Some(step) {
            continue;
        }
        change(handle, device, step).await?;
        undo.extend(old.map(|old| Change::Link(message(device.index, old))));
    }
    Ok(device)
}

/// Makes the device a port of a bridge that is there already.
pub(crate) async fn join(
    handle: &Handle,
    device: Device<'_>,
    bridge: &str,
    undo: &mut Undo,
) -> Result<(), Error> {
    let master = find(handle, bridge).await?.header.index;
    let before = controller(&find(handle, device.name).await?);
    if before != master {
        change(handle, device, Step::Bridge(master)).await?;
        undo.extend([Change::Link(message(device.index, Step::Bridge(before)))]);
    }
    Ok(())
}

/// Whose port a device is; 0 is nobody's.
fn controller(link: &LinkMessage) -> u32 {
    let controllers = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::Controller(index) => Some(*index),
        _ => None,
    });
    controllers.max().unwrap_or(0)
}

/// Sets the device up, unless it is.
pub(crate) async fn up(handle: &Handle, device: Device<'_>, undo: &mut Undo) -> Result<(), Error> {
    let before = find(handle, device.name).await?;
    if !before.header.flags.contains(LinkFlags::Up) {
        silence(handle, device, &before, undo).await;
        change(handle, device, Step::Up).await?;
        undo.extend([Change::Link(LinkUnspec::new_with_index(device.index).down().build())]);
    }
    Ok(())
}

/// Keeps the kernel from giving the device a link-local address and soliciting routers through it:
/// a tunnel that nobody uses sends nothing. A kernel without IPv6 refuses, and has no need of it.
async fn silence(handle: &Handle, device: Device<'_>, before: &LinkMessage, undo: &mut Undo) {
    let set = |mode| {
        let mode = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(mode)]);
        LinkMessageBuilder::<LinkUnspec>::default()
            .index(device.index)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![mode]))
            .build()
    };
    if handle.link().set(set(In6AddrGenMode::None)).execute().await.is_ok() {
        undo.extend(address_generation(before).map(|mode| Change::Link(set(mode))));
    }
}

fn address_generation(link: &LinkMessage) -> Option<In6AddrGenMode> {
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

async fn find(handle: &Handle, name: &str) -> Result<LinkMessage, Error> {
    let gone = || Error::NoDevice { device: name.to_owned() };
    let mut links = handle.link().get().match_name(name).execute();
    match links.try_next().await {
        Ok(link) => link.ok_or_else(gone),
        Err(error) if errno(&error) == libc::ENODEV => Err(gone()),
        Err(error) => Err(Error::refused(Step::Find, name, &error)),
    }
}

async fn change(handle: &Handle, device: Device<'_>, step: Step) -> Result<(), Error> {
    let request = handle.link().set(message(device.index, step));
    request.execute().await.map_err(|error| Error::refused(step, device.name, &error))
}

fn message(index: u32, step: Step) -> LinkMessage {
    let builder = LinkMessageBuilder::<LinkUnspec>::default().index(index);
    match step {
        Step::Mtu(mtu) => builder.mtu(mtu),
        Step::QueueLen(len) => builder.append_extra_attribute(LinkAttribute::TxQueueLen(len)),
        Step::Up => builder.up(),
        Step::Bridge(master) => builder.controller(master),
        Step::Find | Step::Address(_) | Step::Route(_) | Step::Rule(_) => builder,
    }
    .build()
}

/// The step that would lead back to where the device is.
fn current(link: &LinkMessage, step: Step) -> Option<Step> {
    link.attributes.iter().find_map(|attribute| match (step, attribute) {
        (Step::Mtu(_), LinkAttribute::Mtu(mtu)) => Some(Step::Mtu(*mtu)),
        (Step::QueueLen(_), LinkAttribute::TxQueueLen(len)) => Some(Step::QueueLen(*len)),
        _ => None,
    })
}
