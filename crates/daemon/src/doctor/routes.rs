//! Whether datagrams to the peer can leave this host, and not by the tunnel.

use std::io;

use vpnd_tunnel::udp::Refusal;

use super::finding::{Check, Finding};
use super::place::{Assigned, Place, Target};

/// Examines the route to one address of the peer; `tunnel` is the tunnel's device.
pub(super) async fn finding(
    place: &Place,
    target: &Target,
    tunnel: Option<&str>,
    addresses: &[Assigned],
) -> Option<Finding> {
    let to = target.to.ip();
    if addresses.iter().any(|one| one.address.addr() == to) {
        let cause = format!("the endpoint {} is an address of this host itself", target.to);
        return Some(
            Finding::new(Check::Route, cause)
                .advice("correct [peer] endpoint: it is the peer's address"),
        );
    }
    if let Some(found) = target.found.as_ref().filter(|it| Some(it.device.as_str()) == tunnel) {
        let cause = format!("the route to the peer at {to} leads into the tunnel itself: {found}");
        let family = if to.is_ipv4() { "" } else { "-6 " };
        return Some(
            Finding::new(Check::Route, cause)
                .command(format!("ip {family}route del {found}"))
                .advice("keep a more specific route to the peer over the uplink"),
        );
    }
    let error = target.payload.as_ref().err()?;
    Some(refused(place, target, error, addresses).await)
}

async fn refused(
    place: &Place,
    target: &Target,
    error: &io::Error,
    addresses: &[Assigned],
) -> Finding {
    let to = target.to.ip();
    let finding = |cause: String| Finding::new(Check::Route, cause);
    let rules = "see `ip rule` and `ip route get`";
    match Refusal::of(error) {
        Some(Refusal::NoRoute) => no_route(target, addresses),
        Some(Refusal::Blackhole | Refusal::Unreachable | Refusal::Prohibit) => {
            match place.netlink.refusing(to).await {
                Some(route) => {
                    finding(format!("the route `{route}` refuses datagrams to the peer at {to}"))
                        .command(route.removal())
                }
                None => {
                    finding(format!("this host refuses datagrams to the peer at {to}: {error}"))
                        .advice(format!("a rule may refuse them: {rules}"))
                }
            }
        }
        Some(why) => {
            finding(format!("datagrams to the peer at {to} cannot leave: {why}")).advice(rules)
        }
        None => {
            finding(format!("datagrams to the peer at {to} cannot leave: {error}")).advice(rules)
        }
    }
}

/// A link that is down has lost its routes.
fn no_route(target: &Target, addresses: &[Assigned]) -> Finding {
    let to = target.to.ip();
    let family = if to.is_ipv4() { "" } else { "-6 " };
    let finding = Finding::new(Check::Route, format!("this host has no route to the peer at {to}"));
    let is_candidate = |one: &&Assigned| !one.is_up && one.address.addr().is_ipv4() == to.is_ipv4();
    let down = addresses.iter().find(is_candidate);
    match down {
        Some(Assigned { device, .. }) => Finding {
            cause: format!("{}, and the link {device} is down", finding.cause),
            ..finding
        }
        .command(format!("ip link set dev {device} up"))
        .advice(format!("then, if needed: ip {family}route add default via ROUTER dev {device}")),
        None => finding.advice(format!(
            "add one over the uplink: ip {family}route add {to} via ROUTER dev LINK"
        )),
    }
}
