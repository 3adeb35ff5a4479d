//! The control plane itself: takes events, and returns effects in the required order.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use vpnd_crypto::{PresharedKey, PublicKey};
use vpnd_protocol::drop_reason::DropReason;
use vpnd_protocol::handshake::Identity;
use vpnd_protocol::inheritance::Inheritance;
use vpnd_protocol::key_log::Lines;
use vpnd_protocol::peer::{Change, Command, Event, NotAsked, Peer, PeerStatus, Transmit, Tuning};
use vpnd_protocol::receive_order::Framed;
use vpnd_protocol::table::Admitted;
use vpnd_protocol::terms::Terms;
use vpnd_protocol::time::{BootTime, Now};
use vpnd_protocol::timestamp::Timestamp;
use vpnd_tunnel::view::Policy;

use crate::carrier::Carrier;
use crate::diagnosis::Diagnoses;
use crate::effect::{Effect, Notice};
use crate::load::Handshakes;
use crate::lookups::Lookups;
use crate::outlook::Outlook;
use crate::path::Size;
use crate::policy::Policies;
use crate::reach::Reach;
use crate::state::States;

/// The number of addresses of the peer that are used. Each costs a lookup of its route, and a datagram for each
/// try.
pub(crate) const MAX_ADDRESSES: usize = 32;

/// The settings of the control plane, except those of [`Peer`].
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The largest packet to send outside, if the configuration limits it.
    pub mtu_max: Option<u16>,
    /// The device's largest MTU, if its MTU follows the path.
    pub mtu_follows: Option<u16>,
    /// Whether the device's carrier follows the peer.
    pub carrier_follows: bool,
    /// The endpoints in order of preference; `None` for a name.
    pub endpoints: Vec<Option<SocketAddr>>,
    /// The peer is alive: an earlier process of this tunnel has left it so, with its routes and its carrier.
    pub alive: bool,
    /// How often names of the peer are looked up while the tunnel works; `None` if there are no names.
    pub resolve_every: Option<Duration>,
}

/// Why keys were not rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotateError {
    /// There is no next key to move to.
    NoNextKey,
    /// No session was established under a next key yet.
    NotMoved,
}

/// The control plane of one tunnel. After each call of another method the caller calls [`Plane::poll`] until it
/// returns nothing. Then it sleeps, until [`Plane::deadline`] at the latest, and calls [`Plane::wake`].
pub struct Plane {
    pub(crate) peer: Peer,
    pub(crate) settings: Settings,
    pub(crate) outlook: Outlook,
    pub(crate) reach: Reach,
    pub(crate) size: Size,
    pub(crate) policies: Policies,
    pub(crate) states: States,
    pub(crate) diagnoses: Diagnoses,
    pub(crate) lookups: Lookups,
    /// The datagram whose route changes were last subscribed to, if any were.
    pub(crate) followed: Option<Option<Transmit>>,
    handshakes: Handshakes,
    carrier: Carrier,
    /// The peer's addresses from name resolution and the configuration.
    addresses: Vec<SocketAddr>,
    replaced: Replaced,
    effects: VecDeque<Effect>,
}

/// Whether the configured endpoints were replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Replaced {
    No,
    /// Their addresses are not known yet.
    Awaited,
    /// The routes to their addresses are being looked up.
    Resolved,
}

impl Plane {
    /// The control plane of `peer`, whose data path has the policy `policy`.
    pub fn new(peer: Peer, policy: Policy, settings: Settings) -> Self {
        Self {
            carrier: Carrier::new(settings.carrier_follows, settings.alive),
            lookups: Lookups::new(settings.resolve_every),
            states: States::new(settings.alive),
            peer,
            settings,
            outlook: Outlook::default(),
            reach: Reach::default(),
            size: Size::default(),
            policies: Policies::new(policy),
            diagnoses: Diagnoses::default(),
            followed: None,
            handshakes: Handshakes::default(),
            addresses: Vec::new(),
            replaced: Replaced::No,
            effects: VecDeque::new(),
        }
    }

    /// Takes a handshake message, after which `waiting` more are queued.
    ///
    /// # Errors
    /// The reason for dropping it, for the counters.
    pub fn handshake(
        &mut self,
        now: Now,
        waiting: usize,
        admitted: &Admitted,
    ) -> Result<(), DropReason> {
        let load = self.handshakes.load(now.boot, waiting);
        self.peer.handle_handshake(now, load, admitted)
    }

    /// Takes a control frame.
    ///
    /// # Errors
    /// The reason for dropping it, for the counters.
    pub fn frame(&mut self, now: Now, framed: &Framed) -> Result<(), DropReason> {
        self.peer.handle_frame(now, framed)
    }

    /// The data threads set a wake flag, or a deadline has passed.
    pub fn wake(&mut self, now: Now) {
        self.peer.handle_wake(now);
        self.measure_path_again(now.boot);
        self.check_reach(now.boot);
        self.set_carrier(now.boot);
        self.look_up_names(now.boot);
    }

    /// The timestamp of [`Effect::KeepFloor`] is stored, or could not be.
    pub fn floor_kept(&mut self, now: Now, stamp: Timestamp) {
        self.peer.floor_kept(now, stamp);
    }

