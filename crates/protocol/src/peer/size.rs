//! The largest datagram that the path to the peer carries.
//!
//! The first assumption is the MTU of the first link, from the routing table. A router with a smaller MTU
//! should report it by ICMP, but not all do. A report can be forged, and the kernel stores it with the route.
//! Between two vpnd, probes search for the size ([`Search`]), and reports only make the search faster. A
//! `WireGuard` peer answers no probes. Over IPv4, routers fragment the datagrams to it. Over IPv6 only the
//! sender can fragment, so reports are followed until the kernel has forgotten them.

use std::net::IpAddr;
use std::time::Duration;

use super::search::{Pace, Search, Sent};
use super::{Change, Peer, Transmit};
use crate::frame::{ControlFrame, ProbeToken};
use crate::limits::LEAST_DATAGRAM;
use crate::session::OVERHEAD;
use crate::table::Path;
use crate::time::{BootTime, Now};

/// What is known about the size on one path.
#[derive(Debug)]
pub(super) struct Size {
    to: Option<IpAddr>,
    /// The largest payload that the first link carries.
    link: u16,
    /// The smaller size that the routing table has for the path, from an ICMP report.
    hint: Option<u16>,
    /// Runs if the peer answers probes.
    search: Option<Search>,
    /// The result that was reported last.
    reported: Option<u16>,
    raise_after: Duration,
    /// The size that is used before anything is known about the path.
    initial: u16,
}

impl Size {
    /// Nothing is known yet. On a path that carries less than its first link, a larger size is probed every
    /// `raise_after`.
    pub(super) const fn new(initial: u16, raise_after: Duration) -> Self {
        Self { to: None, link: 0, hint: None, search: None, reported: None, raise_after, initial }
    }

    /// According to the routing table, payloads of up to `most` bytes are sent to this address in one packet.
    fn learn(&mut self, to: IpAddr, most: u16, now: BootTime) {
        let most = most.max(LEAST_DATAGRAM);
        if self.to != Some(to) {
            let reported = self.reported;
            *self = Self {
                to: Some(to),
                link: most,
                reported,
                ..Self::new(self.initial, self.raise_after)
            };
            return;
        }
        let hint = (most < self.link).then_some(most);
        if self.hint == hint && hint.is_some() {
            return;
        }
        let is_forgotten = self.hint.is_some() && hint.is_none();
        (self.hint, self.link) = (hint, self.link.max(most));
        let Some(search) = &mut self.search else { return };
        search.set_link(now, self.link);
        match hint {
            Some(size) => search.hint(now, size),
            // The MTU of a link on the path may have become larger again.
            None if is_forgotten => search.look_for_more(now),
            None => {}
        }
    }

    /// The search on this path, once its first link is known.
    fn search(&mut self, now: BootTime) -> Option<&mut Search> {
        if self.search.is_none() && self.link > 0 {
            let mut search = Search::new(self.link, now);
            self.hint.into_iter().for_each(|size| search.hint(now, size));
            self.search = Some(search);
        }
        self.search.as_mut()
    }

    /// The largest UDP payload to send to this address.
    pub(super) fn towards(&self, to: IpAddr) -> u16 {
        let known = (self.to == Some(to)).then(|| self.most()).flatten();
        known.unwrap_or(self.initial)
    }

    fn most(&self) -> Option<u16> {
        let routed = (self.link > 0).then(|| self.hint.unwrap_or(self.link));
        self.search.as_ref().map(Search::size).or(routed)
    }

    /// The size that the path carries: the result of the last completed search, or the value of the routing
    /// table.
    pub(super) fn found(&self) -> Option<u16> {
        match &self.search {
            Some(search) => search.found(),
            None => self.most(),
        }
    }
}

/// The token of the probe with this number. It needs no random bits: only the peer can send an authentic
/// answer, and a peer that answers without having received the probe harms only its own tunnel.
fn token(number: u32) -> ProbeToken {
    let mut token = ProbeToken::default();
    token[..4].copy_from_slice(&number.to_le_bytes());
    token
}

impl Peer {
    /// According to the routing table, UDP payloads of up to this size are sent to the peer unfragmented.
    pub fn path_carries(&mut self, now: Now, most: u16) {
        let Some(path) = self.paths.current else { return };
        self.paths.size.learn(path.to.ip(), most, now.boot);
        self.probe_size(now);
    }

