use vpnd_protocol::session::Role;
use vpnd_tunnel::udp::Refusal;

use super::*;
use crate::outlook::InnerSource;

const NOW: BootTime = BootTime::from_nanos(0);

impl Diagnoses {
    /// The fault that stands where nothing is known of routes and nothing is refused.
    fn alone(&self) -> Option<Trouble> {
        self.trouble(&Outlook::default(), None)
    }

    fn note(&mut self, found: Diagnosis) -> Option<Notice> {
        self.found(NOW, found, false)
    }
}

const ESTABLISHED: Change = Change::Established(Role::Initiator);

#[test]
fn a_session_ends_the_trouble() {
    let mut diagnoses = Diagnoses::default();
    diagnoses.note(Diagnosis::AnswerDoesNotOpen);
    assert_eq!(diagnoses.alone(), Some(Trouble::AnswerDoesNotOpen));
    diagnoses.changed(&ESTABLISHED, false);
    assert_eq!(diagnoses.alone(), None);
}

#[test]
fn silence_never_hides_a_better_reason() {
    let mut diagnoses = Diagnoses::default();
    diagnoses.note(Diagnosis::NeverConfirms(3));
    diagnoses.changed(&Change::GaveUp, false);
    assert_eq!(diagnoses.alone(), Some(Trouble::NeverConfirms(3)));
}

#[test]
fn silence_is_named_after_three_tries() {
    let mut diagnoses = Diagnoses::default();
    let to = "192.0.2.1:1".parse().unwrap();
    for attempt in 1..=3 {
        assert!(!diagnoses.changed(&Change::Initiating { to, attempt }, false));
        assert_eq!(diagnoses.alone(), None);
    }
    assert!(diagnoses.changed(&Change::Initiating { to, attempt: 4 }, false));
    assert_eq!(diagnoses.alone(), Some(Trouble::NoAnswer));
    assert!(!diagnoses.changed(&Change::Initiating { to, attempt: 5 }, false), "known");
}

#[test]
fn what_our_own_host_refuses_is_not_blamed_on_the_peer() {
    let mut diagnoses = Diagnoses::default();
    let refused = Refused { to: "192.0.2.1:1".parse().unwrap(), why: Refusal::Filter };
    assert_eq!(diagnoses.found(NOW, Diagnosis::NeverConfirms(9), true), None);
    diagnoses.changed(&Change::GaveUp, true);
    let shown = diagnoses.trouble(&Outlook::default(), Some(refused));
    assert_eq!(shown, Some(Trouble::Refused(refused)));
    assert_eq!(diagnoses.alone(), None);
}

#[test]
fn an_inner_source_comes_before_silence_and_ends() {
    let mut diagnoses = Diagnoses::default();
    let inner = InnerSource {
        to: "[2001:db8::2]:51820".parse().unwrap(),
        source: "2001:db8:99::1".parse().unwrap(),
        uplink: "eth0".into(),
    };
    let outlook = Outlook { inner_source: Some(inner.clone()), ..Outlook::default() };
    diagnoses.changed(&Change::GaveUp, false);
    assert_eq!(diagnoses.trouble(&outlook, None), Some(Trouble::InnerSource(inner)));
    assert_eq!(diagnoses.alone(), Some(Trouble::NoAnswer));
}

#[test]
fn a_name_that_cannot_be_looked_up_comes_before_silence() {
    let mut diagnoses = Diagnoses::default();
    let failures = vec![Failure { endpoint: "b.example.net:1".into(), error: "no".into() }];
    let inside = vec!["192.0.2.53".parse().unwrap()];
    let unresolved = Unresolved { failures, inside };
    diagnoses.changed(&Change::GaveUp, false);
    assert!(diagnoses.names.failed(unresolved.clone()), "a name server is inside");
    assert!(!diagnoses.names.failed(unresolved.clone()), "known");
    assert_eq!(diagnoses.alone(), Some(Trouble::Unresolved(unresolved)));
    diagnoses.note(Diagnosis::AnswerDoesNotOpen);
    assert_eq!(diagnoses.alone(), Some(Trouble::AnswerDoesNotOpen));
    diagnoses.changed(&ESTABLISHED, false);
    diagnoses.names.failed(Unresolved::default());
    assert_eq!(diagnoses.alone(), None);
}

#[test]
fn sources_that_are_not_allowed_are_a_hint_while_they_come() {
    let mut diagnoses = Diagnoses::default();
    let seen = |packets| RefusedPackets { packets, source: "192.168.30.7".parse().unwrap() };
    assert_eq!(diagnoses.refused_sources.watch(NOW, Some(seen(2))), None);
    assert_eq!(diagnoses.alone(), None, "a stray packet or two");
    assert_eq!(diagnoses.refused_sources.watch(NOW, Some(seen(12))), Some(seen(12)));
    let trouble = Trouble::RefusedSource(seen(12));
    assert_eq!(diagnoses.alone(), Some(trouble.clone()));
    assert!(trouble.outlasts_a_session(), "a tunnel that is up shows it");
    diagnoses.note(Diagnosis::AnswerDoesNotOpen);
    assert_eq!(diagnoses.alone(), Some(Trouble::AnswerDoesNotOpen), "which comes first");
    diagnoses.changed(&ESTABLISHED, false);
    let later = NOW + refused_sources::FORGOTTEN;
    diagnoses.refused_sources.watch(later, Some(seen(12)));
    assert_eq!(diagnoses.alone(), None, "no more of them come");
    let again = diagnoses.refused_sources.watch(later, Some(seen(13)));
    assert_eq!(again, None, "reported once for a configuration");
    assert!(diagnoses.alone().is_some());
    diagnoses.reloaded();
    diagnoses.refused_sources.watch(later, Some(seen(13)));
    assert_eq!(diagnoses.alone(), None, "another allowed_ips may let them in");
}

#[test]
fn bad_mac1_matters_only_while_nothing_else_works() {
    let mut diagnoses = Diagnoses::default();
    assert_eq!(diagnoses.watch_bad_mac1(NOW, 5, true), None);
    assert_eq!(diagnoses.alone(), None);
    assert_eq!(diagnoses.watch_bad_mac1(NOW, 5, false), None);
    assert_eq!(diagnoses.alone(), None);
    assert_eq!(diagnoses.watch_bad_mac1(NOW, 6, false), Some(Notice::BadMac1(6)));
    assert_eq!(diagnoses.alone(), Some(Trouble::BadMac1(6)));
    diagnoses.watch_bad_mac1(NOW + BAD_MAC1_FORGOTTEN, 6, false);
    assert_eq!(diagnoses.alone(), None, "no more of them come");
}
