//! Addresses, with or without a far end.

use std::net::IpAddr;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::Handle;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};

use crate::error::{Error, errno};

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

/// Adds one address; says whether it was not there yet.
pub(crate) async fn add(
    handle: &Handle,
    address: &AddressMessage,
) -> Result<bool, rtnetlink::Error> {
    let nowhere = IpAddr::from([0; 4]);
    let mut request = handle.address().add(address.header.index, nowhere, 0);
    *request.message_mut() = address.clone();
    match request.execute().await {
        Ok(()) => Ok(true),
        Err(error) if errno(&error) == libc::EEXIST => Ok(false),
        // Who may not add one may find it there.
        Err(error) if errno(&error) == libc::EPERM && exists(handle, address).await => Ok(false),
        Err(error) => Err(error),
    }
}

/// For a line of the log.
pub(crate) fn text(address: &AddressMessage) -> String {
    let local = address.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(local) => Some(local.to_string()),
        _ => None,
    });
    format!("address {}/{}", local.unwrap_or_default(), address.header.prefix_len)
}

/// An IPv6 address goes without duplicate address detection: there is nobody to ask in a tunnel, and it
/// could not be used for a second.
///
/// On a device that `broadcasts`, an IPv4 network has a broadcast address; the kernel makes none up.
pub(crate) fn message(
    index: u32,
    ours: IpNet,
    peer: Option<IpAddr>,
    broadcasts: bool,
) -> AddressMessage {
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
    if let (IpNet::V4(net), None, true) = (ours, peer, broadcasts && ours.prefix_len() < 31) {
        message.attributes.push(AddressAttribute::Broadcast(net.broadcast()));
    }
    message
}

/// The network that the kernel routes into the device for an address; none where that is the address alone.
pub(crate) fn connected(ours: IpNet, peer: Option<IpAddr>) -> Option<IpNet> {
    let far = peer.unwrap_or_else(|| ours.addr());
    let net = IpNet::new(far, ours.prefix_len()).ok()?.trunc();
    (net != IpNet::from(ours.addr())).then_some(net)
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
