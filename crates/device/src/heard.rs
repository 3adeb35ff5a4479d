//! What the kernel tells of changes, to whoever listens.

use std::convert::Infallible;

use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{
    NetlinkDeserializable, NetlinkHeader, NetlinkPayload, NetlinkSerializable,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::proto::Connection;
use rtnetlink::sys::{AsyncSocket, SocketAddr, protocols};

use crate::error::Error;

/// One message of the kernel.
#[derive(Debug)]
pub(crate) enum Told {
    /// A device, address, route or rule was made, changed or deleted.
    Route(Box<RouteNetlinkMessage>),
    /// IPv4 or IPv6 was configured on a device, or a part of that was changed.
    Configured {
        /// The device's number; negative numbers stand for all devices and for those to come.
        index: i32,
    },
    /// IPv4 or IPv6 is no longer configured on a device. If it comes back, it has the kernel's defaults.
    Unconfigured {
        /// The device's number.
        index: i32,
    },
    /// A nexthop object was made, changed or deleted, and with it the routes that use it: where the sysctl
    /// `net.ipv4.nexthop_compat_mode` is 0, the kernel sends no message about those.
    Nexthop,
    /// Messages were lost, or one is not understood: anything may have changed.
    Lost,
}

/// What is told from the moment that it was listened on.
pub struct Heard(BoxStream<'static, Told>);

impl Heard {
    /// Listens to what becomes of devices. Belongs inside a tokio runtime, as
    /// [`Netlink::connect`](crate::Netlink::connect) does.
    ///
    /// # Errors
    ///
    /// If the kernel gives no netlink socket.
    pub fn devices() -> Result<Self, Error> {
        Self::listen(&[MulticastGroup::Link])
    }

    /// As [`Self::devices`], and to what becomes of IPv4 and IPv6 on them, of addresses, routes and rules.
    ///
    /// # Errors
    ///
    /// As [`Self::devices`].
    pub fn everything() -> Result<Self, Error> {
        Self::listen(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
            MulticastGroup::Nexthop,
            MulticastGroup::Ipv4Netconf,
            MulticastGroup::Ipv6Netconf,
            // The one sign of `disable_ipv6` that was 1 and is 0.
            MulticastGroup::Ipv6Ifinfo,
        ])
    }

    /// Listens to what decides on the routes of a datagram.
    ///
    /// # Errors
    ///
    /// As [`Self::devices`].
    pub fn routes() -> Result<Self, Error> {
        Self::listen(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
            MulticastGroup::Nexthop,
        ])
    }

    /// Waits until something has been told, whatever it is, and passes over what has been told beside it.
    pub async fn changed(&mut self) {
        if self.0.next().await.is_none() {
            // The socket is gone, and nobody will tell.
            std::future::pending().await
        }
        self.skip();
    }

    /// The connection is not rtnetlink's own, for that logs an error at each NETCONF message.
    fn listen(groups: &[MulticastGroup]) -> Result<Self, Error> {
        let opened = rtnetlink::proto::new_connection::<Received>(protocols::NETLINK_ROUTE);
        let (mut connection, _, messages) = opened.map_err(Error::Connect)?;
        join(&mut connection, groups).map_err(Error::Connect)?;
        tokio::spawn(connection);
        Ok(Self(messages.map(|(message, _from)| told(message.payload)).boxed()))
    }

    /// The next thing; none once the socket is gone.
    pub(crate) async fn next(&mut self) -> Option<Told> {
        self.0.next().await
    }

    /// Passes over what has been told by now.
    pub(crate) fn skip(&mut self) {
        while self.0.next().now_or_never().flatten().is_some() {}
    }
}

/// All groups used here have numbers of at most 32, and so a bit in the address.
fn join(connection: &mut Connection<Received>, groups: &[MulticastGroup]) -> std::io::Result<()> {
    let bits = groups.iter().fold(0, |bits, group| bits | 1 << (*group as u32 - 1));
    connection.socket_mut().socket_mut().bind(&SocketAddr::new(0, bits))
}

fn told(payload: NetlinkPayload<Received>) -> Told {
    match payload {
        NetlinkPayload::InnerMessage(Received(told)) => told,
        _ => Told::Lost,
    }
}

/// As netlink hands it over.
#[derive(Debug)]
struct Received(Told);

/// Of the kernel's header files, for neither libc nor rtnetlink has them.
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;
const RTM_NEWNEXTHOPBUCKET: u16 = 116;
const RTM_DELNEXTHOPBUCKET: u16 = 117;
const RTM_NEWNETCONF: u16 = 80;
const RTM_DELNETCONF: u16 = 81;
/// `struct netconfmsg`, which is one byte, and padding.
const NETCONF_HEADER: usize = 4;
const NETCONFA_IFINDEX: u16 = 1;

impl NetlinkDeserializable for Received {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        let told = match (header.message_type, configured(payload)) {
            (RTM_NEWNETCONF, Some(index)) => Told::Configured { index },
            (RTM_DELNETCONF, Some(index)) => Told::Unconfigured { index },
            (RTM_NEWNEXTHOP | RTM_DELNEXTHOP | RTM_NEWNEXTHOPBUCKET | RTM_DELNEXTHOPBUCKET, _) => {
                Told::Nexthop
            }
            _ => match RouteNetlinkMessage::deserialize(header, payload) {
                Ok(message) => Told::Route(Box::new(message)),
                Err(_not_understood) => Told::Lost,
            },
        };
        Ok(Self(told))
    }
}

/// Which device a NETCONF message is about: its first attribute says so.
fn configured(payload: &[u8]) -> Option<i32> {
    let attribute = payload.get(NETCONF_HEADER..)?;
    let (head, value) = attribute.split_at_checked(4)?;
    let kind = u16::from_ne_bytes([head[2], head[3]]);
    let index = value.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes));
    index.filter(|_| kind == NETCONFA_IFINDEX)
}

/// Nothing is ever sent by a connection that listens.
impl NetlinkSerializable for Received {
    fn message_type(&self) -> u16 {
        0
    }

    fn buffer_len(&self) -> usize {
        0
    }

    fn serialize(&self, _buffer: &mut [u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_netconf_message_names_its_device() {
        // As Linux 6.18 sent it: IPv6, NETCONFA_IFINDEX 2, NETCONFA_FORWARDING 0.
        let payload = [10, 0, 0, 0, 8, 0, 1, 0, 2, 0, 0, 0, 8, 0, 2, 0, 0, 0, 0, 0];
        let mut header = NetlinkHeader::default();
        header.message_type = RTM_DELNETCONF;
        let Ok(Received(told)) = Received::deserialize(&header, &payload);
        assert!(matches!(told, Told::Unconfigured { index: 2 }), "{told:?}");
        let Ok(Received(told)) = Received::deserialize(&header, &payload[..9]);
        assert!(matches!(told, Told::Lost), "{told:?}");
    }

    /// rtnetlink does not decode them, and what it does not decode counts as lost messages.
    #[test]
    fn a_nexthop_message_is_recognised() {
        for message_type in [RTM_NEWNEXTHOP, RTM_DELNEXTHOP] {
            let mut header = NetlinkHeader::default();
            header.message_type = message_type;
            // `struct nhmsg` of an IPv4 object, and NHA_ID 7.
            let payload = [2, 0, 4, 0, 0, 0, 0, 0, 8, 0, 1, 0, 7, 0, 0, 0];
            let Ok(Received(told)) = Received::deserialize(&header, &payload);
            assert!(matches!(told, Told::Nexthop), "{told:?}");
        }
    }
}
