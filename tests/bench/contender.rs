//! What is compared: the bare cable, builds of vpnd, and other people's tunnels.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use vpnd_tests::peer::{self, Peer};
use vpnd_tests::site::INNER_B4;
use vpnd_tests::traffic::ping;
use vpnd_tests::vpnd::{self, Launch};
use vpnd_tests::{Lab, Process, Vpnd, Wire, site};

use crate::options::Options;

/// How long a tunnel may take from its start to the first answer.
const ANSWERS: Duration = Duration::from_secs(10);
/// B on the cable itself.
const OUTER_B4: &str = "192.0.2.2";

/// One of those compared.
#[derive(Debug, Clone)]
pub(crate) struct Contender {
    pub(crate) name: String,
    kind: Kind,
}

#[cfg(test)]
impl Contender {
    /// For tests of what only looks at names: no vpnd is needed.
    pub(crate) fn named(name: &str) -> Self {
        let known = peer::Kind::ALL.into_iter().find(|kind| kind.to_string() == name);
        Self::new(name, known.map_or(Kind::Bare, Kind::WireGuard))
    }
}

#[derive(Debug, Clone)]
enum Kind {
    Bare,
    Vpnd(Launch),
    WireGuard(peer::Kind),
}

/// A contender at work between two hosts.
pub(crate) struct Tunnel {
    /// One for each end; none for the bare cable. They end before the hosts do.
    _daemons: Vec<Process>,
    pub(crate) wire: Wire,
    /// Of B, inside.
    pub(crate) address: &'static str,
    lab: Lab,
}

impl Contender {
    /// Those asked for, installed or not.
    ///
    /// # Errors
    /// When there is no vpnd, or a name is unknown.
    pub(crate) fn chosen(options: &Options) -> Result<Vec<Self>> {
        let mut all = Self::all(options)?;
        for name in &options.only {
            if !all.iter().any(|one| one.name == *name) {
                let known: Vec<_> = all.iter().map(|one| one.name.as_str()).collect();
                bail!("no contender is called {name:?}; there are {}", known.join(", "));
            }
        }
        all.retain(|one| options.only.is_empty() || options.only.contains(&one.name));
        Ok(all)
    }

    fn all(options: &Options) -> Result<Vec<Self>> {
        let launch = Launch::plain(&vpnd_binary(options)?);
        let mut all = vec![Self::new("bare", Kind::Bare), Self::new("vpnd", Kind::Vpnd(launch))];
        let also = options.also.iter();
        all.extend(also.map(|one| Self::new(&one.name, Kind::Vpnd(Launch::plain(&one.path)))));
        let peers = peer::Kind::ALL.into_iter();
        all.extend(peers.map(|kind| Self::new(&kind.to_string(), Kind::WireGuard(kind))));
        Ok(all)
    }

    fn new(name: &str, kind: Kind) -> Self {
        Self { name: name.to_owned(), kind }
    }

    /// Why it cannot run here, if it cannot.
    pub(crate) fn missing(&self) -> Option<String> {
        let there = match &self.kind {
            Kind::Bare | Kind::Vpnd(_) => Ok(()),
            Kind::WireGuard(kind) => kind.program().map(drop),
        };
        there.err().map(|error| format!("{error:#}"))
    }

    /// Whether it is somebody else's work, to be beaten.
    pub(crate) fn is_peer(&self) -> bool {
        !matches!(self.kind, Kind::Bare | Kind::Vpnd(_))
    }

    /// Starts both ends and waits until one reaches the other.
    ///
    /// # Errors
    /// When it does not in time; with the ends of its logs.
    pub(crate) fn start(&self) -> Result<Tunnel> {
        let lab = Lab::as_it_is(&format!("bench-{}", self.name))?;
        let wire = Wire::new(&lab)?;
        let daemons = self.daemons(&wire)?;
        let address = if daemons.is_empty() { OUTER_B4 } else { INNER_B4 };
        let tunnel = Tunnel { _daemons: daemons, wire, address, lab };
        ping::until_answered(&tunnel.wire.a, address, ANSWERS)
            .map_err(|error| error.context(tunnel.logs()))?;
        Ok(tunnel)
    }

    fn daemons(&self, wire: &Wire) -> Result<Vec<Process>> {
        let (a, b) = site::pair()?;
        let (a, b) = ((&wire.a, a.towards(Wire::B4)), (&wire.b, b.towards(Wire::A4)));
        // B first: it answers when A speaks.
        match &self.kind {
            Kind::Bare => Ok(Vec::new()),
            Kind::Vpnd(launch) => [b, a]
                .iter()
                .map(|(host, site)| Ok(Vpnd::start_as(launch, host, site)?.into_process()))
                .collect(),
            Kind::WireGuard(kind) => [b, a]
                .iter()
                .map(|(host, site)| Ok(Peer::start_quiet(*kind, host, site)?.into_process()))
                .collect(),
        }
    }
}

impl Tunnel {
    /// The last lines of what its programs wrote.
    pub(crate) fn logs(&self) -> String {
        self.lab.log_tails()
    }
}

fn vpnd_binary(options: &Options) -> Result<PathBuf> {
    match &options.vpnd {
        Some(path) => Ok(path.canonicalize()?),
        None => Ok(vpnd::program()?.to_owned()),
    }
}
