//! Addresses, with or without a far end.

use std::net::IpAddr;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::Handle;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};

use crate::error::{Error, Step, errno};
use crate::link::Device;
use crate::undo::{Change, Undo};

/// Each of our addresses with its far end, if it has one.
pub(crate) fn pairs(
    ours: &[IpNet],
    peers: &[IpAddr],
) -> Result<Vec<(IpNet, Option<IpAddr>)>, Error> {
    let mut left = peers.to_vec();
    let mut pairs = Vec::with_capacity(ours.len());
    for net in ours {
        let peer = left.iter().position(|peer| peer.is_ipv4() == net.addr().is_ipv4());
        pairs.push((*net, peer.map(|at| left.remove(at))));
    }
    match left.first() {
        Some(peer) => Err(Error::LonelyPeer { peer: *peer }),
        None => Ok(pairs),
    }
}

/// Adds one address. One that is there already stays, and is not ours to remove.
pub(crate) async fn add(
    handle: &Handle,
    device: Device<'_>,
    ours: IpNet,
    peer: Option<IpAddr>,
    undo: &mut Undo,
) -> Result<(), Error> {
    let message = message(device.index, ours, peer);
    let mut request = handle.address().add(device.index, ours.addr(), ours.prefix_len());
    *request.message_mut() = message.clone();
    match request.execute().await {
        Ok(()) => undo.extend([Change::Address(message)]),
        Err(error) if errno(&error) == libc::EEXIST => {}
        // Who may not add one may find it there.
        Err(error) if errno(&error) == libc::EPERM && exists(handle, &message).await => {}
        Err(error) => return Err(Error::refused(Step::Address(ours, peer), device.name, &error)),
    }
    Ok(())
}

/// An IPv6 address goes without duplicate address detection: there is nobody to ask in a tunnel, and it
/// could not be used for a second.
fn message(index: u32, ours: IpNet, peer: Option<IpAddr>) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = ours.prefix_len();
    message.header.family = family(ours);
    message.attributes = vec![
        AddressAttribute::Local(ours.addr()),
        AddressAttribute::Address(peer.unwrap_or_else(|| ours.addr())),
    ];
    if ours.addr().is_ipv6() {
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    message
}

/// Whether the device has it.
async fn exists(handle: &Handle, wanted: &AddressMessage) -> bool {
    let mut there = handle.address().get().set_link_index_filter(wanted.header.index).execute();
    while let Ok(Some(address)) = there.try_next().await {
        let same_length = address.header.prefix_len == wanted.header.prefix_len;
        if same_length && ends(&address) == ends(wanted) {
            return true;
        }
    }
    false
}

/// Our end and the far one, which are the same where there is none. Of such an IPv6 address the kernel
/// tells one alone.
fn ends(message: &AddressMessage) -> [Option<IpAddr>; 2] {
    let find = |of: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(of);
    let local = find(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let far = find(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    [local.or(far), far]
}

pub(crate) fn family(net: IpNet) -> AddressFamily {
    match net {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    }
}
