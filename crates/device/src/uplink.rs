//! The uplink of the tunnel's own datagrams: the kernel's answer to a lookup of the route to the peer. The
//! lookup is repeated whenever routes, rules, addresses or links change.
//!
//! The lookup also shows whether our source address is the kernel's own choice. Then it need not be pinned: when the
//! route moves, the next datagram leaves from the right address, before anybody has looked. A pinned one would leave
//! by the new route from the old address, and the neighbour table would wait a second for the answer to a request
//! that it has sent from there.

mod choices;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::TryStreamExt;
use nix::net::if_::if_nametoindex;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteVia};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, RouteMessageBuilder};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use crate::Netlink;
use crate::error::errno;
use crate::heard::{Heard, Told};
use crate::link;

use choices::Choices;

/// The first change is handled at once. More changes usually follow, so the lookup is repeated after this time.
const SETTLES_WITHIN: Duration = Duration::from_millis(30);
/// The least times between lookups, in turn, however often routes change. They differ, so that of a route that moves to
/// and fro at a steady rate both states are seen.
const APART: [Duration; 4] = [
    Duration::from_millis(307),
    Duration::from_millis(401),
    Duration::from_millis(353),
    Duration::from_millis(449),
];
/// The longest of them.
const REST: Duration = APART[3];

/// The parameters of the lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The peer's address.
    pub to: SocketAddr,
    /// Our source address, unless the kernel chooses it.
    pub from: Option<IpAddr>,
    /// The mark of the datagrams.
    pub mark: u32,
    /// The name of the interface that the socket is bound to.
    pub device: Option<String>,
    /// The source port of the datagrams.
    pub port: u16,
}

/// The kind of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shift {
    /// A change of routes, rules, addresses or links that does not affect the datagrams.
    Elsewhere,
    /// The datagrams would now leave by another interface or from another address, or can no longer leave.
    Route,
    /// No change, but the answer to the query that has these addresses.
    Source {
        /// The peer's address.
        to: SocketAddr,
        /// Our source address.
        from: IpAddr,
        /// Whether the kernel chooses it by itself.
        is_kernels: bool,
    },
}

/// The answer to a [`Query`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Route {
    /// Where datagrams go with our current source address; or the error number.
    kept: Result<Hop, i32>,
    /// Where they go if the kernel chooses the source address, and its choice; or the error number.
    free: Result<(Hop, Option<IpAddr>), i32>,
}

/// The next hop: the index of the interface, and the router.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Hop {
    index: u32,
    gateway: Option<IpAddr>,
}

impl Route {
    /// The source address that the kernel chooses itself.
    fn free_source(&self) -> Option<IpAddr> {
        self.free.ok().and_then(|(_, source)| source)
    }

    /// The same, if it makes no difference to name the current source address: a rule for that address may lead
    /// elsewhere.
    fn chosen(&self) -> Option<IpAddr> {
        let (hop, source) = self.free.ok()?;
        let is_same = self.kept.map_or(true, |kept| kept == hop);
        source.filter(|_| is_same)
    }

    /// Whether datagrams that were sent from `from` under the answer `before` should be sent differently now.
    /// If the kernel did not choose the current source address, another choice of the kernel does not change
    /// it.
    fn is_other_than(&self, before: &Self, from: Option<IpAddr>) -> bool {
        let was_chosen = from.is_none() || before.free_source() == from;
        self.kept != before.kept || was_chosen && self.free != before.free
    }
}

/// Follows the routes to the peer.
pub struct Uplink {
    query: watch::Sender<Option<Query>>,
    shifts: mpsc::Receiver<Shift>,
    mtu: Arc<AtomicU32>,
}

impl Uplink {
    /// Starts to follow the kernel's messages in the network namespace of `netlink`. Requires a tokio
    /// runtime.
    pub fn follow(netlink: Netlink, heard: Heard) -> Self {
        let (query, asked) = watch::channel(None);
        let (send, shifts) = mpsc::channel(1);
        let mtu = Arc::new(AtomicU32::new(0));
        let follower = Follower::new(netlink.handle, Arc::clone(&mtu));
        tokio::spawn(follow(follower, heard, asked, send));
        Self { query, shifts, mtu }
    }

