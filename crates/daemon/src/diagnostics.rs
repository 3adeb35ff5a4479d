//! Log lines about the peer and the path to it. Lines that the network can cause are rate-limited. The control
//! plane detects the faults, and this module words the messages.

mod sentences;
#[cfg(test)]
mod tests;

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use vpnd_crypto::PublicKey;
use vpnd_device::Found;
use vpnd_plane::{InnerSource, Kind, Loop, Notice, Refused, State, Unresolved};
use vpnd_protocol::peer::{Change, Diagnosis};
use vpnd_protocol::session::Role;
use vpnd_protocol::time::BootTime;

use crate::config::Mac;
use crate::logging::RateLimit;
use crate::status::{explanation, summary};
use crate::zone::Zones;

pub(crate) use sentences::{duplicate_key, inner_source, refused_source, unresolved};

/// The classes of lines that the network can cause in any number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Session,
    Alive,
    Dead,
    Lost,
    Closed,
    Upgrade,
    Answer,
    Confirm,
    Unknown,
    Stale,
    Ahead,
    Moved,
    Switched,
    Size,
    Segmentation,
    BadMac1,
    Loop,
    Unlooped,
    Back,
    Nested,
    Unresolved,
    InnerSource,
    OuterSource,
    Refused,
    Leaves,
    Duplicate,
    Misfit,
    Mtu,
    MtuRefused,
    Fragmentation,
    Covered,
    Port,
}

/// Writes the log lines.
pub(crate) struct Diagnostics {
    peer: PublicKey,
    limit: RateLimit<Class>,
    /// The names of interfaces, for link-local addresses.
    pub(crate) zones: Zones,
}

/// Values of the configuration that are part of some lines.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    /// The name of the tunnel's device.
    pub(crate) device: &'a str,
    /// The time without a sign of life after which the peer is dead.
    pub(crate) dead_after: Duration,
}

impl Diagnostics {
    /// Reports on the tunnel to `peer`; nothing has been reported yet.
    pub(crate) fn new(peer: PublicKey) -> Self {
        Self { peer, limit: RateLimit::default(), zones: Zones::default() }
    }

    /// The configuration was reloaded: the peer may have another public key.
    pub(crate) const fn expect(&mut self, peer: PublicKey) {
        self.peer = peer;
    }

    /// Logs a notice.
    pub(crate) fn report(&mut self, now: BootTime, facts: Facts<'_>, notice: &Notice) {
        let Facts { device, dead_after } = facts;
        match notice {
            Notice::Change(change) => self.changed(now, change),
            Notice::Diagnosis(found) => self.diagnosed(now, found),
            // It is in the log already.
            Notice::Again(_) => {}
            Notice::Alive(alive) => self.alive(now, *alive, dead_after),
            Notice::NoAnswer => {
                tracing::info!(
                    "no answer from the peer yet: it is down, or UDP does not get through"
                );
            }
            Notice::BadMac1(count) => self.bad_mac1(now, *count),
            Notice::Refused(refused) => self.refused(now, *refused),
            Notice::Leaves => self.leaves(now),
            Notice::Loops(loops) => self.loops(now, loops),
            Notice::LoopsOver(to) => self.loops_over(now, device, to),
            Notice::Back(route) => self.own_came_back(now, device, route.as_ref()),
            Notice::Nested(route) => self.nested(now, device, route.as_ref()),
            Notice::InnerSource(inner) => self.inner_source(now, inner),
            Notice::OuterSource => self.outer_source(now),
            Notice::Unresolved(names) => self.unresolved(now, names),
            Notice::RefusedSource(refused) => tracing::warn!("{}", refused_source(*refused)),
            Notice::State(state) => report_state(state),
            Notice::FallsSilent => tracing::info!(
                "no answer for long: nothing is sent for half a minute, so that a NAT on the path forgets this \
                 flow. [interface] listen fixes the port, so another port cannot be tried"
            ),
            Notice::RouteChanged => tracing::debug!("the route to the peer has changed"),
        }
    }

    /// The MTU of the device has changed from `before`: it follows the path, which others can make smaller.
    pub(crate) fn mtu_is(&mut self, now: BootTime, device: &str, before: u16, mtu: u16) {
        if let Some(more) = self.limit.allow(Class::Mtu, now) {
            tracing::info!("the MTU of {device} is {mtu} now, it was {before}{more}");
        }
    }

