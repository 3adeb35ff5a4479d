//! The largest datagram on the path to the peer, if ICMPv6 reports that it is less than the first link's MTU
//! allows.
//!
//! Anybody can forge such a message, but over IPv6 only the sender fragments, so it can neither be trusted
//! nor ignored. It is followed at once and verified at the same time. If the peer answers a PING of the full
//! size, the message was wrong, and later messages are followed only after verification. A peer that answers
//! no PING allows no verification.

use std::net::IpAddr;
use std::time::Duration;

use super::Peer;
use crate::frame::{ControlFrame, Ping};
use crate::limits::LEAST_DATAGRAM;
use crate::session::OVERHEAD;
use crate::time::{BootTime, Now};

/// PINGs of the full size before silence counts as an answer.
const TRIES: u32 = 3;
/// The time between them.
const TRY_EVERY: Duration = Duration::from_millis(250);
/// How often a path that carries less is tested for a larger size again.
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// Distinguishes the numbers of these PINGs from others.
const NUMBERED_FROM: u32 = 1 << 31;

/// What is known of one path.
#[derive(Debug, Default)]
pub(super) struct Size {
    to: Option<IpAddr>,
    /// The largest payload that the first link carries.
    link: u16,
    hint: Option<Hint>,
    /// A hint was wrong: the next one is followed only after verification.
    suspicious: bool,
    /// The number of hints so far: identifies their PINGs.
    hints: u32,
}

/// A size that the routing table learnt from ICMPv6.
#[derive(Clone, Copy, Debug)]
struct Hint {
    most: u16,
    followed: bool,
    refuted: bool,
    tries: u32,
    /// When to send the next PING.
    next: BootTime,
}

impl Size {
    /// The routing table has a new size for datagrams to this address. Over another uplink even the known one
    /// may be too large, and then no larger PING is sent.
    fn learn(&mut self, to: IpAddr, most: u16, now: BootTime) {
        if self.to != Some(to) || to.is_ipv4() || most >= self.link {
            *self = Self { to: Some(to), link: most, hints: self.hints, ..Self::default() };
            return;
        }
        if self.hint.is_some_and(|hint| hint.most == most) {
            return;
        }
        let followed = !self.suspicious;
        self.hints = self.hints.wrapping_add(1) % NUMBERED_FROM;
        self.hint = Some(Hint { most, followed, refuted: false, tries: 0, next: now });
    }

    /// The largest UDP payload to send.
    pub(super) fn most(&self) -> u16 {
        self.followed().unwrap_or(self.link)
    }

    fn followed(&self) -> Option<u16> {
        let hint = self.hint.filter(|hint| hint.followed)?;
        Some(hint.most.max(LEAST_DATAGRAM).min(self.link))
    }

    /// The number of the PING to send now, of the full size.
    fn question(&mut self, now: BootTime) -> Option<u32> {
        let hint = self.hint.as_mut().filter(|hint| !hint.refuted && now >= hint.next)?;
        if hint.tries >= TRIES {
            // No PING was answered: the hint is right.
            hint.followed = true;
        }
        hint.tries = hint.tries.saturating_add(1);
        hint.next = now + if hint.tries > TRIES { ASK_AGAIN } else { TRY_EVERY };
        Some(NUMBERED_FROM | self.hints)
    }

    /// A PING was answered; returns whether that refutes the hint.
    fn answer(&mut self, number: u32) -> bool {
        let Some(hint) = self.hint.as_mut().filter(|_| number == NUMBERED_FROM | self.hints) else {
            return false;
        };
        (hint.refuted, hint.followed) = (true, false);
        self.suspicious = true;
        true
    }
}

impl Peer {
    /// According to the routing table, UDP payloads of this size leave for the peer unfragmented.
    pub fn path_carries(&mut self, now: Now, most: u16) {
        let Some(path) = self.paths.current else {
            self.paths.max_datagram = most;
            return;
        };
        self.paths.size.learn(path.to.ip(), most, now.boot);
        self.probe_size(now);
        self.paths.follow_size();
    }