    /// The MTU of the interface that the datagrams leave by, if it is known. Unlike the route's, it does not depend on
    /// ICMP messages.
    pub fn link_mtu(&self) -> Option<u16> {
        let mtu = self.mtu.load(Ordering::Relaxed);
        (mtu > 0).then(|| u16::try_from(mtu).unwrap_or(u16::MAX))
    }

    /// Replaces the query.
    pub fn ask(&self, query: Option<Query>) {
        self.query.send_if_modified(|asked| {
            let modified = *asked != query;
            *asked = query;
            modified
        });
    }

    /// Waits until something has changed.
    pub async fn shifted(&mut self) -> Shift {
        match self.shifts.recv().await {
            Some(shift) => shift,
            None => std::future::pending().await,
        }
    }
}

/// When to repeat the lookup after a change.
#[derive(Default)]
struct Pace {
    due: Option<Instant>,
    /// The earliest time of the next lookup.
    rested: Option<Instant>,
    /// The number of lookups.
    count: usize,
}

impl Pace {
    /// Records that something has changed.
    fn heard(&mut self, now: Instant) {
        let earliest = self.rested.filter(|rested| now < *rested);
        self.repeat(earliest.unwrap_or(now));
    }

    /// Repeats the lookup at this time, or earlier.
    fn repeat(&mut self, at: Instant) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// Records that a lookup is made.
    fn asked(&mut self, now: Instant) {
        self.due = None;
        let is_first = self.rested.is_none_or(|rested| now >= rested + REST);
        let apart = APART[self.count % APART.len()];
        self.rested = Some(now + if is_first { SETTLES_WITHIN } else { apart });
        self.count += 1;
    }

    async fn due(&self) {
        match self.due {
            Some(due) => sleep_until(due).await,
            None => std::future::pending().await,
        }
    }
}

/// Why the route is looked up.
#[derive(PartialEq)]
enum Cause {
    /// There is a new query: later answers are compared with the first answer to it.
    Asked,
    /// The kernel has reported a change.
    Told,
}

/// Waits until the route is to be looked up; `None` if the queries or the kernel's messages have ended.
async fn next_lookup(
    heard: &mut Heard,
    asked: &mut watch::Receiver<Option<Query>>,
    pace: &mut Pace,
) -> Option<Cause> {
    loop {
        tokio::select! {
            told = heard.next() => if concerns(&told?) {
                pace.heard(Instant::now());
            },
            changed = asked.changed() => return changed.ok().map(|()| Cause::Asked),
            () = pace.due() => {
                pace.asked(Instant::now());
                return Some(Cause::Told);
            }
        }
    }
}

/// Looks routes up, and compares the answers.
struct Follower {
    handle: Handle,
    mtu: Arc<AtomicU32>,
    known: Option<(Query, Route)>,
    pace: Pace,
    choices: Choices,
    /// The last answer about our source address that was told.
    told: Option<Shift>,
}

async fn follow(
    mut follower: Follower,
    mut heard: Heard,
    mut asked: watch::Receiver<Option<Query>>,
    shifts: mpsc::Sender<Shift>,
) {
    while let Some(cause) = next_lookup(&mut heard, &mut asked, &mut follower.pace).await {
        let query = asked.borrow_and_update().clone();
        for shift in follower.look(cause, query).await {
            if shifts.send(shift).await.is_err() {
                return;
            }
        }
    }
}

impl Follower {
    fn new(handle: Handle, mtu: Arc<AtomicU32>) -> Self {
        let (pace, choices) = (Pace::default(), Choices::default());
        Self { handle, mtu, known: None, pace, choices, told: None }
    }

    /// Looks up the route of `query`; returns what has changed.
    async fn look(&mut self, cause: Cause, query: Option<Query>) -> impl Iterator<Item = Shift> {
        let route = match &query {
            Some(query) => Some(ask(&self.handle, query).await),
            None => None,
        };
        let is_other_mtu = self.is_other_mtu(route).await;
        let is_other = self.is_other(query.zip(route));
        let elsewhere = (cause == Cause::Told || is_other_mtu).then_some(Shift::Elsewhere);
        let change = is_other.then_some(Shift::Route).or(elsewhere);
        // Whoever hears of a change of the route knows nothing of the source address any more.
        let source = self.source(cause == Cause::Asked || is_other);
        change.into_iter().chain(source)
    }

