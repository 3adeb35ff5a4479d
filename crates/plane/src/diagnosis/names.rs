//! Names of the peer that cannot be looked up.

use std::net::IpAddr;

/// An endpoint that cannot be looked up, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The endpoint as the configuration has it.
    pub endpoint: String,
    /// The resolver's reason.
    pub error: String,
}

/// The endpoints that cannot be looked up by now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unresolved {
    /// In the order of the configuration. None, if all can be looked up.
    pub failures: Vec<Failure>,
    /// The name servers of this host that are reached through the tunnel.
    pub inside: Vec<IpAddr>,
}

/// What lookups came to last.
#[derive(Debug, Default)]
pub(super) struct Names(Option<Unresolved>);

impl Names {
    /// Takes note of it. Returns whether it is news that a name server is reached through the tunnel.
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
