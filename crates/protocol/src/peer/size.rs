//! The largest datagram that the path to the peer carries.
//!
//! The first assumption is the MTU of the first link, from the routing table. A router with a smaller MTU
//! should report it by ICMP, but not all do. A report can be forged, and the kernel stores it with the route.
//! Between two vpnd, probes search for the size ([`Search`]), and reports only make the search faster. A
//! `WireGuard` peer answers no probes. Over IPv4, routers fragment the datagrams to it. Over IPv6 only the
//! sender can fragment, so reports are followed until the kernel has forgotten them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::search::{Pace, Probed, Search, Sent};
use super::{Change, Peer, Transmit};
use crate::frame::{ControlFrame, ProbeToken};
use crate::limits::{ETHERNET_MTU, HEADERS_V4, HEADERS_V6, LEAST_DATAGRAM};
use crate::session::OVERHEAD;
use crate::table::Path;
use crate::time::{BootTime, Now};

/// What is known about the size on one path.
#[derive(Debug)]
pub(super) struct Size {
    to: Option<IpAddr>,
    /// The largest payload that the first link carries, or more: at least Ethernet's, as far as the configuration
    /// permits. The routing table may have a smaller size from a report about another connection, or from the last hour.
    link: u16,
    /// The smaller size that the routing table has for the path, from an ICMP report.
    hint: Option<u16>,
    /// The configuration permits less than the first link carries.
    is_configured: bool,
    /// Runs if the peer answers probes.
    search: Option<Search>,
    /// The number of the last probe of earlier searches.
    numbers: u32,
    /// The result that was reported last.
    reported: Option<u16>,
    /// When the size in use became what it is.
    since: BootTime,
    pub(super) raise_after: Duration,
    /// The size that is used before anything is known about the path.
    initial: u16,
}

impl Size {
    /// Nothing is known yet. On a path that carries less than its first link, a larger size is probed every
    /// `raise_after`.
    pub(super) const fn new(initial: u16, raise_after: Duration) -> Self {
        Self {
            to: None,
            link: 0,
            hint: None,
            is_configured: false,
            search: None,
            numbers: 0,
            reported: None,
            since: BootTime::from_nanos(0),
            raise_after,
            initial,
        }
    }

    /// According to the routing table, payloads of up to `routed` bytes are sent to this address in one packet. The
    /// configuration permits `permitted`.
    fn learn(&mut self, to: IpAddr, routed: u16, permitted: u16, now: BootTime) {
        let most = routed.min(permitted).max(LEAST_DATAGRAM);
        if self.to != Some(to) {
            let link = most.max(ethernet(to).min(permitted));
            self.end_search();
            *self = Self {
                to: Some(to),
                link,
                hint: (most < link).then_some(most),
                is_configured: permitted < routed,
                since: now,
                reported: self.reported,
                numbers: self.numbers,
                ..Self::new(self.initial, self.raise_after)
            };
            return;
        }
        self.is_configured = permitted < routed;
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
            let headers = self.to.map_or(HEADERS_V6, headers);
            let mut search = Search::new(self.link, headers, self.numbers, now);
            self.hint.into_iter().for_each(|size| search.hint(now, size));
            self.search = Some(search);
        }
        self.search.as_mut()
    }

    fn end_search(&mut self) {
        self.numbers = self.search.take().map_or(self.numbers, |search| search.numbers());
    }

    /// The largest UDP payload to send to this address.
    pub(super) fn towards(&self, to: IpAddr) -> u16 {
        let known = (self.to == Some(to)).then(|| self.most()).flatten();
        known.unwrap_or(self.initial)
    }

    /// How the size in use is known.
    fn known(&self) -> Known {
        match (&self.search, self.hint) {
            (Some(_), _) => Known::Probed,
            (None, _) if self.link == 0 => Known::Assumed,
            (None, _) if self.is_configured => Known::Configured,
            (None, Some(_)) => Known::Reported,
            (None, None) => Known::Route,
        }
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

/// How the size of datagrams on a path is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Not yet: the least size that every path carries.
    Assumed,
    /// The MTU of the first link or of the route.
    Route,
    /// A report by ICMP, or the route has a smaller MTU than Ethernet.
    Reported,
    /// The configuration's limit.
    Configured,
    /// Answered probes.
    Probed,
}

/// The size of datagrams on the path, for the status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathSize {
    /// The peer's address.
    pub to: SocketAddr,
    /// The largest UDP payload that is sent in one datagram.
    pub payload: u16,
    /// How that is known.
    pub known: Known,
    /// How long it has been this size.
    pub age: Duration,
    /// The largest UDP payload that is probed.
    pub most: u16,
    /// The smallest UDP payload that did not arrive.
    pub too_large: Option<u16>,
    /// Whether a larger size is being probed.
    pub looks_for_more: bool,
    /// When a larger size is probed next.
    pub next_search: Option<Duration>,
    /// The last probes and their age, the newest first.
    pub probes: Vec<(Duration, Probed)>,
}

