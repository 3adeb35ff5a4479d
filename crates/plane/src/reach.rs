//! Whether this host sends our datagrams: the current refusal, if there is one, and what to try when the peer
//! does not answer.

use std::net::SocketAddr;
use std::time::Duration;

use vpnd_protocol::endpoint::renumbered;
use vpnd_protocol::peer::Transmit;
use vpnd_protocol::time::{BootTime, Now};
use vpnd_tunnel::udp::Refusal;

use crate::effect::{Effect, Notice};
use crate::plane::Plane;

/// How often a refusal is checked while it lasts.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// Data threads may still send to an address for this long after the path has left it, so refusals in this time
/// are ignored. If a refusal lasts, the next packet shows it again.
const IN_FLIGHT: Duration = Duration::from_millis(100);

/// A refusal of this host to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The destination.
    pub to: SocketAddr,
    /// The kind of refusal.
    pub why: Refusal,
}

/// The result of [`Effect::ChangePort`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// Datagrams are now sent from another port.
    Changed,
    /// The configuration fixes the port.
    Fixed,
    /// The kernel could not provide another port.
    Kept,
}

/// The current refusal, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    refused: Option<Refused>,
    check_at: Option<BootTime>,
    /// Whether a datagram to the same address was refused since the last check.
    again: bool,
    /// Whether a datagram to that address was sent since the last check.
    left: bool,
    /// When the path last left an address because this host refused to send to it.
    pub(crate) turned_back: BootTime,
}

impl Reach {
    /// A datagram was refused; returns whether this refusal is new.
    fn refused(&mut self, now: BootTime, refused: Refused) -> bool {
        self.again = true;
        self.check_at.get_or_insert(now + CHECK_EVERY);
        self.refused.replace(refused) != Some(refused)
    }

    /// A datagram was sent to `to`.
    fn left(&mut self, to: SocketAddr) {
        self.left |= self.refused.is_some_and(|refused| refused.to == to);
    }

    /// The peer is reached at `to`; returns whether that ends a refusal. A refusal of another address no longer
    /// matters.
    pub(crate) fn reached(&mut self, to: Option<SocketAddr>) -> bool {
        self.refused.is_some_and(|refused| Some(refused.to) != to) && self.end()
    }

    /// The current refusal.
    pub(crate) const fn refusal(&self) -> Option<Refused> {
        self.refused
    }

    fn renumber(&mut self, old: u32, new: u32) {
        if let Some(refused) = &mut self.refused {
            refused.to = renumbered(refused.to, old, new);
        }
    }

    /// When the refusal has to be checked.
    pub(crate) const fn deadline(&self) -> Option<BootTime> {
        self.check_at
    }

    /// Returns whether the refusal is over: since the last check a datagram was sent, and none was refused.
    fn check(&mut self, now: BootTime) -> bool {
        let over = self.left && !self.again;
        (self.left, self.again) = (false, false);
        self.check_at = Some(now + CHECK_EVERY);
        over && self.end()
    }

    fn end(&mut self) -> bool {
        *self = Self { turned_back: self.turned_back, ..Self::default() };
        true
    }
}

impl Plane {
    /// The control plane's datagram to `to` was sent.
    pub fn datagram_left(&mut self, to: SocketAddr) {
        self.reach.left(to);
    }

    /// Our own host refused to send a datagram to `to`: reports that, and tries other addresses. Without `why`
    /// it was not a lasting refusal, and nothing is done.
    pub fn datagram_refused(&mut self, now: Now, to: SocketAddr, why: Option<Refusal>) {
        let Some(why) = why else { return };
        let (refused, endpoint) = (Refused { to, why }, self.peer.endpoint());
        if self.peer.send_refused(now, to) {
            if self.reach.refused(now.boot, refused) {
                self.notify(Notice::Refused(refused));
            }
        } else if self.peer.endpoint() != endpoint {
            // The data threads' refused sends were to the address that the path has just left.
            self.reach.turned_back = now.boot;
            self.push(Effect::ForgetRefusal);
        }
    }

    /// A data thread has set a wake flag; `why` is the refusal of its send, if there was one.
    pub fn data_refused(&mut self, now: Now, why: Option<Refusal>) {
        if why.is_none() {
            return;
        }
        if now.boot.saturating_since(self.reach.turned_back) < IN_FLIGHT {
            self.push(Effect::ForgetRefusal);
            return;
        }
        let known = self.reach.refused.map(|refused| (refused.to, Some(refused.why)));
        // A known refusal is handled when it is checked.
        if let Some(to) = self.peer.endpoint().filter(|to| known != Some((*to, why))) {
            self.datagram_refused(now, to, why);
        }
    }

