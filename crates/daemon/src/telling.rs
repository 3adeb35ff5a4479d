//! Puts what happens into words: log lines, limited where the network can cause them, and the
//! one thing that `status` should say when the tunnel does not come up.

mod duplicate;
mod refused;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use vpnd_crypto::PublicKey;
use vpnd_protocol::peer::{Change, Diagnosis};
use vpnd_protocol::session::Role;
use vpnd_protocol::time::BootTime;
use vpnd_tunnel::engine::RefusedPackets;
use vpnd_tunnel::udp::Refusal;

use vpnd_device::Found;

use crate::config::Mac;
use crate::logging::RateLimit;
use crate::nameservers;
use crate::resolve::Failure;
use crate::zone::Zones;
use vpnd_plane::{InnerSource, Loop, Outlook, Refused};

use duplicate::Duplicate;

pub(crate) use duplicate::words as duplicate_key;
pub(crate) use refused::RefusedSource;
use refused::RefusedSources;

/// What keeps a tunnel from coming up, as far as the protocol lets one know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The peer answers under another preshared key.
    AnswerDoesNotOpen,
    /// The peer initiates, and never uses our answers.
    NeverConfirms(u32),
    /// Somebody with this key initiates with us.
    UnknownPeer(PublicKey),
    /// The peer's clock is behind what it once said.
    StaleInitiation,
    /// The peer stopped, and said so.
    Closed,
    /// Nobody answers at all.
    NoAnswer,
    /// Handshake messages arrive that were made for another key.
    BadMac1(u64),
    /// What is sent to the peer comes back out of the device.
    Loop(Loop),
    /// Own datagrams come out of the device, though the route to the peer, if there is one, leads elsewhere.
    Back(Option<Found>),
    /// What is sent to the peer goes through other tunnels of this host, and comes back.
    Nested(Option<Found>),
    /// The names of the peer that cannot be looked up, and the name servers that are reached through the tunnel.
    Unresolved(Vec<Failure>, Vec<IpAddr>),
    /// What is sent to the peer is sent from an address of the tunnel.
    InnerSource(InnerSource),
    /// The peer's key is used at these two addresses in turn.
    DuplicateKey([String; 2]),
    /// Both ends have this hardware address.
    SameMac(Mac),
    /// Frames of one end are too long for the other: ours, theirs.
    MtuDiffers(u16, u16),
    /// Packets of the peer come from where `allowed_ips` lets none come from.
    RefusedSource(RefusedSource),
    /// Our own host refuses to send. It hides what silence would seem to say of the peer.
    Refused {
        /// Where to.
        to: String,
        /// Who refuses.
        why: Refusal,
    },
}

impl Trouble {
    /// Whether it keeps a tunnel that is up from carrying all that it should.
    pub(crate) const fn outlasts_a_session(&self) -> bool {
        matches!(
            self,
            Self::DuplicateKey(_)
                | Self::SameMac(_)
                | Self::MtuDiffers(..)
                | Self::Refused { .. }
                | Self::RefusedSource(_)
        )
    }
}

/// Which names of the peer cannot be looked up, and why.
pub(crate) fn unresolved(failures: &[Failure], inside: &[IpAddr]) -> String {
    let list = |all: Vec<String>| all.join(", ");
    let names = list(failures.iter().map(|one| one.endpoint.clone()).collect());
    if inside.is_empty() {
        let why = failures.first().map(|one| one.error.as_str()).unwrap_or_default();
        return format!("{names} cannot be looked up, it is tried again: {why}");
    }
    let servers = list(inside.iter().map(ToString::to_string).collect());
    let help = nameservers::HELP;
    format!(
        "{names} cannot be looked up: name server {servers} is reached through the tunnel itself; {help}"
    )
}

/// A loop of which nothing more is seen is over.
const FORGOTTEN: Duration = Duration::from_secs(10);

/// The hint at a wrong public key at the other end goes after this time without another such message. Tries are five
/// seconds apart.
const BAD_MAC1_FORGOTTEN: Duration = Duration::from_secs(20);

/// Unanswered tries of a handshake before `status` has a hint.
const TRIES_BEFORE_HINT: u32 = 3;

/// Lines of which the network can cause any number.
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
}