    /// Whether the MTU of the route's interface is no longer the same.
    async fn is_other_mtu(&self, route: Option<Route>) -> bool {
        let link = route.and_then(|route| route.kept.ok()).map(|hop| hop.index);
        let mtu = link_mtu(&self.handle, link).await.unwrap_or(0);
        self.mtu.swap(mtu, Ordering::Relaxed) != mtu
    }

    /// Whether the same query is answered otherwise than before.
    fn is_other(&mut self, known: Option<(Query, Route)>) -> bool {
        let before = std::mem::replace(&mut self.known, known);
        let both = before.as_ref().zip(self.known.as_ref());
        both.is_some_and(|((asked, before), (query, route))| {
            asked == query && route.is_other_than(before, query.from)
        })
    }

    /// The answer about our source address, if it is another one than was told last, or `anew`.
    fn source(&mut self, anew: bool) -> Option<Shift> {
        let (now, (query, route)) = (Instant::now(), self.known.as_ref()?);
        self.choices.note(query, route.chosen(), now);
        let source = self.choices.source(query, now)?;
        if let Some(until) = query.from.and_then(|from| self.choices.changes(from, now)) {
            self.pace.repeat(until);
        }
        let before = self.told.replace(source);
        Some(source).filter(|_| anew || before != Some(source))
    }
}

/// Whether the message may concern a route. Messages about neighbours and similar ones do not, and the kernel
/// does not report changed statistics of links.
fn concerns(told: &Told) -> bool {
    use RouteNetlinkMessage as Message;
    match told {
        Told::Route(message) => matches!(
            **message,
            Message::NewLink(_)
                | Message::DelLink(_)
                | Message::NewAddress(_)
                | Message::DelAddress(_)
                | Message::NewRoute(_)
                | Message::DelRoute(_)
                | Message::NewRule(_)
                | Message::DelRule(_)
        ),
        // Routes that use the nexthop object now lead elsewhere, or messages about anything were lost.
        Told::Nexthop | Told::Lost => true,
        Told::Configured { .. } | Told::Unconfigured { .. } => false,
    }
}

async fn link_mtu(handle: &Handle, index: Option<u32>) -> Option<u32> {
    let link = link::at(handle, index?).await?;
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

async fn ask(handle: &Handle, query: &Query) -> Route {
    let free = one(handle, query, None).await;
    let kept = match query.from {
        Some(from) => one(handle, query, Some(from)).await,
        None => free,
    };
    Route { kept: kept.map(|(hop, _)| hop), free }
}

async fn one(
    handle: &Handle,
    query: &Query,
    from: Option<IpAddr>,
) -> Result<(Hop, Option<IpAddr>), i32> {
    let Some(message) = message(query, from) else { return Err(libc::ENODEV) };
    let mut answers = Box::pin(handle.route().get(message).execute());
    match answers.try_next().await {
        Ok(Some(route)) => Ok(read(&route)),
        Ok(None) => Err(libc::ENETUNREACH),
        Err(error) => Err(errno(&error)),
    }
}

/// The query as a netlink message; `None` if the interface that the socket is bound to does not exist.
fn message(query: &Query, from: Option<IpAddr>) -> Option<RouteMessage> {
    let (to, length) = (query.to.ip(), if query.to.is_ipv4() { 32 } else { 128 });
    let mut message = RouteMessageBuilder::<IpAddr>::new().build();
    message.header.address_family =
        if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.destination_prefix_length = length;
    let mut attributes = vec![
        RouteAttribute::Destination(to.into()),
        RouteAttribute::IpProto(IPPROTO_UDP),
        RouteAttribute::Sport(query.port),
        RouteAttribute::Dport(query.to.port()),
    ];
    if query.mark != 0 {
        attributes.push(RouteAttribute::Mark(query.mark));
    }
    if let Some(from) = from {
        message.header.source_prefix_length = length;
        attributes.push(RouteAttribute::Source(from.into()));
    }
    if let Some(index) = interface(query)? {
        attributes.push(RouteAttribute::Oif(index));
    }
    message.attributes = attributes;
    Some(message)
}

const IPPROTO_UDP: u8 = 17;

/// The interface that the datagrams must leave by; the inner `None` if any interface is allowed.
fn interface(query: &Query) -> Option<Option<u32>> {
    match (&query.device, query.to) {
        (Some(device), _) => if_nametoindex(device.as_str()).ok().map(Some),
        (None, SocketAddr::V6(to)) if to.scope_id() != 0 => Some(Some(to.scope_id())),
        _ => Some(None),
    }
}

fn read(route: &RouteMessage) -> (Hop, Option<IpAddr>) {
    let (mut hop, mut source) = (Hop::default(), None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(oif) => hop.index = *oif,
            RouteAttribute::Gateway(at) => hop.gateway = address(at),
            RouteAttribute::Via(RouteVia::Inet6(v6)) => hop.gateway = Some((*v6).into()),
            RouteAttribute::PrefSource(at) => source = address(at),
            _ => {}
        }
    }
    (hop, source)
}

