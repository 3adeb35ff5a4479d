//! Puts what happens into words: log lines, limited where the network can cause them, and the
//! one thing that `status` should say when the tunnel does not come up.

use std::time::Duration;

use vpnd_crypto::PublicKey;
use vpnd_protocol::peer::Event;
use vpnd_protocol::session::Role;
use vpnd_protocol::time::BootTime;

use crate::config::Mac;
use crate::logging::RateLimit;

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
    /// Both ends have this hardware address.
    SameMac(Mac),
    /// Frames of one end are too long for the other: ours, theirs.
    MtuDiffers(u16, u16),
}

impl Trouble {
    /// Whether it keeps a tunnel that is up from carrying all that it should.
    pub(crate) const fn outlasts_a_session(&self) -> bool {
        matches!(self, Self::SameMac(_) | Self::MtuDiffers(..))
    }
}

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
}

/// What has been told, and what is the trouble.
pub(crate) struct Telling {
    peer: PublicKey,
    limit: RateLimit<Class>,
    trouble: Option<Trouble>,
    bad_mac1: u64,
    /// What of the peer's device does not fit ours, as far as it was said.
    misfit: Option<Trouble>,
}

impl Telling {
    /// Nothing told yet of the tunnel to `peer`.
    pub(crate) fn new(peer: PublicKey) -> Self {
        Self { peer, limit: RateLimit::default(), trouble: None, bad_mac1: 0, misfit: None }
    }

    /// The peer has another public key now.
    pub(crate) fn expect(&mut self, peer: PublicKey) {
        self.peer = peer;
    }

    /// The latest trouble, which a session that stands ends, or else what does not fit.
    pub(crate) fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref().or(self.misfit.as_ref())
    }

    /// Tells of an event.
    pub(crate) fn tell(&mut self, now: BootTime, event: &Event) {
        match event {
            // What they bring about is told where it is done.
            Event::KeepFloor(_) | Event::Alive | Event::Dead => {}
            Event::Initiating { to, attempt: 1 } => tracing::debug!("calling {to}"),
            Event::Initiating { to, attempt } => {
                tracing::debug!("calling {to}: no answer yet, try {attempt}");
            }
            Event::Established(role) => self.established(now, *role),
            Event::GaveUp => self.gave_up(),
            Event::Lost => self.lost(now),
            Event::Closed => self.closed(now),
            Event::UpgradeFailed => self.upgrade_failed(now),
            Event::RotationUnanswered => tracing::warn!(
                "nobody answers under our next key: the peer needs it as `next_public_key`; we go on \
                 under the old one"
            ),
            Event::Moved { to } => self.moved(now, &to.to_string()),
            Event::AnswerDoesNotOpen => self.answer_does_not_open(now),
            Event::NeverConfirms(count) => self.never_confirms(now, *count),
            Event::SameMac(mac) => self.misfit(Trouble::SameMac(Mac(*mac))),
            Event::MtuDiffers { ours, theirs } => {
                self.misfit(Trouble::MtuDiffers(*ours, *theirs));
            }
            Event::UnknownPeer { key, from } => self.unknown_peer(now, *key, &from.to_string()),
            Event::StaleInitiation { got, last } => {
                self.stale(now, &got.to_string(), &last.to_string());
            }
            Event::StampAhead { got } => self.stamp_ahead(now, &got.to_string()),
        }
    }

    /// Tells when handshake messages for another key keep coming: the one sign there is of a
    /// wrong public key on the other side.
    pub(crate) fn watch_bad_mac1(&mut self, now: BootTime, count: u64, connected: bool) {
        if count == self.bad_mac1 || connected {
            self.bad_mac1 = count;
            return;
        }
        self.bad_mac1 = count;
        if matches!(self.trouble, None | Some(Trouble::BadMac1(_) | Trouble::NoAnswer)) {
            self.trouble = Some(Trouble::BadMac1(count));
        }
        if let Some(more) = self.limit.allow(Class::BadMac1, now) {
            tracing::warn!(
                "handshake messages come whose mac1 was not made for our public key ({count} so \
                 far): the other side's public_key for us is wrong, or it is a scan{more}"
            );
        }
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
            tracing::info!("the peer stops, as it says{more}");
        }
    }

    fn upgrade_failed(&mut self, now: BootTime) {
        if let Some(more) = self.limit.allow(Class::Upgrade, now) {
            tracing::warn!(
                "the post-quantum upgrade fails: what the peer sends of it does not fit together{more}"
            );
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

    /// Every session finds it once more; it is said once.
    fn misfit(&mut self, trouble: Trouble) {
        if self.misfit.as_ref() != Some(&trouble) {
            match &trouble {
                Trouble::SameMac(mac) => tracing::error!(
                    "both ends have the hardware address {mac}, and will not hear each other: give one another                      [interface] mac, or none"
                ),
                Trouble::MtuDiffers(ours, theirs) => tracing::warn!(
                    "the MTU of our device is {ours} and that of the peer's {theirs}: longer frames than the                      smaller one are lost; give both bridges, or [interface] mtu at both ends, the same"
                ),
                _ => {}
            }
        }
        self.misfit = Some(trouble);
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
                 clock was set back and its state directory lost{more}"
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
        telling.tell(BootTime::default(), &Event::AnswerDoesNotOpen);
        assert_eq!(telling.trouble(), Some(&Trouble::AnswerDoesNotOpen));
        telling.tell(BootTime::default(), &Event::Established(Role::Initiator));
        assert_eq!(telling.trouble(), None);
    }

    #[test]
    fn silence_never_hides_a_better_reason() {
        let mut telling = telling();
        telling.tell(BootTime::default(), &Event::NeverConfirms(3));
        telling.tell(BootTime::default(), &Event::GaveUp);
        assert_eq!(telling.trouble(), Some(&Trouble::NeverConfirms(3)));
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
    }
}
