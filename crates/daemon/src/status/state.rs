//! The state of a tunnel, as a word and as a sentence.

use serde::{Deserialize, Serialize};
use vpnd_plane::{self as plane, Kind, Reason, Reasons};

/// What kind of state: the words are part of the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// There is a session, the peer answers, and nothing is wrong that vpnd knows of.
    Up,
    /// The same, but the tunnel carries less than it should.
    Degraded,
    /// There is a session, but the peer has not answered for a while. It is not dead yet.
    Unresponsive,
    /// There is no session; handshakes are being initiated.
    Connecting,
    /// The peer is dead, or nobody answers.
    Down,
    /// There is no session, and no reason to start one.
    Idle,
    /// A state that only a later release knows.
    #[serde(other)]
    Unknown,
}

impl From<Kind> for State {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Up => Self::Up,
            Kind::Degraded => Self::Degraded,
            Kind::Unresponsive => Self::Unresponsive,
            Kind::Connecting => Self::Connecting,
            Kind::Down => Self::Down,
            Kind::Idle => Self::Idle,
        }
    }
}

impl State {
    /// Its name.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Degraded => "degraded",
            Self::Unresponsive => "unresponsive",
            Self::Connecting => "connecting",
            Self::Down => "down",
            Self::Idle => "idle",
            Self::Unknown => "unknown",
        }
    }

    /// Whether packets get through.
    pub(crate) const fn works(self) -> bool {
        matches!(self, Self::Up | Self::Degraded)
    }
}

/// The state in a few words, with its reasons.
pub(crate) fn summary(state: &plane::State) -> String {
    let word = State::from(state.kind).word();
    match names(state.reasons).as_slice() {
        [] => word.to_owned(),
        names => format!("{word} ({})", names.join(", ")),
    }
}

/// The names of the reasons.
pub(crate) fn names(reasons: Reasons) -> Vec<String> {
    reasons.iter().map(|reason| reason.name().to_owned()).collect()
}

/// What a state means, where its name does not say so; in the words of the log and of the hint.
pub(crate) fn explanation(state: &plane::State) -> Option<String> {
    if state.kind == Kind::Unresponsive {
        return Some("what we send is not answered".to_owned());
    }
    let all: Vec<_> = state.reasons.iter().map(sentence).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

const fn sentence(reason: Reason) -> &'static str {
    match reason {
        Reason::Loss => "more than 2 % of the datagrams was lost in the last minute",
        Reason::PathMtu => {
            "the path carries less than the device's MTU, so full packets are sent in fragments; a lower \
             [interface] mtu avoids that"
        }
        Reason::Segmentation => {
            "the kernel refuses to segment what is sent to the peer, so it takes more processor time"
        }
        Reason::Endpoint => "the peer is not at its first endpoint",
        Reason::Ecn => {
            "the path marks everything for congestion, so its marks are ignored: ECN does not work across \
             the tunnel; somebody on the way rewrites the TOS byte"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vpnd_protocol::time::BootTime;

    pub(crate) const ALL: [State; 6] = [
        State::Up,
        State::Degraded,
        State::Unresponsive,
        State::Connecting,
        State::Down,
        State::Idle,
    ];

    fn state(kind: Kind, reasons: &[Reason]) -> plane::State {
        let reasons = reasons.iter().copied().collect();
        plane::State { kind, reasons, since: BootTime::default() }
    }

    #[test]
    fn states_have_the_words_that_scripts_know() {
        for state in ALL {
            assert_eq!(serde_json::to_string(&state).unwrap(), format!("\"{}\"", state.word()));
        }
        assert_eq!(ALL.map(State::works), [true, true, false, false, false, false]);
    }

    #[test]
    fn reasons_are_named_and_explained() {
        let both = state(Kind::Degraded, &[Reason::Ecn, Reason::Loss]);
        assert_eq!(summary(&both), "degraded (loss, ecn)");
        let said = explanation(&both).unwrap();
        assert!(said.starts_with("more than 2 %") && said.contains("; the path marks"), "{said}");
        assert_eq!(summary(&state(Kind::Down, &[])), "down");
        assert_eq!(explanation(&state(Kind::Up, &[])), None);
    }
}
