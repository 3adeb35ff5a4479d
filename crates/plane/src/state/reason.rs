//! Why a tunnel is degraded.

/// A reason why a tunnel carries less than it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// More than 2 % of the datagrams were lost in the last minute, in either direction.
    Loss,
    /// A packet of the device's pinned MTU does not fit into one datagram on the path.
    PathMtu,
    /// The kernel refuses GSO for sends to the peer, or batches are lost, so each datagram is sent on its own.
    Segmentation,
    /// The configuration contains a better address of the peer than the one in use.
    Endpoint,
    /// The peer is not reached at its preferred address, but at one of the other address family.
    Family,
    /// The path marks every datagram for congestion.
    Ecn,
}

impl Reason {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 6] =
        [Self::Loss, Self::PathMtu, Self::Segmentation, Self::Endpoint, Self::Family, Self::Ecn];

    /// The name in the status and in the log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::PathMtu => "path_mtu",
            Self::Segmentation => "segmentation",
            Self::Endpoint => "endpoint",
            Self::Family => "family",
            Self::Ecn => "ecn",
        }
    }
}

/// A set of reasons.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reasons(u8);

impl Reasons {
    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether this one is among them.
    pub const fn contains(self, reason: Reason) -> bool {
        self.0 & 1 << reason as u8 != 0
    }

    /// The reasons in the set, in the order of [`Reason::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Reason> {
        Reason::ALL.into_iter().filter(move |reason| self.contains(*reason))
    }
}

impl FromIterator<Reason> for Reasons {
    fn from_iter<I: IntoIterator<Item = Reason>>(reasons: I) -> Self {
        Self(reasons.into_iter().fold(0, |set, reason| set | 1 << reason as u8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_what_was_put_in() {
        assert!(Reasons::default().is_empty());
        let set: Reasons = [Reason::Ecn, Reason::Loss].into_iter().collect();
        assert_eq!(set.iter().collect::<Vec<_>>(), [Reason::Loss, Reason::Ecn]);
        assert!(!set.contains(Reason::PathMtu) && !set.is_empty());
        assert_eq!(Reason::ALL.into_iter().collect::<Reasons>().iter().count(), Reason::ALL.len());
    }
}
