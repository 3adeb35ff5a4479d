//! Name servers that are reached through the tunnel itself: while the tunnel is down, they cannot resolve the
//! peer's name. The C library sends the queries, so none of vpnd's rules for its own datagrams applies to them.
//!
//! vpnd does not know which servers a local resolver, such as systemd-resolved, asks.

use std::fs;
use std::net::{IpAddr, SocketAddr};

use vpnd_device::{Netlink, Question};

use crate::config::{Config, Endpoint, Problem, Route};

const RESOLV_CONF: &str = "/etc/resolv.conf";
const HOSTS: &str = "/etc/hosts";
/// The maximum number of servers that the C library uses (`MAXNS`).
const MOST: usize = 3;
/// The DNS port.
const PORT: u16 = 53;

/// Warns if the peer's name would be looked up through the tunnel.
pub(crate) fn problems(config: &Config) -> Vec<Problem> {
    let hosts = fs::read_to_string(HOSTS).unwrap_or_default();
    let mut names = config.peer.endpoints.iter().filter(|one| one.address().is_none());
    let name = names.find(|one| !has_host(&hosts, &one.host));
    // Another network namespace has other routes.
    let name = name.filter(|_| config.socket.netns.is_none());
    let Some(name) = name else { return Vec::new() };
    let within: Vec<_> =
        configured().into_iter().filter_map(|at| Some((at, route_to(config, at)?))).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return Vec::new() };
    runtime.block_on(warnings(name, &within))
}

async fn warnings(name: &Endpoint, within: &[(IpAddr, &Route)]) -> Vec<Problem> {
    let Ok(netlink) = Netlink::connect() else { return Vec::new() };
    let uid = nix::unistd::geteuid().as_raw();
    let mut problems = Vec::new();
    for (at, route) in within {
        let found = netlink.route_of(&question(*at, uid)).await;
        // A route that is more specific than the tunnel's bypasses the tunnel. vpnd's own rules also prefer
        // routes of the table `main` to the tunnel's default route.
        let is_inside = match found.map(|found| found.to) {
            Some(Some(to)) => to.prefix_len() <= route.to.prefix_len(),
            Some(None) => false,
            None => true,
        };
        problems.extend(is_inside.then(|| warning(name, *at, route)));
    }
    problems
}

fn warning(name: &Endpoint, at: IpAddr, route: &Route) -> Problem {
    Problem::warning(format!(
        "[peer] endpoint: name server {at} of {RESOLV_CONF} is reached through the tunnel itself (route {}): while the \
         tunnel is down, {} cannot be looked up there",
        route.to, name.host
    ))
    .help(HELP)
}

/// The advice for the warning.
pub(crate) const HELP: &str = "give the name server a route of its own outside the tunnel, or write the peer's address into \
                               [peer] endpoint or /etc/hosts";

/// The host's name servers, except for servers on the host itself or on one of its links.
pub(crate) fn configured() -> Vec<IpAddr> {
    fs::read_to_string(RESOLV_CONF).map(|text| parse(&text)).unwrap_or_default()
}

fn parse(text: &str) -> Vec<IpAddr> {
    let all = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let address =
            words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
        // A link-local address is followed by its interface.
        address.split('%').next()?.parse::<IpAddr>().ok()
    });
    let is_local = |at: &IpAddr| match at.to_canonical() {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local() || v4.is_unspecified(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified(),
    };
    all.take(MOST).filter(|at| !is_local(at)).collect()
}

/// Whether this text of a hosts file contains a name.
fn has_host(hosts: &str, name: &str) -> bool {
    hosts.lines().any(|line| {
        let line = line.split('#').next().unwrap_or_default();
        line.split_whitespace().skip(1).any(|word| word.eq_ignore_ascii_case(name))
    })
}

/// The most specific route of the tunnel to this address, if the route applies to every program.
pub(crate) fn route_to(config: &Config, at: IpAddr) -> Option<&Route> {
    let everybodys = config.routes.iter().filter(|route| config.is_for_everybody(route));
    let covering = everybodys.filter(|route| route.to.contains(&at));
    covering.max_by_key(|route| route.to.prefix_len())
}

/// The routing lookup that the kernel makes for a query.
pub(crate) fn question(at: IpAddr, uid: u32) -> Question {
    let to = SocketAddr::new(at, PORT);
    Question { to, from: None, port: 0, mark: 0, device: None, uid }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_of_other_hosts() {
        let text = "# nameserver 192.0.2.1\nnameserver 127.0.0.53\nnameserver\t192.0.2.53 # ours\nsearch nameserver\n\
                    nameserver fe80::1%eth0\nnameserver 192.0.2.54\n";
        assert_eq!(parse(text), ["192.0.2.53".parse::<IpAddr>().unwrap()]);
        assert_eq!(parse("nameserver\nnameserver x\n"), Vec::<IpAddr>::new());
    }

    #[test]
    fn names_of_a_hosts_file() {
        let hosts = "127.0.0.1 localhost\n192.0.2.2  b.example.net b # c.example.net\n";
        assert!(has_host(hosts, "B.example.net") && has_host(hosts, "b"));
        assert!(!has_host(hosts, "c.example.net") && !has_host(hosts, "192.0.2.2"));
    }
}
