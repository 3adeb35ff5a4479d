//! Plans for the tests of all parts, and tests of what the parts make together.

use clap::Parser;

use super::networks::network;
use super::options::{Request, RequestError};
use super::plan::PlanError;
use super::*;
use crate::config::Protocol;

/// A routed plan from the words of the command line.
pub(super) fn routed(
    sites: [&str; 2],
    behind: [&[&str]; 2],
    inner: &[&str],
) -> Result<Plan, PlanError> {
    let behind = behind.map(|nets| nets.iter().map(|net| network(net).unwrap()).collect());
    let inner = inner.iter().map(|net| inner_network(net).unwrap()).collect();
    let link = Link::Routed(Routed { behind, inner, protocol: Protocol::Vpnd });
    Plan::new(sites.map(|site| site.parse().unwrap()), link)
}

/// A plan in which each part occurs.
pub(super) fn both_families() -> Plan {
    let sites = ["site-a=a.example.net:51820", "site-b=[2001:db8::2]:4500"];
    let behind: [&[&str]; 2] =
        [&["192.168.10.0/24", "fd10::/48"], &["192.168.20.0/24", "fd20::/48"]];
    routed(sites, behind, &["10.99.0.0/30", "fd99::/64"]).unwrap()
}

/// A host whose default routes lead through the other site.
pub(super) fn road_warrior() -> Plan {
    let behind: [&[&str]; 2] = [&["0.0.0.0/0", "::/0"], &["192.168.1.0/24"]];
    let inner = ["10.99.0.0/30", "fd99::/64"];
    routed(["home=192.0.2.1:51820", "road"], behind, &inner).unwrap()
}

/// Two LANs that become one.
pub(super) fn bridged() -> Plan {
    let sites = ["site-a=a.example.net:51820", "site-b"].map(|site| site.parse().unwrap());
    Plan::new(sites, Link::Bridged(["br0", "br-lan"].map(|it| it.parse().unwrap()))).unwrap()
}

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    pair: PairOptions,
}

/// The options of a command line.
pub(super) fn parse(line: &str) -> Result<PairOptions, clap::Error> {
    Line::try_parse_from(format!("pair {line}").split_whitespace()).map(|line| line.pair)
}

/// What a command line requests.
pub(super) fn requested(line: &str) -> Result<Request, RequestError> {
    let options = parse(line).unwrap_or_else(|error| panic!("{error}"));
    options.request().map(|request| request.unwrap_or_else(|| panic!("no sites: {line}")))
}

fn load(path: &Path) -> config::Loaded {
    config::load(path).unwrap_or_else(|report| panic!("{report}"))
}

#[test]
fn both_ends_load_and_belong_together() {
    let out = tempfile::tempdir().unwrap();
    write(&both_families(), out.path()).unwrap();
    let [a, b] = ["site-a", "site-b"].map(|it| load(&out.path().join(format!("{it}/{it}.toml"))));
    assert!(a.warnings.is_empty() && b.warnings.is_empty());
    assert_eq!(a.config.peer.public_key, b.keys.secret.public());
    assert_eq!(b.config.peer.public_key, a.keys.secret.public());
    assert_eq!(a.keys.preshared.as_bytes(), b.keys.preshared.as_bytes());
    assert_ne!(a.keys.preshared.as_bytes(), &[0; 32]);
    assert_eq!(a.config.peer.endpoints[0].to_string(), "[2001:db8::2]:4500");
    assert_eq!((a.config.routes.len(), b.config.routes.len()), (2, 2));
    assert_eq!(a.config.peer.protocol, Protocol::Vpnd);
    assert_eq!(b.config.peer.protocol, Protocol::Vpnd);
}

/// Both ends by codes, each in a directory of its own.
fn invited() -> (tempfile::TempDir, Answer) {
    let out = tempfile::tempdir().unwrap();
    let (files, invitation) = Invitation::new(bridged());
    let (joined, answer) = invitation.join();
    files::write(&[(out.path().join("a"), &files), (out.path().join("b"), &joined)]).unwrap();
    (out, answer)
}

#[test]
fn an_invitation_is_completed_by_its_answer() {
    let (out, answer) = invited();
    let (a, b) = (out.path().join("a"), out.path().join("b"));
    assert!(config::load(&a.join("site-a.toml")).is_err(), "started without the peer's key");
    complete(&answer, &a).unwrap();
    let (a_end, b_end) = (load(&a.join("site-a.toml")), load(&b.join("site-b.toml")));
    assert_eq!(a_end.config.peer.public_key, b_end.keys.secret.public());
    assert_eq!(b_end.config.peer.public_key, a_end.keys.secret.public());
    assert!(matches!(complete(&answer, &a), Err(PairError::AnsweredSo { .. })));
    let (_, other) = invited();
    assert!(matches!(complete(&other, &a), Err(PairError::Answered { .. })));
}

#[test]
fn the_answer_to_another_invitation_changes_nothing() {
    let (out, _) = invited();
    let (_, other) = invited();
    let a = out.path().join("a");
    let before = fs::read_to_string(a.join("site-a.toml")).unwrap();
    assert!(matches!(complete(&other, &a), Err(PairError::NotTheAnswer { .. })));
    assert_eq!(fs::read_to_string(a.join("site-a.toml")).unwrap(), before);
    assert!(matches!(complete(&other, out.path()), Err(PairError::NoInvitation { .. })));
}