/// What has been told, and what is the trouble.
pub(crate) struct Telling {
    peer: PublicKey,
    limit: RateLimit<Class>,
    trouble: Option<Trouble>,
    refused: Option<Trouble>,
    /// The names of interfaces, for link-local addresses.
    pub(crate) zones: Zones,
    bad_mac1: u64,
    /// When that last changed.
    bad_mac1_at: BootTime,
    /// What of the peer's device does not fit ours: its hardware address, its MTU.
    misfits: [Option<Trouble>; 2],
    refused_sources: RefusedSources,
    outlook: Outlook,
    /// The first loop of it.
    looped: Option<Trouble>,
    inner_source: Option<Trouble>,
    unresolved: Option<Trouble>,
    /// Own datagrams, and those of other tunnels, that came back so far.
    back: [u64; 2],
    /// What the latest of them mean, and when that was.
    came_back: Option<(Trouble, BootTime)>,
    duplicate: Duplicate,
}

impl Telling {
    /// Nothing told yet of the tunnel to `peer`.
    pub(crate) fn new(peer: PublicKey) -> Self {
        Self {
            peer,
            limit: RateLimit::default(),
            trouble: None,
            refused: None,
            zones: Zones::default(),
            bad_mac1: 0,
            bad_mac1_at: BootTime::default(),
            misfits: [None, None],
            refused_sources: RefusedSources::default(),
            outlook: Outlook::default(),
            back: [0; 2],
            looped: None,
            inner_source: None,
            unresolved: None,
            came_back: None,
            duplicate: Duplicate::default(),
        }
    }

    /// The configuration was reloaded: the peer may have another public key.
    pub(crate) fn expect(&mut self, peer: PublicKey) {
        self.peer = peer;
        self.refused_sources.reloaded();
    }

    /// The latest trouble, which a session that stands ends, or else what does not fit. What leads the tunnel into
    /// itself comes first, and what our own host refuses: anybody may send what looks like another tunnel's datagram.
    pub(crate) fn trouble(&self) -> Option<&Trouble> {
        let came_back = self.came_back.as_ref().map(|(trouble, _)| trouble);
        let first = self.looped.as_ref().or(self.refused.as_ref()).or(came_back);
        let first = first.or_else(|| self.duplicate.trouble());
        let first = first.or(self.inner_source.as_ref()).or_else(|| self.unresolved());
        let first = first.or(self.trouble.as_ref()).or_else(|| self.misfit());
        first.or_else(|| self.refused_sources.trouble())
    }

    /// Forgets what has not happened for some minutes.
    pub(crate) fn forget_old(&mut self, now: BootTime) {
        self.duplicate.forget(now);
    }

    /// What is known of the routes to the peer by now.
    pub(crate) fn outlook(&mut self, now: BootTime, device: &str, outlook: Outlook) {
        let before = std::mem::replace(&mut self.outlook, outlook);
        for one in self.outlook.loops.iter().filter(|one| !before.loops.contains(one)) {
            let Some(more) = self.limit.allow(Class::Loop, now) else { break };
            let Loop { to, route } = one;
            tracing::warn!(
                "the tunnel would lead into itself: the route to the peer at {to} is {route}, by \
                 its own device; nothing is sent there, remove that route or keep a more specific one{more}"
            );
        }
        for one in before.loops.iter().filter(|one| !self.outlook.leads_back(one.to)) {
            let Some(more) = self.limit.allow(Class::Unlooped, now) else { break };
            tracing::info!("the route to the peer at {} leads past {device} again{more}", one.to);
        }
        self.compare_sources(now, before.inner_source.as_ref());
        self.looped = self.outlook.loops.first().cloned().map(Trouble::Loop);
        if before.current != self.outlook.current {
            self.came_back = None;
        }
    }

    /// Names of the peer cannot be looked up, or can be again if there are none. That a name server is reached through
    /// the tunnel is logged when it is new; the rest the resolver logs.
    pub(crate) fn lookups_failed(
        &mut self,
        now: BootTime,
        failures: Vec<Failure>,
        inside: Vec<IpAddr>,
    ) {
        let was_inside = match &self.unresolved {
            Some(Trouble::Unresolved(_, inside)) => inside.clone(),
            _ => Vec::new(),
        };
        if !inside.is_empty()
            && inside != was_inside
            && let Some(more) = self.limit.allow(Class::Unresolved, now)
        {
            tracing::warn!("{}{more}", unresolved(&failures, &inside));
        }
        let any = !failures.is_empty();
        self.unresolved = any.then_some(Trouble::Unresolved(failures, inside));
    }

    /// A name that cannot be looked up explains why nobody answers, and nothing else.
    fn unresolved(&self) -> Option<&Trouble> {
        let explains = matches!(self.trouble, None | Some(Trouble::NoAnswer));
        self.unresolved.as_ref().filter(|_| explains)
    }

