//! Whether this host sends what we give it, and by which uplink: which refusal stands, and what follows
//! when routes change.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use vpnd_device::{Query, Shift, Uplink};
use vpnd_tunnel::clock;
use vpnd_tunnel::udp::{Refusal, Way};

use super::Plane;
use crate::telling::Refused;

/// While a refusal stands, it is looked at so often whether it still does.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// Data threads may still send to an address this long after the path has left it. A refusal that lasts is seen
/// again with the next packet.
const IN_FLIGHT: Duration = Duration::from_millis(100);

/// The refusal that stands, if one does.
#[derive(Default)]
pub(crate) struct Reach {
    refused: Option<Refused>,
    check_at: Option<Instant>,
    /// Since the last check a datagram to the same address was refused, or left.
    again: bool,
    left: bool,
}

impl Reach {
    /// A datagram was refused; says whether that is news.
    pub(crate) fn refused(&mut self, refused: Refused) -> bool {
        self.again = true;
        self.check_at.get_or_insert_with(|| Instant::now() + CHECK_EVERY);
        self.refused.replace(refused) != Some(refused)
    }

    /// A datagram left for `to`.
    pub(crate) fn left(&mut self, to: SocketAddr) {
        self.left |= self.refused.is_some_and(|refused| refused.to == to);
    }

    /// The peer is reached at `to`; says whether that ends a refusal: what stands there is of no concern
    /// when the peer is elsewhere.
    pub(crate) fn reached(&mut self, to: Option<SocketAddr>) -> bool {
        self.refused.is_some_and(|refused| Some(refused.to) != to) && self.end()
    }

    /// Waits until the refusal has to be checked.
    pub(crate) async fn check_due(&self) {
        match self.check_at {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// Says whether the refusal is over: something has left since the last check, and nothing was refused.
    pub(crate) fn check(&mut self) -> bool {
        let over = self.left && !self.again;
        (self.left, self.again) = (false, false);
        self.check_at = Some(Instant::now() + CHECK_EVERY);
        over && self.end()
    }

    /// Which refusal stands.
    pub(crate) const fn standing(&self) -> Option<Refused> {
        self.refused
    }

    fn end(&mut self) -> bool {
        *self = Self::default();
        true
    }
}

impl Plane {
    /// Our own host does not send what we give it: that is said, and other addresses are tried.
    pub(super) fn refused(&mut self, to: SocketAddr, why: Option<Refusal>) {
        let Some(why) = why else { return };
        let (now, endpoint) = (clock::now(), self.peer.endpoint());
        let refused = Refused { to, why };
        if self.peer.send_refused(now, to) {
            if self.reach.refused(refused) {
                self.telling.refused(now.boot, refused);
            }
        } else if self.peer.endpoint() != endpoint {
            // What the data threads were refused, they sent to the address that was just left.
            self.turned_back = now.boot;
            let _of_the_past = self.engine.take_refusal();
        }
    }

    /// The same for what data threads send. Once known, it is asked for again when it is checked.
    pub(super) fn data_refused(&mut self, why: Option<Refusal>) {
        if clock::boot().saturating_since(self.turned_back) < IN_FLIGHT {
            let _of_the_past = self.engine.take_refusal();
            return;
        }
        let to = self.peer.endpoint();
        let known = self.reach.standing().map(|refused| (Some(refused.to), Some(refused.why)));
        if let Some(to) = to.filter(|_| known != Some((to, why))) {
            self.refused(to, why);
        }
    }

    /// A refusal stands. Whether it still does shows in what is sent.
    pub(super) fn check_reach(&mut self) {
        if let (Some(to), why @ Some(_)) = (self.peer.endpoint(), self.engine.take_refusal()) {
            self.refused(to, why);
        }
        if self.reach.check() {
            self.telling.leaves(clock::boot());
        } else {
            self.peer.try_sending(clock::now());
        }
    }

    /// From now on the routes to where the peer is, or is called, are followed.
    pub(super) fn ask_for_the_uplink(&self) {
        let Some(uplink) = &self.around.uplink else { return };
        let Way { mark, device } = self.around.way.clone();
        let port = self.engine.local_port();
        uplink.ask(self.peer.heading().map(|heading| Query {
            to: heading.to,
            from: heading.from,
            mark,
            device,
            port,
        }));
    }

    /// Routes, rules, addresses or links have changed: what was not possible may be possible now.
    pub(super) fn follow_uplink(&mut self, shift: Shift) {
        let now = clock::now();
        for (old, new) in self.telling.zones.renumbered() {
            self.peer.renumber(now, old, new);
        }
        match self.engine.follow_device() {
            Ok(false) => {}
            Ok(true) => {
                tracing::info!("the socket is bound to the interface that has the name now");
                self.port_changed();
            }
            Err(error) => tracing::debug!("the socket stays bound as it was: {error}"),
        }
        if shift == Shift::Route {
            tracing::debug!("the route to the peer has changed");
            self.peer.route_changed(now);
            self.look_at_the_way();
        }
        self.peer.retry_refused(now);
        self.around.resolver.network_changed();
        if self.reach.standing().is_some() {
            self.peer.try_sending(now);
        }
    }

    /// Nothing is heard for long: where the port is ours to choose, another one is.
    pub(super) fn change_port(&mut self) {
        match self.engine.change_port() {
            Ok(Some(port)) => {
                tracing::info!("no answer for long: sending from another port, {port}");
                self.port_changed();
            }
            Ok(None) => self.fall_silent(),
            Err(error) => tracing::debug!("the port stays as it was: {error}"),
        }
    }

    /// The port is fixed. If a router is on the path, it may translate addresses, and forgets a flow only when nothing
    /// is sent.
    fn fall_silent(&mut self) {
        if self.telling.leads_to_a_router() && self.peer.fall_silent(clock::now()) {
            tracing::info!(
                "no answer for long: nothing is sent for half a minute, so that a NAT on the path forgets this flow; \
                 without a fixed [interface] listen another port would be tried"
            );
        }
    }

    fn port_changed(&mut self) {
        self.around.about.device.listen_port = self.engine.local_port();
        // The rules of a default route name the port, for hosts with a strict `rp_filter`.
        self.around.loops.look_soon();
    }
}

/// Waits until routes change; for ever where the kernel does not tell.
pub(super) async fn shifted(uplink: &mut Option<Uplink>) -> Shift {
    match uplink {
        Some(uplink) => uplink.shifted().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(last: u8, why: Refusal) -> Refused {
        Refused { to: SocketAddr::from(([192, 0, 2, last], 1)), why }
    }

    #[test]
    fn a_refusal_is_news_once_and_over_when_something_leaves_again() {
        let mut reach = Reach::default();
        let filter = refused(1, Refusal::Filter);
        assert!(reach.refused(filter));
        assert!(!reach.refused(filter));
        assert!(reach.refused(refused(1, Refusal::NoRoute)), "another reason");
        reach.left(filter.to);
        assert!(!reach.check(), "refused since the last check, and left");
        reach.left(refused(2, Refusal::Filter).to);
        assert!(!reach.check(), "what leaves for elsewhere says nothing");
        reach.left(filter.to);
        assert!(reach.check());
        assert_eq!(reach.standing(), None);
    }

    #[test]
    fn a_session_elsewhere_ends_it() {
        let mut reach = Reach::default();
        let there = refused(1, Refusal::Unreachable);
        reach.refused(there);
        assert!(!reach.reached(Some(there.to)));
        assert!(reach.reached(Some(refused(2, Refusal::Filter).to)));
        assert!(!reach.reached(None));
    }
}