    /// The kernel refuses an MTU of the device.
    pub(crate) fn mtu_refused(&mut self, now: BootTime, error: &dyn Display) {
        if let Some(more) = self.limit.allow(Class::MtuRefused, now) {
            tracing::warn!("{error}{more}");
        }
    }

    /// The kernel refuses to set or clear the DF bit.
    pub(crate) fn fragmentation_stays(&mut self, now: BootTime, error: &dyn Display) {
        if let Some(more) = self.limit.allow(Class::Fragmentation, now) {
            tracing::warn!(
                "cannot change the DF bit: {error}; the path's MTU is not found out{more}"
            );
        }
    }

    /// A route into the tunnel also covers an address that the peer's name has.
    pub(crate) fn covered(&mut self, now: BootTime, route: &dyn Display, at: IpAddr) {
        if let Some(more) = self.limit.allow(Class::Covered, now) {
            tracing::warn!(
                "route {route} also covers the peer's own address {at}: add a more specific route to that \
                 address, or give the route a table of its own{more}"
            );
        }
    }

    /// Nobody has answered, and datagrams are sent from another port.
    pub(crate) fn port_changed(&mut self, now: BootTime, port: u16) {
        if let Some(more) = self.limit.allow(Class::Port, now) {
            tracing::info!("no answer for long: sending from another port, {port}{more}");
        }
    }

    fn changed(&mut self, now: BootTime, change: &Change) {
        match change {
            // Another notice reports these.
            Change::Alive | Change::Dead => {}
            Change::Initiating { to, attempt: 1 } => {
                tracing::debug!("sending an initiation to {to}")
            }
            Change::Initiating { to, attempt } => {
                tracing::debug!("sending an initiation to {to}: no answer yet, try {attempt}");
            }
            Change::Established(role) => self.established(now, *role),
            Change::GaveUp => tracing::warn!(
                "no answer from the peer: it is down, UDP does not get through, or its public_key \
                 for us is wrong; vpnd tries again, at the latest with the next packet or keepalive"
            ),
            Change::Lost => self.lost(now),
            Change::Closed => self.closed(now),
            Change::PathCarries { payload } => self.path_carries(now, *payload),
            Change::Segmentation { works } => self.segmentation(now, *works),
            Change::Moved { to } => {
                self.zones.learn(*to);
                self.moved(now, &self.zones.show(*to));
            }
            Change::Switched { from, to, returns } => self.switched(now, [*from, *to], *returns),
        }
    }

    fn diagnosed(&mut self, now: BootTime, found: &Diagnosis) {
        match found {
            Diagnosis::AnswerDoesNotOpen => self.answer_does_not_open(now),
            Diagnosis::NeverConfirms(count) => self.never_confirms(now, *count),
            Diagnosis::UnknownPeer { key, from } => {
                self.unknown_peer(now, *key, &from.to_string());
            }
            Diagnosis::StaleInitiation { got, last } => {
                self.stale(now, &got.to_string(), &last.to_string());
            }
            Diagnosis::StampAhead { got } => self.stamp_ahead(now, &got.to_string()),
            Diagnosis::RotationUnanswered => tracing::warn!(
                "no answer with our next key: set it as `next_public_key` at the peer. The old key stays in \
                 use"
            ),
            Diagnosis::UpgradeFailed => self.upgrade_failed(now),
            Diagnosis::DuplicateKey { addresses } => self.duplicate_key(now, *addresses),
            Diagnosis::Devices { same_mac, mtus } => self.misfits(now, *same_mac, *mtus),
        }
    }

    fn loops(&mut self, now: BootTime, loops: &[Loop]) {
        for Loop { to, route } in loops {
            let Some(more) = self.limit.allow(Class::Loop, now) else { break };
            tracing::warn!(
                "the tunnel would lead into itself: the route to the peer at {to} is {route}, by \
                 its own device; nothing is sent there, remove that route or keep a more specific one{more}"
            );
        }
    }

    fn loops_over(&mut self, now: BootTime, device: &str, over: &[SocketAddr]) {
        for to in over {
            let Some(more) = self.limit.allow(Class::Unlooped, now) else { break };
            tracing::info!("the route to the peer at {to} no longer leads into {device}{more}");
        }
    }