    /// Whether datagrams are sent from an address of the tunnel is logged when it changes.
    fn compare_sources(&mut self, now: BootTime, before: Option<&InnerSource>) {
        let current = self.outlook.inner_source.clone();
        match &current {
            Some(inner) if before != Some(inner) => {
                if let Some(more) = self.limit.allow(Class::InnerSource, now) {
                    tracing::warn!("{inner}{more}");
                }
            }
            None if before.is_some() => {
                if let Some(more) = self.limit.allow(Class::OuterSource, now) {
                    tracing::info!(
                        "the kernel no longer sends from an address of the tunnel{more}"
                    );
                }
            }
            _ => {}
        }
        self.inner_source = current.map(Trouble::InnerSource);
    }

    /// Tells of datagrams that come out of the device and must not: own ones, and those that have been through tunnels
    /// of this host too often.
    pub(crate) fn watch_loops(&mut self, now: BootTime, device: &str, back: [u64; 2]) {
        let [own, nested] = std::mem::replace(&mut self.back, back);
        let route = self.outlook.current.clone();
        if back[1] > nested {
            self.nested(now, device, route);
        } else if back[0] > own && self.outlook.loops.is_empty() {
            self.own_came_back(now, device, route);
        } else if self.came_back.as_ref().is_some_and(|(_, at)| now >= *at + FORGOTTEN) {
            self.came_back = None;
        }
    }

    fn nested(&mut self, now: BootTime, device: &str, route: Option<Found>) {
        let by = route.as_ref().map(|route| format!(", which is {route},")).unwrap_or_default();
        if let Some(more) = self.limit.allow(Class::Nested, now) {
            tracing::warn!(
                "tunnels of this host lead into each other, a loop: what {device} sends by its route to the \
                 peer{by} comes back out of {device} through another tunnel; it is dropped there{more}"
            );
        }
        self.came_back = Some((Trouble::Nested(route), now));
    }

    fn own_came_back(&mut self, now: BootTime, device: &str, route: Option<Found>) {
        let by = route.as_ref().map(|route| format!(" though the route to the peer is {route}"));
        if let Some(more) = self.limit.allow(Class::Back, now) {
            tracing::warn!(
                "the tunnel leads into itself: its own datagrams come out of {device}{}, and are dropped{more}",
                by.unwrap_or_default()
            );
        }
        self.came_back = Some((Trouble::Back(route), now));
    }

    /// Our own host refuses to send.
    pub(crate) fn refused(&mut self, now: BootTime, Refused { to, why }: Refused) {
        self.zones.learn(to);
        let to = self.zones.show(to);
        if let Some(more) = self.limit.allow(Class::Refused, now) {
            tracing::warn!("what is sent to {to} does not leave this host: {why}{more}");
        }
        self.refused = Some(Trouble::Refused { to, why });
    }

    /// It does no more.
    pub(crate) fn leaves(&mut self, now: BootTime) {
        self.refused = None;
        if let Some(more) = self.limit.allow(Class::Leaves, now) {
            tracing::info!("what is sent leaves this host again{more}");
        }
    }

    /// Tells how the peer's state has changed.
    pub(crate) fn changed(&mut self, now: BootTime, change: &Change) {
        match change {
            // What they bring about is told where it is done.
            Change::Alive | Change::Dead => {}
            // Of a peer that is not reached this would say nothing true.
            Change::GaveUp if self.refused.is_some() => {}
            Change::Initiating { to, attempt: 1 } => tracing::debug!("calling {to}"),
            Change::Initiating { to, attempt } => {
                tracing::debug!("calling {to}: no answer yet, try {attempt}");
                self.unanswered(*attempt);
            }
            Change::Established(role) => self.established(now, *role),
            Change::GaveUp => self.gave_up(),
            Change::Lost => self.lost(now),
            Change::Closed => self.closed(now),
            Change::Moved { to } => {
                self.zones.learn(*to);
                self.moved(now, &self.zones.show(*to));
            }
        }
    }