    /// The largest UDP payload to send unfragmented, if the peer does not reassemble fragments and the kernel
    /// has to fragment.
    pub fn fragments_of(&self) -> Option<u16> {
        self.paths.size.followed().filter(|_| !self.frames_flow())
    }

    /// Sends the peer a PING of the full size, if a hint claims that this does not arrive.
    pub(super) fn probe_size(&mut self, now: Now) {
        let Some(sent) = self.keyring.current().map(|current| current.sealing.used() + 1) else {
            return;
        };
        if !self.frames_flow() {
            return;
        }
        let Some(number) = self.paths.size.question(now.boot) else { return };
        let ping = Ping::new(number, now.boot.as_nanos(), sent);
        let len = usize::from(self.paths.size.link).saturating_sub(OVERHEAD);
        self.send_on_current(now, &ControlFrame::ping_of(&ping, len));
        self.paths.follow_size();
    }

    pub(super) fn take_size_answer(&mut self, number: u32) {
        if self.paths.size.answer(number) {
            self.paths.follow_size();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: u16 = 1452;
    const HINT: u16 = 1352;

    fn at(millis: u64) -> BootTime {
        BootTime::from_nanos(0) + Duration::from_millis(millis)
    }

    fn to() -> IpAddr {
        "2001:db8::1".parse().unwrap()
    }

    fn hinted() -> Size {
        let mut size = Size::default();
        size.learn(to(), LINK, at(0));
        assert_eq!((size.most(), size.question(at(0))), (LINK, None));
        size.learn(to(), HINT, at(1000));
        size
    }

    #[test]
    fn a_hint_is_followed_at_once_and_stays_if_nothing_larger_arrives() {
        let mut size = hinted();
        assert_eq!(size.most(), HINT);
        for millis in [1000, 1250, 1500] {
            assert!(size.question(at(millis)).is_some());
            assert_eq!(size.question(at(millis + 200)), None);
        }
        assert!(size.question(at(1750)).is_some());
        assert_eq!((size.most(), size.question(at(60_000))), (HINT, None));
        let number = size.question(at(61_750)).expect("it may carry more again");
        assert!(size.answer(number));
        assert_eq!(size.most(), LINK);
    }

    #[test]
    fn a_forged_hint_is_refuted_and_the_next_has_to_be_proved() {
        let mut size = hinted();
        let number = size.question(at(1000)).unwrap();
        assert!(!size.answer(number + 1) && size.answer(number));
        assert_eq!((size.most(), size.question(at(5000))), (LINK, None));
        size.learn(to(), HINT, at(5000));
        assert_eq!(
            (size.most(), size.question(at(5000))),
            (LINK, None),
            "the same says nothing new"
        );

        size.learn(to(), HINT - 2, at(6000));
        size.learn(to(), HINT - 1, at(6000));
        assert_eq!(size.most(), LINK);
        let other = size.question(at(6000)).unwrap();
        assert!(other != number && !size.answer(number), "an answer to the question before");
        for millis in [6250, 6500] {
            assert!(size.question(at(millis)).is_some());
            assert_eq!(size.most(), LINK);
        }
        assert!(size.question(at(6750)).is_some());
        assert_eq!(size.most(), HINT - 1, "nothing larger arrives");
    }

    #[test]
    fn nothing_goes_below_what_every_link_carries() {
        let mut size = hinted();
        size.learn(to(), 500, at(2000));
        assert_eq!(size.most(), LEAST_DATAGRAM);
        size.learn(to(), LINK, at(3000));
        assert_eq!(size.most(), LINK, "the kernel has forgotten it");
    }

    #[test]
    fn another_path_and_ipv4_are_as_the_routing_table_says() {
        let mut size = hinted();
        size.learn("2001:db8::9".parse().unwrap(), 1300, at(2000));
        assert_eq!((size.most(), size.question(at(2000))), (1300, None));
        let v4 = "192.0.2.1".parse().unwrap();
        for most in [1472, 1272] {
            size.learn(v4, most, at(3000));
            assert_eq!((size.most(), size.question(at(3000))), (most, None));
        }
    }
}
