//! The host as an examination sees it: network namespaces, interfaces, the peer's addresses and their routes.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use vpnd_device::{Found, Netlink, Question};
use vpnd_tunnel::udp::{self, Egress, Listen};

use crate::config::Config;
use crate::netns::{Netns, NetnsError};

/// The addresses of the peer that are examined at most.
const MOST: usize = 8;

/// The network namespaces, and a connection to the kernel in that of the socket.
pub(super) struct Place {
    pub(super) inside: Netns,
    pub(super) outside: Netns,
    pub(super) netlink: Netlink,
    pub(super) egress: Egress,
}

impl Place {
    /// Opens both namespaces.
    pub(super) fn of(config: &Config) -> anyhow::Result<Self> {
        let inside = Netns::open(config.interface.netns.as_deref())?;
        let outside = Netns::open(config.socket.netns.as_deref())?;
        let netlink = outside.within(Netlink::connect)??;
        Ok(Self { inside, outside, netlink, egress: config.socket.egress() })
    }

    /// Looks up the routes to these addresses of the peer. `from` is the port that datagrams leave from.
    pub(super) async fn targets(
        &self,
        config: &Config,
        from: u16,
        addresses: &[SocketAddr],
    ) -> Result<Vec<Target>, NetnsError> {
        let mut seen = HashSet::new();
        let once = addresses.iter().filter(|address| seen.insert(**address)).take(MOST);
        let mut targets = Vec::new();
        for to in once {
            let source = own_address(config, to.is_ipv4());
            let question = self.question(*to, source, from);
            let found = self.netlink.route_of(&question).await;
            let egress = self.egress_to(config, found.as_ref());
            let payload = self.outside.within(|| udp::largest_payload(*to, source, &egress))?;
            targets.push(Target { to: *to, source, found, egress, payload });
        }
        Ok(targets)
    }

    /// The settings of sockets that ask about the route. A default route into the tunnel exempts the daemon's port and
    /// mark, which others do not have; they name the device instead.
    fn egress_to(&self, config: &Config, found: Option<&Found>) -> Egress {
        let device = found.filter(|_| config.leads_everywhere()).map(|found| found.device.clone());
        Egress { device: self.egress.device.clone().or(device), ..self.egress.clone() }
    }

    fn question(&self, to: SocketAddr, from: Option<IpAddr>, port: u16) -> Question {
        let Egress { mark, device } = self.egress.clone();
        Question { to, from, port, mark, device, uid: nix::unistd::geteuid().as_raw() }
    }
}

/// An address of the peer, and how datagrams get there.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) to: SocketAddr,
    /// Our configured address.
    pub(super) source: Option<IpAddr>,
    pub(super) found: Option<Found>,
    /// The settings of sockets that follow that route.
    pub(super) egress: Egress,
    /// The largest datagram that the route carries, or why nothing can be sent.
    pub(super) payload: io::Result<u16>,
}

/// The address that datagrams leave from, if the configuration sets one.
fn own_address(config: &Config, is_v4: bool) -> Option<IpAddr> {
    let listen = match config.interface.listen {
        Listen::Address(at) if !at.ip().is_unspecified() => Some(at.ip()),
        Listen::Address(_) | Listen::Port(_) => None,
    };
    let mut all = listen.into_iter().chain(config.socket.sources.iter().copied());
    all.find(|address| address.is_ipv4() == is_v4)
}

/// The configured port, unless the kernel chooses one.
pub(super) fn fixed_port(config: &Config) -> Option<u16> {
    let port = match config.interface.listen {
        Listen::Port(port) => port,
        Listen::Address(at) => at.port(),
    };
    (port != 0).then_some(port)
}

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Assigned {
    pub(super) device: String,
    pub(super) address: IpNet,
    pub(super) is_up: bool,
    pub(super) is_loopback: bool,
}

/// All addresses in the network namespace of this thread.
pub(super) fn addresses() -> Vec<Assigned> {
    let Ok(all) = getifaddrs() else { return Vec::new() };
    let assigned = all.filter_map(|one| {
        let ip = |storage: Option<nix::sys::socket::SockaddrStorage>| {
            let storage = storage?;
            let v4 = storage.as_sockaddr_in().map(|at| IpAddr::V4(at.ip()));
            v4.or_else(|| storage.as_sockaddr_in6().map(|at| IpAddr::V6(at.ip())))
        };
        let address = IpNet::with_netmask(ip(one.address)?, ip(one.netmask)?).ok()?;
        Some(Assigned {
            device: one.interface_name,
            address,
            is_up: one.flags.contains(InterfaceFlags::IFF_UP),
            is_loopback: one.flags.contains(InterfaceFlags::IFF_LOOPBACK),
        })
    });
    assigned.collect()
}