/// The largest UDP payload to this address in an Ethernet frame.
const fn ethernet(to: IpAddr) -> u16 {
    ETHERNET_MTU - headers(to)
}

/// The bytes before the UDP payload in a packet to this address.
const fn headers(to: IpAddr) -> u16 {
    if to.is_ipv4() { HEADERS_V4 } else { HEADERS_V6 }
}

/// The token of the probe with this number. It needs no random bits: only the peer can send an authentic
/// answer, and a peer that answers without having received the probe harms only its own tunnel.
fn token(number: u32) -> ProbeToken {
    let mut token = ProbeToken::default();
    token[..4].copy_from_slice(&number.to_le_bytes());
    token
}

impl Peer {
    /// According to the routing table, UDP payloads of up to `routed` bytes are sent to the peer unfragmented. The
    /// configuration permits `permitted`.
    pub fn path_carries(&mut self, now: Now, routed: u16, permitted: u16) {
        let Some(path) = self.paths.current else { return };
        self.paths.size.learn(path.to.ip(), routed, permitted, now.boot);
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

    /// The size of datagrams on the path, if there is a path.
    pub(super) fn path_size(&self, now: BootTime) -> Option<PathSize> {
        let path = self.paths.current?;
        let (size, search) = (&self.paths.size, self.paths.size.search.as_ref());
        let probes = search.into_iter().flat_map(Search::last_probes);
        let raise_at = search.and_then(Search::raise_at);
        Some(PathSize {
            to: path.to,
            payload: path.max_datagram,
            known: size.known(),
            age: now.saturating_since(size.since),
            most: size.link.max(path.max_datagram),
            too_large: search.and_then(Search::too_large),
            looks_for_more: search.is_some_and(Search::looks_for_more),
            next_search: raise_at.map(|at| at.saturating_since(now)),
            probes: probes.map(|probed| (now.saturating_since(probed.at), probed)).collect(),
        })
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
        let Some(current) = self.keyring.current() else { return self.follow_size(now) };
        if !current.sealing.carries_frames() {
            self.paths.size.end_search();
            return self.follow_size(now);
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
        self.follow_size(now);
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
    fn follow_size(&mut self, now: Now) {
        let before = self.paths.current.map(|path| path.max_datagram);
        self.paths.follow_size();
        if before != self.paths.current.map(|path| path.max_datagram) {
            self.paths.size.since = now.boot;
        }
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
    use crate::limits::MAX_DATAGRAM;

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
        size.learn(to(), LINK, MAX_DATAGRAM, at(0));
        assert_eq!(size.most(), Some(LINK));
        size
    }

    #[test]
    fn without_probes_a_report_is_followed_until_the_kernel_forgets_it() {
        let mut size = known();
        for (reported, followed) in [(HINT, HINT), (500, LEAST_DATAGRAM), (LINK, LINK)] {
            size.learn(to(), reported, MAX_DATAGRAM, at(1000));
            assert_eq!((size.most(), size.found()), (Some(followed), Some(followed)));
        }
    }

    #[test]
    fn with_probes_the_search_decides() {
        let mut size = known();
        assert_eq!(size.search(at(0)).unwrap().size(), LEAST_DATAGRAM);
        size.learn(to(), HINT, MAX_DATAGRAM, at(1000));
        assert_eq!((size.most(), size.found()), (Some(LEAST_DATAGRAM), None));
        size.learn("2001:db8::9".parse().unwrap(), 1300, MAX_DATAGRAM, at(2000));
        assert!(size.search.is_none(), "another path is searched anew");
    }

    /// The kernel keeps a report for ten minutes, and has it already when the path is new.
    #[test]
    fn a_report_from_before_is_not_taken_for_the_first_link() {
        let mut size = Size::new(LEAST_DATAGRAM, Duration::from_secs(600));
        size.learn(to(), LEAST_DATAGRAM, MAX_DATAGRAM, at(0));
        assert_eq!(size.most(), Some(LEAST_DATAGRAM));
        let pace = Pace::on(Duration::ZERO, 0.0, Duration::from_secs(600));
        let probes = size.search(at(0)).unwrap().probes(at(0), Sent::default(), pace);
        assert!(probes.iter().any(|probe| probe.size == LINK), "{probes:?}");
    }

    #[test]
    fn no_probe_is_larger_than_the_configuration_permits() {
        let mut size = Size::new(LEAST_DATAGRAM, Duration::from_secs(600));
        size.learn(to(), LINK, 1300, at(0));
        let pace = Pace::on(Duration::ZERO, 0.0, Duration::from_secs(600));
        let probes = size.search(at(0)).unwrap().probes(at(0), Sent::default(), pace);
        assert!(probes.iter().all(|probe| probe.size <= 1300), "{probes:?}");
    }
}
