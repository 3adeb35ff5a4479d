//! Names of the peer that cannot be looked up.

use std::net::IpAddr;

/// An endpoint that cannot be resolved, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The endpoint as written in the configuration.
    pub endpoint: String,
    /// The resolver's reason.
    pub error: String,
}

/// The endpoints that cannot be resolved at the moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unresolved {
    /// The failures in the order of the configuration. Empty if all endpoints can be resolved.
    pub failures: Vec<Failure>,
    /// The name servers of this host that are reached through the tunnel.
    pub inside: Vec<IpAddr>,
}

/// The result of the last lookups.
#[derive(Debug, Default)]
pub(super) struct Names(Option<Unresolved>);

impl Names {
    /// Records the result of a lookup. Returns whether to report that a name server is reached
    /// through the tunnel.
    pub(super) fn failed(&mut self, now: Unresolved) -> bool {
        let before = self.0.take().map(|before| before.inside).unwrap_or_default();
        let is_news = !now.inside.is_empty() && now.inside != before;
        self.0 = Some(now).filter(|now| !now.failures.is_empty());
        is_news
    }

    pub(super) const fn unresolved(&self) -> Option<&Unresolved> {
        self.0.as_ref()
    }
}
