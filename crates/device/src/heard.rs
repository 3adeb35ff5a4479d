//! What the kernel tells of changes, to whoever listens.

use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;

use crate::error::Error;

/// One thing told, or that there was more than could be heard.
pub(crate) type Told = NetlinkPayload<RouteNetlinkMessage>;

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

    /// As [`Self::devices`], and to what becomes of addresses, routes and rules.
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

    fn listen(groups: &[MulticastGroup]) -> Result<Self, Error> {
        let opened = rtnetlink::new_multicast_connection(groups);
        let (connection, _, messages) = opened.map_err(Error::Connect)?;
        tokio::spawn(connection);
        Ok(Self(messages.map(|(message, _from)| message.payload).boxed()))
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