    /// Tells of a fault.
    pub(crate) fn diagnosed(&mut self, now: BootTime, found: &Diagnosis) {
        match found {
            // Of a peer that is not reached this would say nothing true.
            Diagnosis::NeverConfirms(_) if self.refused.is_some() => {}
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
                "nobody answers under our next key: the peer needs it as `next_public_key`; we go on \
                 under the old one"
            ),
            Diagnosis::UpgradeFailed => self.upgrade_failed(now),
            Diagnosis::DuplicateKey { addresses } => self.duplicate_key(now, *addresses),
            Diagnosis::Devices { same_mac, mtus } => self.compare(now, *same_mac, *mtus),
        }
    }

    /// Reports handshake messages that were made for another key: the only sign of a wrong public key at the other
    /// end. The hint goes when no more of them come.
    pub(crate) fn watch_bad_mac1(&mut self, now: BootTime, count: u64, connected: bool) {
        if count == self.bad_mac1 || connected {
            self.bad_mac1 = count;
            let is_old = now.saturating_since(self.bad_mac1_at) >= BAD_MAC1_FORGOTTEN;
            self.trouble.take_if(|trouble| is_old && matches!(trouble, Trouble::BadMac1(_)));
            return;
        }
        (self.bad_mac1, self.bad_mac1_at) = (count, now);
        let says_less = |trouble: &Trouble| {
            matches!(trouble, Trouble::BadMac1(_) | Trouble::NoAnswer | Trouble::Closed)
        };
        if self.trouble.as_ref().is_none_or(says_less) {
            self.trouble = Some(Trouble::BadMac1(count));
        }
        if let Some(more) = self.limit.allow(Class::BadMac1, now) {
            tracing::warn!(
                "handshake messages come whose mac1 was not made for our public key ({count} so \
                 far): the other side's public_key for us is wrong, or it is a scan{more}"
            );
        }
    }

    /// Reports packets of the peer that the source filter drops.
    pub(crate) fn watch_refused_sources(&mut self, now: BootTime, seen: Option<RefusedPackets>) {
        self.refused_sources.watch(now, seen);
    }

    /// The peer has come to life, or is gone. Of a peer that keeps doing both, `status` has the last word.
    pub(crate) fn alive(&mut self, now: BootTime, alive: bool, dead_after: Duration) {
        let class = if alive { Class::Alive } else { Class::Dead };
        let Some(more) = self.limit.allow(class, now) else { return };
        if alive {
            tracing::info!("the peer is alive{more}");
        } else {
            let dead_after = humantime::format_duration(dead_after);
            tracing::warn!(
                "the peer is dead: no sign of life for {dead_after}, or it has stopped{more}"
            );
        }
    }

    fn established(&mut self, now: BootTime, role: Role) {
        self.trouble = None;
        if let Some(more) = self.limit.allow(Class::Session, now) {
            let role = if role == Role::Initiator { "we called" } else { "the peer called" };
            tracing::info!("session with {} established: {role}{more}", self.peer);
        }
    }

    fn lost(&mut self, now: BootTime) {
        if let Some(more) = self.limit.allow(Class::Lost, now) {
            tracing::info!("the session is too old; the next packet begins another{more}");
        }
    }

    fn closed(&mut self, now: BootTime) {
        self.trouble = Some(Trouble::Closed);
        if let Some(more) = self.limit.allow(Class::Closed, now) {
            tracing::info!("the peer announced that it is shutting down{more}");
        }
    }

    fn upgrade_failed(&mut self, now: BootTime) {
        if let Some(more) = self.limit.allow(Class::Upgrade, now) {
            tracing::warn!(
                "the post-quantum upgrade fails: what the peer sends of it does not fit together{more}"
            );
        }
    }

    /// The peer has not answered the tries before this one.
    fn unanswered(&mut self, attempt: u32) {
        if attempt > TRIES_BEFORE_HINT && self.refused.is_none() && self.trouble.is_none() {
            tracing::info!("no answer from the peer yet: it is down, or UDP does not get through");
            self.trouble = Some(Trouble::NoAnswer);
        }
    }

    fn gave_up(&mut self) {
        self.trouble.get_or_insert(Trouble::NoAnswer);
        tracing::warn!(
            "no answer from the peer: it is down, UDP does not get through, or its public_key \
             for us is wrong; it is called again, at the latest with the next packet or keepalive"
        );
    }

    fn moved(&mut self, now: BootTime, to: &str) {
        if let Some(more) = self.limit.allow(Class::Moved, now) {
            tracing::info!("the peer is at {to}{more}");
        }
    }

    fn answer_does_not_open(&mut self, now: BootTime) {
        self.trouble = Some(Trouble::AnswerDoesNotOpen);
        if let Some(more) = self.limit.allow(Class::Answer, now) {
            tracing::warn!(
                "the peer's answer does not open: PSK differs, or one of protocol, mode, cipher and \
                 post_quantum{more}"
            );
        }
    }

    fn never_confirms(&mut self, now: BootTime, count: u32) {
        self.trouble = Some(Trouble::NeverConfirms(count));
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
        let words = duplicate::words(&addresses);
        if self.duplicate.note(now, addresses)
            && let Some(more) = self.limit.allow(Class::Duplicate, now)
        {
            tracing::warn!("{words}{more}");
        }
    }

    /// How the peer's device fits ours. Every session finds it once more; it is said when it is news, and seldom.
    fn compare(&mut self, now: BootTime, mac: Option<[u8; 6]>, mtu: Option<(u16, u16)>) {
        let misfits = [
            mac.map(|mac| Trouble::SameMac(Mac(mac))),
            mtu.map(|(ours, theirs)| Trouble::MtuDiffers(ours, theirs)),
        ];
        for misfit in misfits.iter().flatten() {
            if !self.misfits.contains(&Some(misfit.clone())) {
                self.say_misfit(now, misfit);
            }
        }
        self.misfits = misfits;
    }

    fn say_misfit(&mut self, now: BootTime, misfit: &Trouble) {
        let Some(more) = self.limit.allow(Class::Misfit, now) else { return };
        match misfit {
            Trouble::SameMac(mac) => tracing::error!(
                "both ends have the hardware address {mac}, and will not hear each other: give one another \
                 [interface] mac, or none{more}"
            ),
            Trouble::MtuDiffers(ours, theirs) => tracing::warn!(
                "the MTU of our device is {ours} and that of the peer's {theirs}: longer frames than the smaller \
                 one are lost; give both bridges, or [interface] mtu at both ends, the same{more}"
            ),
            _ => {}
        }
    }

    fn misfit(&self) -> Option<&Trouble> {
        self.misfits.iter().flatten().next()
    }

    fn unknown_peer(&mut self, now: BootTime, key: PublicKey, from: &str) {
        self.trouble = Some(Trouble::UnknownPeer(key));
        if let Some(more) = self.limit.allow(Class::Unknown, now) {
            tracing::warn!("unknown peer {key} at {from}; our peer is {}{more}", self.peer);
        }
    }

    fn stale(&mut self, now: BootTime, got: &str, last: &str) {
        self.trouble.get_or_insert(Trouble::StaleInitiation);
        if let Some(more) = self.limit.allow(Class::Stale, now) {
            tracing::warn!(
                "an initiation of the peer is stamped {got}, not after {last}: a replay, or its \
                 clock was set back and its state directory lost, or two machines use its key{more}"
            );
        }
    }

    fn stamp_ahead(&mut self, now: BootTime, got: &str) {
        if let Some(more) = self.limit.allow(Class::Ahead, now) {
            tracing::warn!(
                "the peer's initiation is stamped {got}, more than a day ahead of our clock: it is answered, \
                 but one of the two clocks is wrong{more}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn telling() -> Telling {
        Telling::new(PublicKey::from_bytes([9; 32]))
    }

    #[test]
    fn a_session_ends_the_trouble() {
        let mut telling = telling();
        telling.diagnosed(BootTime::default(), &Diagnosis::AnswerDoesNotOpen);
        assert_eq!(telling.trouble(), Some(&Trouble::AnswerDoesNotOpen));
        telling.changed(BootTime::default(), &Change::Established(Role::Initiator));
        assert_eq!(telling.trouble(), None);
    }

    #[test]
    fn silence_never_hides_a_better_reason() {
        let mut telling = telling();
        telling.diagnosed(BootTime::default(), &Diagnosis::NeverConfirms(3));
        telling.changed(BootTime::default(), &Change::GaveUp);
        assert_eq!(telling.trouble(), Some(&Trouble::NeverConfirms(3)));
    }

    #[test]
    fn silence_is_named_after_three_tries() {
        let mut telling = telling();
        let to = "192.0.2.1:1".parse().unwrap();
        for attempt in 1..=3 {
            telling.changed(BootTime::default(), &Change::Initiating { to, attempt });
            assert_eq!(telling.trouble(), None);
        }
        telling.changed(BootTime::default(), &Change::Initiating { to, attempt: 4 });
        assert_eq!(telling.trouble(), Some(&Trouble::NoAnswer));
    }

    #[test]
    fn what_our_own_host_refuses_is_not_blamed_on_the_peer() {
        let mut telling = telling();
        let to = "192.0.2.1:1".parse().unwrap();
        telling.refused(BootTime::default(), Refused { to, why: Refusal::Filter });
        telling.diagnosed(BootTime::default(), &Diagnosis::NeverConfirms(9));
        telling.changed(BootTime::default(), &Change::GaveUp);
        assert!(matches!(telling.trouble(), Some(Trouble::Refused { why: Refusal::Filter, .. })));
        telling.leaves(BootTime::default());
        assert_eq!(telling.trouble(), None);
    }

    #[test]
    fn an_inner_source_comes_before_silence_and_ends() {
        let mut telling = telling();
        let inner = InnerSource {
            to: "[2001:db8::2]:51820".parse().unwrap(),
            source: "2001:db8:99::1".parse().unwrap(),
            uplink: "eth0".into(),
        };
        let outlook = Outlook { inner_source: Some(inner.clone()), ..Outlook::default() };
        telling.changed(BootTime::default(), &Change::GaveUp);
        telling.outlook(BootTime::default(), "tun0", outlook);
        assert_eq!(telling.trouble(), Some(&Trouble::InnerSource(inner)));
        telling.outlook(BootTime::default(), "tun0", Outlook::default());
        assert_eq!(telling.trouble(), Some(&Trouble::NoAnswer));
    }

    #[test]
    fn a_name_that_cannot_be_looked_up_comes_before_silence() {
        let mut telling = telling();
        let failure = Failure { endpoint: "b.example.net:1".into(), error: "no".into() };
        telling.changed(BootTime::default(), &Change::GaveUp);
        let inside = vec!["192.0.2.53".parse().unwrap()];
        telling.lookups_failed(BootTime::default(), vec![failure.clone()], inside.clone());
        let text = unresolved(std::slice::from_ref(&failure), &inside);
        assert!(text.contains("name server 192.0.2.53 is reached through the tunnel"), "{text}");
        assert_eq!(telling.trouble(), Some(&Trouble::Unresolved(vec![failure], inside)));
        telling.diagnosed(BootTime::default(), &Diagnosis::AnswerDoesNotOpen);
        assert_eq!(telling.trouble(), Some(&Trouble::AnswerDoesNotOpen));
        telling.changed(BootTime::default(), &Change::Established(Role::Initiator));
        telling.lookups_failed(BootTime::default(), Vec::new(), Vec::new());
        assert_eq!(telling.trouble(), None);
    }

    #[test]
    fn sources_that_are_not_allowed_are_a_hint_while_they_come() {
        let mut telling = telling();
        let seen = |packets| RefusedPackets { packets, source: "192.168.30.7".parse().unwrap() };
        telling.watch_refused_sources(BootTime::default(), Some(seen(2)));
        assert_eq!(telling.trouble(), None, "a stray packet or two");
        telling.watch_refused_sources(BootTime::default(), Some(seen(12)));
        let trouble = Trouble::RefusedSource(RefusedSource(seen(12)));
        assert_eq!(telling.trouble(), Some(&trouble));
        assert!(trouble.outlasts_a_session(), "a tunnel that is up shows it");
        telling.diagnosed(BootTime::default(), &Diagnosis::AnswerDoesNotOpen);
        assert_eq!(telling.trouble(), Some(&Trouble::AnswerDoesNotOpen), "which comes first");
        telling.changed(BootTime::default(), &Change::Established(Role::Initiator));
        let later = BootTime::default() + refused::FORGOTTEN;
        telling.watch_refused_sources(later, Some(seen(12)));
        assert_eq!(telling.trouble(), None, "no more of them come");
        telling.watch_refused_sources(later, Some(seen(13)));
        assert!(telling.trouble().is_some());
        telling.expect(PublicKey::from_bytes([9; 32]));
        telling.watch_refused_sources(later, Some(seen(13)));
        assert_eq!(telling.trouble(), None, "another allowed_ips may let them in");
    }

    #[test]
    fn bad_mac1_matters_only_while_nothing_else_works() {
        let mut telling = telling();
        telling.watch_bad_mac1(BootTime::default(), 5, true);
        assert_eq!(telling.trouble(), None);
        telling.watch_bad_mac1(BootTime::default(), 5, false);
        assert_eq!(telling.trouble(), None);
        telling.watch_bad_mac1(BootTime::default(), 6, false);
        assert_eq!(telling.trouble(), Some(&Trouble::BadMac1(6)));
        telling.watch_bad_mac1(BootTime::default() + BAD_MAC1_FORGOTTEN, 6, false);
        assert_eq!(telling.trouble(), None, "no more of them come");
    }
}
