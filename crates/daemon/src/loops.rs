//! Detects whether the tunnel leads into itself: looks up the routes of its own datagrams, again after every
//! change of routes.
//!
//! The lookup contains all parameters that a route may depend on, and returns the device by which a datagram to
//! the peer would leave. If that is the tunnel's own device, the peer is not followed to that address.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use vpnd_device::{Found, Heard, Netlink, OwnState, OwnTraffic, Question, WhenDown};
use vpnd_plane::{InnerSource, Loop, Outlook};
use vpnd_tunnel::udp::Egress;

use crate::config::Config;
use crate::nameservers;

/// The time between lookups: changes of routes come in groups.
const APART: Duration = Duration::from_millis(100);
/// The maximum number of the peer's addresses that are looked up.
const MOST: usize = 16;

/// Looks up routes and follows their changes.
pub(crate) struct Loops {
    asking: Netlink,
    heard: Heard,
    egress: Egress,
    uid: u32,
    /// The tunnel's device, if it is in the socket's network namespace.
    device: Option<u32>,
    own: OwnState,
    due: Option<Instant>,
    last: Option<Instant>,
}

impl Loops {
    /// Looks up routes in the network namespace of the socket, in which `asking` and `heard` were opened.
    pub(crate) fn new(
        (asking, heard): (Netlink, Heard),
        egress: Egress,
        device: Option<u32>,
        own: OwnState,
    ) -> Self {
        let uid = nix::unistd::geteuid().as_raw();
        Self { asking, heard, egress, uid, device, own, due: Some(Instant::now()), last: None }
    }

    /// The socket's datagrams have another mark, or leave by another interface.
    pub(crate) fn set_egress(&mut self, egress: Egress) {
        self.egress = egress;
        self.poll_soon();
    }

    /// Schedules a lookup, because the peer's address or our source port may have changed.
    pub(crate) fn poll_soon(&mut self) {
        self.due.get_or_insert_with(Instant::now);
    }

    /// The mark of the tunnel's datagrams has changed: routes may depend on it.
    pub(crate) fn set_mark(&mut self, mark: u32) {
        self.egress.mark = mark;
        self.poll_soon();
    }

    /// Waits until it is time for a lookup.
    pub(crate) async fn due(&mut self) {
        if self.due.is_none() {
            self.heard.changed().await;
        }
        let rested = self.last.map(|last| last + APART);
        let due = self.due.get_or_insert_with(Instant::now);
        *due = rested.map_or(*due, |rested| rested.max(*due));
        sleep_until(*due).await;
    }

    /// Looks up these addresses of the peer. `current` is the address in use, if it is known.
    pub(crate) async fn look(
        &mut self,
        port: u16,
        current: Option<SocketAddr>,
        others: &[SocketAddr],
        from: impl Fn(SocketAddr) -> Option<IpAddr>,
    ) -> Outlook {
        (self.due, self.last) = (None, Some(Instant::now()));
        let mut all: Vec<_> = current.into_iter().chain(others.iter().copied()).collect();
        let mut seen = std::collections::HashSet::new();
        all.retain(|address| seen.insert(*address));
        all.truncate(MOST);
        self.own.set(OwnTraffic { port, peers: all.iter().map(SocketAddr::ip).collect() });
        let mut outlook = Outlook::default();
        for to in all {
            let from = from(to);
            let question = self.question(to, from, port);
            let Some(route) = self.asking.route_of(&question).await else { continue };
            outlook.is_routed |= route.is_routed;
            if Some(to) == current {
                outlook.current = Some(route.clone());
            }
            if self.device == Some(route.index) {
                outlook.loops.push(Loop { to, route });
            } else if from.is_none() && outlook.inner_source.is_none() {
                outlook.inner_source = self.inner_source(to, route).await;
            }
        }
        outlook
    }

    /// The name servers of this host that are reached through the tunnel. Those whose queries the tunnel's kill
    /// switch blocks now are included.
    pub(crate) async fn name_servers_inside(
        &self,
        config: &Config,
        servers: Vec<IpAddr>,
    ) -> Vec<IpAddr> {
        let mut inside = Vec::new();
        for at in servers {
            let Some(route) = nameservers::route_to(config, at) else { continue };
            let found = self.asking.route_of(&nameservers::question(at, self.uid)).await;
            let is_inside = match found {
                Some(found) => self.device == Some(found.index),
                None => route.when_down == WhenDown::Blackhole,
            };
            inside.extend(is_inside.then_some(at));
        }
        inside
    }

    /// The source address that the kernel would choose, if only the tunnel's device has that address.
    async fn inner_source(&self, to: SocketAddr, route: Found) -> Option<InnerSource> {
        let (device, source) = (self.device?, route.source?);
        let is_inner = self.asking.is_only_on(device, source).await;
        is_inner.then_some(InnerSource { to, source, uplink: route.device })
    }

    fn question(&self, to: SocketAddr, from: Option<IpAddr>, port: u16) -> Question {
        let Egress { mark, device } = self.egress.clone();
        Question { to, from, port, mark, device, uid: self.uid }
    }
}
