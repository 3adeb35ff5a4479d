//! Passes the reports of the kernel and the resolver about names, routes and the path to the
//! control plane.

use std::net::{IpAddr, SocketAddr};

use vpnd_device::{Query, Shift, Uplink};
use vpnd_plane::Unresolved;
use vpnd_protocol::limits::LEAST_MTU_V6;
use vpnd_protocol::peer::Transmit;
use vpnd_tunnel::clock;
use vpnd_tunnel::udp::{Egress, largest_payload, payload_within};

use super::Shell;
use crate::config::Icmp;
use crate::nameservers;
use crate::resolve::Lookup;

impl Shell {
    pub(super) async fn looked_up(&mut self, lookup: Lookup) {
        match lookup {
            // The peer was said to be elsewhere.
            _ if self.around.hold.endpoint.is_some() => {}
            Lookup::Addresses(addresses) => {
                self.warn_of_loops(&addresses);
                addresses.iter().for_each(|address| self.diagnostics.zones.learn(*address));
                self.plane.resolved(addresses);
            }
            Lookup::Failed(failures) => {
                let inside = match failures.is_empty() {
                    true => Vec::new(),
                    false => self.name_servers_inside().await,
                };
                self.plane.lookups_failed(Unresolved { failures, inside });
            }
        }
    }

    /// The name servers that are reached through the tunnel.
    async fn name_servers_inside(&self) -> Vec<IpAddr> {
        let servers = self.around.lookups.run(nameservers::configured).await.unwrap_or_default();
        self.around.loops.name_servers_inside(&self.around.running, servers).await
    }

    /// Warns if a route leads the tunnel into itself. If the endpoint is a name, this can only be
    /// checked with its addresses.
    fn warn_of_loops(&mut self, addresses: &[SocketAddr]) {
        let config = &self.around.running;
        for route in &config.routes {
            if let Some(at) = addresses.iter().find(|at| config.loops(route, at.ip())) {
                self.diagnostics.covered(clock::boot(), &route.to, at.ip());
            }
        }
    }

    /// Looks up the routes of datagrams to the peer.
    pub(super) async fn ask_routes(&mut self) {
        let (peer, all) = self.plane.addresses();
        let (learnt, sources) = (self.plane.source(), self.around.running.socket.sources());
        let from = |to| learnt.filter(|_| Some(to) == peer).or_else(|| sources.towards(to));
        let outlook = self.around.loops.look(self.engine.local_port(), peer, all, from).await;
        self.plane.routes_seen(clock::now(), outlook);
    }

    /// Subscribes to changes of this route.
    pub(super) fn follow_route(&self, heading: Option<Transmit>) {
        let Some(uplink) = &self.around.uplink else { return };
        let Egress { mark, device } = self.around.egress.clone();
        let port = self.engine.local_port();
        uplink.ask(heading.map(|Transmit { to, from }| Query { to, from, mark, device, port }));
    }

    /// What the lookup of the route to the peer has shown.
    pub(super) fn route_looked_up(&mut self, shift: Shift) {
        match shift {
            Shift::Elsewhere => self.network_changed(false),
            Shift::Route => self.network_changed(true),
            Shift::Source { to, from, is_kernels } => {
                self.plane.source_chosen(Transmit { to, from: Some(from) }, is_kernels);
            }
        }
    }

    /// Routes, rules, addresses or links have changed, and if `route` is set, also the route to the peer.
    fn network_changed(&mut self, route: bool) {
        let now = clock::now();
        for (old, new) in self.diagnostics.zones.renumbered() {
            self.plane.renumber(now, old, new);
        }
        match self.engine.follow_device() {
            Ok(false) => {}
            Ok(true) => {
                tracing::info!("the socket is now bound to the new interface of that name");
                self.around.about.device.listen_port = self.engine.local_port();
                self.plane.socket_changed();
            }
            Err(error) => tracing::debug!("the socket stays bound as it was: {error}"),
        }
        self.plane.network_changed(now, route);
        self.around.resolver.network_changed();
    }

    /// Asks the kernel for the largest datagram to this address.
    pub(super) fn measure_path(&mut self, to: SocketAddr) {
        let source = self.around.running.socket.sources().towards(to);
        let hinted = || largest_payload(to, source, &self.around.egress).ok();
        let routed = match self.around.running.path.icmp {
            Icmp::Hint => hinted(),
            Icmp::Ignore => {
                let link = self.around.uplink.as_ref().and_then(Uplink::link_mtu);
                link.map(|mtu| payload_within(mtu.max(LEAST_MTU_V6), to)).or_else(hinted)
            }
        };
        self.plane.path_measured(clock::now(), to, routed);
    }
}

/// Waits until routes change; forever if the kernel does not report that.
pub(super) async fn shifted(uplink: &mut Option<Uplink>) -> Shift {
    match uplink {
        Some(uplink) => uplink.shifted().await,
        None => std::future::pending().await,
    }
}