fn address(at: &RouteAddress) -> Option<IpAddr> {
    match at {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_change_is_looked_at_at_once_the_next_soon_and_a_flood_seldom() {
        let (start, mut pace, mut asked) = (Instant::now(), Pace::default(), Vec::new());
        for millis in 0..2000 {
            let now = start + Duration::from_millis(millis);
            pace.heard(now);
            if pace.due.is_some_and(|due| now >= due) {
                pace.asked(now);
                asked.push(millis);
            }
        }
        assert_eq!(asked, [0, 30, 431, 784, 1233, 1540, 1941]);
        pace.asked(start + Duration::from_millis(2030));
        pace.heard(start + Duration::from_secs(9));
        assert_eq!(pace.due, Some(start + Duration::from_secs(9)));
    }

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const TWO: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 129));

    fn route(kept: u32, free: (u32, IpAddr)) -> Route {
        let hop = |index| Hop { index, gateway: None };
        Route { kept: Ok(hop(kept)), free: Ok((hop(free.0), Some(free.1))) }
    }

    #[test]
    fn a_source_whose_rule_leads_elsewhere_is_not_the_kernels_choice() {
        assert_eq!(route(1, (1, ONE)).chosen(), Some(ONE));
        assert_eq!(route(2, (1, ONE)).chosen(), None);
        let gateway = Some(TWO);
        let by_router = Route { kept: Ok(Hop { index: 1, gateway }), ..route(1, (1, ONE)) };
        assert_eq!(by_router.chosen(), None);
        // An address that is gone leads nowhere.
        assert_eq!(Route { kept: Err(libc::EINVAL), ..route(1, (1, ONE)) }.chosen(), Some(ONE));
    }

    #[test]
    fn the_default_route_moves() {
        let (before, after) = (route(1, (1, ONE)), route(2, (2, TWO)));
        assert!(after.is_other_than(&before, Some(ONE)));
        assert!(after.is_other_than(&before, None));
        assert!(!before.is_other_than(&before, Some(ONE)));
    }

    #[test]
    fn a_source_with_rules_of_its_own_stays_when_others_routes_move() {
        let (before, after) = (route(2, (1, ONE)), route(2, (3, TWO)));
        assert!(!after.is_other_than(&before, Some(TWO)));
    }

    #[test]
    fn a_source_that_the_kernel_chose_goes_when_it_chooses_another_on_the_same_link() {
        let (before, after) = (route(1, (1, ONE)), route(1, (1, TWO)));
        assert!(after.is_other_than(&before, Some(ONE)));
    }

    #[test]
    fn an_address_that_is_gone_is_let_go() {
        let before = route(1, (2, TWO));
        let after = Route { kept: Err(libc::EINVAL), ..before };
        assert!(after.is_other_than(&before, Some(ONE)));
    }
}
