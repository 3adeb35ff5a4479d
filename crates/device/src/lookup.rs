//! Asks the kernel for the route that a datagram of the tunnel would take.

use std::net::{IpAddr, SocketAddr};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage};

use crate::{Netlink, address, link, table, watch};

/// The properties of a datagram that determine its route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Its destination.
    pub to: SocketAddr,
    /// Its source address; the kernel chooses one if this is absent.
    pub from: Option<IpAddr>,
    /// Its source port.
    pub port: u16,
    /// Its mark.
    pub mark: u32,
    /// The device that its socket is bound to.
    pub device: Option<String>,
    /// The user who opened the socket.
    pub uid: u32,
}

/// The route of a datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The index of the outgoing device.
    pub index: u32,
    /// That device's name.
    pub device: String,
    /// The destination network of the route, if the kernel reports it.
    pub to: Option<IpNet>,
    /// Whether it has a gateway.
    pub is_routed: bool,
    /// The table that the route is in, unless that is `main`.
    pub table: Option<u32>,
    /// The source address that the kernel uses.
    pub source: Option<IpAddr>,
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.to {
            Some(to) => write!(f, "{to} dev {}", self.device)?,
            None => write!(f, "dev {}", self.device)?,
        }
        self.table.map_or(Ok(()), |table| write!(f, " table {table}"))
    }
}

impl Netlink {
    /// The route of a datagram; `None` if there is no route, or the destination is this host itself.
    pub async fn route_of(&self, question: &Question) -> Option<Found> {
        let message = self.message(question).await;
        let answer = self.ask(message.clone()).await?;
        let index = number(&answer, |attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        })?;
        let link = link::at(&self.handle, index).await?;
        // The answer above is about one address only, so this asks for the route itself. Old kernels do not
        // support that.
        let mut by_route = message;
        by_route.header.flags |= RouteFlags::FibMatch | RouteFlags::LookupTable;
        let route = self.ask(by_route).await;
        Some(Found {
            index,
            device: watch::name(&link)?.to_owned(),
            is_routed: answer.attributes.iter().any(is_gateway),
            to: route.as_ref().and_then(network),
            table: route.as_ref().and_then(other_table),
            source: source(&answer),
        })
    }

    /// Whether the device with this index has this address, and no other device has it.
    pub async fn is_only_on(&self, index: u32, address: IpAddr) -> bool {
        let mut all = Box::pin(self.handle.address().get().execute());
        let mut found = false;
        while let Ok(Some(message)) = all.try_next().await {
            let is_there = address::both_ends(&message).is_some_and(|(local, _)| local == address);
            if is_there && message.header.index != index {
                return false;
            }
            found |= is_there;
        }
        found
    }

    async fn ask(&self, message: RouteMessage) -> Option<RouteMessage> {
        let mut answers = Box::pin(self.handle.route().get(message).execute());
        answers.try_next().await.ok().flatten()
    }

    async fn message(&self, question: &Question) -> RouteMessage {
        let Question { to, from, port, mark, device, uid } = question;
        let to_ip = to.ip().to_canonical();
        let mut message = RouteMessage::default();
        message.header.address_family = address::family_of(to_ip);
        message.header.destination_prefix_length = length(to_ip);
        message.attributes = vec![
            RouteAttribute::Destination(to_ip.into()),
            RouteAttribute::IpProto(UDP),
            RouteAttribute::Sport(*port),
            RouteAttribute::Dport(to.port()),
            RouteAttribute::Uid(*uid),
        ];
        if *mark != 0 {
            message.attributes.push(RouteAttribute::Mark(*mark));
        }
        if let Some(from) = from.filter(|from| from.is_ipv4() == to_ip.is_ipv4()) {
            message.header.source_prefix_length = length(from);
            message.attributes.push(RouteAttribute::Source(from.into()));
        }
        let scope = match to {
            SocketAddr::V6(to) => to.scope_id(),
            SocketAddr::V4(_) => 0,
        };
        let bound = match device {
            Some(name) => link::find(&self.handle, name).await.map_or(scope, |it| it.header.index),
            None => scope,
        };
        if bound != 0 {
            message.attributes.push(RouteAttribute::Oif(bound));
        }
        message
    }
}

/// UDP's protocol number in an IP header.
const UDP: u8 = 17;

const fn is_gateway(attribute: &RouteAttribute) -> bool {
    matches!(attribute, RouteAttribute::Gateway(_) | RouteAttribute::Via(_))
}

const fn length(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn number(route: &RouteMessage, pick: fn(&RouteAttribute) -> Option<u32>) -> Option<u32> {
    route.attributes.iter().find_map(pick)
}

fn source(route: &RouteMessage) -> Option<IpAddr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::PrefSource(RouteAddress::Inet(source)) => Some((*source).into()),
        RouteAttribute::PrefSource(RouteAddress::Inet6(source)) => Some((*source).into()),
        _ => None,
    })
}

pub(crate) fn network(route: &RouteMessage) -> Option<IpNet> {
    let to = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(to)) => Some(IpAddr::from(*to)),
        RouteAttribute::Destination(RouteAddress::Inet6(to)) => Some(IpAddr::from(*to)),
        _ => None,
    });
    let v6 = route.header.address_family == AddressFamily::Inet6;
    let everything = if v6 { [0u16; 8].into() } else { [0u8; 4].into() };
    IpNet::new(to.unwrap_or(everything), route.header.destination_prefix_length).ok()
}

fn other_table(route: &RouteMessage) -> Option<u32> {
    let said = number(route, |attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    Some(said.unwrap_or_else(|| route.header.table.into())).filter(|table| *table != table::MAIN)
}