    /// The peer's endpoints were resolved, in order of preference. A limited number of the addresses is used,
    /// after their routes were looked up.
    pub fn resolved(&mut self, mut addresses: Vec<SocketAddr>) {
        addresses.truncate(MAX_ADDRESSES);
        self.addresses = addresses;
        if self.replaced == Replaced::Awaited {
            self.replaced = Replaced::Resolved;
        }
        self.push(Effect::AskRoutes { at_once: true });
    }

    /// The peer's current address, if it is known, and all resolved ones.
    pub fn addresses(&self) -> (Option<SocketAddr>, &[SocketAddr]) {
        (self.peer.endpoint(), &self.addresses)
    }

    /// The source address of datagrams to the peer, if it is known.
    pub fn source(&self) -> Option<IpAddr> {
        self.peer.source()
    }

    /// The answer to [`Effect::AskRoutes`]. An address whose route leads into the tunnel itself is avoided.
    pub fn routes_seen(&mut self, now: Now, outlook: Outlook) {
        let avoided: Vec<_> = outlook.loops.iter().map(|one| one.to).collect();
        let before = std::mem::replace(&mut self.outlook, outlook);
        self.compare_routes(&before);
        self.lookups.begin(now.boot);
        let mut usable = self.addresses.clone();
        usable.retain(|address| !avoided.contains(address));
        // If all routes lead into the tunnel, still try all addresses, so that the tunnel recovers when a route
        // changes.
        let usable = if usable.is_empty() { self.addresses.clone() } else { usable };
        if self.replaced == Replaced::Resolved {
            self.replaced = Replaced::No;
            self.peer.replace_endpoints(now, usable);
        } else {
            self.peer.handle_endpoints(now, usable);
        }
        self.peer.avoid(now, avoided);
    }

    /// Changes to other terms and keys, with an immediate handshake.
    pub fn adopt(
        &mut self,
        now: Now,
        terms: Vec<Terms>,
        identities: Vec<Identity>,
        remotes: Vec<PublicKey>,
    ) {
        self.peer.adopt(now, terms, identities, remotes);
        self.diagnoses.reloaded();
    }

    /// Uses other settings from now on.
    pub fn retune(&mut self, now: Now, tuning: &Tuning, settings: Settings) {
        if settings.resolve_every != self.settings.resolve_every {
            self.lookups.retune(now.boot, settings.resolve_every);
        }
        self.carrier.set_follows(settings.carrier_follows);
        let former = std::mem::replace(&mut self.settings, settings);
        self.peer.retune(now, tuning);
        self.follow_path_mtu(self.settings.mtu_follows);
        if former.mtu_max != self.settings.mtu_max {
            self.measure_path();
        }
        self.set_carrier(now.boot);
    }

    /// The configuration has other endpoints: the next addresses that are resolved are theirs, and the tunnel moves
    /// there.
    pub const fn endpoints_replaced(&mut self) {
        self.replaced = Replaced::Awaited;
    }

    /// Changes to another preshared key, with an immediate handshake.
    pub fn set_preshared(&mut self, now: Now, preshared: &PresharedKey) {
        self.peer.set_preshared(now, preshared);
        self.diagnoses.reloaded();
    }

    /// Changes the interval of keepalives, and whether a silent peer is probed.
    pub fn set_keepalive(&mut self, now: Now, keepalive: Option<Duration>, watch: bool) {
        self.peer.set_keepalive(now, keepalive, watch);
    }

    /// Somebody has said where the peer is: this is its only address now, until it is heard from another.
    pub fn go_to(&mut self, now: Now, to: SocketAddr) {
        self.peer.go_to(now, to);
        self.resolved(vec![to]);
    }

    /// Moves to the next keys, or if `finish` is set, drops the previous ones.
    ///
    /// # Errors
    /// If there is no next key, or no session was established under it yet.
    pub fn rotate(&mut self, now: Now, finish: bool) -> Result<(), RotateError> {
        let (done, why_not) = if finish {
            (self.peer.finish_rotation(), RotateError::NotMoved)
        } else {
            (self.peer.rotate(now), RotateError::NoNextKey)
        };
        if done { Ok(()) } else { Err(why_not) }
    }

    /// Sends a PING to the peer; [`Effect::Echo`] reports its answer, if one comes. Returns the number of the PING.
    ///
    /// # Errors
    /// If there is no session that carries a PING.
    pub fn ping(&mut self, now: Now) -> Result<u32, NotAsked> {
        self.peer.ping(now)
    }

    /// Ends all sessions without a word to the peer, and returns what the next process of this tunnel continues with.
    pub fn hand_on(&mut self, now: Now) -> Inheritance {
        self.peer.hand_on(now)
    }

    /// What [`hand_on`](Self::hand_on) would return, without the sessions, which stay here.
    pub fn outlook(&self) -> Inheritance {
        self.peer.outlook()
    }

    /// Logs the keys of handshakes from now on, and starts one at once.
    pub fn start_key_log(&mut self, now: Now) {
        self.peer.start_key_log(now);
    }