    fn unresolved(&mut self, now: BootTime, names: &Unresolved) {
        if let Some(more) = self.limit.allow(Class::Unresolved, now) {
            tracing::warn!("{}{more}", unresolved(names));
        }
    }

    fn inner_source(&mut self, now: BootTime, inner: &InnerSource) {
        if let Some(more) = self.limit.allow(Class::InnerSource, now) {
            tracing::warn!("{}{more}", inner_source(inner));
        }
    }

    fn outer_source(&mut self, now: BootTime) {
        if let Some(more) = self.limit.allow(Class::OuterSource, now) {
            tracing::info!("the kernel no longer sends from an address of the tunnel{more}");
        }
    }

    fn nested(&mut self, now: BootTime, device: &str, route: Option<&Found>) {
        let by = route.map(|route| format!(", which is {route},")).unwrap_or_default();
        if let Some(more) = self.limit.allow(Class::Nested, now) {
            tracing::warn!(
                "tunnels of this host lead into each other: datagrams to the peer{by} come back to {device} \
                 through another tunnel; they are dropped{more}"
            );
        }
    }

    fn own_came_back(&mut self, now: BootTime, device: &str, route: Option<&Found>) {
        let by = route.map(|route| format!(" though the route to the peer is {route}"));
        if let Some(more) = self.limit.allow(Class::Back, now) {
            tracing::warn!(
                "the tunnel leads into itself: its own datagrams come out of {device}{}, and are dropped{more}",
                by.unwrap_or_default()
            );
        }
    }

    fn refused(&mut self, now: BootTime, Refused { to, why }: Refused) {
        self.zones.learn(to);
        let to = self.zones.show(to);
        if let Some(more) = self.limit.allow(Class::Refused, now) {
            tracing::warn!("datagrams to {to} do not leave this host: {why}{more}");
        }
    }

    fn leaves(&mut self, now: BootTime) {
        if let Some(more) = self.limit.allow(Class::Leaves, now) {
            tracing::info!("datagrams to the peer leave this host again{more}");
        }
    }

    fn bad_mac1(&mut self, now: BootTime, count: u64) {
        if let Some(more) = self.limit.allow(Class::BadMac1, now) {
            tracing::warn!(
                "handshake messages arrive whose mac1 was not made for our public key ({count} so \
                 far): the other side's public_key for us is wrong, or it is a scan{more}"
            );
        }
    }

    /// The peer became alive or dead. If that changes often, not every change is logged, and `status` shows the
    /// latest one.
    fn alive(&mut self, now: BootTime, alive: bool, dead_after: Duration) {
        let class = if alive { Class::Alive } else { Class::Dead };
        let Some(more) = self.limit.allow(class, now) else { return };
        if alive {
            tracing::info!("the peer is alive{more}");
        } else {
            let dead_after = humantime::format_duration(dead_after);
            tracing::warn!(
                "the peer is dead: no sign of life for {dead_after}, or it announced that it is shutting down{more}"
            );
        }
    }

    fn established(&mut self, now: BootTime, role: Role) {
        if let Some(more) = self.limit.allow(Class::Session, now) {
            let role = if role == Role::Initiator { "we initiated" } else { "the peer initiated" };
            tracing::info!("session with {} established: {role}{more}", self.peer);
        }
    }

    fn lost(&mut self, now: BootTime) {
        if let Some(more) = self.limit.allow(Class::Lost, now) {
            tracing::info!("the session has expired; the next packet starts a new one{more}");
        }
    }

    fn closed(&mut self, now: BootTime) {
        if let Some(more) = self.limit.allow(Class::Closed, now) {
            tracing::info!("the peer announced that it is shutting down{more}");
        }
    }

    fn upgrade_failed(&mut self, now: BootTime) {
        if let Some(more) = self.limit.allow(Class::Upgrade, now) {
            tracing::warn!(
                "the post-quantum upgrade failed: the peer's messages for it are invalid{more}"
            );
        }
    }

    fn moved(&mut self, now: BootTime, to: &str) {
        if let Some(more) = self.limit.allow(Class::Moved, now) {
            tracing::info!("the peer is at {to}{more}");
        }
    }

