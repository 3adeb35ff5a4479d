//! The network: what it does to a datagram, and what an eavesdropper keeps of it.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use vpnd_protocol::message::{self, MIN_DATA_LEN, Message};

use crate::end::Side;

#[derive(Clone, Debug)]
pub(crate) struct Datagram {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Initiation,
    Response,
    CookieReply,
    Keepalive,
    Data,
}

impl Datagram {
    pub(crate) fn kind(&self) -> Kind {
        match message::parse(&self.bytes).expect("ends send well-formed datagrams") {
            Message::Initiation(_) => Kind::Initiation,
            Message::Response(_) => Kind::Response,
            Message::CookieReply(_) => Kind::CookieReply,
            Message::Data { .. } if self.bytes.len() == MIN_DATA_LEN => Kind::Keepalive,
            Message::Data { .. } => Kind::Data,
        }
    }
}

/// A datagram as it left.
#[derive(Clone, Debug)]
pub(crate) struct Captured {
    pub(crate) at: Duration,
    pub(crate) by: Side,
    pub(crate) datagram: Datagram,
}

/// How bad it is; delays drawn from a range reorder.
#[derive(Clone, Debug)]
pub(crate) struct Weather {
    pub(crate) loss: f64,
    pub(crate) duplication: f64,
    pub(crate) delay: RangeInclusive<Duration>,
}

impl Weather {
    /// Nothing is lost, and everything takes so long.
    pub(crate) fn fair(delay: Duration) -> Self {
        Self { loss: 0.0, duplication: 0.0, delay: delay..=delay }
    }
}

/// Decides what is lost.
pub(crate) type Filter = Box<dyn FnMut(&Captured) -> bool>;
/// Decides what somebody on the way sends once more, and from which other address.
pub(crate) type Spoof = Box<dyn FnMut(&Captured) -> Option<SocketAddr>>;
/// Decides when each copy of a datagram arrives; `None` leaves that to the weather.
pub(crate) type Fate = Box<dyn FnMut(&Captured) -> Option<Vec<Duration>>>;

pub(crate) struct Network {
    pub(crate) weather: Weather,
    /// Loses what it says yes to.
    pub(crate) loses: Option<Filter>,
    pub(crate) spoofs: Option<Spoof>,
    /// How long such a copy takes: by default no time, so that it arrives first.
    pub(crate) spoofed_after: Duration,
    /// What arrives at the first address, and is no longer than that, somebody brings to the second.
    pub(crate) carries: Option<(SocketAddr, usize, SocketAddr)>,
    /// The largest UDP payload that passes, and whether routers report (by ICMP) that one was larger.
    pub(crate) most: Option<usize>,
    pub(crate) reports: bool,
    /// What befalls single datagrams.
    pub(crate) fate: Option<Fate>,
    /// Everything that was ever sent.
    pub(crate) wire: Vec<Captured>,
    rng: StdRng,
}

impl Network {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            weather: Weather::fair(Duration::from_millis(10)),
            loses: None,
            spoofs: None,
            spoofed_after: Duration::ZERO,
            carries: None,
            most: None,
            reports: false,
            fate: None,
            wire: Vec::new(),
            rng: StdRng::seed_from_u64(!seed),
        }
    }

    /// What passes, if this is larger.
    pub(crate) fn is_too_large(&self, sent: &Captured) -> Option<usize> {
        self.most.filter(|most| sent.datagram.bytes.len() > *most)
    }

    /// From where a copy of what is sent arrives.
    pub(crate) fn spoof(&mut self, sent: &Captured) -> Option<SocketAddr> {
        self.spoofs.as_mut().and_then(|spoofs| spoofs(sent))
    }

    /// How long until each copy of what is sent arrives.
    pub(crate) fn carry(&mut self, sent: Captured) -> Vec<Duration> {
        let lost = self.loses.as_mut().is_some_and(|loses| loses(&sent));
        let lost = lost || self.is_too_large(&sent).is_some();
        let fate = self.fate.as_mut().and_then(|fate| fate(&sent));
        self.wire.push(sent);
        if let Some(arrivals) = fate {
            return arrivals;
        }
        let copies = 1 + usize::from(self.rng.random_bool(self.weather.duplication));
        let mut arrivals = Vec::new();
        for _ in 0..copies {
            let delay = self.rng.random_range(self.weather.delay.clone());
            if !self.rng.random_bool(self.weather.loss) && !lost {
                arrivals.push(delay);
            }
        }
        arrivals
    }
}
