//! What a user can do about the current fault.

use vpnd_device::Found;
use vpnd_plane::{Kind, Loop, Refused, State, Trouble};

use super::explanation;
use crate::config::Mac;
use crate::diagnostics;
use crate::zone::Zones;

/// The current fault, and how addresses are shown.
#[derive(Clone, Copy)]
pub(crate) struct Fault<'a> {
    pub(crate) trouble: &'a Trouble,
    pub(crate) zones: &'a Zones,
}

const NO_ANSWER: &str = "no answer: the peer is down, UDP does not get through, or its public_key for us is \
                         wrong; `vpnd status` on the peer shows which";

/// What a user can do about the tunnel's state.
pub(super) fn hint(state: &State, fault: Option<Fault<'_>>, peer: &str) -> Option<String> {
    // If the tunnel works, problems that strangers can cause are not reported.
    let matters = |trouble: &Trouble| !state.kind.works() || trouble.outlasts_a_session();
    let said = fault.filter(|fault| matters(fault.trouble)).map(|fault| sentence(fault, peer));
    let silent =
        || (state.kind == Kind::Down).then(|| "the peer does not answer our packets".into());
    said.or_else(|| explanation(state)).or_else(silent)
}

/// The peer has no address, because none of its names resolves.
pub(super) fn unresolved(endpoints: &[String]) -> String {
    format!("{} does not resolve yet; vpnd keeps trying", endpoints.join(", "))
}

fn sentence(Fault { trouble, zones }: Fault<'_>, peer: &str) -> String {
    match trouble {
        Trouble::AnswerDoesNotOpen => "the peer's answer does not open: PSK differs, or one of \
             protocol, mode, cipher and post_quantum; compare them on both sides"
            .to_owned(),
        Trouble::NeverConfirms(count) => format!(
            "peer {peer} initiates ({count}×) and never confirms: its PSK differs, or one of protocol, \
             mode, cipher and post_quantum, or our answers are lost"
        ),
        Trouble::UnknownPeer(key) => {
            format!("unknown peer {key} initiates; [peer] public_key here is {peer}")
        }
        Trouble::StaleInitiation => "the peer's clock was set back and its state directory lost: \
             it is accepted again when its clock has caught up, or when vpnd restarts here"
            .to_owned(),
        Trouble::BadMac1(count) => format!(
            "{count} handshake messages arrived that were not made for our public key: the other \
             side's public_key for us is wrong, or it is a scan"
        ),
        Trouble::DuplicateKey(addresses) => {
            diagnostics::duplicate_key(&addresses.map(|at| zones.show(at)))
        }
        Trouble::SameMac(mac) => format!(
            "both ends have the hardware address {}: give one of them another [interface] mac, or none",
            Mac(*mac)
        ),
        Trouble::MtuDiffers(ours, theirs) => format!(
            "the MTU of our device is {ours} and that of the peer's {theirs}: longer frames than the smaller \
             one are lost; give both the same"
        ),
        Trouble::Loop(one) => looped(one),
        Trouble::Back(route) => back(route.as_ref()),
        Trouble::Nested(route) => nested(route.as_ref()),
        Trouble::InnerSource(inner) => diagnostics::inner_source(inner),
        Trouble::RefusedSource(refused) => diagnostics::refused_source(*refused),
        Trouble::Unresolved(names) => diagnostics::unresolved(names),
        Trouble::Refused(Refused { to, why }) => {
            format!("datagrams to {} do not leave this host: {why}", zones.show(*to))
        }
        Trouble::Closed => "the peer announced that it was shutting down".to_owned(),
        Trouble::NoAnswer => NO_ANSWER.to_owned(),
    }
}

fn looped(Loop { to, route }: &Loop) -> String {
    format!(
        "the tunnel would lead into itself: the route to the peer at {to} is {route}, by its own device; \
         remove that route, or keep a more specific one"
    )
}

fn back(route: Option<&Found>) -> String {
    format!(
        "the tunnel leads into itself: its own datagrams come out of its device, though {}; a rule, a \
         bridge or a packet filter leads them there",
        shown(route)
    )
}

fn nested(route: Option<&Found>) -> String {
    format!(
        "tunnels of this host lead into each other: {}, and another tunnel sends what comes there into \
         this one; correct the route to the peer of one of them",
        shown(route)
    )
}

fn shown(route: Option<&Found>) -> String {
    match route {
        Some(route) => format!("the route to the peer is {route}"),
        None => "there is no route to the peer".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vpnd_plane::Reasons;
    use vpnd_protocol::time::BootTime;
    use vpnd_tunnel::udp::Refusal;

    #[test]
    fn a_tunnel_that_works_needs_no_hint() {
        let zones = Zones::default();
        let state = |kind| State { kind, reasons: Reasons::default(), since: BootTime::default() };
        let of = |kind, trouble: &Trouble| {
            hint(&state(kind), Some(Fault { trouble, zones: &zones }), "K")
        };
        assert_eq!(hint(&state(Kind::Up), None, "K"), None);
        assert_eq!(of(Kind::Up, &Trouble::StaleInitiation), None);
        let to = "192.0.2.1:1".parse().unwrap();
        let refused = Trouble::Refused(Refused { to, why: Refusal::Prohibit });
        assert!(of(Kind::Up, &refused).unwrap().contains("`prohibit` route"));
        let psk = of(Kind::Connecting, &Trouble::AnswerDoesNotOpen).unwrap();
        assert!(psk.contains("PSK differs"), "{psk}");
    }
}
