//! The state of a tunnel, as a word and as a sentence.

use serde::{Deserialize, Serialize};
use vpnd_plane::{self as plane, Kind, Reason, Reasons};

/// The kind of a state, by its name in the schema; `None` if only a later release knows the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "&'static str")]
pub(crate) struct State(pub(crate) Option<Kind>);

impl From<String> for State {
    fn from(name: String) -> Self {
        Self(Kind::ALL.into_iter().find(|kind| kind.name() == name))
    }
}

impl From<State> for &'static str {
    fn from(state: State) -> Self {
        state.word()
    }
}

impl State {
    /// Its name.
    pub(crate) fn word(self) -> &'static str {
        self.0.map_or("unknown", Kind::name)
    }

    /// Whether packets get through.
    pub(crate) fn works(self) -> bool {
        self.0.is_some_and(Kind::works)
    }
}

/// The state in a few words, with its reasons.
pub(crate) fn summary(state: &plane::State) -> String {
    let word = state.kind.name();
    match names(state.reasons).as_slice() {
        [] => word.to_owned(),
        names => format!("{word} ({})", names.join(", ")),
    }
}

/// The names of the reasons.
pub(crate) fn names(reasons: Reasons) -> Vec<String> {
    reasons.iter().map(|reason| reason.name().to_owned()).collect()
}

/// The explanation of a state whose name needs one, for the log and the hint.
pub(crate) fn explanation(state: &plane::State) -> Option<String> {
    if state.kind == Kind::Unresponsive {
        return Some("the peer does not answer our packets".to_owned());
    }
    let all: Vec<_> = state.reasons.iter().map(sentence).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

const fn sentence(reason: Reason) -> &'static str {
    match reason {
        Reason::Loss => "more than 2 % of the datagrams were lost in the last minute",
        Reason::PathMtu => {
            "the path carries less than the device's MTU, so full packets are sent in fragments; a lower \
             [interface] mtu avoids that"
        }
        Reason::Segmentation => {
            "the kernel refuses GSO for datagrams to the peer, or GSO batches are lost on the path, so sending takes more processor time"
        }
        Reason::Endpoint => "the peer is not at its first endpoint",
        Reason::Family => {
            "the peer does not answer at its preferred address, but at one of the other family (IPv4, IPv6)"
        }
        Reason::Ecn => {
            "the path marks everything for congestion, so its marks are ignored: ECN does not work across \
             the tunnel; a device on the path rewrites the TOS byte"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vpnd_protocol::time::BootTime;

    fn state(kind: Kind, reasons: &[Reason]) -> plane::State {
        let reasons = reasons.iter().copied().collect();
        plane::State { kind, reasons, since: BootTime::default() }
    }

    #[test]
    fn states_have_the_words_that_scripts_know() {
        for kind in Kind::ALL {
            let (state, text) = (State(Some(kind)), format!("\"{}\"", kind.name()));
            assert_eq!(serde_json::to_string(&state).unwrap(), text);
            assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state);
        }
        assert_eq!(serde_json::from_str::<State>("\"asleep\"").unwrap(), State(None));
        let works = Kind::ALL.map(|kind| State(Some(kind)).works());
        assert_eq!(works, [true, true, false, false, false, false]);
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