    /// The route to the peer has changed, so the path may carry less.
    pub fn path_changed(&mut self, now: Now) {
        if let Some(search) = &mut self.paths.size.search {
            search.doubt(now.boot);
        }
        self.probe_size(now);
    }

    /// The largest UDP payload to send unfragmented, if the kernel has to fragment larger ones because the peer
    /// does not reassemble our own fragments.
    pub fn fragments_of(&self) -> Option<u16> {
        let size = &self.paths.size;
        let is_v6 = size.to.is_some_and(|to| to.is_ipv6());
        size.hint.filter(|_| is_v6 && size.search.is_none())
    }

    /// Whether the path is probed: routers must then not fragment datagrams.
    pub const fn probes_path(&self) -> bool {
        self.paths.size.search.is_some()
    }

    /// The largest UDP payload that the path carries, if that is known.
    pub fn path_payload(&self) -> Option<u16> {
        self.paths.size.found()
    }

    /// Sends the probes that are due.
    pub(super) fn probe_size(&mut self, now: Now) {
        let Some(current) = self.keyring.current() else { return self.follow_size() };
        if !current.sealing.carries_frames() {
            self.paths.size.search = None;
            return self.follow_size();
        }
        let (sent, pace) = (self.data_sent(), self.probe_pace());
        let Some(search) = self.paths.size.search(now.boot) else { return };
        let probes = search.probes(now.boot, sent, pace);
        let Some(Path { to, from, .. }) = self.paths.current else { return };
        for probe in probes {
            let len = usize::from(probe.size).saturating_sub(OVERHEAD);
            let plaintext = ControlFrame::probe_of(&token(probe.number), len);
            self.send_aside(now, Transmit { to, from }, &plaintext);
        }
        self.follow_size();
    }

    /// When probes are due.
    pub(super) fn size_deadline(&self) -> Option<BootTime> {
        self.keyring.current().filter(|current| current.sealing.carries_frames())?;
        self.paths.size.search.as_ref()?.deadline(self.data_sent())
    }

    /// A PROBE was answered; it may be a probe of the path's size.
    pub(super) fn take_size_answer(&mut self, now: Now, answer: &ProbeToken) {
        let raise_after = self.paths.size.raise_after;
        if let Some(search) = &mut self.paths.size.search
            && search.answered(now.boot, |number| token(number) == *answer, raise_after)
        {
            self.probe_size(now);
        }
    }

    fn data_sent(&self) -> Sent {
        Sent { at: self.timers.seen().data_sent, bytes: self.activity.traffic().bytes_sent }
    }

    fn probe_pace(&self) -> Pace {
        let quality = self.paths.gauge.quality;
        let round_trip = quality.map(|quality| quality.round_trip).unwrap_or_default();
        let loss = quality.map_or(0.0, |quality| quality.loss_there_and_back());
        Pace::on(round_trip, loss, self.paths.size.raise_after)
    }

    /// Applies the known size to data, and reports a new result.
    fn follow_size(&mut self) {
        self.paths.follow_size();
        let found = self.paths.size.found();
        if found.is_some() && found != self.paths.size.reported {
            self.paths.size.reported = found;
            self.events.extend(found.map(|payload| Change::PathCarries { payload }.into()));
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

    fn known() -> Size {
        let mut size = Size::new(LEAST_DATAGRAM, Duration::from_secs(600));
        size.learn(to(), LINK, at(0));
        assert_eq!(size.most(), Some(LINK));
        size
    }

    #[test]
    fn without_probes_a_report_is_followed_until_the_kernel_forgets_it() {
        let mut size = known();
        for (reported, followed) in [(HINT, HINT), (500, LEAST_DATAGRAM), (LINK, LINK)] {
            size.learn(to(), reported, at(1000));
            assert_eq!((size.most(), size.found()), (Some(followed), Some(followed)));
        }
    }

    #[test]
    fn with_probes_the_search_decides() {
        let mut size = known();
        assert_eq!(size.search(at(0)).unwrap().size(), LEAST_DATAGRAM);
        size.learn(to(), HINT, at(1000));
        assert_eq!((size.most(), size.found()), (Some(LEAST_DATAGRAM), None));
        size.learn("2001:db8::9".parse().unwrap(), 1300, at(2000));
        assert!(size.search.is_none(), "another path is searched anew");
    }
}