    /// Logs no more keys.
    pub fn stop_key_log(&mut self) {
        self.peer.stop_key_log();
    }

    /// The next lines of the key log, which belong before the datagram that was polled last.
    pub fn poll_key_log(&mut self) -> Option<Lines> {
        self.peer.poll_key_log()
    }

    /// Ends the session, and informs the peer.
    pub fn close(&mut self, now: Now) {
        self.peer.close(now);
    }

    /// The next effect: first tables to publish, then the DF bit, then datagrams, then reports. The bytes of a datagram replace
    /// the contents of `datagram`.
    pub fn poll(&mut self, now: Now, datagram: &mut Vec<u8>) -> Option<Effect> {
        loop {
            if let Some(table) = self.peer.poll_table() {
                return Some(Effect::Publish(Box::new(table)));
            }
            // Probes say nothing if routers may fragment them, so this comes before the first one.
            if let Some(effect) = self.set_fragmentation() {
                return Some(effect);
            }
            if let Some(transmit) = self.peer.poll_transmit(datagram) {
                return Some(Effect::Transmit(transmit));
            }
            if let Some(effect) = self.effects.pop_front() {
                return Some(effect);
            }
            match self.peer.poll_event() {
                Some(event) => self.attend(now, event),
                None => return self.follow_up(now),
            }
        }
    }

    /// The effects that follow from the peer's new state.
    fn follow_up(&mut self, now: Now) -> Option<Effect> {
        self.follow_route().or_else(|| self.last_effect(now))
    }

    /// When [`Plane::wake`] must be called at the latest.
    pub fn deadline(&self) -> Option<BootTime> {
        let peer = self.peer.poll_timeout().map(|(at, _)| at);
        let own = [self.reach.deadline(), self.carrier.deadline(), self.lookups.deadline()];
        own.into_iter().chain([peer, self.states.deadline()]).flatten().min()
    }

    /// The peer's state.
    pub fn status(&mut self, now: Now) -> PeerStatus {
        self.peer.status(now)
    }

    /// Reports the state, after all other effects.
    fn last_effect(&mut self, now: Now) -> Option<Effect> {
        self.tell_state(now);
        self.effects.pop_front()
    }

    fn attend(&mut self, now: Now, event: Event) {
        match event {
            Event::Command(Command::KeepFloor(stamp)) => self.push(Effect::KeepFloor(stamp)),
            Event::Command(Command::ChangePort) => self.push(Effect::ChangePort),
            Event::Change(change) => self.follow(now, change),
            Event::Echo(echo) => self.push(Effect::Echo(echo)),
            Event::Diagnosis(found) => {
                let is_refused = self.reach.refusal().is_some();
                let notice = self.diagnoses.found(now.boot, found, is_refused);
                notice.into_iter().for_each(|notice| self.notify(notice));
            }
        }
    }

    /// The peer's state has changed.
    fn follow(&mut self, now: Now, change: Change) {
        self.states.changed(&change);
        match change {
            Change::Alive => return self.alive(now, true),
            Change::Dead => return self.alive(now, false),
            Change::Initiating { attempt, .. } if attempt > 1 => {
                self.lookups.follow(now.boot, false);
            }
            Change::Established(_) => {
                self.lookups.follow(now.boot, true);
                self.moved();
            }
            Change::Moved { .. } => self.moved(),
            // The address that does not answer may be outdated.
            Change::Switched { returns: false, .. } => self.lookups.soon(now.boot),
            Change::Switched { returns: true, .. } => {}
            Change::PathCarries { payload } => self.follow_path(payload),
            Change::Segmentation { .. } => {}
            // The peer is not to blame if this host refuses to send.
            Change::GaveUp if self.reach.refusal().is_some() => return,
            Change::Initiating { .. } | Change::GaveUp | Change::Lost | Change::Closed => {}
        }
        self.look_up_names(now.boot);
        let is_silent = self.diagnoses.changed(&change, self.reach.refusal().is_some());
        self.notify(Notice::Change(change));
        if is_silent {
            self.notify(Notice::NoAnswer);
        }
    }

    /// The peer's address has changed, or a session was established.
    fn moved(&mut self) {
        self.push(Effect::AskRoutes { at_once: false });
        if self.reach.reached(self.peer.endpoint()) {
            self.notify(Notice::Leaves);
        }
        self.measure_path();
    }

    /// The peer became alive, or dead.
    fn alive(&mut self, now: Now, alive: bool) {
        self.lookups.follow(now.boot, alive);
        self.look_up_names(now.boot);
        self.push(Effect::Routes { alive });
        self.tell_state(now);
        self.notify(Notice::Alive(alive));
        self.carrier.follow(alive);
        self.set_carrier(now.boot);
        self.push(Effect::Hooks { alive, endpoint: self.peer.endpoint() });
    }

    fn set_carrier(&mut self, now: BootTime) {
        if let Some(on) = self.carrier.due(now) {
            self.push(Effect::Carrier { on });
        }
    }

    pub(crate) fn notify(&mut self, notice: Notice) {
        self.push(Effect::Notify(notice));
    }

    pub(crate) fn push(&mut self, effect: Effect) {
        self.effects.push_back(effect);
    }
}
