//! The kernel's messages about changes, for subscribers.

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
    /// IPv4 or IPv6 was configured on a device, or a setting of that family was changed.
    Configured {
        /// The device's index; negative values mean all devices, or future devices.
        index: i32,
    },
    /// IPv4 or IPv6 is no longer configured on a device. If the family is configured again later, its settings
    /// are the kernel's defaults.
    Unconfigured {
        /// The device's index.
        index: i32,
    },
    /// A nexthop object was created, changed or deleted, and the routes that use it with it. If the sysctl
    /// `net.ipv4.nexthop_compat_mode` is 0, the kernel sends no messages about these routes.
    Nexthop,
    /// Messages were lost, or one could not be parsed: anything may have changed.
    Lost,
}

/// The kernel's messages since the subscription.
pub struct Heard(BoxStream<'static, Told>);

impl Heard {
    /// Subscribes to messages about devices. Requires a tokio runtime, as
    /// [`Netlink::connect`](crate::Netlink::connect) does.
    ///
    /// # Errors
    ///
    /// If the kernel gives no netlink socket.
    pub fn devices() -> Result<Self, Error> {
        Self::listen(&[MulticastGroup::Link])
    }

    /// Subscribes to messages about devices, IPv4 and IPv6 on them, addresses, routes and rules.
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
            // This group carries the only message that is sent when `disable_ipv6` changes from 1 to 0.
            MulticastGroup::Ipv6Ifinfo,
        ])
    }

    /// Subscribes to messages about everything that affects the route of a datagram.
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

    /// Waits for a message of any kind, and discards all further messages that have arrived by then.
    pub async fn changed(&mut self) {
        if self.0.next().await.is_none() {
            // The socket is closed, so no message will arrive.
            std::future::pending().await
        }
        self.skip();
    }

    /// Does not use rtnetlink's own connection, because it logs an error for each NETCONF message.
    fn listen(groups: &[MulticastGroup]) -> Result<Self, Error> {
        let opened = rtnetlink::proto::new_connection::<Received>(protocols::NETLINK_ROUTE);
        let (mut connection, _, messages) = opened.map_err(Error::Connect)?;
        join(&mut connection, groups).map_err(Error::Connect)?;
        tokio::spawn(connection);
        Ok(Self(messages.map(|(message, _from)| told(message.payload)).boxed()))
    }

    /// The next message; `None` once the socket is closed.
    pub(crate) async fn next(&mut self) -> Option<Told> {
        self.0.next().await
    }

    /// Discards the messages received so far.
    pub(crate) fn skip(&mut self) {
        while self.0.next().now_or_never().flatten().is_some() {}
    }
}

/// Joins the groups when it binds. Every group here has a number up to 32, and thus a bit in the socket
/// address.
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

/// The message as netlink returns it.
#[derive(Debug)]
struct Received(Told);

/// From the kernel's header files; neither libc nor rtnetlink defines these.
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;
const RTM_NEWNEXTHOPBUCKET: u16 = 116;
const RTM_DELNEXTHOPBUCKET: u16 = 117;
const RTM_NEWNETCONF: u16 = 80;
const RTM_DELNETCONF: u16 = 81;
/// The length of `struct netconfmsg`: one byte, and padding.
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

/// The index of the device in a NETCONF message: its first attribute.
fn configured(payload: &[u8]) -> Option<i32> {
    let attribute = payload.get(NETCONF_HEADER..)?;
    let (head, value) = attribute.split_at_checked(4)?;
    let kind = u16::from_ne_bytes([head[2], head[3]]);
    let index = value.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes));
    index.filter(|_| kind == NETCONFA_IFINDEX)
}

/// A subscribed connection never sends anything.
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
        // A message from Linux 6.18: IPv6, NETCONFA_IFINDEX 2, NETCONFA_FORWARDING 0.
        let payload = [10, 0, 0, 0, 8, 0, 1, 0, 2, 0, 0, 0, 8, 0, 2, 0, 0, 0, 0, 0];
        let mut header = NetlinkHeader::default();
        header.message_type = RTM_DELNETCONF;
        let Ok(Received(told)) = Received::deserialize(&header, &payload);
        assert!(matches!(told, Told::Unconfigured { index: 2 }), "{told:?}");
        let Ok(Received(told)) = Received::deserialize(&header, &payload[..9]);
        assert!(matches!(told, Told::Lost), "{told:?}");
    }

    /// rtnetlink does not decode these messages, and an undecoded message would count as lost.
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