    /// Checks whether the refusal still lasts, if that is due.
    pub(crate) fn check_reach(&mut self, now: BootTime) {
        if self.reach.deadline().is_some_and(|at| now >= at) {
            self.reach.check_at = Some(now + CHECK_EVERY);
            self.push(Effect::CheckSending);
        }
    }

    /// The answer to [`Effect::CheckSending`]. If that does not end the refusal, a keepalive is sent as a test.
    pub fn sending_checked(&mut self, now: Now, why: Option<Refusal>) {
        if let Some(to) = self.peer.endpoint() {
            self.datagram_refused(now, to, why);
        }
        if self.reach.check(now.boot) {
            self.notify(Notice::Leaves);
        } else {
            self.peer.try_sending(now);
        }
    }

    /// Routes, rules, addresses or links have changed, and if `route` is set, also the route to the peer: what
    /// failed before may succeed now.
    pub fn network_changed(&mut self, now: Now, route: bool) {
        if route {
            self.notify(Notice::RouteChanged);
            self.peer.route_changed(now);
            self.peer.path_changed(now);
        }
        self.measure_path();
        self.lookups.soon(now.boot);
        self.look_up_names(now.boot);
        self.peer.retry_refused(now);
        if self.reach.refused.is_some() {
            self.peer.try_sending(now);
        }
    }

    /// Whether the kernel itself chooses this source for this destination.
    pub fn source_chosen(&mut self, way: Transmit, is_kernels: bool) {
        self.peer.source_chosen(way, is_kernels);
    }

    /// The host was suspended. The names of the peer and the routes to it may have changed.
    pub fn resumed(&mut self, now: Now) {
        self.peer.resumed(now);
        self.lookups.soon(now.boot);
        self.look_up_names(now.boot);
        self.measure_path();
        self.push(Effect::AskRoutes { at_once: true });
    }

    /// The host is about to be suspended: session keys are dropped, and the next session is made after that.
    pub fn forget(&mut self, now: Now) {
        self.peer.forget(now);
    }

    /// This virtual machine was copied.
    pub fn copied(&mut self, now: Now) {
        self.peer.copied(now);
    }

    /// The interface of link-local addresses has changed its index.
    pub fn renumber(&mut self, now: Now, old: u32, new: u32) {
        let before = self.peer.endpoint();
        self.peer.renumber(now, old, new);
        self.diagnoses.renumber(old, new);
        // If the path has moved, the refusal is over.
        if self.peer.endpoint() == before {
            self.reach.renumber(old, new);
        }
    }

    /// The answer to [`Effect::ChangePort`]. If the port is fixed and the path has a router, that may be a NAT,
    /// which forgets a flow only if nothing is sent on it.
    pub fn port_is(&mut self, now: Now, port: Port) {
        match port {
            Port::Changed => self.socket_changed(),
            Port::Fixed if self.outlook.is_routed && self.peer.fall_silent(now) => {
                self.notify(Notice::FallsSilent);
            }
            Port::Fixed | Port::Kept => {}
        }
    }

    /// Datagrams are now sent from another port or interface. The rules of a default route contain the port,
    /// for hosts with a strict `rp_filter`.
    pub fn socket_changed(&mut self) {
        self.followed = None;
        self.push(Effect::AskRoutes { at_once: false });
    }

    /// Subscribes to changes of the route to the peer's address, or to the address that a handshake is sent to,
    /// if that has changed.
    pub(crate) fn follow_route(&mut self) -> Option<Effect> {
        let heading: Option<Transmit> = self.peer.heading();
        let changed = self.followed != Some(heading);
        self.followed = Some(heading);
        changed.then_some(Effect::FollowRoute(heading))
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
        let (mut reach, now) = (Reach::default(), BootTime::from_nanos(1));
        let filter = refused(1, Refusal::Filter);
        assert!(reach.refused(now, filter));
        assert_eq!(reach.deadline(), Some(now + CHECK_EVERY));
        assert!(!reach.refused(now, filter));
        assert!(reach.refused(now, refused(1, Refusal::NoRoute)), "another reason");
        reach.left(filter.to);
        assert!(!reach.check(now), "refused since the last check, and left");
        reach.left(refused(2, Refusal::Filter).to);
        assert!(!reach.check(now), "what leaves for elsewhere proves nothing");
        reach.left(filter.to);
        assert!(reach.check(now));
        assert_eq!((reach.refused, reach.deadline()), (None, None));
    }

    #[test]
    fn a_session_elsewhere_ends_it() {
        let (mut reach, now) = (Reach::default(), BootTime::from_nanos(1));
        let there = refused(1, Refusal::Unreachable);
        reach.refused(now, there);
        assert!(!reach.reached(Some(there.to)));
        assert!(reach.reached(Some(refused(2, Refusal::Filter).to)));
        assert!(!reach.reached(None));
    }
}
