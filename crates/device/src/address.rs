//! Addresses, with or without a far end.

use std::net::IpAddr;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::Handle;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeader, AddressMessage, AddressScope,
};

use crate::error::{Error, errno};

/// Pairs each of our addresses with its far end, if there is one.
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

/// Adds one address; returns whether it was new.
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
        // An unprivileged process cannot add the address, but it may already exist.
        Err(error) if errno(&error) == libc::EPERM && exists(handle, address).await => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes the link-local addresses that the kernel has generated. They are recognised by the prefix length
/// that the kernel gives them.
pub(crate) async fn remove_generated(handle: &Handle, index: u32) {
    let mut there = handle.address().get().set_link_index_filter(index).execute();
    while let Ok(Some(address)) = there.try_next().await {
        let AddressHeader { prefix_len, scope, family, .. } = address.header;
        if (prefix_len, scope, family) == (64, AddressScope::Link, AddressFamily::Inet6)
            && let Err(error) = handle.address().del(address).execute().await
        {
            tracing::debug!(%error, "a link-local address stays");
        }
    }
}

/// The address as text for the log.
pub(crate) fn text(address: &AddressMessage) -> String {
    let local = address.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(local) => Some(local.to_string()),
        _ => None,
    });
    format!("address {}/{}", local.unwrap_or_default(), address.header.prefix_len)
}

/// The message that adds an address. IPv6 addresses are added without duplicate address detection: there is no
/// other host on a tunnel that could have the address, and detection would make it unusable for a second.
///
/// On a device that `broadcasts`, an IPv4 network gets a broadcast address, because the kernel does not add
/// one.
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

/// The network that the kernel routes into the device because of an address; `None` if the kernel routes only
/// the address itself.
pub(crate) fn connected(ours: IpNet, peer: Option<IpAddr>) -> Option<IpNet> {
    let far = peer.unwrap_or_else(|| ours.addr());
    let net = IpNet::new(far, ours.prefix_len()).ok()?.trunc();
    (net != IpNet::from(ours.addr())).then_some(net)
}

/// Whether the device has this address.
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

/// Our end of an address and its far end.
pub(crate) fn both_ends(message: &AddressMessage) -> Option<(IpAddr, IpAddr)> {
    let [local, far] = ends(message);
    Some((local?, far?))
}

/// Our end and the far end, which are equal if there is no far end. For an IPv6 address without a far end the
/// kernel reports only one attribute.
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

/// Whether the kernel cannot have both: it has an IPv6 address of a device only once, with one prefix and far end, and an
/// IPv4 address once for each length of the prefix.
pub(crate) fn excludes(one: &AddressMessage, other: &AddressMessage) -> bool {
    let same = one.header.index == other.header.index && ends(one)[0] == ends(other)[0];
    let is_v6 = one.header.family == AddressFamily::Inet6;
    one != other && same && (is_v6 || one.header.prefix_len == other.header.prefix_len)
}

pub(crate) fn family(net: IpNet) -> AddressFamily {
    family_of(net.addr())
}

pub(crate) const fn family_of(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}
