//! Sentences that are used both in the log and in the hint of `status`.

use vpnd_plane::{InnerSource, Unresolved};
use vpnd_tunnel::engine::RefusedPackets;

use crate::nameservers;

/// Which names of the peer cannot be looked up, and why.
pub(crate) fn unresolved(Unresolved { failures, inside }: &Unresolved) -> String {
    let list = |all: Vec<String>| all.join(", ");
    let names = list(failures.iter().map(|one| one.endpoint.clone()).collect());
    if inside.is_empty() {
        let why = failures.first().map(|one| one.error.as_str()).unwrap_or_default();
        return format!("{names} cannot be looked up, vpnd keeps trying: {why}");
    }
    let servers = list(inside.iter().map(ToString::to_string).collect());
    let help = nameservers::HELP;
    format!(
        "{names} cannot be looked up: name server {servers} is reached through the tunnel itself; {help}"
    )
}

/// Two machines at these addresses use the peer's key.
pub(crate) fn duplicate_key([one, other]: &[String; 2]) -> String {
    format!(
        "the peer's key is used at two addresses in turn, {one} and {other}: is its configuration on two machines? \
         Each machine needs a key of its own (vpnd pair)"
    )
}

/// Packets of the peer that were dropped because `allowed_ips` does not contain their source.
pub(crate) fn refused_source(RefusedPackets { packets, source }: RefusedPackets) -> String {
    format!(
        "dropped {packets} packets of the peer from addresses that allowed_ips does not contain, lately from \
         {source}: if that network is behind the peer, add it to [peer] allowed_ips; without allowed_ips, the \
         default is what is routed to the peer, so add a [[route]] to it"
    )
}

/// The kernel would send to the peer from an address of the tunnel.
pub(crate) fn inner_source(InnerSource { to, source, uplink }: &InnerSource) -> String {
    let family = if source.is_ipv4() { "IPv4" } else { "IPv6" };
    format!(
        "the kernel would send to {to} from {source}, an address of the tunnel itself, where no answer \
         arrives: the uplink {uplink} has no global {family} address; give it one, or set [socket] source"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use vpnd_plane::Failure;

    #[test]
    fn a_name_server_inside_the_tunnel_is_named() {
        let failures = vec![Failure { endpoint: "b.example.net:1".into(), error: "no".into() }];
        let inside = vec!["192.0.2.53".parse().unwrap()];
        let text = unresolved(&Unresolved { failures, inside });
        assert!(text.contains("name server 192.0.2.53 is reached through the tunnel"), "{text}");
    }
}
