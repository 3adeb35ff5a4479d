//! The result of an import: the tunnel, and the outcome of each line.

use std::fmt;

use thiserror::Error;

use crate::format::Format;
use crate::peers::PeerChoice;
use crate::table::{Kind, Verdict};
use crate::tunnel::Tunnel;

/// The outcome of one line, or of several that are one value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The index of the source.
    pub file: usize,
    /// The number of the line, from 1.
    pub first: usize,
    /// The number of its last line.
    pub last: usize,
    /// The section that the line is in; empty if the format has none.
    pub section: String,
    /// The key.
    pub key: String,
    /// What has become of it.
    pub verdict: Verdict,
}

/// A tunnel, and what has become of each line.
pub struct Imported {
    /// The format of the files.
    pub format: Format,
    /// The tunnel at this end.
    pub tunnel: Tunnel,
    /// The other end, if it gets new keys too.
    pub other: Option<Tunnel>,
    /// The outcome of each line, in the order of the sources and lines.
    pub outcomes: Vec<Outcome>,
    /// What follows from no single line.
    pub notes: Vec<String>,
    /// The command that stops the tunnel that this one replaces.
    pub stop: Option<String>,
}

/// Why there is no tunnel, and the outcomes of the lines that were read.
#[derive(Debug)]
pub struct Failure {
    /// The reason.
    pub error: ImportError,
    /// The outcomes, if the lines were read.
    pub outcomes: Vec<Outcome>,
}

/// Why files do not become a tunnel.
#[derive(Debug, Error)]
pub enum ImportError {
    /// No line is typical of a format.
    #[error(
        "the format is not recognised: give --format wg-quick, networkd, networkmanager, openwrt or openvpn"
    )]
    Format,
    /// More than a tunnel needs.
    #[error(
        "the files have more than {} words, which no tunnel needs: take out what is not of this tunnel",
        crate::MAX_WORDS
    )]
    Long,
    /// More files than the format has.
    #[error("{0}")]
    Files(&'static str),
    /// The configuration has several peers, and vpnd one for each tunnel.
    #[error("{}", crate::peers::listed("there are several peers, and a tunnel of vpnd has one", .0))]
    SeveralPeers(Vec<PeerChoice>),
    /// `--peer` does not name exactly one peer.
    #[error("{}", crate::peers::listed("no peer, or more than one, has a public key that begins like that", .0))]
    NoSuchPeer(Vec<PeerChoice>),
    /// The configuration has no peer with a valid public key.
    #[error(
        "there is no peer with a valid public key, so there is nobody to talk to: add the peer"
    )]
    NoPeer,
    /// The private key is not in the file.
    #[error("there is no private key: {0}")]
    NoPrivateKey(String),
    /// The preshared key is not in the file.
    #[error("the preshared key is not in the file: {0}")]
    NoPresharedKey(String),
    /// The configuration is not one of a tunnel between two points.
    #[error("{0}")]
    NotPointToPoint(String),
    /// The other end would have neither an endpoint nor a port.
    #[error(
        "the other end could not be reached, and could reach nobody: give --endpoint HOST, where it reaches this end"
    )]
    NoEndpoint,
    /// Nothing gives the tunnel a name.
    #[error("the tunnel has no name: give one of letters, digits, - and _ by --name")]
    Name,
}

impl ImportError {
    pub(crate) fn alone(self) -> Box<Failure> {
        self.after(vec![])
    }

    pub(crate) fn after(self, outcomes: Vec<Outcome>) -> Box<Failure> {
        Box::new(Failure { error: self, outcomes })
    }
}

/// Shows outcomes, a line each.
pub struct Outcomes<'a>(pub &'a [Outcome]);

impl fmt::Display for Outcomes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: Vec<_> = self.0.iter().map(|outcome| (lines(outcome), key(outcome))).collect();
        let width = |of: fn(&(String, String)) -> &String| {
            shown.iter().map(|one| of(one).chars().count()).max().unwrap_or(0).min(32)
        };
        let (numbers, keys) = (width(|one| &one.0), width(|one| &one.1));
        for ((number, key), outcome) in shown.iter().zip(self.0) {
            let Verdict { kind, text } = &outcome.verdict;
            let word = kind.word();
            writeln!(f, "  {number:>numbers$}  {word:7}  {key:keys$}  {text}")?;
        }
        Ok(())
    }
}

impl Outcomes<'_> {
    /// How many outcomes are of this kind.
    pub fn count(&self, kind: Kind) -> usize {
        self.0.iter().filter(|outcome| outcome.verdict.kind == kind).count()
    }
}

fn lines(outcome: &Outcome) -> String {
    let Outcome { first, last, .. } = outcome;
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

fn key(outcome: &Outcome) -> String {
    match outcome.key.as_str() {
        "" => "?".to_owned(),
        key => key.to_owned(),
    }
}