    fn switched(&mut self, now: BootTime, addresses: [SocketAddr; 2], returns: bool) {
        let [from, to] = addresses.map(|at| self.zones.show(at));
        let Some(more) = self.limit.allow(Class::Switched, now) else { return };
        if returns {
            tracing::info!(
                "{to} is preferred to {from} and has answered for long enough: using it again{more}"
            );
        } else {
            tracing::warn!("no answer at {from}, and an answer at {to}: using that one{more}");
        }
    }

    fn path_carries(&mut self, now: BootTime, payload: u16) {
        if let Some(more) = self.limit.allow(Class::Size, now) {
            tracing::info!("datagrams of up to {payload} bytes reach the peer{more}");
        }
    }

    fn segmentation(&mut self, now: BootTime, works: bool) {
        let Some(more) = self.limit.allow(Class::Segmentation, now) else { return };
        if works {
            tracing::info!(
                "datagrams in batches (GSO) arrive again as well as single ones: they are used{more}"
            );
        } else {
            tracing::warn!(
                "datagrams in batches (GSO) are lost much more often than single ones, so each leaves singly: a kernel, \
                 network card or router on the path spoils batches. They are tried again in half a minute, and then \
                 every hour{more}"
            );
        }
    }

    fn answer_does_not_open(&mut self, now: BootTime) {
        if let Some(more) = self.limit.allow(Class::Answer, now) {
            tracing::warn!(
                "the peer's answer does not open: PSK differs, or one of protocol, mode, cipher and \
                 post_quantum{more}"
            );
        }
    }

    fn never_confirms(&mut self, now: BootTime, count: u32) {
        if let Some(more) = self.limit.allow(Class::Confirm, now) {
            tracing::warn!(
                "peer {} initiates ({count}×) and never confirms: its PSK differs, or one of \
                 protocol, mode, cipher and post_quantum, or our answers are lost{more}",
                self.peer
            );
        }
    }

    /// The peer's key is used at two addresses in turn.
    fn duplicate_key(&mut self, now: BootTime, addresses: [SocketAddr; 2]) {
        addresses.iter().for_each(|at| self.zones.learn(*at));
        let addresses = addresses.map(|at| self.zones.show(at));
        if let Some(more) = self.limit.allow(Class::Duplicate, now) {
            tracing::warn!("{}{more}", duplicate_key(&addresses));
        }
    }

    /// The devices of both ends do not match.
    fn misfits(&mut self, now: BootTime, mac: Option<[u8; 6]>, mtus: Option<(u16, u16)>) {
        if let Some(mac) = mac.map(Mac)
            && let Some(more) = self.limit.allow(Class::Misfit, now)
        {
            tracing::error!(
                "both ends have the hardware address {mac}, and cannot communicate: give one another \
                 [interface] mac, or none{more}"
            );
        }
        if let Some((ours, theirs)) = mtus
            && let Some(more) = self.limit.allow(Class::Misfit, now)
        {
            tracing::warn!(
                "the MTU of our device is {ours} and that of the peer's {theirs}: longer frames than the smaller \
                 one are lost; give both bridges, or [interface] mtu at both ends, the same{more}"
            );
        }
    }

    fn unknown_peer(&mut self, now: BootTime, key: PublicKey, from: &str) {
        if let Some(more) = self.limit.allow(Class::Unknown, now) {
            tracing::warn!("unknown peer {key} at {from}; our peer is {}{more}", self.peer);
        }
    }

    fn stale(&mut self, now: BootTime, got: &str, last: &str) {
        if let Some(more) = self.limit.allow(Class::Stale, now) {
            tracing::warn!(
                "an initiation of the peer has the timestamp {got}, not after {last}: a replay, or its \
                 clock was set back and its state directory lost, or two machines use its key{more}"
            );
        }
    }

    fn stamp_ahead(&mut self, now: BootTime, got: &str) {
        if let Some(more) = self.limit.allow(Class::Ahead, now) {
            tracing::warn!(
                "the peer's initiation has the timestamp {got}, more than a day ahead of our clock: it is answered, \
                 but one of the two clocks is wrong{more}"
            );
        }
    }
}

/// Logs the state. The control plane limits how often.
fn report_state(state: &State) {
    let summary = summary(state);
    match explanation(state) {
        Some(why) => tracing::warn!("the tunnel is {summary}: {why}"),
        None if state.kind == Kind::Down => tracing::warn!("the tunnel is {summary}"),
        None => tracing::info!("the tunnel is {summary}"),
    }
}
